"""What is drawn is what was given."""

import numpy as np
import pytest
import torch

from spanwise import plots
from spanwise.plots._heatmap import _AROUND, _RISING
from spanwise.plots._style import SOFT

matplotlib = pytest.importorskip("matplotlib")


@pytest.fixture
def ax():
    return plots.figure(width=5, height=3)[1]


def words(ax):
    return [text.get_text() for text in ax.texts]


def luminance(colour):
    rgb = np.array(matplotlib.colors.to_rgb(colour))
    rgb = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return rgb @ [0.2126, 0.7152, 0.0722]


# -- heatmap --------------------------------------------------------------------------------------


def test_a_map_holds_the_numbers_from_the_top(ax):
    values = torch.tensor([[1.0, 2.0, 3.0], [4.0, float("nan"), 6.0]]).bfloat16()
    plots.heatmap(ax, values, ["upper", "lower"], ["a", "b", "c"], form="{:.0f}", label="nats")
    assert words(ax) == ["1", "2", "3", "4", "·", "6"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["upper", "lower"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["a", "b", "c"]
    assert ax.get_ylim() == (2, 0)
    mesh = ax.collections[0]
    assert mesh.get_array().mask.tolist() == [[False] * 3, [False, True, False]]
    assert (mesh.norm.vmin, mesh.norm.vmax) == (1, 6)
    assert ax.figure.axes[1].get_ylabel() == "nats"


def test_shared_axes_keep_the_first_row_on_top():
    _, axes = plots.figure(1, 2, sharey=True)
    for ax in axes:
        plots.heatmap(ax, np.eye(3), "abc", "xyz", bar=False)
    assert axes[0].get_ylim() == axes[1].get_ylim() == (3, 0)


def test_limits_make_maps_comparable_and_a_centre_is_neutral(ax):
    plots.heatmap(ax, [[0.2, 0.4]], ["r"], ["a", "b"], limits=(0, 1), bar=False, label="share")
    assert (ax.collections[0].norm.vmin, ax.collections[0].norm.vmax) == (0, 1)
    assert ax.figure.axes == [ax]
    assert ax.get_xlabel() == "share"
    other = plots.figure()[1]
    plots.heatmap(other, [[-1.0, 3.0]], ["r"], ["a", "b"], center=0)
    mesh = other.collections[0]
    assert (mesh.norm.vmin, mesh.norm.vmax) == (-3, 3)
    assert matplotlib.colors.to_hex(mesh.to_rgba(0)) == _AROUND[3]


def test_equal_numbers_can_be_drawn(ax):
    plots.heatmap(ax, np.full((2, 2), 5.0), "ab", "cd")
    assert ax.collections[0].norm.vmin < 5 < ax.collections[0].norm.vmax
    plots.heatmap(plots.figure()[1], np.zeros((2, 2)), "ab", "cd", center=0)


def test_numbers_that_do_not_fit_are_left_out_and_names_thinned(ax):
    plots.heatmap(
        ax, np.zeros((90, 40)), [f"r{i}" for i in range(90)], [f"c{i}" for i in range(40)]
    )
    assert words(ax) == []
    assert len(ax.get_yticklabels()) < 30
    assert ax.get_yticklabels()[0].get_text() == "r0"
    assert not ax.collections[0].get_rasterized()


def test_huge_maps_become_pictures(ax):
    plots.heatmap(ax, np.zeros((100, 100)), [""] * 100, [""] * 100)
    assert ax.collections[0].get_rasterized()


def test_long_names_slant(ax):
    plots.heatmap(ax, np.zeros((1, 6)), ["r"], ["self_attn.q_proj"] * 6)
    assert {t.get_rotation() for t in ax.get_xticklabels()} == {38}


@pytest.mark.parametrize("center", [None, 0.5])
def test_every_cell_s_number_can_be_read(ax, center):
    values = np.linspace(0, 1, 60).reshape(10, 6)
    plots.heatmap(ax, values, [""] * 10, [""] * 6, center=center, form="{:.1f}")
    assert len(ax.texts) == 60
    for value, text in zip(values.flat, ax.texts, strict=True):
        pair = luminance(ax.collections[0].to_rgba(value)[:3]), luminance(text.get_color())
        assert (max(pair) + 0.05) / (min(pair) + 0.05) > 4


def test_colours_read_in_grey():
    rising = [luminance(colour) for colour in _RISING]
    assert rising == sorted(rising)
    around = [luminance(colour) for colour in _AROUND]
    assert around[:4] == sorted(around[:4])
    assert around[3:] == sorted(around[3:], reverse=True)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("values", "options", "error", "message"),
    [
        ([[1.0]], {}, ValueError, r"\(rows, cols\) = \(1, 2\) by the names given, got shape"),
        ([1.0, 2.0], {}, ValueError, "must have 2 axes"),
        ([[np.nan, np.inf]], {}, ValueError, "no finite number"),
        ([["a", "b"]], {}, TypeError, "values must be numbers"),
        ([[1.0], [2.0, 3.0]], {}, TypeError, "values must be numbers"),
        ([[1.0, 2.0]], {"limits": (2, 1)}, ValueError, r"limits must rise, got \(2, 1\)"),
    ],
)
def test_maps_refuse_what_they_cannot_draw(ax, values, options, error, message):
    with pytest.raises(error, match=message):
        plots.heatmap(ax, values, ["r"], ["a", "b"], **options)
    assert not ax.collections


# -- frontier -------------------------------------------------------------------------------------


def lines(ax):
    return {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}


def test_curves_are_means_over_seeds_in_the_order_given(ax):
    seeds = np.random.default_rng(0).random((3, 4, 2))
    plots.frontier(ax, {"ours": seeds, "one": torch.tensor([0.5, 0.7]), "curve": seeds[0]})
    drawn = lines(ax)
    assert list(drawn) == ["ours", "one", "curve"]
    assert np.allclose(drawn["ours"].get_xydata(), seeds.mean(axis=0), atol=1e-12)
    assert np.allclose(drawn["curve"].get_xydata(), seeds[0], atol=1e-12)
    assert np.allclose(drawn["one"].get_xydata(), [[0.5, 0.7]], atol=1e-6)
    assert drawn["one"].get_linestyle() == "None"
    faint = [line for line in ax.lines if line.get_alpha() == 0.35]
    assert [len(line.get_xydata()) for line in faint] == [12]
    assert len({(line.get_color(), line.get_marker()) for line in drawn.values()}) == 3


def test_more_arms_than_colours_stay_apart(ax):
    plots.frontier(ax, {f"arm {i}": (i, i) for i in range(20)})
    assert len({(line.get_color(), line.get_marker()) for line in lines(ax).values()}) == 20


def test_a_run_that_diverged_is_left_out(ax):
    plots.frontier(ax, {"a": [(0, 0), (np.nan, 1), (2, 2)], "b": (np.inf, 1)}, reference="b")
    assert lines(ax)["a"].get_xydata().tolist() == [[0, 0], [2, 2]]
    assert len(lines(ax)["b"].get_xydata()) == 0


def test_references_are_grey_and_the_first_is_shaded(ax):
    points = {"old": [(0, 0), (2, 1), (1, 3)], "new": [(0.5, 2)], "low": [(0.1, 0.1)]}
    plots.frontier(ax, points, reference=["old", "low"], xlabel="cost", ylabel="gain")
    drawn = lines(ax)
    assert [drawn[name].get_color() for name in points] == [SOFT, plots.PALETTE[0], SOFT]
    assert drawn["old"].get_marker() != drawn["low"].get_marker()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("cost", "gain")
    shade = ax.collections[0].get_paths()[0].vertices
    # (1, 3) dominates (2, 1): up to the right edge, a gain of 3 is attained.
    assert shade[shade[:, 0] >= 1, 1].max() == 3
    assert any(np.allclose(v, (2, 3)) for v in shade)
    assert not any(np.allclose(v, (2, 1)) for v in shade)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("points", "reference", "message"),
    [
        ({}, (), "there are none"),
        ({"a": (0, 1)}, "b", r"must name arms of points \(a\), got \['b'\]"),
        ({"a": [1.0, 2.0, 3.0]}, (), r"points\['a'\] must be \(2,\)"),
        ({"a": np.zeros((1, 1, 1, 2))}, (), "got shape"),
        ({"a": np.zeros((0, 2))}, (), "empty"),
    ],
)
def test_frontiers_refuse_what_they_cannot_draw(ax, points, reference, message):
    with pytest.raises(ValueError, match=message):
        plots.frontier(ax, points, reference=reference)
    assert not ax.lines


# -- spectrum and angles --------------------------------------------------------------------------


def test_a_spectrum_is_relative_and_tells_the_energy_of_a_rank(ax):
    values = torch.tensor([1.0, 4.0, 2.0, 0.0])
    plots.spectrum(ax, values, rank=1)
    assert ax.lines[0].get_xydata().tolist() == [[1, 1], [2, 0.5], [3, 0.25]]
    assert words(ax) == ["rank 1 holds 76%"]  # 16 / 21
    assert ax.get_legend() is None


def test_several_spectra_are_named(ax):
    plots.spectrum(ax, {"a": [2, 1], "b": [1, 1]}, rank=1)
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["a (80%)", "b (50%)"]
    assert words(ax) == ["rank 1"]
    other = plots.figure()[1]
    plots.spectrum(other, {"a": [2, 1]})
    assert [t.get_text() for t in other.get_legend().get_texts()] == ["a"]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("values", "rank", "message"),
    [
        ([], None, "empty"),
        ({}, None, "empty"),
        ([1.0, -1.0], None, "none negative"),
        ([1.0, np.nan], None, "finite"),
        ([0.0, 0.0], None, "not all zero"),
        (np.eye(2), None, "1 axes"),
        ([1.0, 2.0], 3, r"rank must be from 1 to the 2 of values, got 3"),
        ({"w": [1.0, 2.0]}, 0, r"of values\['w'\], got 0"),
    ],
)
def test_spectra_refuse_what_they_cannot_draw(ax, values, rank, message):
    with pytest.raises(ValueError, match=message):
        plots.spectrum(ax, values, rank=rank)
    assert not ax.lines


def test_angles_are_in_degrees_beside_the_band_of_chance(ax):
    ours = torch.tensor([0.0, torch.pi / 4, torch.pi / 2], dtype=torch.float64)
    chance = torch.stack([ours / 2, ours])
    plots.angles(ax, ours, chance, label="old and new")
    drawn = lines(ax)
    assert list(drawn) == ["old and new", "random subspaces"]
    assert np.allclose(drawn["old and new"].get_ydata(), [0, 45, 90], atol=1e-10)
    assert np.allclose(drawn["random subspaces"].get_ydata(), [0, 33.75, 67.5], atol=1e-10)
    band = ax.collections[0].get_paths()[0].vertices
    assert {22.5, 45.0} <= set(band[band[:, 0] == 2, 1].round(10))


def test_float32_angles_may_round_above_a_right_angle(ax):
    plots.angles(ax, torch.full((2, 3), torch.pi / 2))
    assert ax.get_legend() is None


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("ours", "chance", "message"),
    [
        ([45.0], None, "radians"),
        ([-0.1], None, "radians"),
        ([np.nan], None, "radians"),
        ([], None, "empty"),
        ([0.1, 0.2], [0.1], "as many, got 2 and 1"),
        ([0.1], [9.0], "random_angles must be radians"),
    ],
)
def test_angles_refuse_what_they_cannot_draw(ax, ours, chance, message):
    with pytest.raises(ValueError, match=message):
        plots.angles(ax, ours, chance)
    assert not ax.lines
