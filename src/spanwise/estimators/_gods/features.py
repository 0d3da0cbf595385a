"""What the frames act on: the samples, scaled, or their coordinates in a kernel's space."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

Scaling = Literal["standard", "whiten", "rows"]
Kernel = Literal["linear", "rbf"] | Callable[[Any, Any], Any]
_SMALL = 1e-10
"""Eigenvalues of a kernel matrix up to this share of the largest are dropped."""
_NEGATIVE = 1e-6
"""A kernel matrix with an eigenvalue below minus this share is none."""


def scale_rows(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Rows of length one; a row of zeros stays."""
    lengths = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / torch.where(lengths > 0, lengths, 1)


def column_scales(x: Float[Tensor, "n d"]) -> Float[Tensor, "*d"]:
    """Standard deviations to divide by; 1 where a column is constant."""
    spread = x.std(dim=0, correction=0)
    # Rounding of a constant column is no spread.
    floor = 10 * torch.finfo(x.dtype).eps * x.abs().amax(dim=0)
    return torch.where(spread > floor, spread, 1)


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


def gram(
    kernel: Kernel | None, gamma: float, a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]
) -> Float[Tensor, "n m"]:
    """The kernel of every row of `a` with every row of `b`.

    Raises:
        ValueError: If a callable returns another shape.
    """
    if kernel == "linear":
        return a @ b.mT
    if kernel == "rbf":
        return torch.cdist(a, b).square_().mul_(-gamma).exp_()
    assert callable(kernel)  # `check_options` has seen to it
    found = torch.as_tensor(kernel(a.cpu().numpy(), b.cpu().numpy())).to(a)
    if found.shape != (len(a), len(b)):
        raise ValueError(
            f"kernel must return (n, m) = ({len(a)}, {len(b)}) for (n, d) and (m, d), got "
            f"{tuple(found.shape)}."
        )
    return found


def kernel_map(matrix: Float[Tensor, "m m"], n_components: float | None) -> Float[Tensor, "m r"]:
    """A with K A the coordinates of the landmarks: A = U L^(-1/2), largest eigenvalue first.

    K is not centred, so that a linear kernel gives back linear GODS in the space of the rows.

    Args:
        matrix: Kernel matrix K of the landmarks.
        n_components: How many coordinates at most, or below 1 the share of the trace to hold.

    Raises:
        ValueError: If K is not finite, not symmetric, or has a negative eigenvalue.
    """
    k = matrix.double()
    off = (k - k.mT).abs().max()
    if not bool(off <= 1e-5 * k.abs().max()):  # also NaN
        raise ValueError(
            "kernel must give a finite and symmetric matrix, got one off its transpose by "
            f"{float(off):.1e}."
        )
    values, vectors = torch.linalg.eigh((k + k.mT) / 2)
    largest = float(values[-1])
    if largest <= 0 or float(values[0]) < -_NEGATIVE * largest:
        raise ValueError(
            f"kernel must be positive semi-definite: eigenvalues range from {float(values[0]):.1e} "
            f"to {largest:.1e}. Use another kernel, such as 'rbf'."
        )
    kept = int((values > _SMALL * largest).sum())
    if n_components is not None and n_components < 1:
        held = values.flip(0).clamp(min=0).cumsum(0)
        n_components = int((held < n_components * held[-1]).sum()) + 1
    kept = kept if n_components is None else min(kept, int(n_components))
    values, vectors = values.flip(0)[:kept], vectors.flip(1)[:, :kept]
    return (vectors * values.rsqrt()).to(matrix.dtype)
