"""Low-rank factors of kernel matrices that are never formed as a whole."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class PivotedCholesky(NamedTuple):
    """What `pivoted_cholesky` found: `K ~ factor factor^T`, exact in the rows of the pivots."""

    factor: Float[Tensor, "n r"]
    pivots: Int[Tensor, " r"]
    """Rows of K in the order they were chosen."""
    residual: float
    """Trace of what is left, as a share of K's trace."""


def pivoted_cholesky(
    diagonal: Float[Tensor, " n"],
    column: Callable[[int], Float[Tensor, " n"]],
    rank: int,
    rtol: float = 1e-12,
) -> PivotedCholesky:
    """Factor a positive semi-definite matrix from its diagonal and a few of its columns.

    Every step takes the column with the largest remaining diagonal entry: work and memory are
    those of `rank` columns, O(n rank^2) and O(n rank).

    Args:
        diagonal: Of K.
        column: Index -> that column of K.
        rank: Columns at most.
        rtol: Stop once the largest remaining entry is below this share of the first.

    Raises:
        ValueError: If `rank` is below 1, or the diagonal is not finite or clearly negative.

    Sources:
        Harbrecht, Peters and Schneider, "On the low-rank approximation by the pivoted Cholesky
        decomposition", 2012.
    """
    n = len(diagonal)
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}.")
    left = diagonal.clone()
    largest, smallest = (float(left.max()), float(left.min())) if n else (0.0, 0.0)
    if not bool(torch.isfinite(left).all()) or smallest < -1e-8 * abs(largest):
        raise ValueError("the diagonal must be finite and not negative: this is no Gram matrix.")
    trace = float(left.sum())
    factor = left.new_empty(n, min(rank, n))
    pivots: list[int] = []
    for step in range(min(rank, n)):
        pivot = int(left.argmax())
        value = float(left[pivot])
        if not value > rtol * largest:
            break
        fresh = column(pivot) - factor[:, :step] @ factor[pivot, :step]
        factor[:, step] = fresh / value**0.5
        left.addcmul_(factor[:, step], factor[:, step], value=-1).clamp_(min=0)
        left[pivot] = 0.0
        pivots.append(pivot)
    used = torch.tensor(pivots, dtype=torch.long, device=diagonal.device)
    share = float(left.sum()) / trace if trace > 0 else 0.0
    return PivotedCholesky(factor[:, : len(pivots)], used, share)
