"""The one statistic that verdicts use: a paired t interval over seeds.

Seeds pair the arms: the same seed means the same start and the same batches, so what
both arms share cancels. Standard library only, so that a page builds without scipy.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean over pairs with its confidence interval."""

    mean: float
    """Mean of the differences."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""
    confidence: float
    """Probability that such an interval covers the true mean, in (0, 1)."""
    n: int
    """Number of pairs."""

    def __str__(self) -> str:
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"

    def within(self, low: float, high: float) -> bool:
        """Whether the whole interval lies strictly between `low` and `high`."""
        return low < self.low and self.high < high


def paired_interval(
    a: Mapping[int, float] | Sequence[float],
    b: Mapping[int, float] | Sequence[float],
    confidence: float = 0.95,
) -> Interval:
    """Student's t interval for the mean of `a - b` over pairs.

    Args:
        a: One value per seed; a mapping seed -> value, or a sequence.
        b: The same seeds in the other arm. Mappings are paired by key.
        confidence: Coverage of the interval, in (0, 1).

    Raises:
        ValueError: If the seeds differ, fewer than two pairs came, a value is not
            finite, or `confidence` is out of range.

    Sources:
        Student, "The probable error of a mean", 1908.

    Example:
        >>> paired_interval([1.0, 2.0, 3.0], [0.9, 2.0, 2.6]).mean
        0.16666666666666666
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}.")
    if isinstance(a, Mapping) != isinstance(b, Mapping):
        raise TypeError("a and b must both be mappings seed -> value, or both be sequences.")
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        if a.keys() != b.keys():
            raise ValueError(
                f"a and b must hold the same seeds to be paired: a has {sorted(a)}, "
                f"b has {sorted(b)}. Run the missing seeds first."
            )
        a, b = [a[k] for k in a], [b[k] for k in a]
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(
            f"a and b must be paired and hold at least two values: got {len(a)} and {len(b)}."
        )
    differences = [float(x) - float(y) for x, y in zip(a, b, strict=True)]
    if not all(map(math.isfinite, differences)):
        raise ValueError("a and b must be finite: a diverged run has no paired difference.")
    n = len(differences)
    mean = math.fsum(differences) / n
    variance = math.fsum((d - mean) ** 2 for d in differences) / (n - 1)
    half = t_quantile(0.5 + confidence / 2, n - 1) * math.sqrt(variance / n)
    return Interval(mean=mean, low=mean - half, high=mean + half, confidence=confidence, n=n)


def t_quantile(probability: float, degrees: int) -> float:
    """The quantile of Student's t, for `probability` in [0.5, 1) and whole degrees.

    Bisection on the distribution function, down to the last bit.
    """
    low, high = 0.0, 1.0
    while _t_cdf(high, degrees) < probability:
        low, high = high, 2 * high
    while (middle := (low + high) / 2) not in (low, high):
        if _t_cdf(middle, degrees) < probability:
            low = middle
        else:
            high = middle
    return high


def _t_cdf(t: float, degrees: int) -> float:
    """Distribution function of Student's t at `t` >= 0, as the textbook's finite sum.

    Sources:
        Abramowitz and Stegun, "Handbook of mathematical functions", 26.7.3 and 26.7.4.
    """
    angle = math.atan(t / math.sqrt(degrees))
    cosine, sine = math.cos(angle), math.sin(angle)
    if degrees % 2:
        term, total = cosine, cosine if degrees > 1 else 0.0
        for k in range(3, degrees - 1, 2):
            term *= (k - 1) / k * cosine**2
            total += term
        return 0.5 + (angle + sine * total) / math.pi
    term = total = 1.0
    for k in range(2, degrees - 1, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    return 0.5 + sine * total / 2
