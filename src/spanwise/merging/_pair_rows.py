"""Rows of a diagnosis, from what was measured matrix by matrix."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from spanwise.merging._diagnosis import (
    Layer,
    LayerPair,
    ModelRow,
    PairRow,
    SpectrumRow,
    UpdateRow,
)
from spanwise.merging._pairs import Measured


@dataclass
class Totals:
    """Sums over the matrices of T models; `[i, j]` holds energy of model i."""

    count: int
    """T."""
    energy: Float[Tensor, "T 1"] = field(init=False)
    """||D_i||^2."""
    shared: Float[Tensor, "T T"] = field(init=False)
    """Of it in the leading directions of j, mean of left and right."""
    random: Float[Tensor, "T T"] = field(init=False)
    """What random directions would hold."""
    against: Float[Tensor, "T T"] = field(init=False)
    """Times the negative part of the cosine with j."""
    aligned: Float[Tensor, "T T+1"] = field(init=False)
    """Of it in the left directions of j, and of the sum, that the alignment ratio takes."""
    random_aligned: Float[Tensor, "T T+1"] = field(init=False)
    """What random directions would hold."""

    def __post_init__(self) -> None:
        t = self.count
        self.energy = torch.zeros(t, 1, dtype=torch.float64)
        self.shared, self.random, self.against = torch.zeros(3, t, t, dtype=torch.float64)
        self.aligned, self.random_aligned = torch.zeros(2, t, t + 1, dtype=torch.float64)

    def add(self, found: Measured) -> None:
        """Count one more matrix."""
        own = found.inner.diagonal().unsqueeze(1)
        self.energy += own
        self.shared += own * (found.left + found.right) / 2
        self.random += own * _chance(found)
        self.against += own * (-cosines(found.inner)).clamp(min=0)
        self.aligned += own * found.aligned
        self.random_aligned += own * _aligned_chance(found)

    def share(self, part: Float[Tensor, "T p"]) -> Float[Tensor, "T p"]:
        """A part of each model's energy; 0 where a model has none."""
        return part / torch.where(self.energy > 0, self.energy, 1)


def ranked(
    labels: Sequence[str], inner: Float[Tensor, "T T"], totals: Totals
) -> tuple[PairRow, ...]:
    """A row for each pair, highest score first.

    Args:
        labels: The models' names.
        inner: <D_i, D_j> over all tensors, matrices or not.
        totals: Over all matrices.
    """
    cosine = cosines(inner)
    shared, random, against = map(totals.share, (totals.shared, totals.random, totals.against))
    ratio = totals.share(totals.aligned).sqrt()
    random_ratio = totals.share(totals.random_aligned).sqrt()
    rows = []
    for i, j in itertools.combinations(range(len(labels)), 2):
        alike, chance, conflict = (_both(x, i, j) for x in (shared, random, against))
        room = 1 - chance
        row = PairRow(
            first=labels[i],
            second=labels[j],
            cosine=float(cosine[i, j]),
            shared_energy=alike,
            random=chance,
            alignment=_both(ratio, i, j),
            random_alignment=_both(random_ratio, i, j),
            conflict=conflict,
            # Where all directions are compared, nothing can be told from chance.
            score=((alike - chance) / room if room > 1e-9 else 0.0) - 2 * conflict,
        )
        rows.append(row)
    return tuple(sorted(rows, key=lambda row: -row.score))


def model_row(
    labels: Sequence[str],
    index: int,
    inner: Float[Tensor, "T T"],
    measured: Sequence[Measured],
    totals: Totals,
) -> ModelRow:
    """One model over all tensors; see `ranked`."""
    own = [(float(found.inner[index, index]), found.spectra[index]) for found in measured]
    whole = sum(weight for weight, _ in own) or 1.0
    return ModelRow(
        model=labels[index],
        norm=math.sqrt(float(inner[index, index])),
        matrices=sum(weight > 0 for weight, _ in own),
        stable_rank=sum(weight * found.stable_rank for weight, found in own) / whole,
        effective_rank=sum(weight * found.effective_rank for weight, found in own) / whole,
        alignment=float(totals.share(totals.aligned)[index, -1].sqrt()),
        random_alignment=float(totals.share(totals.random_aligned)[index, -1].sqrt()),
    )


def layer_row(name: str, found: Measured, labels: Sequence[str]) -> Layer:
    """One matrix."""
    cosine, chance, shared = cosines(found.inner), _chance(found), (found.left + found.right) / 2
    ratio, random_ratio = found.aligned.sqrt(), _aligned_chance(found).sqrt()
    updates = tuple(
        UpdateRow(
            model=label,
            size=found.sizes[i],
            alignment=float(ratio[i, -1]),
            random_alignment=float(random_ratio[i, -1]),
            **SpectrumRow.values(found.spectra[i]),
        )
        for i, label in enumerate(labels)
    )
    pairs = tuple(
        LayerPair(
            first=labels[i],
            second=labels[j],
            cosine=float(cosine[i, j]),
            shared_energy=_both(shared, i, j),
            random=_both(chance, i, j),
            alignment=_both(ratio, i, j),
            random_alignment=_both(random_ratio, i, j),
        )
        for i, j in itertools.combinations(range(len(labels)), 2)
    )
    total = SpectrumRow(**SpectrumRow.values(found.total))
    return Layer(name=name, shape=found.shape, updates=updates, total=total, pairs=pairs)


def cosines(inner: Float[Tensor, "T T"]) -> Float[Tensor, "T T"]:
    """Of every pair; 0 where an update is zero."""
    norms = inner.diagonal().sqrt()
    norms = torch.where(norms > 0, norms, 1)
    return (inner / norms.unsqueeze(1) / norms).clamp(-1, 1)


def _both(x: Tensor, i: int, j: int) -> float:
    return float(x[i, j] + x[j, i]) / 2


def _chance(found: Measured) -> Float[Tensor, "T T"]:
    """`[i, j]`: share of D_i in k_j random directions on average, mean of both sides."""
    m, n = found.shape
    sizes = torch.tensor(found.sizes, dtype=torch.float64)
    return _changed(found) * (sizes / m + sizes / n) / 2


def _aligned_chance(found: Measured) -> Float[Tensor, "T T+1"]:
    """The same for the left directions of the alignment ratio."""
    sizes = torch.tensor(found.aligned_sizes, dtype=torch.float64)
    return _changed(found) * sizes / found.shape[0]


def _changed(found: Measured) -> Tensor:
    return (found.inner.diagonal() > 0).double().unsqueeze(1)
