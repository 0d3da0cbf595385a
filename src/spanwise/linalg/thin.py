"""Whole decompositions that do not give up, and the exact short cuts for tall matrices.

A Gram matrix squares the condition number, so it is formed and decomposed in float64 whatever the
input's dtype, a few rows at a time; what it cannot resolve goes to the SVD.
"""

import math
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from spanwise.linalg._arrays import largest_entry, matrix
from spanwise.linalg.svd import SVD

ASPECT = 1.5
"""Matrices this many times as tall as wide are faster through their Gram matrix on a CPU."""

_CHUNK = 2**20
"""Elements that are held in float64 at once."""
_HARMLESS = 16
"""Roundings that a product may lose: below 1e-6 in float32."""
_PANEL = 128
"""Columns of a Gram matrix that are formed together, at least."""


def rank_tolerance(shape: tuple[int, ...], dtype: torch.dtype) -> float:
    """Singular values up to this share of the largest count as zero: min(m, n) roundings.

    What rounds every entry of M by eps adds at most about `eps ||M||_2` to a singular value,
    however large M is; the factor leaves room for sums and for rounding that belongs to larger
    numbers, which M is the difference of. At least 16 roundings.
    """
    return max(16, min(shape[-2:])) * torch.finfo(dtype).eps


def gram_limit(dtype: torch.dtype) -> float:
    """Condition up to which a float64 Gram matrix serves inputs of this dtype.

    Its error is 2e-16 times the squared condition: 2e-10 in float64, and 2e-8 in float32, below
    the rounding of the input itself.
    """
    return 1e3 if dtype == torch.float64 else 1e4


def thin_svd(M: Float[Tensor, "*batch m n"], *, as_stored: bool = False) -> SVD:
    """All min(m, n) singular triples, also where LAPACK's divide and conquer does not converge.

    Then QR iteration is tried (on CUDA), then float64, then the eigenvectors of the Gram matrix.

    Args:
        M: Any finite matrix.
        as_stored: Never decompose the transpose of a wide matrix, which is faster: the vectors of
            singular values that are zero or equal are then those of `torch.linalg.svd(M)`.

    Raises:
        ValueError: If `M` is not finite.
    """
    M = matrix("M", M)
    if M.shape[-2] < M.shape[-1] and not as_stored:
        v, s, u = thin_svd(M.mT)
        return SVD(u, s, v)
    scale = largest_entry("M", M)
    attempts: list[Callable[[], tuple[Tensor, Tensor, Tensor]]] = [
        lambda: torch.linalg.svd(M, full_matrices=False)
    ]
    if M.is_cuda:
        attempts.append(lambda: torch.linalg.svd(M, full_matrices=False, driver="gesvd"))
    if M.dtype != torch.float64:
        attempts.append(lambda: torch.linalg.svd(M.double(), full_matrices=False))
    for attempt in attempts:
        try:
            u, s, vh = attempt()
        except torch.linalg.LinAlgError:
            continue
        return SVD(u.to(M.dtype), s.to(M.dtype), vh.mT.to(M.dtype))
    if M.shape[-2] < M.shape[-1]:
        v, s, u = _svd_by_gram(M.mT, scale.mT)
        return SVD(u, s, v)
    return _svd_by_gram(M, scale)


def leading_triples(M: Float[Tensor, "m n"], rank: int, *, atol: float = 0.0) -> SVD:
    """The leading singular triples of one matrix: exact, and none of a value that is rounding.

    Args:
        M: Any finite matrix.
        rank: How many at most.
        atol: Singular values up to this count as zero too.

    Returns:
        `SVD(U, s, V)` with at most `rank` columns, fewer where M has a smaller numerical rank.
    """
    M = matrix("M", M)
    if M.shape[-2] < M.shape[-1]:
        v, s, u = leading_triples(M.mT, rank, atol=atol)
        return SVD(u, s, v)
    m, n = M.shape
    rank = min(rank, n)
    scale = largest_entry("M", M)
    if rank < 1 or not float(scale) > 0:
        return SVD(M.new_zeros(m, 0), M.new_zeros(0), M.new_zeros(n, 0))
    rtol = rank_tolerance((m, n), M.dtype)
    if m >= ASPECT * n:
        s, v = gram_spectrum(M, scale)
        if resolved(s[:rank], max(rtol, atol / float(s[0] * scale)), M.dtype):
            cut = max(rtol * float(s[0]), atol / float(scale))
            kept = int((s[:rank] > cut).sum())
            u = times(M, v[:, :kept] / (s[:kept] * scale.double().squeeze()))
            return SVD(u, (s[:kept] * scale.squeeze()).to(M.dtype), v[:, :kept].to(M.dtype))
    u, s, v = thin_svd(M)
    kept = int((s[:rank] > max(rtol * float(s[0]), atol)).sum())
    return SVD(u[:, :kept], s[:kept], v[:, :kept])


def gram(
    M: Float[Tensor, "*batch m n"], scale: Float[Tensor, "*batch 1 1"]
) -> Float[Tensor, "*batch n n"]:
    """(M / scale)^T (M / scale) in float64, some rows at a time."""
    n = M.shape[-1]
    found = torch.zeros(*M.shape[:-2], n, n, dtype=torch.float64, device=M.device)
    divisor = torch.where(scale > 0, scale, 1).double()
    step = max(_PANEL, -(-n // 4))
    panels = [(slice(i, i + step), min(i + step, n)) for i in range(0, n, step)]
    for rows in _row_chunks(M):
        block = M[..., rows, :].to(torch.float64, copy=True).div_(divisor)  # M stays as it is
        if found.ndim > 2:
            found += block.mT @ block
            continue
        for some, upto in panels:  # at and above the diagonal
            found[:upto, some].addmm_(block[:, :upto].mT, block[:, some])
    return found if found.ndim > 2 else found.triu_().add_(found.triu(1).mT)


def gram_spectrum(
    M: Float[Tensor, "*batch m n"], scale: Float[Tensor, "*batch 1 1"]
) -> tuple[Float[Tensor, "*batch n"], Float[Tensor, "*batch n n"]]:
    """Singular values over `scale`, largest first, and right singular vectors, in float64."""
    values, vectors = torch.linalg.eigh(gram(M, scale))
    return values.flip(-1).clamp_(min=0).sqrt_(), vectors.flip(-1)


def resolved(s: Float[Tensor, "*batch k"], rtol: float, dtype: torch.dtype) -> bool:
    """Whether values from a Gram matrix tell which are zero, and the others are accurate.

    Args:
        s: As `gram_spectrum` gives them, or the first of them.
        rtol: Share of the largest that counts as zero.
        dtype: The matrix's own.
    """
    top = s[..., :1]
    kept = s > rtol * top
    accurate = bool((~kept | (s * gram_limit(dtype) >= top)).all())
    return accurate and (bool(kept.all()) or rtol > squared_noise(s.shape[-1]))


def squared_noise(n: int) -> float:
    """Share of the largest singular value up to which a Gram matrix shows rounding only."""
    return 4 * math.sqrt(n * torch.finfo(torch.float64).eps)


def times(
    M: Float[Tensor, "*batch m n"],
    factor: Float[Tensor, "*batch n k"],
    out: Float[Tensor, "*batch m k"] | None = None,
    *,
    condition: float = math.inf,
) -> Float[Tensor, "*batch m k"]:
    """M @ factor, multiplied in float64 some rows at a time, in the dtype of M.

    Args:
        M: The matrix.
        factor: In float64.
        out: Where to; may be M itself.
        condition: What the product loses, in roundings: an inverse root has entries as large as
            the condition number. Where it is small the product is in the dtype of M.
    """
    if out is None:
        out = M.new_empty(*M.shape[:-1], factor.shape[-1])
    if condition <= _HARMLESS:
        factor = factor.to(M.dtype)
        for rows in _row_chunks(M):
            out[..., rows, :] = M[..., rows, :] @ factor
        return out
    for rows in _row_chunks(M):
        out[..., rows, :] = (M[..., rows, :].double() @ factor).to(M.dtype)
    return out


def _row_chunks(M: Tensor) -> Iterator[slice]:
    width = max(1, math.prod(M.shape[:-2]) * M.shape[-1])
    step = max(1, _CHUNK // width)
    for start in range(0, M.shape[-2], step):
        yield slice(start, start + step)


def _svd_by_gram(M: Tensor, scale: Tensor) -> SVD:
    s, v = gram_spectrum(M, scale)
    # Columns of M v are orthogonal up to rounding: QR divides by their norms, and survives zeros.
    q, r = torch.linalg.qr(times(M, v).double())
    sign = torch.where(torch.diagonal(r, dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(q.dtype)
    s = s * scale.squeeze(-1)
    return SVD((q * sign.unsqueeze(-2)).to(M.dtype), s.to(M.dtype), v.to(M.dtype))
