"""The blocks of a page: small values with an `html()`.

Text given to a block is escaped, and text between backticks is set as code.
"""

import base64
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from spanwise.plots._style import ON_DARK, PAPER
from spanwise.report._verdict import OUTCOMES, Outcome

MARKS: dict[str, tuple[str, str]] = {
    "reproduced": ("good", "●"),
    "direction only": ("half", "◐"),
    "not reproduced": ("bad", "○"),
    "no verdict": ("none", "—"),
}
"""Outcome -> CSS class and a sign, so that colour is never the only difference."""


DARK_CARD = "#1a1d22"
"""Ground of a card on a dark page, as in page.css: the ground of pictures there."""
_DARK_RULE = "@media (prefers-color-scheme:dark)"


@runtime_checkable
class Block(Protocol):
    """A part of a page."""

    def html(self) -> str:
        """The part as HTML."""
        ...


@dataclass(frozen=True)
class Text:
    """A paragraph; `lead` sets it larger."""

    text: str
    lead: bool = False

    def html(self) -> str:
        """The paragraph."""
        return f'<p class="lead">{inline(self.text)}</p>' if self.lead else _p(self.text)


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    items: Sequence[str]

    def html(self) -> str:
        """The list; nothing without items."""
        items = "".join(f"<li>{inline(item)}</li>" for item in self.items)
        return f"<ul>{items}</ul>" if items else ""


@dataclass(frozen=True)
class Code:
    """Lines to read or to copy, as they are."""

    text: str

    def html(self) -> str:
        """The lines."""
        return f"<pre>{html.escape(self.text.rstrip())}</pre>"


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    items: Mapping[str, object]

    def html(self) -> str:
        """A definition list."""
        rows = (
            f"<dt>{inline(str(k))}</dt><dd>{inline(str(v))}</dd>" for k, v in self.items.items()
        )
        return f"<dl>{''.join(rows)}</dl>"


@dataclass(frozen=True)
class Table:
    """A table; it scrolls by itself where the screen is too narrow."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    """Cells; True and False are shown as signs, None as a dash."""
    caption: str = ""
    best: Sequence[int] = ()
    """Rows to set in bold."""
    words: Sequence[int] = (0,)
    """Columns that hold words and are aligned to the left."""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"a table of {len(self.columns)} columns got a row of {len(row)}: {row!r}."
                )

    def html(self) -> str:
        """The table."""
        kind = ["" if i in self.words else ' class="number"' for i in range(len(self.columns))]
        head = "".join(
            f"<th scope=col{k}>{inline(c)}</th>" for c, k in zip(self.columns, kind, strict=True)
        )
        body = "".join(
            f"<tr{' class=best' if i in self.best else ''}>"
            + "".join(_cell(value, k) for value, k in zip(row, kind, strict=True))
            + "</tr>"
            for i, row in enumerate(self.rows)
        )
        # Outside the table, so that it wraps instead of scrolling away.
        caption = f'<p class="caption">{inline(self.caption)}</p>' if self.caption else ""
        return (
            f'{caption}<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )


@dataclass(frozen=True)
class Figure:
    """A picture inside the page.

    An SVG of `spanwise.plots` follows the reader's colour scheme; other pictures stay as they are.
    """

    image: str | bytes
    """SVG text, or PNG bytes."""
    alt: str
    """What it shows, for those who cannot see it."""
    caption: str = ""

    @classmethod
    def from_file(cls, path: str | Path, alt: str, caption: str = "") -> "Figure":
        """A figure from an .svg or .png file.

        Raises:
            ValueError: If the file is of another kind.
        """
        path = Path(path)
        if path.suffix not in (".svg", ".png"):
            raise ValueError(f"a figure must be .svg or .png, got {path.name}.")
        return cls(
            path.read_text("utf-8") if path.suffix == ".svg" else path.read_bytes(), alt, caption
        )

    def html(self) -> str:
        """The picture as a data URI."""
        alt = html.escape(self.alt)
        if isinstance(self.image, str) and _DARK_RULE in self.image:
            # Some browsers ignore the rule inside an image, none ignores it in the page.
            light = self.image.replace(_DARK_RULE, "@media not all")
            dark = self.image.replace(_DARK_RULE, "@media all").replace(ON_DARK[PAPER], DARK_CARD)
            media = '<source media="(prefers-color-scheme: dark)"'
            image = (
                f'<picture>{media} srcset="{_data_uri(dark)}">'
                f'<img src="{_data_uri(light)}" alt="{alt}"></picture>'
            )
        else:
            image = f'<img src="{_data_uri(self.image)}" alt="{alt}">'
        caption = f"<figcaption>{inline(self.caption)}</figcaption>" if self.caption else ""
        return f"<figure>{image}{caption}</figure>"


@dataclass(frozen=True)
class VerdictMark:
    """An outcome as a coloured word with its sign, and the reason beside it."""

    outcome: Outcome
    reason: str = ""

    def __post_init__(self) -> None:
        if self.outcome not in OUTCOMES:
            raise ValueError(f"outcome must be one of {', '.join(OUTCOMES)}; got {self.outcome!r}.")

    @property
    def pill(self) -> str:
        """The word alone."""
        kind, sign = MARKS[self.outcome]
        return f'<em class="pill {kind}">{sign} {self.outcome}</em>'

    def html(self) -> str:
        """Word and reason."""
        return f'<div class="verdict">{self.pill}<span>{inline(self.reason)}</span></div>'


@dataclass(frozen=True)
class Grid:
    """Blocks side by side where there is room, one below the other on a phone."""

    blocks: Sequence[Block]

    def html(self) -> str:
        """The grid."""
        return f'<div class="grid">{join_blocks(self.blocks)}</div>'


@dataclass(frozen=True)
class Details:
    """Blocks that open on a click."""

    summary: str
    blocks: Sequence[Block]

    def html(self) -> str:
        """The closed part."""
        summary = f"<summary>{inline(self.summary)}</summary>"
        return f"<details>{summary}{join_blocks(self.blocks)}</details>"


@dataclass(frozen=True)
class Section:
    """A card with a headline; `anchor` is what links point to."""

    title: str
    blocks: Sequence[Block]
    anchor: str = ""
    eyebrow: str = ""

    def html(self) -> str:
        """The card."""
        anchor = f' id="{html.escape(self.anchor)}"' if self.anchor else ""
        above = f'<p class="eyebrow">{inline(self.eyebrow)}</p>' if self.eyebrow else ""
        title = f"<h2>{inline(self.title)}</h2>"
        return f"<section{anchor}>{above}{title}{join_blocks(self.blocks)}</section>"


@dataclass(frozen=True)
class Heading:
    """A small headline inside a card."""

    text: str

    def html(self) -> str:
        """The headline."""
        return f"<h3>{inline(self.text)}</h3>"


@dataclass(frozen=True)
class Index:
    """Links to the cards of a page: (anchor, title, outcome or None, sentence)."""

    items: Sequence[tuple[str, str, Outcome | None, str]]

    def html(self) -> str:
        """The list."""
        rows = (
            f'<li><a href="#{html.escape(anchor)}">{inline(title)}</a>'
            f"{VerdictMark(outcome).pill if outcome else ''}<span>{inline(text)}</span></li>"
            for anchor, title, outcome, text in self.items
        )
        return f'<ul class="index">{"".join(rows)}</ul>'


def inline(text: str) -> str:
    """Escaped text; what stands between backticks becomes code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def format_value(value: object, unit: str = "") -> str:
    """A number for people: bytes as kB, MB or GB, others on four digits; None is a dash.

    Example:
        >>> format_value(2654208, "B"), format_value(2.18301), format_value(None)
        ('2.65 MB', '2.183', '—')
    """
    if value is None:
        return "—"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if unit == "B":
        for size, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
            if abs(value) >= size:
                return f"{value / size:.3g} {name}"
        return f"{value:g} B"
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def _cell(value: object, kind: str) -> str:
    if isinstance(value, bool):
        return f"<td class={'yes' if value else 'no'}>{'✓ yes' if value else '✗ no'}</td>"
    return f"<td{kind}>{inline(format_value(value))}</td>"


def _p(text: str) -> str:
    return "".join(f"<p>{inline(part)}</p>" for part in re.split(r"\n\s*\n", text.strip()))


def join_blocks(blocks: Sequence[Block]) -> str:
    """The HTML of several blocks."""
    return "\n".join(block.html() for block in blocks)


def _data_uri(image: str | bytes) -> str:
    kind, data = ("svg+xml", image.encode()) if isinstance(image, str) else ("png", image)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
