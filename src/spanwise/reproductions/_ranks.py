"""Several methods on many data sets: average ranks, and which differences are no accident."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from spanwise._lazy import require


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Methods ranked on every set, 1 for the best; equal scores share their mean rank."""

    ranks: Mapping[str, float]
    """Method -> its rank, averaged over the sets."""
    friedman: float
    """Probability of ranks as unequal as these if all methods were alike."""
    critical_difference: float
    """Two average ranks that are further apart differ (Nemenyi, 5 % over all pairs)."""
    n: int
    """Number of sets."""


def ranking(scores: Mapping[str, Sequence[float]]) -> Ranking:
    """Average ranks with Friedman's test and Nemenyi's critical difference.

    Args:
        scores: Method -> its score on each set, in one order of sets; higher is better.

    Raises:
        ValueError: If there are fewer than three methods or two sets, or one lacks a set.

    Sources:
        Demsar, "Statistical comparisons of classifiers over multiple data sets", 2006.
    """
    if len({len(held) for held in scores.values()}) != 1:
        raise ValueError("every method needs a score on every set.")
    table = np.array([*scores.values()], dtype=float)
    k, n = table.shape
    if k < 3 or n < 2:
        raise ValueError(f"a ranking needs three methods and two sets, got {k} and {n}.")
    stats = require("scipy.stats", "a ranking")
    ranks = stats.rankdata(-table, axis=0).mean(axis=1)
    alike = bool((table == table[0]).all())
    q = stats.studentized_range.ppf(0.95, k, np.inf) / np.sqrt(2)
    return Ranking(
        ranks=dict(zip(scores, map(float, ranks), strict=True)),
        friedman=1.0 if alike else float(stats.friedmanchisquare(*table).pvalue),
        critical_difference=float(q * np.sqrt(k * (k + 1) / (6 * n))),
        n=n,
    )


def wilcoxon_holm(ours: Sequence[float], others: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Probability, for each other method, of such differences if there were none, after Holm.

    Args:
        ours: Scores of one method on each set.
        others: Other methods' scores on the same sets.

    Returns:
        Method -> adjusted probability of Wilcoxon's signed-rank test, both sides.

    Sources:
        Wilcoxon, "Individual comparisons by ranking methods", 1945. Holm, "A simple sequentially
        rejective multiple test procedure", 1979.
    """
    stats = require("scipy.stats", "a ranking")
    found: dict[str, float] = {}
    for name, held in others.items():
        differences = np.asarray(ours, dtype=float) - np.asarray(held, dtype=float)
        none = not differences.any()
        found[name] = 1.0 if none else float(stats.wilcoxon(differences).pvalue)
    adjusted: dict[str, float] = {}
    floor = 0.0
    for position, name in enumerate(sorted(found, key=found.__getitem__)):
        floor = max(floor, min(1.0, (len(found) - position) * found[name]))
        adjusted[name] = floor
    return {name: adjusted[name] for name in others}
