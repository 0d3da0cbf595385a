"""Where the basis of a gradient's subspace comes from: one small object for each kind."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from spanwise.linalg.bases import align
from spanwise.linalg.sketches import srht_basis
from spanwise.linalg.svd import Method, top_subspace
from spanwise.optim._bases.grassmann import WALK_ANGLE, jump, track, walk
from spanwise.optim._bases.rows import choose_rows, line_norms
from spanwise.optim._guard.constraint import SideConstraint


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a basis is to be found for."""

    g: Tensor
    """The stored gradient, `(*stack, rows, cols)`, already held to the constraint."""
    rank: int
    """Columns r of the basis."""
    side: Literal["left", "right"]
    """Which side of the stored gradient the basis multiplies."""
    old: Tensor | None
    """The basis until now, `(*stack, d, r)`; None for the first."""
    allowed: SideConstraint | None
    """What avoid and within leave on this side."""
    generator: torch.Generator
    """Seeded by optimizer, parameter, step and side."""
    options: Mapping[str, Any]
    """The parameter group."""

    @property
    def dim(self) -> int:
        """Ambient dimension d of this side."""
        return self.g.shape[-2 if self.side == "left" else -1]

    def leading(self, method: Method, basis: Tensor | None) -> Tensor:
        """The top-r subspace of the gradient, from `basis` where the method is warm."""
        return top_subspace(
            self.g, self.rank, self.side, method, basis=basis, generator=self.generator
        )

    def norms(self) -> Tensor:
        """Norms of the gradient's rows, or of its columns if this side is the right one."""
        return line_norms(self.g, self.side)


@dataclass(frozen=True, kw_only=True)
class BasisKind:
    """A way to find bases."""

    find: Callable[[Request], Any]
    """Returns an orthonormal basis, `(*stack, d, r)`, that obeys `allowed`; a kind that selects
    returns indices `(*stack, r)` of rows or columns and their scale, or None for scale 1."""
    needs_gradient: bool = True
    """False for draws that look at shapes only: they are made on a zero gradient as well."""
    needs_entries: bool = False
    """Whether `find` reads `Request.g` itself; then a sharded gradient is gathered for it."""
    selects: bool = False
    """Whether the basis is a selection of rows or columns, kept as indices."""


def find_svd(request: Request) -> Tensor:
    """The top-r subspace of the gradient, aligned to the old basis."""
    method, old = request.options["svd"], request.old
    if method == "warm" and old is None:
        method = "randomized"
    basis = request.leading(method, old if method == "warm" else None)
    if request.allowed is not None:
        basis = request.allowed.basis_inside(basis)
    if old is not None and method != "warm":
        # Moments are kept across refreshes: without this they would depend on LAPACK's signs.
        basis = align(basis, old)
    return basis


def find_identity(request: Request) -> Tensor:
    """The first r coordinate directions: with r = d, the method without a subspace."""
    stack = request.g.shape[:-2]
    eye = torch.eye(request.dim, request.rank, dtype=request.g.dtype, device=request.g.device)
    basis = eye.expand(*stack, -1, -1)
    return basis if request.allowed is None else request.allowed.basis_inside(basis.contiguous())


def find_srht(request: Request) -> Tensor:
    """A random orthonormal basis that mixes all coordinates, drawn without the gradient."""
    g = request.g
    basis = srht_basis(
        request.dim, request.rank, generator=request.generator, batch=g.shape[:-2], dtype=g.dtype,
        device=g.device,
    )  # fmt: skip
    return basis if request.allowed is None else request.allowed.basis_inside(basis)


def find_rows(request: Request) -> tuple[Tensor, Tensor | None]:
    """Rows (or columns) of the gradient, by their norms or by chance: options `select`, `rho_max`.

    A selection cannot be turned into the allowed directions; its coordinates are held to them.
    """
    options = request.options
    return choose_rows(
        request.norms(),
        request.rank,
        options.get("select", "topr"),
        request.generator,
        rho_max=options.get("rho_max"),
    )


def find_jump(request: Request) -> Tensor:
    """A random subspace, whatever the gradient."""
    return jump(
        (*request.g.shape[:-2], request.dim, request.rank),
        allowed=request.allowed,
        generator=request.generator,
        like=request.g,
    )


def find_walk(request: Request) -> Tensor:
    """A random move of the old basis by `walk_angle`; the first basis is a jump."""
    if request.old is None:
        return find_jump(request)
    angle = request.options.get("walk_angle", WALK_ANGLE)
    return walk(request.old, angle, allowed=request.allowed, generator=request.generator)


def find_track(request: Request) -> Tensor:
    """The old basis, one of its directions turned towards the gradient by at most `walk_angle`."""
    return track(
        request.g,
        request.old,
        request.rank,
        request.side,
        request.options.get("walk_angle", WALK_ANGLE),
        allowed=request.allowed,
        generator=request.generator,
    )


BASES: dict[str, BasisKind] = {
    "svd": BasisKind(find=find_svd),
    "jump": BasisKind(find=find_jump, needs_gradient=False),
    "walk": BasisKind(find=find_walk, needs_gradient=False),
    "track": BasisKind(find=find_track, needs_entries=True),
    "rows": BasisKind(find=find_rows, selects=True),
    "srht": BasisKind(find=find_srht, needs_gradient=False),
    "identity": BasisKind(find=find_identity, needs_gradient=False),
}
"""Every kind of basis by the name that the option `basis` takes."""
