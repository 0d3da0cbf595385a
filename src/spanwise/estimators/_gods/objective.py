"""The objective of GODS, with its gradient by hand.

Both classifiers of a pair ask the same of their data once the second is mirrored: with
`frames = (W1, -W2)` and `biases = (b1, -b2)` every margin `W^T x + b` has to reach eta. That is the
form used here; `mirrored` goes there and back.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Frames = Float[Tensor, "*starts c d k"]
Biases = Float[Tensor, "*starts c k"]


def mirrored(frames: Frames, biases: Biases) -> tuple[Frames, Biases]:
    """(W1, W2, b1, b2) from (W1, -W2, b1, -b2), or the other way round."""
    sign = torch.tensor([1.0, -1.0], dtype=frames.dtype, device=frames.device)
    return frames * sign[:, None, None], biases * sign[:, None]


@dataclass(frozen=True)
class Objective:
    """Hinges that push data off the hyperplanes, and squared distances that hold it near.

    For c classifiers of k directions, and margins `m = W^T x + b`,

        sum_i [eta - min_j m_j(x_i)]_+^2 + lam sum_i |m(x_i)|^2 + ridge |b|^2

    summed over the classifiers, and with two of them `coupling (|b1 + b2|^2 + 2 tr(W1^T W2))`.
    Sums over the data, not means.
    """

    x: Float[Tensor, "n d"]
    eta: float
    lam: float
    coupling: float = 0.0
    """Pulls the hyperplanes of the pair together; in mirrored form, hence the signs."""
    ridge: float = 0.0
    """For the one-sided problems that give a start."""

    def cost(self, point: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Values `(starts,)`, and margins `(starts, c, k, n)` and hinges `(starts, c, n)`."""
        frames, biases = point
        # One product for all starts, classifiers and directions; samples last, so that the
        # minimum over directions runs along memory.
        margins = frames.mT.reshape(-1, frames.shape[-2]) @ self.x.mT
        margins = margins.view(*biases.shape, -1).add_(biases.unsqueeze(-1))
        hinges = (self.eta - margins.amin(dim=-2)).clamp_(min=0)
        value = hinges.square().sum(dim=(1, 2))
        if self.lam:
            value = value + self.lam * torch.linalg.vector_norm(margins.flatten(1), dim=1).square()
        if self.ridge:
            value = value + self.ridge * biases.square().sum(dim=(1, 2))
        if self.coupling:
            overlap = (frames[:, 0] * frames[:, 1]).sum(dim=(1, 2))
            gap = biases.sum(dim=1).square().sum(dim=1)
            value = value + self.coupling * (gap + 2 * overlap)
        return value, (margins, hinges)

    def gradient(self, point: tuple[Tensor, ...], saved: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The Euclidean gradient; where several directions tie for the minimum, that of one."""
        frames, biases = point
        margins, hinges = saved
        least = margins.min(dim=-2, keepdim=True).indices  # six times faster than argmin
        pull = margins.mul_(2 * self.lam)
        pull.scatter_add_(-2, least, hinges.mul(-2).unsqueeze(-2))
        by_frame = (pull.view(-1, len(self.x)) @ self.x).view(*biases.shape, -1).mT
        by_bias = pull.sum(dim=-1)
        if self.ridge:
            by_bias = by_bias + 2 * self.ridge * biases
        if self.coupling:
            by_frame = by_frame + 2 * self.coupling * frames.flip(1)
            by_bias = by_bias + 2 * self.coupling * biases.sum(dim=1, keepdim=True)
        return by_frame, by_bias
