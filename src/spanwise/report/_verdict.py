"""What an experiment may claim: checks fixed beforehand, and the verdict they add up to."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from spanwise.report._statistics import paired_interval

Outcome = Literal["reproduced", "direction only", "not reproduced", "no verdict"]
OUTCOMES: tuple[str, ...] = get_args(Outcome)

FRESH_SEEDS_NEEDED = 3


@dataclass(frozen=True, kw_only=True)
class Check:
    """One part of a criterion beside what was measured."""

    statement: str
    """What must be true, as a sentence with its bound."""
    value: float | None
    """What was measured; the mean where there are several seeds; None if a run has no such number,
    because it diverged or never got so far."""
    unit: str = ""
    """Unit of `value`."""
    low: float | None = None
    """Lower end of the 95 % paired interval; None for quantities without noise."""
    high: float | None = None
    """Upper end."""
    holds: bool
    """Whether the statement is true, with its whole interval where it has one."""
    direction: bool
    """Whether the sign, or the point estimate, agrees. True wherever `holds` is."""

    def __post_init__(self) -> None:
        if self.holds and not self.direction:
            raise ValueError(f"{self.statement!r} cannot hold while its direction is wrong.")

    @classmethod
    def between(
        cls,
        statement: str,
        value: float,
        low: float = -math.inf,
        high: float = math.inf,
        unit: str = "",
    ) -> "Check":
        """A quantity without noise that must lie strictly between `low` and `high`."""
        holds = low < value < high
        return cls(statement=statement, value=value, unit=unit, holds=holds, direction=holds)

    @classmethod
    def paired(
        cls,
        statement: str,
        a: Mapping[int, float | None],
        b: Mapping[int, float | None],
        low: float = -math.inf,
        high: float = math.inf,
        unit: str = "",
    ) -> "Check":
        """The mean of `a - b` over seeds must lie strictly between `low` and `high`.

        It holds if the whole paired interval does, and has the right direction if the mean
        does. A seed without a number (None) fails both; a single seed has no interval.

        Raises:
            ValueError: If the seeds of `a` and `b` differ.
        """
        if a.keys() != b.keys() or not a:
            raise ValueError(f"{statement!r} needs equal seeds, got {sorted(a)} and {sorted(b)}.")
        if any(x is None for x in [*a.values(), *b.values()]):
            return cls(statement=statement, value=None, unit=unit, holds=False, direction=False)
        first = {seed: x for seed, x in a.items() if x is not None}
        second = {seed: x for seed, x in b.items() if x is not None}
        if len(a) == 1:
            (x,), (y,) = first.values(), second.values()
            return cls.between(statement, x - y, low, high, unit)
        interval = paired_interval(first, second)
        return cls(
            statement=statement,
            value=interval.mean,
            unit=unit,
            low=interval.low,
            high=interval.high,
            holds=interval.within(low, high),
            direction=low < interval.mean < high,
        )


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The answer to a reproduction's question."""

    outcome: Outcome
    """`reproduced`: every check holds. `direction only`: every sign is right, a size or its
    interval is not. `not reproduced`: a sign is wrong. `no verdict`: the run was not made
    for one."""
    reason: str
    """One or two sentences with the numbers that decided."""
    checks: tuple[Check, ...] = ()
    """The parts of the criterion."""

    def __post_init__(self) -> None:
        if self.outcome not in OUTCOMES:
            raise ValueError(f"outcome must be one of {', '.join(OUTCOMES)}; got {self.outcome!r}.")

    @classmethod
    def of(
        cls,
        checks: Sequence[Check],
        *,
        fresh_seeds: Sequence[int],
        tuning_seeds: Sequence[int] = (),
        untuned: Sequence[str] = (),
    ) -> "Verdict":
        """The verdict that the checks add up to.

        Args:
            checks: The parts of the criterion.
            fresh_seeds: Seeds of the runs behind the checks.
            tuning_seeds: Seeds that chose the settings.
            untuned: Arms whose best setting lay on the edge of their grid.

        Raises:
            ValueError: If there is no check, or a seed both tuned and judged.
        """
        if not checks:
            raise ValueError("a verdict needs at least one check.")
        if both := sorted({*fresh_seeds} & {*tuning_seeds}):
            raise ValueError(f"seeds {both} chose the settings and cannot judge them as well.")
        checks = tuple(checks)
        if len(set(fresh_seeds)) < FRESH_SEEDS_NEEDED:
            return cls(
                outcome="no verdict",
                reason=f"A verdict needs {FRESH_SEEDS_NEEDED} fresh seeds; "
                f"this run had {len(set(fresh_seeds))}.",
                checks=checks,
            )
        if untuned:
            return cls(
                outcome="no verdict",
                reason=f"The best setting of {_and(untuned)} lies on the edge of the grid, "
                "which counts as untuned.",
                checks=checks,
            )
        wrong = [c for c in checks if not c.direction]
        open_ = [c for c in checks if not c.holds]
        if wrong:
            return cls(outcome="not reproduced", reason=_failed(wrong), checks=checks)
        if open_:
            return cls(
                outcome="direction only",
                reason=f"Every estimate agrees, but not with its whole interval. {_failed(open_)}",
                checks=checks,
            )
        return cls(
            outcome="reproduced",
            reason=f"All {len(checks)} parts of the criterion hold on "
            f"{len(set(fresh_seeds))} fresh seeds.",
            checks=checks,
        )


def _failed(checks: Sequence[Check]) -> str:
    return "Not met: " + "; ".join(f"{c.statement} (measured {measured(c)})" for c in checks) + "."


def measured(check: Check) -> str:
    """A check's value with its interval and unit.

    Example:
        >>> measured(Check(statement="gap", value=2, unit="%", holds=True, direction=True))
        '2 %'
    """
    if check.value is None:
        return "no number"
    text = f"{check.value:.3g}"
    if check.low is not None and check.high is not None:
        text += f" [{check.low:.3g}, {check.high:.3g}]"
    return f"{text} {check.unit}".rstrip()


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
