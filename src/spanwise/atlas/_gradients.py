"""Atlas of a loss's gradients: the directions along which training would move each map."""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from spanwise.atlas._atlas import Atlas
from spanwise.atlas._moments import Keep, Moments, check_dim, leading
from spanwise.atlas._recorder import check_batches, dtype_of, evaluating, moved
from spanwise.atlas._select import check_sides, check_size, chosen_maps, entry_of
from spanwise.atlas._storage import base_digest
from spanwise.layouts import LinearMap, Side, map_dims, matrix_view

Loss = Callable[[nn.Module, Any], Tensor]


def gradient_atlas(
    model: nn.Module,
    data: Iterable[Any],
    loss: Loss | None = None,
    *,
    energy: float = 0.8,
    rank: int | None = None,
    sides: Sequence[Side] = ("output", "input"),
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = ("lm_head",),
    progress: Callable[[int], None] | None = None,
) -> Atlas:
    """The leading directions of sum_b G_b G_b^T (outputs) and sum_b G_b^T G_b (inputs).

    One gradient G_b for each batch: the batch size is part of the question asked. The model runs
    in evaluation mode; its `.grad`s are not touched.

    Args:
        model: Any module.
        data: Batches as for `from_activations`.
        loss: `loss(model, batch)`, a scalar; by default `model(**batch).loss`.
        energy: Keep the fewest directions that hold this share of the squared gradients.
        rank: Keep this many directions instead.
        sides: Which sides to keep.
        include: Only parameters whose name contains one of these; None for all.
        exclude: No parameters whose name contains one of these.
        progress: Called with the number of batches seen, after each.

    Raises:
        ValueError: If `data` is empty, or the loss is no finite scalar.
    """
    check_size(energy, rank)
    sides = check_sides(sides)
    maps = chosen_maps(model, include, exclude)
    for found in maps:
        check_dim(found.name, max(map_dims(found.shape, found.layout)[1:]))
    sums: dict[tuple[str, Side], Moments] = {}
    skipped: dict[str, str] = {}
    count = 0
    place = next(iter(model.parameters())).device
    with evaluating(model), requiring_grad([m.parameter for m in maps]), torch.enable_grad():
        for count, batch in enumerate(check_batches(data), start=1):
            value = (loss or _model_loss)(model, moved(batch, place))
            _check_loss(value, count)
            parameters = [found.parameter for found in maps]
            gradients = torch.autograd.grad(value, parameters, allow_unused=True)
            for found, gradient in zip(maps, gradients, strict=True):
                if gradient is None:
                    skipped[found.name] = "the loss does not depend on it"
                else:
                    _add(sums, found, gradient, sides)
            if progress is not None:
                progress(count)
    if count == 0:
        raise ValueError("data yielded no batch: an atlas needs gradients to look at.")
    dtype = torch.float64 if dtype_of(model) == torch.float64 else torch.float32
    keep = Keep(energy=energy, rank=rank, dtype=dtype)
    entries = []
    for found in maps:
        for side in sides:
            if (found.name, side) not in sums:
                continue
            result = leading(sums[found.name, side], keep)
            if result.subspace is None:
                skipped[f"{found.name}::{side}"] = "its gradients are all zero or not finite"
            else:
                entries.append(entry_of(found, side, result.subspace))
    atlas = Atlas(entries, {"source": "gradients", **keep.metadata(), "batches": str(count)})
    if not entries:
        raise ValueError("every gradient was zero, not finite or missing: nothing to keep.")
    atlas.metadata["base"] = base_digest(atlas, model)
    atlas.skipped = skipped
    return atlas


def _add(
    sums: dict[tuple[str, Side], Moments],
    found: LinearMap,
    gradient: Tensor,
    sides: Sequence[Side],
) -> None:
    batch, m, n = map_dims(found.shape, found.layout)
    matrix = matrix_view(gradient, found.layout)
    for side in sides:
        rows, dim = (matrix.mT, m) if side == "output" else (matrix, n)
        key = (found.name, side)
        if key not in sums:
            sums[key] = Moments.zeros(dim, batch=batch, like=rows, device=None)
        for expert in range(batch[0]) if batch else (None,):
            sums[key].add_rows(rows if expert is None else rows[expert], expert)


def _model_loss(model: nn.Module, batch: Any) -> Tensor:
    output = model(**batch) if isinstance(batch, Mapping) else model(batch)
    value = getattr(output, "loss", None)
    if value is None:
        raise ValueError(
            "the model returned no loss: put labels into the batches, or pass "
            "loss=lambda model, batch: ...."
        )
    return value


def _check_loss(value: Any, batch: int) -> None:
    if not isinstance(value, Tensor) or value.numel() != 1 or not torch.isfinite(value).all():
        shown = tuple(value.shape) if isinstance(value, Tensor) and value.numel() != 1 else value
        raise ValueError(f"the loss of batch {batch} must be a finite scalar, got {shown}.")


@contextmanager
def requiring_grad(parameters: Sequence[nn.Parameter]) -> Generator[None]:
    """Frozen weights have gradients too, while this lasts."""
    before = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, flag in zip(parameters, before, strict=True):
            parameter.requires_grad_(flag)
