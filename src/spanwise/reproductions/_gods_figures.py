"""Pictures of the detectors' ranks, and of GODS beside OneClassSVM set by set."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from spanwise.report import PALETTE, Panel, Result
from spanwise.reproductions._detectors import DETECTORS
from spanwise.reproductions._ranks import ranking

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TABLES = ("validation", "defaults", "unlabelled")


def _by_set(result: Result, table: str, method: str) -> dict[str, float]:
    mine = [row["sets"] for row in result.rows if row["arm"] == f"{table}-{method}"]
    return {name: sum(held[name]["auc"] for held in mine) / len(mine) for name in mine[0]}


def draw_ranks(ax: "Axes", result: Result) -> None:
    """Mean ranks, one column of dots a table; the bar is Nemenyi's critical difference."""
    from matplotlib import rcParams

    soft = rcParams["xtick.labelcolor"]
    arms = {row["arm"] for row in result.rows}
    methods = [m for m in DETECTORS if f"defaults-{m}" in arms]
    last: dict[str, float] = {}
    for column, table in enumerate(_TABLES):
        held = {m: [*_by_set(result, table, m).values()] for m in methods if f"{table}-{m}" in arms}
        if len(held["gods"]) < 2:
            continue
        found = ranking(held)
        for method, rank in found.ranks.items():
            ours = method in ("gods", "kods")
            colour = PALETTE[0 if method == "gods" else 1] if ours else soft
            ax.plot(column, rank, "o", color=colour, markersize=6 if ours else 4)
            last[method] = rank
        top = min(found.ranks.values())
        ax.plot([column - 0.12] * 2, [top, top + found.critical_difference], color=soft, lw=1)
    for method, rank in _apart(last).items():
        ax.annotate(
            DETECTORS[method], (2, rank), xytext=(7, 0), textcoords="offset points",
            va="center", size=7.5, color=rcParams["text.color"],
        )  # fmt: skip
    ax.set_xticks(range(3), _TABLES)
    ax.set_xlim(-0.4, 4.1)
    ax.invert_yaxis()
    ax.set_ylabel("mean rank over sets")


def _apart(ranks: dict[str, float], least: float = 0.45) -> dict[str, float]:
    """Heights of labels that do not overlap, in the order of the ranks."""
    found: dict[str, float] = {}
    below = -1e9
    for method in sorted(ranks, key=ranks.__getitem__):
        below = found[method] = max(ranks[method], below + least)
    return found


def draw_sets(ax: "Axes", result: Result) -> None:
    """Area under the curve of GODS less that of OneClassSVM, set by set, defaults."""
    ours, theirs = (_by_set(result, "defaults", m) for m in ("gods", "ocsvm"))
    names = sorted(ours, key=lambda name: ours[name] - theirs[name])
    gains = [ours[name] - theirs[name] for name in names]
    ax.barh(
        range(len(names)), gains, height=0.7,
        color=[PALETTE[0] if gain > 0 else PALETTE[1] for gain in gains],
    )  # fmt: skip
    ax.set_yticks(range(len(names)), names, fontsize=6.5)
    ax.grid(visible=False, axis="y")
    ax.set_xlabel("GODS less OneClassSVM, defaults (points)")


PANELS = (
    Panel(
        draw_ranks,
        alt="Mean rank of each detector in three tables.",
        caption="Mean ranks over the sets, 1 is best; two that are further apart than the bar "
        "differ.",
    ),
    Panel(
        draw_sets,
        alt="Difference of areas under the curve of GODS and OneClassSVM on each set.",
        caption="Area under the curve, GODS less OneClassSVM, both with the defaults that other "
        "sets chose.",
    ),
)


def figure(result: Result, axes: "Sequence[Axes]") -> None:
    """Draw both panels on two axes of your own."""
    for ax, panel in zip(axes, PANELS, strict=True):
        panel.draw(ax, result)
