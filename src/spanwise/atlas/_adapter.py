"""Atlas of a LoRA adapter W += s B A: rows of A span its inputs, columns of B its outputs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from spanwise.atlas._atlas import Atlas
from spanwise.atlas._delta import Place, known_places
from spanwise.atlas._entry import Entry
from spanwise.atlas._select import check_sides
from spanwise.layouts import Side
from spanwise.linalg.bases import orthonormalize
from spanwise.lora import open_adapter
from spanwise.subspace import Subspace


def adapter_atlas(
    adapter: str | Path | Mapping[str, Tensor],
    *,
    sides: Sequence[Side] = ("output", "input"),
    model: nn.Module | None = None,
    tolerance: float = 1e-6,
) -> Atlas:
    """The directions that a PEFT LoRA adapter reads and writes.

    Bases have no values: the scale is shared between the factors in no particular way.

    Args:
        adapter: A folder that PEFT saved, its safetensors file, or a state dict.
        sides: Which sides to keep.
        model: The base model, to tell how its weights are stored. Without it the adapter's
            configuration tells about transposed ones (`fan_in_fan_out`).
        tolerance: Directions below this share of a factor's largest singular value are dropped;
            a factor B that is still zero has none.

    Raises:
        ValueError: If there are no LoRA factors, one lacks its other half, or the adapter is a
            DoRA, whose rescaling leaves the factors' spans.
    """
    sides = check_sides(sides)
    opened = open_adapter(adapter)
    skipped = dict(opened.others)
    places: dict[str, Place] = {} if model is None else known_places(model)
    entries = []
    for name in opened:
        if name in opened.embeddings:
            skipped[name] = "it is a table of tokens"
            continue
        a, b = opened.pair(name)
        place = places.get(name) or _guess(name, a, opened.is_transposed(name))
        m, n = b.shape[0], a[0].numel()
        if place.layout == "conv":
            shape = (m, *a.shape[1:])
        else:
            shape = (n, m) if place.layout == "transposed" else (m, n)
        columns: dict[Side, Tensor] = {"output": b.flatten(1), "input": a.flatten(1).mT}
        for side in sides:
            basis = _span(columns[side], tolerance)
            if basis is None:
                skipped[f"{name}::{side}"] = "its factor is zero"
                continue
            entries.append(
                Entry(
                    name=place.name,
                    side=side,
                    subspace=Subspace(basis),
                    layout=place.layout,
                    shape=shape,
                    aliases=place.aliases,
                    bias=place.bias,
                )
            )
    if not entries:
        raise ValueError("every factor of the adapter is zero: it has not been trained.")
    base_model = opened.config.get("base_model_name_or_path")
    about = {"base_model": str(base_model)} if base_model else {}
    atlas = Atlas(entries, {"source": "adapter", **about})
    if model is not None:
        from spanwise.atlas._storage import base_digest

        atlas.metadata["base"] = base_digest(atlas, model)
    atlas.skipped = skipped
    return atlas


def _guess(name: str, a: Tensor, transposed: bool) -> Place:
    if a.ndim > 2:
        return Place(name, "conv")
    return Place(name, "transposed" if transposed else "linear")


def _span(columns: Tensor, tolerance: float) -> Tensor | None:
    if not torch.isfinite(columns).all():
        raise ValueError("the adapter has factors that are not finite.")
    return orthonormalize(columns, tolerance=tolerance) if columns.any() else None
