"""How much of an update lies inside an atlas: the proof that training kept out of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from spanwise.atlas._weights import Weights, open_weights
from spanwise.layouts import Layout, Side, matrix_view

if TYPE_CHECKING:
    from spanwise.atlas._atlas import Atlas


@dataclass(frozen=True, kw_only=True)
class Share:
    """One tensor's update, split by the atlas."""

    name: str
    inside_energy: float
    """Squared norm of the part that the atlas holds: seen by an output or an input entry."""
    outside_energy: float
    """Squared norm of the rest, orthogonal to it."""

    @property
    def inside(self) -> float:
        """Share inside, in `[0, 1]`; 0 for no update."""
        return _ratio(self.inside_energy, self.inside_energy + self.outside_energy)

    @property
    def outside(self) -> float:
        """Share outside, in `[0, 1]`; 0 for no update."""
        return _ratio(self.outside_energy, self.inside_energy + self.outside_energy)


@dataclass(frozen=True, kw_only=True)
class UpdateShare:
    """The split of a whole update; `str()` is one line."""

    rows: tuple[Share, ...]
    """Tensors that the atlas covers."""
    uncovered: Mapping[str, float]
    """Squared norm of the update of every other tensor that changed."""

    @property
    def inside(self) -> float:
        """Share of the covered tensors' squared update norm inside the atlas, in `[0, 1]`."""
        return _ratio(self._inside, self._inside + self._outside)

    @property
    def outside(self) -> float:
        """Share of the covered tensors' squared update norm outside, in `[0, 1]`."""
        return _ratio(self._outside, self._inside + self._outside)

    @property
    def covered(self) -> float:
        """Share of the whole squared update norm that falls on covered tensors."""
        covered = self._inside + self._outside
        return _ratio(covered, covered + sum(self.uncovered.values()))

    @property
    def _inside(self) -> float:
        return sum(row.inside_energy for row in self.rows)

    @property
    def _outside(self) -> float:
        return sum(row.outside_energy for row in self.rows)

    def __str__(self) -> str:
        return (
            f"{self.outside:.4%} of the update outside the atlas, {self.inside:.3e} inside, on "
            f"{len(self.rows)} tensors that hold {self.covered:.1%} of the update"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for a JSON file."""
        return {
            "inside": self.inside,
            "outside": self.outside,
            "covered": self.covered,
            "tensors": {row.name: row.inside for row in self.rows},
            "uncovered": dict(self.uncovered),
        }


def split_energy(
    delta: Tensor, layout: Layout, bases: Mapping[Side, Float[Tensor, "*batch d r"]]
) -> tuple[float, float]:
    """Squared norms of an update's parts inside and outside, computed in float64.

    With projectors P on outputs and Q on inputs, D = P D + (I - P) D Q + (I - P) D (I - Q); the
    three are orthogonal, the first two are inside. Each is formed by itself: a difference of
    norms could not tell 1e-17 from 0.

    Args:
        delta: The update, of the parameter's own shape.
        layout: How it is stored.
        bases: Orthonormal bases by side of the map.
    """
    rest = matrix_view(delta.detach().double(), layout)
    inside = 0.0
    if "output" in bases:
        u = bases["output"].to(rest)
        coordinates = u.mT @ rest
        inside += coordinates.square().sum().item()
        rest = rest - u @ coordinates
    if "input" in bases:
        v = bases["input"].to(rest)
        coordinates = rest @ v
        inside += coordinates.square().sum().item()
        rest = rest - coordinates @ v.mT
    return inside, rest.square().sum().item()


def update_share(atlas: "Atlas", base: Weights, tuned: Weights) -> UpdateShare:
    """Split `tuned - base` tensor by tensor, holding one tensor of each at a time.

    A bias counts as covered by its map's output entry. Tied weights count once.

    Raises:
        ValueError: If `tuned` lacks a covered tensor of `base` or holds it in another shape, or
            no tensor is covered.
    """
    old, new = open_weights(base), open_weights(tuned)
    biases = {e.bias: e for e in atlas if e.bias is not None and e.side == "output"}
    rows: list[Share] = []
    uncovered: dict[str, float] = {}
    done: set[str] = set()
    held: dict[Side, Tensor]
    for name in old:
        entries = atlas.get(name)
        canonical = next(iter(entries.values())).name if entries else name
        if canonical in done:
            continue
        if name not in new:
            if entries or name in biases:
                raise ValueError(f"the tuned weights lack {name}, which the atlas covers.")
            continue
        delta = _delta(name, old[name], new[name])
        if delta is None:
            continue
        done.add(canonical)
        if entries:
            layout = next(iter(entries.values())).layout
            held = {side: entry.subspace.basis for side, entry in entries.items()}
        elif name in biases:
            layout: Layout = "linear"
            held = {"output": biases[name].subspace.basis}
            delta = delta.unsqueeze(-1)
        else:
            energy = delta.double().square().sum().item()
            if energy > 0:
                uncovered[name] = energy
            continue
        inside, outside = split_energy(delta, layout, held)
        rows.append(Share(name=canonical, inside_energy=inside, outside_energy=outside))
    if not rows:
        raise ValueError(
            f"the atlas covers no tensor of these weights: it knows {atlas.names[:3]}, they have "
            f"{tuple(old)[:3]}."
        )
    return UpdateShare(rows=tuple(rows), uncovered=uncovered)


def _delta(name: str, old: Tensor, new: Tensor) -> Tensor | None:
    if old.shape != new.shape:
        raise ValueError(
            f"{name} has shape {tuple(old.shape)} in base and {tuple(new.shape)} in tuned."
        )
    if not old.is_floating_point():
        return None
    wide = torch.float64 if old.numel() < 2**26 else torch.float32
    return new.detach().to("cpu", wide) - old.detach().to("cpu", wide)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
