"""Leading singular vectors: exact, by Gram matrix, randomized, or warm from an old basis."""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from spanwise.linalg.bases import check_finite, fast_orthonormalize, orthonormalize, widen

Method = Literal["auto", "exact", "gram", "randomized", "warm"]
METHODS = ("auto", "exact", "gram", "randomized", "warm")


class SVD(NamedTuple):
    """M ~ U diag(s) V^T, singular values descending."""

    U: Float[Tensor, "*batch m r"]
    s: Float[Tensor, "*batch r"]
    V: Float[Tensor, "*batch n r"]


def truncated_svd(
    M: Float[Tensor, "*batch m n"],  # noqa: N803
    rank: int,
    method: Method = "auto",
    *,
    basis: Float[Tensor, "*batch n r"] | None = None,
    oversample: int = 8,
    power: int = 2,
    generator: torch.Generator | None = None,
) -> SVD:
    """The leading `rank` singular triplets of `M`.

    Signs are fixed by making the entry of largest magnitude in each column of U positive.

    Args:
        M: Matrix, `(*batch, m, n)`. Half precision is decomposed in float32.
        rank: r, between 1 and min(m, n).
        method: `exact` (LAPACK); `gram` (eigenvectors of the smaller Gram matrix; redone in
            float64 when s_r < 1e-3 s_1, where squaring the condition number would show);
            `randomized` (a seeded Gaussian sketch with power passes); `warm` (one block power
            step from `basis`, then a small exact SVD); `auto` (exact up to a shorter side of
            256 or where r is more than a quarter of it, else randomized).
        basis: Old right basis for `warm`, `(*batch, n, r)`.
        oversample: Extra sketch columns of `randomized`.
        power: Power passes of `randomized`; each multiplies by M M^T.
        generator: Draws the sketch, on M's device. None: a fixed seed; the global generator is
            never touched.

    Returns:
        `SVD(U, s, V)`; in float32 for half-precision input. `exact` is differentiable where
        torch's SVD is. A rank-deficient or zero `M` gives zeros in `s` and orthonormal
        completions in U and V.

    Raises:
        ValueError: If `rank` is out of range, `M` is not finite, the method is unknown, or
            `warm` has no basis.

    Sources:
        Halko, Martinsson and Tropp, "Finding structure with randomness", 2011, algorithms 4.4
        and 5.1.
    """
    M = _checked(M, rank)  # noqa: N806
    method = _resolve(method, M, rank)
    if method == "exact":
        u, s, vh = torch.linalg.svd(M, full_matrices=False)
        u, s, v = u[..., :rank], s[..., :rank], vh[..., :rank, :].mT
    elif method == "gram" and M.shape[-2] > M.shape[-1]:
        v = _gram_subspace(M.mT, rank)
        u, s, v = _triplets(M, v)
    else:
        v = top_subspace(
            M, rank, "right", method, basis=basis, oversample=oversample, power=power,
            generator=generator,
        )  # fmt: skip
        u, s, v = _triplets(M, v)
    sign = _signs(u)
    return SVD(u * sign, s, v * sign)


def _triplets(m: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The singular triplets of `m` restricted to the span of `v` (Rayleigh-Ritz)."""
    u, s, wh = torch.linalg.svd(m @ v, full_matrices=False)
    return u, s, v @ wh.mT


def top_subspace(
    M: Float[Tensor, "*batch m n"],  # noqa: N803
    rank: int,
    side: Literal["left", "right"] = "left",
    method: Method = "auto",
    *,
    basis: Float[Tensor, "*batch d r"] | None = None,
    oversample: int = 8,
    power: int = 2,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*batch d r"]:
    """The leading `rank` left or right singular vectors of `M`, cheaper than the triplets.

    Columns are in descending order of singular value with the entry of largest magnitude
    positive, except for `warm`, whose columns continue those of `basis` in order and sign.

    Args:
        M: Matrix, `(*batch, m, n)`.
        rank: r, between 1 and min(m, n).
        side: `left` gives a basis in R^m, `right` in R^n.
        method: As in `truncated_svd`. `warm` is one step Y = M M^T P (left) and a QR.
        basis: Old basis on the same side, for `warm`.
        oversample: Extra sketch columns of `randomized`.
        power: Power passes of `randomized`.
        generator: Draws the sketch. None: a fixed seed.

    Returns:
        Orthonormal basis `(*batch, d, r)`, d = m or n; orthonormal even where `M` has a lower
        rank or is zero.

    Raises:
        ValueError: As `truncated_svd`; also if `side` is unknown or `basis` does not fit.
    """
    M = _checked(M, rank)  # noqa: N806
    if side not in ("left", "right"):
        raise ValueError(f'side must be "left" or "right", got {side!r}.')
    method = _resolve(method, M, rank)
    if side == "right":
        M = M.mT  # noqa: N806
    if method == "warm":
        return _warm_subspace(M, rank, basis)
    if method == "exact":
        u = torch.linalg.svd(M, full_matrices=False).U[..., :rank]
    elif method == "gram":
        u = _gram_subspace(M, rank)
    else:
        u = _randomized_subspace(M, rank, oversample, power, generator)
    return u * _signs(u)


def _checked(m: Tensor, rank: int) -> Tensor:
    m = widen(m)
    if m.ndim < 2:
        raise ValueError(f"M must be a matrix (*batch, m, n), got shape {tuple(m.shape)}.")
    if isinstance(rank, bool) or not isinstance(rank, int):
        raise TypeError(f"rank must be an int, got {rank!r}.")
    if not 1 <= rank <= min(m.shape[-2:]):
        raise ValueError(
            f"rank must be between 1 and min(m, n) = {min(m.shape[-2:])} for M of shape "
            f"{tuple(m.shape)}, got {rank}."
        )
    check_finite(m, "M")
    return m


def _resolve(method: str, m: Tensor, rank: int) -> str:
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}.")
    if method != "auto":
        return method
    short = min(m.shape[-2:])
    return "exact" if short <= 256 or 4 * rank > short else "randomized"


def _signs(u: Tensor) -> Tensor:
    """+-1 for each column, `(*batch, 1, r)`: the sign of its entry of largest magnitude."""
    largest = u.detach().abs().argmax(dim=-2, keepdim=True)
    return torch.where(u.detach().gather(-2, largest) < 0, -1.0, 1.0).to(u.dtype)


def _warm_subspace(m: Tensor, rank: int, basis: Tensor | None) -> Tensor:
    expected = (*m.shape[:-1], rank)
    if basis is None or tuple(basis.shape) != expected:
        came = None if basis is None else tuple(basis.shape)
        raise ValueError(
            f'method="warm" needs an old basis of shape {expected}, got {came}. '
            'Use method="randomized" for the first one.'
        )
    # QR with a positive diagonal keeps the order and the signs of the old columns.
    return fast_orthonormalize(m @ (m.mT @ basis.to(m.dtype)))


def _gram_subspace(m: Tensor, rank: int) -> Tensor:
    short = m if m.shape[-2] <= m.shape[-1] else m.mT
    values, vectors = torch.linalg.eigh(short @ short.mT)
    top = vectors.flip(-1)[..., :rank]
    smallest, largest = values[..., -rank], values[..., -1]
    if m.dtype == torch.float32 and bool((smallest < 1e-6 * largest).any()):
        # Squared, 1e-3 is 1e-6: about float32's own rounding.
        return _gram_subspace(m.double(), rank).float()
    if m.shape[-2] <= m.shape[-1]:
        return top
    # Left vectors from right ones: m V = U S, and QR restores what S lost.
    return orthonormalize(m @ top)


def _randomized_subspace(
    m: Tensor, rank: int, oversample: int, power: int, generator: torch.Generator | None
) -> Tensor:
    rows, cols = m.shape[-2:]
    width = min(rank + oversample, rows, cols)
    if generator is None:
        generator = torch.Generator(device=m.device).manual_seed(0)
    # Sketching the longer side costs no more and the same seed fits every rank of a batch.
    omega = torch.randn(
        *m.shape[:-2], cols, width, generator=generator, dtype=m.dtype, device=m.device
    )
    y = m @ omega
    for _ in range(power):
        # Only the span matters between passes: QR keeps small directions from drowning.
        z = fast_orthonormalize(m.mT @ fast_orthonormalize(y))
        y = m @ z
    return _leading_columns(y, rank)


def _leading_columns(y: Tensor, rank: int) -> Tensor:
    """The `rank` leading left singular vectors of a tall thin `y`."""
    q = fast_orthonormalize(y)
    # q^T y is small: its exact SVD costs little and never squares the condition number.
    inner = torch.linalg.svd(q.mT @ y).U
    u = q @ inner[..., :rank]
    # One product with a nearly orthogonal matrix: a last Cholesky pass removes its rounding.
    return fast_orthonormalize(u)


def captured_energy(
    M: Float[Tensor, "*batch m n"],  # noqa: N803
    basis: Float[Tensor, "*batch d r"],
    side: Literal["left", "right"] = "left",
) -> Float[Tensor, "*batch"]:
    """Share of ||M||_F^2 that `basis` captures on one side, in [0, 1]; 0 for a zero matrix.

    Raises:
        ValueError: If `side` is unknown or the dimensions do not fit.
    """
    if side not in ("left", "right"):
        raise ValueError(f'side must be "left" or "right", got {side!r}.')
    M = widen(M)  # noqa: N806
    if side == "right":
        M = M.mT  # noqa: N806
    if M.shape[-2] != basis.shape[-2]:
        raise ValueError(
            f"basis lives in d = {basis.shape[-2]} dimensions, the {side} side of M in "
            f"{M.shape[-2]}."
        )
    total = M.square().sum((-2, -1))
    inside = (basis.to(M.dtype).mT @ M).square().sum((-2, -1))
    return torch.where(total > 0, inside / total, torch.zeros_like(total))
