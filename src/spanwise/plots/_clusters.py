"""Clusters: who belongs with whom, how large each subspace is, and how many there should be."""

from typing import TYPE_CHECKING, Any

import numpy as np

from spanwise._lazy import require
from spanwise.plots._style import LINE, PALETTE, SOFT, style
from spanwise.plots._values import numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_RISING = ("#16204f", "#23418f", "#306dc4", "#4f9fb5", "#8fc7a4", "#f2e3a6")
MOST = 600
"""Samples that a picture shows at most; of more, evenly spaced ones."""


def cluster_affinity(ax: "Axes", affinity: Any, labels: Any, *, label: str = "") -> None:
    """An affinity between samples, sorted by cluster: blocks on the diagonal are clusters.

    Colours rise with the square root of the affinity, up to its 99th percentile within clusters.

    Args:
        ax: Where to draw.
        affinity: Not negative, `(n, n)`, such as a membership.
        labels: A whole number for each sample, `(n,)`.
        label: What the colours are.

    Raises:
        ValueError: If shapes do not fit, or an affinity is negative or not finite.
        TypeError: If they are no numbers.
    """
    held, found = numbers("affinity", affinity, ndim=2), _labels(labels)
    if held.shape != (len(found), len(found)):
        raise ValueError(
            f"affinity must be (n, n) for the {len(found)} labels, got shape {held.shape}."
        )
    if not np.isfinite(held).all() or held.min() < 0:
        raise ValueError("affinity must be finite and not negative.")
    order = np.argsort(found, kind="stable")
    order = order[np.linspace(0, len(order) - 1, min(MOST, len(order))).astype(int)]
    held, found = held[np.ix_(order, order)], found[order]
    inside = held[found[:, None] == found]
    top = float(np.quantile(inside, 0.99)) or float(held.max()) or 1.0
    edges = np.flatnonzero(np.diff(found)) + 1
    with style():
        colours = require("matplotlib.colors")
        scale = colours.LinearSegmentedColormap.from_list("spanwise", _RISING, N=513)
        norm = colours.PowerNorm(0.5, vmin=0, vmax=top)
        mesh = ax.pcolormesh(held, cmap=scale, norm=norm, rasterized=True)
        for edge in edges.tolist():
            ax.axhline(edge, color=LINE, linewidth=0.6)
            ax.axvline(edge, color=LINE, linewidth=0.6)
        middles = (np.r_[0, edges] + np.r_[edges, len(found)]) / 2
        names = [f"{found[int(at)]:g}" for at in middles]
        ax.set_xticks(middles, names)
        ax.set_yticks(middles, names)
        ax.set(xlabel="cluster", ylabel="cluster", aspect="equal")
        ax.set_ylim(len(found), 0)
        ax.grid(False)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
        side = ax.figure.colorbar(mesh, ax=ax, label=label, pad=0.02, aspect=28)
        side.outline.set_visible(False)
        side.ax.tick_params(color=LINE, labelcolor=SOFT, length=3)


def cluster_spectra(
    ax: "Axes", features: Any, labels: Any, *, most: int | None = None, energy: float = 0.95
) -> None:
    """Singular values of each cluster's features and of all, relative to each largest.

    Args:
        ax: Where to draw.
        features: Samples in rows, `(n, d)`.
        labels: A whole number for each sample, `(n,)`.
        most: How many values to draw; all by default.
        energy: Ranks are told that hold this share of the sum of squares, in `(0, 1]`.

    Raises:
        ValueError: If shapes do not fit, a feature is not finite, or `energy` is out of range.
        TypeError: If they are no numbers.
    """
    held, found = numbers("features", features, ndim=2), _labels(labels)
    if len(held) != len(found):
        raise ValueError(f"features must have the {len(found)} labels' rows, got {len(held)}.")
    if not np.isfinite(held).all():
        raise ValueError("features must be finite.")
    if not 0 < energy <= 1:
        raise ValueError(f"energy must lie in (0, 1], got {energy}.")
    ranks = []
    with style():
        for place, label in enumerate(np.unique(found)):
            values = np.linalg.svd(held[found == label], compute_uv=False)
            ranks.append(_rank(values, energy))
            ax.plot(
                np.arange(1, len(values) + 1)[:most], (values / values[0])[:most],
                color=PALETTE[1], linewidth=1.1, alpha=0.75,
                label=None if place else "each cluster",
            )  # fmt: skip
        values = np.linalg.svd(held, compute_uv=False)
        ax.plot(
            np.arange(1, len(values) + 1)[:most], (values / values[0])[:most],
            color=PALETTE[0], label="all samples",
        )  # fmt: skip
        low, high = min(ranks), max(ranks)
        span = f"{low}" if low == high else f"{low} to {high}"
        ax.set(xlabel="index", ylabel="singular value / largest")
        ax.set_ylim(bottom=0)
        ax.legend(
            loc="upper right",
            title=f"{energy:.0%} within rank {span}; of all, {_rank(values, energy)}",
            title_fontsize=8.5,
        )


def coding_bits(ax: "Axes", counts: Any, bits: Any, *, chosen: int | None = None) -> None:
    """The length of the code for each number of clusters; its minimum is the number to take.

    Args:
        ax: Where to draw.
        counts: Numbers of clusters, `(m,)`.
        bits: A length for each.
        chosen: The number to mark; the one of least length by default.

    Raises:
        ValueError: If the two do not fit, or a length is not finite.
        TypeError: If they are no numbers.
    """
    numbers_, lengths = numbers("counts", counts, ndim=1), numbers("bits", bits, ndim=1)
    if numbers_.shape != lengths.shape or not np.isfinite(lengths).all():
        raise ValueError(
            f"bits must be finite, one for each count, got shapes {lengths.shape} and "
            f"{numbers_.shape}."
        )
    best = float(numbers_[lengths.argmin()]) if chosen is None else float(chosen)
    with style():
        ax.plot(numbers_, lengths, color=PALETTE[1], marker="o", markersize=4.5)
        ax.axvline(best, color=SOFT, linewidth=1, linestyle=(0, (4, 3)), zorder=1.5)
        ax.annotate(
            f"{best:g} clusters", (best, 1), xycoords=("data", "axes fraction"),
            xytext=(4, -2), textcoords="offset points", ha="left", va="top", color=SOFT, size=8.5,
        )  # fmt: skip
        ax.set(xlabel="clusters", ylabel="coding length (nats)")
        ax.xaxis.set_major_locator(require("matplotlib.ticker").MaxNLocator(integer=True))


def _rank(values: np.ndarray, energy: float) -> int:
    share = np.cumsum(values**2) / (values**2).sum()
    return int((share < energy * (1 - 1e-12)).sum()) + 1


def _labels(labels: Any) -> np.ndarray:
    return numbers("labels", labels, ndim=1)
