"""Predicting what a run needs before it runs, on tensors that have a size but no memory."""

import difflib
import inspect
import warnings
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from typing_extensions import override

from spanwise.atlas import Atlas
from spanwise.optim import METHODS, OURS, build_optimizer, param_groups, plan_state_bytes
from spanwise.training.config import TrainConfig
from spanwise.zoo import load_config

# Options that all methods share and no flag sets, and those that have a flag of their own.
_SHARED = ("betas", "eps", "clamp_rank", "on_nonfinite")
_FLAGS = ("lr", "rank", "weight_decay", "seed", "avoid", "within", "bias", "plain_lr")


@dataclass(frozen=True, kw_only=True)
class MemoryRow:
    """Predicted bytes of one method."""

    method: str
    weights: int
    gradients: int
    states: int
    activations: int
    """Most that lives beside weights and gradients during a forward and backward pass."""
    atlas: int = 0
    """Bases to avoid or to measure against, and the copies that exactness needs."""
    peak: int
    """Of the whole step. Less than the sum: gradients come while activations go."""
    page: str
    """Where this method's loss and time stand beside the others'."""


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """What every method would need for one model, batch and rank."""

    model: str
    parameters: int
    rank: int
    batch: int
    sequence: int
    rows: tuple[MemoryRow, ...]
    refused: dict[str, str]
    """Methods that cannot run with this rank and side, and why; they have no row."""

    def __getitem__(self, method: str) -> MemoryRow:
        for row in self.rows:
            if row.method == method:
                return row
        raise KeyError(f"{method}: {self.refused.get(method, 'no such method')}")


def plan(config: TrainConfig) -> MemoryPlan:
    """Predict peak bytes of every method at this rank; allocates nothing, a 7B takes seconds.

    The model is built from fake tensors and one forward and backward pass is traced: every
    storage that appears is counted until it is freed. Counted are weights, gradients, states
    and activations of one process, not the libraries' own memory or an allocator's slack.

    Raises:
        ValueError: If the model or an option of the method is unknown, an option is out of range,
            or the rank leaves nothing to project.
    """
    check_own_options(config)
    shape = load_config(config.model, layers=config.layers, tokenizer=config.texts.tokenizer)
    rank = resolve_rank(config, shape.hidden_size)
    dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    batch, sequence = config.schedule.batch, config.texts.sequence
    from transformers import AutoModelForCausalLM

    with FakeTensorMode():
        model = AutoModelForCausalLM.from_config(shape, dtype=dtype)
        weights = nbytes(model)
        activations, with_gradients = _trace(
            model, batch, sequence, autocast=config.precision == "mixed"
        )
        shapes = {n: tuple(p.shape) for n, p in model.named_parameters() if p.requires_grad}
        gradients = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
        states, refused = _states(model, shapes, rank, config)
    obeyed, measured, copies = _atlas_bytes(config, shapes, dtype.itemsize)
    rows = []
    for method, held in states.items():
        atlas = obeyed + measured
        # A rival's guard keeps each guarded weight as it was before the step.
        step = gradients + (copies if method not in OURS and obeyed else 0)
        peak = weights + held + atlas + max(with_gradients, step)
        row = MemoryRow(
            method=method,
            weights=weights,
            gradients=gradients,
            states=held,
            activations=activations,
            atlas=atlas,
            peak=peak,
            page=f"docs/optimizers.md#{method}",
        )
        rows.append(row)
    return MemoryPlan(
        model=config.model,
        parameters=sum(p.numel() for p in model.parameters()),
        rank=rank,
        batch=batch,
        sequence=sequence,
        rows=tuple(rows),
        refused=refused,
    )


def resolve_rank(config: TrainConfig, width: int) -> int:
    """The rank, or a quarter of the model's width."""
    return config.optimizer.rank or max(1, width // 4)


def check_own_options(config: TrainConfig) -> None:
    """Raise `ValueError` for an option that the method does not have, before anything is read."""
    method, given = config.optimizer.method, config.optimizer.own_options
    if method not in OURS:
        return
    parameters = inspect.signature(OURS[method].__init__).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY] + list(_SHARED)
    for name in given:
        if name in known:
            continue
        if name in _FLAGS:
            raise ValueError(f"{name} has a flag of its own: --{name.replace('_', '-')}.")
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"It has {', '.join(known)}."
        raise ValueError(f"method {method} has no option {name!r}. {hint}")


def load_atlas(config: TrainConfig, path: Path, base: nn.Module | Path | None = None) -> Atlas:
    """An atlas that the options name; `base` is the model, or its folder, that it must belong to.

    Raises:
        FileNotFoundError: If it is missing; the message tells how to make one.
        ValueError: If it is damaged or belongs to another model.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"no atlas at {path}. Make one: spanwise atlas extract {config.model} "
            f"--data old.txt --out {path}"
        )
    atlas = Atlas.load(path)
    if base is not None:
        try:
            atlas.check_base(base)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return atlas


def nbytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers, tied ones once."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())


class _Meter(TorchDispatchMode):
    """Bytes of all storages that operations create, from birth to release."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.gradients = 0
        self.peak = 0
        self.peak_beside_gradients = 0
        self._known: dict[int, int] = {}

    def see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known[key] = storage.nbytes()
        self.now += storage.nbytes()
        weakref.finalize(storage, self._free, key)
        self.peak = max(self.peak, self.now)
        self.peak_beside_gradients = max(self.peak_beside_gradients, self.now - self.gradients)

    def _free(self, key: int) -> None:
        self.now -= self._known.pop(key)

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self.see, result)
        return result


def _trace(model: nn.Module, batch: int, sequence: int, *, autocast: bool) -> tuple[int, int]:
    """Peak bytes beside the weights: without gradients, and with those alive at the time."""
    meter = _Meter()
    ids = torch.zeros(batch, sequence, dtype=torch.long)

    def arrived(parameter: Tensor) -> None:
        if parameter.grad is not None:
            meter.gradients += parameter.grad.numel() * parameter.grad.element_size()

    handles = [
        p.register_post_accumulate_grad_hook(arrived) for p in model.parameters() if p.requires_grad
    ]
    model.train()
    with meter, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for tensor in [*model.parameters(), *model.buffers()]:
            meter.see(tensor)
        before = meter.now
        model(input_ids=ids, labels=ids).loss.backward()
    for handle in handles:
        handle.remove()
    for p in model.parameters():
        p.grad = None
    return meter.peak_beside_gradients - before, meter.peak - before


def _states(
    model: nn.Module, shapes: dict[str, tuple[int, ...]], rank: int, config: TrainConfig
) -> tuple[dict[str, int], dict[str, str]]:
    """Bytes of every method that can run like this, and why the others cannot."""
    itemsize = next(model.parameters()).element_size()
    linear = [n for n, _ in param_groups(model, 1, min_dim=1)[0]["params"]]
    states: dict[str, int] = {}
    refused: dict[str, str] = {}
    for method in METHODS:
        if method not in OURS:
            states[method] = plan_state_bytes(shapes, method, projected=linear, itemsize=itemsize)
        elif method == config.optimizer.method:
            states[method] = _own_states(model, method, rank, config.optimizer.own_options)
        else:
            takes_side = "side" in inspect.signature(OURS[method].__init__).parameters
            side = {"side": config.optimizer.side} if config.optimizer.side and takes_side else {}
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of methods that nobody asked to run
                    states[method] = _own_states(model, method, rank, side)
            except ValueError as error:
                refused[method] = str(error)
    return states, refused


def _own_states(model: nn.Module, method: str, rank: int, options: dict[str, Any]) -> int:
    """Bytes of one of our methods with all its options, which are checked by building it."""
    try:
        optimizer = build_optimizer(method, model, lr=1.0, rank=rank, **options)
    except TypeError as error:  # a value of the wrong kind, on the command line
        raise ValueError(str(error)) from error
    assert isinstance(optimizer, tuple(OURS.values()))
    return optimizer.report().state_bytes


def _atlas_bytes(
    config: TrainConfig, shapes: dict[str, tuple[int, ...]], itemsize: int
) -> tuple[int, int, int]:
    """Bytes of atlases obeyed, of one measured with its copy of the start, and of that copy."""
    options = config.optimizer
    obeyed = sum(load_atlas(config, p).nbytes for p in (options.avoid, options.within) if p)
    shown = options.measure or options.avoid or options.within
    if shown is None:
        return 0, 0, 0
    atlas = load_atlas(config, shown)
    copies = itemsize * sum(
        torch.Size(shape).numel() for name, shape in shapes.items() if atlas.get(name)
    )
    return obeyed, copies + (atlas.nbytes if options.measure else 0), copies
