"""`spanwise list`, `show` and `cite`: the catalog, for people and for BibTeX."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from spanwise import __version__, catalog
from spanwise.cli._shared import Terminal, run_verb
from spanwise.io.configs import to_plain


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """List the methods of this library: claim, entry point and how the claim fared here."""

    family: str | None = None
    """Only the methods of one room, such as `optim`."""
    markdown: bool = False
    """Print the table as Markdown."""
    write: Path | None = None
    """Renew the table between the `<!-- methods -->` markers of this Markdown file."""


def list_methods(argv: list[str]) -> int:
    """`spanwise list`."""
    return run_verb(ListOptions, argv, _list, prog="spanwise list")


def _list(options: ListOptions, terminal: Terminal) -> None:
    families = sorted({card.family for card in catalog.METHODS})
    if options.family is not None and options.family not in families:
        raise ValueError(f"no method in {options.family!r}; families are {', '.join(families)}.")
    cards = [card for card in catalog.METHODS if options.family in (None, card.family)]
    if options.write is not None:
        text = catalog.write_table(options.write.read_text(encoding="utf-8"))
        options.write.write_text(text, encoding="utf-8")
        terminal.say(f"wrote the table of {len(catalog.METHODS)} methods into {options.write}")
    elif options.markdown:
        print(catalog.markdown_table(cards))
        return
    else:
        rows = [(c.slug, c.entries[0].replace(":", "."), c.verdict, c.claim) for c in cards]
        columns = ("method", "entry point", "here", "claim")
        terminal.table(columns, rows, left=columns)
        terminal.say("\nspanwise show METHOD  tells more;  spanwise reproduce METHOD  checks it.")
    terminal.result(cards)


@dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """Show one method: the claim, the paper, the entry points and the committed result."""

    method: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="METHOD")]
    """A slug from `spanwise list`."""


def show(argv: list[str]) -> int:
    """`spanwise show`."""
    return run_verb(ShowOptions, argv, _show, prog="spanwise show")


def _show(options: ShowOptions, terminal: Terminal) -> None:
    card = catalog.get(options.method)
    terminal.say(f"{card.slug}: {card.claim}\n")
    terminal.say(f"  paper      {card.title}")
    terminal.say(f"             {card.authors}, {card.year}, arXiv {card.arxiv}")
    for index, entry in enumerate(card.entries):
        module, _, name = entry.partition(":")
        terminal.say(f"  {'in Python' if index == 0 else '':<11}from {module} import {name}")
    terminal.say(f"  check it   spanwise reproduce {card.slug} --quick")
    terminal.say(f"  page       {card.docs}")
    terminal.say(f"  here       {card.verdict}{_headline(card)}")
    terminal.result(card)


def _headline(card: catalog.MethodCard) -> str:
    """The verdict's reason, where the repository's results are at hand."""
    path = Path(card.result)
    if not path.is_file():
        return ""
    try:
        verdict = json.loads(path.read_text(encoding="utf-8")).get("verdict", {})
    except ValueError:
        return ""
    reason = verdict.get("reason", "") if isinstance(verdict, dict) else ""
    return f": {reason} ({path})" if reason else f" ({path})"


@dataclass(frozen=True, kw_only=True)
class CiteOptions:
    """Print BibTeX: of the library, and of the papers of the methods that you name."""

    methods: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="METHOD")] = (
        field(default=())
    )
    """Slugs from `spanwise list`."""
    all: bool = False
    """Every method of the library."""


def cite(argv: list[str]) -> int:
    """`spanwise cite`."""
    return run_verb(CiteOptions, argv, _cite, prog="spanwise cite")


def _cite(options: CiteOptions, terminal: Terminal) -> None:
    cards = catalog.METHODS if options.all else tuple(map(catalog.get, options.methods))
    entries = [catalog.LIBRARY_BIBTEX.replace("VERSION", __version__), *(c.bibtex for c in cards)]
    if terminal.json:
        terminal.result(to_plain(entries))
    else:
        print("\n\n".join(entries))
