"""The loss of a batch with its gradient by hand, for networks of our own in discrete time.

What `lran_loss` and autograd compute, in a third of the operations: on small networks they, not
the arithmetic, take the time.
"""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from spanwise.estimators._lran.layers import ELULayers, ahead, back
from spanwise.estimators._lran.loss import step_weights
from spanwise.estimators._lran.module import LRANModule

if TYPE_CHECKING:
    from spanwise.estimators._lran.training import Plan


def is_plain(module: LRANModule) -> bool:
    """Whether `loss_and_gradient` knows the module."""
    return (
        isinstance(module.encoder, ELULayers)
        and isinstance(module.decoder, ELULayers)
        and not module.continuous
        and all(p.requires_grad for p in module.parameters())
    )


@torch.no_grad()
def loss_and_gradient(
    module: LRANModule, x: Float[Tensor, "B T n"], plan: "Plan", state_eps: float
) -> Float[Tensor, ""]:
    """J of windows as `batch_loss` has it; its gradient replaces that of the parameters."""
    count, steps, n = x.shape
    flat = x.view(-1, n)
    inward, outward = list(module.encoder.parameters()), list(module.decoder.parameters())
    z, seen = ahead(flat, inward)
    d = z.shape[1]
    first = z.view(count, steps, d)[:, 0]
    powers = module.powers(steps)  # (T, d, d)
    beside = powers.transpose(0, 1).reshape(d, -1)
    z_hat = (first @ beside).view(-1, d)
    x_hat, made = ahead(z_hat, outward)
    share = 1 / ((1 + plan.beta) * count)

    off = x_hat.sub_(flat)
    scale = step_weights(plan.delta, steps, x.dtype, x.device) * share
    scale = scale / flat.square().sum(1).view(count, steps).add_(state_eps)
    loss = torch.dot(off.square().sum(1), scale.view(-1))
    by_z_hat, outer = back(off.mul_(2 * scale.view(-1, 1)), made, outward[::2], to_input=True)
    assert by_z_hat is not None

    by_z = torch.zeros_like(z)
    if plan.beta > 0:
        off = z_hat - z  # 0 at the first state
        size = z.square().sum(1)
        mean = size.mean()
        size += plan.eps * mean + torch.finfo(x.dtype).tiny
        later = step_weights(plan.delta, steps - 1, x.dtype, x.device) * (share * plan.beta)
        scale = torch.cat([later.new_zeros(1), later]).repeat(count) / size
        squares = off.square().sum(1)
        loss = loss + torch.dot(squares, scale)
        off *= 2 * scale.view(-1, 1)
        by_z_hat += off
        by_size = squares.mul_(scale).div_(size).neg_()
        by_size += by_size.sum() * (plan.eps / len(size))  # eps is a share of the mean
        by_z = torch.addcmul(off.neg_(), z, by_size.view(-1, 1), value=2)

    # Of z_hat = first [I, K, ..., K^(T-1)]: by K from the last power to the first.
    spread = by_z_hat.view(count, -1)
    by_z.view(count, steps, d)[:, 0] += spread @ beside.mT
    by_powers = (first.mT @ spread).view(d, steps, d).transpose(0, 1).contiguous()
    matrix = module.step
    for step in range(steps - 2, 0, -1):
        by_powers[step].addmm_(by_powers[step + 1], matrix.mT)
    module.step.grad = powers[:-1].reshape(-1, d).mT @ by_powers[1:].reshape(-1, d)

    _, inner = back(by_z, seen, inward[::2], to_input=False)
    for parameter, gradient in zip((*inward, *outward), (*inner, *outer), strict=True):
        parameter.grad = gradient
    return loss
