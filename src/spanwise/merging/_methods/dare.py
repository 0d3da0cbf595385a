"""DARE: drop entries of every update at random, and make up for them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor
from typing_extensions import override

from spanwise.merging._methods._draws import bound, draws, keep_where_
from spanwise.merging._methods._sparse import Rescale, Sparse, Thin, check_choice, rescaled
from spanwise.merging._work import Work


@dataclass(frozen=True, kw_only=True)
class DareLinear(Sparse):
    """Drop at random, then task arithmetic; Yu et al., arXiv 2311.03099.

    Every entry is kept with probability `density` (the paper drops with p = 1 - density), and the
    updates are added up. What is drawn depends on the seed, the model's label and the tensor's
    name, not on order, shards, rows or workers.

    Args:
        rescale: `expectation` divides by the density, as in the paper, so that the mean over draws
            is the update; `l1` restores each tensor's sum of magnitudes, as mergekit does; False
            leaves what is kept as it is.
        normalize: Whether to divide by the sum of the weights.
    """

    per_model: ClassVar[Mapping[str, float]] = {"weight": 1.0, "density": 0.1}
    reference: ClassVar[str] = "https://arxiv.org/abs/2311.03099"

    rescale: Rescale = "expectation"

    def __post_init__(self) -> None:
        check_choice("rescale", self.rescale, ("expectation", "l1", False))

    @override
    def splits(self, shape: tuple[int, ...]) -> bool:
        return self.rescale != "l1"

    @override
    def thinners(self, work: Work) -> Sequence[Thin]:
        drops = [self._drop(index, work.value("density", index)) for index in range(work.count)]
        return rescaled(work, drops) if self.rescale == "l1" else drops

    def _drop(self, index: int, density: float) -> Thin:
        def drop(part: Work, update: Tensor) -> Tensor:
            if density == 1:
                return update
            drawn = draws(part, index).reshape(-1).cpu().numpy()
            keep_where_(update, np.less(drawn, bound(density)))
            return update.div_(density) if self.rescale == "expectation" else update

        return drop


@dataclass(frozen=True, kw_only=True)
class DareTies(DareLinear):
    """Drop at random, then elect signs as TIES does; Yu et al., arXiv 2311.03099.

    Entries that sum to exactly zero count as positive.

    Args:
        rescale: `expectation` divides by the density, as in the paper; `l1` restores each tensor's
            sum of magnitudes, as mergekit does; False leaves what is kept as it is.
        normalize: Whether entries that agree are averaged, as in the paper, or added up, which is
            mergekit's default.
    """

    elects: ClassVar[bool] = True

    normalize: bool = True
