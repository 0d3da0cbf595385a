"""What a linearly recurrent autoencoder minimises."""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class LossParts(NamedTuple):
    """J = (reconstruction + beta latent) / (1 + beta)."""

    total: Float[Tensor, ""]
    reconstruction: Float[Tensor, ""]
    """Weighted relative error of decoded forecasts, the present state included."""
    latent: Float[Tensor, ""]
    """Weighted relative error of the linear steps, in the encoder's coordinates."""


def lran_loss(
    x: Float[Tensor, "B T n"],
    x_hat: Float[Tensor, "B T n"],
    z: Float[Tensor, "B T d"],
    z_hat: Float[Tensor, "B T d"],
    *,
    delta: float = 0.9,
    beta: float = 1.0,
    state_eps: float | Float[Tensor, ""] = 1e-2,
    latent_eps: float | Float[Tensor, ""] = 1e-2,
    elapsed: Float[Tensor, " T"] | Float[Tensor, "B T"] | None = None,
) -> LossParts:
    """The loss J of windows, their mean, without the regulariser Omega.

    J = 1 / (1 + beta) [ sum_{t >= 0} delta^t / N1 |x_hat_t - x_t|^2 / (|x_t|^2 + state_eps)
        + beta sum_{t >= 1} delta^(t - 1) / N2 |z_hat_t - z_t|^2 / (|z_t|^2 + latent_eps) ]

    with N1 and N2 the sums of the weights. Errors are relative to each state: large phases do not
    drown small ones. Gradients flow through both z_hat and z.

    Args:
        x: Windows of T states.
        x_hat: Decoded forecasts from each window's first state.
        z: The encoder's coordinates of every state.
        z_hat: Linear forecasts from each window's first coordinates.
        delta: Weight of a step beside the step before, in (0, 1].
        beta: Weight of the latent part, at least 0.
        state_eps: Above 0, in the units of |x|^2.
        latent_eps: Above 0, in the units of |z|^2. Far above |z|^2 it rewards an encoder that
            shrinks z to nothing.
        elapsed: Steps since the window's first state, where those are no integers; `(T,)` or one
            row a window. Weights are then delta^elapsed.

    Returns:
        J and its two parts.

    Raises:
        ValueError: If shapes do not fit or an option is out of range.

    Sources:
        Otto and Rowley, "Linearly-Recurrent Autoencoder Networks for learning dynamics", 2019,
        equation 25.
    """
    check_loss_options(delta, beta)
    for name, value in (("state_eps", state_eps), ("latent_eps", latent_eps)):
        if not isinstance(value, Tensor) and not 0 < value < math.inf:
            raise ValueError(f"{name} must be finite and above 0, got {value}.")
    steps = x.shape[1]
    if x.shape != x_hat.shape or z.shape != z_hat.shape or z.shape[:2] != x.shape[:2]:
        raise ValueError(
            "x and x_hat must be (B, T, n), z and z_hat (B, T, d), got "
            f"{tuple(x.shape)}, {tuple(x_hat.shape)}, {tuple(z.shape)}, {tuple(z_hat.shape)}."
        )
    if elapsed is not None and elapsed.shape not in (x.shape[1:2], x.shape[:2]):
        raise ValueError(
            f"elapsed must be (T,) or (B, T) = {tuple(x.shape[:2])}, got {tuple(elapsed.shape)}."
        )
    if beta > 0 and steps < 2:
        raise ValueError("the latent part needs windows of at least 2 states, or beta = 0.")
    weights = (
        step_weights(delta, steps, x.dtype, x.device)
        if elapsed is None
        else _shares(delta**elapsed)
    )
    relative = (x_hat - x).square().sum(-1) / (x.square().sum(-1) + state_eps)
    reconstruction = (weights * relative).sum(-1).mean()
    if beta == 0:
        return LossParts(reconstruction, reconstruction, torch.zeros_like(reconstruction))
    later = (
        step_weights(delta, steps - 1, x.dtype, x.device)
        if elapsed is None
        else _shares(delta ** (elapsed[..., 1:] - elapsed[..., 1:2]))
    )
    size = z[:, 1:].square().sum(-1) + latent_eps
    latent = (later * ((z_hat - z)[:, 1:].square().sum(-1) / size)).sum(-1).mean()
    return LossParts((reconstruction + beta * latent) / (1 + beta), reconstruction, latent)


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # or what is kept from there could enter no gradient
def step_weights(
    delta: float, steps: int, dtype: torch.dtype, device: torch.device
) -> Float[Tensor, " T"]:
    """delta^t over their sum; nobody may write into it."""
    return _shares(delta ** torch.arange(steps, dtype=dtype, device=device))


def _shares(weights: Float[Tensor, "*batch T"]) -> Float[Tensor, "*batch T"]:
    return weights / weights.sum(dim=-1, keepdim=True)


def check_loss_options(delta: float, beta: float) -> None:
    """Refuse weights out of range."""
    if not 0 < delta <= 1:
        raise ValueError(f"delta must be in (0, 1], got {delta}.")
    if not 0 <= beta < math.inf:
        raise ValueError(f"beta must be finite and at least 0, got {beta}.")
