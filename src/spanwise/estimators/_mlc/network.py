"""A trunk with two heads of one shape: features, and the codes whose affinity is the membership."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override


class Network(nn.Module):
    """`Z = normalise(feature(trunk(x)))`, `C = normalise(cluster(trunk(x)))`.

    Args:
        trunk: Maps samples to `(n, width)`.
        width: Of the trunk's output.
        n_features: d, of either head.
        generator: Draws the heads.
    """

    def __init__(
        self, trunk: nn.Module, width: int, n_features: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.feature = linear(width, n_features, generator)
        self.cluster = linear(width, n_features, generator)

    @override
    def forward(self, x: Tensor) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
        """Features and cluster codes, unit rows."""
        hidden = self.trunk(x)
        if hidden.ndim != 2:
            raise ValueError(
                f"encoder must return (n, width), got shape {tuple(hidden.shape)}. End it with "
                "torch.nn.Flatten()."
            )
        return tuple(  # pyrefly: ignore[bad-return]
            nn.functional.normalize(head(hidden), dim=1) for head in (self.feature, self.cluster)
        )

    def features(self, x: Tensor) -> Float[Tensor, "n d"]:
        """Features alone."""
        return nn.functional.normalize(self.feature(self.trunk(x)), dim=1)

    def copy_heads(self) -> None:
        """Give the cluster head the feature head's weights, as a copy: both train on their own."""
        self.cluster.load_state_dict(self.feature.state_dict())


def linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """A `Linear` initialised as by torch, but drawn from `generator`."""
    # Its own draw would come from the global generator.
    layer: Any = nn.utils.skip_init(nn.Linear, inputs, outputs)
    bound = 1 / math.sqrt(inputs)
    with torch.no_grad():
        for parameter in layer.parameters():
            # Drawn in float64, so that one seed gives one network in every precision.
            drawn = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(drawn.mul_(2 * bound).sub_(bound))
    return layer


def mlp(inputs: int, hidden: Sequence[int], generator: torch.Generator) -> nn.Sequential:
    """The follow-up code's trunk: BatchNorm after the first layer, ReLU after each."""
    layers: list[nn.Module] = []
    for index, width in enumerate(hidden):
        layers.append(linear(inputs, width, generator))
        if index == 0:
            layers.append(nn.BatchNorm1d(width))
        layers.append(nn.ReLU())
        inputs = width
    return nn.Sequential(*layers)


def principal(network: Network, sample: Float[Tensor, "n p"]) -> None:
    """Let both heads, which act on the samples themselves, begin as their principal axes."""
    mean = sample.mean(0)
    _, _, axes = torch.linalg.svd(sample - mean, full_matrices=False)
    d = min(len(axes), network.feature.out_features)
    with torch.no_grad():
        # Beyond the samples' rank the heads stay as they were drawn, but small.
        network.feature.weight.mul_(1e-3)
        network.feature.weight[:d] = axes[:d]
        network.feature.bias.copy_(-network.feature.weight @ mean)
    network.copy_heads()


def build(
    encoder: nn.Module | None,
    sample: Float[Tensor, "n p"],
    hidden: Sequence[int],
    n_features: int,
    generator: torch.Generator,
) -> Network:
    """The network for samples like these, on their device and in their dtype.

    Raises:
        TypeError: If the encoder is no module.
        ValueError: If its output is not `(n, width)`.
    """
    if encoder is None and not len(hidden):
        network = Network(nn.Identity(), sample.shape[1], n_features, generator).to(sample)
        principal(network, sample)
        return network
    if encoder is None:
        trunk, width = mlp(sample.shape[1], hidden, generator), hidden[-1]
        return Network(trunk, width, n_features, generator).to(sample)
    if not isinstance(encoder, nn.Module):
        raise TypeError(f"encoder must be None or a torch.nn.Module, got {type(encoder).__name__}.")
    trunk = copy.deepcopy(encoder).to(sample)
    training = trunk.training
    with torch.no_grad():
        found = trunk.eval()(sample[:2])
    trunk.train(training)
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(sample[:2]):
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"encoder must map (n, {sample.shape[1]}) to (n, width), got {shape} for n = 2. End it "
            "with torch.nn.Flatten()."
        )
    return Network(trunk, found.shape[1], n_features, generator).to(sample)
