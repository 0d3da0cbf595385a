"""Who hears about a run, and how figures are written for people."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable


@runtime_checkable
class Reporter(Protocol):
    """Where a run speaks to a person; the command line's terminal is one."""

    def say(self, text: str = "") -> None:
        """A line."""

    def live(self, text: str) -> None:
        """A line that the next one may replace."""

    def table(
        self, columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str | None = None
    ) -> None:
        """A table."""


class Silent:
    """A reporter that says nothing, the default of the Python interface."""

    def say(self, text: str = "") -> None:
        """Nothing."""

    def live(self, text: str) -> None:
        """Nothing."""

    def table(
        self, columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str | None = None
    ) -> None:
        """Nothing."""


def short(number: float) -> str:
    """`18200` as `18.2k`."""
    for unit, factor in (("M", 1e6), ("k", 1e3)):
        if number >= factor:
            return f"{number / factor:.3g}{unit}"
    return f"{number:.0f}"


def size(count: float) -> str:
    """Bytes in decimal units, three digits."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f} B"


def percent(share: float) -> str:
    """A share close to one without rounding a leak away: `99.98 %`."""
    if share == 1 or 1 - share < 5e-7:
        return "100 %"
    return f"{100 * share:.4g} %"


def clock(seconds: float) -> str:
    """Seconds as `m:ss` or `h:mm:ss`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
