"""Tied tensors that one model's file holds once and another's twice."""

from collections.abc import Sequence

import torch

from spanwise.layouts import guess_layout
from spanwise.merging._parts import Renamed
from spanwise.merging._sources import AdapterSource, Source

_ROWS = 2**22
"""Elements that are compared at a time."""


def named_alike(reference: Source, source: Source) -> Source:
    """A source whose tied tensors go by the reference's names; see `tied_names`."""
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
