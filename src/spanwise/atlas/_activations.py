"""Atlas from activations: forward hooks that sum second moments while data streams by.

Uncentred by default: X^T X tells where the inputs themselves lie, and an update D with
D V = 0 then leaves the responses to them unchanged.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from spanwise.atlas._atlas import Atlas
from spanwise.atlas._moments import Keep, Leading, check_dim, leading, moment_bytes
from spanwise.atlas._recorder import Recorder, dtype_of
from spanwise.atlas._select import check_sides, check_size, chosen_maps, entry_of
from spanwise.atlas._storage import base_digest
from spanwise.layouts import LinearMap, Side, map_dims, side_dim


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
    check_size(energy, rank)
    sides = check_sides(sides)
    maps = chosen_maps(model, include, exclude, embeddings=embeddings)
    recorder = Recorder(maps, sides, None if device is None else torch.device(device))
    _check_widths(maps, sides, rank, recorder)
    batches = recorder.run(model, data, progress)
    dtype = torch.float64 if dtype_of(model) == torch.float64 else torch.float32
    keep = Keep(energy=energy, rank=rank, center=center, dtype=dtype)
    atlas = _atlas(recorder, keep)
    atlas.metadata["batches"] = str(batches)
    atlas.metadata["base"] = base_digest(atlas, model)
    return atlas


@dataclass(frozen=True, kw_only=True)
class ActivationPlan:
    """Upper bounds on a recording; maps that share an activation need less."""

    activations: int
    """Sides of maps to record, each counted by itself."""
    sums: int
    """Bytes of the running sums."""
    file: int
    """Bytes of the bases, at the given rank or with every direction kept."""


def activation_bytes(
    model: nn.Module,
    *,
    rank: int | None = None,
    itemsize: int = 4,
    sides: Sequence[Side] = ("input",),
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = ("lm_head",),
    embeddings: bool = False,
) -> ActivationPlan:
    """What `record_activations` would need; `model` may live on the meta device.

    Args:
        model: Where the maps are.
        rank: As in `record_activations`; None counts every direction.
        itemsize: Bytes of one stored number.
        sides: As in `record_activations`.
        include: As in `record_activations`.
        exclude: As in `record_activations`.
        embeddings: As in `record_activations`.
    """
    activations = sums = file = 0
    for found in chosen_maps(model, include, exclude, embeddings=embeddings):
        for side in check_sides(sides):
            if found.kind == "embedding" and side == "input":
                continue
            batch, m, n = map_dims(found.shape, found.layout)
            dim, experts = (m if side == "output" else n), (batch or (1,))[0]
            check_dim(found.name, dim)
            activations += 1
            sums += moment_bytes(dim, experts)
            file += itemsize * experts * dim * min(dim, rank or dim)
    return ActivationPlan(activations=activations, sums=sums, file=file)


def _check_widths(
    maps: Sequence[LinearMap], sides: Sequence[Side], rank: int | None, recorder: Recorder
) -> None:
    for found in maps:
        for side in sides:
            if found.kind == "embedding" and side == "input":
                recorder.skip(found.name, side, "the input side of a table is its vocabulary")
                continue
            dim = side_dim(found.shape, found.layout, side)
            check_dim(found.name, dim)
            if rank is not None and rank > dim:
                raise ValueError(
                    f"rank = {rank} exceeds the {dim} dimensions of {found.name}'s {side} side. "
                    "Lower it, or leave the map out with exclude=."
                )


def _atlas(recorder: Recorder, keep: Keep) -> Atlas:
    known: dict[object, Leading] = {}
    entries = []
    least, rows = 1.0, 0
    for found in recorder.maps:
        for side in recorder.sides:
            label = f"{found.name}::{side}"
            if label in recorder.skipped:
                continue
            group, moments = recorder.moments(found, side)
            if moments is None:
                recorder.skip(found.name, side, "its module was never called")
                continue
            if group not in known:
                known[group] = leading(moments, keep)
            result = known[group]
            if result.subspace is None:
                recorder.skip(found.name, side, result.reason)
                continue
            if result.empty:
                reason = f"no token was routed to experts {list(result.empty)}"
                recorder.skip(f"{found.name}[{len(result.empty)} experts]", side, reason)
            least, rows = min(least, result.kept), max(rows, int(moments.count.sum()))
            entries.append(entry_of(found, side, result.subspace))
    if not entries:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(recorder.skipped.items())[:3])
        raise ValueError(f"nothing could be recorded. {reasons}.")
    atlas = Atlas(
        entries,
        {
            "source": "activations",
            **keep.metadata(),
            "energy_kept": f"{least:.6g}",
            "rows": str(rows),
        },
    )
    atlas.skipped = recorder.skipped
    return atlas
