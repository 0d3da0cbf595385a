"""Forward hooks that sum second moments while data streams through a model."""

from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from spanwise.atlas._experts import watch_experts
from spanwise.atlas._moments import Moments
from spanwise.atlas._reads import Reads
from spanwise.atlas._rows import Conv, channels_last, patches, token_mask, valid_rows
from spanwise.layouts import LinearMap, Side, side_dim

Key = tuple[str, Side]


class Recorder:
    """The hooks and sums of one recording."""

    def __init__(
        self, maps: Sequence[LinearMap], sides: Sequence[Side], device: torch.device | None
    ) -> None:
        self.maps = maps
        self.sides = sides
        self.device = device
        self.reads = Reads()
        self.experts: dict[Key, Moments] = {}
        self.skipped: dict[str, str] = {}
        self.mask: Tensor | None = None

    def run(
        self, model: nn.Module, data: Iterable[Any], progress: Callable[[int], None] | None
    ) -> int:
        """Feed every batch through the model; the number of batches."""
        count = 0
        place = next((p.device for p in model.parameters()), torch.device("cpu"))
        with ExitStack() as stack:
            stack.enter_context(evaluating(model))
            stack.enter_context(torch.no_grad())
            # Compiled code would trace the hooks instead of running them.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            self._install(model, stack)
            for count, batch in enumerate(check_batches(data), start=1):
                batch = moved(batch, place)
                self.mask = token_mask(batch)
                model(**batch) if isinstance(batch, Mapping) else model(batch)
                self.reads.flush()
                if progress is not None:
                    progress(count)
        if count == 0:
            raise ValueError("data yielded no batch: an atlas needs activations to look at.")
        return count

    def skip(self, name: str, side: Side, reason: str) -> None:
        """Give up on one side of a map, and say why."""
        self.skipped.setdefault(f"{name}::{side}", reason)

    def moments(self, found: LinearMap, side: Side) -> tuple[object, Moments | None]:
        """The sums of one side of a map, and a key that is equal for maps that share them."""
        key = (found.name, side)
        if found.kind == "experts":
            return key, self.experts.get(key)
        return self.reads.moments(key)

    def _install(self, model: nn.Module, stack: ExitStack) -> None:
        experts = [m for m in self.maps if m.kind == "experts"]
        for found in self.maps:
            if found.kind == "experts":
                continue
            # A weight that two layers hold reads what both of them read.
            tied = [m for m in found.others if type(m) is type(found.module)]
            for module in (found.module, *tied):
                handle = module.register_forward_hook(self._hook(found), with_kwargs=True)
                stack.callback(handle.remove)
        if experts:
            stack.enter_context(watch_experts(model, experts, self))

    def _hook(self, found: LinearMap) -> Callable[..., None]:
        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
        ) -> None:
            for side in self.sides:
                if f"{found.name}::{side}" in self.skipped:
                    continue
                tensor = output if side == "output" else _first(args, kwargs)
                self._see(found, side, tensor)

        return hook

    def _see(self, found: LinearMap, side: Side, tensor: Any) -> None:
        if not isinstance(tensor, Tensor):
            self.skip(found.name, side, f"its {side} is no tensor but {type(tensor).__name__}")
            return
        dim = side_dim(found.shape, found.layout, side)
        view = _view(found, side)
        if self.reads.same(tensor, view, (found.name, side)):
            return
        moments = Moments.zeros(dim, like=tensor, device=self.device)
        for rows in self._rows(found, side, tensor):
            if isinstance(rows, str):
                self.skip(found.name, side, rows)
                return
            if rows.shape[-1] != dim:
                reason = (
                    f"its {side} is {rows.shape[-1]} wide, its weight says {dim}: a packed one?"
                )
                self.skip(found.name, side, reason)
                return
            moments.add_rows(rows)
        self.reads.new(tensor, view, (found.name, side), moments)

    def _rows(self, found: LinearMap, side: Side, tensor: Tensor) -> Iterator[Tensor | str]:
        if isinstance(found.module, Conv):
            if self.mask is not None:
                yield "an attention mask does not say which positions of a convolution are padding"
            elif side == "input":
                yield from patches(tensor, found.module)
            else:
                yield channels_last(tensor, found.module)
        else:
            yield valid_rows(tensor, self.mask)


@contextmanager
def evaluating(model: nn.Module) -> Generator[None]:
    """Evaluation mode inside; every module's own mode restored after."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def check_batches(data: Iterable[Any]) -> Iterable[Any]:
    """`data`, unless it is one batch by itself (iterating it would give rows or keys)."""
    if isinstance(data, (Tensor, Mapping, str, bytes)) or not isinstance(data, Iterable):
        raise TypeError(
            f"data must be an iterable of batches, got one {type(data).__name__}; write [batch]."
        )
    return data


def moved(batch: Any, device: torch.device) -> Any:
    """A batch on `device`, as a dict of keyword arguments or a tensor."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
    raise TypeError(
        f"a batch must be a mapping for model(**batch) or a tensor for model(batch), got "
        f"{type(batch).__name__}. For pairs, yield the inputs only: (x for x, _ in loader)."
    )


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] if args else next(iter(kwargs.values()), None)


def dtype_of(model: nn.Module) -> torch.dtype:
    """The dtype of a model's first floating-point parameter."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def _view(found: LinearMap, side: Side) -> tuple[Hashable, ...]:
    """How rows are taken from a tensor: two layers share it only if they do so alike."""
    conv = found.module
    if found.kind != "conv":
        return ()
    if side == "output":
        return ("channels",)
    return (conv.kernel_size, conv.stride, conv.dilation, conv.padding, conv.padding_mode)
