"""Moments and cumulants of data, flattened, from sums over samples: nothing of size d^m."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from spanwise.estimators._hermite import denoised
from spanwise.linalg.symmetric import SymmetricSpace

_ENTRIES = 2**21
"""Of the powers of one block of samples."""


_LARGEST = 2**31
"""Entries of a flattening that is formed: 16 GiB in float64."""


def moment_flattening(
    X: Float[Tensor, "n d"],
    rows: SymmetricSpace,
    columns: SymmetricSpace,
    *,
    cumulant: bool = False,
    noise_variance: float | str | None = None,
    rank: int | None = None,
) -> tuple[Float[Tensor, "C c"], float]:
    """The mean of x^m, flattened, in coordinates of the distinct entries.

    Args:
        X: Samples in rows, float64.
        rows: Symmetric tensors of order n.
        columns: Symmetric tensors of order m - n.
        cumulant: The cumulant in its place; orders 3 and 4.
        noise_variance: Variance of isotropic Gaussian noise whose part is taken out; `"auto"`
            estimates it, order 4.
        rank: Of the moment without noise, where it is known: the estimate then rests on all
            eigenvalues beyond it.

    Returns:
        The flattening, and the noise variance that was used.
    """
    order = rows.order + columns.order
    n, d = X.shape
    check_terms(order, cumulant, noise_variance)
    if rows.dim * columns.dim > _LARGEST:
        size = rows.dim * columns.dim * X.element_size() / 2**30
        raise ValueError(
            f"the flattened moment of order {order} of {d} features has {rows.dim} x "
            f"{columns.dim} distinct entries, {size:.0f} GiB. Lower order, or project X on fewer "
            "principal axes."
        )
    step = max(1, _ENTRIES // rows.dim)
    if noise_variance is not None and noise_variance != "auto" and float(noise_variance):
        variance = float(noise_variance)
        return denoised(X, rows, columns, variance, step), variance
    if cumulant:
        X = centred(X)
    M = X.new_zeros(rows.dim, columns.dim)
    for start in range(0, n, step):
        block = X[start : start + step].mT
        left = rows.power(block)
        right = left if rows is columns else columns.power(block)
        M.addmm_(left, right.mT, alpha=1 / n)
    if cumulant and order == 4:
        covariance = X.mT @ X / n
        M -= 3 * symmetric_product(covariance, covariance, rows)
    if noise_variance != "auto":
        return M, 0.0
    identity = torch.eye(d, dtype=X.dtype, device=X.device)
    once = symmetric_product(X.mT @ X / n, identity, rows)
    twice = symmetric_product(identity, identity, rows)
    most = float(torch.linalg.eigvalsh(X.mT @ X / n)[0])
    variance = _estimate(M, once, twice, max(most, 0.0), rank)
    # E[(x + z)^4] has 6 s sym(E[x x] I) + 3 s^2 sym(I I) more; E[x x] is the data's less s I.
    return M - 6 * variance * once + 3 * variance**2 * twice, variance


def centred(X: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Samples less their mean; of columns that are constant, zeros instead of rounding errors."""
    size = X.abs().amax(0)
    X = X - X.mean(0)
    return X * (X.abs().amax(0) > 32 * torch.finfo(X.dtype).eps * size)


def check_terms(order: int, cumulant: bool, noise_variance: float | str | None) -> None:
    """Raise where it is not known what to take out of the moment of this order."""
    if isinstance(noise_variance, str):
        if noise_variance != "auto":
            raise ValueError(
                f'noise_variance must be a number, None or "auto", got {noise_variance!r}.'
            )
    elif noise_variance is not None and not 0 <= noise_variance < math.inf:
        raise ValueError(
            f"noise_variance must be finite and must not be negative, got {noise_variance}."
        )
    if order > 4 and cumulant:
        raise ValueError(
            f"cumulant needs order 3 or 4, got order {order}. Of higher orders only the moment is "
            "known here, with noise_variance as a number if need be."
        )
    if cumulant and noise_variance is not None:
        raise ValueError("a cumulant holds no Gaussian noise already: leave noise_variance None.")
    if order != 4 and noise_variance == "auto":
        raise ValueError(
            f'noise_variance="auto" needs order 4, got order {order}. Give a number: that of '
            "order 4, say."
        )


def symmetric_product(
    P: Float[Tensor, "d d"], Q: Float[Tensor, "d d"], space: SymmetricSpace
) -> Float[Tensor, "C C"]:
    """The flattening of the mean over all permutations of P_ij Q_kl."""
    i, j = space.index.unbind(-1)
    total = P[i, j].unsqueeze(-1) * Q[i, j] + Q[i, j].unsqueeze(-1) * P[i, j]
    for a, b in ((i, j), (j, i)):
        # Row index (i j), column index (k l): pairs (i k)(j l) and (i l)(j k), each both ways.
        total = total + P[a][:, i] * Q[b][:, j] + Q[a][:, i] * P[b][:, j]
    return total * (space.scale.unsqueeze(-1) * space.scale / 6)


def _estimate(M: Tensor, once: Tensor, twice: Tensor, most: float, rank: int | None) -> float:
    """The variance at which the moment without it has null vectors.

    Up to the true variance what is left is a moment, so positive semidefinite; beyond it no more.
    With a known rank it is the mean of all eigenvalues beyond it that becomes zero, where errors
    of the sample cancel; else the smallest one. Newton's method, between bounds.

    Args:
        M: The moment.
        once: The symmetric product of the second moment and the identity.
        twice: That of the identity and itself.
        most: The smallest eigenvalue of the second moment, an upper bound.
        rank: Of the moment without noise, or None.
    """
    count = 1 if rank is None else max(1, len(M) - rank)
    low, high, s = 0.0, most, 0.0
    rounding = 1e-14 * float(M.norm())
    for _ in range(60):
        values, vectors = torch.linalg.eigh(M - 6 * s * once + 3 * s * s * twice)
        null, v = float(values[:count].mean()), vectors[:, :count]
        low, high = (s, high) if null > 0 else (low, s)
        slope = float((v * ((6 * s * twice - 6 * once) @ v)).sum()) / count
        step = s - null / slope if slope < 0 else high
        new = step if low < step < high else (low + high) / 2
        if abs(null) < rounding or abs(new - s) <= 1e-13 * most:
            break
        s = new
    return s
