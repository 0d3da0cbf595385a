"""Balancing of a linear system: what its data excites against what its outputs show.

Rows are states: `psi_{t+1} = psi_t A` with outputs `psi_t B`.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from spanwise.linalg._arrays import at_least_float32
from spanwise.linalg.psd import psd_eigh
from spanwise.linalg.thin import rank_tolerance, thin_svd


class Balanced(NamedTuple):
    """What `balance` found: `z = psi encode` and `psi ~ z lift^T`, with `lift^T encode = I`."""

    encode: Float[Tensor, "n d"]
    """Directions that are read."""
    lift: Float[Tensor, "n d"]
    """Directions that are written."""
    values: Float[Tensor, " k"]
    """All Hankel singular values, largest first, also those beyond the d that were kept."""


def finite_gramian(
    a: Float[Tensor, "n n"], b: Float[Tensor, "n p"], horizon: int, decay: float = 1.0
) -> Float[Tensor, "n n"]:
    """`sum_{t < horizon} decay^t A^t B B^T (A^T)^t`, in log2(horizon) products of matrices.

    Finite, so that it also exists where A is unstable: the sums of h terms and of 2h terms are
    tied by `W_2h = W_h + A^h W_h (A^h)^T`.

    Args:
        a: A.
        b: B.
        horizon: Terms, at least 1.
        decay: Factor from one term to the next, above 0.

    Raises:
        ValueError: If shapes or options do not fit, or the sum overflows.
    """
    n = a.shape[-1]
    if a.shape != (n, n) or b.ndim != 2 or len(b) != n:
        raise ValueError(
            f"a must be (n, n) and b (n, p), got {tuple(a.shape)} and {tuple(b.shape)}."
        )
    if horizon < 1 or not 0 < decay < math.inf:
        raise ValueError(
            f"horizon must be at least 1 and decay above 0, got {horizon} and {decay}."
        )
    dtype = at_least_float32(torch.promote_types(a.dtype, b.dtype))
    step, first = a.to(dtype) * decay**0.5, b.to(dtype) @ b.to(dtype).mT
    total, power = first, step
    for bit in bin(horizon)[3:]:
        total = total + power @ total @ power.mT
        power = power @ power
        if bit == "1":
            total = first + step @ total @ step.mT
            power = power @ step
    if not bool(torch.isfinite(total).all()):
        raise ValueError(
            f"the Gramian overflows over horizon = {horizon}: A is unstable. Shorten the horizon, "
            "or give a decay below 1."
        )
    return (total + total.mT) / 2


def gramian_root(w: Float[Tensor, "n n"], rtol: float = 1e-14) -> Float[Tensor, "n r"]:
    """L with `L L^T = W`, without the eigenvalues up to `rtol` of the largest.

    Raises:
        ValueError: If W is not positive semi-definite.
    """
    values, vectors = psd_eigh((w + w.mT) / 2)
    kept = values > rtol * values[-1:]
    return (vectors[:, kept] * values[kept].sqrt()).flip(1)


def balance(
    excited: Float[Tensor, "n r"], seen: Float[Tensor, "n s"], rank: int | None = None
) -> Balanced:
    """Coordinates in which both Gramians are the same diagonal matrix, most important first.

    Args:
        excited: A root of the input Gramian, `L L^T = W`; states in columns over the root of
            their number do.
        seen: A root of the output Gramian.
        rank: d; None: all Hankel singular values that are not rounding. More are cut to that.

    Raises:
        ValueError: If the two live in different spaces, `rank` is below 1, or nothing that is
            excited is seen.

    Sources:
        Moore, "Principal component analysis in linear systems", 1981; Laub, Heath, Paige and
        Ward, "Computation of system balancing transformations", 1987 (the square root form).
    """
    if excited.ndim != 2 or seen.ndim != 2 or len(excited) != len(seen):
        raise ValueError(
            "excited and seen must be (n, r) and (n, s), got "
            f"{tuple(excited.shape)} and {tuple(seen.shape)}."
        )
    if rank is not None and rank < 1:
        raise ValueError(f"rank must be at least 1, or None, got {rank}.")
    product = seen.mT @ excited
    if not product.numel():
        raise ValueError("balance needs roots with at least one column, got none.")
    u, s, v = thin_svd(product)
    kept = int((s > rank_tolerance(tuple(product.shape), s.dtype) * s[0]).sum())
    if not kept:
        raise ValueError("nothing that is excited is seen: all Hankel singular values are 0.")
    d = kept if rank is None else min(rank, kept)
    inverse = s[:d].rsqrt()
    return Balanced(seen @ (u[:, :d] * inverse), excited @ (v[:, :d] * inverse), s)
