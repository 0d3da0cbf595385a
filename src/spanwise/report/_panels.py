"""The figures of a result, drawn in the house style of `spanwise.plots`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from spanwise import plots
from spanwise.plots._style import PALETTE, style
from spanwise.report._blocks import Figure
from spanwise.report._result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["PALETTE", "Panel", "draw_panels", "save_panels"]

_WIDTH, _HEIGHT = 4.5, 3.35  # inches: letters of 11 pixels on a phone, of 14 on a desktop


@dataclass(frozen=True)
class Panel:
    """One pair of axes with its words."""

    draw: "Callable[[Axes, Result], None]"
    """Draws a result; colours come from `PALETTE` and from rcParams."""
    alt: str
    """What the picture shows, for those who cannot see it."""
    caption: str
    """What to look for, below the picture."""


def draw_panels(panels: Sequence[Panel], result: Result) -> list[Figure]:
    """Every panel as a block for a page, for light and for dark.

    Raises:
        ModuleNotFoundError: If matplotlib is missing; the message holds the install line.
    """
    figures = []
    with TemporaryDirectory() as folder:
        for panel in panels:
            path = save_panels([panel], result, Path(folder) / "panel.svg")
            figures.append(Figure.from_file(path, panel.alt, panel.caption))
    return figures


def save_panels(panels: Sequence[Panel], result: Result, path: str | Path) -> Path:
    """All panels side by side in one SVG file, for readmes and documents.

    Raises:
        ModuleNotFoundError: If matplotlib is missing; the message holds the install line.
    """
    with style():
        count = len(panels)
        figure, axes = plots.figure(1, count, width=_WIDTH * count, height=_HEIGHT, squeeze=False)
        for ax, panel in zip(axes[0], panels, strict=True):
            panel.draw(ax, result)
    return plots.save(figure, path)[0]
