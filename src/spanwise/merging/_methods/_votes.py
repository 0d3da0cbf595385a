"""Electing the sign of every entry among several updates, as TIES does."""

import torch
from torch import Tensor

from spanwise.merging._work import Work


class Votes:
    """Updates elect a sign for every entry; those of that sign are averaged, or added up.

    With `x_t = w_t D_t`, the sign is that of `S = sum x_t`. One pass over the updates is enough,
    since what has the elected sign s sums to `(S + s sum |x_t|) / 2`, and likewise its weights.

    Args:
        work: What is merged; the result has its shape.
        average: Whether the sum is divided by the weights of those that agree.
    """

    def __init__(self, work: Work, *, average: bool) -> None:
        shape = _shape(work)
        count = 4 if average else 2
        held = [torch.zeros(shape, dtype=work.dtype, device=work.device) for _ in range(count)]
        self._sum, self._size = held[:2]
        self._weights = held[2:]
        self._negative = False

    def add(self, update: Tensor, weight: float) -> None:
        """Count one model's update, which is overwritten."""
        self._negative |= weight < 0
        self._sum.add_(update, alpha=weight)
        if self._weights:
            signed, total = self._weights
            sign = update.sign()
            signed.add_(sign, alpha=abs(weight))
            total.add_(sign.abs_(), alpha=weight)
        self._size.add_(update.abs_(), alpha=abs(weight))

    def result(self, undecided: float) -> Tensor:
        """What the elected sides say.

        Args:
            undecided: The sign, 1 or -1, of entries whose sum is exactly zero.
        """
        sign = self._sum.sign().mul_(2).add_(undecided).sign_()
        found = self._sum.addcmul_(sign, self._size).div_(2)
        if self._weights:
            signed, total = self._weights
            share = total.addcmul_(sign, signed).div_(2)
            if self._negative:  # they may cancel: as with no voter, there is nothing to divide by
                share = share.masked_fill_(share == 0, 1)
            # Where nobody votes the sum is zero, and so stays.
            found.div_(share if self._negative else share.clamp_min_(torch.finfo(share.dtype).tiny))
        return found


def _shape(work: Work) -> tuple[int, ...]:
    if work.rows is None:
        return work.shape
    return (work.rows.stop - work.rows.start, *work.shape[1:])
