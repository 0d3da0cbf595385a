"""What one parameter may do: the exact projection of its update off `avoid`, into `within`.

For a map W (m x n) an output basis U and an input basis V, `avoid` turns an update D into
(I - UU^T) D (I - VV^T) and `within` into UU^T D VV^T. The algebra happens on the matrix as
it is stored, so the sides here are its rows and columns; `spanwise.layouts` says which of
them is the map's output.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from spanwise.layouts import Layout, Side, is_transposed, stored_matrix
from spanwise.linalg.bases import orthonormalize, outside
from spanwise.optim._sharding.shard import is_sharded

BiasRule = Literal["freeze", "allow"]
Moved = dict[tuple[int, torch.device, torch.dtype], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class SideConstraint:
    """The allowed directions on one side of a stored matrix, `d` long.

    Exactly one of the two is held: `blocked` forbids its span, `allowed` permits only its span.
    """

    blocked: Float[Tensor, "*batch d p"] | None = None
    allowed: Float[Tensor, "*batch d q"] | None = None

    @classmethod
    def build(cls, avoid: Tensor | None, within: Tensor | None) -> "SideConstraint | None":
        """Both rules as one: `within` intersected with the complement of `avoid`.

        Projecting on one and then the other would satisfy neither when they are oblique.
        """
        if within is None:
            return None if avoid is None else cls(blocked=avoid)
        if avoid is None:
            return cls(allowed=within)
        if within.ndim > 2:
            raise ValueError(
                "avoid and within on the same side of stacked experts are not supported together; "
                "give one of them."
            )
        dtype = torch.promote_types(avoid.dtype, within.dtype)
        avoid, within = (_in_dtype(basis, _working(dtype)) for basis in (avoid, within))
        # {K c : A^T K c = 0}: the null space of the small matrix A^T K.
        _, values, vh = torch.linalg.svd(avoid.mT @ within, full_matrices=True)
        null = int((values > 1e-6).sum())
        return cls(allowed=orthonormalize(within @ vh[null:].mT))

    @property
    def free(self) -> int:
        """How many dimensions an update may still use on this side."""
        if self.allowed is not None:
            return self.allowed.shape[-1]
        assert self.blocked is not None
        return self.blocked.shape[-2] - self.blocked.shape[-1]

    def rows(self, x: Float[Tensor, "*batch d k"]) -> Float[Tensor, "*batch d k"]:
        """Project the columns of `x` (vectors of this side) onto what is allowed."""
        if self.allowed is not None:
            return self.allowed @ (self.allowed.mT @ x)
        assert self.blocked is not None
        return x - self.blocked @ (self.blocked.mT @ x)

    def columns(self, x: Float[Tensor, "*batch k d"]) -> Float[Tensor, "*batch k d"]:
        """Project the rows of `x` (vectors of this side) onto what is allowed."""
        if self.allowed is not None:
            return (x @ self.allowed) @ self.allowed.mT
        assert self.blocked is not None
        return x - (x @ self.blocked) @ self.blocked.mT

    def basis_inside(self, basis: Float[Tensor, "*batch d r"]) -> Float[Tensor, "*batch d r"]:
        """An orthonormal basis of as many columns, near `basis`, that obeys exactly.

        Projecting and normalising would blow up a column that lies almost wholly in the
        forbidden span; Householder QR of [forbidden | basis] cannot.
        """
        if self.allowed is not None:
            # Coordinates first: a QR in the small space can never leave it.
            return self.allowed @ orthonormalize(self.allowed.mT @ basis)
        assert self.blocked is not None
        return outside(basis, self.blocked)

    def to(self, like: Tensor, moved: Moved | None = None) -> "SideConstraint":
        """The same on `like`'s device, in its dtype (float32 for half precision).

        `moved` remembers: layers that read one activation share one basis, on a GPU too.
        """
        dtype = _working(like.dtype)
        moved = {} if moved is None else moved

        def move(basis: Tensor | None) -> Tensor | None:
            if basis is None:
                return None
            key = (id(basis), like.device, dtype)
            held = moved.get(key)
            # A copied or unpickled memory has the ids of another process.
            if held is None or held[0] is not basis:
                held = moved[key] = (basis, _in_dtype(basis.to(like.device), dtype))
            return held[1]

        return SideConstraint(move(self.blocked), move(self.allowed))


@dataclass(frozen=True)
class Constraint:
    """What one parameter's update must obey."""

    layout: Layout
    rows: SideConstraint | None = None
    """On the left of the stored matrix."""
    columns: SideConstraint | None = None
    """On the right of the stored matrix."""
    vector: SideConstraint | None = None
    """For a bias: on the vector itself."""
    frozen: bool = False
    """No update at all: nothing is left, or a bias that an input entry freezes."""
    sides: tuple[Side, ...] = field(default=())
    sharded: bool = False
    """Whether rows and vector are those that this process holds of a sharded parameter."""

    def fits(self, like: Tensor) -> bool:
        """Whether every basis is where `like` is, sharded like it, in a precision fit for it."""
        if self.sharded != is_sharded(like):
            return False
        held = [s for s in (self.rows, self.columns, self.vector) if s is not None]
        bases = [b for s in held for b in (s.blocked, s.allowed) if b is not None]
        return all(b.device == like.device and b.dtype == _working(like.dtype) for b in bases)

    def to(self, like: Tensor, moved: Moved | None = None) -> "Constraint":
        """The same, whole, on `like`'s device and in a precision fit for its dtype."""
        return replace(
            self,
            sharded=False,
            rows=self.rows and self.rows.to(like, moved),
            columns=self.columns and self.columns.to(like, moved),
            vector=self.vector and self.vector.to(like, moved),
        )

    def matrix(self, d: Float[Tensor, "*batch rows cols"]) -> Float[Tensor, "*batch rows cols"]:
        """Project a stored matrix (an update or a gradient) from both sides."""
        if self.frozen:
            return torch.zeros_like(d)
        if self.rows is not None:
            d = self.rows.rows(d)
        if self.columns is not None:
            d = self.columns.columns(d)
        return d

    def apply(self, update: Tensor) -> Tensor:
        """Project an update of the parameter's own shape; computed in at least float32."""
        if self.frozen:
            return torch.zeros_like(update)
        wide = update if update.dtype in (torch.float32, torch.float64) else update.float()
        if self.vector is not None:
            return self.vector.columns(wide.unsqueeze(-2)).squeeze(-2)
        return self.matrix(stored_matrix(wide, self.layout)).reshape(update.shape)

    def inside(self, update: Tensor) -> Tensor:
        """Norm of the part of `update` that the constraint forbids, relative to its norm."""
        norm = update.float().norm().clamp(min=torch.finfo(torch.float32).tiny)
        return (update.float() - self.apply(update).float()).norm() / norm


def _working(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32


def _in_dtype(basis: Tensor, dtype: torch.dtype) -> Tensor:
    """The basis in `dtype`, orthonormal to its rounding: I - UU^T projects only then."""
    wide = basis.to(dtype)
    return orthonormalize(wide) if dtype.itemsize > basis.dtype.itemsize else wide


def weight_constraint(
    layout: Layout, avoid: dict[Side, Tensor], within: dict[Side, Tensor]
) -> Constraint:
    """The constraint of a weight from its entries' bases by side of the map."""
    sides = tuple(side for side in ("output", "input") if side in avoid or side in within)
    built = {side: SideConstraint.build(avoid.get(side), within.get(side)) for side in sides}
    rows, columns = built.get("output"), built.get("input")
    if is_transposed(layout):
        rows, columns = columns, rows
    frozen = any(side is not None and side.free <= 0 for side in (rows, columns))
    return Constraint(layout, rows=rows, columns=columns, frozen=frozen, sides=sides)
