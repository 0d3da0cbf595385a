"""f(x) = ||V^T x^n||^2 on the unit sphere, its gradient, and Gauss-Newton's matrix."""

from functools import cached_property

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
        self.mean_defect = max(1 - V.shape[-1] / space.dim, 0.0) or 1 / space.dim
        """Of 1 - f over random tensors of norm 1; 1 / C where it would be zero."""
        # With the scales inside, monomials go in and entries come out.
        self._into = (self.basis * space.scale.unsqueeze(-1)).mT
        self._out = self.basis / space.scale.unsqueeze(-1)

    @cached_property
    def opened(self) -> Float[Tensor, "c dk"]:
        """The basis as a map from powers of order n - 1 to d x k matrices."""
        return self.space.opened(self.basis).reshape(self.space.lower.dim, -1)

    def value(
        self, X: Float[Tensor, "d b"]
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"], Float[Tensor, "d b"]]:
        """f, 1 - f and g = grad f / (2 n) at unit columns. `f = x^T g`."""
        part = self._out @ (self._into @ self.space.monomials(X))
        part = self.space.contract(part, X)
        share = torch.linalg.vecdot(part, X, dim=0)
        if self.outer:
            return 1 - share, share, X - part
        return share, 1 - share, part

    def missing(self, S: Float[Tensor, "C L"]) -> float:
        """The mean of 1 - f over orthonormal tensors: how much of them is outside."""
        share = float((self.basis.mT @ S).square().sum()) / S.shape[1]
        return share if self.outer else 1 - share

    def normal_matrix(self, X: Float[Tensor, "d b"], along: float = 1.0) -> Float[Tensor, "b d d"]:
        """The matrix n J J^T + `along` x x^T with J = rest x^(n-1): what Gauss-Newton solves with.

        Half the Gauss-Newton matrix of 1 - f = ||rest^T x^n||^2, divided by n. Of the inner basis
        it is I + (n - 1) x x^T - n (V x^(n-1)) (V x^(n-1))^T: positive semidefinite as well.
        """
        (d, b), n, k = X.shape, self.space.order, self.basis.shape[-1]
        lower = self.space.lower.power(X).mT
        x = X.mT.unsqueeze(-1)
        found = (x * (along if self.outer else along + n - 1)) @ x.mT
        if not self.outer:
            found.diagonal(dim1=-2, dim2=-1).add_(1)
        if not k:  # everything is inside of a flattening of full rank
            return found
        sign = n if self.outer else -n
        step = max(1, _ENTRIES // (d * k))
        for start in range(0, b, step):
            chunk = slice(start, start + step)
            held = (lower[chunk] @ self.opened).view(-1, d, k)
            found[chunk].baddbmm_(held, held.mT, alpha=sign)
        return found


def shift(f: Float[Tensor, " b"], order: int) -> Float[Tensor, " b"]:
    """The shift with which a power step never lowers f, small where f is near 1.

    Sources:
        Kileel and Pereira, "Subspace power method for symmetric tensor decomposition", 2019,
        arXiv 1912.04007, section 4.
    """
    factor = (2 * (order - 1) / order) ** 0.5 if order <= 4 else (2 - 2**0.5) * order**0.5
    near = f.clamp(0.5, 1)
    return torch.addcmul(near, near, near, value=-1).sqrt_().mul_(factor)


def normalized(X: Float[Tensor, "d b"]) -> Float[Tensor, "d b"]:
    """Columns of unit length."""
    return X / torch.linalg.vector_norm(X, dim=0)


def power_step(
    X: Float[Tensor, "d b"], f: Float[Tensor, " b"], g: Float[Tensor, "d b"], order: int
) -> Float[Tensor, "d b"]:
    """One shifted power step of every point."""
    return normalized(g + shift(f, order) * X)


def factored(matrix: Float[Tensor, "b d d"]) -> tuple[Float[Tensor, "b d d"], Tensor]:
    """Cholesky factors, and which matrices have none (the identity takes its place).

    Args:
        matrix: Symmetric; is overwritten.
    """
    matrix.diagonal(dim1=-2, dim2=-1).add_(10 * torch.finfo(matrix.dtype).eps)
    factor, info = torch.linalg.cholesky_ex(matrix)
    failed = info > 0
    if bool(failed.any()):
        factor[failed] = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    return factor, failed


def tangent_step(
    factor: Float[Tensor, "b d d"], X: Float[Tensor, "d b"], r: Float[Tensor, "d b"]
) -> Float[Tensor, "d b"]:
    """The tangent part of the solutions of factor factor^T s = r; r is tangent at unit X."""
    step = torch.cholesky_solve(r.mT.unsqueeze(-1), factor).squeeze(-1).mT
    return step - X * torch.linalg.vecdot(X, step, dim=0)
