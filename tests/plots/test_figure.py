"""Figures change nothing global, appear whole, and read on light and on dark pages."""

import itertools
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from spanwise import plots
from spanwise.plots._style import INK, LINE, ON_DARK, PAPER, SOFT

matplotlib = pytest.importorskip("matplotlib")

# Machado, Oliveira and Fernandes 2009, severity 1; on linear RGB.
EYES = {
    "normal": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
               [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
               [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
               [0.004733, 0.691367, 0.303900]],
}  # fmt: skip


def linear(colour):
    rgb = np.array(matplotlib.colors.to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def contrast(a, b):
    high, low = sorted((linear(c) @ [0.2126, 0.7152, 0.0722] + 0.05 for c in (a, b)), reverse=True)
    return high / low


def oklab(rgb):
    cone = np.array([
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ])  # fmt: skip
    opponent = np.array([
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ])  # fmt: skip
    return opponent @ np.cbrt(cone @ np.clip(rgb, 0, 1))


@pytest.fixture
def drawn():
    fig, ax = plots.figure(width=3, height=2)
    ax.plot([0, 1], [1, 0], label="a")
    ax.plot([0, 1], [0, 1], "k--", label="b")
    ax.set_title("A title")
    ax.annotate("a word", (0.5, 0.5))
    ax.legend()
    return fig


@pytest.mark.parametrize("ground", ["#ffffff", ON_DARK[PAPER]])
def test_every_colour_stands_out_from_the_ground(ground):
    assert min(contrast(colour, ground) for colour in plots.PALETTE) > 3


@pytest.mark.parametrize("eye", EYES)
def test_colours_are_told_apart_by_all_eyes(eye):
    seen = [oklab(np.array(EYES[eye]) @ linear(colour)) for colour in plots.PALETTE]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 0.095


def test_text_stands_out_on_light_and_on_dark():
    for text in (INK, SOFT):
        assert contrast(text, PAPER) > 4.5
        assert contrast(ON_DARK[text], ON_DARK[PAPER]) > 4.5


def test_importing_plots_loads_neither_matplotlib_nor_torch():
    code = "import sys, spanwise.plots; assert not {'matplotlib', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_matplotlib_the_error_holds_the_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'spanwise\[plots\]'"):
        plots.figure()


def test_figures_change_nothing_global(tmp_path, drawn):
    before = dict(matplotlib.rcParams)
    plots.save(drawn, tmp_path / "x")
    assert dict(matplotlib.rcParams) == before
    code = "import sys; from spanwise import plots; plots.figure(); "
    code += "assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_one_pair_of_axes_or_an_array():
    fig, ax = plots.figure()
    assert fig.axes == [ax]
    fig, axes = plots.figure(2, 3, width=6, height=4, sharey=True)
    assert axes.shape == (2, 3)
    assert tuple(fig.get_size_inches()) == (6, 4)
    assert plots.figure(1, 2)[0].get_size_inches()[0] == 8


@pytest.mark.parametrize("options", [{"rows": 0}, {"columns": -1}, {"width": 0}, {"height": -2.0}])
def test_sizes_must_be_positive(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be positive"):
        plots.figure(**options)


def test_without_a_suffix_both_files_are_written(tmp_path, drawn):
    files = plots.save(drawn, tmp_path / "new" / "lr-0.001")
    assert [file.name for file in files] == ["lr-0.001.svg", "lr-0.001.png"]
    assert files[1].read_bytes().startswith(b"\x89PNG")
    assert ElementTree.fromstring(files[0].read_bytes()).tag.endswith("svg")
    assert sorted(p.name for p in files[0].parent.iterdir()) == ["lr-0.001.png", "lr-0.001.svg"]


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_a_suffix_chooses_one_file(tmp_path, drawn, suffix):
    assert plots.save(drawn, str(tmp_path / f"x{suffix}")) == [tmp_path / f"x{suffix}"]
    assert [p.name for p in tmp_path.iterdir()] == [f"x{suffix}"]


def test_other_formats_are_refused(tmp_path, drawn):
    with pytest.raises(ValueError, match=r"\.svg or \.png, got 'x\.pdf'"):
        plots.save(drawn, tmp_path / "x.pdf")
    assert list(tmp_path.iterdir()) == []


def test_equal_figures_give_equal_files(tmp_path):
    def draw(name):
        fig, ax = plots.figure(width=3, height=2)
        ax.fill_between([0, 1], [1, 2])
        plots.heatmap(ax, [[1.0, 2.0]], ["r"], ["a", "b"])
        return [file.read_bytes() for file in plots.save(fig, tmp_path / name)]

    one = draw("one")
    assert draw("two") == one


def test_a_user_s_own_style_does_not_reach_the_file(tmp_path, drawn):
    plain = plots.save(drawn, tmp_path / "x.svg")[0].read_bytes()
    with matplotlib.rc_context({"font.sans-serif": ["Arial"], "svg.fonttype": "none"}):
        assert plots.save(drawn, tmp_path / "x.svg")[0].read_bytes() == plain


def test_an_error_while_drawing_keeps_the_old_files(tmp_path, drawn, monkeypatch):
    files = plots.save(drawn, tmp_path / "x")
    held = [file.read_bytes() for file in files]
    drawn.axes[0].set_xlabel("$\\nonsense$")
    with pytest.raises(ValueError, match="nonsense"):
        plots.save(drawn, tmp_path / "x")
    assert [file.read_bytes() for file in files] == held
    assert len(list(tmp_path.iterdir())) == 2


def test_every_ink_of_the_file_has_its_dark_counterpart(tmp_path, drawn):
    text = plots.save(drawn, tmp_path / "x.svg")[0].read_text()
    assert "prefers-color-scheme:dark" in text
    for light in (INK, SOFT, LINE, PAPER):
        assert f'[style*="fill: {light}"]{{fill:{ON_DARK[light]}!important}}' in text
        assert f"fill: {light}" in text or f"stroke: {light}" in text
    # Black would stay black on a dark page.
    assert "#000000" not in text


def test_what_was_drawn_with_defaults_takes_our_colours(tmp_path, drawn):
    plots.save(drawn, tmp_path / "x.svg")
    ax = drawn.axes[0]
    assert ax.lines[1].get_color() == INK
    assert ax.texts[0].get_color() == INK
    assert ax.lines[0].get_color() == plots.PALETTE[0]
    assert not ax.get_legend().get_frame_on()


def test_saving_moves_the_title_once(tmp_path, drawn):
    for _ in range(2):
        plots.save(drawn, tmp_path / "x.svg")
        assert drawn.axes[0].get_title() == ""
        assert drawn.axes[0].get_title(loc="left") == "A title"


def test_a_figure_of_pyplot_can_be_saved(tmp_path):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    fig, ax = pyplot.subplots(figsize=(2, 2))
    ax.plot([1, 2])
    assert len(plots.save(fig, tmp_path / "x")) == 2
    pyplot.close(fig)
