"""Activations as rows of samples: masks for tokens, patches for convolutions."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
CHUNK = 2**24
"""Elements of unfolded patches built at a time (64 MiB in float32)."""


def token_mask(batch: Any) -> Bool[Tensor, "batch length"] | None:
    """Which tokens count, or None where all do.

    Raises:
        ValueError: If the batch has an attention mask that is not `(batch, length)`.
    """
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if mask is None:
        return None
    if mask.ndim != 2:
        raise ValueError(
            f"attention_mask must be (batch, length), got {tuple(mask.shape)}; without it, all "
            "positions count."
        )
    mask = mask.bool()
    return None if mask.all() else mask


def valid_rows(
    x: Float[Tensor, "*any n"], mask: Bool[Tensor, "batch length"] | None
) -> Float[Tensor, "k n"] | str:
    """The samples of a token-wise activation, padding left out, or why they cannot be told."""
    if mask is None:
        return x.reshape(-1, x.shape[-1])
    batch, length = mask.shape
    if x.ndim >= 3 and tuple(x.shape[:2]) == (batch, length):
        return x[mask.to(x.device)].reshape(-1, x.shape[-1])
    if x.ndim == 2 and x.shape[0] == batch * length:
        return x[mask.reshape(-1).to(x.device)]
    if x.ndim == 2 and x.shape[0] == batch:
        return x  # One vector a sequence, pooled.
    return (
        f"the padding of a batch of {batch} x {length} tokens cannot be told in an activation of "
        f"shape {tuple(x.shape)}; feed batches without padding"
    )


def patches(x: Float[Tensor, "*any"], conv: Conv) -> Iterator[Float[Tensor, "k n"]]:
    """The windows that a convolution reads, `(positions, channels * kernel elements)`.

    Yields a few samples' worth at a time: all windows together are as many times the input's
    size as the kernel has elements.

    Args:
        x: The convolution's input, `(batch, channels, *space)` or without the batch.
        conv: An `nn.Conv1d`, `nn.Conv2d` or `nn.Conv3d` with one group.
    """
    space = len(conv.kernel_size)
    x = x if x.ndim == space + 2 else x.unsqueeze(0)
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    # The module's own list covers padding="same" and every mode, last axis first.
    x = functional.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
    per_sample = x[:1].numel() * math.prod(conv.kernel_size) // math.prod(conv.stride)
    for part in x.split(max(1, CHUNK // max(1, per_sample))):
        for axis in range(space):
            reach = (conv.kernel_size[axis] - 1) * conv.dilation[axis] + 1
            part = part.unfold(2 + axis, reach, conv.stride[axis])[..., :: conv.dilation[axis]]
        # (batch, channels, *positions, *kernel) -> positions first, channels beside the kernel.
        order = (0, *range(2, 2 + space), 1, *range(2 + space, 2 + 2 * space))
        part = part.permute(order)
        yield part.reshape(-1, math.prod(part.shape[1 + space :]))


def channels_last(y: Float[Tensor, "*any"], conv: Conv) -> Float[Tensor, "k m"]:
    """A convolution's output as rows, one for each position."""
    y = y if y.ndim == len(conv.kernel_size) + 2 else y.unsqueeze(0)
    return y.movedim(1, -1).reshape(-1, y.shape[1])
