"""Statistics beside the models they belong to, before anything is merged."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from spanwise.merging._sources import AdapterSource, Inputs, Source
from spanwise.merging._stats import Stats, mark_of
from spanwise.merging._warn import warn_caller

Statistics = Sequence[Stats | str | Path] | Mapping[str, Stats | str | Path]
"""One for each model, in their order or by their names."""


def opened_stats(
    given: Statistics | None, labels: Sequence[str], kinds: Sequence[str]
) -> list[Stats]:
    """The statistics in the models' order.

    Args:
        given: See `Statistics`.
        labels: The models' names.
        kinds: What the method asks for.

    Raises:
        ValueError: If they are missing, not asked for, or not one for each model.
    """
    if given is None:
        if kinds:
            raise ValueError(
                f"this method needs statistics of each model's data ({', '.join(kinds)}): collect "
                "them (`spanwise merge stats`, collect_stats) and give --stats or stats=[...], one "
                "for each model."
            )
        return []
    if not kinds:
        raise ValueError("this method uses no statistics: leave stats out, or change the method.")
    if isinstance(given, (Stats, str, Path)):
        raise ValueError("stats must be a sequence with one for each model, got a single one.")
    if isinstance(given, Mapping):
        if set(given) != set(labels):
            raise ValueError(
                f"stats are for {', '.join(map(str, given))}, but the models are called "
                f"{', '.join(labels)}."
            )
        given = [given[label] for label in labels]
    if len(given) != len(labels):
        raise ValueError(f"{len(labels)} models need as many stats, got {len(given)}.")
    return [held if isinstance(held, Stats) else Stats.load(held) for held in given]


def stats_files(named: Sequence[tuple[str, str | None]], beside: Path | None) -> list[Path] | None:
    """The files that a configuration names for its models; None if it names none.

    Args:
        named: (Model, path) in the models' order.
        beside: Where the configuration lies, for paths relative to it.

    Raises:
        ValueError: If only some models have one.
    """
    if not any(path for _, path in named):
        return None
    found: list[Path] = []
    for model, name in named:
        if name is None:
            raise ValueError(
                f"stats are given for some models only: {model} has none. `spanwise merge stats` "
                "collects them."
            )
        path = Path(name).expanduser()
        found.append(path if path.exists() or beside is None else beside / path)
    return found


def check_stats(
    stats: Sequence[Stats], inputs: Inputs, names: Sequence[str], kinds: Sequence[str]
) -> None:
    """Make sure that statistics fit the models; warn of tensors that have none.

    Args:
        stats: In the models' order.
        inputs: The models.
        names: The tensors that are merged.
        kinds: What the method asks for.

    Raises:
        ValueError: If none match, a size or layout differs, or they were collected on another of
            the models.
    """
    if not kinds:
        return
    for held, source in zip(stats, inputs.models, strict=True):
        matched = [name for name in held if name in source]
        if not matched:
            raise ValueError(
                f"the statistics of {source.label} name none of its tensors: theirs begin with "
                f"{next(iter(held), 'nothing')!r}, the model's with {inputs.names[0]!r}. Collect "
                "them on the same class of model."
            )
        lacking = [k for k in kinds if not any(k in held[name] for name in matched)]
        if lacking:
            raise ValueError(
                f"the statistics of {source.label} hold no {' and no '.join(lacking)}, which this "
                "method needs: collect them with that kind."
            )
        for name in matched:
            held[name].check_shape(source.shape(name))
    for name in names:
        layouts = {held[name].layout for held in stats if name in held}
        if len(layouts) > 1:
            raise ValueError(f"the statistics of {name!r} differ in layout: {sorted(layouts)}.")
    _check_order(stats, inputs)
    full = [n for n in names if all(n in held and set(kinds) <= set(held[n]) for held in stats)]
    extra = {name for held in stats for name in held if name not in inputs.reference}
    parts = []
    if len(full) < len(names):
        first = next(name for name in names if name not in set(full))
        parts.append(
            f"{len(names) - len(full)} of {len(names)} tensors lack statistics in some model and "
            f"are averaged, {first!r} first"
        )
    if extra:
        parts.append(f"{len(extra)} statistics belong to no tensor, {min(extra)!r} first")
    if parts:
        warn_caller(f"{'; '.join(parts)}.")


def _check_order(stats: Sequence[Stats], inputs: Inputs) -> None:
    """Raise if statistics were plainly collected on another of the models."""
    sources = [None if isinstance(s, AdapterSource) else s for s in inputs.models]
    for index, held in enumerate(stats):
        own = sources[index]
        if own is None or _collected_on(held, own):
            continue
        for other in sources:
            if other is not None and other is not own and _collected_on(held, other):
                raise ValueError(
                    f"the statistics of {own.label} were collected on {other.label}: give them in "
                    "the models' order, or by name."
                )


def _collected_on(held: Stats, source: Source) -> bool:
    """Whether the rows that a file remembers are the model's; without any it may be."""
    for name, entry in held.entries.items():
        if entry.mark is None or name not in source:
            continue
        shape = source.shape(name)
        row = source.read(name, slice(0, 1) if shape and shape[0] else None)
        if mark_of(row) != entry.mark:
            return False
    return True
