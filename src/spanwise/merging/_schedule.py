"""Parameters that vary by tensor: a number, a gradient over the layers, or filters by name."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Plain = float | int | bool | str | None

_LAYER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")


@dataclass(frozen=True)
class Depths:
    """How far down a model each tensor lies."""

    layers: int
    """Layers, counted from the first number in the tensors' names."""

    @classmethod
    def of(cls, names: Sequence[str]) -> "Depths":
        """From the names of all tensors of a model."""
        return cls(max((n for name in names if (n := layer_of(name)) is not None), default=0) + 1)

    def of_tensor(self, name: str) -> float:
        """0 at the first layer and before it, 1 at the last; a tensor outside layers is at 0."""
        layer = layer_of(name)
        return 0.0 if layer is None or self.layers < 2 else layer / (self.layers - 1)


def layer_of(name: str) -> int | None:
    """The number of the layer that a tensor belongs to, None outside layers.

    Example:
        >>> layer_of("model.layers.7.mlp.up_proj.weight")
        7
    """
    found = _LAYER.search(name)
    return None if found is None else int(found[1])


def renumbered(name: str, layer: int) -> str:
    """The name that a tensor has in another layer.

    Example:
        >>> renumbered("model.layers.7.mlp.up_proj.weight", 3)
        'model.layers.3.mlp.up_proj.weight'
    """
    return _LAYER.sub(lambda found: found[0].replace(found[1], str(layer)), name, count=1)


class Schedule:
    """One parameter's value at every tensor.

    Args:
        key: The parameter's name, for errors.
        value: A plain value; a list of numbers, which is interpolated linearly from the first layer
            to the last; or a list of `{"filter": text, "value": ...}`, of which the first whose
            text occurs in the tensor's name counts (an entry without a filter fits every name). A
            filter's value may be a list of numbers again.

    Raises:
        ValueError: If the value is none of these.
    """

    def __init__(self, key: str, value: Any) -> None:
        self.key, self.value = key, value
        self._check(value)

    def __call__(self, name: str, depth: float) -> Any:
        """The value at a tensor; None where no filter fits its name."""
        return self._at(self.value, name, depth)

    @property
    def values(self) -> list[Plain]:
        """Every plain value that occurs, for checks of ranges."""
        return list(_plain(self.value))

    def __repr__(self) -> str:
        return f"Schedule({self.key!r}, {self.value!r})"

    def _at(self, value: Any, name: str, depth: float) -> Any:
        if not isinstance(value, list):
            return value
        if isinstance(value[0], Mapping):
            for entry in value:
                wanted = entry.get("filter")
                if wanted in (None, "*") or str(wanted) in name:
                    return self._at(entry["value"], name, depth)
            return None
        place = depth * (len(value) - 1)
        low = min(int(place), len(value) - 1)
        high = min(low + 1, len(value) - 1)
        return value[low] + (place - low) * (value[high] - value[low])

    def _check(self, value: Any, *, inner: bool = False) -> None:
        if value is None or isinstance(value, (float, int, bool, str)):
            return
        if isinstance(value, list) and value:
            if all(isinstance(v, (float, int)) and not isinstance(v, bool) for v in value):
                return
            if not inner and all(isinstance(v, Mapping) for v in value):
                for entry in value:
                    if not {"value"} <= set(entry) <= {"value", "filter"}:
                        raise ValueError(
                            f"{self.key}: a filter is {{filter: TEXT, value: VALUE}}, got "
                            f"{dict(entry)!r}."
                        )
                    self._check(entry["value"], inner=True)
                return
        raise ValueError(
            f"{self.key} must be a value, a list of numbers from the first layer to the last, or a "
            f"list of filters, got {value!r}."
        )


def _plain(value: Any) -> Sequence[Plain]:
    if not isinstance(value, list):
        return [value]
    return [p for v in value for p in _plain(v["value"] if isinstance(v, Mapping) else v)]
