"""Leading singular triples and subspaces: exact, from the Gram matrix, sketched, warm-started.

All take `(*batch, m, n)`, refuse NaN and infinity, decompose half precision in float32 (and
return float32), and draw only from the generator they are given, by default one with a fixed
seed. Bases come out orthonormal for any finite matrix, also a rank-deficient or a zero one;
directions that the matrix does not determine are then arbitrary but deterministic.
"""

from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from spanwise.linalg._arrays import gaussian, largest_entry, matrix, pair, peak_sign, qr

Method = Literal["auto", "exact", "gram", "randomized", "warm"]
MatrixSide = Literal["left", "right"]


class SVD(NamedTuple):
    """M ~ U diag(s) V^T."""

    U: Float[Tensor, "*batch m r"]
    """Left singular vectors, orthonormal columns."""
    s: Float[Tensor, "*batch r"]
    """Singular values, largest first, not negative."""
    V: Float[Tensor, "*batch n r"]
    """Right singular vectors, orthonormal columns (not transposed)."""


def truncated_svd(
    M: Float[Tensor, "*batch m n"],
    rank: int,
    method: Method = "auto",
    *,
    basis: Float[Tensor, "*batch m k"] | None = None,
    oversample: int = 8,
    power: int = 2,
    generator: torch.Generator | None = None,
) -> SVD:
    """The leading `rank` singular triples.

    Args:
        M: Any finite matrix.
        rank: r, between 1 and min(m, n).
        method: `"exact"`: a full decomposition. `"gram"`: eigenvectors of the smaller of M M^T
            and M^T M, about twice as fast; what lies below the root of the dtype's rounding
            (3e-4 of the largest value in float32) is lost. `"randomized"`: a sketch, `power`
            passes of subspace iteration and Rayleigh-Ritz. `"warm"`: the same from `basis`
            instead of a sketch, with one pass. `"auto"`: randomized where min(m, n) > 256 and at
            least twice `rank + oversample`, else exact.
        basis: For `"warm"`: left singular vectors of a matrix nearby, k >= r columns.
        oversample: Columns of the sketch beyond r.
        power: Passes over M M^T; each one damps what is outside by (s_k / s_r)^2.
        generator: Source of the sketch; None means a fixed seed.

    Returns:
        `SVD(U, s, V)`. In each column of U the entry of largest magnitude is positive, so the
        signs do not depend on the LAPACK build, unless two entries tie to rounding.

    Raises:
        ValueError: If `M` is not finite or an option does not fit it.
        TypeError: If `M` is not a real floating-point tensor or `rank` not an integer.

    Sources:
        Halko, Martinsson and Tropp, "Finding structure with randomness", 2011, algorithms 4.4
        (subspace iteration) and 5.1.
    """
    M = matrix("M", M)
    method = _check(M, rank, method, basis, oversample, power, "m", M.shape[-2])
    scale = _scale(M)
    if method == "exact":
        u, s, v = _exact(M)
    elif method == "gram":
        u, s, v = _gram(M / scale, rank)
        s = s * scale.squeeze(-1)
    elif method == "warm":
        assert basis is not None
        start = pair(basis, M, ("basis", "M"))[0].to(M.dtype)
        u, s, v = _rayleigh_ritz(M, torch.linalg.qr(M.mT @ (start / scale)).Q)
    elif M.shape[-2] < M.shape[-1]:
        q = _iterate(M, _sketch(M.mT, rank + oversample, generator), power, scale)
        v, s, u = _rayleigh_ritz(M.mT, q)
    else:
        q = _iterate(M.mT, _sketch(M, rank + oversample, generator), power, scale)
        u, s, v = _rayleigh_ritz(M, q)
    u, s, v = u[..., :rank], s[..., :rank], v[..., :rank]
    sign = peak_sign(u)
    return SVD(u * sign, s, v * sign)


def top_subspace(
    M: Float[Tensor, "*batch m n"],
    rank: int,
    side: MatrixSide = "left",
    method: Method = "auto",
    *,
    basis: Float[Tensor, "*batch d r"] | None = None,
    oversample: int = 8,
    power: int = 2,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*batch d r"]:
    """An orthonormal basis of the leading left or right singular subspace.

    Cheaper than `truncated_svd`, which needs both sides and the values.

    Args:
        M: Any finite matrix.
        rank: r, between 1 and min(m, n).
        side: `"left"` for a basis of R^m, `"right"` for one of R^n.
        method: As for `truncated_svd`, but `"warm"` is one block power step from `basis` and a QR
            with positive diagonal, without Rayleigh-Ritz: the columns keep the order and the
            signs of `basis`, and those that `M` says nothing about stay as they were.
        basis: For `"warm"`: the old basis of this side, r columns.
        oversample: Columns of the sketch beyond r.
        power: Passes over M M^T.
        generator: Source of the sketch; None means a fixed seed.

    Returns:
        `(*batch, d, r)` with d = m or n. Except for `"warm"`, columns come in the order of their
        singular values, and in each the entry of largest magnitude is positive.

    Raises:
        ValueError: If `M` is not finite or an option does not fit it.
        TypeError: If `M` is not a real floating-point tensor or `rank` not an integer.

    Sources:
        As `truncated_svd`. The warm step is one iteration of Bauer's "Das Verfahren der
        Treppeniteration", 1957.
    """
    M = matrix("M", M)
    if side not in get_args(MatrixSide):
        raise ValueError(f'side must be "left" or "right", got {side!r}.')
    if side == "right":
        M = M.mT
    letter = "m" if side == "left" else "n"
    method = _check(M, rank, method, basis, oversample, power, letter, M.shape[-2])
    scale = _scale(M)
    if method == "warm":
        assert basis is not None
        if basis.shape[-1] != rank:
            raise ValueError(
                f"basis must have rank = {rank} columns for the warm method, got {basis.shape[-1]}."
            )
        return _power_step(M, pair(basis, M, ("basis", "M"))[0].to(M.dtype), scale)
    if method == "exact":
        u = _exact(M).U[..., :rank]
    elif method == "gram":
        u = _gram(M / scale, rank).U
    else:
        sketch = _sketch(M, rank + oversample, generator)
        wide = power > 0 and M.shape[-2] < M.shape[-1]
        u = (_near_side if wide else _far_side)(M, rank, sketch, power, scale)
    return u * peak_sign(u)


def captured_energy(
    M: Float[Tensor, "*#batch m n"],
    basis: Float[Tensor, "*#batch d r"],
    side: MatrixSide = "left",
) -> Float[Tensor, "*#batch"]:
    """Share of the squared Frobenius norm of `M` inside the span of `basis`.

    Args:
        M: Any finite matrix.
        basis: Orthonormal basis of R^m (`"left"`) or R^n (`"right"`).
        side: Whether `basis` is about the columns or the rows of `M`.

    Returns:
        ||U^T M||^2 / ||M||^2 in `[0, 1]`; 0 for a zero matrix.

    Raises:
        ValueError: If `M` is not finite or `basis` lives in another space.
    """
    if side not in get_args(MatrixSide):
        raise ValueError(f'side must be "left" or "right", got {side!r}.')
    u, m, _ = pair(basis, M if side == "left" else M.mT, ("basis", "M"))
    m = m / _scale(m)
    total = m.square().sum(dim=(-2, -1))
    inside = (u.mT @ m).square().sum(dim=(-2, -1))
    return (inside / torch.where(total > 0, total, 1)).clamp(max=1)


def _check(
    M: Tensor,
    rank: int,
    method: Method,
    basis: Tensor | None,
    oversample: int,
    power: int,
    letter: str,
    d: int,
) -> Method:
    """The method with `"auto"` resolved, after every option has been looked at."""
    short = min(M.shape[-2:])
    if isinstance(rank, bool) or not isinstance(rank, int):
        raise TypeError(f"rank must be an integer, got {rank!r}.")
    if not 1 <= rank <= short:
        raise ValueError(
            f"rank must be between 1 and min(m, n) = {short} for a matrix of shape "
            f"{tuple(M.shape)}, got {rank}."
        )
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}.")
    for name, value in (("oversample", oversample), ("power", power)):
        if value < 0:
            raise ValueError(f"{name} must not be negative, got {value}.")
    if method == "warm":
        if basis is None:
            raise ValueError('method="warm" starts from a basis: give basis=, or use "randomized".')
        if basis.ndim < 2 or basis.shape[-2] != d or not rank <= basis.shape[-1] <= short:
            raise ValueError(
                f"basis must have shape ({letter}, k) = ({d}, {rank} to {short}), got "
                f"{tuple(basis.shape)}."
            )
    elif basis is not None:
        raise ValueError(f'basis is for method="warm", got method={method!r}.')
    if method == "auto":
        return "randomized" if short > 256 and short >= 2 * (rank + oversample) else "exact"
    return method


def _scale(M: Tensor) -> Float[Tensor, "*batch 1 1"]:
    """What to divide by so that powers of `M` neither overflow nor underflow."""
    peak = largest_entry("M", M)
    return torch.where(peak > 0, peak, 1)


def _exact(M: Tensor) -> SVD:
    """A full decomposition; LAPACK is up to twice as fast on the tall orientation."""
    if M.shape[-2] < M.shape[-1]:
        v, s, uh = torch.linalg.svd(M.mT, full_matrices=False)
        return SVD(uh.mT, s, v)
    u, s, vh = torch.linalg.svd(M, full_matrices=False)
    return SVD(u, s, vh.mT)


def _gram(M: Tensor, rank: int) -> SVD:
    """From the eigenvectors of the smaller Gram matrix."""
    if M.shape[-2] < M.shape[-1]:
        v, s, u = _gram(M.mT, rank)
        return SVD(u, s, v)
    values, vectors = torch.linalg.eigh(M.mT @ M)
    v = vectors.flip(-1)[..., :rank]
    # Columns of M v are orthogonal up to rounding: QR divides by their norms, and survives zeros.
    image = M @ v
    return SVD(qr(image), values.flip(-1)[..., :rank].clamp(min=0).sqrt(), v)


def _rayleigh_ritz(M: Tensor, q: Tensor) -> SVD:
    """The best approximation of `M` whose rows lie in the span of the orthonormal `q`."""
    left, triangle = torch.linalg.qr(M @ q)
    inner, s, outer = torch.linalg.svd(triangle, full_matrices=False)
    return SVD(left @ inner, s, q @ outer.mT)


def _sketch(M: Tensor, columns: int, generator: torch.Generator | None) -> Tensor:
    """Gaussian columns for `M` to act on; leading axes share them."""
    shape = (M.shape[-1], min(columns, *M.shape[-2:]))
    return gaussian(shape, generator=generator, dtype=M.dtype, device=M.device)


def _gram_times(M: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """M M^T y / scale. As rows, because that is how `M` lies in memory: 10 % faster."""
    return ((y / scale).mT @ M @ M.mT).mT


def _iterate(M: Tensor, y: Tensor, power: int, scale: Tensor) -> Tensor:
    """An orthonormal basis of the range of (M M^T)^power y.

    One QR a pass is enough: a direction that rounding swallows in one pass is replaced by noise,
    which is a fresh sketch for the next.
    """
    for _ in range(power):
        y = torch.linalg.qr(_gram_times(M, y, scale)).Q
    return y if power else torch.linalg.qr(y).Q


def _near_side(M: Tensor, rank: int, sketch: Tensor, power: int, scale: Tensor) -> Tensor:
    """Left basis of a wide `M`: the sketch lives on the long side, every QR on the short one.

    The last pass takes Ritz vectors of the basis before it, which its own products give for free.
    """
    y = _iterate(M, M @ (sketch / scale), power - 1, scale)
    w = (y / scale).mT @ M
    image = (w @ M.mT).mT @ _leading_eigenvectors(w @ w.mT, rank)
    return torch.linalg.qr(image).Q


def _far_side(M: Tensor, rank: int, sketch: Tensor, power: int, scale: Tensor) -> Tensor:
    """Left basis of a tall `M`: passes on the short side, and a half step to the long one."""
    w = M @ (_iterate(M.mT, sketch, power, scale) / scale)
    return torch.linalg.qr(w @ _leading_eigenvectors(w.mT @ w, rank)).Q


def _leading_eigenvectors(gram: Tensor, rank: int) -> Tensor:
    return torch.linalg.eigh(gram).eigenvectors.flip(-1)[..., :rank]


def _power_step(M: Tensor, basis: Tensor, scale: Tensor) -> Tensor:
    """orth(M M^T basis), which keeps what `M` does not reach as it is in `basis`."""
    y = _gram_times(M, basis, scale)
    peak = y.detach().abs().amax(dim=(-2, -1), keepdim=True)
    # At rounding level, so it decides only columns that are rounding themselves, or zero.
    keep = torch.finfo(y.dtype).eps * torch.where(peak > 0, peak, 1)
    return qr(y.addcmul_(keep, basis))
