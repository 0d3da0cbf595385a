"""Arrays in, arrays out, what seeds a draw and what scales columns; needs no scikit-learn."""

import numbers
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Back = Callable[[Tensor], Any]
"""Turns a result into what the caller uses: an ndarray, or a tensor on his device."""


def to_numpy(result: Tensor) -> np.ndarray:
    """The way back for everything that is no tensor."""
    return result.detach().cpu().numpy()


def to_torch(result: Tensor) -> Tensor:
    """The way back for tensors."""
    return result.detach()


def make_generator(random_state: Any) -> torch.Generator:
    """A generator on the CPU, so that one seed draws the same numbers for every device.

    Args:
        random_state: An integer seeds a new generator, and fitting again repeats the result. None
            is seed 0: nothing here is random without saying so. A `torch.Generator`, a
            `numpy.random.Generator` or a `numpy.random.RandomState` is drawn from, and fitting
            again goes on where it stopped; one on another device gives a seed.

    Raises:
        TypeError: If it is none of these.
    """
    if isinstance(random_state, torch.Generator):
        if (device := random_state.device).type == "cpu":
            return random_state
        seed = int(torch.randint(2**63 - 1, (), generator=random_state, device=device))
    elif random_state is None:
        seed = 0
    elif isinstance(random_state, numbers.Integral) and not isinstance(random_state, bool):
        seed = int(random_state)
    elif isinstance(random_state, np.random.RandomState):
        seed = int(random_state.randint(2**31 - 1))
    elif isinstance(random_state, np.random.Generator):
        seed = int(random_state.integers(2**63 - 1))
    else:
        raise TypeError(
            "random_state must be None, an integer, a torch.Generator, or one of numpy's, got "
            f"{type(random_state).__name__}."
        )
    return torch.Generator().manual_seed(seed)


def column_scales(x: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
    """Standard deviations to divide by; 1 where a column is constant."""
    spread = x.std(dim=0, correction=0)
    # Rounding of a constant column is no spread.
    floor = 10 * torch.finfo(x.dtype).eps * x.abs().amax(dim=0)
    return torch.where(spread > floor, spread, 1)
