"""Fully connected layers with ELU, forward and backward by hand.

Small networks spend their time between operations: autograd would take one node for every layer,
activation and transpose, and a copy for every activation.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from typing_extensions import override


class ELULayers(nn.Sequential):
    """`Linear, ELU, Linear, ...` that computes what `nn.Sequential` would, faster."""

    @override
    def forward(self, input: Float[Tensor, "N a"]) -> Float[Tensor, "N b"]:
        """Of every row."""
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return super().forward(input)
        return _Layers.apply(input, *self.parameters())


def ahead(x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The layers' result, and what `back` needs: the input of every layer.

    Args:
        x: `(N, a)`.
        parameters: Weights and biases in turn.
    """
    held = [x]
    for index in range(0, len(parameters), 2):
        x = torch.addmm(parameters[index + 1], x, parameters[index].mT)
        if index + 2 < len(parameters):
            held.append(functional.elu_(x))
    return x, held


def back(
    slope: Tensor, held: Sequence[Tensor], weights: Sequence[Tensor], *, to_input: bool
) -> tuple[Tensor | None, list[Tensor]]:
    """Gradients by the input, if asked for, and by weights and biases in turn.

    Args:
        slope: By the result, `(N, b)`.
        held: As `ahead` gave it.
        weights: Of the layers.
        to_input: Whether the first is wanted.
    """
    found: list[Tensor] = []
    for index in reversed(range(len(weights))):
        found += [slope.sum(dim=0), slope.mT @ held[index]]
        if index:
            # Of ELU's result: 1 above 0, else the result plus 1.
            slope = torch.ops.aten.elu_backward(
                slope @ weights[index], 1.0, 1.0, 1.0, True, held[index]
            )
    found.reverse()
    return (slope @ weights[0] if to_input else None), found


class _Layers(torch.autograd.Function):
    @staticmethod
    @override
    def forward(*args: Any, **kwargs: Any) -> Any:
        ctx, x, *parameters = args
        result, held = ahead(x, parameters)
        ctx.save_for_backward(*held, *parameters[::2])
        return result

    @staticmethod
    @once_differentiable
    @override
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyrefly: ignore[bad-override]
        count = len(ctx.saved_tensors) // 2
        held, weights = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        first, found = back(grad_outputs[0], held, weights, to_input=ctx.needs_input_grad[0])
        return (first, *found)
