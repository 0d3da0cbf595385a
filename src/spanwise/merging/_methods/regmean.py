"""RegMean: the linear maps whose outputs come closest to every model's on its own inputs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from spanwise.layouts import matrix_view
from spanwise.linalg.psd import psd_solve
from spanwise.merging._methods._method import Method
from spanwise.merging._methods._quadratic import (
    Differences,
    average,
    check_share,
    check_weights,
    complete,
    shrunk,
    task_weights,
)
from spanwise.merging._stats import GRAM
from spanwise.merging._work import Work


@dataclass(frozen=True, kw_only=True)
class RegMean(Method):
    """`(sum w_t C_t)^-1 sum w_t C_t W_t^T`; Jin, Ren, Preotiuc-Pietro and Cheng, arXiv 2212.09849.

    C_t is the mean of x x^T over the inputs of a linear map (`collect_stats`, kind `gram`).
    Tensors without it are averaged. Inputs that no model's data has leave the system singular:
    what it does not determine is the average, never an inverse's noise.

    Args:
        lam: Off-diagonal entries of every C_t are multiplied by it: 1 takes them as they are, 0
            weighs columns by the energy of their inputs. The paper's alpha.
    """

    needs_base: ClassVar[bool] = False
    per_model: ClassVar[Mapping[str, float]] = {"weight": 1.0}
    reference: ClassVar[str] = "https://arxiv.org/abs/2212.09849"

    lam: float = 0.9

    def __post_init__(self) -> None:
        check_share("lam", self.lam)

    @override
    def kinds(self) -> tuple[str, ...]:
        return (GRAM,)

    @override
    def check(self, values: Mapping[str, list[float]]) -> None:
        check_weights(values)

    @override
    def copies(self, work: Work) -> float:
        n = work.shape[-1] if work.shape else 1
        m = work.shape[0] if work.shape else 1
        return 6.0 + 4 * max(n / m, m / n)

    @override
    def merge_tensor(self, work: Work) -> Tensor:
        weights, stats = task_weights(work), complete(work, self.kinds())
        if stats is None:
            return average(work, weights)
        layout = stats[0].layout
        differences = Differences(work)
        mean = torch.zeros_like(differences.anchor)
        gram = right = None
        for difference, weight, held in zip(differences, weights, stats, strict=True):
            own = shrunk(work, held, GRAM, self.lam).mul_(weight)
            x = matrix_view(difference, layout).mT  # (n inputs, m outputs)
            right = own @ x if right is None else right.addmm_(own, x)
            gram = own if gram is None else gram.add_(own)
            mean.add_(difference, alpha=weight / work.count)
        assert gram is not None
        assert right is not None
        view = matrix_view(mean, layout).mT
        found = psd_solve(gram, right, view)
        work.note(rank=found.rank)
        view.copy_(found.x)
        return differences.finished(mean)
