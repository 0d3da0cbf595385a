"""Bases that move on the Grassmannian at a refresh: anywhere, at random, or to the gradient."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from spanwise.linalg import grassmann
from spanwise.linalg._arrays import at_least_float32, gaussian
from spanwise.linalg.bases import orthonormalize
from spanwise.linalg.svd import top_subspace
from spanwise.optim._guard.constraint import SideConstraint

WALK_ANGLE = 0.3
"""Largest principal angle of one move, in radians, where nothing else is asked."""


def jump(
    shape: Sequence[int],
    *,
    allowed: SideConstraint | None,
    generator: torch.Generator,
    like: Tensor,
) -> Float[Tensor, "*stack d r"]:
    """A subspace drawn uniformly from those that are allowed.

    Args:
        shape: `(*stack, d, r)`.
        allowed: What avoid and within leave of R^d.
        generator: Source of the draw.
        like: Gives the dtype (at least float32) and the device.
    """
    drawn = gaussian(
        shape, generator=generator, dtype=at_least_float32(like.dtype), device=like.device
    )
    return orthonormalize(drawn) if allowed is None else allowed.basis_inside(drawn)


def walk(
    old: Float[Tensor, "*stack d r"],
    angle: float,
    *,
    allowed: SideConstraint | None,
    generator: torch.Generator,
) -> Float[Tensor, "*stack d r"]:
    """Along the geodesic of a Gaussian tangent, until the largest principal angle is `angle`.

    Without that scale the tangent's singular values, about sqrt(d), would wind it around many
    times: a jump in disguise. Where r directions are all there are, there is nowhere to go.

    Args:
        old: The basis until now.
        angle: In `[0, pi/2]` radians; 0 leaves `old` exactly as it is.
        allowed: What avoid and within leave; the tangent is held to it as well.
        generator: Source of the direction.
    """
    free = old.shape[-2] if allowed is None else allowed.free
    if allowed is not None:
        old = allowed.basis_inside(old)  # it may be from before this constraint
    if angle == 0 or old.shape[-1] >= free:
        return old
    u = gaussian(old.shape, generator=generator, dtype=old.dtype, device=old.device)
    return grassmann.move(old, u if allowed is None else allowed.rows(u), angle)


def track(
    g: Float[Tensor, "*stack rows cols"],
    old: Float[Tensor, "*stack d r"] | None,
    rank: int,
    side: Literal["left", "right"],
    angle: float,
    *,
    allowed: SideConstraint | None,
    generator: torch.Generator,
) -> Float[Tensor, "*stack d r"]:
    """One rank-1 turn of the basis towards the gradient, as SubTrack++ does.

    The tangent (X - S A) A^T with A = S^T X is where the captured energy ||S^T X||^2 rises
    fastest; its leading singular triple (u, s, v) turns S v towards u. Along that circle the
    energy is a sine wave, so its top is known in closed form: the turn ends there, or at `angle`
    if that comes first. The paper's step, a constant times s, wraps around where it is large.

    Args:
        g: Stored gradient X, or X^T for a right basis.
        old: The basis until now; None for the first, which is the leading subspace of `g`.
        rank: Columns of the first basis.
        side: Which side of `g` the basis multiplies.
        angle: The largest turn, in `[0, pi/2]` radians.
        allowed: What avoid and within leave.
        generator: Seeds the sketch of the first basis.

    Sources:
        Rajabi, Nonta and Rambhatla, "SubTrack++: Gradient subspace tracking for scalable LLM
        training", 2025, eq. 3 to 5; its released code projects with the wrong Gram matrix for
        square and tall weights, so that their bases never move.
    """
    if old is None:
        basis = top_subspace(g, rank, side=side, generator=generator)
        return basis if allowed is None else allowed.basis_inside(basis)
    if allowed is not None:
        old = allowed.basis_inside(old)
    x = (g if side == "left" else g.mT).to(old.dtype)
    peak = x.abs().amax(dim=(-2, -1), keepdim=True)
    x = x / torch.where(peak > 0, peak, 1)
    a = old.mT @ x
    tangent = grassmann.projection(old, x @ a.mT)
    v = torch.linalg.eigh(tangent.mT @ tangent).eigenvectors[..., -1:]
    u = tangent @ v
    length = torch.linalg.vector_norm(u, dim=-2, keepdim=True)
    u = u / torch.where(length > 0, length, 1)
    inside, beyond = v.mT @ a, u.mT @ x
    cross = (inside * beyond).sum(dim=-1, keepdim=True)
    excess = (inside.square() - beyond.square()).sum(dim=-1, keepdim=True)
    turn = (0.5 * torch.atan2(2 * cross, excess)).clamp(0, angle)
    turn = torch.where(length > 0, turn, 0)
    moved = old + (old @ v * (turn.cos() - 1) + u * turn.sin()) @ v.mT
    return orthonormalize(moved) if allowed is None else allowed.basis_inside(moved)
