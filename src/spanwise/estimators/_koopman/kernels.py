"""Kernels, and the coordinates that a few landmarks give."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from spanwise.estimators._kernels import gram, nearer_zero
from spanwise.linalg.nystrom import pivoted_cholesky
from spanwise.linalg.psd import psd_eigh

Kernel = Literal["linear", "rbf", "polynomial"] | Callable[[Any, Any], Any]


class KernelOptions(NamedTuple):
    """A kernel with its parameters filled in."""

    kernel: Kernel
    gamma: float
    degree: int
    coef0: float

    def __call__(self, a: Float[Tensor, "N n"], b: Float[Tensor, "m n"]) -> Float[Tensor, "N m"]:
        """The kernel of every row of `a` with every row of `b`."""
        if self.kernel == "polynomial":
            return (a @ b.mT).mul_(self.gamma).add_(self.coef0).pow_(self.degree)
        if self.kernel == "rbf":
            # By products: distances to rounding of the squares, which exp does not feel near zero.
            a, b = nearer_zero(a, b)
            squares = (a.square().sum(1, keepdim=True), b.square().sum(1))
            distances = torch.addmm(squares[1].expand(len(a), -1), a, b.mT, alpha=-2)
            return distances.add_(squares[0]).clamp_(min=0).mul_(-self.gamma).exp_()
        return gram(self.kernel, self.gamma, a, b)

    def diagonal(self, a: Float[Tensor, "N n"]) -> Float[Tensor, " N"]:
        """The kernel of every row with itself."""
        if self.kernel == "rbf":
            return torch.ones_like(a[:, 0])
        if self.kernel == "linear":
            return a.square().sum(1)
        if self.kernel == "polynomial":
            return (a.square().sum(1) * self.gamma + self.coef0) ** self.degree
        return torch.cat([self(row[None], row[None])[0] for row in a])


def default_gamma(x: Float[Tensor, "N n"]) -> float:
    """1 / (n times the variance of x), or 1 where nothing varies."""
    spread = float(x.var(correction=0))
    return 1 / (x.shape[1] * spread) if spread > 0 else 1.0


def choose_landmarks(
    kernel: KernelOptions, x: Float[Tensor, "N n"], most: int
) -> Float[Tensor, "m n"]:
    """`x` itself if it has at most so many rows, else those that pivoted Cholesky picks."""
    if len(x) <= most:
        return x
    found = pivoted_cholesky(
        kernel.diagonal(x), lambda i: kernel(x, x[i : i + 1])[:, 0], most, rtol=1e-14
    )
    return x[found.pivots]


def whitener(own: Float[Tensor, "m m"], rank_tol: float, rank: int | None) -> Float[Tensor, "m r"]:
    """P with k(x, landmarks) P the kernel coordinates of x: P = Q / Sigma, largest first.

    Args:
        own: Gram matrix of the landmarks, Q Sigma^2 Q^T.
        rank_tol: Sigma^2 counts above this share of the largest.
        rank: Columns at most.

    Raises:
        ValueError: If the matrix has numerical rank 0, or is not positive semi-definite.
    """
    values, vectors = psd_eigh((own + own.mT) / 2)
    kept = int((values > rank_tol * values[-1]).sum())
    if not kept:
        raise ValueError(
            "the Gram matrix has numerical rank 0: all states are alike, or rank_tol is too large."
        )
    kept = kept if rank is None else min(kept, rank)
    return (vectors[:, -kept:] * values[-kept:].rsqrt()).flip(1)
