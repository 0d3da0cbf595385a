"""The pictures of the optimizer family: loss against the rate, bytes of state, and time."""

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from spanwise.plots._style import SOFT
from spanwise.report import PALETTE, Result, Row, arm_mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def rate_mean(rows: tuple[Row, ...], arm: str, rate: float) -> float | None:
    """Mean loss of an arm at one rate of the sweep; None where it diverged or was not run."""
    return arm_mean([row for row in rows if row["rate"] == rate], arm, "loss")


def colours(result: Result) -> dict[str, str]:
    """A colour for every arm: grey for AdamW, which the others are measured against."""
    others = [arm for arm in result.arms if arm != "adamw"]
    return {"adamw": SOFT, **{a: PALETTE[i % len(PALETTE)] for i, a in enumerate(others)}}


def draw_rates(ax: "Axes", result: Result) -> None:
    """Validation loss against the rate, one curve an arm, the chosen rate marked."""
    rates, colour = sorted({row["rate"] for row in result.sweep}), colours(result)
    best, worst = float("inf"), 0.0
    for index, (arm, label) in enumerate(result.arms.items()):
        points = {r: v for r in rates if (v := rate_mean(result.sweep, arm, r)) is not None}
        # Curves may lie on each other: the wide pale one shows below the thin one.
        width, alpha = (6.0, 0.45) if index == 1 else (2.0, 1.0)
        ax.plot(
            list(points), list(points.values()), color=colour[arm], label=label,
            linewidth=width, alpha=alpha,
        )  # fmt: skip
        chosen = result.chosen[arm]
        ax.plot(chosen, points[chosen], "o", color=colour[arm], markersize=8, zorder=5)
        best, worst = min(best, points[chosen]), max(worst, points[chosen])
    ax.set_xscale("log")
    ax.set_xticks(rates, [f"{1e3 * rate:.3g}" for rate in rates])
    ax.tick_params(axis="x", rotation=0 if len(rates) < 8 else 45)
    ax.minorticks_off()
    ax.set_xlabel("learning rate of the matrices (thousandths)")
    ax.set_title("Loss (nats/byte) on the tuning seeds")
    # The tuned ends are what matters: a diverging rate must not flatten them.
    span = max(worst - best, 0.1)
    ax.set_ylim(best - 0.3 * span, worst + 2.2 * span)
    _legend_below(ax)


def _legend_below(ax: "Axes") -> None:
    ax.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=7.5, columnspacing=1.2
    )  # fmt: skip


def draw_memory(ax: "Axes", result: Result) -> None:
    """Validation loss of every fresh seed against the bytes of matrix state."""
    means = {arm: arm_mean(result.rows, arm, "matrix_state_bytes") or 0.0 for arm in result.arms}
    most, colour = max(means.values()) / 1e6, colours(result)
    taken: list[float] = []
    for arm, label in result.arms.items():
        losses = [r["loss"] for r in result.rows if r["arm"] == arm and r["loss"] is not None]
        if not losses:
            continue
        size = means[arm] / 1e6
        while any(abs(size - other) < 0.02 * most for other in taken):
            size += 0.02 * most  # arms of equal state stand side by side
        taken.append(size)
        ax.plot([size] * len(losses), losses, "o", color=colour[arm], alpha=0.65,
                markeredgewidth=0)  # fmt: skip
        bar = [size - 0.008 * most, size + 0.008 * most]
        ax.plot(bar, [fmean(losses)] * 2, color=colour[arm], linewidth=2.5, label=label)
    ax.set_xlim(0, 1.12 * most)
    ax.set_xlabel("optimizer state of the matrices (MB)")
    ax.set_title("Loss (nats/byte) on fresh seeds")
    _legend_below(ax)


def draw_against(
    ax: "Axes", result: Result, metric: str, *, ours: Sequence[str], scale: float, label: str
) -> None:
    """Mean loss of every arm against another metric; labels stand in a column at the right."""
    points = []
    for arm, name in result.arms.items():
        x, y = arm_mean(result.rows, arm, metric), arm_mean(result.rows, arm, "loss")
        if x is not None and y is not None:
            points.append((y, x * scale, name, arm in ours))
    points.sort()
    for y, x, _, own in points:
        kind = {"marker": "o" if own else "s", "color": PALETTE[0] if own else SOFT}
        ax.plot(x, y, markersize=7, linestyle="none", zorder=4, **kind)
    low, high = min(p[0] for p in points), max(p[0] for p in points)
    gap = max(high - low, 1e-6) / max(len(points) - 1, 1) * 1.05
    places = _apart([p[0] for p in points], gap)
    right = max(p[1] for p in points)
    left = min(p[1] for p in points)
    column = right * (right / left) ** 0.12
    ax.set_xscale("log")
    for (y, x, name, own), place in zip(points, places, strict=True):
        ax.annotate(
            name, (x, y), xytext=(column, place), textcoords="data", va="center", fontsize=8,
            color=PALETTE[0] if own else SOFT, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": SOFT, "linewidth": 0.4, "alpha": 0.5},
        )  # fmt: skip
    ax.set_xlim(left * 0.85, column * (right / left) ** 0.75)
    ax.set_ylim(min(low, places[0]) - gap, max(high, places[-1]) + gap)
    ticks = [
        t
        for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
        if left * 0.85 <= t <= right * 1.2
    ]
    ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
    ax.minorticks_off()
    ax.set_xlabel(label)
    ax.set_title("Loss (nats/byte), mean of fresh seeds")


def _apart(values: Sequence[float], gap: float) -> list[float]:
    """Ascending values moved as little as keeps them `gap` apart, around their own middle."""
    places = list(values)
    for _ in range(200):
        for i in range(1, len(places)):
            short = gap - (places[i] - places[i - 1])
            if short > 0:
                places[i - 1] -= short / 2
                places[i] += short / 2
    return places
