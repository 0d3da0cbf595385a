"""Run experiments, keep what they found, judge it, and show it on a page.

Nothing here loads torch or matplotlib: a result and its page can be made for any experiment.
"""

from spanwise.report._article import arms_table, article, checks_table, duration
from spanwise.report._blocks import (
    Bullets,
    Code,
    Details,
    Facts,
    Figure,
    Grid,
    Heading,
    Index,
    Section,
    Table,
    Text,
    VerdictMark,
    format_value,
)
from spanwise.report._cells import CellError, Progress, Workers, run_cells
from spanwise.report._gallery import build_gallery, saved_figure
from spanwise.report._page import render_page, write_page
from spanwise.report._panels import PALETTE, Panel, draw_panels, save_panels
from spanwise.report._provenance import provenance
from spanwise.report._result import Metric, Result, Row, arm_mean, compare, differences
from spanwise.report._statistics import Interval, paired_interval
from spanwise.report._tuning import Tuning, tune
from spanwise.report._verdict import Check, Verdict

__all__ = [
    "PALETTE",
    "Bullets",
    "CellError",
    "Check",
    "Code",
    "Details",
    "Facts",
    "Figure",
    "Grid",
    "Heading",
    "Index",
    "Interval",
    "Metric",
    "Panel",
    "Progress",
    "Result",
    "Row",
    "Section",
    "Table",
    "Text",
    "Tuning",
    "Verdict",
    "VerdictMark",
    "Workers",
    "arm_mean",
    "arms_table",
    "article",
    "build_gallery",
    "checks_table",
    "compare",
    "differences",
    "draw_panels",
    "duration",
    "format_value",
    "paired_interval",
    "provenance",
    "render_page",
    "run_cells",
    "save_panels",
    "saved_figure",
    "tune",
    "write_page",
]
