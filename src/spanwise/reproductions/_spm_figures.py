"""Pictures of the symmetric decompositions: time by size, and how well a mixing is found."""

import statistics
from typing import TYPE_CHECKING

from spanwise.report import Result, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ORANGE, MISSED = "#e8710a", 1e-3
MARKERS = ("o", "s", "D", "^")


def draw_seconds(ax: "Axes", result: Result) -> None:
    """Mean processor seconds of every method, hollow where components are missed."""
    from matplotlib import rcParams

    soft, paper = rcParams["xtick.labelcolor"], rcParams["figure.facecolor"]
    sizes = [f"{d},{r}" for d, r in result.settings["sizes"]]
    timed = [arm for arm in result.arms if any("sizes" in row for row in _rows(result, arm))]
    for arm, marker in zip(timed, MARKERS, strict=False):
        colour = ORANGE if arm == "spanwise" else soft
        points = []
        for at, size in enumerate(sizes):
            runs = [row["sizes"][size] for row in _rows(result, arm) if size in row["sizes"]]
            if runs:
                found = max(run["error"] for run in runs) < MISSED
                points.append((at, statistics.fmean(run["seconds"] for run in runs), found))
        ax.plot([p[0] for p in points], [p[1] for p in points], color=colour, zorder=2)
        for face in (True, False):
            own = [p for p in points if p[2] == face]
            ax.plot(
                [p[0] for p in own], [p[1] for p in own], marker, color=colour, zorder=3,
                markerfacecolor=colour if face else paper, linestyle="none",
            )  # fmt: skip
        below = arm in ("spanwise", "plain")
        ax.annotate(
            result.arms[arm], points[-1][:2], xytext=(-4, -9 if below else 7),
            textcoords="offset points", ha="right", va="top" if below else "bottom",
            color=colour, fontsize=8.5,
        )  # fmt: skip
    ax.set_xticks(range(len(sizes)), [f"({size.replace(',', ', ')})" for size in sizes])
    ax.set_yscale("log")
    ax.margins(y=0.15)
    ax.set_xlabel("(d, r) of a tensor of order 4")
    ax.set_ylabel("processor seconds")
    ax.set_title("Time to decompose, one thread")


def draw_cosines(ax: "Axes", result: Result) -> None:
    """Mean |cosine| of the mixing's columns: dots are seeds, lines their means."""
    from matplotlib import rcParams

    soft, ink = rcParams["xtick.labelcolor"], rcParams["text.color"]
    arms = [arm for arm in result.arms if any("cosine" in row for row in _rows(result, arm))]
    for height, arm in enumerate(reversed(arms)):
        values = [row["cosine"] for row in _rows(result, arm)]
        colour = ORANGE if arm == "spanwise" else soft
        ax.scatter(values, [height] * len(values), s=18, color=colour, zorder=3, linewidths=0)
        mean = statistics.fmean(values)
        ax.plot([mean] * 2, [height - 0.25, height + 0.25], color=colour, zorder=2)
        ax.annotate(
            f"{mean:.3f}", (mean, height + 0.3), ha="center", va="bottom", color=ink, fontsize=9
        )
    ax.axvline(0.99, color=soft, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    label = {"spanwise": "fourth cumulant"}
    names = [label.get(arm, result.arms[arm]) for arm in reversed(arms)]
    ax.set_yticks(range(len(arms)), names, color=ink, fontsize=9)
    ax.set_ylim(-0.6, len(arms) - 0.2)
    ax.tick_params(axis="y", length=0)
    ax.grid(visible=False, axis="y")
    ax.set_xlabel("mean |cosine| of mixing columns")
    ax.set_title("12 sources, 8 sensors")


def _rows(result: Result, arm: str) -> list[Row]:
    return [row for row in result.rows if row["arm"] == arm]
