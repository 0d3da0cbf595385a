"""Eigenvalues by size, for the choice of a rank."""

from typing import TYPE_CHECKING, Any

import numpy as np

from spanwise.plots._style import PALETTE, PAPER, SOFT, style
from spanwise.plots._values import numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def scree(ax: "Axes", values: Any, *, rank: int | None = None, most: int | None = None) -> None:
    """Magnitudes of eigenvalues, largest first, on a logarithmic axis; a gap tells the rank.

    Negative ones, as the components of negative weight have, are hollow. What is below rounding,
    1e-17 times the largest, is drawn there.

    Args:
        ax: Where to draw.
        values: Eigenvalues or singular values, `(k,)`, in any order, such as `eigenvalues_`.
        rank: A rank to mark; what lies beyond it is grey.
        most: How many to draw; by default three times `rank`, at least 20, or all.

    Raises:
        ValueError: If there are no values, one is not finite, all are zero, `rank` is not in
            `[1, k]`, or `most` is below 1.
        TypeError: If `values` are no numbers.
    """
    held = numbers("values", values, ndim=1)
    if not np.isfinite(held).all() or not held.any():
        raise ValueError(
            f"values must be finite and not all zero, got {held.min()} to {held.max()}."
        )
    if rank is not None and not 1 <= rank <= len(held):
        raise ValueError(f"rank must be from 1 to the {len(held)} values, got {rank}.")
    if most is not None and most < 1:
        raise ValueError(f"most must be at least 1, got {most}.")
    held = held[np.argsort(-np.abs(held), kind="stable")]
    shown = most or (max(20, 3 * rank) if rank else len(held))
    held = held[:shown]
    size = np.abs(held).clip(1e-17 * np.abs(held[0]))
    index = np.arange(1, len(held) + 1)
    inside = index <= (rank or len(held))
    with style():
        ax.plot(index, size, color=SOFT, linewidth=0.8, zorder=1.8)
        for which, colour in ((inside, PALETTE[1]), (~inside, SOFT)):
            for negative in (False, True):
                own = which & ((held < 0) == negative)
                if own.any():
                    ax.plot(
                        index[own], size[own], "o", color=colour, markersize=5, zorder=2.2,
                        markerfacecolor=PAPER if negative else colour,
                        label="negative" if negative and colour == PALETTE[1] else None,
                    )  # fmt: skip
        if rank:
            ax.axvline(rank + 0.5, color=SOFT, linewidth=1, linestyle=(0, (4, 3)), zorder=1.5)
            ax.annotate(
                f"rank {rank}", (rank + 0.5, 1), xycoords=("data", "axes fraction"),
                xytext=(4, -2), textcoords="offset points", ha="left", va="top", color=SOFT,
                size=8.5,
            )  # fmt: skip
        ax.set(yscale="log", xlabel="index", ylabel="|eigenvalue|")
        ax.margins(y=0.1)
        if ax.get_legend_handles_labels()[1]:
            ax.legend(loc="upper right")
