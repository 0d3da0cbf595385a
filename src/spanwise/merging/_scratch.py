"""Memory that is used again for every block of a pass over models."""

import math
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

LENT = 2**22
"""Bytes of the largest piece that is kept; what needs more gets memory of its own."""


class Scratch(threading.local):
    """One piece of memory for each purpose, in each thread.

    A fresh tensor for every block would be pages that the system has to clear first, and would
    never be in the core's cache: a pass then takes several times as long.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[str, torch.device], Tensor] = {}

    def __call__(
        self, purpose: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """A tensor of any content, overwritten by the next one of the same purpose."""
        count = math.prod(shape) * dtype.itemsize
        if count > LENT:
            return torch.empty(shape, dtype=dtype, device=device)
        held = self._held.get((purpose, device))
        if held is None:
            held = torch.empty(LENT, dtype=torch.uint8, device=device)
            self._held[purpose, device] = held
        return held[:count].view(dtype).view(shape)
