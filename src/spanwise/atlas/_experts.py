"""Recording stacked experts: their matrix products, seen as they run.

A module that stacks its experts' weights calls no submodule, so there is no hook to hang. While
its forward runs, a function mode watches for products with one of its parameters: the slice of
the weight tells the expert, the other factor holds the tokens that were routed to it.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from spanwise.atlas._moments import Moments
from spanwise.layouts import LinearMap, Side, map_dims

if TYPE_CHECKING:
    from spanwise.atlas._activations import Recorder

_PRODUCTS = (
    functional.linear,
    torch.matmul,
    torch.mm,
    torch.bmm,
    Tensor.matmul,
    Tensor.__matmul__,
    Tensor.mm,
    Tensor.bmm,
)
UNTOLD = "the padding cannot be told among the tokens routed to it; feed batches without padding"
UNSEEN = (
    "no product of a token with one expert's whole weight was seen; record the model with its "
    "eager experts, or leave the map out"
)


@contextmanager
def watch_experts(
    model: nn.Module, maps: Sequence[LinearMap], recorder: "Recorder"
) -> Generator[None]:
    """Record the products of every experts module in `maps` while the context lasts.

    transformers' grouped kernels are switched to the eager loop meanwhile: the same numbers,
    one expert at a time.
    """
    by_module: dict[nn.Module, list[LinearMap]] = {}
    for found in maps:
        by_module.setdefault(found.module, []).append(found)
    configs = {id(c): c for m in by_module if (c := getattr(m, "config", None)) is not None}
    before = {key: getattr(c, "_experts_implementation", None) for key, c in configs.items()}
    try:
        for key, config in configs.items():
            if before[key] is not None:
                config._experts_implementation = "eager"
        for module, held in by_module.items():
            # An instance attribute shadows the class's forward until it is deleted again.
            module.forward = partial(_watched, module.forward, module, held, recorder)
        yield
    finally:
        for module in by_module:
            module.__dict__.pop("forward", None)
        for key, config in configs.items():
            if before[key] is not None:
                config._experts_implementation = before[key]
        for found in maps:
            for side in recorder.sides:
                if (found.name, side) not in recorder.experts:
                    recorder.skip(found.name, side, UNSEEN)


def _watched(
    forward: Callable[..., Any],
    module: nn.Module,
    maps: Sequence[LinearMap],
    recorder: "Recorder",
    *args: Any,
    **kwargs: Any,
) -> Any:
    with _Watch(module, maps, recorder, (*args, *kwargs.values())):
        return forward(*args, **kwargs)


class _Watch(TorchFunctionMode):
    """Sees every torch call of one forward of one experts module."""

    def __init__(
        self,
        module: nn.Module,
        maps: Sequence[LinearMap],
        recorder: "Recorder",
        arguments: tuple[Any, ...],
    ) -> None:
        super().__init__()
        self.recorder = recorder
        self.maps = {id(found.parameter): found for found in maps}
        self.weights = {
            p.untyped_storage().data_ptr(): p
            for p in module.parameters(recurse=False)
            if p.ndim == 3
        }
        tensors = [a for a in arguments if isinstance(a, Tensor)]
        self.hidden = next((t for t in tensors if t.is_floating_point()), None)
        self.choice = next((t for t in tensors if not t.is_floating_point() and t.ndim == 2), None)
        self.valid: dict[int, Tensor | str] = {}

    @override
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _PRODUCTS and len(args) >= 2:
            self._product(args[0], args[1], result)
        return result

    def _product(self, x: Tensor, weight: Tensor, result: Tensor) -> None:
        stacked = self.weights.get(weight.untyped_storage().data_ptr())
        if stacked is None or x.ndim != weight.ndim:
            return
        if weight.ndim == 2:
            offset = weight.storage_offset() - stacked.storage_offset()
            first, x, result = offset // stacked.stride(0), x.unsqueeze(0), result.unsqueeze(0)
        else:
            first = 0
        found = self.maps.get(id(stacked))
        for expert, (rows, outputs) in enumerate(zip(x, result, strict=True), start=first):
            valid = self._valid(rows, expert)
            if found is None or weight.numel() * stacked.shape[0] != stacked.numel() * len(x):
                continue
            for side, seen in (("input", rows), ("output", outputs)):
                if side not in self.recorder.sides:
                    continue
                if isinstance(valid, str):
                    self.recorder.skip(found.name, side, valid)
                else:
                    self._moments(found, side, seen).add_rows(
                        seen if valid is None else seen[valid], expert
                    )

    def _moments(self, found: LinearMap, side: Side, rows: Tensor) -> Moments:
        key = (found.name, side)
        if key not in self.recorder.experts:
            experts, _, _ = map_dims(found.shape, found.layout)
            self.recorder.experts[key] = Moments.zeros(
                rows.shape[-1], batch=experts, like=rows, device=self.recorder.device
            )
        return self.recorder.experts[key]

    def _valid(self, rows: Tensor, expert: int) -> Tensor | str | None:
        """Which of an expert's rows are no padding; None for all, text if it cannot be told."""
        if self.recorder.mask is None:
            return None
        if expert not in self.valid:
            self.valid[expert] = self._tell(rows, expert)
        valid = self.valid[expert]
        same = isinstance(valid, str) or valid.shape[0] == rows.shape[0]
        return valid if same else UNTOLD

    def _tell(self, rows: Tensor, expert: int) -> Tensor | str:
        """From an expert's first product, whose rows must be the tokens that chose it."""
        assert self.recorder.mask is not None
        mask = self.recorder.mask.reshape(-1).to(rows.device)
        if self.choice is None:
            return mask if rows.shape[0] == mask.shape[0] else UNTOLD
        if self.hidden is None or self.choice.shape[0] != mask.shape[0]:
            return UNTOLD
        # Slot by slot, tokens in order, as the eager loops of transformers gather them.
        _, tokens = torch.where((self.choice == expert).T)
        expected = self.hidden.reshape(-1, self.hidden.shape[-1])[tokens]
        return mask[tokens] if torch.equal(expected, rows) else UNTOLD
