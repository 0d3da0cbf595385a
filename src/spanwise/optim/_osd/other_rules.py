"""Update rules beside Adam as plain functions on lists of tensors: Lion and Adafactor.

Called with `params` of zeros and no decay, each yields `-lr` times its direction.
"""

import torch
from torch import Tensor


def lion_(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
) -> None:
    """Lion in place: `p <- (1 - lr wd) p - lr sign(b1 m + (1 - b1) g)`, then `m` by b2.

    Args:
        params: Written in place.
        grads: Gradients of the same shapes and dtypes.
        exp_avgs: Momenta m, updated.
        lr: Learning rate, which is the size of every entry's step.
        betas: Weight of the momentum in the sign, and its decay rate.
        weight_decay: Decoupled decay, applied before the update.

    Sources:
        Chen et al., "Symbolic discovery of optimization algorithms", 2023, algorithm 2.
    """
    if not params:
        return
    directions = torch._foreach_lerp(exp_avgs, grads, 1 - betas[0])
    torch._foreach_sign_(directions)
    if weight_decay:
        torch._foreach_mul_(params, 1 - lr * weight_decay)
    torch._foreach_add_(params, directions, alpha=-lr)
    torch._foreach_lerp_(exp_avgs, grads, 1 - betas[1])


def adafactor_(
    params: list[Tensor],
    grads: list[Tensor],
    row_means: list[Tensor],
    col_means: list[Tensor],
    *,
    step: float,
    lr: float,
    weight_decay: float = 0.0,
    eps: float = 1e-30,
    clip: float = 1.0,
    decay_rate: float = -0.8,
) -> None:
    """Adafactor in place, factored, without first moment and with a rate of its own.

    The second moment is the outer product of its row and column means over the mean of all, each
    averaged with weight 1 - t^decay_rate on the past; an update whose root mean square exceeds
    `clip` is cut down to it.

    Args:
        params: Matrices `(*batch, m, n)` of any shapes, written in place.
        grads: Gradients.
        row_means: Running means of g^2 along each row, `(*batch, m)`, updated.
        col_means: Running means of g^2 along each column, `(*batch, n)`, updated.
        step: t, counted from 1 for this update. One for all.
        lr: Learning rate; not scaled by the weight.
        weight_decay: Decoupled decay, applied before the update.
        eps: Added to g^2.
        clip: Largest root mean square of an update.
        decay_rate: At most 0.

    Sources:
        Shazeer and Stern, "Adafactor: Adaptive learning rates with sublinear memory cost", 2018,
        algorithm 4.
    """
    fresh = step**decay_rate
    for p, g, rows, cols in zip(params, grads, row_means, col_means, strict=True):
        square = g.square().add_(eps)
        rows.lerp_(square.mean(-1), fresh)
        cols.lerp_(square.mean(-2), fresh)
        row_factor = (rows / rows.mean(-1, keepdim=True)).rsqrt_().unsqueeze(-1)
        update = torch.mul(row_factor, cols.rsqrt().unsqueeze(-2), out=square).mul_(g)
        size = update.square().mean((-2, -1), keepdim=True).sqrt_()
        update.div_(size.div_(clip).clamp_(min=1.0))
        if weight_decay:
            p.mul_(1 - lr * weight_decay)
        p.add_(update, alpha=-lr)
