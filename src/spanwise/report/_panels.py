"""The figures of a result: each panel drawn twice, for light and for dark pages."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spanwise._lazy import require
from spanwise.report._blocks import Figure
from spanwise.report._result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PALETTE = ("#d9822b", "#3a8fd0", "#17a07f", "#b65fb0", "#8f8f2f", "#c8574a")
"""Six colours of equal strength on light and on dark paper, told apart by the colour-blind."""

_SIZE = (4.5, 3.35)
_LIGHT = {"ink": "#1d2025", "soft": "#6a717c", "line": "#e2dfd6"}
_DARK = {"ink": "#e9e7e2", "soft": "#9aa1ac", "line": "#30353d"}


@dataclass(frozen=True)
class Panel:
    """One pair of axes with its words."""

    draw: "Callable[[Axes, Result], None]"
    """Draws a result; colours come from `PALETTE` and from rcParams alone."""
    alt: str
    """What the picture shows, for those who cannot see it."""
    caption: str
    """What to look for, below the picture."""


def render_panel(panel: Panel, result: Result, *, dark: bool = False) -> str:
    """A panel as SVG text with a transparent ground.

    Raises:
        ModuleNotFoundError: If matplotlib is missing; the message holds the install line.
    """
    with _theme(_DARK if dark else _LIGHT):
        figure, axes = _subplots(1)
        panel.draw(axes[0], result)
        return _svg(figure, transparent=True)


def draw_panels(panels: Sequence[Panel], result: Result) -> list[Figure]:
    """Every panel as a block for a page."""
    return [
        Figure(
            render_panel(panel, result),
            alt=panel.alt,
            caption=panel.caption,
            dark=render_panel(panel, result, dark=True),
        )
        for panel in panels
    ]


def save_panels(panels: Sequence[Panel], result: Result, path: str | Path) -> Path:
    """All panels side by side in one SVG file on white, for readmes and documents."""
    from spanwise.io import write_bytes

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _theme(_LIGHT):
        figure, axes = _subplots(len(panels))
        for ax, panel in zip(axes, panels, strict=True):
            panel.draw(ax, result)
        write_bytes(path, _svg(figure, transparent=False).encode())
    return path


def _subplots(count: int) -> tuple[Any, Sequence["Axes"]]:
    pyplot = require("matplotlib.figure", "a figure")
    figure = pyplot.Figure(figsize=(_SIZE[0] * count, _SIZE[1]), layout="constrained")
    return figure, figure.subplots(1, count, squeeze=False)[0]


def _svg(figure: Any, *, transparent: bool) -> str:
    buffer = io.StringIO()
    ground = {"transparent": True} if transparent else {"facecolor": "#ffffff"}
    # Without a date, equal results give equal files.
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": "spanwise"}, **ground)
    return buffer.getvalue()


@contextmanager
def _theme(colours: dict[str, str]) -> Iterator[None]:
    matplotlib = require("matplotlib", "a figure")
    ink, soft, line = colours["ink"], colours["soft"], colours["line"]
    options = {
        "svg.hashsalt": "spanwise",
        "font.size": 10,
        "axes.titlesize": 10.5,
        "axes.titlelocation": "left",
        "axes.titlepad": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": line,
        "axes.labelcolor": soft,
        "axes.titlecolor": ink,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.prop_cycle": matplotlib.cycler(color=PALETTE),
        "grid.color": line,
        "grid.linewidth": 0.7,
        "text.color": ink,
        "xtick.color": line,
        "ytick.color": line,
        "xtick.labelcolor": soft,
        "ytick.labelcolor": soft,
        "xtick.minor.visible": False,
        "legend.frameon": False,
        "legend.fontsize": 9.5,
        "lines.linewidth": 2,
        "lines.solid_capstyle": "round",
    }
    with matplotlib.rc_context(options):
        yield
