"""Hooks on linear maps, and the sums that grow while a model sees data."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from spanwise.atlas._moments import Moments
from spanwise.atlas._reads import Reads
from spanwise.atlas._rows import valid_rows
from spanwise.layouts import LinearMap, matrix_view
from spanwise.merging._chosen import Chosen
from spanwise.merging._examples import Batch, Losses, Tokens
from spanwise.merging._stats import (
    BLOCK_FISHER,
    DIAG_FISHER,
    GRADIENT_GRAM,
    GRAM,
    Entry,
    Stats,
    mark_of,
    packed,
)  # fmt: skip


class Collector:
    """Watches what enters and leaves the chosen maps, and sums it.

    Args:
        model: It is run by `see`.
        chosen: What is summed.
        device: Where sums are kept; None for beside the activations.
    """

    def __init__(self, model: nn.Module, chosen: Chosen, device: torch.device | None) -> None:
        self.model, self.chosen, self.device = model, chosen, device
        self.skipped = dict(chosen.skipped)
        self.examples = 0
        self._reads, self._outputs = Reads(), dict[str, Moments]()
        self._squares: dict[str, Tensor] = {}
        self._blocks: dict[str, Moments] = {}
        self._tokens = Tokens()
        self._calls: list[tuple[LinearMap, Tensor, Tensor]] = []

    def install(self, stack: ExitStack) -> None:
        """Watch every map's calls until the stack unwinds."""
        for found in self.chosen.maps:
            tied = [m for m in found.others if type(m) is type(found.module)]
            for module in (found.module, *tied):
                handle = module.register_forward_hook(self._hook(found), with_kwargs=True)
                stack.callback(handle.remove)

    def see(self, batch: Batch, losses: Losses) -> None:
        """Add some examples to the sums."""
        chosen = self.chosen
        self._tokens = Tokens.of(self.model, batch)
        self._calls.clear()
        with torch.set_grad_enabled(chosen.needs_loss):
            output = batch.run(self.model)
            self._reads.flush()
            if not chosen.needs_loss:
                return
            each, labelled = losses(output, batch)
        self.examples += labelled
        tensors = chosen.tensors if chosen.singly else {}
        targets = [y for _, _, y in self._calls] + list(tensors.values())
        if not bool(torch.isfinite(each).all()):
            raise ValueError(
                "the loss is not finite: run the model in float32, and check labels and padding."
            )
        if not each.requires_grad:
            self.skipped |= dict.fromkeys(chosen.units, "the loss does not depend on it")
            return
        # Examples do not meet in the sum: no gradient shrinks with the size of the batch.
        gradients = torch.autograd.grad(each.sum(), targets, allow_unused=True)
        count = len(self._calls)
        self._at_outputs(gradients[:count], len(batch))
        for name, gradient in zip(tensors, gradients[count:], strict=True):
            if gradient is None:
                self.skipped.setdefault(name, "the loss does not depend on it")
                continue
            if chosen.diagonal:
                self._square(name, gradient)
            if chosen.has_block(name):
                self._outer(name, gradient)

    def result(self, options: Mapping[str, str]) -> Stats:
        """The sums as a value.

        Raises:
            ValueError: If one is not finite.
        """
        sums: dict[str, Tensor] = {}
        counts: dict[str, dict[str, int]] = {}
        triangles: dict[int, Tensor] = {}
        for found in self.chosen.maps:
            _, inputs = self._reads.moments(found.name)
            if self.chosen.gram and inputs is None:
                self.skipped.setdefault(found.name, "its module was never called")
            for kind, moments in ((GRAM, inputs), (GRADIENT_GRAM, self._outputs.get(found.name))):
                if moments is None:
                    continue
                # Maps that read one tensor hold one sum, which is packed once.
                if id(moments) not in triangles:
                    triangles[id(moments)] = packed(moments.total)
                sums[f"{found.name}::{kind}"] = triangles[id(moments)]
                counts.setdefault(found.name, {})[kind] = int(moments.count)
        for name, total in self._squares.items():
            sums[f"{name}::{DIAG_FISHER}"] = total
            counts.setdefault(name, {})[DIAG_FISHER] = self.examples
        for name, moments in self._blocks.items():
            sums[f"{name}::{BLOCK_FISHER}"] = packed(moments.total)
            counts.setdefault(name, {})[BLOCK_FISHER] = self.examples
        for key, total in sums.items():
            if not bool(torch.isfinite(total).all()):
                raise ValueError(
                    f"{key} is not finite: the activations or gradients are not. Run the model in "
                    "float32."
                )
        marks = not any(".lora_" in name for name, _ in self.model.named_parameters())
        entries = {
            name: Entry(
                self.chosen.layouts.get(name, "linear"),
                held,
                mark_of(self.chosen.tensors[name]) if marks else None,
            )
            for name, held in counts.items()
        }
        return Stats(sums, entries, options, self.skipped)

    def _hook(self, found: LinearMap) -> Callable[..., Tensor | None]:
        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
        ) -> Tensor | None:
            x = args[0] if args else next(iter(kwargs.values()))
            if self.chosen.gram:
                self._input(found, x.detach())
            if not self.chosen.needs_loss or not output.requires_grad:
                return None
            self._calls.append((found, x.detach(), output))
            # Whoever works in place does so on a copy: this tensor keeps its own gradient.
            return output.clone()

        return hook

    def _input(self, found: LinearMap, x: Tensor) -> None:
        mask = self._tokens.of_map(found.name)
        # q, k and v read one tensor, whose products are formed once.
        if self._reads.same(x, mask is self._tokens.decoder, found.name):
            return
        moments = Moments.zeros(found.inputs, like=x, device=self.device)
        moments.add_rows(_rows(found, x, mask))
        self._reads.new(x, mask is self._tokens.decoder, found.name, moments)

    def _at_outputs(self, gradients: Sequence[Tensor | None], size: int) -> None:
        """What the gradients at the maps' outputs, one for each call, add."""
        chosen = self.chosen
        weights: dict[str, list[Tensor]] = {}
        biases: dict[str, list[Tensor]] = {}
        for (found, x, _), g in zip(self._calls, gradients, strict=True):
            if g is None:
                continue
            if GRADIENT_GRAM in chosen.kinds_of(found):
                if found.name not in self._outputs:
                    zeros = Moments.zeros(found.outputs, like=g, device=self.device)
                    self._outputs[found.name] = zeros
                rows = _rows(found, g, self._tokens.of_map(found.name))
                self._outputs[found.name].add_rows(rows)
            if chosen.diagonal and not chosen.singly:
                xs, gs = (list(_examples(found, v, size)) for v in (x, g))
                products = [b.mT @ a for a, b in zip(xs, gs, strict=True)]
                _gather(weights, found.name, products)
                if found.bias is not None and found.bias in chosen.tensors:
                    _gather(biases, found.bias, [b.sum(0) for b in gs])
        layouts = {m.name: m.layout for m in chosen.maps}
        for name, each in weights.items():
            for g in each:  # the whole gradient of one example first, then its square
                self._square(name, matrix_view(g, layouts[name]))
        for name, each in biases.items():
            for g in each:
                self._square(name, g)

    def _square(self, name: str, gradient: Tensor) -> None:
        gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        if name not in self._squares:
            self._squares[name] = torch.zeros_like(gradient, device=self.device)
        gradient = gradient.to(self._squares[name].device)
        self._squares[name].addcmul_(gradient, gradient)

    def _outer(self, name: str, gradient: Tensor) -> None:
        if name not in self._blocks:
            self._blocks[name] = Moments.zeros(gradient.numel(), like=gradient, device=self.device)
        self._blocks[name].add_rows(gradient.reshape(1, -1))


def check_told(stats: Stats) -> None:
    """Raise `ValueError` if statistics say nothing: none there, or all gradients zero."""
    if not len(stats):
        why = "; ".join(f"{name}: {reason}" for name, reason in stats.skipped.items())
        raise ValueError(f"nothing could be collected. {why}.")
    for kind in (GRADIENT_GRAM, DIAG_FISHER, BLOCK_FISHER):
        held = [name for name, entry in stats.entries.items() if kind in entry.counts]
        if held and not any(bool(stats.total(name, kind).any()) for name in held):
            raise ValueError(
                f"every gradient is zero ({kind}): are all labels {-100}, or is the loss flat?"
            )


def _rows(found: LinearMap, x: Tensor, mask: Tensor | None) -> Tensor:
    rows = valid_rows(x, mask)
    if isinstance(rows, str):
        raise ValueError(f"{found.name}: {rows}.")
    return rows


def _examples(found: LinearMap, x: Tensor, size: int) -> Iterator[Tensor]:
    """The rows of each example."""
    if x.shape[0] % size:
        raise ValueError(
            f"{found.name} sees {x.shape[0]} rows for {size} examples, which cannot be told "
            "apart: use others=True, which looks at one at a time."
        )
    x = x.reshape(size, -1, x.shape[-1])
    yield from x.to(torch.promote_types(x.dtype, torch.float32))


def _gather(into: dict[str, list[Tensor]], name: str, parts: list[Tensor]) -> None:
    """Add up what several calls of one module give each example."""
    held = into.get(name)
    into[name] = parts if held is None else [a + b for a, b in zip(held, parts, strict=True)]
