"""Symmetric positive semi-definite systems, singular ones included."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from spanwise.linalg._arrays import at_least_float32


class PSDSolution(NamedTuple):
    """What `psd_solve` found."""

    x: Tensor
    rank: int
    """Directions that were solved for; the others keep the anchor."""


def psd_solve(
    a: Float[Tensor, "n n"],
    b: Float[Tensor, "n k"],
    x0: Float[Tensor, "n k"] | None = None,
    *,
    rtol: float | None = None,
) -> PSDSolution:
    """`x0 + A^+ (b - A x0)`: the solution of `A x = b` nearest to `x0`.

    By Cholesky where A is well enough conditioned for it, otherwise from its eigenvectors without
    those at rounding: what `x0` has along them stays. An inverse of a nearly singular A would
    fill them with noise instead.

    Args:
        a: Symmetric positive semi-definite.
        b: Right sides as columns.
        x0: The anchor; zeros by default.
        rtol: Eigenvalues up to this share of the largest count as zero; `n` roundings of the
            dtype by default.

    Raises:
        ValueError: If shapes do not fit, A is not finite, or an eigenvalue is clearly negative.
    """
    n = a.shape[-1]
    if a.shape != (n, n) or b.ndim != 2 or b.shape[0] != n:
        raise ValueError(
            f"a must be (n, n) and b (n, k), got {tuple(a.shape)} and {tuple(b.shape)}."
        )
    if x0 is not None and x0.shape != b.shape:
        raise ValueError(
            f"x0 must have the shape of b, got {tuple(x0.shape)} and {tuple(b.shape)}."
        )
    dtype = at_least_float32(a.dtype)
    a, b = a.to(dtype), b.to(dtype)
    cut = n * torch.finfo(dtype).eps if rtol is None else rtol
    residual = b if x0 is None else b - a @ x0.to(dtype)
    factor, failed = torch.linalg.cholesky_ex(a)
    if not int(failed) and well_conditioned(a, factor, 10 * cut):
        change, rank = torch.cholesky_solve(residual, factor), n
    else:
        values, vectors = psd_eigh(a)
        kept = values > cut * values[-1]
        vectors, rank = vectors[:, kept], int(kept.sum())
        change = vectors @ ((vectors.mT @ residual) / values[kept].unsqueeze(-1))
    return PSDSolution(change if x0 is None else x0.to(dtype) + change, rank)


def psd_eigh(a: Float[Tensor, "n n"]) -> tuple[Float[Tensor, " n"], Float[Tensor, "n n"]]:
    """Eigenvalues, smallest first and none below zero, and eigenvectors.

    Raises:
        ValueError: If A is not finite, or has an eigenvalue below -1e-5 of the largest.
    """
    if not bool(torch.isfinite(a).all()):
        raise ValueError("the matrix holds NaN or infinity.")
    values, vectors = torch.linalg.eigh(a)
    if n := a.shape[-1]:
        smallest, largest = float(values[0]), float(values[n - 1])
        if smallest < -NEGATIVE * max(largest, 0.0):
            raise ValueError(
                "the matrix is not positive semi-definite: its eigenvalues go from "
                f"{smallest:.3g} to {largest:.3g}."
            )
    return values.clamp_(min=0), vectors


NEGATIVE = 1e-5
"""Share of the largest eigenvalue that a negative one may have as the rounding of sums."""


def well_conditioned(a: Float[Tensor, "n n"], factor: Float[Tensor, "n n"], share: float) -> bool:
    """Whether the smallest eigenvalue is above a share of the largest, from Cholesky's factor.

    A few steps of power and inverse iteration; the estimates approach from inside.
    """
    n = a.shape[-1]
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(n, 2, generator=generator, dtype=torch.float64).to(a)
    up, down = start[:, :1], start[:, 1:]
    largest = smallest = torch.ones((), dtype=a.dtype)
    for _ in range(6):
        up = a @ (up / torch.linalg.vector_norm(up))
        largest = torch.linalg.vector_norm(up)
        down = torch.cholesky_solve(down / torch.linalg.vector_norm(down), factor)
        smallest = 1 / torch.linalg.vector_norm(down)
    return bool(torch.isfinite(smallest)) and bool(smallest > share * largest)
