"""What every experiment ends with: its own words and rows, and what follows from them."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from spanwise.report import Check, Metric, Result, Row, Tuning, Verdict, provenance
from spanwise.reproductions._experiment import Run


def conclude(
    run: Run[Any],
    *,
    slug: str,
    title: str,
    claim: str,
    criterion: str,
    file: str,
    data: Mapping[str, Any],
    metrics: Mapping[str, Metric],
    arms: Mapping[str, str],
    rows: tuple[Row, ...],
    checks: Sequence[Check],
    notes: tuple[str, ...],
    tuning: Tuning | None = None,
    processes: Iterable[Mapping[str, Any]] = (),
) -> Result:
    """The result with its verdict; the rows say which seeds judged and which ones tuned.

    Words, data, metrics and notes are those of `Result`; `run` has the settings, which are a
    dataclass, and the time; `file` is the experiment's `__file__`, whose history dates the
    criterion; `checks` are the criterion's parts on `rows`; `tuning` chose the rates, where there
    was anything to choose; `processes` are records with `peak_bytes` where the rows have none.

    Raises:
        ValueError: If there is no check, or a seed both tuned and judged.
    """
    tuning = tuning or Tuning(rows=(), best={}, untuned=())
    peaks = (record.get("peak_bytes") or 0 for record in (*tuning.rows, *rows, *processes))
    return Result(
        slug=slug,
        title=title,
        claim=claim,
        criterion=criterion,
        preset=run.preset,
        settings=asdict(run.settings),
        data=data,
        metrics=metrics,
        arms=arms,
        rows=rows,
        sweep=tuning.rows,
        chosen=tuning.best,
        verdict=Verdict.of(
            checks,
            fresh_seeds=[row["seed"] for row in rows],
            tuning_seeds=[row["seed"] for row in tuning.rows],
            untuned=[arms[arm] for arm in tuning.untuned],
        ),
        notes=notes,
        wall_seconds=time.perf_counter() - run.begun,
        peak_bytes=max(peaks, default=0) or None,
        **provenance(file, criterion),
    )
