"""Sums: the weighted average of models, and of their updates (task arithmetic)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

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
        # Of differences, so that equal models average to themselves, bit for bit.
        if work.inputs.base is not None:
            update = weighted_sum(work, weights)
            return update if total == 1 else update.add_(work.base(), alpha=total - 1)
        heaviest = max(range(work.count), key=lambda index: abs(weights[index]))
        others = [i for i, weight in enumerate(weights) if i != heaviest and weight]
        anchor = work.weight(heaviest)
        if not others:
            return anchor * total
        sums = mixed(zip(work.stream(anchor, others), [weights[i] for i in others], strict=True))
        return work.finite(sums.add_(anchor, alpha=total))


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


def weighted_sum(work: Work, weights: Sequence[float], out: Tensor | None = None) -> Tensor:
    """`sum w_t D_t`, with a few rows of one update in memory at a time.

    Args:
        work: The tensor, or some of its rows.
        weights: One for each model.
        out: Where to; a new tensor by default.
    """
    parts = work.parts()
    if len(parts) == 1:
        return work.finite(mixed(zip(work.stream(), weights, strict=True), out))
    if out is None:
        out = torch.empty(work.shape, dtype=work.dtype, device=work.device)
    for part in parts:
        weighted_sum(part, weights, out[part.rows])
    return out


def mixed(terms: Iterable[tuple[Tensor, float]], out: Tensor | None = None) -> Tensor:
    """`sum w_t x_t`, of at least one pair (x_t, w_t)."""
    total: Tensor | None = None
    for x, weight in terms:
        # A product first: it spares a pass over zeros.
        total = torch.mul(x, weight, out=out) if total is None else total.add_(x, alpha=weight)
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
