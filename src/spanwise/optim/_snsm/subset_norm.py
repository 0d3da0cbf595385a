"""Subset norms: one second moment for each subset of a matrix's entries.

The subsets partition a stored matrix, `(*stack, rows, cols)`, each matrix of a stack by itself.
What is kept is one number per subset, `(*stack, count)`; nothing here makes a temporary of the
matrix's size.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

# Rows folded onto one another before the last sum; a block of this height stays in the cache.
_FOLD = 128


@dataclass(frozen=True)
class Subsets:
    """How the entries of a rows x cols matrix fall into subsets."""

    kind: Literal["rows", "columns", "chunks"]
    """`chunks`: consecutive entries of the row-major flattened matrix."""
    rows: int
    cols: int
    size: int
    """Entries of a subset; the last chunk may be shorter."""

    @property
    def count(self) -> int:
        """Subsets of one matrix."""
        return -(-self.rows * self.cols // self.size)

    @property
    def last(self) -> int:
        """Entries of the last subset."""
        return self.rows * self.cols - (self.count - 1) * self.size

    def sums_of_squares(
        self, g: Float[Tensor, "*stack rows cols"], dtype: torch.dtype
    ) -> Float[Tensor, "*stack count"]:
        """The sum of squared entries of each subset, summed in `dtype`."""
        if self.kind == "rows":
            return torch.linalg.vector_norm(g, dim=-1, dtype=dtype).square_()
        if self.kind == "columns":
            return _column_sums(g, dtype)
        flat = g.flatten(-2)
        if self.size == 1:
            return flat.to(dtype).square()
        full = flat.shape[-1] // self.size * self.size
        even = flat[..., :full].unflatten(-1, (-1, self.size))
        norms = torch.linalg.vector_norm(even, dim=-1, dtype=dtype)
        if full < flat.shape[-1]:
            rest = torch.linalg.vector_norm(flat[..., full:], dim=-1, keepdim=True, dtype=dtype)
            norms = torch.cat([norms, rest], dim=-1)
        return norms.square_()

    def means_of_squares(
        self, g: Float[Tensor, "*stack rows cols"], dtype: torch.dtype
    ) -> Float[Tensor, "*stack count"]:
        """The mean of squared entries of each subset; a short last chunk by its own length."""
        sums = self.sums_of_squares(g, dtype).div_(self.size)
        if self.last < self.size:
            sums[..., -1].mul_(self.size / self.last)
        return sums

    def add_quotient_(
        self,
        w: Float[Tensor, "*stack rows cols"],
        x: Float[Tensor, "*stack rows cols"],
        denominator: Float[Tensor, "*stack count"],
        alpha: float,
    ) -> None:
        """`w += alpha * x / denominator`, each entry divided by its subset's number.

        All three in one dtype.
        """
        if self.kind == "rows":
            w.addcdiv_(x, denominator.unsqueeze(-1), value=alpha)
        elif self.kind == "columns":
            w.addcdiv_(x, denominator.unsqueeze(-2), value=alpha)
        elif not w.is_contiguous():
            w.add_(self._chunk_quotient(torch.zeros_like(x).contiguous(), x, denominator, 1.0),
                   alpha=alpha)  # fmt: skip
        else:
            self._chunk_quotient(w, x, denominator, alpha)

    def _chunk_quotient(self, w: Tensor, x: Tensor, denominator: Tensor, alpha: float) -> Tensor:
        flat, values = w.flatten(-2), x.flatten(-2)  # views of w, which is contiguous
        full = flat.shape[-1] // self.size * self.size
        whole = full // self.size
        even = flat[..., :full].unflatten(-1, (-1, self.size))
        even.addcdiv_(
            values[..., :full].unflatten(-1, (-1, self.size)),
            denominator[..., :whole].unsqueeze(-1),
            value=alpha,
        )
        if full < flat.shape[-1]:
            flat[..., full:].addcdiv_(values[..., full:], denominator[..., whole:], value=alpha)
        return w


def subsets_of(
    rows: int, cols: int, subset_size: int | str, *, ragged: bool = False, name: str | None = None
) -> Subsets:
    """The partition that an option stands for.

    Args:
        rows: Rows m of the stored matrix.
        cols: Its columns n.
        subset_size: `"heuristics"`: one subset per row if m >= n, else one per column, so that
            the longer dimension is kept. An int k > 0: chunks of the largest divisor of m n that
            is at most k. An int -k < 0: the same with floor(sqrt(m n) / k), at least 1.
        ragged: Chunks of exactly the size asked for, the last one shorter, instead of a divisor.
        name: The parameter, for messages; only with it is there a warning.

    Raises:
        ValueError: If `subset_size` is 0, unknown, or above m n, or the matrix has no entries.
        TypeError: If it is neither an int nor a string.
    """
    numel = rows * cols
    if not numel:
        raise ValueError(
            f"{name or 'a matrix'} ({rows} x {cols}) has no entries and so no subsets. Move it to "
            "a group without rank and subset_size."
        )
    if isinstance(subset_size, str):
        if subset_size != "heuristics":
            raise ValueError(
                f'subset_size must be an int other than 0 or "heuristics", got {subset_size!r}.'
            )
        if rows >= cols:
            return Subsets("rows", rows, cols, cols)
        return Subsets("columns", rows, cols, rows)
    if isinstance(subset_size, bool) or not isinstance(subset_size, int):
        raise TypeError(f'subset_size must be an int or "heuristics", got {subset_size!r}.')
    if subset_size == 0:
        raise ValueError(
            "subset_size must not be 0: give entries per subset, -k for sqrt(numel) / k entries, "
            'or "heuristics".'
        )
    if subset_size > numel:
        raise ValueError(
            f"subset_size = {subset_size} exceeds the {numel} entries of {name or 'a matrix'} "
            f"({rows} x {cols}). Lower it, or move the parameter to a group of its own."
        )
    asked = subset_size if subset_size > 0 else max(1, int(math.sqrt(numel) / -subset_size))
    size = asked if ragged else largest_divisor(numel, asked)
    if name is not None and size == 1 < asked:
        warnings.warn(
            f"{name} has {numel} entries, which no number from 2 to subset_size = {asked} divides: "
            "every entry keeps a second moment of its own. ragged=True takes chunks of that size "
            "with a shorter last one.",
            stacklevel=6,
        )
    return Subsets("chunks", rows, cols, size)


def largest_divisor(n: int, at_most: int) -> int:
    """The largest divisor of n that does not exceed `at_most`, both at least 1."""
    best = 1
    for low in range(1, math.isqrt(n) + 1):
        if n % low == 0:
            for divisor in (low, n // low):
                if best < divisor <= at_most:
                    best = divisor
    return best


def _column_sums(g: Tensor, dtype: torch.dtype) -> Tensor:
    # torch's reductions over the leading axis run at a tenth of the speed of one over the last.
    # Folding blocks of rows is a multiply-add at memory speed, and sums pairwise like a tree.
    if g.device.type != "cpu":
        return torch.linalg.vector_norm(g, dim=-2, dtype=dtype).square_()
    rows = g.shape[-2]
    height = min(_FOLD, max(rows, 1))  # a process may hold no rows
    folded = g[..., :height, :].to(dtype).square()
    for start in range(height, rows, height):
        block = g[..., start : start + height, :].to(dtype)
        folded[..., : block.shape[-2], :].addcmul_(block, block)
    return folded.sum(-2)
