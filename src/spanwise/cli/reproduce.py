"""`spanwise reproduce`: run a paper's claim at laptop scale and say what follows."""

import dataclasses
import inspect
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from spanwise.cli._shared import Interrupted, Terminal, run_verb

if TYPE_CHECKING:
    from types import ModuleType

    from spanwise.report import Figure, Result


@dataclass(frozen=True, kw_only=True)
class ReproduceOptions:
    """Run a paper's claim at laptop scale: sweep every arm alike, judge on fresh seeds.

    Writes SLUG.json, SLUG.svg and SLUG.html. Finished runs are kept: the same command goes on
    where it was interrupted. The experiment's own settings, such as --seeds, are flags as well:
    see spanwise reproduce SLUG --help.
    """

    slug: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SLUG")]
    """The experiment: a method's name in `spanwise list`."""
    quick: bool = False
    """A few steps, to see it work; gives no verdict."""
    full: bool = False
    """More seeds, for a verdict with narrower intervals."""
    out: Path = Path("runs")
    """Folder for a folder of this run."""
    workers: int | None = None
    """Processes at once, of one thread each; by default one for each core."""

    def __post_init__(self) -> None:
        if self.quick and self.full:
            raise ValueError("--quick and --full exclude each other; name one.")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}.")

    @property
    def preset(self) -> str:
        """Which of the experiment's sizes."""
        return "quick" if self.quick else "full" if self.full else "default"


def main(argv: list[str]) -> int:
    """`spanwise reproduce`."""
    from spanwise import reproductions

    # The experiment's own settings are flags too, so it must be known before parsing.
    slug = next((word for word in argv if word in reproductions.slugs()), None)
    if slug is None:
        return run_verb(ReproduceOptions, argv, _unknown, prog="spanwise reproduce")
    experiment = reproductions.load(slug)
    preset = "quick" if "--quick" in argv else "full" if "--full" in argv else "default"
    settings = experiment.PRESETS[preset]
    flat: Any = Annotated[experiment.Settings, tyro.conf.arg(name="")]
    options = dataclasses.make_dataclass(
        "Options",
        [("settings", flat, settings)],
        bases=(ReproduceOptions,),
        frozen=True,
        kw_only=True,
    )
    return run_verb(
        options,
        argv,
        lambda parsed, terminal: _reproduce(experiment, parsed, argv, terminal),
        prog="spanwise reproduce",
        description=f"{inspect.getdoc(ReproduceOptions)}\n\n{experiment.TITLE}. {experiment.CLAIM}",
    )


def _unknown(options: ReproduceOptions, terminal: Terminal) -> None:
    from spanwise import reproductions

    reproductions.load(options.slug)


def _reproduce(experiment: "ModuleType", options: Any, argv: list[str], terminal: Terminal) -> None:
    from spanwise.io.runs import RunFolder
    from spanwise.report import CellError, article, draw_panels, save_panels, write_page

    name = options.slug if options.preset == "default" else f"{options.slug}-{options.preset}"
    settings = options.settings
    terminal.say(f"{experiment.TITLE}\n\nCriterion, fixed before the run:\n{experiment.CRITERION}")
    with RunFolder(options.out / name, resume=True) as folder:
        folder.write_config(options)
        folder.write_manifest(seeds=settings.seeds)
        line = ProgressLine(terminal)
        try:
            result = experiment.run(
                settings,
                preset=options.preset,
                workers=options.workers,
                cache=options.out / "cells",  # experiments share arms: each trains once
                progress=line,
            )
        except KeyboardInterrupt as stop:
            raise Interrupted(f"spanwise reproduce {shlex.join(argv)}") from stop
        except CellError as error:
            if not error.reason:
                raise
            raise ValueError(f"a run of {options.slug} stopped: {error.reason}") from error
        file = result.save(folder / f"{options.slug}.json")
        figures: list[Figure] = []
        try:
            figures = draw_panels(experiment.PANELS, result)
            save_panels(experiment.PANELS, result, file.with_suffix(".svg"))
        except ModuleNotFoundError as error:
            terminal.say(f"no figure: {error}")
        page = write_page(file.with_suffix(".html"), experiment.TITLE, [article(result, figures)])
        folder.event({"event": "verdict", "outcome": result.verdict.outcome})
    _show(result, terminal)
    terminal.say(f"\nresult: {file}\npage:   {page}")
    terminal.say(f"all results on one page: spanwise report {options.out}")
    terminal.result(result.to_dict())


def _show(result: "Result", terminal: Terminal) -> None:
    """The two tables and the verdict."""
    from spanwise.report import arms_table, checks_table

    arms, checks = arms_table(result), checks_table(result)
    terminal.table(arms.columns, arms.rows, title="On fresh seeds:")
    terminal.say()
    holds = [[*row[:-1], "yes" if row[-1] else "no"] for row in checks.rows]
    terminal.table(checks.columns, holds, left=checks.columns, title="Criterion:")
    for note in result.notes:
        terminal.say(f"note: {note}")
    terminal.say(f"\nVerdict: {result.verdict.outcome}. {result.verdict.reason}")


class ProgressLine:
    """Tells a terminal how many cells are done; one line in ten where nobody watches."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal
        self._shown = -1

    def __call__(self, *, done: int, total: int, reused: int, seconds: float) -> None:
        """Show it, if there is news."""
        if not self.terminal.interactive and (done == self._shown or (done % 5 and done < total)):
            return
        self._shown = done
        text = f"{done}/{total} runs"
        if reused:
            text += f", {reused} from before"
        ran = done - reused
        if ran and done < total:
            left = seconds / ran * (total - done)
            text += (
                f", about {left / 60:.0f} min left" if left > 90 else f", about {left:.0f} s left"
            )
        self.terminal.live(text)
