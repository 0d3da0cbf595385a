"""Atlas of a weight update: the leading directions of `finetuned - base`.

Streams: one tensor of each checkpoint is in memory at a time.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from spanwise.atlas._atlas import Atlas
from spanwise.atlas._entry import Entry
from spanwise.atlas._select import check_sides, check_size, wanted
from spanwise.atlas._storage import base_digest
from spanwise.atlas._weights import CanonicalWeights, Weights, open_weights
from spanwise.layouts import Layout, Side, guess_layout, linear_maps, matrix_view
from spanwise.linalg.svd import truncated_svd
from spanwise.subspace import Subspace, energy_rank


@dataclass(frozen=True)
class Place:
    """What is known of a tensor from its model: how it stores which map."""

    name: str
    layout: Layout
    aliases: tuple[str, ...] = ()
    bias: str | None = None


def delta_atlas(
    base: Weights,
    finetuned: Weights,
    *,
    energy: float = 0.8,
    rank: int | None = None,
    sides: Sequence[Side] = ("output", "input"),
    model: nn.Module | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = ("lm_head",),
) -> Atlas:
    """The directions that a fine-tuning wrote into each linear map.

    Args:
        base: Weights before: a module, mapping, safetensors file or (sharded) folder.
        finetuned: Weights after.
        energy: Keep the fewest directions that hold this share of the squared update.
        rank: Keep this many directions instead, fewer where the update has fewer; found by
            `truncated_svd`'s own choice of method.
        sides: `"output"` for left singular vectors of the update, `"input"` for right ones.
        model: Tells which tensors are linear maps and how they are stored; it may live on the
            meta device. Without it, a module given as `base` or the folder's `config.json` tells
            (with transformers installed), or else each tensor's name and dimensions.
        include: Only parameters whose name contains one of these; None for all.
        exclude: No parameters whose name contains one of these.

    Raises:
        ValueError: If a map's shapes differ, `finetuned` lacks one, or nothing changed.
    """
    check_size(energy, rank)
    sides = check_sides(sides)
    old, new = open_weights(base), open_weights(finetuned)
    places = known_places(model if model is not None else base)
    entries: list[Entry] = []
    skipped: dict[str, str] = {}
    for name in old:
        place = place_of(name, old, places)
        if place is None or not wanted(place.name, include, exclude):
            continue
        if name not in new:
            raise ValueError(f"the finetuned weights lack {name}, which the base has.")
        delta = _difference(name, old[name], new[name])
        if not delta.any():
            skipped[place.name] = "it did not change"
            continue
        for side, subspace in _subspaces(delta, place.layout, sides, energy, rank).items():
            entries.append(
                Entry(
                    name=place.name,
                    side=side,
                    subspace=subspace,
                    layout=place.layout,
                    shape=tuple(delta.shape),
                    aliases=place.aliases,
                    bias=place.bias,
                )
            )
    if not entries:
        raise ValueError(
            f"base and finetuned do not differ in any linear map ({len(skipped)} looked at)."
        )
    size = {"energy": str(energy)} if rank is None else {"rank": str(rank)}
    atlas = Atlas(entries, {"source": "delta", **size})
    atlas.metadata["base"] = base_digest(atlas, old)
    atlas.skipped = skipped
    return atlas


def known_places(source: Weights) -> dict[str, Place]:
    """Every name of every linear map of a model (or of a transformers folder), tied ones too.

    Empty where neither a module nor a configuration tells.
    """
    model = source if isinstance(source, nn.Module) else _skeleton(source)
    if model is None:
        return {}
    places: dict[str, Place] = {}
    for found in linear_maps(model):
        place = Place(found.name, found.layout, found.aliases, found.bias)
        for name in (found.name, *found.aliases):
            places[name] = place
    return places


def place_of(name: str, weights: CanonicalWeights, places: Mapping[str, Place]) -> Place | None:
    """The linear map that a stored tensor is, or None."""
    if places:
        return places.get(name)
    layout = guess_layout(name, weights.shape(name))
    return None if layout is None else Place(name, layout)


def _skeleton(source: object) -> nn.Module | None:
    """A transformers folder's model without its weights, where both are at hand."""
    folder = Path(source) if isinstance(source, (str, Path)) else None
    if folder is None or not (folder / "config.json").is_file():
        return None
    try:
        import transformers
    except ModuleNotFoundError:
        return None
    names = json.loads((folder / "config.json").read_text()).get("architectures") or []
    build = getattr(transformers, names[0], None) if names else None
    if build is None:
        return None
    with torch.device("meta"):
        return build(transformers.AutoConfig.from_pretrained(folder))


def _difference(name: str, old: Tensor, new: Tensor) -> Tensor:
    if old.shape != new.shape:
        raise ValueError(
            f"{name} has shape {tuple(old.shape)} in base and {tuple(new.shape)} in finetuned: "
            "they are models of different architectures."
        )
    wide = torch.float64 if torch.float64 in (old.dtype, new.dtype) else torch.float32
    return new.detach().to(wide) - old.detach().to(new.device, wide)


def _subspaces(
    delta: Tensor, layout: Layout, sides: Sequence[Side], energy: float, rank: int | None
) -> dict[Side, Subspace]:
    """Both sides from one decomposition."""
    matrix = matrix_view(delta, layout)
    smallest = min(matrix.shape[-2:])
    kept, method = (smallest, "exact") if rank is None else (min(rank, smallest), "auto")
    left, values, right = truncated_svd(matrix, kept, method=method)
    # An update of low rank has no further directions, whatever the rank asked for.
    floor = torch.finfo(values.dtype).eps * max(matrix.shape[-2:]) * values[..., :1]
    kept = int((values > floor).sum(-1).max())
    if rank is None:
        kept = min(kept, energy_rank(values.square(), energy))
    return {
        side: Subspace(vectors[..., :kept].contiguous(), values[..., :kept].contiguous())
        for side, vectors in (("output", left), ("input", right))
        if side in sides
    }
