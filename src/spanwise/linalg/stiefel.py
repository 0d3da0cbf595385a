"""The Stiefel manifold St(d, r) of orthonormal frames in R^d, by its textbook's verbs.

A point is a frame X, `(*batch, d, r)`, with X^T X = I; unlike on the Grassmann manifold, frames
that span the same subspace are different points. A tangent vector at X is H with X^T H + H^T X = 0.
The metric is the one of the surrounding space, <H, K> = tr(H^T K). The dimension is
r d - r (r + 1) / 2. St(d, 1) is the unit sphere, St(d, d) the orthogonal group.

There is no `log`: for this metric it has no closed form, and `dist` is therefore the chord. Where
frames are only compared as subspaces, `grassmann.log` and `grassmann.dist` are exact.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from spanwise.linalg._arrays import (
    check_tall,
    finite_pair,
    gaussian,
    largest_entry,
    matrix,
    point_and_vector,
    qr,
)
from spanwise.linalg.bases import random_basis

Retraction = Literal["qr", "polar"]


def projection(
    x: Float[Tensor, "*#batch d r"], u: Float[Tensor, "*#batch d r"]
) -> Float[Tensor, "*#batch d r"]:
    """The tangent part of `u` at X: u - X sym(X^T u), the nearest tangent vector.

    Args:
        x: Frame X.
        u: Any matrix of its shape, such as a Euclidean gradient, whose projection is the
            Riemannian one.

    Raises:
        ValueError: If the shapes do not fit.
    """
    return tangent_part(*point_and_vector(x, u, "u"))


def retraction(
    x: Float[Tensor, "*#batch d r"],
    h: Float[Tensor, "*#batch d r"],
    method: Retraction = "qr",
) -> Float[Tensor, "*#batch d r"]:
    """A frame near X + H, which follows the geodesic from X in direction H.

    Args:
        x: Frame X.
        h: Tangent vector H at X.
        method: `"qr"`: Q of X + H, whose R has a positive diagonal; agrees with the geodesic to
            first order. `"polar"`: the nearest frame to X + H; to second order.

    Raises:
        ValueError: If the shapes do not fit, `h` is not tangent or not finite, or the method is
            unknown.

    Sources:
        Absil, Mahony and Sepulchre, "Optimization algorithms on matrix manifolds", 2008,
        example 4.1.3.
    """
    check_retraction(method)
    return retract(*_tangent(x, h, "h"), method)


def exp(
    x: Float[Tensor, "*#batch d r"], h: Float[Tensor, "*#batch d r"]
) -> Float[Tensor, "*#batch d r"]:
    """Where the geodesic from X in direction `h` arrives after time one.

    Args:
        x: Frame X.
        h: Tangent vector H at X.

    Raises:
        ValueError: If the shapes do not fit, or `h` is not tangent or not finite.

    Sources:
        Edelman, Arias and Smith, "The geometry of algorithms with orthogonality constraints",
        1998, section 2.2.2.
    """
    x, h = _tangent(x, h, "h")
    r = x.shape[-1]
    turn = x.mT @ h
    eye = torch.eye(r, dtype=turn.dtype, device=turn.device).expand_as(turn)
    generator = torch.cat(
        [torch.cat([turn, -h.mT @ h], dim=-1), torch.cat([eye, turn], dim=-1)], dim=-2
    )
    ahead = torch.linalg.matrix_exp(generator)[..., :r] @ torch.linalg.matrix_exp(-turn)
    y = x @ ahead[..., :r, :] + h @ ahead[..., r:, :]
    # 1.5 Y - 0.5 Y (Y^T Y): the nearest frame up to the defect's square.
    return torch.add(1.5 * y, y @ (y.mT @ y), alpha=-0.5)


def transport(
    y: Float[Tensor, "*#batch d r"], v: Float[Tensor, "*#batch d r"]
) -> Float[Tensor, "*#batch d r"]:
    """Carry a tangent vector from anywhere to the point Y, by projection.

    It is the cheapest vector transport, not parallel: lengths may shrink, by the cosine of what
    was turned away from the tangent space.

    Args:
        y: Frame to arrive at.
        v: Tangent vector at the frame it comes from.

    Raises:
        ValueError: If the shapes do not fit.

    Sources:
        Absil, Mahony and Sepulchre, 2008, section 8.1.3.
    """
    return tangent_part(*point_and_vector(y, v, "v"))


def dist(
    x: Float[Tensor, "*#batch d r"], y: Float[Tensor, "*#batch d r"]
) -> Float[Tensor, "*#batch"]:
    """The chord ||X - Y||_F, which a geodesic exceeds by a third-order term.

    Args:
        x: Frame.
        y: Frame of as many columns.

    Returns:
        In `[0, 2 sqrt(r)]`; its square is 2 (r - tr(X^T Y)).

    Raises:
        ValueError: If the shapes do not fit or a frame is not finite.
    """
    x, y = finite_pair(*point_and_vector(x, y, "y"), ("x", "y"))
    return torch.linalg.vector_norm(x - y, dim=(-2, -1))


def random_point(
    d: int,
    r: int,
    *,
    generator: torch.Generator | None = None,
    batch: Sequence[int] = (),
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Float[Tensor, "*batch d r"]:
    """A frame drawn uniformly (Haar measure): this is `spanwise.linalg.random_basis`.

    Args:
        d: Ambient dimension.
        r: Number of columns, at most d.
        generator: Source of randomness; None means a fixed seed.
        batch: Leading axes.
        dtype: Dtype of the result.
        device: Where the result lives; by default where `generator` does.

    Raises:
        ValueError: If not 0 <= r <= d.
    """
    return random_basis(d, r, generator=generator, batch=batch, dtype=dtype, device=device)


def random_tangent(
    x: Float[Tensor, "*batch d r"], *, generator: torch.Generator | None = None
) -> Float[Tensor, "*batch d r"]:
    """A Gaussian tangent vector at X: every direction alike, of squared norm near the dimension.

    Args:
        x: Frame X.
        generator: Source of randomness; None means a fixed seed.

    Raises:
        ValueError: If `x` is wide.
    """
    x = matrix("x", x)
    check_tall(x)
    return tangent_part(x, gaussian(x.shape, generator=generator, dtype=x.dtype, device=x.device))


def check_retraction(method: str) -> None:
    """Refuse a retraction that does not exist."""
    if method not in get_args(Retraction):
        raise ValueError(f'method must be "qr" or "polar", got {method!r}.')


def tangent_part(x: Tensor, u: Tensor) -> Tensor:
    """`projection` without its checks, for loops that have made them."""
    inside = x.mT @ u
    return u - x @ ((inside + inside.mT) * 0.5)


def retract(x: Tensor, h: Tensor, method: Retraction) -> Tensor:
    """`retraction` without its checks, for loops that have made them."""
    if method == "qr":
        return qr(x + h)
    # X^T H is skew, so (X + H)^T (X + H) = I + H^T H.
    values, v = torch.linalg.eigh(h.mT @ h)
    y = (x + h) @ ((v * (1 + values.clamp(min=0)).rsqrt().unsqueeze(-2)) @ v.mT)
    return torch.add(1.5 * y, y @ (y.mT @ y), alpha=-0.5)


def _tangent(x: Tensor, h: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Both, once `h` is known to be finite and tangent.

    The tolerance is wide because it is not about rounding: it catches a forgotten projection.
    """
    x, h = point_and_vector(x, h, name)
    if not h.numel():
        return x, h
    inside = x.detach().mT @ h.detach()
    off = (inside + inside.mT).abs().amax(dim=(-2, -1))
    peak = h.detach().abs().amax(dim=(-2, -1))
    if not bool((off <= 1e-3 * peak + torch.finfo(h.dtype).tiny).all()):
        largest_entry(name, h)  # the error about NaN and infinity
        raise ValueError(
            f"{name} must be tangent, x^T {name} + {name}^T x = 0, but that sum has entries up to "
            f"{float(off.max()):.1e} beside {float(peak.max()):.1e} in {name}. Project it with "
            f"stiefel.projection(x, {name})."
        )
    return x, h
