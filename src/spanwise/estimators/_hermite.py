"""Moments of data without Gaussian noise of known variance, of any order: Hermite polynomials.

Of y = x + sqrt(s) z with z normal, the mean of the Hermite tensor h_m(y) is the mean of x^m: h_m is
y^m less all ways to put -s times the identity in the place of pairs of its factors.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spanwise.linalg.symmetric import SymmetricSpace


@dataclass(frozen=True)
class _Step:
    """From Hermite tensors of the two orders below to those of one order, by entries."""

    first: Int[Tensor, " C"]
    """The first index of each entry."""
    rest: Int[Tensor, " C"]
    """Where, one order below, the entry of its other indices lies."""
    paired: Int[Tensor, " p"]
    """Entries whose first index occurs again."""
    below: Int[Tensor, " p"]
    """Of those, where the entry without the pair lies, two orders below."""
    count: Float[Tensor, " p"]
    """Of those, how often it occurs again."""


class Hermite:
    """Hermite tensors of order 0 to n at samples, by their distinct entries.

    Args:
        space: Symmetric tensors of order n.
        variance: s, of the noise in each coordinate.
    """

    def __init__(self, space: SymmetricSpace, variance: float) -> None:
        self.variance = variance
        orders = [space]
        while orders[0].order > 1:
            orders.insert(0, orders[0].lower)
        self._steps = [_step(space) for space in orders[1:]]

    def __call__(self, x: Float[Tensor, "d b"]) -> list[Float[Tensor, "c b"]]:
        """Of each column, one array an order. h_(k+1) = y h_k - s (sum of pairs) h_(k-1)."""
        held = [torch.ones_like(x[:1]), x]
        for step in self._steps:
            h = x.index_select(0, step.first) * held[-1].index_select(0, step.rest)
            pairs = held[-2].index_select(0, step.below) * step.count.unsqueeze(-1)
            held.append(h.index_add_(0, step.paired, pairs, alpha=-self.variance))
        return held


def _step(space: SymmetricSpace) -> _Step:
    index, lower = space.index, space.lower
    again = (index[:, 1:] == index[:, :1]).sum(1)
    paired = again.nonzero().squeeze(-1)
    # Indices are sorted, so that the first one's next occurrence is the second.
    left = index[paired, 2:]
    below = lower.lower.locate(left) if space.order > 2 else paired.new_zeros(len(paired))
    return _Step(
        first=index[:, 0].contiguous(),
        rest=lower.locate(index[:, 1:]),
        paired=paired,
        below=below,
        count=again[paired].to(space.dtype),
    )


def denoised(
    X: Float[Tensor, "n d"],
    rows: SymmetricSpace,
    columns: SymmetricSpace,
    variance: float,
    block: int,
) -> Float[Tensor, "C c"]:
    """The flattening of the mean of h_m(x), in coordinates: of x^m where there is no noise.

    Pairs inside the rows' indices and inside the columns' are in h_n and h_n'; those of a row's
    and a column's index are k = 0, 1, ... identities between the two:
    sum_k (-s)^k k! binom(n, k) binom(n', k) sym(mean(h_(n-k) h_(n'-k)^T) I^k).

    Args:
        X: Samples in rows.
        rows: Symmetric tensors of order n.
        columns: Of order n', n or n - 1.
        variance: s.
        block: Samples at once.
    """
    made = Hermite(rows, variance)
    n, other = rows.order, columns.order
    means: list[Tensor] = []
    for some in X.split(block):
        held = made(some.mT)
        for k in range(other + 1):
            left, right = held[n - k], held[other - k]
            if k == len(means):
                means.append(X.new_zeros(len(left), len(right)))
            means[k].addmm_(left, right.mT, alpha=1 / len(X))
    # By Horner's scheme: the identities are put in one after the other.
    found = means[other]
    for k in range(other, 0, -1):
        factor = -variance * (n - k + 1) * (other - k + 1) / k
        found = _with_identity(found, rows, columns, k).mul_(factor).add_(means[k - 1])
    return found.mul_(rows.scale.unsqueeze(-1)).mul_(columns.scale)


def _with_identity(
    A: Float[Tensor, "a b"], rows: SymmetricSpace, columns: SymmetricSpace, k: int
) -> Float[Tensor, "A B"]:
    """The symmetric product, in rows and in columns, with an identity between the two.

    Args:
        A: Entries, of `k` orders below.
        rows: Left space.
        columns: Right space.
        k: How many orders are missing on both sides, this one included.
    """
    for _ in range(k - 1):
        rows, columns = rows.lower, columns.lower
    found = A.new_zeros(rows.dim, columns.dim)
    right = [(columns.index[:, q], _without(columns, q)) for q in range(columns.order)]
    for p in range(rows.order):
        picked, own = A.index_select(0, _without(rows, p)), rows.index[:, p].unsqueeze(-1)
        for index, rest in right:
            found += picked.index_select(1, rest).mul_(own == index)
    return found.div_(rows.order * columns.order)


def _without(space: SymmetricSpace, place: int) -> Int[Tensor, " C"]:
    """Where, one order below, the entry without the index at `place` lies."""
    index = space.index
    if space.order == 1:
        return index.new_zeros(len(index))
    kept = [axis for axis in range(space.order) if axis != place]
    return space.lower.locate(index[:, kept])
