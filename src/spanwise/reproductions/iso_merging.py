"""Isotropic merging: equal singular values, common and task-specific subspaces."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spanwise.merging import merge
from spanwise.report import Check, Metric, Panel, Progress, Result, Row, run_cells
from spanwise.reproductions._conclusion import conclude
from spanwise.reproductions._digits_figures import draw_accuracy, draw_scales
from spanwise.reproductions._digits_tasks import Setup, Tasks, digest, load_digits

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
METRICS = {
    "accuracy": Metric(label="accuracy", unit="%", better="higher"),
    "normalised": Metric(label="share of the fine-tunes' own", unit="%", better="higher"),
    "worst": Metric(label="worst task", unit="%", better="higher"),
    "alpha": Metric(label="alpha"),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The experiment; the defaults are the committed run."""

    steps: int = 300
    """Steps of the base's training and of each fine-tuning."""
    width: int = 256
    """Width of the hidden layers."""
    common_fraction: float = 0.8
    """Share of the directions that Iso-CTS leaves to what tasks have in common."""
    density: float = 0.2
    """Share of the entries that TIES keeps."""
    alphas: tuple[float, ...] = (0.01, 0.02, 0.03, 0.05, 0.07, *(i / 10 for i in range(1, 31)))
    """Grid of scales, common to all arms."""
    seeds: tuple[int, ...] = (100, 101, 102, 103, 104)
    """Seeds that judge: split, networks and batches."""


PRESETS = {
    "quick": replace(Settings(), steps=20, width=32, alphas=(0.1, 0.3, 1.0), seeds=(100,)),
    "default": Settings(),
    "full": replace(Settings(), seeds=tuple(range(100, 120))),
}


def arm_name(arm: str, count: int) -> str:
    """The arm of a method with so many tasks."""
    return f"{arm}-{count}"


def cell(cell: Mapping[str, Any]) -> dict[str, Any]:
    """Every method on one seed's fine-tunes, in its own process."""
    settings = Settings(**cell["settings"])
    if (found := digest()) != cell["data"]:
        raise ValueError(f"the digits have changed: {found}, not {cell['data']}.")
    setup = Setup(tasks=cell["tasks"], steps=settings.steps, width=settings.width)
    tasks = Tasks(setup, cell["seed"])
    options: dict[str, dict[str, Any]] = {
        "ties": {"density": settings.density},
        "iso_cts": {"common_fraction": settings.common_fraction},
    }
    arms: dict[str, dict[str, Any]] = {"average": tasks.scores(merge(None, tasks.tuned, "linear"))}
    for arm in ARMS:
        if arm in arms:
            continue
        merged = merge(tasks.base, tasks.tuned, arm, **options.get(arm, {}))
        alpha = tasks.best_alpha(merged, settings.alphas)
        arms[arm] = {**tasks.scores(merged.at(alpha)), "alpha": alpha}
    return {
        "arms": arms,
        "single": tasks.single,
        "base": tasks.scores(tasks.base),
    }


def run(
    settings: Settings | None = None,
    *,
    preset: str = "default",
    workers: int | None = None,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> Result:
    """Fine-tune, merge, test, and say what follows.

    Args:
        settings: The experiment; by default that of `preset`.
        preset: The name that the result carries.
        workers: Processes at once; by default one for each core.
        cache: Folder of finished cells.
        progress: Told how far it is.
    """
    start = time.perf_counter()
    s = settings or PRESETS[preset]
    own = {f.name: getattr(s, f.name) for f in fields(Settings) if f.name != "seeds"}
    cells = [
        {"tasks": count, "seed": seed, "settings": own, "data": digest()}
        for count in COUNTS
        for seed in s.seeds
    ]
    records = run_cells(cell, cells, workers, cache=cache, progress=progress)
    rows = tuple(
        {"arm": arm_name(arm, found["tasks"]), "seed": found["seed"], **scores}
        for found, record in zip(cells, records, strict=True)
        for arm, scores in record["arms"].items()
    )
    return conclude(
        slug="iso-merging",
        title=TITLE,
        claim=CLAIM,
        criterion=CRITERION,
        file=__file__,
        preset=preset,
        settings=asdict(s),
        data={"name": "digits", "digest": digest(), "images": len(load_digits())},
        metrics=METRICS,
        arms={arm_name(a, c): f"{label}, {c} tasks" for c in COUNTS for a, label in ARMS.items()},
        rows=rows,
        checks=judge(rows),
        notes=notes(cells, records, s),
        wall_seconds=time.perf_counter() - start,
        processes=records,
    )


def accuracies(rows: Sequence[Row], arm: str, count: int) -> dict[int, float | None]:
    """Seed -> mean accuracy of an arm."""
    return {row["seed"]: row["accuracy"] for row in rows if row["arm"] == arm_name(arm, count)}


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
            accuracies(rows, ours, count),
            accuracies(rows, other, count),
            low=0.0,
            unit="points",
        )
        for ours, other, count in questions
    ]


def notes(
    cells: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]], s: Settings
) -> tuple[str, ...]:
    """What the numbers alone do not say."""
    found = []
    for count in COUNTS:
        chosen = [r for c, r in zip(cells, records, strict=True) if c["tasks"] == count]
        single = sum(sum(r["single"]) / len(r["single"]) for r in chosen) / len(chosen)
        base = sum(r["base"]["accuracy"] for r in chosen) / len(chosen)
        found.append(
            f"With {count} tasks the base names {base:.1f} % of the test images rightly, each "
            f"fine-tune {single:.1f} % of its own task's."
        )
    edge = sorted(
        arm
        for arm in ARMS
        if any(r["arms"][arm].get("alpha") in (s.alphas[0], s.alphas[-1]) for r in records)
    )
    if edge:
        found.append(
            f"The best alpha lies on the edge of the grid on some seed for: "
            f"{', '.join(ARMS[arm] for arm in edge)}."
        )
    return (
        *found,
        "Alpha was chosen on validation images of the same seed, as the paper does; no test image "
        "chose anything. The head is frozen, so that tasks differ in the three hidden layers.",
    )


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


def figure(result: Result, axes: Sequence["Axes"]) -> None:
    """Draw both panels on two axes of your own."""
    for ax, panel in zip(axes, PANELS, strict=True):
        panel.draw(ax, result)
