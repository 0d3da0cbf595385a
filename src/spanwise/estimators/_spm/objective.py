"""f(x) = ||V^T x^n||^2 on the unit sphere, its gradient, and Gauss-Newton's matrix."""

import torch
from jaxtyping import Float
from torch import Tensor

from spanwise.linalg.symmetric import SymmetricSpace

_ENTRIES = 2**20
"""Of the temporaries of one chunk of points: what a processor keeps in its cache."""


class Objective:
    """How much of x^n lies in a subspace of the symmetric tensors, for many points x at once.

    f is 1 exactly where x^n lies inside. Where the complement of the subspace is narrower, all is
    reckoned from that: it is cheaper, and 1 - f keeps its digits.

    Args:
        space: Symmetric tensors of order n, at least 2.
        V: Orthonormal basis of the subspace.
        rest: Orthonormal basis of its complement, or None.
    """

    def __init__(
        self,
        space: SymmetricSpace,
        V: Float[Tensor, "C k"],
        rest: Float[Tensor, "C q"] | None = None,
    ) -> None:
        self.space = space
        self.outer = rest is not None and rest.shape[-1] < V.shape[-1]
        self.basis = rest if rest is not None and self.outer else V
        self._opened: Tensor | None = None

    def value(
        self, X: Float[Tensor, "d b"]
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"], Float[Tensor, "d b"]]:
        """f, 1 - f and g = grad f / (2 n) at unit columns. `f = x^T g`."""
        powers = self.space.power(X)
        part = self.space.contract(self.basis @ (self.basis.mT @ powers), X)
        share = (part * X).sum(0)
        if self.outer:
            return 1 - share, share, X - part
        return share, 1 - share, part

    def normal_matrix(self, X: Float[Tensor, "d b"]) -> Float[Tensor, "b d d"]:
        """I - n (V x^(n-1)) (V x^(n-1))^T, positive semidefinite on the tangent space.

        It is half the Gauss-Newton matrix of 1 - f = ||rest^T x^n||^2, divided by n; the part
        along x is arbitrary.
        """
        (d, b), n, k = X.shape, self.space.order, self.basis.shape[-1]
        if self._opened is None:
            self._opened = self.space.opened(self.basis).reshape(-1, d * k)
        found = X.new_empty(b, d, d)
        lower = self.space.lower.power(X).mT
        step = max(1, _ENTRIES // (d * k))
        for start in range(0, b, step):
            chunk = slice(start, start + step)
            held = (lower[chunk] @ self._opened).view(-1, d, k)
            torch.bmm(held, held.mT, out=found[chunk])
        if self.outer:
            return found.mul_(n)
        return torch.eye(d, dtype=X.dtype, device=X.device) - n * found

    def second(self, X: Float[Tensor, "d b"]) -> Float[Tensor, "b d d"]:
        """(V V^T x^n) x^(n-2), the matrices that Newton's method needs beside the above."""
        powers = self.space.power(X)
        part = self.basis @ (self.basis.mT @ powers)
        return self.space.contract_to_matrices(powers - part if self.outer else part, X)


def shift(f: Float[Tensor, " b"], order: int) -> Float[Tensor, " b"]:
    """The shift that makes a power step never lower f, small where f is near 1.

    Sources:
        Kileel, Klock, Pereira, "Landscape analysis of an improved power method for tensor
        decomposition", 2021; the released code's rule, continuous at f = 2/3.
    """
    near = (2 * f * (1 - f)).clamp(min=0).sqrt()
    return torch.where(f > 2 / 3, near, 1 - f / 2) * ((order - 1) / order) ** 0.5


def normalized(X: Float[Tensor, "d b"]) -> Float[Tensor, "d b"]:
    """Columns of unit length."""
    return X / X.norm(dim=0)


def power_step(
    X: Float[Tensor, "d b"], f: Float[Tensor, " b"], g: Float[Tensor, "d b"], order: int
) -> Float[Tensor, "d b"]:
    """One shifted power step of every point."""
    return normalized(g + shift(f, order) * X)


def tangent_step(
    matrix: Float[Tensor, "b d d"], X: Float[Tensor, "d b"], r: Float[Tensor, "d b"]
) -> tuple[Float[Tensor, "d b"], Tensor]:
    """The solution of `matrix` s = r in each tangent space, and where `matrix` is not definite.

    Args:
        matrix: Symmetric; its part along x is not used.
        X: Unit columns.
        r: Right sides, tangent.
    """
    x = X.mT.unsqueeze(-1)
    mx = matrix @ x
    # P M P + x x^T, written out: two rank-one corrections, no product of d x d matrices.
    inner = x.mT @ mx
    held = matrix - mx @ x.mT - x @ mx.mT + (inner + 1) * (x @ x.mT)
    held.diagonal(dim1=-2, dim2=-1).add_(1e-12)
    factor, failed = torch.linalg.cholesky_ex(held)
    factor = torch.where((failed > 0).view(-1, 1, 1), torch.eye(len(X)).to(factor), factor)
    step = torch.cholesky_solve(r.mT.unsqueeze(-1), factor).squeeze(-1).mT
    return step - X * (X * step).sum(0), failed > 0
