"""Model Breadcrumbs: drop the largest entries of every update and the small ones."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import ClassVar, Literal

from torch import Tensor
from typing_extensions import override

from spanwise.merging._methods._draws import keep_where_
from spanwise.merging._methods._order import Top, cuts, largest, magnitudes
from spanwise.merging._methods._sparse import Sparse, Thin, check_choice
from spanwise.merging._work import Work


@dataclass(frozen=True, kw_only=True)
class Breadcrumbs(Sparse):
    """Drop outliers and small entries, then task arithmetic; Davari et al., arXiv 2312.06795.

    Of n entries the int(gamma n) largest are dropped, and of the others the int(density n) largest
    kept; of equal ones the first count as larger.

    Args:
        scope: What n counts: a `row` (the weights that feed one output; a vector is one row), as in
            the authors' code, or the whole `tensor`, as in mergekit.
        normalize: Whether to divide by the sum of the weights.
    """

    per_model: ClassVar[Mapping[str, float]] = {"weight": 1.0, "density": 0.14, "gamma": 0.01}
    reference: ClassVar[str] = "https://arxiv.org/abs/2312.06795"

    scope: Literal["row", "tensor"] = "row"

    def __post_init__(self) -> None:
        check_choice("scope", self.scope, ("row", "tensor"))

    @override
    def check(self, values: Mapping[str, list[float]]) -> None:
        super().check(values)
        densities, gammas = values["density"], values["gamma"]
        same = len(densities) == len(gammas)
        for density, gamma in (zip if same else product)(densities, gammas):
            if not 0 <= gamma < 1 or density + gamma > 1 + 1e-12:
                raise ValueError(
                    "gamma must be in [0, 1), the share of largest entries that are dropped, and "
                    f"density + gamma at most 1, got gamma = {gamma:g} and density = {density:g}."
                )

    @override
    def splits(self, shape: tuple[int, ...]) -> bool:
        return self.scope == "row" and len(shape) > 1

    @override
    def thinners(self, work: Work) -> Sequence[Thin]:
        densities, gammas = work.values("density"), work.values("gamma")
        if self.scope == "row":
            n = work.row
            return [_rows(int(n * g), int(n * d)) for g, d in zip(gammas, densities, strict=True)]
        total = math.prod(work.shape)
        tops = [int(total * gamma) for gamma in gammas]
        ends = [min(t + int(total * d), total) for t, d in zip(tops, densities, strict=True)]
        wanted = [
            (index, count)
            for index, pair in enumerate(zip(tops, ends, strict=True))
            for count in pair
            if 0 < count < total
        ]
        found = dict(zip(wanted, cuts([work], wanted), strict=True))

        def first(index: int, count: int) -> Top | None:
            return Top(found.get((index, count)), exact=True) if count else None

        return [
            _between(first(index, top), first(index, end))
            for index, (top, end) in enumerate(zip(tops, ends, strict=True))
        ]


@dataclass(frozen=True, kw_only=True)
class BreadcrumbsTies(Breadcrumbs):
    """Drop outliers and small entries, then elect signs as TIES does; mergekit's combination.

    Entries that sum to exactly zero count as positive.

    Args:
        scope: What n counts: a `row` or the whole `tensor`.
        normalize: Whether entries that agree are averaged or added up.
    """

    elects: ClassVar[bool] = True


def _rows(top: int, kept: int) -> Thin:
    def thin(part: Work, update: Tensor) -> Tensor:
        rows = magnitudes(update.clone()).reshape(-1, part.row)
        return keep_where_(update, largest(rows, top + kept) & ~largest(rows, top))

    return thin


def _between(outliers: Top | None, kept: Top | None) -> Thin:
    def thin(part: Work, update: Tensor) -> Tensor:
        if kept is None:  # less than one entry
            return update.mul_(0)  # NaN stays, and is found
        if outliers is None:
            return kept(part, update)
        dropped = outliers(part, update.clone())
        return kept(part, update).sub_(dropped)

    return thin
