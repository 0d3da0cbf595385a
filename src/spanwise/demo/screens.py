"""What the demo writes on a terminal: pure functions from numbers to lines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from spanwise.report import format_value
from spanwise.training.planning import MemoryPlan

BAR = 32
"""Characters of the longest bar."""
METHODS = ("adamw", "galore")
"""Rows of the memory plan; the rivals that the demo does not train are left out."""


@runtime_checkable
class Screen(Protocol):
    """Where the demo speaks; the command line's terminal is one."""

    def say(self, text: str = "") -> None:
        """A line."""

    def live(self, text: str) -> None:
        """A line that the next one may replace."""

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[object]],
        *,
        left: Sequence[str] = (),
    ) -> None:
        """A table; `left` names further columns that hold words."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One row of the table: an arm, or the fraction of an arm's update that is kept."""

    label: str
    learned: float
    """Fall of the new text's held-out loss, nats per byte."""
    forgot: float
    """Rise of the old text's."""
    inside: float
    """Share of the squared update inside the atlas, read back from the written file."""
    state_bytes: int
    step_ms: float
    continuation: str
    """How it continues the old prompt."""


def heading(number: int, text: str) -> str:
    """A numbered line above a screen."""
    return f"\n{number}  {text}\n"


def plan_table(plans: Mapping[str, MemoryPlan]) -> tuple[list[str], list[list[str]]]:
    """Headers and rows of the memory plan, model by model."""
    columns = ["model", "optimizer", "weights", "gradients", "its state", "peak of a step"]
    rows = []
    for label, plan in plans.items():
        for method in METHODS:
            row = plan[method]
            name = "AdamW" if method == "adamw" else f"GaLore, rank {plan.rank}"
            held = (row.weights, row.gradients, row.states, row.peak)
            rows.append([label, name, *(format_value(value, "B") for value in held)])
            label = ""
    return columns, rows


def share_outside(inside: float) -> str:
    """The share outside the atlas; where it is all, how little is inside."""
    if inside < 1e-6:
        return f"100 % - {100 * inside:.0e} %"
    return f"{100 * (1 - inside):.3g} %"


def arms_table(rows: Sequence[Shown]) -> tuple[list[str], list[list[str]]]:
    """Headers and rows of the main table."""
    columns = ["", "learned", "forgot", "outside the atlas", "state", "ms a step"]
    return columns, [
        [
            row.label,
            f"{row.learned:.3f}",
            f"{row.forgot:.3f}",
            share_outside(row.inside),
            format_value(row.state_bytes, "B"),
            f"{row.step_ms:.0f}",
        ]
        for row in rows
    ]


def one_line(text: str, width: int = 72) -> str:
    """Source code on one line: runs of blanks shortened, ends of lines shown."""
    lines = [line.strip() for line in text.splitlines()]
    joined = " ⏎ ".join(line for line in lines if line)
    joined = "".join(c if c.isprintable() else "·" for c in joined)
    return joined if len(joined) <= width else joined[: width - 1] + "…"


def bars(values: Mapping[str, float | None]) -> list[str]:
    """A bar for every arm; None says that it never learns that much."""
    known = [max(value, 0.0) for value in values.values() if value is not None]
    longest, width = max([*known, 1e-12]), max(map(len, values))
    lines = []
    for label, value in values.items():
        if value is None:
            lines.append(f"{label:<{width}}  never learns that much")
            continue
        eighths = round(8 * BAR * max(value, 0.0) / longest)
        bar = "█" * (eighths // 8) + ("▏▎▍▌▋▊▉"[eighths % 8 - 1] if eighths % 8 else "")
        lines.append(f"{label:<{width}}  {bar or '▏'} {value:.3f}")
    return lines


def verdict(values: Mapping[str, float | None], ours: str, level: float) -> str:
    """What this run showed, in a sentence or two; also when it showed the opposite.

    Args:
        values: Label of an arm -> what it forgot at equal learning.
        ours: The label of the arm that avoids the old text.
        level: How much was learned there.
    """
    mine = values[ours]
    rivals = {k: v for k, v in values.items() if k != ours and v is not None}
    if mine is None or not rivals:
        return f"In this run not every arm learned {level:g} nats: nothing can be compared."
    best = min(rivals, key=lambda label: rivals[label])
    theirs = rivals[best]
    told = (
        f"Where {level:g} nats are learned, avoiding the old text cost {mine:.3f} nats of it; the "
        f"best of the other arms, {best}, cost {theirs:.3f}"
    )
    if mine >= theirs:
        return f"{told}. Avoiding did not help in this run."
    if mine < 1e-3:
        return f"{told}."
    return f"{told}: {theirs / mine:.1f} times as much."
