"""Figures in the house style, written for light and for dark pages."""

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spanwise._lazy import require
from spanwise.io import check_place, write_bytes
from spanwise.plots._style import INK, LINE, ON_DARK, SOFT, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure(
    rows: int = 1,
    columns: int = 1,
    *,
    width: float | None = None,
    height: float | None = None,
    **options: Any,
) -> "tuple[Figure, Any]":
    """A figure and its axes; nothing global changes, and no window opens.

    Args:
        rows: Axes below each other.
        columns: Axes side by side.
        width: In inches; 5.6 for one column, 4 for each of several.
        height: In inches; 3.5 for one row, 3 for each of several.
        **options: For `Figure.subplots`, such as `sharey=True`.

    Returns:
        The figure, and the axes: one if there is one, else an array.

    Raises:
        ModuleNotFoundError: If matplotlib is missing; the message holds the install line.
        ValueError: If a count or a length is not positive.
    """
    for name, value in {"rows": rows, "columns": columns, "width": width, "height": height}.items():
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be positive, got {value}.")
    size = (width or (5.6 if columns == 1 else 4.0 * columns),
            height or (3.5 if rows == 1 else 3.0 * rows))  # fmt: skip
    with style():
        fig = require("matplotlib.figure", "a figure").Figure(figsize=size, layout="constrained")
        fig.get_layout_engine().set(w_pad=0.09, h_pad=0.09)
        axes = fig.subplots(rows, columns, **options)
    for ax in fig.axes:
        # Ticks are made late, when the style no longer holds.
        ax.tick_params(which="both", color=LINE, labelcolor=SOFT, labelsize=9, length=3)
        ax.tick_params(which="minor", length=0)
    return fig, axes


def save(fig: "Figure", path: str | Path) -> list[Path]:
    """Write a figure as SVG and PNG, each whole or not at all; equal figures give equal files.

    The SVG follows the reader's colour scheme; the PNG has a white ground.

    Args:
        fig: Any matplotlib figure; text and legends in matplotlib's defaults take our colours.
        path: Where to; with the suffix `.svg` or `.png` that one is written, else both beside
            each other. Missing parent folders are made.

    Returns:
        The files.

    Raises:
        ValueError: If the suffix is that of another format.
        OSError: If writing fails; files that were there are as they were.
    """
    targets = check_path(path)
    with style(), warnings.catch_warnings():
        # matplotlib warns by the clock: on a busy machine any legend has taken long.
        warnings.filterwarnings("ignore", message="Creating legend with loc")
        _adopt(fig)
        content = [_svg(fig) if target.suffix == ".svg" else _png(fig) for target in targets]
    return [write_bytes(*pair) for pair in zip(targets, content, strict=True)]


def check_path(path: str | Path) -> list[Path]:
    """The files that `save` would write; raise before the work if it could not.

    Raises:
        ModuleNotFoundError: If matplotlib is missing; the message holds the install line.
        PermissionError: If the folder may not be written to.
        ValueError: If the suffix is that of another format, or a file stands where a folder should.
    """
    path = Path(path)
    canvas = require("matplotlib.backend_bases", "a figure").FigureCanvasBase
    check_place(path.parent)
    if path.suffix in (".svg", ".png"):
        return [path]
    if path.suffix[1:] in canvas.get_supported_filetypes():
        raise ValueError(
            f"figures are written as .svg or .png, got {path.name!r}. Leave the suffix out "
            "for both."
        )
    return [path.with_name(path.name + suffix) for suffix in (".svg", ".png")]


def _adopt(fig: "Figure") -> None:
    """Give what was drawn outside of the style the colours that a dark page can exchange."""
    for legend in fig.findobj(require("matplotlib.legend").Legend):
        legend.set_frame_on(False)
    for ax in fig.axes:
        centred = ax.get_title()
        if centred and not ax.get_title(loc="left"):
            ax.set_title("", loc="center")
            ax.set_title(centred, loc="left")
    same_color = require("matplotlib.colors").same_color
    for kind in (require("matplotlib.text").Text, require("matplotlib.lines").Line2D):
        for artist in fig.findobj(kind):
            if same_color(artist.get_color(), "black"):
                artist.set_color(INK)


def _png(fig: "Figure") -> bytes:
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=200, metadata={"Software": "spanwise"})
    return buffer.getvalue()


def _svg(fig: "Figure") -> bytes:
    buffer = io.StringIO()
    fig.savefig(buffer, format="svg", metadata={"Date": None, "Creator": "spanwise"})
    # Readers that know no media queries keep the light colours.
    rules = "".join(
        f'[style*="{what}: {light}"]{{{what}:{dark}!important}}'
        for light, dark in ON_DARK.items()
        for what in ("fill", "stroke")
    )
    head, start, rest = buffer.getvalue().partition("<defs>")
    sheet = f"<style>@media (prefers-color-scheme:dark){{{rules}}}</style>\n "
    return (head + sheet + start + rest).encode()
