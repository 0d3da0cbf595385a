"""The tensors that the optimizer benchmarks step: LLaMA-60M's, with gradients like real ones."""

import time
from collections.abc import Mapping

import torch
from torch import nn

RANK, SCALE, LR = 128, 0.25, 1e-2
LINEAR = [(512, 512)] * 32 + [(1376, 512)] * 16 + [(512, 1376)] * 8
REST = [(32000, 512)] * 2 + [(512,)] * 17


def make_weights() -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Linear matrices and the rest, with gradients."""
    generator = torch.Generator().manual_seed(0)

    def draw(shape: tuple[int, ...]) -> nn.Parameter:
        p = nn.Parameter(0.02 * torch.randn(shape, generator=generator))
        p.grad = torch.empty_like(p)
        return p

    linear, rest = [draw(s) for s in LINEAR], [draw(s) for s in REST]
    fill_gradients(linear, rest, 0)
    return linear, rest


def fill_gradients(linear: list[nn.Parameter], rest: list[nn.Parameter], seed: int) -> None:
    """Gradients with a k^-0.6 spectrum for the matrices, as real ones have; noise elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    for p in linear:
        m, n = p.shape
        k = min(m, n)
        values = torch.arange(1, k + 1) ** -0.6
        a = torch.randn(m, k, generator=generator) / m**0.5
        b = torch.randn(k, n, generator=generator) / n**0.5
        p.grad.copy_((a * values) @ b)  # type: ignore[union-attr]
    for p in rest:
        p.grad.normal_(generator=generator)  # type: ignore[union-attr]


def held_bytes(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> int:
    """Bytes that an optimizer keeps for `parameters`, tensors inside a peer's objects included."""

    def size(value: object) -> int:
        if torch.is_tensor(value):
            return value.numel() * value.element_size() if value.ndim else 0
        if isinstance(value, Mapping):
            return sum(map(size, value.values()))
        if isinstance(value, torch.optim.Optimizer):  # of a basis that learns
            return size(value.state)
        return sum(map(size, vars(value).values())) if hasattr(value, "__dict__") else 0

    return sum(size(value) for p in parameters for value in optimizer.state[p].values())


def seconds(function) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
