"""Atlas of a LoRA adapter W += s B A: rows of A span its inputs, columns of B its outputs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from spanwise.atlas._atlas import Atlas
from spanwise.atlas._delta import Place, known_places
from spanwise.atlas._entry import LORA_FACTOR, Entry
from spanwise.atlas._select import check_sides
from spanwise.layouts import Side, strip_prefixes
from spanwise.linalg.bases import orthonormalize
from spanwise.subspace import Subspace

Factors = dict[str, dict[str, Tensor]]


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
    tensors, config = _open(adapter)
    factors, skipped = _factors(tensors)
    places: dict[str, Place] = {} if model is None else known_places(model)
    entries = []
    for name, pair in factors.items():
        a, b = _pair(name, pair)
        place = places.get(name) or _guess(name, a, bool(config.get("fan_in_fan_out")))
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
    base_model = config.get("base_model_name_or_path")
    about = {"base_model": str(base_model)} if base_model else {}
    atlas = Atlas(entries, {"source": "adapter", **about})
    if model is not None:
        from spanwise.atlas._storage import base_digest

        atlas.metadata["base"] = base_digest(atlas, model)
    atlas.skipped = skipped
    return atlas


def _open(
    adapter: str | Path | Mapping[str, Tensor],
) -> tuple[Mapping[str, Tensor], dict[str, object]]:
    if isinstance(adapter, Mapping):
        return adapter, {}
    from spanwise.io import open_tensors

    path = Path(adapter)
    folder = path if path.is_dir() else path.parent
    tensors = folder / "adapter_model.safetensors" if path.is_dir() else path
    if not tensors.is_file():
        raise ValueError(
            f"{path} holds no adapter_model.safetensors; save the adapter with PEFT's "
            "save_pretrained (safetensors is its default)."
        )
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text()) if file.is_file() else {}
    if config.get("peft_type", "LORA") != "LORA":
        raise ValueError(f"{path} is a {config['peft_type']} adapter; only LORA has factors A, B.")
    return open_tensors(tensors), config


def _factors(tensors: Mapping[str, Tensor]) -> tuple[Factors, dict[str, str]]:
    """Pairs by the name of the weight that they change, and what was left out."""
    found: Factors = {}
    skipped: dict[str, str] = {}
    for key in tensors:
        match = LORA_FACTOR.fullmatch(strip_prefixes(key))
        if "lora_magnitude_vector" in key:
            raise ValueError(
                f"{key}: a DoRA adapter rescales whole rows, so its update leaves the spans of its "
                "factors. Merge it and use Atlas.from_delta."
            )
        if match is None:
            skipped[key] = "it is no LoRA factor of a linear map"
            continue
        halves = found.setdefault(f"{match['module']}.weight", {})
        if match["factor"] in halves:
            raise ValueError(
                f"{key}: more than one adapter in this state dict; give the factors of one."
            )
        halves[match["factor"]] = tensors[key]
    if not found:
        raise ValueError(
            "no lora_A and lora_B weights among the adapter's tensors: "
            f"{', '.join(list(tensors)[:3]) or 'none at all'}."
        )
    return found, skipped


def _pair(name: str, halves: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    if set(halves) != {"A", "B"}:
        raise ValueError(f"{name}: the adapter has lora_{'/'.join(halves)} without its other half.")
    a, b = (_wide(halves[factor]) for factor in "AB")
    if a.shape[0] != b.shape[1]:
        raise ValueError(
            f"{name}: lora_A has rank {a.shape[0]} and lora_B {b.shape[1]}; they do not belong "
            "together."
        )
    return a, b


def _guess(name: str, a: Tensor, transposed: bool) -> Place:
    if a.ndim > 2:
        return Place(name, "conv")
    return Place(name, "transposed" if transposed else "linear")


def _span(columns: Tensor, tolerance: float) -> Tensor | None:
    if not torch.isfinite(columns).all():
        raise ValueError("the adapter has factors that are not finite.")
    return orthonormalize(columns, tolerance=tolerance) if columns.any() else None


def _wide(tensor: Tensor) -> Tensor:
    wide = tensor.dtype in (torch.float32, torch.float64)
    return tensor.detach() if wide else tensor.detach().float()
