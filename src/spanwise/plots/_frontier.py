"""What is gained against what it costs."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from spanwise.plots._style import LINE, MARKERS, PALETTE, PAPER, SOFT, style
from spanwise.plots._values import numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def frontier(
    ax: "Axes",
    points: Mapping[str, Any],
    *,
    reference: str | Collection[str] = (),
    xlabel: str = "forgotten (nats)",
    ylabel: str = "learned (nats)",
) -> None:
    """Gain against cost, one curve or point an arm; better is up and to the left.

    Args:
        ax: Where to draw.
        points: Arm -> its points (cost, gain): `(2,)` for one, `(n, 2)` for a curve in its
            order, or `(seeds, n, 2)`, drawn as the mean with each seed faintly. Points that are
            not finite (a run that diverged) are left out.
        reference: The arms that are known already, in grey; what the first of them attains, or
            less, is shaded.
        xlabel: What the cost is, with its unit.
        ylabel: What the gain is, with its unit.

    Raises:
        ValueError: If there is no arm, an arm's shape is another, or `reference` is unknown.
        TypeError: If points are no numbers.
    """
    grey = [reference] if isinstance(reference, str) else list(reference)
    unknown = [name for name in grey if name not in points]
    if unknown or not points:
        raise ValueError(
            f"reference must name arms of points ({', '.join(points) or 'there are none'}), got "
            f"{unknown}."
        )
    curves = {name: _curve(name, held) for name, held in points.items()}
    with style():
        ours = 0
        for name, seeds in curves.items():
            mean = seeds.mean(axis=0)
            mean = mean[np.isfinite(mean).all(axis=-1)]
            if name in grey:
                colour, marker, order = SOFT, MARKERS[grey.index(name) % len(MARKERS)], 2.5
            else:
                colour, marker, order = PALETTE[ours % 6], MARKERS[(ours + ours // 6) % 6], 3.5
                ours += 1
            if len(seeds) > 1:
                x, y = seeds.reshape(-1, 2).T
                ax.plot(x, y, marker, color=colour, alpha=0.35, markersize=3.5, mew=0, zorder=order)
            many = len(mean) > 1
            face = PAPER if name in grey else colour
            ax.plot(
                *mean.T, marker=marker, color=colour, label=name, zorder=order + 0.2,
                linestyle="-" if many else "none", markersize=5.5 if many else 7.5,
                markerfacecolor=face,
            )  # fmt: skip
        ax.axvline(0, color=LINE, linewidth=1.2, zorder=1)
        ax.axhline(0, color=LINE, linewidth=1.2, zorder=1)
        ax.set(xlabel=xlabel, ylabel=ylabel)
        ax.margins(0.08)
        if grey:
            _shade(ax, curves[grey[0]])
        ax.annotate(
            "↖ better", (0, 1), xycoords="axes fraction", xytext=(5, -5),
            textcoords="offset points", ha="left", va="top", color=SOFT, size=8.5,
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1.5},
        )  # fmt: skip
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), borderaxespad=0)


def _curve(name: str, held: Any) -> np.ndarray:
    """`(seeds, n, 2)`."""
    found = numbers(f"points[{name!r}]", held)
    if found.ndim > 3 or found.shape[-1:] != (2,):
        raise ValueError(
            f"points[{name!r}] must be (2,), (n, 2) or (seeds, n, 2) of (cost, gain), got shape "
            f"{found.shape}."
        )
    return found.reshape((1,) * (3 - found.ndim) + found.shape)


def _shade(ax: "Axes", seeds: np.ndarray) -> None:
    """Everything that costs at least as much as some point of the curve and gains no more."""
    mean = seeds.mean(axis=0)
    mean = mean[np.isfinite(mean).all(axis=-1)]
    if not len(mean):
        return
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    x, y = mean[np.argsort(mean[:, 0], kind="stable")].T
    x, y = np.append(x, right), np.maximum.accumulate(np.append(y, y.max()))
    ax.fill_between(x, y, low, color=SOFT, alpha=0.1, linewidth=0, zorder=0.5)
    ax.set(xlim=(left, right), ylim=(low, high))
