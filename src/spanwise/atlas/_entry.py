"""One entry of an Atlas: a subspace and the side of the map that it belongs to."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from spanwise.layouts import Layout, Side, map_dims, strip_prefixes
from spanwise.subspace import Subspace

Key = tuple[str, Side]


@dataclass(frozen=True, eq=False, kw_only=True)
class Entry:
    """A subspace of one side of one linear map.

    Args:
        name: The parameter's name, wrappers stripped ("model.layers.0.mlp.up_proj.weight").
        side: `"output"`: in R^m, `"input"`: in R^n.
        subspace: The basis `(d, r)`, or `(experts, d, r)` for stacked experts.
        layout: How the parameter stores the map.
        shape: The parameter's own shape.
        aliases: Other names of the very same tensor (tied weights).
        bias: Name of the bias that is added to the map's output, if any.

    Raises:
        ValueError: If the subspace does not live on that side of a map of this shape.
    """

    name: str
    side: Side
    subspace: Subspace
    layout: Layout
    shape: tuple[int, ...]
    aliases: tuple[str, ...] = ()
    bias: str | None = None

    def __post_init__(self) -> None:
        if self.side not in ("output", "input"):
            raise ValueError(f'side must be "output" or "input", got {self.side!r}.')
        batch, m, n = map_dims(self.shape, self.layout)
        expected = m if self.side == "output" else n
        if self.subspace.dim != expected or self.subspace.batch != batch:
            raise ValueError(
                f"{self.name}: the {self.side} side of a {self.layout} parameter of shape "
                f"{self.shape} needs a basis of shape {(*batch, expected, 'r')}, got "
                f"{tuple(self.subspace.basis.shape)}."
            )

    @property
    def key(self) -> Key:
        """`(name, side)`, the entry's key in an Atlas."""
        return self.name, self.side

    def bias_names(self, shape_of: Callable[[str], Sequence[int] | None]) -> list[str]:
        """The biases that are added to this map's output: the named one and those by convention.

        Sources that saw tensors and no module (deltas, adapters) do not know the bias, and layers
        with a tied weight have one each.

        Args:
            shape_of: The shape of a tensor by name; None if there is none of that name.
        """
        names = [
            re.sub(r"(^|\.)weight$", r"\1bias", n) if n.endswith("weight") else f"{n}_bias"
            for n in (self.name, *self.aliases)
        ]
        if self.bias is not None:
            names.append(strip_prefixes(self.bias))
        batch, m, _ = map_dims(self.shape, self.layout)
        shapes = {n: shape_of(n) for n in dict.fromkeys(names)}
        return [n for n, s in shapes.items() if s is not None and tuple(s) == (*batch, m)]


def lora_entry(whole: Entry, name: str) -> Entry:
    """What one factor of a LoRA update W + s B A takes from the entry of W."""
    _, m, n = map_dims(whole.shape, whole.layout)
    shape = (-1, n) if whole.side == "input" else (m, -1)
    return replace(whole, name=name, layout="linear", shape=shape, aliases=(), bias=None)
