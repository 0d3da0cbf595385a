"""Hooks of the site: tables from the code, committed results, and equations as MathML.

Browsers draw MathML themselves, so the site loads no script from anywhere else.
"""

import html
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]


def on_files(files, config):
    """Make results/ part of the site, so that pages and repository show the same figures."""
    for path in sorted((ROOT / "results").glob("*")):
        if path.suffix in (".svg", ".png", ".json", ".html"):
            uri = f"results/{path.name}"
            files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Fill the tables in, and point links to ../results at the site's copy."""
    from spanwise import catalog, cli

    depth = page.file.src_uri.count("/")
    up = "../" * depth
    if "<!-- methods -->" in markdown:
        table = catalog.markdown_table(root=up).replace(f"({up}docs/", f"({up}")
        markdown = re.sub(
            r"<!-- methods -->.*<!-- /methods -->", lambda _: table, markdown, flags=re.DOTALL
        )
    if "<!-- verbs -->" in markdown:
        rows = "\n".join(f"| `{verb}` | {line} |" for verb, (_, line) in cli.VERBS.items())
        markdown = re.sub(
            r"<!-- verbs -->\n<!-- /verbs -->", lambda _: rows, markdown, flags=re.DOTALL
        )
    if "<!-- merging -->" in markdown:
        markdown = re.sub(
            r"<!-- merging -->\n<!-- /merging -->",
            lambda _: _merging_methods(),
            markdown,
            flags=re.DOTALL,
        )
    return markdown.replace(f"]({up}../results/", f"]({up}results/")


def _merging_methods():
    from spanwise.cli.merge import first_line
    from spanwise.merging import METHODS

    rows = ["| `--method` | does | paper |", "| --- | --- | --- |"]
    for name, kind in METHODS.items():
        link = f"[link]({kind.reference})" if kind.reference else ""
        rows.append(f"| `{name}` | {first_line(kind)} | {link} |")
    return "\n".join(rows)


def on_page_content(content, page, config, files):
    """Equations as MathML."""

    def mathml(match, display):
        # `aligned` is what GitHub and KaTeX know, `align*` what the converter knows.
        latex = html.unescape(match[1])
        found = convert(latex.replace("{aligned}", "{align*}"), display=display)
        return (
            found.replace("<math ", '<math class="aligned" ', 1) if "{aligned}" in latex else found
        )

    content = re.sub(
        r'<span class="arithmatex">\\\((.*?)\\\)</span>',
        lambda match: mathml(match, "inline"),
        content,
        flags=re.DOTALL,
    )
    return re.sub(
        r'<div class="arithmatex">\\\[(.*?)\\\]</div>',
        lambda match: mathml(match, "block"),
        content,
        flags=re.DOTALL,
    )
