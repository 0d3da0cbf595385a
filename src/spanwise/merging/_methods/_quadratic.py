"""What methods share that minimise `sum_t ||theta - theta_t||^2` in norms of each model's own."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from spanwise.merging._methods.averages import divisor
from spanwise.merging._stats import TensorStats
from spanwise.merging._work import Work


class Differences:
    """Every model's difference from one anchor, which keeps digits that the weights would lose.

    Args:
        work: The tensor.
        anchor: What to take differences from; by default the base, or the first model where there
            is none.
    """

    def __init__(self, work: Work, anchor: Tensor | None = None) -> None:
        self.work = work
        self.base = None if work.inputs.base is None else work.base()
        self._own = anchor
        if anchor is None:
            anchor = work.weight(0) if self.base is None else self.base
        self.anchor: Tensor = anchor

    def __iter__(self) -> Iterator[Tensor]:
        """Tensors of their own, one after the other."""
        for index in range(self.work.count):
            if self.anchor is self.base:
                yield self.work.update(index, self.base)
            elif index == 0 and self._own is None:
                yield torch.zeros_like(self.anchor)
            else:
                yield self.work.weight(index) - self.anchor

    def finished(self, difference: Tensor) -> Tensor:
        """What a method gives back: an update of the base, or weights without one."""
        if self.anchor is self.base:
            return difference
        weights = difference.add_(self.anchor)
        return weights if self.base is None else weights.sub_(self.base)


def task_weights(work: Work) -> list[float]:
    """Weights of the models' terms, which sum to their number."""
    weights = [float(weight) for weight in work.values("weight")]
    total = divisor(weights, work.name)
    return [weight * work.count / total for weight in weights]


def average(work: Work, weights: Sequence[float]) -> Tensor:
    """The weighted mean: what becomes of a tensor that there are no statistics of."""
    differences = Differences(work)
    total = torch.zeros_like(differences.anchor)
    for difference, weight in zip(differences, weights, strict=True):
        total.add_(difference, alpha=weight / work.count)
    return differences.finished(total)


def complete(work: Work, kinds: Sequence[str]) -> list[TensorStats] | None:
    """This tensor's statistics if every model has all these kinds."""
    found = [held for held in work.stats if held is not None and set(kinds) <= set(held)]
    return found if len(found) == work.count else None


def shrunk(work: Work, held: TensorStats, kind: str, lam: float) -> Tensor:
    """A mean of outer products whose entries off the diagonal are multiplied by `lam`."""
    matrix = held[kind].to(work.device, work.dtype)
    if lam != 1:
        diagonal = matrix.diagonal().clone()
        matrix.mul_(lam).diagonal().copy_(diagonal)
    return matrix


def check_share(key: str, value: float) -> None:
    """Raise `ValueError` unless a value lies in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{key} must be between 0 and 1, got {value}.")


def check_weights(values: Mapping[str, list[float]]) -> None:
    """Raise `ValueError` if a model's weight is negative: its term would have no minimum."""
    for weight in values.get("weight", []):
        if weight < 0:
            raise ValueError(f"weight must not be negative, got {weight}.")
