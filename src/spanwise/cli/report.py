"""`spanwise report`: one page about a folder of results."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from spanwise.cli._shared import Terminal, run_verb

if TYPE_CHECKING:
    from spanwise.report import Figure, Result


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Build one self-contained page about every result in a folder.

    Results of one experiment are put side by side only if their data and settings are equal.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    """Folder of results, searched at any depth."""
    out: Path | None = None
    """The page; by default index.html in the folder."""
    title: str | None = None
    """Headline of the page."""


def main(argv: list[str]) -> int:
    """`spanwise report`."""
    return run_verb(ReportOptions, argv, _report, prog="spanwise report")


def _report(options: ReportOptions, terminal: Terminal) -> None:
    from spanwise.report import build_gallery

    page = build_gallery(options.folder, options.out, figures=figures, title=options.title)
    terminal.say(f"page: {page} ({page.stat().st_size / 1e3:.0f} kB, open it in a browser)")
    terminal.result({"page": page})


def figures(result: "Result", path: Path) -> "list[Figure]":
    """A result's panels for light and dark; its saved picture if they cannot be drawn here."""
    from spanwise import reproductions
    from spanwise.report import draw_panels, saved_figure

    if result.slug in reproductions.slugs():
        try:
            return draw_panels(reproductions.load(result.slug).PANELS, result)
        except ModuleNotFoundError as error:
            # The page is worth having without matplotlib, or what the experiment itself needs.
            if (error.name or "").startswith("spanwise"):
                raise
    return saved_figure(result, path)
