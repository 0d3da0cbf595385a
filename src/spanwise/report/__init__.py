"""Run experiments, keep what they found, judge it, and show it on a page.

Nothing here loads torch; a result and its page can be made for any experiment.
"""

from typing import TYPE_CHECKING

from spanwise._lazy import lazy_attributes

if TYPE_CHECKING:
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

_ATTRIBUTES = {
    "Bullets": "_blocks",
    "CellError": "_cells",
    "Check": "_verdict",
    "Code": "_blocks",
    "Details": "_blocks",
    "Facts": "_blocks",
    "Figure": "_blocks",
    "Grid": "_blocks",
    "Heading": "_blocks",
    "Index": "_blocks",
    "Interval": "_statistics",
    "Metric": "_result",
    "PALETTE": "_panels",
    "Panel": "_panels",
    "Progress": "_cells",
    "Result": "_result",
    "Row": "_result",
    "Section": "_blocks",
    "Table": "_blocks",
    "Text": "_blocks",
    "Tuning": "_tuning",
    "Verdict": "_verdict",
    "VerdictMark": "_blocks",
    "Workers": "_cells",
    "arm_mean": "_result",
    "arms_table": "_article",
    "article": "_article",
    "build_gallery": "_gallery",
    "checks_table": "_article",
    "compare": "_result",
    "differences": "_result",
    "draw_panels": "_panels",
    "duration": "_article",
    "format_value": "_blocks",
    "paired_interval": "_statistics",
    "provenance": "_provenance",
    "render_page": "_page",
    "run_cells": "_cells",
    "save_panels": "_panels",
    "saved_figure": "_gallery",
    "tune": "_tuning",
    "write_page": "_page",
}

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

__getattr__, __dir__ = lazy_attributes(
    __name__, {name: f"{__name__}.{module}" for name, module in _ATTRIBUTES.items()}
)
