"""Kernels of samples, and the coordinates in which a kernel is a dot product."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

Kernel = Literal["linear", "rbf"] | Callable[[Any, Any], Any]
_SMALL = 1e-10
"""Eigenvalues of a kernel matrix up to this share of the largest are dropped; in float32 up to ten
times its rounding."""
_NEGATIVE = 1e-6
"""A kernel matrix with an eigenvalue below minus this share is none."""


def gram(
    kernel: Kernel | None, gamma: float, a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]
) -> Float[Tensor, "n m"]:
    """The kernel of every row of `a` with every row of `b`.

    Args:
        kernel: `"linear"`, `"rbf"`, exp(-gamma |a - b|^2), or a function of two arrays.
        gamma: Of the rbf kernel.
        a: Samples.
        b: Samples on the same device.

    Raises:
        ValueError: If a callable returns another shape.
    """
    if kernel == "linear":
        return a @ b.mT
    if kernel == "rbf":
        a, b = nearer_zero(a, b)
        return torch.cdist(a, b).square_().mul_(-gamma).exp_()
    assert callable(kernel)  # the estimators' checks have seen to it
    found = torch.as_tensor(kernel(a.cpu().numpy(), b.cpu().numpy())).to(a)
    if found.shape != (len(a), len(b)):
        raise ValueError(
            f"kernel must return (n, m) = ({len(a)}, {len(b)}) for (n, d) and (m, d), got "
            f"{tuple(found.shape)}."
        )
    return found


def nearer_zero(
    a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "m d"]]:
    """Both less the mean of `b`, where that is farther from zero than `b` is wide.

    There distances by expanded squares would lose the differences.
    """
    middle = b.mean(dim=0)
    if bool(middle.square().sum() > b.var(dim=0, correction=0).sum()):
        return a - middle, b - middle
    return a, b


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
    small = max(_SMALL, 10 * torch.finfo(matrix.dtype).eps)  # below it rounding of K is drawn
    kept = int((values > small * largest).sum())
    if n_components is not None and n_components < 1:
        held = values.flip(0).clamp(min=0).cumsum(0)
        n_components = int((held < n_components * held[-1]).sum()) + 1
    kept = kept if n_components is None else min(kept, int(n_components))
    values, vectors = values.flip(0)[:kept], vectors.flip(1)[:, :kept]
    return (vectors * values.rsqrt()).to(matrix.dtype)
