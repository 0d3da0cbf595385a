"""The pictures of `gradient_subspaces`: energy over training, by depth, and along geodesics."""

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from spanwise import plots
from spanwise.report import PALETTE, Result, Row, arm_mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WALK = 0.3
"""Largest principal angle of the random move, in radians: GrassWalk's default."""


def mean_of(lists: Sequence[Sequence[float]]) -> list[float]:
    """Entry by entry, the mean of lists of one length."""
    return [statistics.fmean(column) for column in zip(*lists, strict=True)]


def _core_rows(result: Result) -> list[Row]:
    return [row for row in result.rows if row["arm"] == "core"]


def draw_time(ax: "Axes", result: Result) -> None:
    """Share of the energy over training, one curve a subspace."""
    for (arm, label), colour in zip(result.arms.items(), PALETTE, strict=False):
        rows = [row for row in result.rows if row["arm"] == arm]
        curve = mean_of([row["by_step"] for row in rows])
        dash = "-" if arm != "walked" else (0, (4, 2))
        ax.plot(rows[0]["steps"], curve, color=colour, linestyle=dash, label=label)
    ax.set_ylim(0, 105)
    ax.set_xlabel("training step")
    ax.set_title("Share of the gradient's energy (%)")
    ax.legend(loc="best", fontsize=8)


def draw_depth(ax: "Axes", result: Result) -> None:
    """How many directions hold 99 % of the energy, by kind of matrix and depth."""
    rows = _core_rows(result)
    kinds = list(rows[0]["needed_by_kind"])
    table = [mean_of([row["needed_by_kind"][kind] for row in rows]) for kind in kinds]
    layers = [str(i + 1) for i in range(len(table[0]))]
    plots.heatmap(ax, table, kinds, layers, label="directions", form="{:.1f}")
    ax.set_xlabel("layer")
    ax.set_title("Directions that hold 99 % of the energy")


def draw_landscape(ax: "Axes", result: Result) -> None:
    """Energy along geodesics from the last core: to the present one, and at random."""
    rows = _core_rows(result)
    names = {"core": "towards the present core", "random": "in random directions"}
    for (way, label), colour in zip(names.items(), PALETTE, strict=False):
        curve = mean_of([row["landscape"][way] for row in rows])
        angles = [90 * i / (len(curve) - 1) for i in range(len(curve))]
        ax.plot(angles, curve, color=colour, label=label)
    share = arm_mean(result.rows, "random", "share")
    if share is not None:
        ax.axhline(share, color=PALETTE[3], linewidth=1, linestyle=(0, (4, 3)), label="random")
    ax.axvline(math.degrees(WALK), color=PALETTE[2], linewidth=1, label="GrassWalk's step")
    ax.set_xticks(range(0, 91, 15))
    ax.set_ylim(0, 105)
    ax.set_xlabel("largest principal angle moved (degrees)")
    ax.set_title("Share of the energy (%) along geodesics")
    ax.legend(loc="best", fontsize=8)
