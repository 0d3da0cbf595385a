"""Keeping a fraction of an update: one training, many evaluations."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

ALPHAS = tuple(round(0.1 * i, 1) for i in range(11))


@dataclass(frozen=True, kw_only=True)
class AlphaPoint:
    """The losses of W_s + alpha (W_t - W_s), in nats per token."""

    alpha: float
    losses: dict[str, float]


@torch.no_grad()
def keep_fraction(
    model: nn.Module, start: Mapping[str, Tensor], end: Mapping[str, Tensor], alpha: float
) -> None:
    """Set the weights of `model` to `start + alpha (end - start)`; exact at 0 and at 1.

    Args:
        model: Changed in place.
        start: W_s by parameter name.
        end: W_t by parameter name.
        alpha: In [0, 1].

    Raises:
        ValueError: If alpha is out of range or a name is missing.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}.")
    for name, p in model.named_parameters():
        if name not in start or name not in end:
            raise ValueError(f"{name} is missing from the weights before or after training.")
        p.copy_(torch.lerp(start[name].to(p), end[name].to(p), alpha))


def sweep(
    model: nn.Module,
    start: Mapping[str, Tensor],
    evaluate: Callable[[], dict[str, float]],
    alphas: Sequence[float] = ALPHAS,
) -> list[AlphaPoint]:
    """Evaluate the model at every fraction of its update; its weights are restored.

    Args:
        model: With the trained weights W_t.
        start: W_s by parameter name.
        evaluate: Losses by text of the model as it stands.
        alphas: Fractions, each in [0, 1].
    """
    end = weights(model)
    points = []
    try:
        for alpha in alphas:
            keep_fraction(model, start, end, alpha)
            points.append(AlphaPoint(alpha=alpha, losses=evaluate()))
    finally:
        keep_fraction(model, start, end, 1.0)
    return points


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter on the CPU, tied ones once."""
    return {name: p.detach().to("cpu", copy=True) for name, p in model.named_parameters()}


def rows(points: Sequence[AlphaPoint]) -> list[list[str]]:
    """A table: alpha, then the loss on every text and its change from alpha = 0."""
    base = points[0].losses
    return [
        [
            f"{point.alpha:.1f}",
            *(
                f"{loss:.4f} ({loss - base[name]:+.4f})" if point.alpha else f"{loss:.4f}"
                for name, loss in point.losses.items()
            ),
        ]
        for point in points
    ]
