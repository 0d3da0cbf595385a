"""spanwise: teach your model something new, keep what it knows.

A subspace found by one method is a value that another can use: `Subspace` is one,
`Atlas` is a model's worth of them in one file, and training, merging, erasing and
auditing all obey it. Attributes load on first use, so `import spanwise` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spanwise.atlas import Atlas
    from spanwise.subspace import Subspace

__version__ = "0.1.0.dev0"

__all__ = ["Atlas", "Subspace", "__version__"]

_ATTRIBUTES = {"Atlas": "spanwise.atlas", "Subspace": "spanwise.subspace"}
_ROOMS = {
    "atlas",
    "catalog",
    "datasets",
    "io",
    "layouts",
    "linalg",
    "optim",
    "plots",
    "report",
    "reproductions",
    "subspace",
    "training",
    "zoo",
}


def __getattr__(name: str) -> Any:
    if name in _ATTRIBUTES:
        return getattr(import_module(_ATTRIBUTES[name]), name)
    if name in _ROOMS:
        return import_module(f"spanwise.{name}")
    raise AttributeError(f"module 'spanwise' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ATTRIBUTES, *_ROOMS})
