"""The loss of a batch with its gradient by hand, for networks of our own in discrete time.

What `lran_loss` and autograd compute, in a third of the operations: on small networks they, not
the arithmetic, take the time.
"""

import itertools
from collections.abc import Sequence
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
    """Whether `HandGradient` and `FlatAdam` know the module."""
    return (
        type(module) is LRANModule  # a subclass may step or forecast in its own way
        and isinstance(module.encoder, ELULayers)
        and isinstance(module.decoder, ELULayers)
        and module.encoder is not module.decoder
        and not module.continuous
        and all(p.requires_grad for p in module.parameters())
    )


class HandGradient:
    """J of windows as `batch_loss` has it, and its gradient.

    States are laid out time first: the present ones of all windows lie side by side, and so does
    every later step.

    Args:
        module: One that `is_plain`.
        parts: Its parameters, in its order; they may change in place.
        slopes: Where a call writes their gradients.
        plan: Windows and weights.
        state_eps: Added to every squared norm of a state.
    """

    def __init__(
        self,
        module: LRANModule,
        parts: Sequence[Tensor],
        slopes: Sequence[Tensor],
        plan: "Plan",
        state_eps: float,
    ) -> None:
        self.plan, self.state_eps = plan, state_eps
        self.matrix, self.by_matrix = parts[0], slopes[0]  # a module's own come first
        border = 1 + len(list(module.encoder.parameters()))
        nets = [parts[1:border], parts[border:]]
        self.weights, self.biases = [net[::2] for net in nets], [net[1::2] for net in nets]
        self.into = [slopes[1:border], slopes[border:]]

    @torch.no_grad()
    def __call__(self, x: Float[Tensor, "T B n"]) -> Float[Tensor, ""]:
        """J; its gradient replaces what `slopes` held.

        Args:
            x: Windows of T >= 2 states, time first.
        """
        plan, matrix = self.plan, self.matrix
        steps, count, n = x.shape
        flat = x.reshape(-1, n)
        z, seen = ahead(flat, self.weights[0], self.biases[0])
        d = z.shape[1]
        z_hat = torch.empty_like(z)
        rolled = z_hat.view(steps, count, d).unbind()
        rolled[0].copy_(z[:count])
        for before, after in itertools.pairwise(rolled):
            torch.mm(before, matrix, out=after)
        x_hat, made = ahead(z_hat, self.weights[1], self.biases[1])
        share = 1 / ((1 + plan.beta) * count)

        off = x_hat.sub_(flat)
        scale = step_weights(plan.delta, steps, x.dtype, x.device)[:, None] * share
        size = flat.square().sum(1).add_(self.state_eps)
        scale = (scale / size.view(steps, count)).view(-1, 1)
        squares = off.square().sum(1)
        loss = torch.dot(squares, scale[:, 0])
        by_z_hat, _ = back(
            off.mul_(scale.mul_(2)), made, self.weights[1], self.into[1], to_input=True
        )
        assert by_z_hat is not None

        by_z = torch.zeros_like(z)
        if plan.beta > 0:
            off = z_hat - z  # 0 at the first states
            size = z.square().sum(1)
            size += plan.eps * size.mean() + torch.finfo(x.dtype).tiny
            scale = size.reciprocal()
            later = step_weights(plan.delta, steps - 1, x.dtype, x.device)
            scale[:count] = 0
            scale[count:].view(steps - 1, count).mul_(later[:, None] * (share * plan.beta))
            squares = off.square().sum(1)
            loss = loss + torch.dot(squares, scale)
            by_size = squares.mul_(scale).div_(size).neg_()
            by_size += by_size.sum() * (plan.eps / len(size))  # eps is a share of the mean
            off *= scale.mul_(2).view(-1, 1)
            by_z_hat += off
            by_z = torch.addcmul(off.neg_(), z, by_size.view(-1, 1), value=2)

        # A forecast moves all later ones: from the last step to the first.
        slopes = by_z_hat.view(steps, count, d).unbind()
        turned = matrix.mT
        for step in range(steps - 2, -1, -1):
            slopes[step].addmm_(slopes[step + 1], turned)
        torch.mm(z_hat[:-count].mT, by_z_hat[count:], out=self.by_matrix)
        by_z[:count] += slopes[0]
        back(by_z, seen, self.weights[0], self.into[0], to_input=False)
        return loss
