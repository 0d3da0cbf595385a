"""The algebra of a step on weights whose rows are spread over processes (FSDP2, Shard(0)).

A gradient G (m x n) is never gathered on an ordinary step. With its rows G_i on process i:

- a right basis B (n x r) is whole everywhere; R_i = G_i B, its moments and the update are local;
- a left basis P (m x r) is spread like the weight; R = sum_i P_i^T G_i is one all-reduce of r x n,
  its moments are whole everywhere and the update P_i X is local;
- off output directions U, an update D takes one all-reduce of U^T D; off input directions none.

At a refresh thin matrices of r + 8 columns travel; see `_leading_subspace` and `find_sharded`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from typing_extensions import override

from spanwise.linalg._arrays import at_least_float32, gaussian, peak_sign, qr
from spanwise.linalg.svd import MatrixSide, Method, top_subspace
from spanwise.optim._bases.kinds import BasisKind, Request
from spanwise.optim._bases.projector import DenseProjector
from spanwise.optim._bases.rows import line_norms
from spanwise.optim._guard.constraint import Constraint, Moved, SideConstraint
from spanwise.optim._sharding.shard import Shard

# As `linalg.svd.top_subspace` has them: a sharded run follows the trajectory of a single process.
_OVERSAMPLE, _POWER = 8, 2


# -- the guard ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ShardedSide(SideConstraint):
    """A side whose vectors are spread: this process has some rows of them and of the bases."""

    whole: SideConstraint
    """The same with all rows, as it was before it was spread."""
    shard: Shard

    @property
    @override
    def free(self) -> int:
        """How many dimensions an update may still use on this side."""
        return self.whole.free

    @override
    def rows(self, x: Tensor) -> Tensor:
        """Project the columns of `x`, whose rows are spread: one all-reduce of p x k."""
        if self.allowed is not None:
            return self.allowed @ self.shard.sum(self.allowed.mT @ x)
        assert self.blocked is not None
        return x - self.blocked @ self.shard.sum(self.blocked.mT @ x)

    @override
    def columns(self, x: Tensor) -> Tensor:
        """Project the rows of `x`, whose columns are spread."""
        return self.rows(x.mT).mT

    @override
    def basis_inside(self, basis: Tensor) -> Tensor:
        """This process's rows of an orthonormal basis near `basis` that obeys exactly."""
        return self.shard.across(self.whole.to(basis).basis_inside, basis)

    @override
    def to(self, like: Tensor, moved: Moved | None = None) -> SideConstraint:
        """The whole constraint on `like`'s device and in its dtype."""
        return self.whole.to(like, moved)


def spread_constraint(constraint: Constraint, shard: Shard) -> Constraint:
    """A constraint for a parameter of which this process holds the rows of `shard` only."""

    def spread(side: SideConstraint | None) -> SideConstraint | None:
        if side is None:
            return None
        parts = [None if b is None else shard.rows(b) for b in (side.blocked, side.allowed)]
        return ShardedSide(*parts, whole=side, shard=shard)

    return replace(
        constraint, rows=spread(constraint.rows), vector=spread(constraint.vector), sharded=True
    )


# -- the projection -------------------------------------------------------------------------


@dataclass(frozen=True)
class ShardedProjector(DenseProjector):
    """Dense bases around a gradient of which this process has the rows of `shard`.

    Only a left basis differs from one process; its rows are spread like those of the gradient.
    """

    shard: Shard

    @override
    def project(self, g: Tensor) -> Tensor:
        """Coordinates R of the whole gradient: one all-reduce of their size with a left basis."""
        r = super().project(g)
        return r if self.left is None else self.shard.sum(r)


# -- the refresh ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ShardedRequest(Request):
    """A request for a whole basis of a gradient that is spread; what is thin in it is whole."""

    shard: Shard
    spread: Tensor
    """This process's rows of the gradient. `g` has the shape of the whole one, and its entries
    only for kinds that need them all."""

    @override
    def leading(self, method: Method, basis: Tensor | None) -> Tensor:
        """The top-r subspace: sketched without gathering the gradient, or from all of it."""
        if method in ("randomized", "warm"):
            return _leading_subspace(
                self.spread, self.rank, self.side, self.shard, warm=basis,
                generator=self.generator,
            )  # fmt: skip
        # Full decompositions need every entry at once, for this one parameter and this one step.
        return top_subspace(self.shard.gather(self.spread), self.rank, self.side, method)

    @override
    def norms(self) -> Tensor:
        """Norms of all columns; a selection of rows across processes is refused beforehand."""
        own = line_norms(self.spread, self.side).double()
        return self.shard.sum(own.square()).sqrt()


def find_sharded(
    kind: BasisKind, request: Request, shard: Shard
) -> Tensor | tuple[Tensor | None, ...]:
    """The whole basis (or selection) that `kind` finds for a gradient spread over processes.

    Args:
        kind: How it is found; its own code runs on whole thin matrices.
        request: With this process's rows of the gradient, a whole old basis, and the constraint
            of the side.
        shard: Which rows those are.
    """
    own, allowed = request.g, request.allowed
    if isinstance(allowed, ShardedSide):
        allowed = allowed.to(own)
    # A stand-in without memory tells the shape to kinds that look at nothing else.
    g = own.new_zeros(()).expand(shard.size, own.shape[-1])
    if kind.needs_entries:
        g = shard.gather(own)
    fields = {name: getattr(request, name) for name in ("rank", "side", "old", "generator")}
    found = kind.find(
        ShardedRequest(
            **fields, g=g, allowed=allowed, options=request.options, shard=shard, spread=own
        )
    )
    if isinstance(found, tuple):
        return tuple(None if x is None else shard.agree(x) for x in found)
    return shard.agree(found)


@dataclass(frozen=True)
class _Thin:
    """Tall matrices along one side of a spread gradient: whole, or spread with its rows."""

    shard: Shard | None

    def sum(self, x: Tensor) -> Tensor:
        return x if self.shard is None else self.shard.sum(x)

    def qr(self, x: Tensor) -> Tensor:
        return qr(x) if self.shard is None else self.shard.across(qr, x)

    def own(self, x: Tensor) -> Tensor:
        return x if self.shard is None else self.shard.rows(x)

    def whole(self, x: Tensor) -> Tensor:
        return x if self.shard is None else self.shard.gather(x)

    def largest(self, x: Tensor) -> float:
        value = float(x.abs().max()) if x.numel() else 0.0
        return value if self.shard is None else self.shard.largest(value)


def _leading_subspace(
    g: Tensor,
    rank: int,
    side: MatrixSide,
    shard: Shard,
    *,
    warm: Tensor | None,
    generator: torch.Generator,
) -> Tensor:
    """`top_subspace(G, rank, side, "randomized" or "warm")` of a spread G, whole.

    A pass is Y = sum_i G_i^T (G_i X), one all-reduce of n x (r + 8), where vectors live on the
    columns. Where the single process keeps its vectors on the rows, so does this, and gathers
    m x (r + 8) to orthonormalise them.
    """
    g = g.to(at_least_float32(g.dtype))
    rows, columns = _Thin(shard), _Thin(None)
    scale = rows.largest(g) or 1.0
    near, far = (rows, columns) if side == "left" else (columns, rows)
    # Products of M = G or G^T, whose left subspace is asked for; each ends where it must be.
    ahead: Callable[[Tensor], Tensor] = (
        (lambda x: g @ x) if side == "left" else (lambda x: shard.sum(g.mT @ x))
    )
    back: Callable[[Tensor], Tensor] = (
        (lambda y: shard.sum(g.mT @ y)) if side == "left" else (lambda y: g @ y)
    )
    d, e = (shard.size, g.shape[-1]) if side == "left" else (g.shape[-1], shard.size)
    if warm is not None:
        y = ahead(back(near.own(warm.to(g.dtype)) / scale))
        # As in one process: columns that G does not reach stay as they were.
        keep = torch.finfo(y.dtype).eps * (near.largest(y) or 1.0)
        return qr(near.whole(y.add_(near.own(warm.to(g.dtype)), alpha=keep)))
    sketch = gaussian(
        (e, min(rank + _OVERSAMPLE, d, e)), generator=generator, dtype=g.dtype, device=g.device
    )
    x = far.own(sketch)
    if d < e:
        y = ahead(x / scale)
        for _ in range(_POWER - 1):
            y = near.qr(ahead(back(y / scale)))
        w = back(y / scale)
        image = ahead(w) @ _leading_eigenvectors(far.sum(w.mT @ w), rank)
    else:
        for _ in range(_POWER):
            x = far.qr(back(ahead(x / scale)))
        w = ahead(x / scale)
        image = w @ _leading_eigenvectors(near.sum(w.mT @ w), rank)
    u = torch.linalg.qr(near.whole(image)).Q
    return u * peak_sign(u)


def _leading_eigenvectors(gram: Tensor, rank: int) -> Tensor:
    return torch.linalg.eigh(gram).eigenvectors.flip(-1)[..., :rank]
