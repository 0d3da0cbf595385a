"""Fully connected layers with ELU, forward and backward in one node each.

Small networks spend their time between operations: autograd would take one node for every layer,
activation and transpose, and a copy for every activation.
"""

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


class _Layers(torch.autograd.Function):
    @staticmethod
    @override
    def forward(*args: Any, **kwargs: Any) -> Any:
        ctx, x, *parameters = args
        weights, biases = parameters[::2], parameters[1::2]
        held = [x]
        for index, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            x = torch.addmm(bias, x, weight.mT)
            if index + 1 < len(weights):
                held.append(functional.elu_(x))
        ctx.save_for_backward(*held, *weights)
        return x

    @staticmethod
    @once_differentiable
    @override
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyrefly: ignore[bad-override]
        slope = grad_outputs[0]
        count = len(ctx.saved_tensors) // 2
        held, weights = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        found: list[Tensor | None] = []
        for index in reversed(range(count)):
            found += [slope.sum(dim=0), slope.mT @ held[index]]
            if index:
                # Of ELU's result: 1 above 0, else the result plus 1.
                slope = torch.ops.aten.elu_backward(
                    slope @ weights[index], 1.0, 1.0, 1.0, True, held[index]
                )
        first = slope @ weights[0] if ctx.needs_input_grad[0] else None
        return (first, *reversed(found))
