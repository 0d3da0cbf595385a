"""A scree plot shows magnitudes and signs as they are."""

import numpy as np
import pytest
import torch

from spanwise import plots
from spanwise.plots._style import PAPER

pytest.importorskip("matplotlib")


@pytest.fixture
def ax():
    return plots.figure(width=5, height=3)[1]


def points(ax):
    """Height and face of every marker, by index."""
    found = {}
    for line in ax.lines[1:]:
        if line.get_marker() == "o":
            for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True):
                found[int(x)] = (y, line.get_markerfacecolor(), line.get_color())
    return found


def test_values_are_sorted_by_magnitude_and_negative_ones_are_hollow(ax):
    plots.scree(ax, torch.tensor([0.1, -4.0, 2.0, 1e-16]), rank=2)
    found = points(ax)
    assert [found[i][0] for i in (1, 2, 3)] == pytest.approx([4, 2, 0.1])
    assert found[1][1] == PAPER != found[2][1]
    assert found[3][2] != found[2][2]  # beyond the rank
    assert [t.get_text() for t in ax.texts] == ["rank 2"]


def test_a_long_tail_is_cut_and_zeros_are_drawn_at_rounding(ax):
    plots.scree(ax, [*np.arange(1.0, 101), 0.0], rank=2)
    assert len(points(ax)) == 20
    other = plots.figure()[1]
    plots.scree(other, [1.0, 0.0])
    assert points(other)[2][0] == pytest.approx(1e-17)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([], {}, "values is empty"),
        ([0.0, 0.0], {}, "not all zero"),
        ([1.0, np.nan], {}, "must be finite"),
        ([1.0], {"rank": 2}, "rank must be from 1 to the 1 values"),
        ([1.0], {"most": 0}, "most must be at least 1"),
        ([[1.0]], {}, "must have 1 axes"),
    ],
)
def test_what_cannot_be_drawn_is_refused(ax, values, options, message):
    with pytest.raises(ValueError, match=message):
        plots.scree(ax, values, **options)
