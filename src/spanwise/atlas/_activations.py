"""Atlas from activations: forward hooks that sum second moments while data streams by.

Uncentred by default: X^T X tells where the inputs themselves lie, and an update D with
D V = 0 then leaves the responses to them unchanged.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from spanwise.atlas._atlas import Atlas, Entry
from spanwise.atlas._experts import watch_experts
from spanwise.atlas._moments import Leading, Moments, check_dim, leading, moment_bytes
from spanwise.atlas._reads import Reads
from spanwise.atlas._rows import channels_last, patches, token_mask, valid_rows
from spanwise.layouts import LinearMap, Side, linear_maps, map_dims, side_dim
from spanwise.subspace import check_energy

Key = tuple[str, Side]


def record_activations(
    model: nn.Module,
    data: Iterable[Any],
    *,
    energy: float = 0.8,
    rank: int | None = None,
    sides: Sequence[Side] = ("input",),
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = ("lm_head",),
    embeddings: bool = False,
    center: bool = False,
    device: torch.device | str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Atlas:
    """Run `model` over `data` and keep the directions that its layers' activations use.

    Memory while it runs: one n x n sum for each distinct activation of width n, 8 n^2 bytes up
    to n = 1536 and 4 n^2 above (a 4096-wide activation: 64 MiB). Layers that read the same
    tensor share one sum.

    Args:
        model: Any module; it runs in evaluation mode without gradients, and is left as it was.
        data: Batches: a dict is called as `model(**batch)`, a tensor as `model(batch)`. Where
            a dict has an `attention_mask` `(batch, length)`, padded positions do not count.
        energy: Keep the fewest directions that hold this share of the mean squared activation.
        rank: Keep this many directions instead (fewer where the data spans fewer).
        sides: `"input"` records what enters a map, `"output"` what leaves it, bias included.
        include: Only parameters whose name contains one of these; None for all.
        exclude: No parameters whose name contains one of these.
        embeddings: Record the output side of embedding tables too (the head tied to one reads
            the same space).
        center: Subtract the mean first, and keep it. The atlas then protects deviations from
            the mean only.
        device: Where the sums are kept; by default beside the activations.
        progress: Called with the number of batches seen, after each.

    Returns:
        An atlas whose `skipped` names the maps that were found but could not be recorded, and
        why.

    Raises:
        ValueError: If an option is out of range, no map matches, a side is too wide, or `data`
            is empty.
        TypeError: If a batch is neither a mapping nor a tensor.
    """
    check_energy(energy)
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 1):
        raise ValueError(f"rank must be a positive integer or None, got {rank!r}.")
    sides = check_sides(sides)
    maps = chosen_maps(model, include, exclude, embeddings=embeddings)
    skipped: dict[str, str] = {}
    for found in maps:
        for side in sides:
            if found.kind == "embedding" and side == "input":
                skipped[f"{found.name}::input"] = "the input side of a table is its vocabulary"
                continue
            dim = side_dim(found.shape, found.layout, side)
            check_dim(found.name, dim)
            if rank is not None and rank > dim:
                raise ValueError(
                    f"rank = {rank} exceeds the {dim} dimensions of {found.name}'s {side} side. "
                    "Lower it, or leave the map out with exclude=."
                )
    recorder = Recorder(maps, sides, None if device is None else torch.device(device))
    recorder.skipped.update(skipped)
    batches = recorder.run(model, data, progress)
    dtype = torch.float64 if _dtype_of(model) == torch.float64 else torch.float32
    return _atlas(recorder, maps, sides, energy, rank, center, dtype, batches, model)


def chosen_maps(
    model: nn.Module,
    include: Sequence[str] | None,
    exclude: Sequence[str],
    *,
    embeddings: bool = False,
) -> list[LinearMap]:
    """The linear maps whose names match, LoRA factors aside (they take their base's entry).

    Raises:
        ValueError: If none matches.
    """
    for name, given in (("include", include), ("exclude", exclude)):
        if isinstance(given, str):
            raise TypeError(f'{name} takes a sequence of name parts, got {given!r}: write ("..",).')
    found = [m for m in linear_maps(model, embeddings=embeddings) if ".lora_" not in m.name]
    chosen = [
        m
        for m in found
        if (include is None or any(part in m.name for part in include))
        and not any(part in m.name for part in exclude)
    ]
    if not chosen:
        known = ", ".join(m.name for m in found[:4]) or "none"
        raise ValueError(
            f"no linear map is left with include = {include}, exclude = {tuple(exclude)}; the "
            f"model has {len(found)}: {known}{', ...' if len(found) > 4 else ''}."
        )
    return chosen


def check_sides(sides: Sequence[Side]) -> tuple[Side, ...]:
    """`sides` without repetitions, or an error that says what it may hold."""
    if isinstance(sides, str) or not sides or not set(sides) <= {"output", "input"}:
        raise ValueError(f'sides must be a sequence of "output" and "input", got {sides!r}.')
    return tuple(side for side in ("output", "input") if side in sides)


def activation_bytes(
    model: nn.Module,
    *,
    sides: Sequence[Side] = ("input",),
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = ("lm_head",),
    embeddings: bool = False,
) -> tuple[int, int]:
    """Upper bounds before anything runs: bytes of the sums, bytes of full-rank float32 bases.

    Both count each map by itself; maps that share an activation will need less.
    """
    sums = bases = 0
    for found in chosen_maps(model, include, exclude, embeddings=embeddings):
        for side in check_sides(sides):
            if found.kind == "embedding" and side == "input":
                continue
            batch, m, n = map_dims(found.shape, found.layout)
            dim, experts = (m if side == "output" else n), (batch or (1,))[0]
            sums += moment_bytes(dim, experts)
            bases += 4 * experts * dim * dim
    return sums, bases


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
        if isinstance(data, (Tensor, Mapping, str)):
            raise TypeError(
                f"data must yield batches, got a single {type(data).__name__}: [batch]."
            )
        count = 0
        place = next((p.device for p in model.parameters()), torch.device("cpu"))
        with ExitStack() as stack:
            stack.enter_context(evaluating(model))
            stack.enter_context(torch.no_grad())
            self._install(model, stack)
            for count, batch in enumerate(data, start=1):  # noqa: B007
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

    def _install(self, model: nn.Module, stack: ExitStack) -> None:
        experts = [m for m in self.maps if m.kind == "experts"]
        for found in self.maps:
            if found.kind == "experts":
                continue
            handle = found.module.register_forward_hook(self._hook(found), with_kwargs=True)
            stack.callback(handle.remove)
        if experts:
            stack.enter_context(watch_experts(model, experts, self))

    def _hook(self, found: LinearMap) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
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
        # What a convolution reads depends on its window, not on the tensor alone.
        view = ("conv", _window(found.module)) if found.kind == "conv" and side == "input" else ()
        slot = self.reads.same(tensor, view, (found.name, side))
        if slot:
            return
        moments = Moments.zeros(dim, like=tensor, device=self.device)
        for rows in self._rows(found, side, tensor):
            if isinstance(rows, str):
                self.skip(found.name, side, rows)
                return
            moments.add_rows(rows)
        self.reads.new(tensor, view, (found.name, side), moments)

    def _rows(self, found: LinearMap, side: Side, tensor: Tensor) -> Iterator[Tensor | str]:
        if found.kind == "conv":
            if self.mask is not None:
                yield "an attention mask does not say which positions of a convolution are padding"
            elif side == "input":
                yield from patches(tensor, found.module)
            else:
                yield channels_last(tensor, found.module)
        else:
            yield valid_rows(tensor, self.mask)


def _atlas(
    recorder: Recorder,
    maps: Sequence[LinearMap],
    sides: Sequence[Side],
    energy: float,
    rank: int | None,
    center: bool,
    dtype: torch.dtype,
    batches: int,
    model: nn.Module,
) -> Atlas:
    from spanwise.atlas._storage import base_digest

    skipped = dict(recorder.skipped)
    known: dict[object, Leading] = {}
    entries: list[Entry] = []
    least, tokens = 1.0, 0
    for found in maps:
        for side in sides:
            label = f"{found.name}::{side}"
            group, moments = recorder.reads.moments((found.name, side))
            if found.kind == "experts":
                group, moments = label, recorder.experts.get((found.name, side))
            if label in skipped:
                continue
            if moments is None:
                skipped[label] = "its module was never called"
                continue
            if group not in known:
                known[group] = leading(
                    moments, energy=energy, rank=rank, center=center, dtype=dtype
                )
            result = known[group]
            if result.subspace is None:
                skipped[label] = result.reason
                continue
            if result.empty:
                skipped[f"{label}, experts {list(result.empty)}"] = "no token was routed to them"
            least, tokens = min(least, result.kept), max(tokens, int(moments.count.sum()))
            entries.append(_entry(found, side, result))
    if not entries:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(skipped.items())[:3])
        raise ValueError(f"nothing could be recorded. {reasons}.")
    atlas = Atlas(
        entries,
        {
            "source": "activations",
            "energy": str(energy) if rank is None else "",
            "rank": "" if rank is None else str(rank),
            "energy_kept": f"{least:.6g}",
            "centered": str(center).lower(),
            "rows": str(tokens),
            "batches": str(batches),
        },
    )
    atlas.metadata["base"] = base_digest(atlas, model)
    atlas.skipped = skipped
    return atlas


def _entry(found: LinearMap, side: Side, result: Leading) -> Entry:
    assert result.subspace is not None
    return Entry(
        name=found.name,
        side=side,
        subspace=result.subspace,
        layout=found.layout,
        shape=found.shape,
        aliases=found.aliases,
        bias=found.bias,
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; every module's own mode restored after."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


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


def _first(args: tuple, kwargs: dict) -> Any:
    return args[0] if args else next(iter(kwargs.values()), None)


def _dtype_of(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def _window(conv: nn.Module) -> tuple:
    return (conv.kernel_size, conv.stride, conv.dilation, conv.padding, conv.padding_mode)
