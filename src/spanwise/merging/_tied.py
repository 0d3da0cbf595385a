"""Tied tensors that one model's file holds once and another's twice."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from typing_extensions import override

from spanwise.io import TensorReader
from spanwise.io._reader import ReaderAround
from spanwise.layouts import guess_layout
from spanwise.merging._sources import (
    AdapterSource,
    Inputs,
    Model,
    Source,
    open_inputs,
    open_source,
)

_ROWS = 2**22
"""Elements that are compared at a time."""


class Renamed(ReaderAround):
    """Another reader's tensors under other names.

    Args:
        tensors: What is read.
        names: Every name it goes by -> the tensor's own name.
    """

    def __init__(self, tensors: TensorReader, names: Mapping[str, str]) -> None:
        super().__init__(tensors)
        self.metadata = tensors.metadata
        self._names = dict(names)

    @override
    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._names[name]]

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    @override
    def __len__(self) -> int:
        return len(self._names)

    @override
    def __contains__(self, name: object) -> bool:
        return name in self._names

    @override
    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors.shape(self._names[name])

    @override
    def dtype(self, name: str) -> torch.dtype:
        return self._tensors.dtype(self._names[name])

    @override
    def rows(self, name: str, start: int, stop: int, into: Tensor | None = None) -> Tensor:
        del into
        return self._tensors.rows(self._names[name], start, stop)


def open_alike(base: Model | None, models: Mapping[str, Model]) -> Inputs:
    """`open_inputs` for files that name tied tensors differently.

    Args:
        base: What the models were trained from; None for methods without one.
        models: By label.

    Raises:
        ValueError: As `open_inputs`; if a head that others tie to the embeddings differs from them.
    """
    opened = None if base is None else open_source("base", base)
    sources = {label: open_source(label, model, opened) for label, model in models.items()}
    first = next(iter(sources.values()), None) if opened is None else opened
    if first is not None:
        sources = {label: _named_alike(first, source) for label, source in sources.items()}
    return open_inputs(opened, sources)


def _named_alike(reference: Source, source: Source) -> Source:
    if isinstance(source, AdapterSource):
        return source
    names = tied_names(reference, source)
    if set(names) == set(source):
        return source
    return Source(source.label, Renamed(source.tensors, names), source.aliases, source.place)


def tied_names(reference: Source, source: Source) -> dict[str, str]:
    """The names that a source's tensors go by, if tied ones are named as in the reference.

    Some programs save a head that is tied to the embeddings a second time, others leave it out.
    Which of the two a file does says nothing of the model, as long as both are equal.

    Args:
        reference: The base, or the first model.
        source: Another one.

    Returns:
        Name -> the tensor's own name; what differs otherwise is left as it is.

    Raises:
        ValueError: If a head that the reference ties to its embeddings differs from them.
    """
    here = {reference.aliases.get(name, name) for name in reference}
    there = {reference.aliases.get(name, name) for name in source}
    names = {name: name for name in source}
    for head in sorted(there - here):
        twin = _twin(head, source, there & here)
        if twin is None:
            continue
        if not _equal(source, head, twin):
            raise ValueError(
                f"{source.label} holds a {head!r} that differs from its {twin!r}, but "
                f"{reference.label} has one tensor for both: the head was untied while it was "
                f"trained. Save {reference.label} with its head apart (tie_word_embeddings: false "
                "and a copy of the embeddings), or leave the model out."
            )
        del names[head]
    for head in sorted(here - there):
        twin = _twin(head, reference, there & here)
        if twin is not None and _equal(reference, head, twin):
            names[head] = twin
    return names


def _twin(head: str, source: Source, names: set[str]) -> str | None:
    """The table of embeddings that a head may be tied to."""
    shape = source.shape(head)
    tables = [n for n in names if _is_table(n, source.shape(n)) and source.shape(n) == shape]
    return tables[0] if len(shape) == 2 and "head" in head and len(tables) == 1 else None


def _is_table(name: str, shape: Sequence[int]) -> bool:
    return name.endswith(".weight") and len(shape) == 2 and guess_layout(name, shape) is None


def _equal(source: Source, a: str, b: str) -> bool:
    """Whether two tensors are equal, some rows at a time."""
    if source.dtype(a) != source.dtype(b):
        return False
    count, width = source.shape(a)
    step = max(1, _ROWS // max(1, width))
    parts = (slice(i, min(i + step, count)) for i in range(0, count, step))
    return all(torch.equal(source.read(a, rows), source.read(b, rows)) for rows in parts)
