import base64
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.resources import files

import pytest

from spanwise.report import (
    Bullets,
    Code,
    Details,
    Facts,
    Figure,
    Grid,
    Heading,
    Index,
    Metric,
    Section,
    Table,
    Text,
    VerdictMark,
    arms_table,
    article,
    format_value,
    render_page,
    write_page,
)
from spanwise.report._blocks import DARK_CARD

VOID = {"meta", "img", "source", "br", "path", "circle"}
SVG = '<svg xmlns="http://www.w3.org/2000/svg"/>'
ADAPTIVE = SVG.replace("/>", "><style>@media (prefers-color-scheme:dark){a{b:c}}</style></svg>")


class Outline(HTMLParser):
    """Checks that every element closes, and gathers attributes."""

    def __init__(self, page):
        super().__init__()
        self.stack, self.tags, self.attributes = [], [], []
        self.feed(page)
        assert self.stack == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag


BLOCKS = [
    Text("Lead with `code` & <b>", lead=True),
    Text("One.\n\nTwo."),
    Bullets(["first", "second"]),
    Code("spanwise demo < in"),
    Facts({"name": "value"}),
    Table(["arm", "loss", "ok"], [["a", 2.5, True], ["b", None, False]], best=[0], caption="c"),
    Index([("here", "Here", "reproduced", "a sentence")]),
    Section(
        "Card",
        [
            VerdictMark("direction only", "because"),
            Grid([Figure(ADAPTIVE, "a line", "Caption"), Figure(b"\x89PNG", "dots")]),
            Heading("More"),
            Details("Open", [Text("inside")]),
        ],
        anchor="here",
        eyebrow="small",
    ),
]


def test_a_page_is_well_formed_and_loads_nothing():
    page = render_page("Title & <more>", BLOCKS, footer="end")
    outline = Outline(page)
    assert "script" not in outline.tags
    for name, value in outline.attributes:
        if name in ("src", "srcset"):
            assert value.startswith("data:image/")
        if name == "href":
            assert value.startswith("#")
    assert "@import" not in page
    assert "url(" not in page
    assert '<meta name="viewport" content="width=device-width' in page


def test_text_is_escaped_everywhere():
    evil = '<script>alert("x")</script>'
    blocks = [
        Text(evil),
        Bullets([evil]),
        Code(evil),
        Facts({evil: evil}),
        Table([evil], [[evil]], caption=evil),
        Section(evil, [VerdictMark("no verdict", evil)], anchor='"' + evil, eyebrow=evil),
        Details(evil, []),
        Figure(SVG, alt=evil, caption=evil),
        Index([(evil, evil, None, evil)]),
    ]
    assert "<script" not in render_page(evil, blocks, footer=evil)


def decoded(page):
    """The SVG images in a page."""
    return [base64.b64decode(x).decode() for x in re.findall(r"svg\+xml;base64,([\w+/=]+)", page)]


def test_a_figure_of_ours_has_a_version_for_dark_pages():
    page = Figure(ADAPTIVE, "a line").html()
    assert '<source media="(prefers-color-scheme: dark)" srcset="data:image/svg+xml;base64,' in page
    dark, light = decoded(page)
    assert "@media all{a{b:c}}" in dark
    assert "@media not all{a{b:c}}" in light


def test_a_saved_figure_s_dark_ground_is_that_of_the_card(tmp_path):
    pytest.importorskip("matplotlib")
    from spanwise import plots

    (path,) = plots.save(plots.figure()[0], tmp_path / "f.svg")
    dark, light = decoded(Figure.from_file(path, "empty axes").html())
    assert DARK_CARD in dark
    assert "@media all{" in dark
    assert "@media not all{" in light
    style = files("spanwise.report").joinpath("page.css").read_text("utf-8")
    assert f"--card: {DARK_CARD};" in style.partition("prefers-color-scheme: dark")[2]


def test_a_figure_is_read_from_svg_and_png_only(tmp_path):
    (tmp_path / "a.svg").write_text(SVG)
    assert "svg+xml" in Figure.from_file(tmp_path / "a.svg", "x").html()
    with pytest.raises(ValueError, match=r"\.svg or \.png"):
        Figure.from_file(tmp_path / "a.pdf", "x")


def test_a_row_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match="2 columns got a row of 1"):
        Table(["a", "b"], [["only"]])


@pytest.mark.bad_input
def test_an_unknown_outcome_is_refused():
    with pytest.raises(ValueError, match="outcome"):
        VerdictMark("perhaps")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (857_088, "B", "857 kB"),
        (2_654_208, "B", "2.65 MB"),
        (4.38e9, "B", "4.38 GB"),
        (12, "B", "12 B"),
        (2.18301, "", "2.183"),
        (300, "", "300"),
        (None, "", "—"),
        ("word", "B", "word"),
    ],
)
def test_numbers_are_written_for_people(value, unit, text):
    assert format_value(value, unit) == text


def test_writing_a_page_makes_the_folder(tmp_path):
    path = write_page(tmp_path / "deep" / "page.html", "Title", [Text("x")])
    assert path.read_text().startswith("<!doctype html>")


def test_the_card_of_a_result_shows_verdict_numbers_and_origin(result):
    page = article(result).html()
    for text in (
        "● reproduced", "857 kB", "2.210 ± 0.010", "0123456789ab",
        "fedcba987654, with edits", "abab", "spanwise reproduce demo-method", "torch 2.6",
        "A method &amp; its &lt;claim&gt;", "All 12 runs",
        "<dt>processor time</dt><dd>1 min 54 s</dd>",
    ):  # fmt: skip
        assert text in page, text


def test_only_a_run_that_diverged_is_said_to_have(make):
    rows = [
        {"arm": arm, "seed": seed, "loss": 2.0, "alpha": None}
        for arm in ("plain", "ours")
        for seed in (100, 101, 102)
    ]
    metrics = {"loss": Metric(label="loss", better="lower"), "alpha": Metric(label="scale")}
    missing = article(make(rows=tuple(rows), sweep=(), chosen={}, metrics=metrics)).html()
    assert "diverged" not in missing
    assert ">—</td>" in missing
    assert "—: there is no such number, or not of every run." in missing
    rows[0] = {**rows[0], "loss": None, "diverged": True}
    table = arms_table(make(rows=tuple(rows), sweep=(), chosen={}, metrics=metrics))
    assert [row[1] for row in table.rows] == ["diverged", "2"]
    page = article(make(rows=tuple(rows[:1]), sweep=(), chosen={}, metrics=metrics)).html()
    assert "diverged" in page
    assert "True" not in page


def test_the_best_arm_is_bold(result):
    assert re.search(r"<tr class=best><td>Plain</td>", article(result).html())


def test_a_result_outside_git_says_so(make):
    page = article(make(criterion_commit=None, commit=None)).html()
    assert "no commit vouches" in page
    assert "not in a git checkout" in page


def contrast(a, b):
    """Ratio of relative luminances, as WCAG 2.1 defines it."""

    def luminance(colour):
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_has_enough_contrast(dark):
    style = files("spanwise.report").joinpath("page.css").read_text("utf-8")
    light_part, _, dark_part = style.partition("@media (prefers-color-scheme: dark)")
    colour = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", dark_part if dark else light_part))
    for ground in ("paper", "card", "wash"):
        for text in ("ink", "soft", "accent"):
            assert contrast(colour[text], colour[ground]) >= 4.5, (text, ground)
    for kind in ("good", "half", "bad", "none"):
        assert contrast(colour[kind], colour[f"{kind}-wash"]) >= 4.5, kind
        assert contrast(colour[kind], colour["card"]) >= 4.5, kind


def test_the_report_loads_neither_torch_nor_matplotlib():
    code = (
        "import sys, spanwise.report as r; r.build_gallery, r.run_cells, r.Result; "
        "sys.exit(' '.join({'torch', 'matplotlib', 'transformers'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.returncode == 0
