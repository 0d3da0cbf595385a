"""Orthonormal bases and the subspaces they span: plain functions, batch first.

A basis is tall, `(*batch, d, r)`, with orthonormal columns; vectors to act on are columns,
`(*batch, d, k)`. Half precision is computed in float32 and returned as float32.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Metric = Literal["chordal", "geodesic", "projection"]


def widen(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """`x` itself, or a float32 copy of a half-precision tensor.

    Raises:
        TypeError: If `x` is not a real floating-point tensor.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"expected a real floating-point tensor, got {kind}. Use x.float().")
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def check_finite(x: Float[Tensor, "..."], name: str) -> None:
    """Raise a ValueError that names the argument if it holds NaN or infinity."""
    if not bool(torch.isfinite(x).all()):
        raise ValueError(
            f"{name} of shape {tuple(x.shape)} has non-finite entries (NaN or infinity); "
            "no subspace can be found in it."
        )


def _same_space(a: Tensor, b: Tensor) -> None:
    if a.shape[-2] != b.shape[-2]:
        raise ValueError(
            f"a and b must live in the same space: a has d = {a.shape[-2]}, "
            f"b has d = {b.shape[-2]}. Transpose row bases with .mT."
        )


def _check_tall(m: Tensor, name: str) -> None:
    if m.ndim < 2 or m.shape[-1] > m.shape[-2]:
        raise ValueError(
            f"{name} must be tall, (*batch, d, r) with r <= d, got shape {tuple(m.shape)}. "
            "Transpose row bases with .mT."
        )


def orthonormalize(
    m: Float[Tensor, "*batch d r"], *, tolerance: float | None = None
) -> Float[Tensor, "*batch d s"]:
    """An orthonormal basis whose first j columns span the first j columns of `m`.

    Householder QR with a positive diagonal, so the result is unique and does not depend on
    the LAPACK build. Columns that depend on earlier ones become arbitrary orthonormal
    completions, unless `tolerance` drops them.

    Args:
        m: Columns to orthonormalise, `(*batch, d, r)`, r <= d.
        tolerance: Drop directions whose singular value is at most `tolerance` times the
            largest. Then the columns are left singular vectors, s <= r of them, and `m` may be
            wide; batches are not allowed, since each would keep another number.

    Returns:
        `(*batch, d, r)`, or `(d, s)` with a tolerance. Differentiable without one.

    Raises:
        ValueError: If `m` is wide without a tolerance, batched with one, or not finite.

    Sources:
        Golub and Van Loan, "Matrix computations", 4th edition, section 5.2.
    """
    m = widen(m)
    check_finite(m, "m")
    if tolerance is not None:
        if m.ndim != 2:
            raise ValueError(
                f"tolerance needs one matrix (d, r), got shape {tuple(m.shape)}: each of a batch "
                "would keep another number of columns. Loop over the batch."
            )
        u, s, _ = torch.linalg.svd(m, full_matrices=False)
        largest = s.max() if s.numel() else s.new_zeros(())
        return u[:, (s > tolerance * largest) & (s > 0)]
    _check_tall(m, "m")
    return _positive_qr(m)


def _positive_qr(m: Tensor) -> Tensor:
    q, r = torch.linalg.qr(m)
    diagonal = torch.diagonal(r, dim1=-2, dim2=-1)
    return q * torch.where(diagonal < 0, -1.0, 1.0).to(q.dtype).unsqueeze(-2)


def fast_orthonormalize(m: Float[Tensor, "*batch d r"]) -> Float[Tensor, "*batch d r"]:
    """`orthonormalize` by two rounds of Cholesky QR: matrix products instead of Householder.

    Falls back to Householder QR where a Gram matrix is too ill-conditioned (singular values
    below 1e-3 of the largest in float32, 1e-7 in float64) for Cholesky's accuracy. Not
    differentiable in general; finite input is the caller's promise.

    Sources:
        Yamamoto et al., "Roundoff error analysis of the CholeskyQR2 algorithm", 2015.
    """
    limit = torch.finfo(m.dtype).eps ** 0.5
    for _ in range(2):
        gram = m.mT @ m
        factor, info = torch.linalg.cholesky_ex(gram)
        pivots = torch.diagonal(factor, dim1=-2, dim2=-1)
        good = (info == 0).all() & (pivots.amin(-1) > 3 * limit * pivots.amax(-1)).all()
        if not bool(good):
            return _positive_qr(m)
        m = torch.linalg.solve_triangular(factor.mT, m, upper=True, left=False)
    return m


def coordinates(
    basis: Float[Tensor, "*batch d r"], x: Float[Tensor, "*batch d k"]
) -> Float[Tensor, "*batch r k"]:
    """Coefficients P^T x of the columns of `x` in the basis P."""
    _same_space(basis, x)
    return basis.mT @ x


def lift(
    basis: Float[Tensor, "*batch d r"], c: Float[Tensor, "*batch r k"]
) -> Float[Tensor, "*batch d k"]:
    """The vectors P c with coefficients `c` in the basis P."""
    if basis.shape[-1] != c.shape[-2]:
        raise ValueError(
            f"c must have r = {basis.shape[-1]} rows, one for each column of the basis, "
            f"got {c.shape[-2]}."
        )
    return basis @ c


def project(
    basis: Float[Tensor, "*batch d r"], x: Float[Tensor, "*batch d k"]
) -> Float[Tensor, "*batch d k"]:
    """The part P P^T x of `x` inside the subspace."""
    _same_space(basis, x)
    return basis @ (basis.mT @ x)


def reject(
    basis: Float[Tensor, "*batch d r"], x: Float[Tensor, "*batch d k"]
) -> Float[Tensor, "*batch d k"]:
    """The part (I - P P^T) x of `x` outside the subspace."""
    return x - project(basis, x)


def complement(basis: Float[Tensor, "*batch d r"]) -> Float[Tensor, "*batch d q"]:
    """An orthonormal basis of the orthogonal complement, `(*batch, d, d - r)`.

    It costs d^2 numbers; `reject` gives the projection on it without.
    """
    basis = widen(basis)
    _check_tall(basis, "basis")
    q, _ = torch.linalg.qr(basis, mode="complete")
    return q[..., basis.shape[-1] :]


def union(
    a: Float[Tensor, "d r"], b: Float[Tensor, "d s"], *, tolerance: float = 1e-6
) -> Float[Tensor, "d t"]:
    """A basis of the sum of two subspaces, max(r, s) <= t <= r + s.

    Args:
        a: Orthonormal basis; its columns come first in the result.
        b: Orthonormal basis.
        tolerance: Directions of `b` whose sine to `a` is at most this count as contained.

    Raises:
        ValueError: If the ambient dimensions differ.
    """
    a, b = widen(a), widen(b)
    _same_space(a, b)
    # Rejecting twice: once leaves an error of eps / sine inside a.
    rest = reject(a, reject(a, b))
    u, s, _ = torch.linalg.svd(rest, full_matrices=False)
    new = u[:, s > max(tolerance, 4 * torch.finfo(a.dtype).eps)]
    return torch.cat([a, _positive_qr(reject(a, new))], dim=-1)


def intersection(
    a: Float[Tensor, "d r"], b: Float[Tensor, "d s"], *, max_angle: float = 1e-6
) -> Float[Tensor, "d t"]:
    """A basis of the directions that two subspaces share.

    Args:
        a: Orthonormal basis.
        b: Orthonormal basis.
        max_angle: Principal vectors at most this many radians apart count as shared; their
            bisectors are returned.

    Returns:
        `(d, t)`, t <= min(r, s), closest directions first; t may be 0.

    Raises:
        ValueError: If the ambient dimensions differ or `max_angle` is not in [0, pi/2].
    """
    a, b = widen(a), widen(b)
    _same_space(a, b)
    if not 0 <= max_angle <= torch.pi / 2:
        raise ValueError(f"max_angle must be in [0, pi/2] radians, got {max_angle}.")
    u, cosine, vh = torch.linalg.svd(a.mT @ b, full_matrices=False)
    left, right = a @ u, b @ vh.mT
    # |left - right| = 2 sin(angle / 2) keeps the digits that arccos loses at small angles.
    angle = 2 * ((left - right).norm(dim=0) / 2).clamp(max=1).arcsin()
    shared = angle <= max(max_angle, 4 * torch.finfo(a.dtype).eps)
    middle = (left + right)[:, shared]
    return _positive_qr(middle) if middle.shape[1] else middle


def principal_angles(
    a: Float[Tensor, "*batch d r"], b: Float[Tensor, "*batch d s"]
) -> Float[Tensor, "*batch k"]:
    """Angles between the column spaces of `a` and `b`, smallest first.

    Args:
        a: Orthonormal basis, `(*batch, d, r)`.
        b: Orthonormal basis, `(*batch, d, s)`.

    Returns:
        Angles in radians in `[0, pi/2]`, `(*batch, min(r, s))`.

    Raises:
        ValueError: If the ambient dimensions differ.

    Sources:
        Björck and Golub, "Numerical methods for computing angles between linear subspaces",
        1973.
    """
    a, b = widen(a), widen(b)
    _same_space(a, b)
    if a.shape[-1] < b.shape[-1]:
        a, b = b, a
    cosine = torch.linalg.svdvals(a.mT @ b).clamp(max=1)
    # arccos loses half the digits below 1e-8 rad; the residual's singular values keep them.
    sine = torch.linalg.svdvals(b - a @ (a.mT @ b)).clamp(max=1).flip(-1)
    return torch.where(cosine**2 < 0.5, cosine.arccos(), sine.arcsin())


def distance(
    a: Float[Tensor, "*batch d r"],
    b: Float[Tensor, "*batch d r"],
    metric: Metric = "chordal",
) -> Float[Tensor, "*batch"]:
    """Distance between two subspaces of equal dimension, from their principal angles.

    Args:
        a: Orthonormal basis.
        b: Orthonormal basis of as many columns.
        metric: `chordal`: the 2-norm of the angles' sines; `geodesic`: the 2-norm of the
            angles, the arc length on the Grassmann manifold; `projection`: the largest sine,
            the spectral norm of the projectors' difference.

    Raises:
        ValueError: If shapes differ or the metric is unknown.

    Sources:
        Edelman, Arias and Smith, "The geometry of algorithms with orthogonality constraints",
        1998, section 4.3.
    """
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(
            f"a and b must have the same number of columns, got {a.shape[-1]} and "
            f"{b.shape[-1]}; compare subspaces of different dimension by principal_angles."
        )
    angles = principal_angles(a, b)
    if metric == "geodesic":
        return angles.norm(dim=-1)
    if metric == "chordal":
        return angles.sin().norm(dim=-1)
    if metric == "projection":
        return angles.sin().amax(dim=-1)
    raise ValueError(f"metric must be chordal, geodesic or projection, got {metric!r}.")


def random_basis(
    d: int,
    r: int,
    *,
    generator: torch.Generator | None = None,
    batch: tuple[int, ...] = (),
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Float[Tensor, "*batch d r"]:
    """A subspace drawn uniformly (Haar measure) from the Grassmann manifold.

    Args:
        d: Ambient dimension.
        r: Number of columns, 0 <= r <= d.
        generator: Source of randomness, on `device`. None: a fixed seed; the global generator
            is never touched.
        batch: Leading axes.
        dtype: float32 or float64.
        device: Where to draw.

    Raises:
        ValueError: If r is not in [0, d].

    Sources:
        Mezzadri, "How to generate random matrices from the classical compact groups", 2007:
        the QR factor of a Gaussian is Haar only with a positive diagonal.
    """
    if not 0 <= r <= d:
        raise ValueError(f"r must be between 0 and d = {d}, got {r}.")
    if generator is None:
        generator = torch.Generator(device=device or "cpu").manual_seed(0)
    gaussian = torch.randn(*batch, d, r, generator=generator, dtype=dtype, device=device)
    return _positive_qr(gaussian)


def outside(
    basis: Float[Tensor, "*batch d r"], blocked: Float[Tensor, "*batch d p"]
) -> Float[Tensor, "*batch d r"]:
    """As many orthonormal columns as `basis`, near it and exactly orthogonal to `blocked`.

    Householder QR of [blocked | basis] is orthonormal whatever its rank, so a column that lies
    in the blocked span becomes some other allowed direction instead of amplified rounding.

    Args:
        basis: Orthonormal basis.
        blocked: Orthonormal basis of the forbidden span.

    Raises:
        ValueError: If p + r > d, so that no such basis exists.
    """
    _same_space(basis, blocked)
    p, r, d = blocked.shape[-1], basis.shape[-1], basis.shape[-2]
    if p + r > d:
        raise ValueError(
            f"basis has r = {r} columns but only d - p = {d} - {p} = {d - p} directions are "
            "left outside blocked. Lower r."
        )
    return _positive_qr(torch.cat([blocked, basis], dim=-1))[..., p:]


def align(
    new: Float[Tensor, "*batch d r"], old: Float[Tensor, "*batch d r"]
) -> Float[Tensor, "*batch d r"]:
    """The columns of `new`, permuted and signed to match those of `old` one by one.

    Greedy by the largest |cosine|: the pair with the largest is matched first. Whatever an
    eigensolver did to signs and to the order of close values is undone, so what was stored in
    old coordinates (an optimizer's moments) means nearly the same in new ones.

    Args:
        new: Orthonormal basis.
        old: Orthonormal basis of the same shape.

    Returns:
        The same subspace as `new`, column by column.
    """
    if new.shape != old.shape:
        raise ValueError(
            f"new and old must have the same shape, got {tuple(new.shape)} and {tuple(old.shape)}."
        )
    overlap = old.mT @ new
    flat = overlap.reshape(-1, *overlap.shape[-2:])
    order = torch.stack([_greedy_match(c.abs()) for c in flat])
    order = order.reshape(overlap.shape[:-1])
    permuted = new.gather(-1, order.unsqueeze(-2).expand_as(new))
    cosine = overlap.gather(-1, order.unsqueeze(-1)).squeeze(-1)
    return permuted * torch.where(cosine < 0, -1.0, 1.0).to(new.dtype).unsqueeze(-2)


def _greedy_match(score: Float[Tensor, "r r"]) -> Tensor:
    """For each row its column, largest scores first.

    Greedy matching takes exactly the pairs that are each other's best, round by round, so each
    round takes them all at once.
    """
    r = score.shape[0]
    rows = torch.arange(r, device=score.device)
    columns = rows.clone()
    match = torch.empty(r, dtype=torch.long, device=score.device)
    while rows.numel():
        best = score.argmax(1)
        mutual = score.argmax(0)[best] == torch.arange(len(rows), device=score.device)
        if not bool(mutual.any()):
            # Ties can chase each other in a circle; any order among equals will do.
            mutual[0] = True
        match[rows[mutual]] = columns[best[mutual]]
        keep = torch.ones(len(columns), dtype=torch.bool, device=score.device)
        keep[best[mutual]] = False
        score = score[~mutual][:, keep]
        rows, columns = rows[~mutual], columns[keep]
    return match


class GrowingBasis:
    """An orthonormal basis that takes in new directions until an energy share is covered.

    Args:
        dim: Ambient dimension d.
        energy: Share of each batch's squared norm that the basis must capture, in (0, 1].
        max_rank: Never more columns than this; None: d.

    Example:
        >>> grown = GrowingBasis(3, energy=0.9)
        >>> grown.add(torch.eye(3)[:, :2])
        2
    """

    def __init__(self, dim: int, *, energy: float = 0.95, max_rank: int | None = None) -> None:
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}.")
        if not 0 < energy <= 1:
            raise ValueError(f"energy must be in (0, 1], got {energy}.")
        self.dim, self.energy, self.max_rank = dim, energy, min(max_rank or dim, dim)
        self.basis: Tensor | None = None

    @property
    def rank(self) -> int:
        """Columns held now."""
        return 0 if self.basis is None else self.basis.shape[-1]

    def add(self, m: Float[Tensor, "d k"]) -> int:
        """Take in as many directions of `m` as its energy rule still asks for.

        The smallest number of left singular vectors of the part of `m` outside the basis is
        added that brings the captured share of ||m||_F^2 to `energy`.

        Returns:
            How many columns were added.

        Sources:
            Saha, Garg and Roy, "Gradient projection memory for continual learning", 2021, eq. 9.
        """
        m = widen(m)
        if m.ndim != 2 or m.shape[0] != self.dim:
            raise ValueError(f"m must have shape ({self.dim}, k), got {tuple(m.shape)}.")
        check_finite(m, "m")
        total = m.square().sum()
        basis = m.new_zeros(self.dim, 0) if self.basis is None else self.basis.to(m)
        rest = reject(basis, reject(basis, m))
        u, s, _ = torch.linalg.svd(rest, full_matrices=False)
        captured = total - rest.square().sum() + s.square().cumsum(0)
        missing = self.energy * total - (total - rest.square().sum())
        floor = torch.finfo(m.dtype).eps * total
        if not bool(missing > floor):
            self.basis = basis
            return 0
        count = int((captured < self.energy * total - floor).sum()) + 1
        count = min(count, int((s.square() > floor).sum()), self.max_rank - basis.shape[1])
        self.basis = torch.cat([basis, _positive_qr(reject(basis, u[:, :count]))], dim=-1)
        return count
