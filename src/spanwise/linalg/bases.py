"""Orthonormal bases: making them, acting with them, combining and comparing them.

A basis is tall, `(*batch, d, r)`, with orthonormal columns, and stands for the subspace of R^d
that they span. Vectors to act on are columns, `(*batch, d, k)`. Half precision is decomposed in
float32 and comes back as float32, because a basis rounded to bfloat16 is orthonormal to 4e-3 only.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from spanwise.linalg._arrays import (
    at_least_float32,
    finite_pair,
    gaussian,
    largest_entry,
    matrix,
    pair,
    peak_sign,
    qr,
)

Metric = Literal["chordal", "geodesic", "projection"]


def orthonormalize(
    m: Float[Tensor, "*batch d r"], *, tolerance: float | None = None
) -> Float[Tensor, "*batch d k"]:
    """An orthonormal basis of the column space of `m`.

    Without `tolerance` this is Householder QR with a positive diagonal: k = r, column j lies in
    the span of the first j columns of `m` and points the same way, and the result is
    deterministic. The columns are orthonormal even where `m` is rank-deficient or zero; then
    those that `m` does not determine are arbitrary.

    Args:
        m: Any matrix with r <= d, `(*batch, d, r)`.
        tolerance: Drop what is dependent: keep the left singular vectors, largest first, whose
            singular value exceeds `tolerance` times the largest one. Rounding of the dtype is
            always dropped. Only without leading axes, because k depends on the matrix.

    Returns:
        Orthonormal basis, `(*batch, d, r)`, or `(d, k)` with 0 <= k <= min(d, r).

    Raises:
        ValueError: If `m` is not finite, is wide without a `tolerance`, or is batched with one.
        TypeError: If `m` is not a real floating-point tensor.
    """
    m = matrix("m", m)
    largest_entry("m", m)
    if tolerance is not None:
        if m.ndim != 2:
            raise ValueError(
                f"tolerance works on a single matrix, got shape {tuple(m.shape)}: the number of "
                "columns kept may differ from one to the next. Call it for each."
            )
        u, s, _ = torch.linalg.svd(m, full_matrices=False)
        cut = max(tolerance, max(m.shape) * torch.finfo(m.dtype).eps)
        u = u[:, s > cut * s[:1]]
        return u * peak_sign(u)
    if m.shape[-1] > m.shape[-2]:
        raise ValueError(
            f"m must be tall, got {tuple(m.shape)}: {m.shape[-1]} columns cannot be orthonormal in "
            f"R^{m.shape[-2]}. Transpose rows with .mT, or give a tolerance to drop columns."
        )
    return qr(m)


def project(
    basis: Float[Tensor, "*#batch d r"], x: Float[Tensor, "*#batch d k"]
) -> Float[Tensor, "*#batch d k"]:
    """The part of `x` inside the span of `basis`: U U^T x.

    Args:
        basis: Orthonormal basis U.
        x: Columns to project.

    Returns:
        Columns in the wider dtype of the two; half precision is multiplied in float32.

    Raises:
        ValueError: If the ambient dimensions differ.
    """
    u, y, dtype = pair(basis, x)
    return (u @ (u.mT @ y)).to(dtype)


def reject(
    basis: Float[Tensor, "*#batch d r"], x: Float[Tensor, "*#batch d k"]
) -> Float[Tensor, "*#batch d k"]:
    """The part of `x` outside the span of `basis`: x - U U^T x.

    Args:
        basis: Orthonormal basis U.
        x: Columns to project.

    Returns:
        Columns in the wider dtype of the two. What is left inside is rounding of `x`, so it is
        large beside the result where x lies almost wholly inside; `outside` has no such limit.

    Raises:
        ValueError: If the ambient dimensions differ.
    """
    u, y, dtype = pair(basis, x)
    return (y - u @ (u.mT @ y)).to(dtype)


def coordinates(
    basis: Float[Tensor, "*#batch d r"], x: Float[Tensor, "*#batch d k"]
) -> Float[Tensor, "*#batch r k"]:
    """Coordinates U^T x of the part of `x` inside the span of `basis`.

    Args:
        basis: Orthonormal basis U.
        x: Columns.

    Raises:
        ValueError: If the ambient dimensions differ.
    """
    u, y, dtype = pair(basis, x)
    return (u.mT @ y).to(dtype)


def lift(
    basis: Float[Tensor, "*#batch d r"], c: Float[Tensor, "*#batch r k"]
) -> Float[Tensor, "*#batch d k"]:
    """The vectors U c with coordinates `c`, the inverse of `coordinates` on the subspace.

    Args:
        basis: Orthonormal basis U.
        c: Coordinates, one column for each vector.

    Raises:
        ValueError: If `c` has another number of rows than `basis` has columns.
    """
    if basis.shape[-1] != c.shape[-2]:
        raise ValueError(
            f"c must have one row for each column of basis: basis is {tuple(basis.shape)}, "
            f"c is {tuple(c.shape)}."
        )
    dtype = torch.promote_types(basis.dtype, c.dtype)
    wide = at_least_float32(dtype)
    return (basis.to(wide) @ c.to(wide)).to(dtype)


def random_basis(
    d: int,
    r: int,
    *,
    generator: torch.Generator | None = None,
    batch: Sequence[int] = (),
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Float[Tensor, "*batch d r"]:
    """A basis drawn uniformly from the Stiefel manifold (Haar measure).

    Args:
        d: Ambient dimension.
        r: Number of columns, at most d.
        generator: Source of randomness, on any device; None means a generator of its own with
            seed 0, so the same basis each time. The global generator is never advanced.
        batch: Leading axes.
        dtype: Dtype of the result; a half-precision one rounds a float32 basis.
        device: Where the result lives; by default where `generator` does.

    Raises:
        ValueError: If not 0 <= r <= d.

    Sources:
        Mezzadri, "How to generate random matrices from the classical compact groups", 2007:
        QR of a Gaussian matrix is uniform once the diagonal of R is positive.
    """
    if not 0 <= r <= d:
        raise ValueError(f"r must be between 0 and d = {d}, got {r}.")
    g = gaussian((*batch, d, r), generator=generator, dtype=at_least_float32(dtype), device=device)
    return qr(g).to(dtype)


def complement(basis: Float[Tensor, "*batch d r"]) -> Float[Tensor, "*batch d d-r"]:
    """An orthonormal basis of everything orthogonal to `basis`.

    It is a d x (d - r) matrix: `reject` does the same work without it.

    Args:
        basis: Orthonormal basis.

    Raises:
        ValueError: If `basis` is wide.
    """
    if basis.shape[-1] > basis.shape[-2]:
        raise ValueError(f"basis must be tall, got {tuple(basis.shape)}. Transpose it with .mT.")
    q, _ = torch.linalg.qr(matrix("basis", basis), mode="complete")
    rest = q[..., basis.shape[-1] :]
    return rest * peak_sign(rest)


def outside(
    basis: Float[Tensor, "*#batch d r"], blocked: Float[Tensor, "*#batch d p"]
) -> Float[Tensor, "*#batch d r"]:
    """An orthonormal basis of as many columns as `basis`, orthogonal to `blocked`.

    Column j is the part of basis[:, j] outside `blocked` and the earlier columns, normalised.
    Projecting and normalising would magnify rounding where that part is small; Householder QR of
    [blocked | basis] is exact even for columns inside `blocked`, which become arbitrary
    directions that are still free.

    Args:
        basis: Where the directions should lie; need not be orthonormal.
        blocked: Orthonormal basis to keep out of; broadcast over leading axes of `basis`.

    Raises:
        ValueError: If the ambient dimensions differ, or r + p > d leaves no room.
    """
    b, u = finite_pair(basis, blocked, ("basis", "blocked"))
    (d, r), p = b.shape[-2:], u.shape[-1]
    if p + r > d:
        raise ValueError(
            f"no room: {r} columns of basis and {p} of blocked exceed d = {d}. Give basis at most "
            f"{d - p} columns."
        )
    batch = torch.broadcast_shapes(b.shape[:-2], u.shape[:-2])
    both = torch.cat([u.expand(*batch, d, p), b.expand(*batch, d, r)], dim=-1)
    return qr(both)[..., p:]


def union(
    a: Float[Tensor, "d r"], b: Float[Tensor, "d s"], *, tolerance: float = 1e-6
) -> Float[Tensor, "d k"]:
    """An orthonormal basis of the sum of two subspaces: `a`, then what `b` adds.

    Args:
        a: Orthonormal basis; the first r columns of the result.
        b: Orthonormal basis.
        tolerance: Directions of `b` whose principal angle to `a` has a sine of at most this add
            nothing; never taken below the rounding of the dtype.

    Returns:
        `(d, k)` with r <= k <= min(d, r + s); what `b` adds comes farthest from `a` first.

    Raises:
        ValueError: If the ambient dimensions differ or either is batched.
    """
    u, v = _singles("union", a, b)
    residual = v - u @ (u.mT @ v)
    left, sine, _ = torch.linalg.svd(residual, full_matrices=False)
    added = left[:, sine > max(tolerance, _noise(u))][:, : u.shape[-2] - u.shape[-1]]
    if not added.shape[-1]:
        return u
    # A residual of 1e-6 carries `a` at 1e-10 beside it: without this the result is oblique.
    return torch.cat([u, outside(added * peak_sign(added), u)], dim=-1)


def intersection(
    a: Float[Tensor, "d r"], b: Float[Tensor, "d s"], *, max_angle: float = 1e-6
) -> Float[Tensor, "d k"]:
    """The directions that two subspaces share, up to an angle.

    Each is the bisector of a pair of principal vectors, so the order of arguments does not matter.

    Args:
        a: Orthonormal basis.
        b: Orthonormal basis.
        max_angle: Largest principal angle that still counts as shared, in radians, in
            `[0, pi/2)`; never taken below the rounding of the dtype.

    Returns:
        Orthonormal basis, closest pair first, `(d, k)` with 0 <= k <= min(r, s).

    Raises:
        ValueError: If the ambient dimensions differ, either is batched, or `max_angle` is out of
            range.
    """
    if not 0 <= max_angle < math.pi / 2:
        raise ValueError(f"max_angle must be in [0, pi/2) radians, got {max_angle}.")
    u, v = _singles("intersection", a, b)
    if u.shape[-1] < v.shape[-1]:
        u, v = v, u
    # Sines tell small angles apart where cosines are all 1 to rounding.
    _, sine, vh = torch.linalg.svd(v - u @ (u.mT @ v), full_matrices=False)
    shared = (sine <= max(math.sin(max_angle), _noise(u))).flip(0)
    y = v @ vh.mT.flip(-1)[:, shared]
    x = u @ (u.mT @ y)
    return qr(x / x.norm(dim=-2, keepdim=True) + y)


def principal_angles(
    a: Float[Tensor, "*#batch d r"], b: Float[Tensor, "*#batch d s"]
) -> Float[Tensor, "*#batch k"]:
    """Angles between the column spaces of `a` and `b`, smallest first.

    Args:
        a: Orthonormal basis, `(*batch, d, r)`.
        b: Orthonormal basis, `(*batch, d, s)`.

    Returns:
        Angles in radians in `[0, pi/2]`, `(*batch, min(r, s))`.

    Raises:
        ValueError: If the ambient dimensions differ.

    Sources:
        Björck and Golub, "Numerical methods for computing angles between
        linear subspaces", 1973.
    """
    a, b = finite_pair(a, b, ("a", "b"))
    if a.shape[-1] < b.shape[-1]:
        a, b = b, a
    overlap = a.mT @ b
    cosine = torch.linalg.svdvals(overlap)
    # arccos loses half the digits below 1e-8 rad; the residual's singular values keep them.
    sine = torch.linalg.svdvals(b - a @ overlap).flip(-1)
    near = cosine.square() > 0.5
    # Each function sees only its own range: the other's infinite slope would make gradients NaN.
    return torch.where(near, torch.where(near, sine, 0).asin(), torch.where(near, 0, cosine).acos())


def distance(
    a: Float[Tensor, "*#batch d r"], b: Float[Tensor, "*#batch d r"], metric: Metric = "chordal"
) -> Float[Tensor, "*#batch"]:
    """Distance between two subspaces of one dimension.

    Args:
        a: Orthonormal basis.
        b: Orthonormal basis with as many columns.
        metric: With principal angles t: `"chordal"` is ||sin t||_2 = ||P_a - P_b||_F / sqrt(2),
            in `[0, sqrt(r)]`; `"geodesic"` is ||t||_2, in `[0, sqrt(r) pi/2]`; `"projection"` is
            max sin t = ||P_a - P_b||_2, in `[0, 1]`.

    Raises:
        ValueError: If the shapes do not fit or `metric` is unknown.

    Sources:
        Edelman, Arias and Smith, "The geometry of algorithms with orthogonality constraints",
        1998, section 4.3.
    """
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(
            f"distance needs subspaces of one dimension, got r = {a.shape[-1]} and "
            f"{b.shape[-1]}. For different ranks look at principal_angles."
        )
    angles = principal_angles(a, b)
    if metric == "chordal":
        return angles.sin().norm(dim=-1)
    if metric == "geodesic":
        return angles.norm(dim=-1)
    if metric == "projection":
        return angles.sin().amax(dim=-1) if angles.shape[-1] else angles.sum(dim=-1)
    raise ValueError(f'metric must be "chordal", "geodesic" or "projection", got {metric!r}.')


def align(
    new: Float[Tensor, "*batch d r"], old: Float[Tensor, "*batch d r"]
) -> Float[Tensor, "*batch d r"]:
    """The columns of `new`, permuted and signed to follow those of `old`.

    The span does not change; the factorisation's arbitrary signs and order do not survive. Pairs
    are matched greedily by |old^T new|, the largest overlap first.

    Args:
        new: Orthonormal basis.
        old: Orthonormal basis of the same shape.

    Returns:
        A basis whose column j overlaps old[:, j] non-negatively.

    Raises:
        ValueError: If the shapes differ.
    """
    if new.shape != old.shape:
        raise ValueError(
            f"new and old must have one shape, got {tuple(new.shape)} and {tuple(old.shape)}."
        )
    b, o, dtype = pair(new, old, ("new", "old"))
    overlap = o.mT @ b  # (*batch, r old, r new)
    order = _greedy_matching(overlap.detach().abs())
    sign = torch.where(overlap.gather(-1, order.unsqueeze(-1)).squeeze(-1) < 0, -1.0, 1.0)
    moved = b.gather(-1, order.unsqueeze(-2).expand_as(b)) * sign.to(b.dtype).unsqueeze(-2)
    return moved.to(dtype)


def _greedy_matching(weight: Float[Tensor, "*batch r r"]) -> Tensor:
    """For each row its column, largest weight first: rounds that take all mutual best pairs.

    A pair that is best for both its row and its column is taken by the greedy rule sooner or
    later, and the largest entry left is always such a pair, so rounds do not change the result.
    """
    index = torch.arange(weight.shape[-1], device=weight.device).expand(weight.shape[:-1])
    column = torch.full_like(index, -1)
    while bool((column < 0).any()):
        best_column, best_row = weight.argmax(dim=-1), weight.argmax(dim=-2)
        new = (best_row.gather(-1, best_column) == index) & (column < 0)
        column = torch.where(new, best_column, column)
        taken = (best_column.gather(-1, best_row) == index) & new.gather(-1, best_row)
        weight = weight.masked_fill(new.unsqueeze(-1) | taken.unsqueeze(-2), -1)
    return column


def _singles(verb: str, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    u, v = finite_pair(a, b, ("a", "b"))
    if u.ndim != 2 or v.ndim != 2:
        raise ValueError(
            f"{verb} takes single bases (d, r), got {tuple(a.shape)} and {tuple(b.shape)}: the "
            "ranks may differ from one to the next. Call it for each."
        )
    return u, v


def _noise(u: Tensor) -> float:
    """What rounding leaves of a unit vector that ought to cancel."""
    return 10 * torch.finfo(u.dtype).eps * math.sqrt(u.shape[-2])
