"""The polar factor of a matrix, and the inverse square root of a semi-definite one."""

import math
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spanwise.linalg._arrays import gaussian, largest_entry, matrix
from spanwise.linalg.thin import (
    ASPECT,
    gram_spectrum,
    rank_tolerance,
    resolved,
    squared_noise,
    thin_svd,
    times,
)

PolarMethod = Literal["auto", "svd", "gram", "newton_schulz", "qdwh"]


class Polar(NamedTuple):
    """M = Q H with H semi-definite."""

    Q: Float[Tensor, "*batch m n"]
    """Singular values 1, `rank` times, and 0: orthonormal columns (or rows) at full rank."""
    nuclear: Float[Tensor, "*batch"]
    """Sum of the singular values of M that are not zero, trace(Q^T M)."""
    rank: Int[Tensor, "*batch"]
    """R, how many that are."""


def polar(
    M: Float[Tensor, "*batch m n"],
    method: PolarMethod = "auto",
    *,
    complete: bool = False,
    rtol: float | None = None,
    overwrite: bool = False,
) -> Polar:
    """The nearest matrix to M whose singular values are all one, or zero where those of M are.

    With M = U diag(s) V^T it is the sum of u_i v_i^T over the R singular values that are not zero.
    At full rank it is unique and all methods agree.

    Args:
        M: Any finite matrix.
        method: `"svd"`. `"gram"`: M (M^T M)^(-1/2), in float64 whatever the input's dtype, a few
            rows at a time, for conditions up to about 1e7. `"newton_schulz"`, `"qdwh"`:
            iterations of products and of QR decompositions, which pay on a GPU; where M turns out
            not to have full rank the SVD follows. `"auto"`: gram where one side is at least 1.5
            times the other and the condition is below 1e3 (1e4 in float32), else svd.
        complete: Fill the directions that M lacks with arbitrary orthonormal ones, those of
            `torch.linalg.svd(M)`. `nuclear` is then the sum of all values.
        rtol: Share of the largest singular value that counts as zero; by default min(m, n)
            roundings of the dtype, at least 16.
        overwrite: M may be destroyed; a tall matrix then needs no second one of its size.

    Raises:
        ValueError: If `M` is not finite or an option is unknown.
        TypeError: If `M` is not a real floating-point tensor.

    Sources:
        Higham, "Functions of Matrices", 2008, chapter 8; Nakatsukasa, Bai and Gygi, "Optimizing
        Halley's iteration for computing the matrix polar decomposition", 2010 (QDWH).
    """
    if method not in get_args(PolarMethod):
        raise ValueError(
            f"method must be one of {', '.join(get_args(PolarMethod))}, got {method!r}."
        )
    given, M = M, matrix("M", M)
    overwrite = overwrite or given.dtype != M.dtype
    scale = largest_entry("M", M)
    rtol = rank_tolerance(tuple(M.shape), M.dtype) if rtol is None else rtol
    wide = M.shape[-2] < M.shape[-1]
    tall, columns = (M.mT, M.shape[-2]) if wide else (M, M.shape[-1])
    found: Polar | None = None
    if not M.numel():
        zero = M.new_zeros(M.shape[:-2])
        return Polar(M.clone(), zero, zero.long())
    if method == "gram" or (method == "auto" and tall.shape[-2] >= ASPECT * columns):
        found = _by_gram(tall, scale, rtol, complete, overwrite, method == "gram")
    elif method in ("newton_schulz", "qdwh"):
        found = _by_iteration(tall, method, rtol)
    if found is None:
        return _by_svd(M, rtol, complete)
    return Polar(found.Q.mT, found.nuclear, found.rank) if wide else found


def inverse_sqrt(
    A: Float[Tensor, "*batch n n"], *, rtol: float | None = None
) -> tuple[Float[Tensor, "*batch n n"], Int[Tensor, "*batch"]]:
    """A^(-1/2) of a symmetric semi-definite matrix on its range, zero on its null space.

    Args:
        A: Symmetric, semi-definite up to rounding. Decomposed in float64.
        rtol: Share of the largest eigenvalue that counts as zero; n roundings by default.

    Returns:
        The root, and how many eigenvalues are not zero.

    Raises:
        ValueError: If A is not square or not finite.
    """
    A = matrix("A", A)
    n = A.shape[-1]
    if A.shape[-2] != n:
        raise ValueError(f"A must be square, got shape {tuple(A.shape)}.")
    largest_entry("A", A)
    rtol = max(16, n) * torch.finfo(A.dtype).eps if rtol is None else rtol
    values, vectors = torch.linalg.eigh(A.double())
    kept = values > (rtol * values[..., -1:]).clamp_(min=0)
    inverse = torch.where(kept, values, 1).rsqrt() * kept
    return ((vectors * inverse.unsqueeze(-2)) @ vectors.mT).to(A.dtype), kept.sum(-1)


def _by_svd(M: Tensor, rtol: float, complete: bool) -> Polar:
    u, s, v = thin_svd(M, as_stored=complete)
    kept = s > rtol * s[..., :1]
    if not complete and not bool(kept.all()):
        s = s * kept
        u = u * kept.unsqueeze(-2)
    return Polar(u @ v.mT, s.sum(-1), kept.sum(-1))


def _by_gram(
    M: Tensor, scale: Tensor, rtol: float, complete: bool, overwrite: bool, trust: bool
) -> Polar | None:
    """The factor of a tall M; None where a Gram matrix would not be accurate, unless trusted."""
    s, v = gram_spectrum(M, scale)
    if trust:
        rtol = max(rtol, squared_noise(s.shape[-1]))
    kept = s > rtol * s[..., :1]
    if complete and not bool(kept.all()):
        return None
    if not trust and not resolved(s, rtol, M.dtype):
        return None
    peak = torch.where(scale > 0, scale, 1).double()
    inverse = torch.where(kept, 1 / torch.where(kept, s, 1), 0)
    root = (v * inverse.unsqueeze(-2)) @ v.mT / peak
    nuclear = ((s * kept).sum(-1) * scale.double().squeeze(-1).squeeze(-1)).to(M.dtype)
    condition = float((s[..., 0] / torch.where(kept, s, s[..., :1]).amin(-1)).nan_to_num_(1).max())
    found = times(M, root, M if overwrite else None, condition=condition)
    return Polar(found, nuclear, kept.sum(-1))


def _by_iteration(M: Tensor, method: str, rtol: float) -> Polar | None:
    """The factor of a tall M of full rank; None for any other."""
    norm = torch.linalg.matrix_norm(M, keepdim=True)
    x = M / torch.where(norm > 0, norm, 1)
    # A Frobenius norm of one leaves the smallest value that counts at least here.
    floor = rtol / math.sqrt(M.shape[-1])
    q = _newton_schulz(x, floor) if method == "newton_schulz" else _qdwh(x, floor)
    if q is None:
        return None
    h = q.mT @ M
    h = (h + h.mT) / 2
    if not _all_above(h, rtol):
        return None
    rank = torch.full(M.shape[:-2], M.shape[-1], device=M.device)
    return Polar(q, torch.diagonal(h, dim1=-2, dim2=-1).sum(-1), rank)


def _newton_schulz(x: Tensor, floor: float) -> Tensor | None:
    """The convergent quintic of third order: 15/8, -10/8, 3/8."""
    one = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    enough = (torch.finfo(x.dtype).eps) ** (1 / 3)
    # Small values grow by 15/8 a step.
    for _ in range(math.ceil(-math.log(floor) / math.log(15 / 8)) + 6):
        gram = x.mT @ x
        close = bool((gram - one).abs().amax() < enough)
        x = x @ (15 / 8 * one - 10 / 8 * gram + 3 / 8 * (gram @ gram))
        if close:
            return x
    return None


def _qdwh(x: Tensor, low: float) -> Tensor:
    """Halley's iteration with weights for singular values in [low, 1]."""
    one = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    while 1 - low > 10 * torch.finfo(x.dtype).eps:
        square = low * low
        d = (4 * (1 - square) / square**2) ** (1 / 3)
        a = math.sqrt(1 + d)
        a += math.sqrt(8 - 4 * d + 8 * (2 - square) / (square * a)) / 2
        b = (a - 1) ** 2 / 4
        c = a + b - 1
        if c > 100:  # far from one: QR keeps what a Cholesky factor would lose
            stacked = torch.cat([math.sqrt(c) * x, one.expand(*x.shape[:-2], -1, -1)], dim=-2)
            q = torch.linalg.qr(stacked).Q
            m = x.shape[-2]
            step = q[..., :m, :] @ q[..., m:, :].mT / math.sqrt(c)
        else:
            factor = torch.linalg.cholesky(one + c * (x.mT @ x))
            step = torch.cholesky_solve(x.mT, factor).mT
        x = b / c * x + (a - b / c) * step
        low = min(1.0, low * (a + b * square) / (1 + c * square))
    return x


def _all_above(h: Tensor, rtol: float) -> bool:
    """Whether every eigenvalue of a symmetric matrix is above this share of the largest."""
    x = gaussian((h.shape[-1], 1), generator=None, dtype=h.dtype, device=h.device)
    top = torch.linalg.vector_norm(h, dim=(-2, -1), keepdim=True)
    for _ in range(8):  # power iteration: within a few per cent, which is enough
        norm = torch.linalg.vector_norm(x, dim=-2, keepdim=True)
        x = h @ (x / norm.clamp_min(torch.finfo(h.dtype).tiny))
        top = torch.linalg.vector_norm(x, dim=-2, keepdim=True)
    one = torch.eye(h.shape[-1], dtype=h.dtype, device=h.device)
    # Cholesky succeeds exactly where all of it is positive.
    return not bool(torch.linalg.cholesky_ex(h - rtol * top * one).info.any())
