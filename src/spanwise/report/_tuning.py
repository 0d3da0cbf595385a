"""Tune every arm alike: one grid, and a best setting on its edge counts as untuned."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from spanwise.report._result import Row, arm_mean

Evaluate = Callable[[Sequence[dict[str, Any]]], Sequence[Row]]


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What a sweep found."""

    rows: tuple[Row, ...]
    """Every run, with `arm`, `rate` and `seed`."""
    best: dict[str, float]
    """Arm -> its best rate."""
    untuned: tuple[str, ...]
    """Arms whose best rate still lies on the edge of their grid."""


def tune(
    evaluate: Evaluate,
    arms: Sequence[str],
    rates: Sequence[float],
    seeds: Sequence[int],
    *,
    metric: str = "loss",
    extensions: int = 3,
) -> Tuning:
    """Find each arm's best rate: the lowest mean of `metric` over `seeds`.

    Where the best rate lies on the edge of the grid, the grid of that arm grows by one rate
    on that side, at the ratio that its last two rates have, until the best is inside.

    Args:
        evaluate: Runs a list of `{"arm", "rate", "seed"}` and returns a row for each, with
            `metric` in it; None or a number that is not finite counts as diverged.
        arms: Names of the arms.
        rates: The grid that all arms share, ascending, positive.
        seeds: Seeds that tune. They may not judge.
        metric: Column to minimise.
        extensions: How many rates an arm's grid may grow by.

    Raises:
        ValueError: If the grid is empty, not ascending or not positive, or there is no seed.
    """
    if not rates or list(rates) != sorted(set(rates)) or rates[0] <= 0:
        raise ValueError(f"rates must be positive and ascending, got {tuple(rates)}.")
    if not seeds:
        raise ValueError("seeds must hold at least one seed to tune on.")
    if extensions and len(rates) < 2:
        raise ValueError("rates must hold at least two rates, or the grid cannot grow.")
    grids = {arm: list(rates) for arm in arms}
    losses: dict[tuple[str, float], float] = {}
    rows: list[Row] = []
    todo = [(arm, rate) for rate in rates for arm in arms]
    for extension in range(extensions + 1):
        cells = [{"arm": a, "rate": r, "seed": s} for s in seeds for a, r in todo]
        found = [{**cell, **row} for cell, row in zip(cells, evaluate(cells), strict=True)]
        rows += found
        for arm, rate in todo:
            mine = [f for f in found if f["arm"] == arm and f["rate"] == rate]
            mean = arm_mean(mine, arm, metric)
            losses[arm, rate] = mean if mean is not None and math.isfinite(mean) else math.inf
        best = {arm: min(grids[arm], key=lambda r, a=arm: losses[a, r]) for arm in arms}
        edges = [arm for arm in arms if best[arm] in (grids[arm][0], grids[arm][-1])]
        todo = []
        if extension == extensions:
            break
        for arm in edges:
            rate = _beyond(grids[arm], low=best[arm] == grids[arm][0])
            grids[arm] = sorted([*grids[arm], rate])
            todo.append((arm, rate))
        if not todo:
            break
    return Tuning(rows=tuple(rows), best=best, untuned=tuple(edges))


def _beyond(grid: Sequence[float], *, low: bool) -> float:
    """The next rate outside a geometric grid, on three digits."""
    edge, inner = (grid[0], grid[1]) if low else (grid[-1], grid[-2])
    return float(f"{edge * edge / inner:.3g}")
