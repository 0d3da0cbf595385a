"""Sums: the weighted average of models, and of their updates (task arithmetic)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import override

from spanwise.merging._methods._method import Method
from spanwise.merging._work import Work

SMALLEST = 1e-8
"""A sum of weights below this cannot be divided by."""


@dataclass(frozen=True, kw_only=True)
class Linear(Method):
    """The weighted average of the models, `sum w_t theta_t / sum w_t`.

    Args:
        normalize: Whether to divide by the sum of the weights.
    """

    gives: ClassVar[Literal["update", "weights"]] = "weights"
    needs_base: ClassVar[bool] = False
    per_row: ClassVar[bool] = True
    per_model: ClassVar[Mapping[str, float]] = {"weight": 1.0}

    normalize: bool = True

    @override
    def merge_tensor(self, work: Work) -> Tensor:
        weights = work.values("weight")
        total = sum(weights)
        if self.normalize:
            total = divisor(weights, work.name)
            weights, total = [weight / total for weight in weights], 1.0
        # Differences from one model: equal models then average to themselves, bit for bit.
        heaviest = max(range(work.count), key=lambda index: abs(weights[index]))
        anchor = work.weight(heaviest)
        found = anchor * total
        for index, weight in enumerate(weights):
            if index != heaviest and weight:
                found.add_(work.weight(index).sub(anchor), alpha=weight)
        return found


@dataclass(frozen=True, kw_only=True)
class TaskArithmetic(Method):
    """The weighted sum of the updates, `sum w_t D_t`; Ilharco et al., arXiv 2212.04089.

    Args:
        normalize: Whether to divide by the sum of the weights, which makes it an average.
    """

    per_row: ClassVar[bool] = True
    per_model: ClassVar[Mapping[str, float]] = {"weight": 1.0}
    reference: ClassVar[str] = "https://arxiv.org/abs/2212.04089"

    normalize: bool = False

    @override
    def merge_tensor(self, work: Work) -> Tensor:
        weights = work.values("weight")
        total = weighted_sum(work, weights)
        return total.div_(divisor(weights, work.name)) if self.normalize else total


def weighted_sum(work: Work, weights: list[float]) -> Tensor:
    """`sum w_t D_t`, with one update in memory at a time."""
    total: Tensor | None = None
    for update, weight in zip(work.updates(), weights, strict=True):
        # A product first: it spares a pass over zeros.
        total = update.mul_(weight) if total is None else total.add_(update, alpha=weight)
    assert total is not None
    return total


def mean(work: Work) -> Tensor:
    """The plain average of the updates: what methods for matrices do with everything else."""
    return weighted_sum(work, [1 / work.count] * work.count)


def stacked(work: Work) -> Tensor:
    """All updates at once, `(T, *shape)`."""
    return torch.stack(list(work.updates()))


def divisor(weights: list[float], name: str) -> float:
    """The sum of the weights.

    Raises:
        ValueError: If it is too near zero to divide by.
    """
    total = sum(weights)
    if abs(total) < SMALLEST:
        raise ValueError(
            f"the weights of {name!r} sum to {total:g}, which an average cannot divide by: change "
            "them, or turn normalize off."
        )
    return total
