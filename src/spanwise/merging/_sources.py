"""What is merged: models by tensor, whole or as adapters, read when asked for."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor, nn
from typing_extensions import override

from spanwise.io import open_tensors
from spanwise.io._reader import TensorReader
from spanwise.layouts import strip_prefixes
from spanwise.lora import LORA_FACTOR, Adapter, is_adapter, open_adapter
from spanwise.merging._scratch import LENT, Scratch

_CPU = torch.device("cpu")
_QUANTISED = (".qweight", ".qzeros", ".absmax", ".quant_map", ".SCB", ".weight_packed")


class Source:
    """The tensors of one model.

    Attributes:
        label: What errors and seeds call it.
        place: The file or folder it was read from; None for tensors in memory.
        folder: The same, if it is a folder.
        tensors: Reads one tensor at a time.
        aliases: Other names of tied tensors -> the name that is kept.
    """

    def __init__(
        self, label: str, tensors: TensorReader, aliases: Mapping[str, str], place: Path | None
    ) -> None:
        self.label, self.tensors, self.place = label, tensors, place
        self.folder = place if place is not None and place.is_dir() else None
        self.aliases = dict(aliases)

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        return self.tensors.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        """A tensor's dtype, without reading it."""
        return self.tensors.dtype(name)

    def read(self, name: str, rows: slice | None = None, into: Tensor | None = None) -> Tensor:
        """A tensor as it is stored, or some of its rows.

        Args:
            name: Which tensor.
            rows: None for all.
            into: Bytes in which it may be put, if it has to be put anywhere.
        """
        shape = self.shape(name)
        if not shape or (rows is None and into is None):
            return self.tensors[name]
        start, stop = (0, shape[0]) if rows is None else (rows.start, rows.stop)
        return self.tensors.rows(name, start, stop, into)

    def lent(self, name: str, rows: slice | None, scratch: Scratch, purpose: str) -> Tensor:
        """As `read`, in memory that the next of the same purpose overwrites."""
        shape = self.shape(name)
        count = math.prod(shape) if rows is None else rows.stop - rows.start
        if rows is not None:
            count *= math.prod(shape[1:])
        size = count * self.dtype(name).itemsize
        return self.read(name, rows, scratch(purpose, (size,), torch.uint8, _CPU))

    def update(self, name: str, base: Tensor, rows: slice | None = None) -> Tensor:
        """What a training added to `base` (in its dtype and on its device), a new tensor.

        Args:
            name: Which tensor.
            base: The base's, or some rows.
            rows: Which; None for all.
        """
        return _minus(self.read(name, rows), base, torch.empty_like(base))

    def weight(self, name: str, like: Tensor, rows: slice | None = None) -> Tensor:
        """The tensor itself, in the dtype and on the device of `like`."""
        return self.read(name, rows).to(like.device, like.dtype)

    def factors(self, name: str) -> tuple[Tensor, Tensor] | None:
        """(B (m, r), A (r, n)) with the update B A as stored, for an adapter; None otherwise."""
        return None

    def changes(self, name: str) -> bool:
        """Whether a tensor may differ from the base's, as far as one can tell without reading."""
        del name
        return True

    def digest(self) -> str:
        """SHA-256 of everything that is merged of this model; reads all of it."""
        return self.tensors.digest()


Model = nn.Module | Mapping[str, Tensor] | str | Path | Adapter | Source
"""A module, a state dict, a safetensors file, a transformers folder, a PEFT LoRA folder, or what
`open_source` made of one."""


class AdapterSource(Source):
    """A LoRA adapter on the base: tensors that it does not speak of did not change.

    Attributes:
        adapter: The factors.
        whole: Tensors that PEFT keeps whole beside them (`modules_to_save`, biases) and that
            replace the base's -> their names in the adapter.

    Raises:
        ValueError: If a factor or a whole tensor does not fit the base.
    """

    def __init__(self, label: str, adapter: Adapter, base: Source, place: Path | None) -> None:
        super().__init__(label, base.tensors, base.aliases, place)
        self.adapter = adapter
        unknown = [n for n in adapter if base.aliases.get(n, n) not in base]
        if unknown:
            raise ValueError(
                f"{label} adapts {unknown[0]!r}, which the base lacks ({len(unknown)} such "
                "weights): it belongs to another model."
            )
        self._names = {base.aliases.get(n, n): n for n in adapter}
        for stored, name in self._names.items():
            if adapter.shape(name) != base.shape(stored):
                raise ValueError(
                    f"{label} changes {name!r} by a {adapter.shape(name)} matrix, but the base's "
                    f"has shape {base.shape(stored)}: it belongs to another model."
                )
        self.whole = whole_tensors(label, adapter, base, base.aliases)

    @override
    def update(self, name: str, base: Tensor, rows: slice | None = None) -> Tensor:
        if name in self.whole:
            found = self._replacing(name, base, rows).sub(base)
            return found.add_(self._product(name, base, rows)) if name in self._names else found
        if name not in self._names:
            return torch.zeros_like(base)
        return self._product(name, base, rows)

    @override
    def weight(self, name: str, like: Tensor, rows: slice | None = None) -> Tensor:
        whole = name in self.whole
        base = self._replacing(name, like, rows) if whole else super().weight(name, like, rows)
        return base if name not in self._names else base + self._product(name, base, rows)

    @override
    def factors(self, name: str) -> tuple[Tensor, Tensor] | None:
        known = None if name in self.whole else self._names.get(name)
        return None if known is None else self.adapter.factors(known)

    @override
    def changes(self, name: str) -> bool:
        return name in self._names or name in self.whole

    @override
    def digest(self) -> str:
        return self.adapter.digest()

    def _product(self, name: str, like: Tensor, rows: slice | None) -> Tensor:
        return self.adapter.update(self._names[name], like.dtype, like.device, rows)

    def _replacing(self, name: str, like: Tensor, rows: slice | None) -> Tensor:
        return self.adapter.other(self.whole[name], rows).to(like.device, like.dtype)


def whole_tensors(
    label: str,
    adapter: Adapter,
    base: TensorReader | Source,
    aliases: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """What an adapter keeps whole, by the base's names -> the adapter's.

    Args:
        label: What errors call the adapter.
        adapter: The adapter.
        base: What it was trained on.
        aliases: Other names of tied tensors -> the name that is kept.

    Raises:
        ValueError: If one is no tensor of the base, or of another shape.
    """
    found: dict[str, str] = {}
    for key in adapter.others:
        name = strip_prefixes(key).replace(".modules_to_save.", ".")
        name = (aliases or {}).get(name, name)
        if name not in base:
            raise ValueError(
                f"{label} holds {key!r}, which is no factor of a linear map and no tensor of its "
                "base: load it with PEFT, save the result of merge_and_unload(), and give that."
            )
        shape = adapter.tensors.shape(key)
        if shape != base.shape(name):
            raise ValueError(
                f"{label} replaces {name!r} by shape {shape}, the base's is {base.shape(name)}: "
                "its vocabulary was resized, or it belongs to another model. Resize the base's "
                "likewise (resize_token_embeddings), save it, and begin again."
            )
        found[name] = key
    return found


@dataclass(frozen=True)
class Inputs:
    """A base and what is merged into it, name by name and shape by shape the same."""

    base: Source | None
    models: tuple[Source, ...]

    @property
    def reference(self) -> Source:
        """The base, or the first model without one: its names and dtypes are the result's."""
        return self.models[0] if self.base is None else self.base

    @property
    def names(self) -> list[str]:
        """Tensors of the result, tied ones once."""
        return list(self.reference)

    def updates(
        self, name: str, base: Tensor, rows: slice | None, models: Sequence[int], scratch: Scratch
    ) -> Iterator[Tensor]:
        """What some models add to `base`, each in memory that a later one may overwrite.

        Whole models are read, converted and subtracted several at a time, as many as fit into lent
        memory: three calls in place of three for each.

        Args:
            name: Which tensor.
            base: The base's, or some rows.
            rows: Which; None for all.
            models: Indices of the models.
            scratch: Lends the memory.
        """
        most = max(1, LENT // max(1, base.nbytes))
        for adapters, some in groupby(models, lambda i: isinstance(self.models[i], AdapterSource)):
            sources = [self.models[index] for index in some]
            if adapters:
                yield from (source.update(name, base, rows) for source in sources)
                continue
            for first in range(0, len(sources), most):
                yield from _together(name, base, rows, sources[first : first + most], scratch)


def _together(
    name: str, base: Tensor, rows: slice | None, sources: Sequence[Source], scratch: Scratch
) -> Tensor:
    """The updates of whole models, `(models, *shape)`, in lent memory."""
    shape, dtype = base.shape, sources[0].dtype(name)
    held = scratch("updates", (len(sources), *shape), base.dtype, base.device)
    size = base.numel() * dtype.itemsize
    bytes_ = scratch("stored", (len(sources), size), torch.uint8, _CPU)
    stored = bytes_.view(dtype).view(held.shape) if base.numel() else held
    place = bytes_.data_ptr()
    apart: list[tuple[int, Tensor]] = []
    for index, (source, into) in enumerate(zip(sources, bytes_.unbind(), strict=True)):
        fits = source.dtype(name) == dtype
        found = source.read(name, rows, into if fits else None)
        if not fits or found.data_ptr() != place + index * size:
            apart.append((index, found))
    if len(apart) < len(sources):
        _minus(stored, base, held)
    for index, found in apart:  # not read into place, for they were in memory
        _minus(found, base, held[index])
    return held


def _minus(stored: Tensor, base: Tensor, out: Tensor) -> Tensor:
    if stored.dtype == base.dtype and stored.device == base.device:
        return torch.sub(stored, base, out=out)
    return out.copy_(stored).sub_(base)


def open_source(label: str, model: Model, base: Source | None = None) -> Source:
    """One model by tensor.

    Args:
        label: What to call it.
        model: See `Model`; a source is handed back.
        base: What an adapter adds to.

    Raises:
        ValueError: If it is an adapter and there is no base, or its weights are quantised.
    """
    if isinstance(model, Source):
        return model
    folder = Path(model) if isinstance(model, (str, Path)) else None
    if isinstance(model, Adapter) or (folder is not None and is_adapter(folder)):
        if base is None:
            raise ValueError(
                f"{label} is a LoRA adapter ({folder or 'a state dict'}), which holds changes only:"
                " give the model that it was trained on as base."
            )
        adapter = model if isinstance(model, Adapter) else open_adapter(folder or "")
        return AdapterSource(label, adapter, base, folder)
    if isinstance(model, nn.Module):
        model = model.state_dict()
    kept, aliases = dict[str, Tensor](), dict[str, str]()
    if isinstance(model, Mapping) and not isinstance(model, TensorReader):
        kept, aliases = _without_copies(model)
    tensors = open_tensors(model if folder is not None else kept or model)
    factor = next((n for n in tensors if LORA_FACTOR.fullmatch(n)), None)
    if factor is not None:
        raise ValueError(
            f"{label} holds LoRA factors ({factor!r}), and the mean of factors is not the factors "
            "of the mean: give the adapter's folder, or spanwise.lora.open_adapter(tensors)."
        )
    found = next((n for n in tensors if n.endswith(_QUANTISED)), None)
    if found is not None or (folder is not None and _quantised_config(folder)):
        raise ValueError(
            f"{label} holds quantised weights ({found or 'see its config.json'}), which cannot be "
            "added up. Merge the models it was made from, or dequantise it first."
        )
    return Source(label, tensors, aliases, folder)


def _without_copies(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each tensor once, and the other names that tied ones go by."""
    kept: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[object, ...], str] = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name!r} must be a tensor, got {type(tensor).__name__}.")
        place = (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if tensor.numel() and place in first:
            aliases[name] = first[place]
            continue
        first[place] = name
        kept[name] = tensor
    return kept, aliases


def _quantised_config(path: Path) -> bool:
    file = path / "config.json"
    try:
        return bool(json.loads(file.read_text(encoding="utf-8")).get("quantization_config"))
    except (OSError, ValueError, AttributeError):
        return False
