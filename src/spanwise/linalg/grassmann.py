"""The Grassmann manifold Gr(d, r) of r-dimensional subspaces of R^d, by its textbook's verbs.

A point is the span of an orthonormal basis X, `(*batch, d, r)`; bases that differ by a rotation
of their columns are the same point. A tangent vector at X is *horizontal*: H with X^T H = 0. The
metric is <H, K> = tr(H^T K), so a geodesic X(t) = exp_X(t H) turns principal vector i by t s_i
radians, with s_i the singular values of H, and is shortest until the largest reaches pi/2. The
dimension is r (d - r).

Maps along a geodesic are even functions of the singular values, hence smooth functions of the
small matrix H^T H = V S^2 V^T. One r x r eigendecomposition therefore replaces the SVD of H, and
nothing is lost by squaring: rounding in S^2 moves cos(S) and sin(S)/S by no more than itself.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from spanwise.linalg._arrays import (
    check_tall,
    gaussian,
    largest_entry,
    matrix,
    point_and_vector,
)
from spanwise.linalg.bases import distance, random_basis


def projection(
    x: Float[Tensor, "*#batch d r"], u: Float[Tensor, "*#batch d r"]
) -> Float[Tensor, "*#batch d r"]:
    """The horizontal part of `u` at X: H = u - X X^T u.

    What is left inside X is rounding of `u`, also where almost nothing of `u` lies outside.

    Args:
        x: Orthonormal basis X.
        u: Any matrix of its shape, such as a Euclidean gradient.

    Raises:
        ValueError: If the shapes do not fit.
    """
    x, u = point_and_vector(x, u, "u")
    h = u - x @ (x.mT @ u)
    return h - x @ (x.mT @ h)  # once leaves rounding of u, which may be large beside h


def exp(
    x: Float[Tensor, "*#batch d r"],
    h: Float[Tensor, "*#batch d r"],
    *,
    angle: float | None = None,
) -> Float[Tensor, "*#batch d r"]:
    """Where the geodesic from X in direction `h` arrives: X V cos(S) V^T + U sin(S) V^T.

    The basis at the end is the parallel frame: X carried along without turning inside its span.
    One Newton-Schulz step takes out the rounding, so that 1e4 moves leave the last basis as
    orthonormal as the first.

    Args:
        x: Orthonormal basis X.
        h: Tangent vector H = U S V^T at X, horizontal.
        angle: Rescale `h` so that the largest principal angle moved is this, in radians; the
            others keep their ratios to it. None: go as far as `h` says.

    Raises:
        ValueError: If the shapes do not fit, `h` is not horizontal or not finite, or `angle` is
            negative.

    Sources:
        Edelman, Arias and Smith, "The geometry of algorithms with orthogonality constraints",
        1998, theorem 2.3.
    """
    x, h = _tangent(x, h, "h")
    _check_angle(angle)
    if angle is not None:
        h = h / _positive(largest_entry("h", h))  # squared below, and only its direction matters
    return _follow(x, h, angle)


def move(
    x: Float[Tensor, "*#batch d r"], u: Float[Tensor, "*#batch d r"], angle: float
) -> Float[Tensor, "*#batch d r"]:
    """Where one arrives from X, going in the direction of `u` until `angle`.

    `exp(x, projection(x, u), angle=angle)` at about half of its cost: a random walk with
    Gaussian `u`, a descent with minus the gradient. Where no more than three quarters of `u` lie
    inside X, by squared norm, neither the horizontal part nor its eigenvectors are formed: two
    power series of its Gram matrix tell how much of X and of `u` the end holds.

    Args:
        x: Orthonormal basis X.
        u: Any matrix of its shape; its horizontal part is the direction.
        angle: Largest principal angle moved, in radians.

    Raises:
        ValueError: If the shapes do not fit, `u` is not finite, or `angle` is negative.
    """
    x, u = point_and_vector(x, u, "u")
    _check_angle(angle)
    # X drifts by rounding. X P is the nearest orthonormal basis, up to the defect's square.
    p = _plus_identity((x.mT @ x).mul_(-0.5), 1.5)
    inside = p @ (x.mT @ u)
    whole = u.mT @ u
    gram = whole - inside.mT @ inside
    if angle > math.pi / 2 or not _keeps_digits(gram, whole):
        return _move_far(x, u, angle)
    largest = torch.linalg.eigvalsh(gram)[..., -1:].unsqueeze(-1)
    cosine, sine = _cos_and_sinc(gram * (angle**2 / largest), angle)
    along = sine * (angle / largest.sqrt())
    return (x @ (p @ (cosine - inside @ along))).add_(u @ along)


def log(
    x: Float[Tensor, "*#batch d r"], y: Float[Tensor, "*#batch d r"]
) -> Float[Tensor, "*#batch d r"]:
    """The shortest tangent vector H at X whose geodesic reaches the span of `y`.

    `exp(x, log(x, y))` spans what `y` spans; its columns are those of `y` turned into X's parallel
    frame. Where a principal angle is pi/2 there are several shortest ones; this is one of them.

    Args:
        x: Orthonormal basis X.
        y: Orthonormal basis of as many columns.

    Raises:
        ValueError: If the shapes do not fit or a basis is not finite.

    Sources:
        Bendokat, Zimmermann and Absil, "A Grassmann manifold handbook", 2020, algorithm 5.3.
    """
    x, y = point_and_vector(x, y, "y")
    largest_entry("x", x)
    largest_entry("y", y)
    q, cosine, rh = torch.linalg.svd(y.mT @ x)
    cosine = cosine.clamp(max=1)
    sine = ((1 - cosine) * (1 + cosine)).sqrt()
    # Angle over sine is smooth in the cosine, so a tiny angle costs no digits here.
    stretch = torch.where(sine > 0, torch.atan2(sine, cosine) / _positive(sine), 1)
    return projection(x, y @ ((q * stretch.unsqueeze(-2)) @ rh))


def dist(
    x: Float[Tensor, "*#batch d r"], y: Float[Tensor, "*#batch d r"]
) -> Float[Tensor, "*#batch"]:
    """Length of the shortest geodesic: the 2-norm of the principal angles, in radians.

    Args:
        x: Orthonormal basis.
        y: Orthonormal basis of as many columns.

    Returns:
        In `[0, sqrt(r) pi / 2]`; equals the Frobenius norm of `log(x, y)`.

    Raises:
        ValueError: If the shapes do not fit or a basis is not finite.
    """
    return distance(*point_and_vector(x, y, "y"), metric="geodesic")


def transport(
    x: Float[Tensor, "*#batch d r"],
    h: Float[Tensor, "*#batch d r"],
    v: Float[Tensor, "*#batch d r"],
) -> Float[Tensor, "*#batch d r"]:
    """Carry the tangent vector `v` at X in parallel along the geodesic of `h`, to exp(x, h).

    Inner products with other transported vectors stay as they are, and `h` itself becomes the
    velocity at the end.

    Args:
        x: Orthonormal basis X.
        h: Tangent vector at X, the direction of the geodesic.
        v: Tangent vector at X.

    Returns:
        Tangent vector at the basis `exp(x, h)`.

    Raises:
        ValueError: If the shapes do not fit, or `h` or `v` is not horizontal or not finite.

    Sources:
        Edelman, Arias and Smith, 1998, theorem 2.4.
    """
    x, h = _tangent(x, h, "h")
    x, v = _tangent(x, v, "v")
    s, w = _right_factors(h)
    c = w.mT @ (h.mT @ v)
    down = torch.sinc(s / math.pi).unsqueeze(-1)  # sin(s) / s
    back = -0.5 * torch.sinc(s / (2 * math.pi)).square().unsqueeze(-1)  # (cos(s) - 1) / s^2
    return v - x @ (w @ (down * c)) + h @ (w @ (back * c))


def retraction(
    x: Float[Tensor, "*#batch d r"], h: Float[Tensor, "*#batch d r"]
) -> Float[Tensor, "*#batch d r"]:
    """The orthonormal basis nearest to X + H, which follows the geodesic to second order.

    It turns principal vector i by atan(s_i): less than `exp`, and never by pi/2.

    Args:
        x: Orthonormal basis X.
        h: Tangent vector H at X, horizontal.

    Raises:
        ValueError: If the shapes do not fit, or `h` is not horizontal or not finite.

    Sources:
        Absil, Mahony and Sepulchre, "Optimization algorithms on matrix manifolds", 2008,
        example 4.1.5.
    """
    x, h = _tangent(x, h, "h")
    s, v = _right_factors(h)
    y = (x + h) @ ((v * (1 + s.square()).rsqrt().unsqueeze(-2)) @ v.mT)
    return torch.add(1.5 * y, y @ (y.mT @ y), alpha=-0.5)


def random_point(
    d: int,
    r: int,
    *,
    generator: torch.Generator | None = None,
    batch: Sequence[int] = (),
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Float[Tensor, "*batch d r"]:
    """A subspace drawn uniformly, the one distribution that no rotation of R^d changes.

    The basis is uniform on the Stiefel manifold too: this is `spanwise.linalg.random_basis`.

    Args:
        d: Ambient dimension.
        r: Dimension of the subspace, at most d.
        generator: Source of randomness; None means a fixed seed.
        batch: Leading axes.
        dtype: Dtype of the result.
        device: Where the result lives; by default where `generator` does.

    Raises:
        ValueError: If not 0 <= r <= d.
    """
    return random_basis(d, r, generator=generator, batch=batch, dtype=dtype, device=device)


def random_tangent(
    x: Float[Tensor, "*batch d r"],
    *,
    angle: float | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*batch d r"]:
    """A Gaussian tangent vector at X: every direction alike.

    Without `angle` its singular values lie near sqrt(d - r) +- sqrt(r), so that `exp` would wind
    around many times; with 2 r > d only d - r of them are not zero.

    Args:
        x: Orthonormal basis X.
        angle: Scale the largest singular value to this, in radians.
        generator: Source of randomness; None means a fixed seed.

    Returns:
        Horizontal at X; zero where r = d leaves no direction.

    Raises:
        ValueError: If `angle` is negative or `x` is wide.
    """
    x = matrix("x", x)
    check_tall(x)
    _check_angle(angle)
    if x.shape[-1] == x.shape[-2]:
        return torch.zeros_like(x)  # what projecting leaves would be rounding, scaled up
    h = projection(x, gaussian(x.shape, generator=generator, dtype=x.dtype, device=x.device))
    if angle is None:
        return h
    largest = torch.linalg.eigvalsh(h.mT @ h)[..., -1:].clamp(min=0).sqrt().unsqueeze(-1)
    return h * (angle / _positive(largest))


def _follow(x: Tensor, h: Tensor, angle: float | None) -> Tensor:
    """The end of the geodesic of a horizontal `h`, rescaled to `angle` if one is given."""
    s, v = _right_factors(h)
    stretch = 1.0 if angle is None else angle / _positive(s[..., -1:])
    s = s * stretch
    along = torch.sinc(s / math.pi) * stretch
    y = x @ ((v * s.cos().unsqueeze(-2)) @ v.mT) + h @ ((v * along.unsqueeze(-2)) @ v.mT)
    # 1.5 Y - 0.5 Y (Y^T Y): the nearest orthonormal basis up to the defect's square.
    return torch.add(1.5 * y, y @ (y.mT @ y), alpha=-0.5)


def _move_far(x: Tensor, u: Tensor, angle: float) -> Tensor:
    """`move` without squaring `u`: whatever its size, and however little of it is horizontal."""
    u = u / _positive(largest_entry("u", u))
    h = u - x @ (x.mT @ u)
    peak = largest_entry("u", h)
    if bool((peak < 0.1).any()):  # what is left inside X is rounding of u: no longer small
        h = h - x @ (x.mT @ h)
        h = h / _positive(largest_entry("u", h))
    return _follow(x, h, angle)


def _keeps_digits(gram: Tensor, whole: Tensor) -> bool:
    """Whether a horizontal part's Gram matrix, found by subtracting from the whole, is exact.

    Also False where squares overflowed, underflowed or were NaN.
    """
    parts, totals = (
        m.detach().diagonal(dim1=-2, dim2=-1).sum(-1).flatten().tolist() for m in (gram, whole)
    )
    smallest = torch.finfo(gram.dtype).tiny / torch.finfo(gram.dtype).eps ** 2
    return all(
        smallest < total < math.inf and part >= 0.25 * total
        for part, total in zip(parts, totals, strict=True)
    )


def _cos_and_sinc(t: Tensor, angle: float) -> tuple[Tensor, Tensor]:
    """cos(S) and sin(S) / S as functions of S^2 = t, whose eigenvalues are at most angle^2.

    Their power series share the powers of t. Up to a right angle no term exceeds 1.3 and few are
    needed: up to the third power for 0.3 radians in float32.
    """
    cosine = _plus_identity(-t / 2, 1.0)
    sine = _plus_identity(-t / 6, 1.0)
    power, k, factor = t, 4, 1 / 24
    while factor * angle**k > torch.finfo(t.dtype).eps / 8:
        power = power @ t
        sign = 1 if k % 4 == 0 else -1
        cosine.add_(power, alpha=sign * factor)
        sine.add_(power, alpha=sign * factor / (k + 1))
        k += 2
        factor /= k * (k - 1)
    return cosine, sine


def _plus_identity(m: Tensor, c: float) -> Tensor:
    """Add c I to `m`, in place."""
    m.diagonal(dim1=-2, dim2=-1).add_(c)
    return m


def _positive(x: Tensor) -> Tensor:
    """`x` to divide by, 1 where it is zero."""
    return torch.where(x > 0, x, 1)


def _check_angle(angle: float | None) -> None:
    if angle is not None and not 0 <= angle < math.inf:
        raise ValueError(f"angle must be finite and not negative, in radians, got {angle}.")


def _right_factors(h: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values of `h`, smallest first, and its right singular vectors (all r of them)."""
    values, vectors = torch.linalg.eigh(h.mT @ h)
    return values.clamp(min=0).sqrt(), vectors


def _tangent(x: Tensor, h: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Both, once `h` is known to be finite and horizontal.

    The tolerance is wide because it is not about rounding: it catches a forgotten projection,
    with which the end of the geodesic would not be orthonormal at all.
    """
    x, h = point_and_vector(x, h, name)
    if not h.numel():
        return x, h
    # Largest entries, not norms: squares of tiny ones would underflow.
    inside = (x.detach().mT @ h.detach()).abs().amax(dim=(-2, -1))
    peak = h.detach().abs().amax(dim=(-2, -1))
    if not bool((inside <= 1e-3 * peak + torch.finfo(h.dtype).tiny).all()):
        largest_entry(name, h)  # the error about NaN and infinity
        raise ValueError(
            f"{name} must be horizontal, x^T {name} = 0, but x^T {name} has entries up to "
            f"{float(inside.max()):.1e} beside {float(peak.max()):.1e} in {name}. Project it with "
            f"grassmann.projection(x, {name})."
        )
    return x, h
