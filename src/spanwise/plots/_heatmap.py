"""Tables of numbers as colours."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from spanwise._lazy import require
from spanwise.plots._style import LINE, PAPER, SOFT, style
from spanwise.plots._values import numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Lightness rises along the first and away from the middle of the second: both read in grey.
_RISING = ("#16204f", "#23418f", "#306dc4", "#4f9fb5", "#8fc7a4", "#f2e3a6")
_AROUND = ("#173f7d", "#306dc4", "#8fb2dd", "#eceae6", "#e8b184", "#d77526", "#8a4310")

_DARK_TEXT, _LIGHT_TEXT = "#14181d", "#fbfbfb"  # on cells, which no page's scheme changes


def heatmap(
    ax: "Axes",
    values: Any,
    rows: Sequence[str],
    cols: Sequence[str],
    *,
    label: str = "",
    limits: tuple[float, float] | None = None,
    center: float | None = None,
    form: str = "{:.2f}",
    bar: bool = True,
) -> None:
    """A table as coloured cells, with its numbers where they fit.

    Args:
        ax: Where to draw.
        values: `(rows, cols)`; NaN leaves a cell out.
        rows: A name for each row, from the top.
        cols: A name for each column.
        label: What the numbers are, beside the colour bar.
        limits: The numbers at the two ends of the colours, so that several maps compare; the
            smallest and the largest of `values` unless given.
        center: The number of the neutral colour, for changes and differences; colours then run
            equally far to both sides.
        form: How a cell's number is written.
        bar: Whether to draw the colour bar; one is enough for several maps with equal limits.

    Raises:
        ValueError: If names and values do not fit, nothing is finite, or `limits` do not rise.
        TypeError: If `values` are no numbers.
    """
    table = numbers("values", values, ndim=2)
    if table.shape != (len(rows), len(cols)):
        raise ValueError(
            f"values must be (rows, cols) = ({len(rows)}, {len(cols)}) by the names given, got "
            f"shape {table.shape}."
        )
    if not np.isfinite(table).any():
        raise ValueError("values holds no finite number: there is nothing to draw.")
    low, high = _limits(table, limits, center)
    with style():
        colours = require("matplotlib.colors")
        ramp = _RISING if center is None else _AROUND
        scale = colours.LinearSegmentedColormap.from_list("spanwise", ramp, N=513)
        shown = np.ma.masked_invalid(table)
        many = table.size > 4096  # cells too small for gaps, and too many for a vector file
        gap: dict[str, Any] = {} if many else {"edgecolors": PAPER, "linewidth": 1.2}
        mesh = ax.pcolormesh(shown, cmap=scale, vmin=low, vmax=high, rasterized=many, **gap)
        ax.set_ylim(len(rows), 0)  # not invert_yaxis: shared axes would turn twice
        ax.grid(False)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
        if bar:
            side = ax.figure.colorbar(mesh, ax=ax, label=label, pad=0.02, aspect=28)
            side.outline.set_visible(False)
            side.ax.tick_params(color=LINE, labelcolor=SOFT, length=3)
        elif label:
            ax.set_xlabel(label)
        _name(ax, rows, cols)
        _write(ax, table, mesh, form)


def _limits(
    table: np.ndarray, limits: tuple[float, float] | None, center: float | None
) -> tuple[float, float]:
    low, high = limits or (float(np.nanmin(table)), float(np.nanmax(table)))
    if limits and not low < high:
        raise ValueError(f"limits must rise, got {limits}.")
    if center is not None:
        reach = max(high - center, center - low) or 1.0
        return center - reach, center + reach
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _name(ax: "Axes", rows: Sequence[str], cols: Sequence[str]) -> None:
    ax.set_yticks(np.arange(len(rows)) + 0.5, rows)
    width, height = _cell(ax, len(rows), len(cols))
    every = max(1, int(np.ceil(11 / height)))
    ax.set_yticks(np.arange(0, len(rows), every) + 0.5, rows[::every])
    # A letter is about 5.4 points wide; slanted names need their line's height only.
    slanted = max(map(len, cols)) * 5.4 > width
    every = max(1, int(np.ceil(11 / width))) if slanted else 1
    ax.set_xticks(np.arange(0, len(cols), every) + 0.5, cols[::every])
    if slanted:
        ax.tick_params(axis="x", rotation=38)
        for text in ax.get_xticklabels():
            text.set(ha="right", rotation_mode="anchor")


def _write(ax: "Axes", table: np.ndarray, mesh: Any, form: str) -> None:
    """The numbers, if they fit in the cells."""
    words = [[form.format(value) if np.isfinite(value) else "·" for value in row] for row in table]
    width, height = _cell(ax, *table.shape)
    size = min(8.5, 0.72 * height, width / (0.66 * max(len(w) for row in words for w in row)))
    if size < 6:
        return
    for (i, j), value in np.ndenumerate(table):
        red, green, blue, _ = mesh.to_rgba(value) if np.isfinite(value) else (1, 1, 1, 1)
        # The gamma of 2.2 is near enough to choose between two extremes.
        light = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 > 0.2
        colour = (_DARK_TEXT if light else _LIGHT_TEXT) if np.isfinite(value) else SOFT
        ax.text(j + 0.5, i + 0.5, words[i][j], ha="center", va="center", color=colour, size=size)


def _cell(ax: "Axes", rows: int, cols: int) -> tuple[float, float]:
    """Width and height of a cell in points, as the layout is so far."""
    fig: Any = ax.figure.canvas.figure  # the root, also within a subfigure
    engine = fig.get_layout_engine()
    if engine is not None:
        engine.execute(fig)
    box = ax.get_window_extent()
    return 72 / fig.dpi * box.width / cols, 72 / fig.dpi * box.height / rows
