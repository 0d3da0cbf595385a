"""`Result`: everything one needs to believe, repeat or refute a run, in one JSON file."""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

from spanwise.io import write_bytes
from spanwise.report._verdict import Check, Verdict

FORMAT = "spanwise-result"
VERSION = 1


@runtime_checkable
class HasInputs(Protocol):
    """A run that knows when it may be compared."""

    def unequal_inputs(self, other: Any) -> list[str]:
        """Why two runs may not be compared; empty if they may."""
        ...


T = TypeVar("T", bound=HasInputs)
Row = Mapping[str, Any]
"""One line of a table of runs. A number that a run does not have is None; a training that diverged
says so: `"diverged": True`."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """How a column of the rows is read."""

    label: str
    """What it is, in words."""
    unit: str = ""
    """Its unit; `B` is shown as kB, MB, GB."""
    better: Literal["lower", "higher", ""] = ""
    """Which way is better, if any."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One run of an experiment: what was asked, what was measured, what follows."""

    slug: str
    """The method's name in the catalog, or the experiment's own."""
    title: str
    """A few words for a headline."""
    claim: str
    """The paper's claim, in a sentence."""
    criterion: str
    """What had to be true, written before the run."""
    criterion_commit: str | None
    """Commit that wrote the criterion; None outside a git checkout."""
    commit: str | None
    """Commit of the code that ran, with "+" behind it if it had edits."""
    preset: str
    """`quick`, `default` or `full`."""
    settings: Mapping[str, Any]
    """Every setting that can change a number."""
    data: Mapping[str, Any]
    """What the experiment read: at least `name` and `digest`."""
    metrics: Mapping[str, Metric]
    """Column of `rows` -> how to read it; the first one is the headline."""
    arms: Mapping[str, str]
    """Arm -> its name for people, in the order of tables."""
    rows: tuple[Row, ...]
    """One dict for every arm and fresh seed: `arm`, `seed`, and the metrics."""
    sweep: tuple[Row, ...] = ()
    """The same for the runs that chose the settings."""
    chosen: Mapping[str, Any] = field(default_factory=dict)
    """Arm -> the setting that the sweep chose."""
    verdict: Verdict
    """The answer."""
    notes: tuple[str, ...] = ()
    """What else a reader should know, one sentence or two each."""
    environment: Mapping[str, Any]
    """Versions, machine kind, threads, command."""
    wall_seconds: float
    """Wall time of the run."""
    peak_bytes: int | None = None
    """Largest resident size of any of its processes."""
    reused_cells: int = 0
    """How many cells came from an earlier run of the same folder."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; numbers that are not finite become None, and their runs diverged."""
        held: dict[str, Any] = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)}
        for part in ("rows", "sweep"):
            held[part] = [
                {**row, "diverged": True} if has_diverged(row) else row for row in held[part]
            ]
        return _plain(held)

    def save(self, path: str | Path) -> Path:
        """Write the JSON file, whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False, ensure_ascii=False)
        write_bytes(path, (text + "\n").encode())
        return path

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Result":
        """A result from what `to_dict` gave.

        Raises:
            ValueError: If it is no result, of a later version, or a key is missing or unknown.
        """
        if data.get("format") != FORMAT:
            raise ValueError(f"this is no result: its format is {data.get('format')!r}.")
        if data.get("version") != VERSION:
            raise ValueError(
                f"results of version {data.get('version')!r} are unknown here (this is version "
                f"{VERSION}). Update spanwise, or run the reproduction again."
            )
        values = {k: v for k, v in data.items() if k not in ("format", "version")}
        known = {f.name: f for f in dataclasses.fields(cls)}
        unknown = [k for k in values if k not in known]
        missing = [
            name
            for name, f in known.items()
            if name not in values
            and f.default is dataclasses.MISSING
            and f.default_factory is dataclasses.MISSING
        ]
        if unknown or missing:
            raise ValueError(f"a result lacks {missing} or has unknown keys {unknown}.")
        try:
            verdict = dict(values["verdict"])
            verdict["checks"] = tuple(Check(**c) for c in verdict["checks"])
            values["verdict"] = Verdict(**verdict)
            values["metrics"] = {k: Metric(**m) for k, m in values["metrics"].items()}
            for name in ("rows", "sweep", "notes"):
                values[name] = tuple(values.get(name, ()))
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"a result is damaged: {error}.") from error
        return cls(**values)

    @classmethod
    def load(cls, path: str | Path) -> "Result":
        """Read a result's JSON file.

        Raises:
            ValueError: If the file holds no result; the message names it.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            if not isinstance(data, dict):
                raise ValueError("this is no result: it holds no JSON object.")
            return cls.from_dict(data)
        except (ValueError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: {error}") from error

    def matches(self, settings: Any) -> bool:
        """Whether this result was made with `settings`, a dataclass or a mapping."""
        return not differences(self.settings, settings)

    def values(self, metric: str, arm: str) -> dict[int, float]:
        """Seed -> `metric` of `arm` on the fresh seeds, ready for `paired_interval`.

        Raises:
            ValueError: If there is no such arm or metric, or a run has no such number.
        """
        rows = [row for row in self.rows if row["arm"] == arm]
        if not rows or any(metric not in row for row in rows):
            raise ValueError(f"no fresh rows with {metric!r} of arm {arm!r} in {self.slug}.")
        if any(row[metric] is None for row in rows):
            why = " diverged: it" if any(map(has_diverged, rows)) else ""
            raise ValueError(f"a run of arm {arm!r}{why} has no {metric}.")
        return {int(row["seed"]): float(row[metric]) for row in rows}

    def unequal_inputs(self, other: "Result") -> list[str]:
        """Why the numbers of two results may not be put side by side; empty if they may."""
        reasons = []
        if self.slug != other.slug:
            reasons.append(f"experiments differ ({self.slug}, {other.slug})")
        if self.data.get("digest") != other.data.get("digest"):
            mine, theirs = (str(r.data.get("digest"))[:10] for r in (self, other))
            reasons.append(f"data digests differ ({mine}…, {theirs}…)")
        for key, (mine, theirs) in differences(self.settings, other.settings).items():
            reasons.append(f"{key} differs ({mine}, {theirs})")
        return reasons


def compare(results: Iterable[Result], metric: str | None = None) -> dict[str, list[float | None]]:
    """Mean of a metric on the fresh seeds: arm -> one number a result.

    Args:
        results: At least one result of the same experiment.
        metric: Column of the rows; by default the first one.

    Raises:
        ValueError: If the inputs are not equal: other data, other settings, another experiment.
    """
    results = list(results)
    if not results:
        raise ValueError("compare needs at least one result, got none.")
    first = results[0]
    for other in results[1:]:
        if reasons := first.unequal_inputs(other):
            raise ValueError(
                f"these results of {first.slug} cannot be compared: {'; '.join(reasons)}. "
                "Run both with the same data and settings."
            )
    metric = metric or next(iter(first.metrics))
    return {arm: [arm_mean(r.rows, arm, metric) for r in results] for arm in first.arms}


def group_equal(items: Sequence[T]) -> list[list[T]]:
    """Runs in sets whose inputs are equal, in the order of their first members."""
    groups: list[list[T]] = []
    for item in items:
        for group in groups:
            if not group[0].unequal_inputs(item):
                group.append(item)
                break
        else:
            groups.append([item])
    return groups


def arm_mean(rows: Iterable[Row], arm: str, metric: str) -> float | None:
    """Mean of a column over the rows of an arm; None if a value is missing."""
    values = [row.get(metric) for row in rows if row["arm"] == arm]
    known = [float(value) for value in values if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None


def has_diverged(row: Row) -> bool:
    """Whether a run's training diverged: it says so, or one of its numbers is not finite."""
    return bool(row.get("diverged")) or any(
        isinstance(value, float) and not math.isfinite(value) for value in row.values()
    )


def differences(a: Any, b: Any) -> dict[str, tuple[Any, Any]]:
    """Settings that differ: name -> (in `a`, in `b`), where a missing one is None."""
    a, b = _settings(a), _settings(b)
    return {k: (a.get(k), b.get(k)) for k in [*a, *b] if a.get(k) != b.get(k)}


def _settings(settings: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        return _plain(dataclasses.asdict(settings))
    return _plain(settings)


def _plain(value: Any) -> Any:
    """JSON values: tuples become lists, as they do on the way through a file."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
