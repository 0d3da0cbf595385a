"""What happens to Adam's moments when the basis under them changes."""

import torch
from jaxtyping import Float
from torch import Tensor


def change_of_basis(
    old: Float[Tensor, "*batch d r"], new: Float[Tensor, "*batch d r"]
) -> Float[Tensor, "*batch r r"]:
    """C = P_new^T P_old, which turns old coordinates into new ones."""
    return new.mT @ old


def _apply(left: Tensor | None, x: Tensor, right: Tensor | None) -> Tensor:
    if left is not None:
        x = left @ x
    return x if right is None else x @ right.mT


def rotate_(exp_avg: Tensor, left: Tensor | None, right: Tensor | None) -> None:
    """M <- C m (coordinates of the same vector in the new basis); v stays.

    Args:
        exp_avg: First moment in old coordinates, overwritten.
        left: Change of a left basis, `(*batch, r, r)`, or None.
        right: Change of a right basis, or None.
    """
    exp_avg.copy_(_apply(left, exp_avg, right))


def project_aware_(
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    left: Tensor | None,
    right: Tensor | None,
    *,
    step: float,
    betas: tuple[float, float],
) -> None:
    """Rotate both moments, the second as a variance plus a squared mean.

    With c1 = 1 - b1^k, c2 = 1 - b2^k and k steps done, m' = C m and
    v' = c2 |(C*C)(v / c2 - (m / c1)^2) + (m' / c1)^2| with elementwise squares.

    Args:
        exp_avg: First moment m, overwritten.
        exp_avg_sq: Second moment v, overwritten; never negative.
        left: Change of a left basis, `(*batch, r, r)`, or None.
        right: Change of a right basis, or None.
        step: k >= 1, the steps that the moments have seen.
        betas: Decay rates of the moments.

    Sources:
        Robert et al., "LDAdam: Adaptive optimization from low-dimensional gradient
        statistics", 2025, algorithm 1.
    """
    # c2 drawn into the bracket: v' = |(C*C)(v - k m^2) + k m'^2| with k = c2 / c1^2.
    k = (1 - betas[1] ** step) / (1 - betas[0] ** step) ** 2
    variance = exp_avg_sq.addcmul_(exp_avg, exp_avg, value=-k)  # overwritten below anyway
    rotated = _apply(left, exp_avg, right)
    squares = [None if c is None else c.square() for c in (left, right)]
    spread = _apply(squares[0], variance, squares[1])
    torch.addcmul(spread, rotated, rotated, value=k, out=exp_avg_sq).abs_()
    exp_avg.copy_(rotated)


def transfer_(
    rule: str,
    exp_avg: Tensor,
    exp_avg_sq: Tensor | None,
    left: Tensor | None,
    right: Tensor | None,
    *,
    step: float,
    betas: tuple[float, float],
) -> None:
    """Carry the moments over a refresh by one of the rules keep, rotate, project_aware, reset.

    After `reset` the caller restarts bias correction from this step.
    """
    if rule == "keep" or step == 0:
        return
    if rule == "reset":
        exp_avg.zero_()
        if exp_avg_sq is not None:
            exp_avg_sq.zero_()
    elif rule == "rotate":
        rotate_(exp_avg, left, right)
    else:
        assert exp_avg_sq is not None, "project_aware transfers two moments"
        project_aware_(exp_avg, exp_avg_sq, left, right, step=step, betas=betas)
