"""R_c of the rate reduction, with its gradient in closed form."""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from typing_extensions import override

from spanwise.estimators._mlc.packed import Layout
from spanwise.linalg._arrays import full_precision

BLOCK = 2**24
"""Numbers that a temporary may hold: 64 MiB in float32."""
CACHED = 2**19
"""Numbers of the matrices that are factored together: what a core's cache holds."""


def cluster_rate(
    Z: Float[Tensor, "n d"],
    membership: Float[Tensor, "n k"],
    eps: float,
    *,
    columns: Int[Tensor, " m"] | None = None,
    top: int | None = None,
) -> Float[Tensor, ""]:
    """`R_c = sum_j t_j / (2 n) logdet(I + d / (t_j eps^2) Z' diag(Gamma_j) Z)`.

    The k matrices of size (d, d) are sums of the same n outer products, weighted by a column each:
    one matrix product of lower triangles. With `M_j` such a matrix and `c = d / eps^2`,

        dR_c / dZ = c / n sum_j diag(Gamma_j) Z M_j^-1
        dR_c / dGamma_ij = (logdet M_j + c z_i' M_j^-1 z_i - d + tr M_j^-1) / (2 n)

    are two more. Nothing of size k d^2 outlives the call. Where the samples of a column are fewer
    than d, the determinants are those of their Gram matrices instead.

    Args:
        Z: Samples in rows, finite, float32 or float64.
        membership: Not negative, in the dtype of Z; columns that sum to 0 count nothing.
        eps: The precision; not its square.
        columns: Some columns instead of all; their sum is scaled by k / m, which is right on
            average if they were drawn at random.
        top: Only so many of each column's largest entries, scaled to the column's sum; saves time
            below d.
    """
    scale = 1.0
    if columns is not None:
        scale = membership.shape[1] / len(columns)
        membership = membership[:, columns]
    rows = min(len(Z), top or len(Z))
    function = _Dense if rows >= Z.shape[1] else _Gram
    if rows < len(Z):
        kept = membership.detach().topk(rows, dim=0).indices
        entries = membership.gather(0, kept)
        lost = membership.sum(0) / entries.sum(0).clamp(min=torch.finfo(Z.dtype).tiny)
        membership = torch.zeros_like(membership).scatter(0, kept, entries * lost)
    with full_precision(Z):
        found: Tensor = function.apply(Z, membership, eps, rows)
    return found * scale


class _ClosedForm(torch.autograd.Function):
    """A scalar of Z and the membership whose gradient is found along with it."""

    @staticmethod
    @override
    def forward(  # pyrefly: ignore[bad-override]
        ctx: Any, Z: Tensor, membership: Tensor, eps: float, rows: int
    ) -> Tensor:
        raise NotImplementedError

    @staticmethod
    @once_differentiable
    @override
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyrefly: ignore[bad-override]
        (upstream,) = grad_outputs
        slopes = (None if slope is None else slope * upstream for slope in ctx.slopes)
        return (*slopes, None, None)


class _Dense(_ClosedForm):
    """Through the (d, d) matrices of all columns."""

    @staticmethod
    @override
    def forward(ctx: Any, Z: Tensor, membership: Tensor, eps: float, rows: int) -> Tensor:
        n, d = Z.shape
        k, c = membership.shape[1], d / eps**2
        layout = Layout(d, Z)
        wanted = ctx.needs_input_grad[:2]
        slope = torch.empty_like(membership) if wanted[1] else None
        slope_z = torch.zeros_like(Z) if wanted[0] else None
        sums = membership.sum(0)
        total = Z.new_zeros(())
        blocks = list(_ranges(n, BLOCK // layout.length))
        products = layout.outer(Z) if len(blocks) == 1 else None
        for first, last in _ranges(k, BLOCK // layout.length):
            part, t = membership[:, first:last], sums[first:last]
            packed = Z.new_zeros(last - first, layout.length)
            for low, high in blocks:
                outer = layout.outer(Z[low:high]) if products is None else products
                packed.addmm_(part[low:high].mT, outer)
            packed.mul_(torch.where(t > 0, c / t, 0)[:, None])
            logdet, trace = torch.empty_like(t), torch.empty_like(t)
            for low, high in _ranges(last - first, CACHED // (d * d)):
                at = slice(low, high)
                logdet[at], trace[at] = layout.invert_one_plus(packed[at], inverse=any(wanted))
            total += (t * logdet).sum()
            for low, high in blocks if any(wanted) else ():
                if slope is not None:
                    outer = layout.outer(Z[low:high]) if products is None else products
                    held = torch.addmm(logdet - d + trace, outer, packed.mT, alpha=c)
                    slope[low:high, first:last] = held
                if slope_z is not None:
                    slope_z[low:high] += layout.times(part[low:high] @ packed, Z[low:high])
        ctx.slopes = (
            None if slope_z is None else slope_z.mul_(c / n),
            None if slope is None else slope.mul_(1 / (2 * n)),
        )
        return total / (2 * n)


class _Gram(_ClosedForm):
    """Through the Gram matrices of each column's `rows` largest entries, all shared by one.

    With `D` the column's entries and `S = I + a D^1/2 G D^1/2`, Sylvester's identity gives
    `logdet M = logdet S`, and Woodbury's the rest.
    """

    @staticmethod
    @override
    def forward(ctx: Any, Z: Tensor, membership: Tensor, eps: float, rows: int) -> Tensor:
        n, d = Z.shape
        c = d / eps**2
        gram = Z @ Z.mT
        wanted = ctx.needs_input_grad[:2]
        slope = torch.zeros_like(membership) if wanted[1] else None
        slope_gram = torch.zeros_like(gram) if wanted[0] else None
        total = Z.new_zeros(())
        for first, last in _ranges(membership.shape[1], BLOCK // (4 * rows * rows)):
            entries, kept = membership[:, first:last].topk(rows, dim=0)
            entries, kept = entries.mT.contiguous(), kept.mT.contiguous()  # (m, rows)
            t = entries.sum(1)
            a = torch.where(t > 0, c / t, 0)
            root = entries.sqrt()
            own = gram[kept[:, :, None], kept[:, None, :]]
            half = own * root[:, :, None]  # D^1/2 G
            matrices = half * (root * a[:, None])[:, None, :]
            matrices.diagonal(dim1=-2, dim2=-1).add_(1)
            factor = torch.linalg.cholesky(matrices)
            logdet = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) * 2
            total += (t * logdet).sum()
            if not any(wanted):
                continue
            inverse = torch.cholesky_inverse(factor)
            if slope is not None:
                diagonal = inverse.diagonal(dim1=-2, dim2=-1)
                solved = torch.linalg.solve_triangular(factor, half, upper=False)
                explained = solved.square_().sum(1).mul_(a[:, None])
                form = own.diagonal(dim1=-2, dim2=-1) - explained  # z_i' M^-1 z_i
                # The same from S^-1: exact where the entry is large, and there only.
                share = a[:, None] * entries
                form = torch.where(share > 1, (1 - diagonal) / share.clamp(min=1), form)
                # tr M^-1 = d - rows + tr S^-1
                constant = logdet - rows + diagonal.sum(1)
                values = form.mul_(c).add_(constant[:, None])
                slope[:, first:last].scatter_(0, kept.mT, values.mT)
            if slope_gram is not None:
                scaled = root * (c**0.5)
                values = inverse.mul_(scaled[:, :, None]).mul_(scaled[:, None, :])
                flat = kept[:, :, None] * n + kept[:, None, :]
                slope_gram.view(-1).index_add_(0, flat.view(-1), values.reshape(-1))
        ctx.slopes = (
            None if slope_gram is None else (slope_gram @ Z).mul_(1 / n),
            None if slope is None else slope.mul_(1 / (2 * n)),
        )
        return total / (2 * n)


def _ranges(count: int, size: int) -> Iterator[tuple[int, int]]:
    """Nearly equal ranges of at most `size`, at least one each."""
    parts = -(-count // max(1, size))
    edges = [count * i // parts for i in range(parts + 1)]
    yield from itertools.pairwise(edges)
