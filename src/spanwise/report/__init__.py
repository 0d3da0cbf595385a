"""Run experiments, keep what they found, judge it, and show it on a page.

Nothing here loads torch; a result and its page can be made for any experiment.
"""

from typing import TYPE_CHECKING

from spanwise._lazy import lazy_attributes

if TYPE_CHECKING:
    from spanwise.report._cells import CellError, Progress, Workers, run_cells
    from spanwise.report._gallery import build_gallery
    from spanwise.report._page import (
        Code,
        Details,
        Facts,
        Figure,
        Markup,
        Section,
        Table,
        Text,
        VerdictMark,
        render_page,
        write_page,
    )
    from spanwise.report._panels import Panel, render_panel, save_panels
    from spanwise.report._provenance import provenance
    from spanwise.report._result import Metric, Result, Row, arm_mean, compare, differences
    from spanwise.report._statistics import Interval, paired_interval
    from spanwise.report._tuning import Tuning, tune
    from spanwise.report._verdict import Check, Verdict

_ATTRIBUTES = {
    "CellError": "_cells",
    "Check": "_verdict",
    "Code": "_page",
    "Details": "_page",
    "Facts": "_page",
    "Figure": "_page",
    "Interval": "_statistics",
    "Markup": "_page",
    "Metric": "_result",
    "Panel": "_panels",
    "Progress": "_cells",
    "Result": "_result",
    "Row": "_result",
    "Section": "_page",
    "Table": "_page",
    "Text": "_page",
    "Tuning": "_tuning",
    "Verdict": "_verdict",
    "VerdictMark": "_page",
    "Workers": "_cells",
    "arm_mean": "_result",
    "build_gallery": "_gallery",
    "compare": "_result",
    "differences": "_result",
    "paired_interval": "_statistics",
    "provenance": "_provenance",
    "render_page": "_page",
    "render_panel": "_panels",
    "run_cells": "_cells",
    "save_panels": "_panels",
    "tune": "_tuning",
    "write_page": "_page",
}

__all__ = [
    "CellError",
    "Check",
    "Code",
    "Details",
    "Facts",
    "Figure",
    "Interval",
    "Markup",
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
    "build_gallery",
    "compare",
    "differences",
    "paired_interval",
    "provenance",
    "render_page",
    "render_panel",
    "run_cells",
    "save_panels",
    "tune",
    "write_page",
]

__getattr__, __dir__ = lazy_attributes(
    __name__, {name: f"{__name__}.{module}" for name, module in _ATTRIBUTES.items()}
)
