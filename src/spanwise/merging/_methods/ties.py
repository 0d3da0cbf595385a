"""TIES: trim every update, elect a sign for every entry, average what agrees."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import override

from spanwise.merging._methods._method import Method
from spanwise.merging._methods._order import Cut, Top, cuts
from spanwise.merging._methods._sparse import Sparse, check_choice
from spanwise.merging._methods.averages import mixed
from spanwise.merging._work import Work


@dataclass(frozen=True, kw_only=True)
class Ties(Sparse):
    """Trim, elect sign, disjoint mean; Yadav et al., arXiv 2306.01708.

    Of each update the largest `density` is kept; the sign of each entry is that of the weighted sum
    of what is left, and the entries of that sign are averaged by weight.

    Args:
        trim_scope: What `density` is a share of: the whole `model`, as in the paper, or every
            `tensor` for itself, as in mergekit. They give different models. The first takes one
            pass over all models beforehand to find the thresholds, which are exact.
        keep: `threshold` keeps what is at least as large as the k-th smallest magnitude, with
            k = d - int(density d) of d, as in the authors' code: one entry more than the share, and
            every tie. `count` keeps int(density d), at least one, and of ties the first; for
            `trim_scope="tensor"`, as in mergekit.
        undecided: The sign of entries that sum to exactly zero: that of the `majority` of entries
            in the same scope, as in the authors' code, which takes another pass, or `plus`, as in
            mergekit. Updates of bfloat16 models often cancel.
        normalize: Whether entries that agree are averaged or added up.
    """

    per_model: ClassVar[Mapping[str, float]] = {"weight": 1.0, "density": 0.2}
    reference: ClassVar[str] = "https://arxiv.org/abs/2306.01708"
    elects: ClassVar[bool] = True

    normalize: bool = True
    trim_scope: Literal["model", "tensor"] = "model"
    keep: Literal["threshold", "count"] = "threshold"
    undecided: Literal["majority", "plus"] = "majority"

    def __post_init__(self) -> None:
        check_choice("trim_scope", self.trim_scope, ("model", "tensor"))
        check_choice("keep", self.keep, ("threshold", "count"))
        check_choice("undecided", self.undecided, ("majority", "plus"))
        if self.keep == "count" and self.trim_scope == "model":
            raise ValueError(
                'keep="count" breaks ties by their place in a tensor: use it with '
                'trim_scope="tensor", or keep="threshold".'
            )

    @override
    def splits(self, shape: tuple[int, ...]) -> bool:
        return self.trim_scope == "model"

    @override
    def begin(self, names: Sequence[str], work_of: Callable[[str], Work]) -> Method:
        works = [work for name in names if math.prod((work := work_of(name)).shape)]
        if self.trim_scope == "tensor" or not works:
            return self
        found = self._cuts(works)
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        return _Trimmed(**own, cuts=tuple(found), sign=self._sign(works, found))

    @override
    def thinners(self, work: Work) -> list[Top]:
        return self._tops(self._cuts([work]))

    @override
    def merge_tensor(self, work: Work) -> Tensor:
        assert self.trim_scope == "tensor", "begin() finds the thresholds of whole models"
        if not math.prod(work.shape):
            return work.update(0)
        found = self._cuts([work])
        return self.mix(work, self._tops(found), self._sign([work], found))

    def _tops(self, found: Sequence[Cut | None]) -> list[Top]:
        return [Top(cut, exact=self.keep == "count") for cut in found]

    def _cuts(self, works: Sequence[Work]) -> list[Cut | None]:
        """Where each model is cut, over all `works` together; None where everything is kept."""
        total = sum(math.prod(work.shape) for work in works)
        wanted: list[tuple[int, int]] = []
        for index in range(works[0].count):
            share = _one_density(works, index)
            count = int(total * share)
            # At 100 % the authors' k is 0, and there is no such element.
            count = max(1, count) if self.keep == "count" else count + 1
            if share < 1 and count < total:
                wanted.append((index, count))
        found = dict(zip([index for index, _ in wanted], cuts(works, wanted), strict=True))
        return [found.get(index) for index in range(works[0].count)]

    def _sign(self, works: Sequence[Work], found: Sequence[Cut | None]) -> float:
        """The sign of entries that are undecided."""
        if self.undecided == "plus":
            return 1.0
        balance = 0.0
        for work in works:
            weights, tops = work.values("weight"), self._tops(found)
            for part in work.parts():
                kept = (
                    (top(part, update), weight)
                    for update, top, weight in zip(part.stream(), tops, weights, strict=True)
                )
                balance += float(mixed(kept).sign_().sum(dtype=torch.float64))
        # The authors' comparison sends a balance of zero to the negative side.
        return 1.0 if balance > 0 else -1.0


@dataclass(frozen=True, kw_only=True)
class _Trimmed(Ties):
    """TIES once the thresholds of whole models are known."""

    cuts: tuple[Cut | None, ...]
    sign: float

    @override
    def begin(self, names: Sequence[str], work_of: Callable[[str], Work]) -> Method:
        return self

    @override
    def merge_tensor(self, work: Work) -> Tensor:
        return self.mix(work, self._tops(self.cuts), self.sign)


def _one_density(works: Sequence[Work], index: int) -> float:
    shares = {float(work.value("density", index)) for work in works}
    if len(shares) > 1:
        raise ValueError(
            f"density differs between tensors (from {min(shares):g} to {max(shares):g}), but "
            'trim_scope="model" ranks all entries of a model together: give each model one density,'
            ' or use trim_scope="tensor".'
        )
    return shares.pop()
