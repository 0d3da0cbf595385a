"""Isotropic merging: equal singular values, common and task-specific subspaces."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from spanwise.merging import merge
from spanwise.report import Check, Panel, Row
from spanwise.reproductions import _digits as digits
from spanwise.reproductions._digits_figures import draw_accuracy, draw_scales

TITLE = "Isotropic merging in common and task-specific subspaces"
CLAIM = (
    "Giving every direction of the summed update the same weight merges far better than adding the "
    "updates, and setting room aside for each task keeps it so when tasks are many."
)
CRITERION = """\
A small network that knows a little of every task is fine-tuned on 8 tasks, and another one on 16:
handwritten digits, turned, mirrored, and for 16 also inverted. The fine-tunes are merged without
data; each method's alpha is the best of one common grid on validation images; accuracy is the mean
over tasks on test images, in percent. On at least five fresh seeds:
(1) Iso-C is more accurate than task arithmetic with 8 tasks;
(2) Iso-C is more accurate than task arithmetic with 16 tasks;
(3) Iso-CTS is more accurate than Iso-C with 16 tasks;
(4) Iso-CTS is more accurate than TSV-M with 16 tasks.
Reproduced: all four, with the whole 95 % paired intervals.
Direction only: all four by the means, but an interval reaches past 0.
Not reproduced: otherwise.
"""

ARMS = {
    "average": "average",
    "task_arithmetic": "task arithmetic",
    "ties": "TIES",
    "tsv": "TSV-M",
    "iso_c": "Iso-C",
    "iso_cts": "Iso-CTS",
}
COUNTS = (8, 16)


@dataclass(frozen=True, kw_only=True)
class Settings(digits.Settings):
    """The experiment; the defaults are the committed run."""

    common_fraction: float = 0.8
    """Share of the directions that Iso-CTS leaves to what tasks have in common."""


PRESETS: dict[str, digits.Settings] = {
    "quick": replace(Settings(), steps=20, width=32, alphas=(0.1, 0.3, 1.0), seeds=(100,)),
    "default": Settings(),
    "full": replace(Settings(), seeds=tuple(range(100, 120))),
}


def cell(cell: Mapping[str, Any]) -> dict[str, Any]:
    """Every method on one seed's fine-tunes, in its own process."""
    settings = Settings(**cell["settings"])
    tasks = digits.tasks_of(cell, settings)
    arms: dict[str, dict[str, Any]] = {}
    for arm in ARMS:
        options: dict[str, Any] = {}
        if arm == "ties":
            options = {"density": settings.density}
        elif arm == "iso_cts":
            options = {"common_fraction": settings.common_fraction}
        merged = merge(tasks.base, tasks.tuned, digits.METHOD.get(arm, arm), **options)
        arms[arm] = tasks.judged(merged, None if arm == "average" else settings.alphas)
    return digits.record(tasks, arms)


def judge(rows: Sequence[Row]) -> list[Check]:
    """The four parts of the criterion on the fresh rows."""
    questions = [
        ("iso_c", "task_arithmetic", 8),
        ("iso_c", "task_arithmetic", 16),
        ("iso_cts", "iso_c", 16),
        ("iso_cts", "tsv", 16),
    ]
    return [
        Check.paired(
            f"{ARMS[ours]} is more accurate than {ARMS[other]} with {count} tasks",
            digits.accuracies(rows, ours, count),
            digits.accuracies(rows, other, count),
            low=0.0,
            unit="points",
        )
        for ours, other, count in questions
    ]


PANELS = (
    Panel(
        draw_accuracy,
        alt="Mean test accuracy of six ways of merging, with 8 and with 16 tasks.",
        caption="Mean test accuracy. Dots are seeds, bars their mean.",
    ),
    Panel(
        draw_scales,
        alt="The alpha that each method was judged at.",
        caption="The scale that validation chose.",
    ),
)


EXPERIMENT = digits.Experiment(
    slug="iso-merging",
    title=TITLE,
    claim=CLAIM,
    criterion=CRITERION,
    file=__file__,
    arms=ARMS,
    counts=COUNTS,
    cell=cell,
    presets=PRESETS,
    judge=judge,
    panels=PANELS,
)
run, figure = EXPERIMENT.run, EXPERIMENT.figure
