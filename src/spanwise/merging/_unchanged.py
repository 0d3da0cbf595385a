"""Models that add nothing to their base: the base given twice, or a training that never was."""

from collections.abc import Sequence

import torch

from spanwise.merging._sources import AdapterSource, Inputs, Source

_ROWS = 2**22
"""Elements that are compared at a time."""


def unchanged(inputs: Inputs) -> list[str]:
    """Labels of the models whose every tensor is the base's, bit for bit in value.

    The first rows tell almost always; only where all of them agree is a model read whole.
    """
    base = inputs.base
    if base is None:
        return []
    return [model.label for model in inputs.models if _adds_nothing(model, base)]


def told(labels: Sequence[str]) -> str:
    """A sentence about these models."""
    verb, pronoun = ("equals", "it adds") if len(labels) == 1 else ("equal", "they add")
    *most, last = labels
    names = f"{', '.join(most)} and {last}" if most else last
    return f"{names} {verb} the base: {pronoun} nothing"


def _adds_nothing(model: Source, base: Source) -> bool:
    if isinstance(model, AdapterSource):
        return not any(_product(model, name) or _replaced(model, base, name) for name in base)
    names = [n for n in base if base.dtype(n).is_floating_point and 0 not in base.shape(n)]
    first = all(_same(model, base, n, slice(0, 1)) for n in names)
    return first and all(_same(model, base, n, rows) for n in names for rows in _blocks(base, n))


def _product(model: AdapterSource, name: str) -> bool:
    """Whether an adapter's update of a tensor has anything in it."""
    factors = model.factors(name)
    return factors is not None and all(bool(factor.any()) for factor in factors)


def _replaced(model: AdapterSource, base: Source, name: str) -> bool:
    """Whether an adapter keeps a tensor whole that is not the base's."""
    if name not in model.whole:
        return False
    for rows in _blocks(base, name):
        held = model.adapter.other(model.whole[name], rows)
        if not torch.equal(held, base.read(name, rows).to(held.dtype)):
            return True
    return False


def _blocks(base: Source, name: str) -> list[slice | None]:
    shape = base.shape(name)
    if not shape:
        return [None]
    step = max(1, _ROWS // max(1, torch.Size(shape[1:]).numel()))
    return [slice(i, min(i + step, shape[0])) for i in range(0, shape[0], step)]


def _same(model: Source, base: Source, name: str, rows: slice | None) -> bool:
    rows = rows if base.shape(name) else None
    a, b = model.read(name, rows), base.read(name, rows)
    return torch.equal(a, b.to(a.dtype)) if a.dtype != b.dtype else torch.equal(a, b)
