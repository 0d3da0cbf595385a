"""Colours and proportions that all figures share."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from spanwise._lazy import require

PALETTE = ("#d77526", "#306dc4", "#36a275", "#a33d78", "#77601b", "#a084be")
"""Orange, blue, green, plum, olive, lavender: at least 3:1 against white and against #0d1117,
and at least 0.095 apart in OKLab for normal, protan, deutan and tritan eyes alike."""

MARKERS = ("o", "s", "D", "^", "v", "P")
"""A second cue beside the colour."""

INK, SOFT, LINE, PAPER = "#1f2328", "#59636e", "#d8dee4", "#fffffe"
"""Titles; labels and references; grid; ground. Each value is used for nothing else, so that a
dark page can exchange it."""

ON_DARK = {INK: "#e6edf3", SOFT: "#9198a1", LINE: "#30363d", PAPER: "#0d1117"}
"""What a dark page has instead."""

RC: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": SOFT,
    "axes.labelsize": 9.5,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.titlesize": 10.5,
    "axes.titleweight": "regular",
    "figure.facecolor": PAPER,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: figures are equal everywhere
    "font.size": 9.5,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "lines.solid_capstyle": "round",
    "savefig.facecolor": "auto",
    "svg.fonttype": "path",
    "svg.hashsalt": "spanwise",
    "text.color": INK,
    "xtick.color": LINE,
    "xtick.labelcolor": SOFT,
    "xtick.labelsize": 9,
    "ytick.color": LINE,
    "ytick.labelcolor": SOFT,
    "ytick.labelsize": 9,
}


@contextmanager
def style() -> Generator[Any, None, None]:
    """The house style while the body runs; yields matplotlib.

    Raises:
        ModuleNotFoundError: If matplotlib is missing; the message holds the install line.
    """
    matplotlib = require("matplotlib", "a figure")
    with matplotlib.rc_context({**RC, "axes.prop_cycle": matplotlib.cycler(color=PALETTE)}):
        yield matplotlib
