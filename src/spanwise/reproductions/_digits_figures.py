"""Pictures of the experiment that merging methods share."""

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from spanwise.report import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ORANGE = "#e8710a"
OURS = ("iso_c", "iso_cts", "mats")


def draw_accuracy(ax: "Axes", result: Result) -> None:
    """Accuracy of every arm, one group of bars for each number of tasks."""
    draw_bars(ax, result, "accuracy", "test accuracy (%)")
    values = [row["accuracy"] for row in result.rows]
    ax.set_xlim(max(0.0, min(values) - 8), min(100.0, max(values) + 6))
    ax.set_title("Accuracy after merging")


def draw_scales(ax: "Axes", result: Result) -> None:
    """The alpha that each arm was judged at."""
    draw_bars(ax, result, "alpha", "alpha")
    ax.set_title("The scale that validation chose")


def draw_bars(ax: "Axes", result: Result, metric: str, label: str) -> None:
    """One bar for every arm that has the metric: the mean of its seeds, which are dots."""
    from matplotlib import rcParams

    soft, ink = rcParams["xtick.labelcolor"], rcParams["text.color"]
    arms = [arm for arm in result.arms if _values(result, arm, metric)][::-1]
    for height, arm in enumerate(arms):
        values = _values(result, arm, metric)
        ours = arm.startswith(OURS)
        colour = ORANGE if ours else soft
        mean = statistics.fmean(values)
        ax.barh(height, mean, height=0.6, color=colour, alpha=0.35, zorder=2)
        if len(values) > 1:
            ax.scatter(values, [height] * len(values), s=14, color=colour, zorder=3, linewidths=0)
        ax.annotate(
            f"{mean:.3g}", (max(values), height), xytext=(6, 0), textcoords="offset points",
            va="center", color=ink, fontsize=9, weight="bold" if ours else "normal",
        )  # fmt: skip
    ax.set_yticks(range(len(arms)), [result.arms[arm] for arm in arms], color=ink, fontsize=9)
    ax.tick_params(axis="y", length=0)
    ax.grid(visible=False, axis="y")
    ax.set_xlabel(label)


def _values(result: Result, arm: str, metric: str) -> Sequence[float]:
    return [row[metric] for row in result.rows if row["arm"] == arm and row.get(metric) is not None]


def draw_iterations(ax: "Axes", result: Result) -> None:
    """Accuracy along the steps of conjugate gradient, one line for each objective."""
    from matplotlib import rcParams

    ink = rcParams["text.color"]
    arms = [arm for arm in result.arms if any("path" in r for r in result.rows if r["arm"] == arm)]
    for shade, arm in enumerate(arms, start=1):
        paths = [row["path"] for row in result.rows if row["arm"] == arm]
        steps = [point[0] for point in paths[0]]
        means = [statistics.fmean(path[i][1] for path in paths) for i in range(len(steps))]
        alpha = shade / len(arms)
        ax.plot(steps, means, marker="o", markersize=4, color=ORANGE, alpha=alpha)
        ax.annotate(
            result.arms[arm], (steps[-1], means[-1]), xytext=(-4, 6), textcoords="offset points",
            ha="right", color=ink, fontsize=8.5,
        )  # fmt: skip
    ax.set_xscale("log")
    ax.set_xlabel("steps of conjugate gradient")
    ax.set_ylabel("test accuracy (%)")
    ax.set_title("How many steps")
