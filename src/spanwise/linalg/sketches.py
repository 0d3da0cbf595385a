"""Random mixing: the fast Walsh-Hadamard transform and bases sampled from it."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from spanwise.linalg._arrays import at_least_float32

LARGEST_TRANSFORM = 2**20
"""Longest transform; float32 sums of more terms than this lose their last three digits."""


def hadamard_transform(x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
    """The orthonormal Walsh-Hadamard transform of the last axis, `H x / sqrt(n)`.

    H is Sylvester's matrix of signs, `H[i, j] = (-1)^popcount(i & j)`. The scaled transform is
    symmetric and its own inverse, keeps norms, and costs n log n. Half precision is transformed
    in float32 and returned in its own dtype.

    Args:
        x: Real vectors along the last axis, whose length n is a power of two up to 2^20.

    Raises:
        ValueError: If n is no power of two, or above 2^20.
        TypeError: If `x` is not a real floating-point tensor.

    Sources:
        Fino and Algazi, "Unified matrix treatment of the fast Walsh-Hadamard transform", 1976.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x must be a real floating-point tensor, got {kind}.")
    n = x.shape[-1] if x.ndim else 0
    if n < 1 or n & (n - 1):
        raise ValueError(
            f"the last axis of x must have a power of two of entries, got shape {tuple(x.shape)}. "
            "Pad it with zeros, or use srht_basis, which takes any length."
        )
    if n > LARGEST_TRANSFORM:
        raise ValueError(f"x has n = {n} entries along its last axis; at most 2^20 are supported.")
    if n == 1:
        return x.clone()  # the result is the caller's own
    return _transform(x.to(at_least_float32(x.dtype)), n, 1).reshape(x.shape).to(x.dtype)


def srht_basis(
    d: int,
    r: int,
    *,
    generator: torch.Generator | None = None,
    batch: Sequence[int] = (),
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Float[Tensor, "*batch d r"]:
    """A random orthonormal basis from a subsampled randomized Hadamard transform.

    r columns, drawn without replacement, of a random orthogonal matrix Q that mixes coordinates
    in d log d: P = Q S. For d a power of two, Q = D H with random signs D, the classical
    transform. For any other d, H is replaced by the block diagonal of Hadamard matrices whose
    sizes are the binary digits of d, and mixing is applied twice with random signs and a random
    permutation between, because one block alone would leave its coordinates to themselves:
    Q = D1 B K1 D2 B K2. Padding to a power of two and cutting again would lose orthonormality.

    Since Q is orthogonal and S uniform, P^T P = I holds to rounding and E[P P^T] = (r / d) I
    exactly, for every d.

    Args:
        d: Ambient dimension, at most 2^20.
        r: Number of columns, at most d.
        generator: Source of randomness; None means a generator of its own with seed 0. The
            global generator is never advanced.
        batch: Leading axes; each gets a basis of its own.
        dtype: Dtype of the result; a half-precision one rounds a float32 basis.
        device: Where the result lives; by default where `generator` does.

    Raises:
        ValueError: If not 0 <= r <= d, or d is above 2^20.

    Sources:
        Tropp, "Improved analysis of the subsampled randomized Hadamard transform", 2011, which
        scales by sqrt(d / r) to keep norms in the mean; without it P is a projector's basis.
    """
    if not 0 <= r <= d:
        raise ValueError(f"r must be between 0 and d = {d}, got {r}.")
    if d > LARGEST_TRANSFORM:
        raise ValueError(f"d = {d} is above 2^20, the longest transform; use random_basis.")
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    wide = at_least_float32(dtype)
    bases = torch.empty(*batch, d, r, dtype=wide, device=generator.device)
    for basis in bases.view(-1, d, r) if r else ():
        basis.copy_(_sampled_columns(d, r, generator, wide))
    return bases.to(device=device, dtype=dtype)


def _sampled_columns(d: int, r: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    where = generator.device

    def signs() -> Tensor:
        bits = torch.randint(0, 2, (d, 1), generator=generator, device=where)
        return (2 * bits - 1).to(dtype)

    def shuffled() -> Tensor:
        return torch.randperm(d, generator=generator, device=where)

    x = torch.zeros(d, r, dtype=dtype, device=where)
    x[shuffled()[:r], torch.arange(r, device=where)] = 1
    x = _block_transform(x)
    if d & (d - 1):
        x = _block_transform((x * signs())[shuffled()])
    return x * signs()


def _block_transform(x: Float[Tensor, "d k"]) -> Float[Tensor, "d k"]:
    """Hadamard transforms of consecutive pieces whose lengths are the binary digits of d."""
    d, k = x.shape
    return torch.cat([_transform(x[a:b], b - a, k).reshape(b - a, k) for a, b in _pieces(d)])


def _pieces(d: int) -> Iterator[tuple[int, int]]:
    start = 0
    for bit in reversed(range(d.bit_length())):
        if d >> bit & 1:
            yield start, start + (1 << bit)
            start += 1 << bit


def _transform(y: Tensor, n: int, inner: int) -> Tensor:
    """Transform the axis of length n that `inner` entries lie behind in memory order.

    H is the Kronecker product of small ones. A product with 16 x 16 runs at the speed of a
    matrix product and makes a quarter of the passes that butterflies of two would.
    """
    done = 1
    while done < n:
        width = min(16, n // done)
        small = _sylvester(width, y)
        behind = done * inner
        y = y.reshape(-1, width) @ small if behind == 1 else small @ y.reshape(-1, width, behind)
        done *= width
    return y


def _sylvester(n: int, like: Tensor) -> Float[Tensor, "n n"]:
    h = like.new_ones(1, 1)
    while h.shape[0] < n:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    return h * n**-0.5
