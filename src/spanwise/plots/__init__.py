"""Figures that read on light and on dark pages; axes in, matplotlib loads when used.

Example:
    >>> fig, ax = plots.figure()
    >>> plots.spectrum(ax, torch.linalg.svdvals(weight), rank=64)
    >>> plots.save(fig, "out/spectrum")
"""

from spanwise.plots._anomalies import anomaly_scores, contributions
from spanwise.plots._clusters import cluster_affinity, cluster_spectra, coding_bits
from spanwise.plots._curves import angles, spectrum
from spanwise.plots._dynamics import eigenvalues, errors_by_horizon, forecast
from spanwise.plots._figure import figure, save
from spanwise.plots._frontier import frontier
from spanwise.plots._heatmap import heatmap
from spanwise.plots._scree import scree
from spanwise.plots._style import PALETTE

__all__ = [
    "PALETTE",
    "angles",
    "anomaly_scores",
    "cluster_affinity",
    "cluster_spectra",
    "coding_bits",
    "contributions",
    "eigenvalues",
    "errors_by_horizon",
    "figure",
    "forecast",
    "frontier",
    "heatmap",
    "save",
    "scree",
    "spectrum",
]
