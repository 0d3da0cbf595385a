"""The structured backward of Grass: weight gradients of which only the chosen rows are made.

For Y = X W^T the weight gradient is dW = dY^T X, and its chosen rows are dY[:, rows]^T X: r/m of
the arithmetic and r x n numbers in place of m x n. Where a refresh is due, the whole gradient of
one layer at a time is formed, rows are chosen from it, and it is dropped.
"""

import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import override

from spanwise.layouts import LinearMap, linear_maps
from spanwise.optim._bases.rows import (
    RowGradient,
    RowProjector,
    average_,
    row_gradient,
    synchronize,
)
from spanwise.optim._engine.groups import Member
from spanwise.optim._engine.options import check_choice
from spanwise.optim._sharding.shard import is_sharded
from spanwise.optim.grass import Grass


class GrassLinear(nn.Linear):
    """An `nn.Linear` whose weight gradient is left as `weight.spanwise_grad`, rows only.

    Made by `grass_linear_` from an existing module, never built. A copied or unpickled one has
    no optimizer to ask for rows and is an ordinary linear layer.
    """

    _slot: "_Slot | None" = None

    @override
    def forward(self, input: Tensor) -> Tensor:
        """`input @ weight.T + bias`."""
        if self._slot is None or not torch.is_grad_enabled() or not self.weight.requires_grad:
            return F.linear(input, self.weight, self.bias)
        return _forward(self, input, self._slot)

    @override
    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_slot"}


# What the backward pass does is Python on the optimizer's state; compiled code calls it.
@torch.compiler.disable
def _forward(module: GrassLinear, x: Tensor, slot: "_Slot") -> Tensor:
    kind, dtype = x.device.type, module.weight.dtype
    if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
        x = x.to(dtype)
    return _RowBackward.apply(x, module.weight, module.bias, dtype, slot)


class _Use:
    """One forward call whose backward has not come yet; dies with its graph."""


class _RowBackward(torch.autograd.Function):
    @staticmethod
    @override
    def forward(  # pyrefly: ignore[bad-override]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, slot: "_Slot"
    ) -> Tensor:
        ctx.use = slot.open()
        ctx.save_for_backward(x, weight)
        ctx.slot, ctx.bias_dtype = slot, None if bias is None else bias.dtype
        return F.linear(x, weight.to(dtype), None if bias is None else bias.to(dtype))

    @staticmethod
    @override
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (dy,) = grads
        ctx.slot.close(ctx.use)
        if torch.is_grad_enabled():
            raise RuntimeError(
                f"{ctx.slot.name}: layers converted by grass_linear_ have no second derivative; "
                "call backward without create_graph=True, or remove() the conversion."
            )
        x, weight = ctx.saved_tensors
        flat, rows = dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1])
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            dx = (flat @ weight.to(dy.dtype)).view(x.shape)
        if ctx.needs_input_grad[2]:
            db = flat.sum(0).to(ctx.bias_dtype)
        if ctx.needs_input_grad[1] and _is_wanted(ctx.next_functions[1][0], ctx.slot.name):
            dw = ctx.slot.take(flat, rows)
        return dx, dw, db, None, None


def _is_wanted(accumulate: Any, name: str) -> bool:
    """Whether this backward pass is for the weight too: `autograd.grad` may ask for others."""
    try:
        return torch._C._will_engine_execute_node(accumulate)
    except RuntimeError as error:  # autograd.grad of the weight itself
        raise RuntimeError(
            f"{name}: torch.autograd.grad cannot return the gradient of a layer converted by "
            "grass_linear_, which is left as rows. Call backward, or remove() the conversion."
        ) from error


class _Slot:
    """What one converted module asks of the optimizer, and leaves for it."""

    def __init__(self, optimizer: Grass, where: tuple[int, int], refresh: str, group: Any) -> None:
        self.optimizer, self.where, self.refresh, self.process_group = (
            optimizer, where, refresh, group
        )  # fmt: skip
        self.open_use: weakref.ref[_Use] | None = None

    @property
    def member(self) -> Member:
        """The weight; groups are looked up anew, as loading a checkpoint replaces them."""
        return self.optimizer._group_members(self.where[0])[self.where[1]]

    @property
    def name(self) -> str:
        return self.member.name

    def open(self) -> _Use | None:
        """Note a forward call, and refuse a second one before the backward of the first."""
        # Activation checkpoints repeat the forward call within the backward pass.
        if self.refresh == "dense" or torch._C._current_graph_task_id() != -1:
            return None
        if self.open_use is not None and self.open_use() is not None:
            raise RuntimeError(
                f"{self.name} is used twice before a backward pass, and rows would be chosen from "
                "the gradient of one use alone. Call backward after each forward, or choose from "
                'the whole gradient with grass_linear_(..., refresh="dense").'
            )
        use = _Use()
        self.open_use = weakref.ref(use)
        return use

    def close(self, use: _Use | None) -> None:
        if use is not None and self.open_use is not None and self.open_use() is use:
            self.open_use = None

    @torch.no_grad()
    def take(self, dy: Tensor, x: Tensor) -> Tensor | None:
        """Add this backward's share to the chosen rows; or return the whole gradient."""
        member, group = self.member, self.optimizer.param_groups[self.where[0]]
        p, held = member.parameter, row_gradient(member.parameter)
        due = self.optimizer.choice_due(member, group)
        if due and self.refresh == "dense":
            return (dy.mT @ x).to(p.dtype)
        if held is None or (due and held.finite and not held.chosen):
            p.spanwise_grad = self._start(member, group, dy, x, due)  # pyrefly: ignore[missing-attribute]
            return None
        a, b = _selected(held.projector, dy, x)
        if a.dtype == held.values.dtype:
            held.values.addmm_(a.mT, b)
        else:
            held.values.add_(a.mT @ b)
        held.group = self.process_group
        return None

    def _start(
        self, member: Member, group: dict[str, Any], dy: Tensor, x: Tensor, due: bool
    ) -> RowGradient:
        dtype = self.optimizer._state_dtype(member.parameter)
        full, finite, empty = None, True, True
        if due:
            full = (dy.mT @ x).to(dtype)
            if self.process_group is not None:
                # The rows that matter are those of the mean gradient, on every process.
                average_(full, self.process_group)
            # Twelve times faster on a CPU than the norm of largest magnitude; NaN comes through.
            ends = torch.stack(torch.aminmax(full)) if full.numel() else full.flatten()
            finite, empty = bool(torch.isfinite(ends).all()), not bool(ends.any())
        chosen = due and finite and not empty
        projector = self.optimizer.choose(member, group, full if chosen else None)
        if full is None:
            a, b = _selected(projector, dy, x)
            values = (a.mT @ b).to(dtype)
        else:
            values = projector.gather(full)
        return RowGradient(values, projector, chosen, finite, self.process_group)


def _selected(projector: RowProjector, dy: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The columns of dY or X whose product is the chosen part of dY^T X."""
    if projector.side == "left":
        return dy.index_select(1, projector.rows), x
    return dy, x.index_select(1, projector.rows)


class GrassLinears:
    """The converted modules of a model, as `grass_linear_` returns them."""

    def __init__(
        self, model: nn.Module, modules: dict[str, GrassLinear], hidden: Sequence[str]
    ) -> None:
        self._model, self._modules, self._hidden = model, modules, hidden

    @property
    def names(self) -> list[str]:
        """The parameters whose gradient is left as chosen rows."""
        return list(self._modules)

    @property
    def gradient_bytes(self) -> int:
        """Bytes of weight gradients held now, whole ones included; indices are the optimizer's."""
        weights = [module.weight for module in self._modules.values()]
        held = [h.values for w in weights if (h := row_gradient(w)) is not None]
        held += [w.grad for w in weights if w.grad is not None]
        return sum(t.numel() * t.element_size() for t in held)

    def synchronize(self) -> None:
        """Average the gradients over the process group, once; `optimizer.step` does it too."""
        synchronize(module.weight for module in self._modules.values())

    def remove(self) -> None:
        """Make the modules ordinary again; gradients held for them are dropped.

        A `DistributedDataParallel` around the model goes on leaving these weights alone: wrap the
        model anew.
        """
        _show_to_ddp(self._model, self._hidden)
        for module in self._modules.values():
            module.__class__ = nn.Linear  # pyrefly: ignore[bad-argument-type]
            module.__dict__.pop("_slot", None)
            module.weight.spanwise_grad = None  # pyrefly: ignore[missing-attribute]
        self._modules = {}


def grass_linear_(
    model: nn.Module,
    optimizer: Grass,
    *,
    refresh: str = "first",
    exclude: Sequence[str] = (),
    process_group: Any = None,
) -> GrassLinears:
    """Let the backward pass make only the chosen rows of the weight gradients, in place.

    Every `nn.Linear` of `model` whose weight the optimizer projects leaves
    `weight.spanwise_grad` (r x n, or m x r where columns are chosen) while `weight.grad` stays
    None. The optimizer reads it and drops it at each step. Names, `state_dict`, hooks and outputs
    of the modules do not change; gradients of inputs and biases are the same numbers.

    Micro-batches add up while the rows stay. Where new rows are due, the gradient of the first
    micro-batch chooses them.

    Args:
        model: Changed in place. Convert before DDP or `torch.compile` wrap it; under
            `torch.compile` each converted layer is a graph break while it trains.
        optimizer: The `Grass` that owns the weights.
        refresh: `first` chooses from the first micro-batch and never holds more than one whole
            gradient; `dense` accumulates whole gradients in `weight.grad` on the steps that
            choose, 1 of `refresh_every`, and chooses from their sum.
        exclude: Fragments of names to leave alone; one string is one fragment.
        process_group: For data parallelism, such as `torch.distributed.group.WORLD`: chosen rows
            are averaged over it at each step, r n numbers in place of m n, and whole gradients
            where rows are chosen. DDP is told to leave the converted weights alone, which are
            made those of the group's first process now.

    Returns:
        A handle: `.names`, `.gradient_bytes`, `.synchronize()`, `.remove()`. Clip with
        `spanwise.optim.clip_grad_norm_`; torch's own does not see these gradients.

    Raises:
        TypeError: If `optimizer` is no `Grass`.
        ValueError: If nothing is left to convert, a weight is tied, a module is converted
            already, `model` is wrapped in DDP, or `refresh="dense"` meets a `process_group`.
        NotImplementedError: If `model` is sharded.
        RuntimeError: In training, if a module is used twice before its backward pass (with
            `refresh="first"`), its weight has a gradient from elsewhere, or a second derivative
            is asked for.

    Sources:
        Muhamed et al., "Grass", 2024: dW of the selected rows is dY[:, rows]^T X.

    Example:
        >>> opt = Grass(param_groups(model, rank=128), lr=5e-3)  # doctest: +SKIP
        >>> handle = grass_linear_(model, opt)  # doctest: +SKIP
    """
    if not isinstance(optimizer, Grass):
        raise TypeError(
            f"optimizer must be a spanwise.optim.Grass, got {type(optimizer).__name__}; no other "
            "reads gradients of selected rows."
        )
    check_choice("refresh", refresh, ("first", "dense"))
    exclude = (exclude,) if isinstance(exclude, str) else exclude
    if process_group is not None and refresh == "dense":
        raise ValueError(
            'refresh="dense" is for one process. With a process_group the first micro-batch of '
            'all processes together chooses: refresh="first".'
        )
    if isinstance(model, DistributedDataParallel):
        raise ValueError(
            "model is wrapped in DDP already, which waits for the whole gradients. Convert first "
            "with grass_linear_(model, optimizer, process_group=...), then wrap."
        )
    if any(is_sharded(p) for p in model.parameters()):
        raise NotImplementedError(
            "model is sharded over processes (fully_shard), which reduces whole gradients itself. "
            "Grass takes them as they are, without grass_linear_."
        )
    owned = {
        id(member.parameter): (i, j)
        for i, group in enumerate(optimizer.param_groups)
        if optimizer.is_projected(group)
        for j, member in enumerate(optimizer._group_members(i))
    }
    chosen: dict[str, tuple[LinearMap, tuple[int, int]]] = {}
    for map_ in linear_maps(model, embeddings=True):
        if id(map_.parameter) not in owned or any(part in map_.name for part in exclude):
            continue
        if isinstance(map_.module, GrassLinear) and map_.module._slot is not None:
            raise ValueError(f"{map_.name} is converted already; call remove() on its handle.")
        if type(map_.module) in (nn.Linear, GrassLinear) or map_.others:
            _check_single(map_)
            chosen[map_.name] = (map_, owned[id(map_.parameter)])
    if not chosen:
        raise ValueError(
            "no nn.Linear of the model is projected by this optimizer, so there is nothing to "
            "convert. Build it from spanwise.optim.param_groups(model, rank=...)."
        )
    for map_, where in chosen.values():
        map_.module.__class__ = GrassLinear
        map_.module._slot = _Slot(optimizer, where, refresh, process_group)  # pyrefly: ignore[bad-argument-type]
        map_.parameter.grad = None
        if process_group is not None:
            first = dist.get_global_rank(process_group, 0)
            dist.broadcast(map_.parameter.detach(), first, group=process_group)
    hidden: list[str] = []
    if process_group is not None:
        hidden = _hide_from_ddp(model, {id(map_.parameter) for map_, _ in chosen.values()})
    modules: dict[str, Any] = {name: map_.module for name, (map_, _) in chosen.items()}
    return GrassLinears(model, modules, hidden)


def _check_single(map_: LinearMap) -> None:
    if map_.aliases or map_.others:
        where = ", ".join(map_.aliases) or f"{len(map_.others)} other modules"
        raise ValueError(
            f"{map_.name} is tied to {where}, whose gradient would not arrive as rows. Leave it "
            f'out with exclude=("{map_.name}",).'
        )


# What DistributedDataParallel reads when it wraps a model.
_IGNORED = "_ddp_params_and_buffers_to_ignore"


def _hide_from_ddp(model: nn.Module, converted: set[int]) -> list[str]:
    """Tell DDP to leave the converted weights alone; the names it did not know before."""
    ignored = set(getattr(model, _IGNORED, ()))
    hidden = [n for n, p in model.named_parameters() if id(p) in converted and n not in ignored]
    setattr(model, _IGNORED, sorted(ignored.union(hidden)))
    return hidden


def _show_to_ddp(model: nn.Module, hidden: Sequence[str]) -> None:
    left = [name for name in getattr(model, _IGNORED, ()) if name not in hidden]
    if left:
        setattr(model, _IGNORED, left)
    elif hidden:
        delattr(model, _IGNORED)


@torch.no_grad()
def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor], max_norm: float, *, error_if_nonfinite: bool = False
) -> Tensor:
    """Scale all gradients so that their joint Euclidean norm is at most `max_norm`.

    As `torch.nn.utils.clip_grad_norm_`, counting also the rows that `grass_linear_` leaves. Rows
    that were never made do not count: the norm is at most that of the whole gradient.

    Args:
        parameters: Parameters, such as `model.parameters()`.
        max_norm: Largest norm allowed.
        error_if_nonfinite: Raise instead of scaling by NaN.

    Returns:
        The norm before clipping.
    """
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    synchronize(parameters)
    found = [p.grad for p in parameters if p.grad is not None]
    found += [held.values for p in parameters if (held := row_gradient(p)) is not None]
    norm = torch.nn.utils.get_total_norm(found, error_if_nonfinite=error_if_nonfinite)
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for g in found:
        g.mul_(scale.to(g.device))
    return norm
