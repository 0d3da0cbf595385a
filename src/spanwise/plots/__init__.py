"""Figures that read on light and on dark pages; axes in, matplotlib loads when used.

Example:
    >>> fig, ax = plots.figure()
    >>> plots.spectrum(ax, torch.linalg.svdvals(weight), rank=64)
    >>> plots.save(fig, "out/spectrum")
"""

from spanwise.plots._curves import angles, spectrum
from spanwise.plots._figure import figure, save
from spanwise.plots._frontier import frontier
from spanwise.plots._heatmap import heatmap
from spanwise.plots._style import PALETTE

__all__ = ["PALETTE", "angles", "figure", "frontier", "heatmap", "save", "spectrum"]
