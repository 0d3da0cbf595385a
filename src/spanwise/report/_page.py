"""A page that people look at: one HTML file, nothing loaded from anywhere, no script."""

import html
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from spanwise.io import write_bytes
from spanwise.report._blocks import Block, inline, join_blocks

LOGO = (
    '<svg viewBox="0 0 24 24" fill="none" aria-hidden="true">'
    '<path d="M2 17 9 9h13l-7 8z" fill="currentColor" opacity=".16"/>'
    '<path d="M9 14.5 17 11" stroke="currentColor" stroke-width="1.8" stroke-linecap="round"/>'
    '<path d="M9 14.5 11 3" stroke="var(--accent)" stroke-width="1.8" stroke-linecap="round"/>'
    '<circle cx="9" cy="14.5" r="1.7" fill="currentColor"/></svg>'
)
"""A vector in a plane, and one that keeps out of it."""


def render_page(title: str, blocks: Sequence[Block], *, footer: str = "") -> str:
    """A whole HTML document.

    Args:
        title: Headline and window title.
        blocks: What is on the page, in order.
        footer: A line at the end.
    """
    style = files("spanwise.report").joinpath("page.css").read_text("utf-8")
    end = f"<footer>{inline(footer)}</footer>" if footer else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f'<div class="top"><span>{LOGO}spanwise</span></div>\n<main>\n<h1>{inline(title)}</h1>\n'
        f"{join_blocks(blocks)}\n{end}\n</main>\n</body>\n</html>\n"
    )


def write_page(path: str | Path, title: str, blocks: Sequence[Block], *, footer: str = "") -> Path:
    """Write `render_page` to a file, whole or not at all, and return its path.

    Example:
        >>> blocks = [Text("What we saw.", lead=True), Table(["arm", "loss"], [["AdamW", 2.18]])]
        >>> write_page("page.html", "A run", blocks)  # doctest: +SKIP
    """
    path = Path(path)
    page = render_page(title, blocks, footer=footer)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, page.encode())
    return path
