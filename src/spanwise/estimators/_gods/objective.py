"""The objective of GODS, with its gradient by hand.

Both classifiers of a pair ask the same of their data once the second is mirrored: with
`frames = (W1, -W2)` and `biases = (b1, -b2)` every margin `W^T x + b` has to reach eta. That is the
form used here; `mirrored` goes there and back.
"""

from dataclasses import dataclass
from functools import cached_property

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

    summed over the classifiers, and with two of them `coupling (|W1 + W2|^2 + |b1 + b2|^2)`.
    Sums over the data, not means.
    """

    x: Float[Tensor, "n d"]
    eta: float
    lam: float
    coupling: float = 0.0
    """Pulls the hyperplanes of the pair together; in mirrored form, hence the signs."""
    ridge: float = 0.0
    """For the one-sided problems that give a start."""

    @cached_property
    def _mean(self) -> Float[Tensor, " d"]:
        return self.x.mean(dim=0)

    @cached_property
    def _root(self) -> Float[Tensor, "r d"]:
        """R with R^T R the scatter about the mean: distances to all samples from r <= d rows."""
        centred = self.x - self._mean
        if len(centred) <= centred.shape[1]:
            return centred
        return torch.linalg.qr(centred, mode="r").R

    def cost(self, point: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Values `(starts,)`, and what `gradient` needs of the margins at that point."""
        frames, biases = point
        # One product for all starts, classifiers and directions; samples last, so that the
        # minimum over directions runs along memory.
        flat = frames.mT.reshape(-1, frames.shape[-2])
        margins = (flat @ self.x.mT).view(*biases.shape, -1).add_(biases.unsqueeze(-1))
        hinges = (self.eta - margins.amin(dim=-2)).clamp_(min=0)
        value = hinges.square().sum(dim=(1, 2))
        centre = biases + (flat @ self._mean).view_as(biases)  # margins of the mean
        spread = (flat @ self._root.mT).view(*biases.shape, -1)
        if self.lam:
            near = spread.square().sum(dim=(1, 2, 3))
            near = near + len(self.x) * centre.square().sum(dim=(1, 2))
            value = value + self.lam * near
        if self.ridge:
            value = value + self.ridge * biases.square().sum(dim=(1, 2))
        if self.coupling:
            apart = frames.sum(dim=1).square().sum(dim=(1, 2)) + biases.sum(dim=1).square().sum(1)
            value = value + self.coupling * apart
        return value, (margins, hinges, centre, spread)

    def gradient(self, point: tuple[Tensor, ...], saved: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The Euclidean gradient; where several directions tie for the minimum, that of one."""
        frames, biases = point
        margins, hinges, centre, spread = saved
        x = self.x
        # Samples that are well inside pull at nothing.
        rows = hinges.flatten(0, 1).amax(dim=0).nonzero().squeeze(1)
        if len(rows) < 0.7 * len(x):
            x = x.index_select(0, rows)
            margins, hinges = margins.index_select(-1, rows), hinges.index_select(-1, rows)
        least = margins.min(dim=-2, keepdim=True).indices  # six times faster than argmin
        pull = torch.zeros_like(margins).scatter_(-2, least, hinges.mul(-2).unsqueeze(-2))
        by_frame = pull.flatten(0, 2) @ x
        by_bias = pull.sum(dim=-1)
        if self.lam:
            by_frame.addmm_(spread.flatten(0, 2), self._root, alpha=2 * self.lam)
            by_frame.addr_(centre.flatten(), self._mean, alpha=2 * self.lam * len(self.x))
            by_bias = torch.add(by_bias, centre, alpha=2 * self.lam * len(self.x))
        if self.ridge:
            by_bias = torch.add(by_bias, biases, alpha=2 * self.ridge)
        by_frame = by_frame.view(*biases.shape, -1).mT
        if self.coupling:
            weight = 2 * self.coupling
            by_frame = torch.add(by_frame, frames.sum(dim=1, keepdim=True), alpha=weight)
            by_bias = torch.add(by_bias, biases.sum(dim=1, keepdim=True), alpha=weight)
        return by_frame, by_bias
