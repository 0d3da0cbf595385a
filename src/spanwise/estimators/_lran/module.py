"""`LRANModule`: an encoder, a linear step and a decoder."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from spanwise.estimators._lran.layers import ELULayers

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


class LRANOutput(NamedTuple):
    """What `LRANModule` makes of windows; in the order of `lran_loss`, x first."""

    x_hat: Float[Tensor, "B T n"]
    """Decoded forecasts from each window's first state."""
    z: Float[Tensor, "B T d"]
    """Coordinates of every state."""
    z_hat: Float[Tensor, "B T d"]
    """Linear forecasts from each window's first coordinates."""


class LRANModule(nn.Module):
    """Encoder and decoder of your own around a linear step, z_{t+1} = z_t K in rows.

    Args:
        encoder: `(N, n)` -> `(N, d)`.
        decoder: `(N, d)` -> `(N, n)`.
        n_latent: d.
        continuous: Learn the generator A of K = exp(A), a step being the unit of time; then any
            elapsed time can be forecast.
        generator: Draws the noise around the identity (A: around 0) at which K begins.

    Attributes:
        step: K, or A, `(d, d)`; a parameter.

    Raises:
        ValueError: If `n_latent` is below 1.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        n_latent: int,
        *,
        continuous: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if n_latent < 1:
            raise ValueError(f"n_latent must be at least 1, got {n_latent}.")
        self.encoder, self.decoder, self.continuous = encoder, decoder, continuous
        generator = generator or torch.Generator().manual_seed(0)
        noise = NOISE * torch.randn(n_latent, n_latent, generator=generator)
        start = noise if continuous else torch.eye(n_latent) + noise
        held = next(encoder.parameters(), start)
        self.step = nn.Parameter(start.to(held.device, held.dtype))

    @override
    def forward(
        self,
        windows: Float[Tensor, "B T n"],
        elapsed: Float[Tensor, " T"] | Float[Tensor, "B T"] | None = None,
    ) -> LRANOutput:
        """Forecast every window from its first state.

        Args:
            windows: T successive states each.
            elapsed: Time since the first state, in steps; needs `continuous`.
        """
        count, steps, n = windows.shape
        z = self.encoder(windows.reshape(-1, n)).view(count, steps, -1)
        z_hat = self.rollout(z[:, 0], steps) if elapsed is None else self.flow(z[:, 0], elapsed)
        x_hat = self.decoder(z_hat.reshape(count * steps, -1)).view(count, steps, n)
        return LRANOutput(x_hat, z, z_hat)

    def rollout(self, z: Float[Tensor, "B d"], steps: int) -> Float[Tensor, "B T d"]:
        """`z K^0, ..., z K^(steps - 1)`, by one product with all powers."""
        powers = self.powers(steps)
        side_by_side = powers.transpose(0, 1).reshape(powers.shape[1], -1)
        return (z @ side_by_side).view(len(z), steps, -1)

    def powers(self, steps: int) -> Float[Tensor, "T d d"]:
        """`K^0, ..., K^(steps - 1)`, in log2(steps) products."""
        matrix = self.matrix()
        powers = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)[None]
        power = matrix
        while len(powers) < steps:
            powers = torch.cat([powers, powers[: steps - len(powers)] @ power])
            power = power @ power if len(powers) < steps else power
        return powers

    def flow(
        self, z: Float[Tensor, "B d"], elapsed: Float[Tensor, " T"] | Float[Tensor, "B T"]
    ) -> Float[Tensor, "B T d"]:
        """`z exp(t A)` for every elapsed time; equal times share their exponential.

        Raises:
            ValueError: If the module knows whole steps only.
        """
        if not self.continuous:
            raise ValueError("elapsed times need LRANModule(continuous=True).")
        times, where = torch.unique(elapsed, return_inverse=True)
        flows = torch.linalg.matrix_exp(times.to(self.step)[:, None, None] * self.step)
        if elapsed.ndim == 1:
            return torch.einsum("bd,tde->bte", z, flows[where])
        return torch.einsum("bd,btde->bte", z, flows[where])

    def matrix(self) -> Float[Tensor, "d d"]:
        """K."""
        return torch.linalg.matrix_exp(self.step) if self.continuous else self.step


NOISE = 0.01
"""Standard deviation of what K begins with beside the identity."""


def make_module(
    n: int,
    n_latent: int,
    hidden: Sequence[int],
    activation: str,
    continuous: bool,
    generator: torch.Generator,
) -> LRANModule:
    """Fully connected encoder and decoder, mirrored; the last layers are linear.

    With no hidden layer both are affine maps.
    """
    encoder = _layers([n, *hidden, n_latent], activation, generator)
    decoder = _layers([n_latent, *reversed(hidden), n], activation, generator)
    return LRANModule(encoder, decoder, n_latent, continuous=continuous, generator=generator)


def _layers(widths: Sequence[int], activation: str, generator: torch.Generator) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index, (a, b) in enumerate(itertools.pairwise(widths)):
        if index:
            layers.append(ACTIVATIONS[activation]())
        # torch's own start, drawn from our generator instead of the global one.
        layer = nn.utils.skip_init(nn.Linear, a, b)
        for held in layer.parameters():
            nn.init.uniform_(held, -(a**-0.5), a**-0.5, generator=generator)
        layers.append(layer)
    return ELULayers(*layers) if activation == "elu" else nn.Sequential(*layers)
