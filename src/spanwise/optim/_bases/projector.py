"""Projecting a gradient on dense bases and lifting an update back."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class DenseProjector:
    """A pair of tall orthonormal bases around a stored matrix G, `(*batch, rows, cols)`.

    Left: R = P^T G. Right: R = G B. Full: R = P^T G B. The lift is the transpose.
    """

    left: Float[Tensor, "*batch rows r"] | None
    right: Float[Tensor, "*batch cols r"] | None

    @property
    def sides(self) -> tuple[str, ...]:
        """The sides that carry a basis."""
        held = {"left": self.left, "right": self.right}
        return tuple(side for side, basis in held.items() if basis is not None)

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
