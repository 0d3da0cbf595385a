"""The methods by name."""

from spanwise.merging._methods._method import Method
from spanwise.merging._methods.averages import Linear, TaskArithmetic

METHODS: dict[str, type[Method]] = {
    "linear": Linear,
    "task_arithmetic": TaskArithmetic,
}
"""Name -> class; each class's docstring is its help."""
