"""What MLC minimises, and the self-supervised loss that comes before it."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from typing_extensions import override

from spanwise.estimators._mlc.cluster_rate import cluster_rate
from spanwise.estimators._mlc.rates import checked, coding_rate, columns_of


class Rates(NamedTuple):
    """The parts of `MLCLoss`."""

    loss: Float[Tensor, ""]
    rate: Float[Tensor, ""]
    """R(Z)."""
    cluster_rate: Float[Tensor, ""]
    """R_c(Z, Gamma)."""


class MLCLoss(nn.Module):
    """`-R(Z) + gamma R_c(Z, Gamma) + penalty / 2 ||Gamma||_F^2`, to be minimised.

    Both rates have gradients in closed form: no graph of n matrices of size (d, d) is kept.

    Args:
        eps: The precision of the rates, above 0; not its square, which released code calls eps.
        gamma: Weight of the cluster rate, at least 0.
        penalty: Weight of the membership's size, at least 0; the follow-up code has 0.05.
        columns: Only so many of the membership's columns, drawn anew at each call and scaled, so
            that the loss is right on average; at least 1. None: all.
        top: Only so many of each column's largest entries, scaled to the column's sum; saves time
            below d, and is near the whole only if a cluster has no more samples. None: all.

    Raises:
        ValueError: If a parameter is out of range.

    Sources:
        Ding et al., "Unsupervised manifold linearizing and clustering", 2023, equation 3; Chu et
        al., "Image clustering via the principle of rate reduction in the age of pretrained
        models", 2024 (the penalty).
    """

    def __init__(
        self,
        eps: float = 0.1**0.5,
        *,
        gamma: float = 1.0,
        penalty: float = 0.0,
        columns: int | None = None,
        top: int | None = None,
    ) -> None:
        super().__init__()
        if not eps > 0:
            raise ValueError(f"eps must be above 0, got {eps}.")
        for name, value in (("gamma", gamma), ("penalty", penalty)):
            if not value >= 0:
                raise ValueError(f"{name} must be at least 0, got {value}.")
        for name, count in (("columns", columns), ("top", top)):
            if count is not None and count < 1:
                raise ValueError(f"{name} must be None or at least 1, got {count}.")
        self.eps, self.gamma, self.penalty = eps, gamma, penalty
        self.columns, self.top = columns, top
        self._calls = 0

    @override
    def forward(
        self,
        Z: Float[Tensor, "n d"],
        membership: Float[Tensor, "n k"],
        *,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, ""]:
        """The loss; see `terms`."""
        return self.terms(Z, membership, generator=generator).loss

    def terms(
        self,
        Z: Float[Tensor, "n d"],
        membership: Float[Tensor, "n k"],
        *,
        generator: torch.Generator | None = None,
    ) -> Rates:
        """The loss and its parts.

        Args:
            Z: Samples in rows.
            membership: Doubly stochastic `(n, n)`, or one column a cluster.
            generator: What draws `columns`; without one, the n-th call draws by seed n.

        Raises:
            ValueError: If shapes do not fit, or Z is not finite.
        """
        Z = checked(Z, self.eps)
        membership = columns_of(membership, Z)
        drawn = self._draw(membership.shape[1], generator, Z.device)
        whole = coding_rate(Z, self.eps)
        part = cluster_rate(Z, membership, self.eps, columns=drawn, top=self.top)
        loss = self.gamma * part - whole
        if self.penalty:
            loss = loss + self.penalty / 2 * membership.square().sum()
        return Rates(loss, whole, part)

    def _draw(
        self, count: int, generator: torch.Generator | None, device: torch.device
    ) -> Int[Tensor, " m"] | None:
        if self.columns is None or self.columns >= count:
            return None
        if generator is None:
            generator = torch.Generator().manual_seed(self._calls)
            self._calls += 1
        order = torch.randperm(count, generator=generator, device=generator.device)
        return order[: self.columns].to(device)


def tcr_loss(
    Z: Float[Tensor, "n d"], other: Float[Tensor, "n d"], eps: float, weight: float = 1.0
) -> Float[Tensor, ""]:
    """`-R((Z + Z') / 2) - weight mean_i |z_i' z_i'|`: spread samples, keep two views together.

    Args:
        Z: Features of one view, unit rows.
        other: Features of another view of the same samples. The mean is not normalised.
        eps: The precision of the rate, above 0; not its square.
        weight: Of the agreement, at least 0.

    Raises:
        ValueError: If shapes differ, `eps` is not above 0 or `weight` is negative.

    Sources:
        Ding et al., "Unsupervised manifold linearizing and clustering", 2023, equation 5; Li et
        al., "Neural manifold clustering and embedding", 2022.
    """
    if Z.shape != other.shape:
        raise ValueError(
            f"both views must have one shape, got {tuple(Z.shape)} and {tuple(other.shape)}."
        )
    if not weight >= 0:
        raise ValueError(f"weight must be at least 0, got {weight}.")
    agreement = (Z * other).sum(-1).abs().mean()
    return -coding_rate((Z + other) / 2, eps) - weight * agreement
