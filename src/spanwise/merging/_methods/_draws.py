"""Random choices that belong to a model's tensor, whichever of its rows are asked for."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spanwise.merging._work import Work

STRETCH = 2**16
"""Elements that one seed serves: a part of a tensor draws no more than it needs."""


def draws(work: Work, index: int) -> Tensor:
    """Integers drawn evenly from the whole range of int32, one for each element of `work`.

    The tensor's generator draws a seed for each stretch of elements, so that any rows of it can be
    drawn alone.

    Args:
        work: A tensor or some rows.
        index: Whose.
    """
    total, row = math.prod(work.shape), math.prod(work.shape[1:])
    start, stop = (0, total) if work.rows is None else (
        work.rows.start * row, work.rows.stop * row
    )  # fmt: skip
    first, last = start // STRETCH, math.ceil(stop / STRETCH)
    generator = work.generator(index)
    seeds = torch.randint(2**62, (last,), generator=generator, device=work.device).tolist()
    found = []
    for stretch in range(first, last):
        size = min(STRETCH, total - stretch * STRETCH)
        # One number of 64 bits makes two of 32.
        wide = torch.empty((size + 1) // 2, dtype=torch.int64, device=work.device)
        wide.random_(-(2**63), None, generator=generator.manual_seed(seeds[stretch]))
        found.append(wide.view(torch.int32)[:size])
    flat = torch.cat(found)[start - first * STRETCH :][: stop - start]
    shape = work.shape if work.rows is None else (-1, *work.shape[1:])
    return flat.view(shape)


def bound(chance: float) -> int:
    """A draw is below it with the given probability, exact to 2**-32; for 0 < chance < 1."""
    return min(round(chance * 2**32), 2**32 - 1) - 2**31


def keep_where_(update: Tensor, mask: NDArray[np.bool_]) -> Tensor:
    """`update` in place, zero where `mask` is not set."""
    if update.device.type == "cpu":  # NumPy multiplies by truth values four times as fast
        held = update.numpy()
        with np.errstate(invalid="ignore"):  # infinity becomes NaN, which is found afterwards
            np.multiply(held, mask.reshape(held.shape), out=held)
        return update
    return update.mul_(torch.from_numpy(mask).to(update.device).view(update.shape))
