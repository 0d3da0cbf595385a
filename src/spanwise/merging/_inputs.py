"""Models opened side by side, and whether they are copies of one."""

from collections.abc import Mapping, Sequence

from spanwise.merging._sources import Inputs, Model, Source, open_source
from spanwise.merging._tied import named_alike


def open_inputs(base: Model | None, models: Mapping[str, Model]) -> Inputs:
    """Open everything and make sure that it fits together; reads headers only.

    Args:
        base: What the models were trained from; None for methods without one.
        models: By label.

    Raises:
        ValueError: If there is no model, names or shapes differ, weights are quantised, an adapter
            has no base or another one, or a head that others tie to the embeddings differs from
            them.
    """
    if not models:
        raise ValueError("models is empty: give at least one model to merge.")
    opened = None if base is None else open_source("base", base)
    sources = [open_source(label, model, opened) for label, model in models.items()]
    reference = sources[0] if opened is None else opened
    sources = [named_alike(reference, source) for source in sources]
    for source in sources:
        _check_same(reference, source)
    return Inputs(opened, tuple(sources))


def _check_same(reference: Source, source: Source) -> None:
    here = {reference.aliases.get(n, n) for n in reference}
    there = {reference.aliases.get(n, n) for n in source}
    if here != there:
        lacks, more = sorted(here - there), sorted(there - here)
        parts = [f"lacks {_some(lacks)}"] * bool(lacks) + [f"has {_some(more)} more"] * bool(more)
        raise ValueError(
            f"{_called(source)} and {_called(reference)} are not the same architecture: "
            f"{source.label} {' and '.join(parts)}. Merge copies of one model."
        )
    for name in reference:
        a, b = reference.shape(name), source.shape(name)
        if a != b:
            hint = (
                " Their vocabularies differ: give both the same tokens first (tokenizer)."
                if len(a) == 2 and a[1:] == b[1:] and a[0] > 1000
                else " Merge copies of one model."
            )
            raise ValueError(
                f"{name!r} has shape {a} in {_called(reference)} and {b} in {_called(source)}."
                f"{hint}"
            )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(n) for n in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} others"


def _called(source: Source) -> str:
    """A model by what it is in the merge, and by its folder's name where that says more."""
    name = source.label if source.place is None else source.place.name
    return source.label if name == source.label else f"{source.label} ({name})"
