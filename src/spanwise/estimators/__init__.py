"""Estimators: subspaces of data, in scikit-learn's way."""

from typing import TYPE_CHECKING

from spanwise._lazy import lazy_attributes

if TYPE_CHECKING:
    pass

_HOMES: dict[str, str] = {}

__all__: list[str] = []

__getattr__, __dir__ = lazy_attributes(
    "spanwise.estimators",
    {name: f"spanwise.estimators.{home}" for name, home in _HOMES.items()},
)
