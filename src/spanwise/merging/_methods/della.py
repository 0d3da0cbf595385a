"""DELLA: drop entries at random, small ones sooner than large ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import numpy as np
from torch import Tensor
from typing_extensions import override

from spanwise.merging._methods._draws import bound, draws, keep_where_
from spanwise.merging._methods._order import ascending, magnitudes
from spanwise.merging._methods._sparse import Rescale, Sparse, Thin, check_choice, rescaled
from spanwise.merging._work import Work


@dataclass(frozen=True, kw_only=True)
class DellaLinear(Sparse):
    """Drop by the rank of magnitudes, then task arithmetic; Deep et al., arXiv 2406.11617.

    In every row (the weights that feed one output; a vector is one row) the chance to be kept rises
    with the rank of |D| from `density - epsilon` to `density + epsilon`. Draws are as for DARE.

    Args:
        rescale: `expectation` divides each entry by its chance, so that the mean over draws is the
            update; `l1` restores each tensor's sum of magnitudes, as mergekit does; False leaves
            what is kept as it is.
        normalize: Whether to divide by the sum of the weights.
    """

    per_model: ClassVar[Mapping[str, float]] = {"weight": 1.0, "density": 0.5, "epsilon": 0.15}
    reference: ClassVar[str] = "https://arxiv.org/abs/2406.11617"

    rescale: Rescale = "expectation"

    def __post_init__(self) -> None:
        check_choice("rescale", self.rescale, ("expectation", "l1", False))

    @override
    def check(self, values: Mapping[str, list[float]]) -> None:
        super().check(values)
        densities, epsilons = values["density"], values["epsilon"]
        same = len(densities) == len(epsilons)
        for density, epsilon in (zip if same else product)(densities, epsilons):
            inside = density - epsilon > 0 and density + epsilon < 1
            if epsilon < 0 or not (inside or density == 1):
                raise ValueError(
                    "density - epsilon and density + epsilon must lie inside (0, 1), since they "
                    f"are probabilities (or density be 1, which drops nothing), got density = "
                    f"{density:g} and epsilon = {epsilon:g}."
                )

    @override
    def splits(self, shape: tuple[int, ...]) -> bool:
        return self.rescale != "l1" and len(shape) > 1

    @override
    def thinners(self, work: Work) -> Sequence[Thin]:
        drops = [
            self._drop(index, work.value("density", index), work.value("epsilon", index))
            for index in range(work.count)
        ]
        return rescaled(work, drops) if self.rescale == "l1" else drops

    def _drop(self, index: int, density: float, epsilon: float) -> Thin:
        def drop(part: Work, update: Tensor) -> Tensor:
            if density == 1:
                return update
            n = part.row
            rank = np.arange(n) / (n - 1) if n > 1 else np.full(1, 0.5)
            chances = density - epsilon + 2 * epsilon * rank
            order = ascending(magnitudes(update.clone()).reshape(-1, n))
            drawn = draws(part, index).cpu().numpy().reshape(-1, n)
            # The draws are independent of everything: give each rank its own.
            sorted_mask = drawn < np.array([bound(chance) for chance in chances], np.int64)
            mask = np.empty_like(sorted_mask)
            np.put_along_axis(mask, order, sorted_mask, axis=1)
            keep_where_(update, mask)
            if self.rescale == "expectation":
                divisors = np.empty(mask.shape, chances.dtype)
                np.put_along_axis(divisors, order, np.broadcast_to(chances, mask.shape), axis=1)
                update.view(-1, n).div_(update.new_tensor(divisors))
            return update

        return drop


@dataclass(frozen=True, kw_only=True)
class Della(DellaLinear):
    """Drop by the rank of magnitudes, then elect signs as TIES does; Deep et al., arXiv 2406.11617.

    Entries that sum to exactly zero count as positive.

    Args:
        rescale: `expectation` divides each entry by its chance, so that the mean over draws is the
            update; `l1` restores each tensor's sum of magnitudes, as mergekit does; False leaves
            what is kept as it is.
        normalize: Whether entries that agree are averaged or added up.
    """

    elects: ClassVar[bool] = True

    normalize: bool = True
