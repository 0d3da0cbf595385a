"""Dense orthonormal projectors: where a gradient's subspace comes from and how one uses it."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from spanwise.linalg.bases import align
from spanwise.linalg.svd import Method, top_subspace
from spanwise.optim._constraint import Constraint


@dataclass(frozen=True)
class DenseProjector:
    """A pair of tall orthonormal bases around a stored matrix G, `(*batch, rows, cols)`.

    Left: R = P^T G. Right: R = G B. Full: R = P^T G B. The lift is the transpose.
    """

    left: Float[Tensor, "*batch rows r"] | None
    right: Float[Tensor, "*batch cols r"] | None

    orthonormal = True
    """Options that need P^T P = I may be combined with this projector."""

    def project(self, g: Float[Tensor, "*batch rows cols"]) -> Float[Tensor, "*batch a b"]:
        """Coordinates R of `g`; half precision is projected in float32."""
        basis = self.left if self.left is not None else self.right
        assert basis is not None
        g = g.to(basis.dtype)
        if self.left is not None:
            g = self.left.mT @ g
        return g if self.right is None else g @ self.right

    def lift(self, x: Float[Tensor, "*batch a b"]) -> Float[Tensor, "*batch rows cols"]:
        """The ambient matrix with coordinates `x`."""
        if self.left is not None:
            x = self.left @ x
        return x if self.right is None else x @ self.right.mT

    def lift_add_(self, w: Tensor, x: Float[Tensor, "*batch a b"], alpha: float) -> None:
        """`w += alpha * lift(x)`, with no temporary of w's size in full precision."""
        if self.left is not None and self.right is not None:
            a, b = self.left @ x, self.right.mT
        elif self.left is not None:
            a, b = self.left, x
        else:
            assert self.right is not None
            a, b = x, self.right.mT
        if w.dtype != a.dtype:
            # One rounding of the whole update; rounding P and X first would cost two more.
            w.add_((a @ b).to(w.dtype), alpha=alpha)
        elif w.ndim == 2:
            w.addmm_(a, b, alpha=alpha)
        else:
            w.baddbmm_(a, b, alpha=alpha)


def find_basis(
    g: Float[Tensor, "*batch rows cols"],
    rank: int,
    side: Literal["left", "right"],
    *,
    method: Method,
    old: Float[Tensor, "*batch d r"] | None,
    constraint: Constraint | None,
    generator: torch.Generator | None,
) -> Float[Tensor, "*batch d r"]:
    """The top-`rank` subspace of `g` on one side, obeying `constraint`, aligned to `old`.

    Args:
        g: Gradient, already projected by the constraint.
        rank: Number of columns r.
        side: `"left"` or `"right"`.
        method: `randomized`, `exact`, `gram`, or `warm` (one power step from `old`).
        old: The basis until now, or None.
        constraint: What the basis must keep out of or stay within.
        generator: Seeds the sketch.
    """
    if method == "warm" and old is None:
        method = "randomized"
    basis = top_subspace(
        g, rank, side=side, method=method, basis=old if method == "warm" else None,
        generator=generator,
    )  # fmt: skip
    allowed = None
    if constraint is not None:
        allowed = constraint.rows if side == "left" else constraint.columns
    if allowed is not None:
        basis = allowed.basis_inside(basis)
    if old is not None and method != "warm":
        # Moments are kept across refreshes: without this they would depend on LAPACK's signs.
        basis = align(basis, old)
    return basis
