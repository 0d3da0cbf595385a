"""Which magnitudes are largest: exact, also where a model is too large to be held or sorted.

Magnitudes are compared as integers: the bits of a float without its sign are ordered as its value.
NumPy selects among them several times faster than torch on a CPU.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spanwise.merging._work import BLOCK, Work

Array = NDArray[Any]

_BITS = 20
"""A pass over the data divides what it looks at into at most 2**20 bins."""
_SAMPLE = 1024
"""One row in so many is looked at to guess where a cut lies."""
_FEWEST = 1000
"""A guess from fewer values is not worth a pass."""
_HELD = 2**20
"""Elements of a tensor that is held whole: one pass instead of two."""


@dataclass(frozen=True)
class Cut:
    """The magnitude that divides the `count` largest from the others."""

    value: float
    count: int
    above: int
    """How many are larger; `count - above` of those equal to it are among the largest."""


class Top:
    """Keeps the largest magnitudes of a tensor whose parts come one after the other.

    Args:
        cut: Where they begin; None keeps everything.
        exact: Whether exactly `cut.count` are kept: of those equal to the cut's value the first
            ones; otherwise all of these.
    """

    def __init__(self, cut: Cut | None, *, exact: bool = False) -> None:
        self.cut = cut
        self.spare = cut.count - cut.above if cut is not None and exact else None

    def __call__(self, part: Work, update: Tensor) -> Tensor:
        """`update` in place, with zeros where it is not kept."""
        del part
        if self.cut is None:
            return update
        equal: Array | None = None
        if self.spare is not None:
            equal = np.flatnonzero(magnitudes(update.abs()) == _pattern(self.cut.value, update))
        if self.cut.value > 0:  # everything is >= 0
            # One vectorised pass that keeps |x| > below, which is |x| >= value.
            update = torch.hardshrink(update, _below(self.cut.value, update.dtype), out=update)
        if equal is not None and self.spare is not None:
            dropped = torch.from_numpy(equal[self.spare :]).to(update.device)
            update.view(-1)[dropped] = 0
            self.spare -= min(self.spare, len(equal))
        return update


def cuts(works: Sequence[Work], wanted: Sequence[tuple[int, int]]) -> list[Cut]:
    """Cuts through the updates of all `works` together.

    A sample guesses an interval that holds each cut; one pass over everything counts what is below
    the interval and fills a histogram of its inside. An interval that turns out wrong, or bins
    wider than one value, cost another pass. No more than a part of a tensor is held at once.

    Args:
        works: Whole tensors, in any order.
        wanted: (Index of a model, count) with `1 <= count <= elements`, one for each cut.

    Returns:
        One cut each, in the order of `wanted`.
    """
    if not wanted:
        return []
    total = sum(math.prod(work.shape) for work in works)
    indices = sorted({index for index, _ in wanted})
    searches = [_Search(index, count, total) for index, count in wanted]
    if len(works) == 1 and total <= _HELD:
        for index, update in zip(indices, works[0].stream(models=indices), strict=True):
            found = magnitudes(update)
            for search in searches:
                if search.index == index:
                    search.select(found)
    elif total > BLOCK:
        for index, sample in zip(indices, _samples(works, indices), strict=True):
            for search in searches:
                if search.index == index:
                    search.guess(sample)
    parts = [part for work in works for part in work.parts()]
    while unsettled := [search for search in searches if search.cut is None]:
        indices = sorted({search.index for search in unsettled})
        for part in parts:
            for index, update in zip(indices, part.stream(models=indices), strict=True):
                found = magnitudes(update)
                for search in unsettled:
                    if search.index == index:
                        search.see(found)
        for search in unsettled:
            search.settle()
    return [search.cut for search in searches if search.cut is not None]


def magnitudes(update: Tensor) -> Array:
    """The bits of `|update|`, flat, as unsigned integers; `update` is overwritten."""
    held = update.abs_().contiguous().cpu().reshape(-1).numpy()
    return held.view(np.uint32 if held.itemsize == 4 else np.uint64)


def largest(rows: Array, count: int) -> Array:
    """Which `count` of each row's values are largest; of equal ones the first, `(rows, n)` bool."""
    n = rows.shape[1]
    if count <= 0 or count >= n:
        return np.full(rows.shape, count >= n)
    cut = np.partition(rows, n - count, axis=1)[:, n - count, None]
    above, equal = rows > cut, rows == cut
    spare = count - np.count_nonzero(above, axis=1)
    crowded = np.flatnonzero(np.count_nonzero(equal, axis=1) > spare)
    if len(crowded):
        mine = equal[crowded]
        equal[crowded] = mine & (mine.cumsum(axis=1) <= spare[crowded, None])
    return above | equal


def ascending(rows: Array) -> Array:
    """The order of each row's bits, smallest first and equal ones as they stand, `(rows, n)`."""
    if rows.itemsize > 4:
        return np.argsort(rows, axis=1, kind="stable")
    # Sorting value and place as one integer is six times faster than a stable argsort.
    keys = rows.astype(np.int64)
    keys <<= 32
    keys |= np.arange(rows.shape[1])
    keys.sort(axis=1)
    keys &= 2**32 - 1
    return keys


class _Search:
    """Finds one cut; between passes it knows an interval `[low, high)` of bits that holds it."""

    def __init__(self, index: int, count: int, total: int) -> None:
        self.index, self.count, self.total = index, count, total
        self.rank = total - count
        """How many are at most as large, and come before it when sorted."""
        self.cut: Cut | None = None
        self.kind: Any = None
        self.low, self.high = 0, 0

    def select(self, found: Array) -> None:
        """Settle it at once, where everything is in memory; `found` is put in another order."""
        self.kind = found.dtype.type
        found.partition(self.rank)
        pattern = found[self.rank]
        self._settle(int(pattern), int(np.count_nonzero(found[self.rank :] > pattern)))

    def guess(self, sample: Array) -> None:
        """Narrow the interval down to where the cut should be; `sample` is sorted."""
        size, share = len(sample), self.rank / self.total
        if size < _FEWEST:
            return
        # Six standard deviations of a random sample, and something for a sample by rows.
        slack = 6 * math.sqrt(size * share * (1 - share)) + 0.002 * size
        first, last = int(share * size - slack), int(share * size + slack)
        if first > 0:
            self.low = int(sample[first])
        if last < size:
            self.high = int(sample[last]) + 1

    def see(self, found: Array) -> None:
        """Count one part."""
        if self.kind is None or not hasattr(self, "counts"):
            self._begin(found)
        self.below += int(np.count_nonzero(found < self.low))
        inside = found - self.kind(self.low)  # what is below wraps round to the largest
        inside = inside[inside < self.kind(self.high - self.low)]
        np.add.at(self.counts, (inside >> self.kind(self.shift)).astype(np.intp), 1)

    def settle(self) -> None:
        """Draw the conclusion of a pass: the cut, or a narrower interval."""
        place = self.rank - self.below
        upto = self.counts.cumsum()
        if not 0 <= place < upto[-1]:
            self.low, self.high = 0, 0  # the guess was wrong: look everywhere
        else:
            found = int(np.searchsorted(upto, place, side="right"))
            self.low += found << self.shift
            self.high = min(self.low + (1 << self.shift), self.high)
            if self.shift == 0:
                self._settle(self.low, self.total - self.below - int(upto[found]))
        del self.counts

    def _begin(self, found: Array) -> None:
        self.kind = found.dtype.type
        self.high = self.high or 1 << (8 * found.itemsize - 1)
        width = self.high - self.low
        self.shift = max(0, (width - 1).bit_length() - _BITS)
        self.counts = np.zeros(((width - 1) >> self.shift) + 1, np.int64)
        self.below = 0

    def _settle(self, pattern: int, above: int) -> None:
        held = np.array([pattern], self.kind)
        value = float(held.view(np.float32 if held.itemsize == 4 else np.float64)[0])
        self.cut = Cut(value, self.count, above)


@functools.cache
def _below(value: float, dtype: torch.dtype) -> float:
    edge = torch.tensor(value, dtype=dtype)
    return float(torch.nextafter(edge, torch.zeros_like(edge)))


def _pattern(value: float, like: Tensor) -> Any:
    return magnitudes(torch.tensor([value], dtype=like.dtype))[0]


def _samples(works: Sequence[Work], indices: Sequence[int]) -> list[Array]:
    """Some rows' magnitudes for each model, sorted."""
    seen: list[list[Array]] = [[] for _ in indices]
    for work in works:
        if work.keep is not None or math.prod(work.shape) < _SAMPLE:
            continue
        rows = work.shape[0]
        many = max(1, rows // _SAMPLE)
        places = min(4, many)
        step = many // places
        for place in range(places):
            start = min(int((place + 0.5) / places * rows), rows - step)
            some = work.at(slice(start, start + step))
            base = some.base()
            for held, index in zip(seen, indices, strict=True):
                held.append(magnitudes(some.update(index, base)))
    return [np.sort(np.concatenate(held)) if held else np.empty(0, np.uint32) for held in seen]
