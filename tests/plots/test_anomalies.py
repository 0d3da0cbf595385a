"""Scores and contributions are drawn as they are."""

import numpy as np
import pytest
import torch

from spanwise import plots
from spanwise.plots._style import PALETTE

matplotlib = pytest.importorskip("matplotlib")


@pytest.fixture
def ax():
    return plots.figure(width=5, height=3)[1]


def heights(container):
    return np.array([bar.get_height() for bar in container])


def test_each_groups_bars_add_up_to_all_of_it(ax):
    groups = {"training": np.arange(30.0), "new": torch.arange(-5.0, 5.0)}
    plots.anomaly_scores(ax, groups, threshold=0.5, bins=7)
    assert [heights(c).sum() for c in ax.containers] == pytest.approx([100, 100])
    labels = ax.get_legend_handles_labels()[1]
    assert labels == ["training, 3.3% outside", "new, 60.0% outside"]
    assert ax.lines[0].get_xdata()[0] == 0.5


def test_an_outlier_far_away_is_counted_in_the_first_bar(ax):
    scores = np.append(np.linspace(0, 1, 99), -1e6)
    plots.anomaly_scores(ax, scores, bins=10)
    assert ax.get_xlim()[0] > -20
    assert heights(ax.containers[0])[0] == pytest.approx(1)
    assert [t.get_text() for t in ax.texts] == ["◂ and below"]


def test_equal_scores_can_be_drawn(ax):
    plots.anomaly_scores(ax, [2.0, 2.0], threshold=2.0)
    assert heights(ax.containers[0]).sum() == pytest.approx(100)


def test_what_pushes_out_comes_first_and_the_rest_is_one_bar(ax):
    values = np.array([0.5, -3.0, 0.1, -1.0, 2.0, 0.2])
    plots.contributions(ax, values, list("abcdef"), top=3)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["b", "d", "e", "3 others"]
    bars = ax.containers[0]
    assert [bar.get_width() for bar in bars] == pytest.approx([-3, -1, 2, 0.8])
    colours = [matplotlib.colors.to_hex(bar.get_facecolor()) for bar in bars]
    assert colours == [PALETTE[0], PALETTE[0], PALETTE[1], PALETTE[1]]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first on top


def test_a_single_feature_that_is_left_keeps_its_name(ax):
    plots.contributions(ax, [0.5, -3.0, 0.1], list("abc"), top=2)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["b", "c", "a"]


def test_features_without_names_are_numbered(ax):
    plots.contributions(ax, torch.tensor([1.0, -1.0]))
    assert [t.get_text() for t in ax.get_yticklabels()] == ["feature 1", "feature 0"]


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda ax: plots.anomaly_scores(ax, [1.0, np.nan]), "scores must be finite"),
        (lambda ax: plots.anomaly_scores(ax, {"new": []}), r"scores\['new'\] is empty"),
        (lambda ax: plots.anomaly_scores(ax, {}), "scores is empty"),
        (lambda ax: plots.anomaly_scores(ax, [1.0], bins=0), "bins must be at least 1, got 0"),
        (lambda ax: plots.contributions(ax, [1.0, 2.0], ["a"]), "as many as values, 2, got 1"),
        (lambda ax: plots.contributions(ax, [1.0], top=0), "top must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(ax, draw, message):
    with pytest.raises(ValueError, match=message):
        draw(ax)
