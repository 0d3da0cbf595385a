"""A model put together from several merges: layers of one, layers of another."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from spanwise.io import TensorReader
from spanwise.merging._job import Job, Kind
from spanwise.merging._schedule import Depths, layer_of, renumbered
from spanwise.merging._sources import Inputs, Source

_BEFORE = ("embed_tokens", "embed_in", "word_embeddings", "wte", "wpe", "tok_embeddings")
"""Tensors outside layers whose names hold one of these come before the first layer."""


class Renamed(TensorReader):
    """Some tensors of a reader under other names.

    Args:
        tensors: What is read.
        names: Name -> name in `tensors`.
    """

    def __init__(self, tensors: TensorReader, names: Mapping[str, str]) -> None:
        self._tensors, self._names = tensors, dict(names)
        self.metadata = {}

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    @override
    def __contains__(self, name: object) -> bool:
        return name in self._names

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._tensors.shape(self._names[name])

    def dtype(self, name: str) -> torch.dtype:
        """Dtype of a tensor."""
        return self._tensors.dtype(self._names[name])

    def rows(self, name: str, start: int, stop: int, into: Tensor | None = None) -> Tensor:
        """Rows `start` to `stop` (exclusive) of a tensor's first axis."""
        return self._tensors.rows(self._names[name], start, stop, into)

    def _pieces(self, name: str) -> Iterator[memoryview]:
        return self._tensors._pieces(self._names[name])


class Joined(TensorReader):
    """Tensors of several readers, whose names differ."""

    def __init__(self, readers: Sequence[TensorReader]) -> None:
        self._homes = {name: reader for reader in readers for name in reader}
        self.metadata = {}

    def __getitem__(self, name: str) -> Tensor:
        return self._homes[name][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._homes)

    def __len__(self) -> int:
        return len(self._homes)

    @override
    def __contains__(self, name: object) -> bool:
        return name in self._homes

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._homes[name].shape(name)

    def dtype(self, name: str) -> torch.dtype:
        """Dtype of a tensor."""
        return self._homes[name].dtype(name)

    def rows(self, name: str, start: int, stop: int, into: Tensor | None = None) -> Tensor:
        """Rows `start` to `stop` (exclusive) of a tensor's first axis."""
        return self._homes[name].rows(name, start, stop, into)

    def _pieces(self, name: str) -> Iterator[memoryview]:
        return self._homes[name]._pieces(name)


@dataclass(frozen=True)
class SliceDepths(Depths):
    """Depth within a slice of layers, from 0 at its first to 1 at its last."""

    first: int = 0
    """The number that its first layer has in the result."""

    @override
    def of_tensor(self, name: str) -> float:
        layer = layer_of(name)
        if layer is None:
            return 0.0
        return 1.0 if self.layers < 2 else (layer - self.first) / (self.layers - 1)


def layer_slice(
    source: Source, start: int, stop: int, first: int, *, before: bool, after: bool
) -> Source:
    """Layers `start` to `stop` (exclusive) of a model, numbered anew.

    Args:
        source: The model.
        start: Its first layer that is taken.
        stop: Where to stop.
        first: The number that layer `start` gets.
        before: Whether what comes before the layers is taken too.
        after: Whether what comes after them is.
    """
    names: dict[str, str] = {}
    for name in source:
        layer = layer_of(name)
        if layer is None:
            if before if any(part in name for part in _BEFORE) else after:
                names[name] = name
        elif start <= layer < stop:
            names[renumbered(name, layer - start + first)] = name
    return Source(source.label, Renamed(source.tensors, names), {}, source.place)


@dataclass(frozen=True)
class Parts:
    """Several jobs that make one model; every tensor belongs to one of them."""

    jobs: tuple[Job, ...]
    out_dtype: torch.dtype | None = None
    folder: Path | None = None
    """Where configuration and tokenizer come from."""

    @cached_property
    def inputs(self) -> Inputs:
        """The parts' references as one model."""
        joined = Joined([job.inputs.reference.tensors for job in self.jobs])
        return Inputs(None, (Source("merged", joined, {}, self.folder),))

    @cached_property
    def _homes(self) -> dict[str, Job]:
        return {name: job for job in self.jobs for name in job.inputs.names}

    @property
    def names(self) -> list[str]:
        """The tensors that are merged; all others are copied."""
        return [name for job in self.jobs for name in job.names]

    def begun(self) -> "Parts":
        """The same after the methods have looked at all tensors, where they need to."""
        return replace(self, jobs=tuple(job.begun() for job in self.jobs))

    def kind(self, name: str) -> Kind:
        """How a tensor is treated."""
        return self._homes[name].kind(name)

    def stored_dtype(self, name: str) -> torch.dtype:
        """The dtype that a tensor has in the result."""
        return self._homes[name].stored_dtype(name)

    def tensor(self, name: str) -> Tensor:
        """A tensor of the result."""
        return self._homes[name].tensor(name)

    def bytes_of(self, name: str) -> int:
        """Peak memory of making one tensor."""
        return self._homes[name].bytes_of(name)


def layered_config(
    config: Mapping[str, Any], layers: Sequence[tuple[Mapping[str, Any], int]]
) -> dict[str, Any]:
    """A configuration for other layers: their number, and every list that has an entry for each.

    Args:
        config: The one that is changed; its text model's part, if it has one.
        layers: For each layer of the result, the configuration it comes from and its number there.

    Raises:
        ValueError: If the configuration does not say how many layers there are.
    """
    found = dict(config)
    key = next((k for k in LAYER_KEYS if isinstance(found.get(k), int)), None)
    if key is None:
        raise ValueError(
            f"config.json names no number of layers ({', '.join(LAYER_KEYS)}), so slices cannot "
            "be written into it."
        )
    count = found[key]
    for name, value in config.items():
        if "layer" in name and isinstance(value, list) and len(value) == count:
            found[name] = [source.get(name, value)[number] for source, number in layers]
    found[key] = len(layers)
    return found


LAYER_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
"""What configurations call the number of layers."""
