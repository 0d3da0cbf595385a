"""Checks, dtypes, signs and random draws that the modules of linalg share."""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def full_precision(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Within the body, autocast leaves products on the device of `x` as they are."""
    kind = x.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return contextlib.nullcontext()


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The dtype to compute in: float32 for half precision, else `dtype` itself."""
    return torch.promote_types(dtype, torch.float32)


def matrix(name: str, m: Any) -> Tensor:
    """`m`, at least in float32, or an error that names it.

    Raises:
        ValueError: If `m` has fewer than two axes.
        TypeError: If `m` is not a dense, real, floating-point tensor.
    """
    if not isinstance(m, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(m).__name__}.")
    if not m.is_floating_point() or m.layout != torch.strided:
        raise TypeError(
            f"{name} must be a dense, real, floating-point tensor, got {m.dtype} ({m.layout}). "
            "Convert it with .to_dense() or .float()."
        )
    if m.ndim < 2:
        raise ValueError(
            f"{name} must be a matrix (*batch, rows, columns), got shape {tuple(m.shape)}. "
            "A single vector is x.unsqueeze(-1)."
        )
    return m.to(at_least_float32(m.dtype))


def largest_entry(name: str, m: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch 1 1"]:
    """The largest magnitude in each matrix; one pass that also finds NaN and infinity.

    Raises:
        ValueError: If `m` holds a non-finite entry.
    """
    if not m.numel():
        return m.new_zeros(*m.shape[:-2], 1, 1)
    held, dims = m.detach(), (-2, -1)
    # Two extremes, where |m| would be a copy of m; NaN is passed on by both.
    peak = torch.maximum(held.amax(dims, keepdim=True), -held.amin(dims, keepdim=True))
    if not bool(torch.isfinite(peak).all()):
        bad = int((~torch.isfinite(m)).sum())
        raise ValueError(
            f"{name} holds {bad} non-finite entries of {m.numel()}: NaN or infinity has no "
            "singular vectors. Skip this matrix, or find where it overflowed."
        )
    return peak


def pair(
    u: Tensor, x: Tensor, names: tuple[str, str] = ("basis", "x")
) -> tuple[Tensor, Tensor, torch.dtype]:
    """Both in the dtype to compute in, and the dtype of a result: the wider of the two.

    Raises:
        ValueError: If the columns of `u` and `x` live in different spaces.
        TypeError: If either is not a dense, real, floating-point tensor.
    """
    first, second = matrix(names[0], u), matrix(names[1], x)
    if u.shape[-2] != x.shape[-2]:
        raise ValueError(
            f"{names[0]} and {names[1]} must live in the same space: {names[0]} has "
            f"d = {u.shape[-2]}, {names[1]} has d = {x.shape[-2]}. Transpose rows with .mT."
        )
    wide = torch.promote_types(first.dtype, second.dtype)
    return first.to(wide), second.to(wide), torch.promote_types(u.dtype, x.dtype)


def finite_pair(a: Tensor, b: Tensor, names: tuple[str, str]) -> tuple[Tensor, Tensor]:
    """`pair` for functions that decompose, where NaN has no answer.

    Raises:
        ValueError: If the spaces differ or either holds a non-finite entry.
    """
    first, second, _ = pair(a, b, names)
    largest_entry(names[0], first)
    largest_entry(names[1], second)
    return first, second


def point_and_vector(x: Tensor, u: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """An orthonormal basis and a matrix of its shape, in the dtype to compute in.

    Raises:
        ValueError: If `x` is wide, or the last two axes differ.
        TypeError: If either is not a dense, real, floating-point tensor.
    """
    first, second, _ = pair(x, u, ("x", name))
    if x.shape[-1] != u.shape[-1]:
        raise ValueError(
            f"x and {name} must have as many columns, got {tuple(x.shape)} and {tuple(u.shape)}."
        )
    check_tall(x)
    return first, second


def check_tall(x: Tensor) -> None:
    """Refuse a basis with more columns than rows."""
    if x.shape[-1] > x.shape[-2]:
        raise ValueError(f"x must be tall, got {tuple(x.shape)}. Transpose row bases with .mT.")


def qr(m: Float[Tensor, "*batch d r"]) -> Float[Tensor, "*batch d r"]:
    """Q of the Householder QR decomposition whose R has a non-negative diagonal."""
    q, r = torch.linalg.qr(m)
    diagonal = torch.diagonal(r, dim1=-2, dim2=-1)
    sign = torch.where(diagonal < 0, -1.0, 1.0).to(q.dtype).unsqueeze(-2)
    return q * sign if q.requires_grad else q.mul_(sign)  # autograd keeps Q itself


def peak_sign(u: Float[Tensor, "*batch d r"]) -> Float[Tensor, "*batch 1 r"]:
    """The sign, 1 or -1, of each column's entry of largest magnitude."""
    if not u.numel():
        return u.new_ones(*u.shape[:-2], 1, u.shape[-1])
    u = u.detach()
    # Two extremes cost a tenth of an argmax.
    positive = u.amax(dim=-2, keepdim=True) >= -u.amin(dim=-2, keepdim=True)
    return torch.where(positive, 1.0, -1.0).to(u.dtype)


def gaussian(
    shape: Sequence[int],
    *,
    generator: torch.Generator | None,
    dtype: torch.dtype,
    device: torch.device | str | None = None,
) -> Tensor:
    """Standard normal entries from `generator`, or from a fixed seed of its own if None.

    The global generator is never advanced. Numbers are drawn where the generator lives and then
    moved, so that one seed gives one tensor on every device.
    """
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(tuple(shape), generator=generator, dtype=dtype, device=generator.device)
    return drawn if device is None else drawn.to(device)
