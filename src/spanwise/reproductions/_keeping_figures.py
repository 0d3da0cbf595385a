"""The pictures of an experiment that teaches: learned against forgotten, and equal learning."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from spanwise.report import PALETTE, Result, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS = "galore_avoid"
COLOURS = {OURS: PALETTE[0], "galore": PALETTE[1], "galore_random": PALETTE[3]}
"""Every other arm is plain fine-tuning and grey."""


def draw_frontier(ax: "Axes", result: Result) -> None:
    """Learned against forgotten, means over the seeds; up and to the left is better.

    Solid lines keep a fraction alpha of the final update, dotted ones stop early.
    """
    from matplotlib import rcParams

    soft = rcParams["xtick.labelcolor"]
    curves = {arm: mean_curve(result.rows, arm, "shrink") for arm in result.arms}
    level = result.settings["level"]
    right = 1.12 * max(
        (_at(curve, level) for arm, curve in curves.items() if arm != "adamw_low"), default=1.0
    )
    ax.axhline(level, color=soft, linewidth=0.8, zorder=1)
    for arm, curve in curves.items():
        grey = arm not in COLOURS
        colour = COLOURS.get(arm, soft)
        line = {"color": colour, "zorder": 4 if arm == OURS else 2}
        width = 2.8 if arm == OURS else 2.0
        label = result.arms[arm]
        if arm == "adamw_low":
            line["alpha"] = 0.55
        ax.plot(*_xy(curve), linewidth=width, label=label, solid_capstyle="round", **line)
        if grey or arm == OURS:
            path = mean_curve(result.rows, arm, "path")
            ax.plot(*_xy(path), linewidth=1.3, linestyle=(0, (1, 1.6)), **line)
    ax.set_xlim(-0.02 * right, right)
    ax.set_ylim(0, 1.06 * max(p[0] for c in curves.values() for p in c))
    ax.annotate(
        "equal learning", (1, level), xycoords=("axes fraction", "data"), xytext=(0, -3),
        textcoords="offset points", ha="right", va="top", color=soft, fontsize=8.5,
    )  # fmt: skip
    ax.set_xlabel("forgotten: rise of the old text's loss (nats)")
    ax.set_title("Learned: fall of the new text's loss (nats)")
    ax.legend(loc="lower right", fontsize=8.5, handlelength=1.4, borderaxespad=0.2)


def draw_equal_learning(ax: "Axes", result: Result) -> None:
    """What each arm forgets where it has learned as much as the level says, seed by seed."""
    from matplotlib import rcParams

    soft, ink = rcParams["xtick.labelcolor"], rcParams["text.color"]
    arms = list(result.arms)[::-1]
    highest = 0.0
    for height, arm in enumerate(arms):
        values = [r["forgot_at_level"] for r in result.rows if r["arm"] == arm]
        known = [v for v in values if v is not None]
        colour = COLOURS.get(arm, soft)
        if not known:
            ax.annotate("never learns that much", (0, height), va="center", color=soft, fontsize=9)
            continue
        mean = math.fsum(known) / len(known)
        ax.barh(height, mean, height=0.5, color=colour, alpha=0.35, zorder=2)
        if len(known) > 1:
            ax.scatter(known, [height] * len(known), s=16, color=colour, zorder=3, linewidths=0)
        far = max(mean, *known)
        ax.annotate(
            f"{mean:.3f}", (far, height), xytext=(6, 0), textcoords="offset points", va="center",
            color=ink, fontsize=9.5, weight="bold" if arm == OURS else "normal",
        )  # fmt: skip
        highest = max(highest, far)
    labels = [_wrap(result.arms[arm]) for arm in arms]
    ax.set_yticks(range(len(arms)), labels, color=ink, fontsize=9)
    ax.tick_params(axis="y", length=0)
    ax.grid(visible=False, axis="y")
    ax.set_xlim(0, 1.2 * highest or 1.0)
    ax.set_xlabel("rise of the old text's loss (nats)")
    level = result.settings["level"]
    ax.set_title(f"Forgotten where {level:g} nats are learned")


def mean_curve(rows: Sequence[Row], arm: str, kind: str) -> list[tuple[float, float]]:
    """(learned, forgot) averaged over the seeds, point by point, from nothing on."""
    curves = [row[kind] for row in rows if row["arm"] == arm]
    points = [(0.0, 0.0)]
    for same in zip(*curves, strict=False):
        points.append(
            (math.fsum(p[1] for p in same) / len(same), math.fsum(p[2] for p in same) / len(same))
        )
    return points


def _xy(curve: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [forgot for _, forgot in curve], [learned for learned, _ in curve]


def _at(curve: Sequence[tuple[float, float]], level: float) -> float:
    """Forgetting a little beyond the level, so that the picture shows each arm cross it."""
    beyond = [forgot for learned, forgot in curve if learned >= level]
    return beyond[0] if beyond else curve[-1][1]


def _wrap(label: str) -> str:
    """Long names on two lines."""
    for cut in (", ", " avoiding "):
        head, found, tail = label.partition(cut)
        if found:
            return f"{head}{cut.rstrip()}\n{tail}"
    return label
