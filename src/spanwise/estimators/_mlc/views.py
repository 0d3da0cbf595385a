"""Random views of samples: what a cluster should not depend on."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""From samples and a generator on the CPU to a view of the same shape."""


def noise(scale: float) -> Augment:
    """Gaussian noise of `scale` times each feature's standard deviation in the batch."""

    def view(x: Float[Tensor, "n p"], generator: torch.Generator) -> Float[Tensor, "n p"]:
        drawn = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
        return x + scale * x.std(0, correction=0) * drawn

    return view


def image_shifts(height: int, width: int, pixels: int = 1, scale: float = 0.0) -> Augment:
    """Pictures in rows, moved by up to so many pixels each way, with noise.

    Args:
        height: Of a picture, whose rows lie one after the other.
        width: Of a picture.
        pixels: Farthest move; what enters is 0.
        scale: Noise, in units of the batch's standard deviation.

    Raises:
        ValueError: If a size is out of range; from the view, if rows hold no such pictures.
    """
    if height < 1 or width < 1 or pixels < 0 or not scale >= 0:
        raise ValueError(
            "height and width must be at least 1, pixels and scale at least 0, got "
            f"{height}, {width}, {pixels} and {scale}."
        )

    def view(x: Float[Tensor, "n p"], generator: torch.Generator) -> Float[Tensor, "n p"]:
        if x.shape[1] != height * width:
            raise ValueError(
                f"rows must hold {height} x {width} = {height * width} pixels, got {x.shape[1]}."
            )
        images = x.reshape(-1, height, width)
        padded = torch.nn.functional.pad(images, [pixels] * 4)
        reach = 2 * pixels + 1
        moves = torch.randint(reach, (2, len(x), 1), generator=generator).to(x.device)
        rows = moves[0] + torch.arange(height, device=x.device)
        columns = moves[1] + torch.arange(width, device=x.device)
        every = torch.arange(len(x), device=x.device)[:, None, None]
        moved = padded[every, rows[:, :, None], columns[:, None, :]].flatten(1)
        if scale:
            drawn = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
            moved = moved + scale * x.std() * drawn
        return moved

    return view
