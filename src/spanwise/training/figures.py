"""A run's curves: losses along the steps, learned against forgotten along alpha."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from spanwise import plots
from spanwise.training.alpha import AlphaPoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def loss_figure(events: Sequence[dict[str, Any]]) -> "Figure":
    """The loss of every step, smoothed, and of every text that was evaluated.

    Args:
        events: A run's story, as `history` tells it.
    """
    fig, ax = plots.figure()
    steps = [(e["step"], e["loss"]) for e in events if e.get("event") == "step"]
    if steps:
        ax.plot(*zip(*_smooth(steps), strict=True), color="0.6", linewidth=1, label="training")
    evals = [e for e in events if e.get("event") == "eval"]
    for index, name in enumerate(evals[-1]["losses"] if evals else ()):
        points = [(e["step"], e["losses"][name]) for e in evals if name in e["losses"]]
        label = "held out" if name == "held_out" else f"{name} (watched)"
        colour = plots.PALETTE[index % len(plots.PALETTE)]
        ax.plot(*zip(*points, strict=True), "o-", markersize=4, color=colour, label=label)
    ax.set(xlabel="step", ylabel="loss (nats per token)")
    ax.legend(fontsize=9)
    return fig


def alpha_figure(points: Sequence[AlphaPoint]) -> "Figure":
    """Learned against forgotten along alpha; without a watched text, learned along alpha.

    Args:
        points: Of a sweep, the first at alpha = 0.
    """
    base = points[0].losses
    watched = [name for name in base if name != "held_out"]
    learned = [base["held_out"] - point.losses["held_out"] for point in points]
    fig, ax = plots.figure()
    if not watched:
        ax.plot([point.alpha for point in points], learned, "o-", color=plots.PALETTE[0])
        ax.set(xlabel="alpha, the fraction of the update kept", ylabel="learned (nats per token)")
        return fig
    curves = {
        name: [(p.losses[name] - base[name], gain) for p, gain in zip(points, learned, strict=True)]
        for name in watched
    }
    plots.frontier(
        ax,
        curves,
        xlabel="forgotten: rise of the watched loss (nats per token); labels are alpha",
        ylabel="learned: fall of the held-out loss",
    )
    for curve in curves.values():
        for point, place in zip(points, curve, strict=True):
            if point.alpha in (0.5, 1.0):
                ax.annotate(
                    f"{point.alpha:g}", place, xytext=(7, -3), textcoords="offset points", size=8.5
                )
    return fig


def _smooth(points: list[tuple[int, float]], most: int = 200) -> list[tuple[float, float]]:
    """Means over equal windows, so that a long run stays a readable line."""
    width = max(1, len(points) // most)
    groups = [points[i : i + width] for i in range(0, len(points), width)]
    return [
        (sum(s for s, _ in group) / len(group), sum(x for _, x in group) / len(group))
        for group in groups
    ]
