"""Tuning and judging arms that teach something new: by what they forget at equal learning."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from spanwise.report import Check, Progress, Row, Tuning, Workers, tune
from spanwise.reproductions._keeping import at_level

FLOOR = 1e-3
"""Forgetting below this many nats per token counts as this much in a ratio."""

METRIC = "forgot_at_level"

SCHEDULE = ("level", "rates", "extensions", "tuning_seeds", "seeds")
"""Settings that no cell depends on."""


def tune_and_run(
    function: Callable[[dict[str, Any]], dict[str, Any]],
    arms: Sequence[str],
    settings: Any,
    common: Mapping[str, Any],
    *,
    derived: Mapping[str, tuple[str, float]],
    workers: int | None = None,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> tuple[Tuning, tuple[Row, ...]]:
    """Choose rates on the tuning seeds, then run every arm on the fresh ones.

    Args:
        function: Runs one cell `{"arm", "rate", "seed", **common}`; gives `Taught.row`.
        arms: Names of all arms.
        settings: With `level`, `rates`, `tuning_seeds`, `seeds`, `extensions`.
        common: What every cell carries besides.
        derived: Arm -> (another arm, factor): its rate is the other's times the factor.
        workers: As `run_cells`.
        cache: As `run_cells`.
        progress: As `run_cells`.

    Returns:
        The sweep with the derived arms' rates added, and one row for each arm and fresh seed.
    """
    with Workers(function, workers, cache=cache, progress=progress) as pool:

        def evaluate(cells: Sequence[Mapping[str, Any]]) -> list[Row]:
            records = pool.map([{**cell, **common} for cell in cells])
            return [
                {**cell, **at_level(record, settings.level)}
                for cell, record in zip(cells, records, strict=True)
            ]

        tuning = tune(
            evaluate,
            [arm for arm in arms if arm not in derived],
            settings.rates,
            settings.tuning_seeds,
            metric=METRIC,
            extensions=settings.extensions,
        )
        for arm, (other, factor) in derived.items():
            tuning.best[arm] = float(f"{factor * tuning.best[other]:.3g}")
        fresh = evaluate(
            [
                {"arm": arm, "rate": tuning.best[arm], "seed": seed}
                for seed in settings.seeds
                for arm in arms
            ]
        )
    return tuning, tuple(fresh)


def best_controls(rows: Sequence[Row], controls: Sequence[str]) -> dict[int, tuple[float, str]]:
    """Seed -> least forgetting of all controls at the level, and which control that was."""
    found: dict[int, tuple[float, str]] = {}
    for row in rows:
        value = row[METRIC]
        if row["arm"] not in controls or value is None:
            continue
        if row["seed"] not in found or value < found[row["seed"]][0]:
            found[row["seed"]] = (value, row["arm"])
    return found


def judge(
    rows: Sequence[Row], ours: str, controls: Sequence[str], *, halvings: float = 1.0
) -> list[Check]:
    """The three parts of the criterion that these experiments share.

    Args:
        rows: Of the fresh seeds.
        ours: The arm that the claim is about.
        controls: Its rivals; the best one counts, chosen on each seed.
        halvings: How many times the forgetting must be halved.
    """
    mine = {row["seed"]: row[METRIC] for row in rows if row["arm"] == ours}
    rivals = best_controls(rows, controls)
    # A level that no control reaches leaves nothing to compare with: the part fails.
    best = {seed: rivals[seed][0] if seed in rivals else None for seed in mine}
    inside = max(row["inside"] for row in rows if row["arm"] == ours) / 100
    times = f"{2**halvings:.3g}"
    return [
        Check.paired(
            "Avoiding forgets less than the best control at equal learning",
            mine, best, high=0.0, unit="nats",
        ),
        Check.paired(
            f"Avoiding forgets less than 1/{times} of it: log2 of the ratio is below "
            f"{-halvings:g}",
            _log2(mine), _log2(best), high=-halvings,
        ),
        Check.between(
            "Less than 1e-9 of its squared update lies inside the atlas, read from the file",
            inside, high=1e-9,
        ),
    ]  # fmt: skip


def _log2(values: Mapping[int, float | None]) -> dict[int, float | None]:
    return {
        seed: None if value is None else math.log2(max(value, FLOOR))
        for seed, value in values.items()
    }
