"""What methods share that thin out every update before they mix them."""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import override

from spanwise.merging._methods._method import Method
from spanwise.merging._methods._votes import Votes
from spanwise.merging._methods.averages import divisor, mixed
from spanwise.merging._work import BLOCK, Work

Thin = Callable[[Work, Tensor], Tensor]
"""Makes an update sparse, in place or not; it gets the parts of a tensor in their order."""

Rescale = Literal["expectation", "l1", False]
"""What makes up for dropped entries: `expectation` divides by the chance to be kept, so that the
mean over draws is the update; `l1` restores the sum of magnitudes of each tensor, as mergekit's
`rescale` does; False nothing."""


@dataclass(frozen=True, kw_only=True)
class Sparse(Method):
    """Thin out every update, then add them up or let them elect a sign.

    Args:
        normalize: Whether to divide by the sum of the weights; with an election, by the weights of
            the models that agree.
    """

    elects: ClassVar[bool] = False
    """Whether entries elect a sign."""

    normalize: bool = False

    @abstractmethod
    def thinners(self, work: Work) -> Sequence[Thin]:
        """How each model's update of this tensor is thinned out; may look at all of it."""

    @override
    def merge_tensor(self, work: Work) -> Tensor:
        if not math.prod(work.shape):
            return work.update(0)
        return self.mix(work, self.thinners(work))

    def mix(self, work: Work, thinners: Sequence[Thin], undecided: float = 1.0) -> Tensor:
        """The merged update of a tensor, a few rows at a time.

        Args:
            work: The tensor.
            thinners: One for each model.
            undecided: The sign of entries whose sum is zero, in an election.
        """
        parts = work.parts()
        if len(parts) == 1:
            return self._mix(work, thinners, undecided)
        found = torch.empty(work.shape, dtype=work.dtype, device=work.device)
        for part in parts:
            found[part.rows] = self._mix(part, thinners, undecided)
        return found

    def _mix(self, part: Work, thinners: Sequence[Thin], undecided: float) -> Tensor:
        weights = part.values("weight")
        by = divisor(weights, part.name) if self.normalize else 1.0
        kept = (
            (thin(part, update), weight)
            for update, thin, weight in zip(part.stream(), thinners, weights, strict=True)
        )
        if not self.elects:
            return part.finite(mixed((update, weight / by) for update, weight in kept))
        votes = Votes(part, average=self.normalize)
        for update, weight in kept:
            votes.add(update, weight)
        return part.finite(votes.result(undecided))

    @override
    def copies(self, work: Work) -> float:
        count = math.prod(work.shape)
        # Within a part: an update and its base as stored, what thins it out, four sums.
        return 9.0 if count <= BLOCK else 1.0 + 9.0 * BLOCK / count

    @override
    def check(self, values: Mapping[str, list[float]]) -> None:
        for density in values["density"]:
            if not 0 < density <= 1:
                raise ValueError(
                    f"density must be in (0, 1], the share of entries that are kept, got "
                    f"{density:g}."
                )


def rescaled(work: Work, thinners: Sequence[Thin]) -> list[Thin]:
    """The same, each times what keeps the sum of magnitudes over the tensor."""
    before, after = [0.0] * work.count, [0.0] * work.count
    for part in work.parts():
        for index, (update, thin) in enumerate(zip(part.stream(), thinners, strict=True)):
            before[index] += float(update.abs().sum())
            after[index] += float(thin(part, update).abs_().sum())
    return [
        _scaled(thin, b / a if a > 0 else 1.0)
        for thin, b, a in zip(thinners, before, after, strict=True)
    ]


def _scaled(thin: Thin, factor: float) -> Thin:
    return lambda part, update: thin(part, update).mul_(factor)


def check_choice(key: str, value: object, known: Sequence[object]) -> None:
    """Raise `ValueError` if a parameter is none of the known ones."""
    if not any(type(value) is type(k) and value == k for k in known):  # 0 is not False
        names = ", ".join(repr(k) for k in known)
        raise ValueError(f"{key} must be one of {names}, got {value!r}.")
