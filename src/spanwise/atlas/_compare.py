"""Two atlases side by side, and beside chance."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from spanwise.atlas import _algebra
from spanwise.layouts import Side
from spanwise.subspace import Subspace

if TYPE_CHECKING:
    from spanwise.atlas._atlas import Atlas


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One side of one map in both atlases; experts are concatenated."""

    name: str
    side: Side
    dim: int
    rank_a: int
    rank_b: int
    angles: Float[Tensor, "*batch k"]
    """Principal angles in radians, smallest first."""
    random_angles: Float[Tensor, "draws *batch k"]
    """The same to random subspaces of the second's rank."""

    @property
    def overlap(self) -> float:
        """||A^T B||_F^2, the sum of squared cosines, in `[0, min(r, s)]`; mean over experts."""
        return _overlap(self.angles)

    @property
    def expected_overlap(self) -> float:
        """What a uniformly random subspace would give on average: r s / d."""
        return self.rank_a * self.rank_b / self.dim

    @property
    def random_overlap(self) -> float:
        """The overlap with the random draws, on average."""
        return _overlap(self.random_angles)

    @property
    def shared(self) -> float:
        """Overlap as a share of the smaller subspace, in `[0, 1]`."""
        return self.overlap / min(self.rank_a, self.rank_b)

    @property
    def expected_shared(self) -> float:
        """What `shared` is for random subspaces: the larger rank over the dimension."""
        return max(self.rank_a, self.rank_b) / self.dim

    @property
    def mean_angle(self) -> float:
        """Mean principal angle in degrees, in `[0, 90]`."""
        return self.angles.double().mean().rad2deg().item()

    @property
    def random_mean_angle(self) -> float:
        """The same with random subspaces of the second's rank."""
        return self.random_angles.double().mean().rad2deg().item()

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for a JSON file."""
        return {
            "name": self.name,
            "side": self.side,
            "dim": self.dim,
            "rank_a": self.rank_a,
            "rank_b": self.rank_b,
            "overlap": self.overlap,
            "expected_overlap": self.expected_overlap,
            "random_overlap": self.random_overlap,
            "mean_angle": self.mean_angle,
            "random_mean_angle": self.random_mean_angle,
            "shared": self.shared,
            "expected_shared": self.expected_shared,
            "angles": self.angles.tolist(),
        }


@dataclass(frozen=True, kw_only=True)
class AtlasComparison:
    """All entries that two atlases have in common."""

    rows: tuple[Comparison, ...]
    only_a: tuple[str, ...]
    """Entries of the first atlas alone, as "name::side"."""
    only_b: tuple[str, ...]

    @property
    def shared(self) -> float:
        """Total overlap over the total of the smaller ranks, in `[0, 1]`."""
        return sum(r.overlap for r in self.rows) / self._smaller

    @property
    def expected_shared(self) -> float:
        """What `shared` is for random subspaces."""
        return sum(r.expected_overlap for r in self.rows) / self._smaller

    @property
    def _smaller(self) -> int:
        return sum(min(r.rank_a, r.rank_b) for r in self.rows)

    def __str__(self) -> str:
        return (
            f"{self.shared:.1%} of the smaller subspaces shared, {self.expected_shared:.1%} "
            f"expected of random ones, on {len(self.rows)} entries"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for a JSON file."""
        return {
            "shared": self.shared,
            "expected_shared": self.expected_shared,
            "rows": [row.as_dict() for row in self.rows],
            "only_a": list(self.only_a),
            "only_b": list(self.only_b),
        }


def compare(a: "Atlas", b: "Atlas", *, draws: int = 4, seed: int = 0) -> AtlasComparison:
    """Principal angles of every common entry, beside random subspaces of `b`'s ranks.

    Raises:
        ValueError: If the atlases have no entry in common, or belong to different architectures.
    """
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}.")
    pairs = _algebra.pairs(a, b)
    if not pairs:
        raise ValueError(
            f"the atlases have no entry in common: one holds {_labels(a)[:2]}, the other "
            f"{_labels(b)[:2]}."
        )
    generator = torch.Generator().manual_seed(seed)
    known: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    rows = []
    for e, f in pairs:
        key = (id(e.subspace), id(f.subspace))
        if key not in known:
            known[key] = _angles(e.subspace, f.subspace, draws, generator)
        angles, random_angles = known[key]
        rows.append(
            Comparison(
                name=e.name,
                side=e.side,
                dim=e.subspace.dim,
                rank_a=e.subspace.rank,
                rank_b=f.subspace.rank,
                angles=angles,
                random_angles=random_angles,
            )
        )
    matched_a, matched_b = {e.key for e, _ in pairs}, {f.key for _, f in pairs}
    return AtlasComparison(
        rows=tuple(rows),
        only_a=tuple(f"{n}::{s}" for n, s in a.entries if (n, s) not in matched_a),
        only_b=tuple(f"{n}::{s}" for n, s in b.entries if (n, s) not in matched_b),
    )


def layer_grid(values: Mapping[str, float]) -> tuple[list[str], list[str], list[list[float]]]:
    """Numbers by parameter name as a grid of layers by kinds of map, for a heat map.

    "model.layers.3.mlp.up_proj.weight" goes to row "model.layers.3", column "mlp.up_proj"; a
    name without a layer number is a row of its own kind. Missing cells are NaN.
    """
    cells: dict[tuple[str, str], float] = {}
    for name, value in values.items():
        match = re.fullmatch(r"(.*?\.\d+)\.(.+)", name.removesuffix(".weight"))
        layer, kind = match.groups() if match else ("", name.removesuffix(".weight"))
        cells[layer, kind] = value
    rows = list(dict.fromkeys(layer for layer, _ in cells))
    columns = list(dict.fromkeys(kind for _, kind in cells))
    nan = float("nan")
    return rows, columns, [[cells.get((row, column), nan) for column in columns] for row in rows]


def _angles(
    s: Subspace, t: Subspace, draws: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    t = t.to(s.basis.device, s.basis.dtype)
    shape = {"batch": t.batch, "dtype": s.basis.dtype, "generator": generator}
    random = [Subspace.random(t.dim, t.rank, **shape) for _ in range(draws)]
    return s.angles(t).cpu(), torch.stack([s.to("cpu").angles(r) for r in random])


def _overlap(angles: Tensor) -> float:
    return angles.double().cos().square().sum(-1).mean().item()


def _labels(atlas: "Atlas") -> list[str]:
    return [f"{name}::{side}" for name, side in atlas.entries]
