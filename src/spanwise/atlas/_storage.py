"""The atlas file: one safetensors file that proves its own integrity.

Tensors are `{name}::{side}::basis` and, where they exist, `::values` and `::mean`. Entries that
share a subspace name the same tensors, so a basis is stored once. Metadata (all strings, as
safetensors asks): `format`, `version`, `spanwise`, `atlas` (the atlas's own metadata, JSON),
`entries` (JSON list) and `sha256` over everything before it and every tensor's bytes.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import spanwise
from spanwise.atlas._entry import Entry
from spanwise.atlas._weights import Weights, weights_digest
from spanwise.errors import CorruptFileError
from spanwise.linalg.bases import orthonormalize
from spanwise.subspace import Subspace

if TYPE_CHECKING:
    from spanwise.atlas._atlas import Atlas

FORMAT = "spanwise-atlas"
VERSION = 1
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def file_bytes(atlas: "Atlas", dtype: torch.dtype | None = None) -> int:
    """Bytes of tensors that `save` would write; the header comes on top."""
    return sum(
        (s.basis.numel() * (dtype or s.basis.dtype).itemsize)
        + sum(t.nbytes for t in (s.values, s.mean) if t is not None)
        for s in atlas.subspaces
    )


def save(atlas: "Atlas", path: Path, dtype: torch.dtype | None = None) -> Path:
    """Write `atlas` to `path`, whole or not at all."""
    from spanwise.io import save_tensors

    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(str, DTYPES))}, got {dtype}.")
    if not len(atlas):
        raise ValueError("the atlas is empty: there is nothing to save.")
    keys: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    rows = []
    for entry in atlas:
        key = keys.setdefault(id(entry.subspace), f"{entry.name}::{entry.side}")
        if f"{key}::basis" not in tensors:
            tensors.update(_tensors(key, entry.subspace, dtype))
        rows.append(_row(entry, key))
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "spanwise": spanwise.__version__,
        "atlas": json.dumps(atlas.metadata, sort_keys=True),
        "entries": json.dumps(rows, separators=(",", ":")),
    }
    save_tensors(path, tensors, {**metadata, "sha256": _digest(metadata, tensors)})
    return path


def load(path: Path, base: Weights | None = None) -> "Atlas":
    """Read an atlas and check every bit of it."""
    from spanwise.atlas._atlas import Atlas
    from spanwise.io import open_tensors

    reader = open_tensors(path)
    metadata = dict(reader.metadata or {})
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is a safetensors file, but no atlas of spanwise.")
    if metadata.get("version") != str(VERSION):
        raise ValueError(
            f"{path} has atlas format version {metadata.get('version')}; this spanwise "
            f"({spanwise.__version__}) reads version {VERSION}. Use the spanwise that wrote it "
            f"({metadata.get('spanwise', 'unknown')}), or extract the atlas again."
        )
    tensors = {name: reader[name] for name in reader}
    expected = metadata.pop("sha256", "")
    if _digest(metadata, tensors) != expected:
        raise CorruptFileError(
            f"{path} is damaged: its content does not match the sha256 it was written with. "
            "Copy it again, or extract the atlas again."
        )
    subspaces: dict[str, Subspace] = {}
    entries = []
    for row in json.loads(metadata["entries"]):
        key = row.pop("basis")
        if key not in subspaces:
            subspaces[key] = _subspace(key, tensors)
        row.update(shape=tuple(row["shape"]), aliases=tuple(row["aliases"]))
        entries.append(Entry(subspace=subspaces[key], **row))
    atlas = Atlas(entries, json.loads(metadata["atlas"]))
    if base is not None:
        check_base(atlas, base)
    return atlas


def base_digest(atlas: "Atlas", source: "Weights") -> str:
    """The digest of the parameters that the atlas covers, as `source` holds them."""
    return weights_digest(source, {entry.name: entry.aliases for entry in atlas})


def check_base(atlas: "Atlas", base: "Weights") -> None:
    """Raise unless the atlas was made from these weights."""
    recorded = atlas.metadata.get("base")
    if not recorded:
        raise ValueError(
            f"this atlas (source: {atlas.metadata.get('source', 'unknown')}) does not record the "
            "model it belongs to, so it cannot be checked against one. Load it without base."
        )
    is_digest = isinstance(base, str) and re.fullmatch("[0-9a-f]{64}", base)
    found = base if is_digest else base_digest(atlas, base)
    if found != recorded:
        raise ValueError(
            f"the atlas belongs to another base: it was made from weights {recorded[:12]}..., "
            f"these are {found[:12]}.... Extract an atlas from this model, or load without "
            "base to use it all the same."
        )


def _tensors(key: str, subspace: Subspace, dtype: torch.dtype | None) -> Mapping[str, Tensor]:
    held = {"basis": subspace.basis.to(dtype), "values": subspace.values, "mean": subspace.mean}
    return {
        f"{key}::{part}": tensor.detach().cpu().contiguous()
        for part, tensor in held.items()
        if tensor is not None
    }


def _subspace(key: str, tensors: Mapping[str, Tensor]) -> Subspace:
    basis = tensors[f"{key}::basis"]
    if basis.dtype not in (torch.float32, torch.float64):
        basis = orthonormalize(basis.float())
    return Subspace(basis, tensors.get(f"{key}::values"), tensors.get(f"{key}::mean"))


def _row(entry: Entry, key: str) -> dict[str, Any]:
    row = {f.name: getattr(entry, f.name) for f in fields(entry) if f.name != "subspace"}
    return {**row, "basis": key}


def _digest(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
