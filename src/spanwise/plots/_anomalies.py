"""Scores of an outlier detector, and what each feature adds to one."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from spanwise.plots._style import PALETTE, SOFT, style
from spanwise.plots._values import numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def anomaly_scores(
    ax: "Axes", scores: Any, *, threshold: float | None = None, bins: int = 40
) -> None:
    """Histogram of scores, higher for normal samples, beside the threshold.

    Bars are shares of each group. Scores far below, beyond ten times the middle half's width, are
    counted in the first bar, so that one outlier does not squeeze all others.

    Args:
        ax: Where to draw.
        scores: `(n,)`, or several groups by name, such as `{"training": ..., "new": ...}`.
        threshold: Scores below it are outliers; marked, and their share told.
        bins: Number of bars.

    Raises:
        ValueError: If there are no scores, or one is not finite, or `bins` is not positive.
        TypeError: If they are no numbers.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}.")
    groups: Mapping[str, Any] = scores if isinstance(scores, Mapping) else {"": scores}
    held = {
        name: _finite(f"scores[{name!r}]" if name else "scores", values)
        for name, values in groups.items()
    }
    if not held:
        raise ValueError("scores is empty: there is nothing to draw.")
    everything = np.concatenate([*held.values(), [] if threshold is None else [threshold]])
    low, high = _range(everything)
    edges = np.linspace(low, high, bins + 1).tolist()
    with style():
        for index, (name, values) in enumerate(held.items()):
            share = "" if threshold is None else f"{(values < threshold).mean():.1%} outside"
            ax.hist(
                values.clip(low, high), edges, weights=np.full(len(values), 100 / len(values)),
                color=PALETTE[(index + 1) % len(PALETTE)], alpha=0.75 if len(held) == 1 else 0.55,
                label=", ".join(filter(None, (name, share))) or None,
            )  # fmt: skip
        if threshold is not None:
            ax.axvline(threshold, color=SOFT, linewidth=1.2, linestyle=(0, (4, 3)))
        ax.set(xlabel="score, higher is more normal", ylabel="share of samples (%)")
        if everything.min() < low:
            ax.annotate(
                "◂ and below", (low, 0), xytext=(0, 3), textcoords="offset points", ha="left",
                va="bottom", color=SOFT, size=8,
            )  # fmt: skip
        if ax.get_legend_handles_labels()[1]:
            ax.legend(loc="best")


def contributions(
    ax: "Axes", values: Any, names: Sequence[str] | None = None, *, top: int = 10
) -> None:
    """What each feature adds to one sample's score: those that push it out first.

    Args:
        ax: Where to draw.
        values: Contributions, `(d,)`, as one row of `GODS.explain`; negative ones push out.
        names: A name for each feature; their indices unless given.
        top: Features with a bar of their own, largest first; the others share one.

    Raises:
        ValueError: If there are none, one is not finite, `names` are not as many, or `top` is not
            positive.
        TypeError: If they are no numbers.
    """
    held = _finite("values", values)
    if names is not None and len(names) != len(held):
        raise ValueError(f"names must be as many as values, {len(held)}, got {len(names)}.")
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}.")
    if len(held) == top + 1:  # the only one left has a name too
        top += 1
    words = [f"feature {i}" for i in range(len(held))] if names is None else [*map(str, names)]
    largest = np.argsort(-np.abs(held), kind="stable")[:top]
    largest = largest[np.argsort(held[largest], kind="stable")]
    bars = [(words[i], float(held[i])) for i in largest]
    if len(held) > top:
        rest = float(held.sum() - held[largest].sum())
        bars.append((f"{len(held) - top} others", rest))
    with style():
        sizes = np.array([size for _, size in bars])
        ax.barh(
            np.arange(len(bars)), sizes, height=0.7,
            color=[PALETTE[0] if size < 0 else PALETTE[1] for size in sizes],
        )  # fmt: skip
        ax.set_yticks(np.arange(len(bars)), [word for word, _ in bars])
        ax.invert_yaxis()
        ax.axvline(0, color=SOFT, linewidth=0.8)
        ax.grid(visible=False, axis="y")
        ax.set_xlabel("adds to the score; to the left, pushes out")


def _finite(where: str, values: Any) -> np.ndarray:
    found = numbers(where, values, ndim=1)
    if not np.isfinite(found).all():
        raise ValueError(f"{where} must be finite.")
    return found


def _range(scores: np.ndarray) -> tuple[float, float]:
    """Where bars begin and end."""
    first, third = np.quantile(scores, [0.25, 0.75])
    high = float(scores.max())
    low = max(float(scores.min()), float(first - 10 * (third - first)))
    if low == high:
        low, high = low - 0.5, high + 0.5
    return low, high
