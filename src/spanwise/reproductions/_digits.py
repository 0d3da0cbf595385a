"""What experiments on merging share: settings, cells by seed, rows by arm, and the run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from spanwise.report import Check, Metric, Panel, Result, Row, run_cells
from spanwise.reproductions._conclusion import conclude
from spanwise.reproductions._digits_tasks import Setup, Tasks, digest, load_digits
from spanwise.reproductions._experiment import Run, Runner, experiment

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METHOD = {"average": "linear"}
"""The method of an arm, where it has another name."""

METRICS = {
    "accuracy": Metric(label="accuracy", unit="%", better="higher"),
    "normalised": Metric(label="share of the fine-tunes' own", unit="%", better="higher"),
    "worst": Metric(label="worst task", unit="%", better="higher"),
    "alpha": Metric(label="alpha"),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What these experiments have in common."""

    steps: int = 300
    """Steps of the base's training and of each fine-tuning."""
    width: int = 256
    """Width of the hidden layers."""
    density: float = 0.2
    """Share of the entries that TIES keeps."""
    alphas: tuple[float, ...] = (0.01, 0.02, 0.03, 0.05, 0.07, *(i / 10 for i in range(1, 31)))
    """Grid of scales, common to all arms that have one."""
    seeds: tuple[int, ...] = (100, 101, 102, 103, 104)
    """Seeds that judge: split, networks and batches."""


def tasks_of(cell: Mapping[str, Any], settings: Settings) -> Tasks:
    """The fine-tunes of a cell.

    Raises:
        ValueError: If the images are not those that the experiment was begun with.
    """
    if (found := digest()) != cell["data"]:
        raise ValueError(f"the digits have changed: {found}, not {cell['data']}.")
    setup = Setup(tasks=cell["tasks"], steps=settings.steps, width=settings.width)
    return Tasks(setup, cell["seed"])


def record(tasks: Tasks, arms: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What a cell returns."""
    single = sum(tasks.single) / len(tasks.single)
    return {"arms": dict(arms), "single": single, "base": tasks.scores(tasks.base)["accuracy"]}


def arm_name(arm: str, count: int) -> str:
    """The arm of a method with so many tasks."""
    return f"{arm}-{count}"


def accuracies(rows: Sequence[Row], arm: str, count: int) -> dict[int, float | None]:
    """Seed -> mean accuracy of an arm."""
    return {row["seed"]: row["accuracy"] for row in rows if row["arm"] == arm_name(arm, count)}


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One paper's question to the digits: its arms, what must be true of them, its pictures."""

    slug: str
    title: str
    claim: str
    criterion: str
    file: str
    """The module's file, whose history dates the criterion."""
    arms: Mapping[str, str]
    """Arms that `cell` fills, and what people read."""
    counts: Sequence[int]
    """Numbers of tasks."""
    cell: Callable[[dict[str, Any]], dict[str, Any]]
    """One seed with one number of tasks: see `record`."""
    presets: Mapping[str, Settings]
    judge: Callable[[Sequence[Row]], list[Check]]
    """The parts of the criterion, from the rows."""
    panels: tuple[Panel, ...]
    metrics: Mapping[str, Metric] | None = None
    """What is shown; by default accuracy in three forms, and alpha."""
    notes: tuple[str, ...] = ()
    """What the numbers alone do not say."""

    @property
    def run(self) -> Runner[Settings]:
        """Fine-tune, merge, test, and say what follows."""
        return experiment(self.presets)(self._run)

    def _run(self, this: Run[Settings]) -> Result:
        s = this.settings
        own = {f.name: getattr(s, f.name) for f in fields(s) if f.name != "seeds"}
        cells = [
            {"tasks": count, "seed": seed, "settings": own, "data": digest()}
            for count in self.counts
            for seed in s.seeds
        ]
        records = run_cells(self.cell, cells, **this.where)
        rows = tuple(
            {"arm": arm_name(arm, found["tasks"]), "seed": found["seed"], **scores}
            for found, done in zip(cells, records, strict=True)
            for arm, scores in done["arms"].items()
        )
        several = len(self.counts) > 1
        return conclude(
            this,
            slug=self.slug,
            title=self.title,
            claim=self.claim,
            criterion=self.criterion,
            file=self.file,
            data={"name": "digits", "digest": digest(), "images": len(load_digits())},
            metrics=self.metrics or METRICS,
            arms={
                arm_name(arm, count): f"{label}, {count} tasks" if several else label
                for count in self.counts
                for arm, label in self.arms.items()
            },
            rows=rows,
            checks=self.judge(rows),
            notes=(*self._notes(cells, records, s), *self.notes),
            processes=records,
        )

    def figure(self, result: Result, axes: "Sequence[Axes]") -> None:
        """Draw the panels on axes of your own."""
        for ax, panel in zip(axes, self.panels, strict=True):
            panel.draw(ax, result)

    def _notes(
        self, cells: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]], s: Settings
    ) -> list[str]:
        found: list[str] = []
        for count in self.counts:
            chosen = [r for c, r in zip(cells, records, strict=True) if c["tasks"] == count]
            single, base = (sum(r[key] for r in chosen) / len(chosen) for key in ("single", "base"))
            found.append(
                f"With {count} tasks the base names {base:.1f} % of the test images rightly, each "
                f"fine-tune {single:.1f} % of its own task's."
            )
        ends = (min(s.alphas), max(s.alphas))
        edge = [
            label
            for arm, label in self.arms.items()
            if any(done["arms"][arm].get("alpha") in ends for done in records)
        ]
        if edge:
            found.append(f"Some seed's best alpha lies on the edge of the grid: {', '.join(edge)}.")
        found.append(
            "What validation images chose, no test image did. The head is frozen, so that tasks "
            "differ in the three hidden layers."
        )
        return found
