"""Attributes and extras that load on first use, so that a light install stays light."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

EXTRAS: dict[str, str] = {
    "accelerate": "train",
    "datasets": "hub",
    "gguf": "assets",
    "matplotlib": "plots",
    "peft": "adapters",
    "pooch": "hub",
    "psutil": "train",
    "sklearn": "sklearn",
    "transformers": "train",
}
"""The extra of pyproject.toml that brings an optional module."""


def install_line(module: str) -> str | None:
    """The command that installs `module`, or None if no extra of ours brings it.

    Example:
        >>> install_line("matplotlib")
        "pip install 'spanwise[plots]'"
    """
    extra = EXTRAS.get(module.partition(".")[0])
    return extra and f"pip install 'spanwise[{extra}]'"


def require(module: str, purpose: str = "this") -> ModuleType:
    """Import an optional dependency, or say how to get it.

    Args:
        module: Dotted name of the module, such as `"matplotlib.pyplot"`.
        purpose: What needs it, as the subject of the error's sentence.

    Raises:
        ModuleNotFoundError: If the module is not installed; the message holds the install line.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or module).partition(".")[0]
        line = install_line(missing) or f"pip install {missing}"
        raise ModuleNotFoundError(
            f"{purpose} needs the package {missing!r}, which is not installed. Run: {line}",
            name=error.name,
        ) from error


def lazy_attributes(
    package: str, attributes: Mapping[str, str], rooms: frozenset[str] = frozenset()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` for a package whose attributes load on first use.

    Args:
        package: The package's `__name__`.
        attributes: Public name -> module that defines it.
        rooms: Names of submodules that may be reached as attributes.
    """

    def get(name: str) -> Any:
        if name in attributes:
            value = getattr(import_module(attributes[name]), name)
        elif name in rooms:
            value = import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *attributes, *rooms})

    return get, names
