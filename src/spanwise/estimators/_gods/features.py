"""What the frames act on: how samples are scaled."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Scaling = Literal["standard", "whiten", "rows"]
_SMALL = 1e-10
"""Variances up to this share of the largest are none."""


def scale_rows(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Rows of length one; a row of zeros stays."""
    lengths = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / torch.where(lengths > 0, lengths, 1)


def whitener(x: Float[Tensor, "n d"]) -> Float[Tensor, "d r"]:
    """B with x B uncorrelated and of variance near 1, largest principal direction first.

    Variances are shrunk towards their mean by Ledoit and Wolf's rule: directions that few samples
    tell about would otherwise weigh most. Where nothing needs shrinking, directions without
    variance are dropped; where there is no variance at all, nothing changes.

    Args:
        x: Centred samples.

    Sources:
        Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices",
        2004.
    """
    n = len(x)
    values, vectors = torch.linalg.eigh(x.mT @ x / n)
    values = values.clamp(min=0)
    if not bool(values[-1] > 0):
        return torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    mean, square = values.mean(), values.square().sum()
    spread = square - len(values) * mean.square()
    noise = (x.square().sum(dim=1).square().mean() - square).clamp(min=0) / n
    share = (noise / spread).clamp(max=1) if bool(spread > 0) else torch.ones_like(mean)
    values = torch.lerp(values, mean, share)
    kept = values > _SMALL * values[-1]
    return (vectors[:, kept] * values[kept].rsqrt()).flip(1)
