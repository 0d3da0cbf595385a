"""Fisher merging: averages in which each model's weights count as much as its data needs them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from spanwise.merging._methods._method import Method
from spanwise.merging._methods._quadratic import (
    Differences,
    average,
    check_weights,
    complete,
    task_weights,
)
from spanwise.merging._stats import DIAG_FISHER
from spanwise.merging._work import Work


@dataclass(frozen=True, kw_only=True)
class Fisher(Method):
    """`sum w_t F_t theta_t / sum w_t F_t` entry by entry; Matena and Raffel, arXiv 2111.09832.

    F_t is the mean squared gradient of an example's loss (`collect_stats`, kind `diag_fisher`).
    Tensors without it are averaged.

    Args:
        floor: Least value of F_t. Where all models are below it, their average remains.
    """

    needs_base: ClassVar[bool] = False
    per_model: ClassVar[Mapping[str, float]] = {"weight": 1.0}
    reference: ClassVar[str] = "https://arxiv.org/abs/2111.09832"

    floor: float = 1e-8

    def __post_init__(self) -> None:
        if not self.floor > 0:
            raise ValueError(f"floor must be positive, got {self.floor}.")

    @override
    def kinds(self) -> tuple[str, ...]:
        return (DIAG_FISHER,)

    @override
    def check(self, values: Mapping[str, list[float]]) -> None:
        check_weights(values)

    @override
    def merge_tensor(self, work: Work) -> Tensor:
        weights, stats = task_weights(work), complete(work, self.kinds())
        if stats is None:
            return average(work, weights)
        differences = Differences(work)
        total = torch.zeros_like(differences.anchor)
        sums = torch.zeros_like(total)
        for difference, weight, held in zip(differences, weights, stats, strict=True):
            fisher = held[DIAG_FISHER].to(work.device, work.dtype)
            fisher.clamp_(min=self.floor).mul_(weight)
            total.addcmul_(difference, fisher)
            sums.add_(fisher)
        return differences.finished(total.div_(sums))
