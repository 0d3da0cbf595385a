"""Recovery scaling: the gradient outside the subspace comes back, sized like the step inside it.

With coordinates R = S^T X of a gradient X, Adam turns column j of R into column j of O. The
same factor phi_j = ||O_j|| / ||R_j|| scales what the subspace misses, L_j = phi_j (X - S R)_j,
and a limiter keeps ||L|| from growing by more than a factor zeta from step to step. "Columns" run
along the axis without a basis; for a basis on the right they are rows.

Neither L nor S R is ever formed: S O + L = phi * X + S (O - phi * R) needs one lift and one
scaled addition, and ||L||^2 = sum_j phi_j^2 (||X_j||^2 - ||R_j||^2) for an orthonormal S.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from spanwise.optim._engine.options import check_number
from spanwise.optim._sharding.shard import Shard

# Fira's own guard in phi, and the norm below which the limiter has nothing to compare with: O has
# entries of about 1, so that a whole matrix of norm 1e-8 is no step at all.
_TINY = 1e-8


def check_residual(group: Mapping[str, Any], *, selects: bool) -> None:
    """Raise if a group's options of recovery scaling are bad, or do not go with its basis.

    Args:
        group: Its options.
        selects: Whether its bases are selections of rows.
    """
    limit, scale = group["growth_limit"], group["residual_scale"]
    number = isinstance(limit, (int, float)) and not isinstance(limit, bool)
    if limit is not None and not (number and 1 <= limit < math.inf):
        raise ValueError(
            f"growth_limit must be finite and at least 1, or None for no limit, got {limit!r}."
        )
    if scale is not None:
        check_number("residual_scale", scale, 0, above=True)
    if group["residual"] == "drop":
        return
    if group["side"] == "full":
        raise ValueError(
            f"residual = {group['residual']!r} scales the columns along the side without a basis; "
            'side="full" leaves none. Choose another side, or residual="drop".'
        )
    if selects:
        raise ValueError(
            f"residual = {group['residual']!r} needs a dense orthonormal basis, and basis = "
            f'{group["basis"]!r} selects rows. Choose another basis, or residual="drop".'
        )


def recover_(
    g: Float[Tensor, "*stack rows cols"],
    r: Float[Tensor, "*stack a b"],
    x: Float[Tensor, "*stack a b"],
    previous: Float[Tensor, "*stack"],
    *,
    group: Mapping[str, Any],
    axis: int,
    age: float,
    shard: Shard | None = None,
) -> Float[Tensor, "*stack c e"]:
    """Change `x` and find factors f so that `scale * (lift(x) + f * G)` is the whole step.

    Args:
        g: Gradient G = X, stored.
        r: Its coordinates R.
        x: Direction -O in coordinates, overwritten.
        previous: Norm of the last residual step, overwritten. Zero, as at the start, or tiny
            lifts the limit for this step: 1 % a step from nothing would take thousands of steps.
        group: Options `residual`, `scale`, `residual_scale` and `growth_limit`.
        axis: The axis of the coordinates that a basis made, -2 for a left one, -1 for a right.
        age: Steps that the moments have seen, this one included.
        shard: Which rows of G this process holds, if not all; then those of f and, with a basis
            on the right, of `r` and `x` as well.

    Returns:
        f, one factor for each column along `axis`, `(*stack, 1, cols)` or `(*stack, rows, 1)`.

    Sources:
        Chen et al., "Fira: Can we achieve full-rank training of LLMs under low-rank
        constraint?", 2024, eq. 8 to 11, and its released code.
    """
    scale, outer, limit = group["scale"], group["residual_scale"], group["growth_limit"]
    # The released Fira multiplies what it lifts by its scale, also inside the residual, which
    # then is not orthogonal to the basis; the residual itself it takes at the full rate.
    fira = group["residual"] == "fira"
    inside = scale if fira else 1.0
    outer = (1.0 if fira else scale) if outer is None else outer
    low = _norms(r, axis, r.dtype)
    phi = _norms(x, axis, r.dtype) / (low + _TINY)
    lengths = _norms(g, axis, r.dtype)
    if shard is not None and axis == -2:
        lengths = shard.sum(lengths.square_()).sqrt_()
    whole = phi * lengths
    rest = whole.square() - (2 * inside - inside**2) * (phi * low).square()
    total = rest.clamp_(min=0).sum(dim=(-2, -1))
    norm = (total if shard is None or axis == -2 else shard.sum(total)).sqrt()
    if fira:
        # Its O is not corrected for bias, and so neither is the norm that its limiter compares.
        beta1, beta2 = group["betas"]
        norm = norm * ((1 - beta1**age) / math.sqrt(1 - beta2**age))
    # Finite gradients of 1e20 have squares beyond float32. Adam then makes no step; without this
    # the residual would be 0 times infinity.
    sound = torch.isfinite(norm)
    cut = sound.to(norm.dtype)
    if limit is not None:
        cut = torch.where(previous > _TINY, (limit * previous / norm).clamp_(max=1), cut)
        cut = torch.where(sound, cut, 0)
    phi = phi * cut[..., None, None]
    previous.copy_(torch.where(sound, norm * cut, previous))
    factor = phi.mul_(-outer / scale)
    x.addcmul_(factor, r, value=-inside)
    return factor


def _norms(m: Tensor, axis: int, dtype: torch.dtype) -> Tensor:
    """Norms along an axis, kept as an axis of one."""
    if axis == -1 or m.device.type != "cpu":
        return torch.linalg.vector_norm(m, dim=axis, keepdim=True, dtype=dtype)
    # Over rows torch's kernel for the CPU strides through memory, five times slower; squaring
    # a block that stays in cache needs no temporary of the whole.
    total = sum(b.to(dtype).square().sum(dim=-2, keepdim=True) for b in m.split(64, dim=-2))
    assert isinstance(total, Tensor)
    return total.sqrt_()
