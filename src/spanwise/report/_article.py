"""A result as a card of a page: verdict first, then the figures, then everything behind them."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from spanwise.report._blocks import (
    Block,
    Bullets,
    Code,
    Details,
    Facts,
    Figure,
    Grid,
    Heading,
    Section,
    Table,
    Text,
    VerdictMark,
    format_value,
)
from spanwise.report._result import Metric, Result, Row, arm_mean, has_diverged
from spanwise.report._verdict import measured

NONE, DIVERGED = "—", "diverged"
"""In place of a number that a run does not have, and of one that its training never reached."""


def article(result: Result, figures: Sequence[Figure] = (), *, anchor: str = "") -> Section:
    """The card of one result.

    Args:
        result: What was measured.
        figures: Its pictures.
        anchor: What links point to; by default the slug.
    """
    blocks: list[Block] = [
        VerdictMark(result.verdict.outcome, result.verdict.reason),
        Text(result.claim),
    ]
    if figures:
        blocks.append(Grid(figures))
    blocks += [
        Heading("What had to be true, and what was measured"),
        checks_table(result),
        Heading("Every arm at its own best setting, on fresh seeds"),
        arms_table(result),
        Bullets(result.notes),
        Details("The criterion, as written before the run", _criterion(result)),
        Details(f"All {len(result.sweep) + len(result.rows)} runs", _runs(result)),
        Details("Settings", [Facts(result.settings)]),
        Details("Data, machine and code", [Facts(_provenance(result))]),
        Heading("Run it yourself"),
        Code(command(result)),
    ]
    return Section(
        result.title,
        blocks,
        anchor=anchor or result.slug,
        eyebrow=f"`{result.slug}` · {_preset(result)} · {duration(result.wall_seconds)}",
    )


def command(result: Result) -> str:
    """The line that repeats the run."""
    preset = "" if result.preset == "default" else f" --{result.preset}"
    return f"spanwise reproduce {result.slug}{preset}"


def checks_table(result: Result) -> Table:
    """The parts of the criterion beside what was measured."""
    noisy = any(check.low is not None for check in result.verdict.checks)
    return Table(
        ["must be true", "measured" + (" [95 % interval]" if noisy else ""), "holds"],
        [(c.statement, measured(c), c.holds) for c in result.verdict.checks],
        words=(0, 1, 2),
    )


def arms_table(result: Result) -> Table:
    """Mean and spread of every metric on the fresh seeds, the best arm in bold."""
    metrics = {
        name: metric
        for name, metric in result.metrics.items()
        if any(name in row for row in result.rows)
    }
    chosen = bool(result.chosen)
    columns = ["arm", *(["rate"] if chosen else []), *(_head(result, name) for name in metrics)]
    rows = [
        [
            label,
            *([format_value(result.chosen.get(arm))] if chosen else []),
            *(_spread(result.rows, arm, name, metric) for name, metric in metrics.items()),
        ]
        for arm, label in result.arms.items()
    ]
    seeds = len({row["seed"] for row in result.rows})
    caption = f"Means over {seeds} seed{'s' * (seeds != 1)}" + (
        " ± their standard deviation; the best headline number in bold." if seeds > 1 else "."
    )
    if any(NONE in row for row in rows):
        caption += f" {NONE}: there is no such number, or not of every run."
    return Table(columns, rows, best=_best(result), caption=caption)


def duration(seconds: float) -> str:
    """Seconds for people.

    Example:
        >>> duration(12.3), duration(250)
        ('12 s', '4 min 10 s')
    """
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60} s"


def _preset(result: Result) -> str:
    return {"default": "default run", "quick": "quick run", "full": "full run"}.get(
        result.preset, result.preset
    )


def _spread(rows: Sequence[Row], arm: str, name: str, metric: Metric) -> str:
    """Mean ± standard deviation, both to the digit that the deviation makes doubtful."""
    mine = [row for row in rows if row["arm"] == arm and name in row]
    values = [float(row[name]) for row in mine if row[name] is not None]
    if not mine or len(values) < len(mine):
        return DIVERGED if any(map(has_diverged, mine)) else NONE
    mean = math.fsum(values) / len(values)
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    if metric.unit == "B" or not spread:
        return format_value(mean, metric.unit)
    if abs(mean) < 1e-4:  # a row of zeros says less than a power of ten
        return f"{mean:.1e} ± {spread:.0e}"
    digits = max(0, 1 - math.floor(math.log10(spread)))
    return f"{mean:.{digits}f} ± {spread:.{digits}f}"


def _best(result: Result) -> list[int]:
    """The row with the best headline number."""
    name, metric = next(iter(result.metrics.items()))
    means = [arm_mean(result.rows, arm, name) for arm in result.arms]
    known = [m for m in means if m is not None]
    if not known or not metric.better:
        return []
    return [means.index(min(known) if metric.better == "lower" else max(known))]


def _criterion(result: Result) -> list[Block]:
    commit = result.criterion_commit
    where = (
        f"Committed in `{commit[:12]}`, before the run."
        if commit
        else ("The run did not take place in a git checkout, so no commit vouches for its date.")
    )
    return [Code(result.criterion), Text(where)]


def _runs(result: Result) -> list[Block]:
    """Every row of the sweep and of the fresh seeds."""
    arms = list(result.arms)

    def order(row: Row) -> tuple[int, float, int]:
        return arms.index(row["arm"]), row.get("rate") or 0.0, row["seed"]

    blocks: list[Block] = []
    for rows, caption in (
        (result.rows, "Fresh seeds, which judge."),
        (result.sweep, "Runs that chose the settings."),
    ):
        # Curves are for figures; a table holds one value a cell.
        curves = {key for row in rows for key, value in row.items() if isinstance(value, list)}
        hidden = {*curves, "diverged"}  # told where the number would stand
        keys = [k for k in dict.fromkeys(key for row in rows for key in row) if k not in hidden]
        body = [[_entry(result, key, row) for key in keys] for row in sorted(rows, key=order)]
        if body:
            heads = [_head(result, key) for key in keys]
            blocks.append(Table(heads, body, caption=caption))
    return blocks


def _head(result: Result, key: str) -> str:
    metric = result.metrics.get(key)
    label = metric.label if metric else key.replace("_", " ").removesuffix(" bytes")
    return f"{label}, {metric.unit}" if metric and metric.unit not in ("", "B") else label


def _entry(result: Result, key: str, row: Row) -> str:
    value: Any = row.get(key)
    if key == "arm":
        return result.arms.get(value, value)
    if value is None:
        return DIVERGED if key in result.metrics and has_diverged(row) else NONE
    if isinstance(value, float) and key in result.metrics:
        return f"{value:#.4g}"  # zeros at the end included, so that columns line up
    return format_value(value, "B" if key.endswith("_bytes") else "")


def _provenance(result: Result) -> dict[str, object]:
    facts: dict[str, object] = {
        f"data: {key.replace('_', ' ')}": value for key, value in result.data.items()
    }
    for key, value in result.environment.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{name} {version}" for name, version in value.items())
        facts[key] = value
    facts["code"] = _commit(result.commit)
    facts["wall time"] = duration(result.wall_seconds)
    spent = math.fsum(r.get("processor_seconds") or 0 for r in [*result.sweep, *result.rows])
    if spent:
        facts["processor time"] = duration(spent)
    if result.reused_cells:
        facts["runs taken from an earlier attempt"] = result.reused_cells
    facts["largest process"] = format_value(result.peak_bytes, "B")
    return facts


def _commit(commit: str | None) -> str:
    if commit is None:
        return "not in a git checkout"
    return f"{commit[:12]}{', with edits' if commit.endswith('+') else ''}"
