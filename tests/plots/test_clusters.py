"""Pictures of clusters show what was given."""

import numpy as np
import pytest
import torch

from spanwise import plots

pytest.importorskip("matplotlib")


@pytest.fixture
def ax():
    return plots.figure(width=5, height=4)[1]


def test_an_affinity_is_sorted_by_cluster_with_names_in_the_middle(ax):
    labels = torch.tensor([2, 0, 2, 0, 0])
    affinity = (labels[:, None] == labels).float() / 3
    plots.cluster_affinity(ax, affinity, labels, label="membership")
    shown = ax.collections[0].get_array().reshape(5, 5)
    expected = np.zeros((5, 5))
    expected[:3, :3] = expected[3:, 3:] = 1 / 3
    np.testing.assert_allclose(shown, expected)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0", "2"]
    assert ax.get_xticks().tolist() == [1.5, 4]
    assert ax.get_ylim() == (5, 0)
    assert ax.figure.axes[1].get_ylabel() == "membership"


def test_a_large_affinity_is_thinned(ax):
    labels = np.arange(1500) // 500
    plots.cluster_affinity(ax, (labels[:, None] == labels).astype(float), labels)
    assert ax.collections[0].get_array().size == 600**2


def test_spectra_are_those_of_each_cluster_and_of_all(ax):
    features = np.zeros((6, 4))
    features[:3, 0], features[3:, 1:3] = 1, np.eye(3)[:, :2]
    plots.cluster_spectra(ax, features, [0, 0, 0, 1, 1, 1])
    first, second, every = (line.get_ydata() for line in ax.lines)
    np.testing.assert_allclose(first, [1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(second, [1, 1, 0], atol=1e-12)
    np.testing.assert_allclose(every, np.array([3, 1, 1, 0]) ** 0.5 / 3**0.5, atol=1e-12)
    assert ax.get_legend().get_title().get_text() == "95% within rank 1 to 2; of all, 3"


def test_coding_bits_mark_their_minimum_or_what_was_chosen(ax):
    plots.coding_bits(ax, [2, 3, 4], [5.0, 4.0, 6.0])
    assert [t.get_text() for t in ax.texts] == ["3 clusters"]
    assert ax.lines[0].get_ydata().tolist() == [5.0, 4.0, 6.0]
    other = plots.figure()[1]
    plots.coding_bits(other, [2, 3], [5.0, 4.0], chosen=2)
    assert [t.get_text() for t in other.texts] == ["2 clusters"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda ax: plots.cluster_affinity(ax, np.ones((2, 3)), [0, 1]), r"must be \(n, n\)"),
        (lambda ax: plots.cluster_affinity(ax, -np.ones((2, 2)), [0, 1]), "not negative"),
        (lambda ax: plots.cluster_spectra(ax, np.ones((3, 2)), [0, 1]), "2 labels"),
        (lambda ax: plots.cluster_spectra(ax, np.ones((2, 2)), [0, 1], energy=0), "energy must"),
        (lambda ax: plots.cluster_spectra(ax, np.full((2, 2), np.nan), [0, 1]), "finite"),
        (lambda ax: plots.coding_bits(ax, [2, 3], [1.0]), "one for each count"),
    ],
)
def test_what_does_not_fit_is_named(ax, call, message):
    with pytest.raises(ValueError, match=message):
        call(ax)
