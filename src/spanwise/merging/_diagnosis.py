"""What `diagnose` found: rows by layer, by model and by pair, as tables, JSON and a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from typing_extensions import override

from spanwise.io import write_json
from spanwise.io.configs import to_plain
from spanwise.merging._spectra import Spectrum


@dataclass(frozen=True, kw_only=True)
class SpectrumRow:
    """One matrix by its singular values; all 0 for a zero matrix."""

    norm: float
    """Frobenius norm."""
    rank: int
    """Singular values that are more than rounding."""
    stable_rank: float
    """||D||_F^2 / s_1^2."""
    effective_rank: float
    """exp of the entropy of s_i / sum s."""
    rank_90: int
    """How few directions hold 90 % of the energy ||D||_F^2."""
    rank_95: int
    """The same for 95 %."""
    rank_99: int
    """The same for 99 %."""
    skew: float
    """s_1 over the mean singular value, which Iso-C gives to all directions; 1 is flat."""

    @staticmethod
    def values(found: Spectrum) -> dict[str, Any]:
        """The fields, from singular values."""
        return {
            "norm": found.norm,
            "rank": found.rank,
            "stable_rank": found.stable_rank,
            "effective_rank": found.effective_rank,
            **{f"rank_{p}": found.rank_at(p / 100) for p in (90, 95, 99)},
            "skew": found.skew,
        }


@dataclass(frozen=True, kw_only=True)
class UpdateRow(SpectrumRow):
    """One model's update of one matrix."""

    model: str
    size: int
    """k: how many of its directions pairs are compared by."""
    alignment: float
    """Subspace alignment ratio with M, the sum of all updates, in [0, 1]."""
    random_alignment: float
    """sqrt(k_M / m): about what an update that has nothing to do with M would have."""


@dataclass(frozen=True, kw_only=True)
class LayerPair:
    """Two models' updates of one matrix."""

    first: str
    second: str
    cosine: float
    shared_energy: float
    random: float
    alignment: float
    random_alignment: float


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One matrix that at least one model changed."""

    name: str
    shape: tuple[int, int]
    updates: tuple[UpdateRow, ...]
    """One for each model, in the models' order."""
    total: SpectrumRow
    """Of the sum of all updates, which is what task arithmetic adds."""
    pairs: tuple[LayerPair, ...]


@dataclass(frozen=True, kw_only=True)
class ModelRow:
    """One model's update as a whole. Means over matrices are weighted by energy."""

    model: str
    norm: float
    """Of all tensors that were looked at, matrices or not."""
    matrices: int
    """How many matrices it changed."""
    stable_rank: float
    effective_rank: float
    alignment: float
    """Subspace alignment ratio with the sum of all updates: ||P D||_F / ||D||_F over all
    matrices."""
    random_alignment: float


@dataclass(frozen=True, kw_only=True)
class PairRow:
    """Two models, over all matrices.

    Every layer counts by its share of each model's energy, and each model counts the same, so that
    scaling one of them changes nothing.
    """

    first: str
    second: str
    cosine: float
    """Of the two task vectors: all tensors that were looked at, matrices or not."""
    shared_energy: float
    """Share of either update in the other's leading left and right singular directions: the mean
    of both sides and both ways, in [0, 1]."""
    random: float
    """`shared_energy` of random subspaces of the same sizes: the mean of k / m and k / n."""
    alignment: float
    """Subspace alignment ratio of either update with the other, mean of both, in [0, 1]."""
    random_alignment: float
    """About what unrelated updates would have: sqrt(k / m)."""
    conflict: float
    """Negative part of the layers' cosines, in [0, 1]: 1 where every layer is pulled back."""
    score: float
    """(shared_energy - random) / (1 - random) - 2 conflict, at most 1: 1 for the same update, about
    0 for unrelated ones, -1 for opposite ones."""


class Table(NamedTuple):
    """What people read of some rows."""

    title: str
    head: Sequence[str]
    cells: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What fine-tunes of one base have in common, before any of them is merged.

    Attributes:
        pairs: Highest score first: most alike and least in conflict.
        models: In the order given.
        layers: Matrices in the base's order, those that no model changed left out.
        settings: How it was made.
        notes: What a reader should know first: models that equal the base, tensors left out.
    """

    pairs: tuple[PairRow, ...]
    models: tuple[ModelRow, ...]
    layers: tuple[Layer, ...]
    settings: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    def pair(self, first: str, second: str) -> PairRow:
        """The row of two models, in either order.

        Raises:
            KeyError: If they are no pair of these models.
        """
        for row in self.pairs:
            if {row.first, row.second} == {first, second}:
                return row
        raise KeyError(f"no pair {first!r}, {second!r}: {[m.model for m in self.models]}")

    def to_json(self) -> dict[str, Any]:
        """Plain values, without NaN."""
        return {"format": 1, **to_plain(self)}

    def save(self, path: str | Path) -> Path:
        """Write it as JSON, whole or not at all."""
        return write_json(path, self.to_json())

    def figure(self, path: str | Path) -> list[Path]:
        """Draw what pairs share beyond chance, and the layers' effective ranks.

        Args:
            path: `.svg` or `.png`; without a suffix, both.

        Returns:
            The files written.

        Raises:
            ModuleNotFoundError: If matplotlib is missing; the message holds the install line.
        """
        from spanwise.merging._diagnosis_figure import draw

        return draw(self, path)

    def tables(self) -> tuple[Table, Table]:
        """The pairs and the models, as people read them."""
        pairs = Table(
            "pairs, most alike and least in conflict first",
            ("pair", "score", "cosine", "shared", "by chance", "conflict", "alignment",
             "by chance"),
            [
                (
                    f"{row.first} + {row.second}",
                    f"{row.score:+.3f}",
                    f"{row.cosine:+.3f}",
                    f"{row.shared_energy:.1%}",
                    f"{row.random:.1%}",
                    f"{row.conflict:.3f}",
                    f"{row.alignment:.3f}",
                    f"{row.random_alignment:.3f}",
                )
                for row in self.pairs
            ],
        )  # fmt: skip
        models = Table(
            "models, alignment with the sum of all updates",
            ("model", "norm", "matrices", "stable rank", "effective rank", "alignment",
             "by chance"),
            [
                (
                    row.model,
                    f"{row.norm:.4g}",
                    str(row.matrices),
                    f"{row.stable_rank:.1f}",
                    f"{row.effective_rank:.1f}",
                    f"{row.alignment:.3f}",
                    f"{row.random_alignment:.3f}",
                )
                for row in self.models
            ],
        )  # fmt: skip
        return pairs, models

    @override
    def __str__(self) -> str:
        parts = [f"{table.title}\n{_aligned(table)}" for table in self.tables()]
        return "\n\n".join([*parts, *(f"note: {note}" for note in self.notes)])


def _aligned(table: Table) -> str:
    lines = [table.head, *table.cells]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
