"""Pictures of models of dynamics hold what they were given."""

import numpy as np
import pytest
import torch

from spanwise import plots


def test_eigenvalues_stand_beside_the_unit_circle():
    fig, ax = plots.figure()
    plots.eigenvalues(ax, {"DMD": np.array([0.9 + 0.1j, 0.9 - 0.1j]), "LRAN": torch.tensor([1.2j])})
    circle = ax.lines[0].get_xydata()
    np.testing.assert_allclose(np.hypot(*circle.T), 1, atol=1e-12)
    np.testing.assert_allclose(ax.lines[3].get_xydata(), [[0.9, 0.1], [0.9, -0.1]])
    assert ax.get_xlim()[1] > 1.2
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["DMD", "LRAN"]
    assert fig is not None


def test_a_forecast_begins_where_it_is_told():
    _, ax = plots.figure()
    truth = np.arange(20.0).reshape(10, 2)
    plots.forecast(ax, truth, {"DMD": truth[5:8]}, start=5, dt=0.5, names=["a", "b"])
    drawn = ax.lines[2].get_xydata()
    np.testing.assert_allclose(drawn, [[2.5, 10], [3, 12], [3.5, 14]])


def test_errors_are_means_with_every_seed_faintly():
    _, ax = plots.figure()
    errors = np.array([[0.1, 0.2, 0.4], [0.3, 0.4, 0.8]])
    plots.errors_by_horizon(ax, {"LRAN": errors})
    np.testing.assert_allclose(ax.lines[2].get_ydata(), errors.mean(0))
    assert ax.get_yscale() == "log"


def test_bad_input_is_named():
    _, ax = plots.figure()
    with pytest.raises(ValueError, match="values is empty"):
        plots.eigenvalues(ax, {})
    with pytest.raises(ValueError, match="values must be finite"):
        plots.eigenvalues(ax, [np.nan])
    with pytest.raises(TypeError, match="values must be complex numbers"):
        plots.eigenvalues(ax, ["a"])
    with pytest.raises(ValueError, match="must have the 2 variables of truth, got 3"):
        plots.forecast(ax, np.ones((4, 2)), np.ones((2, 3)))
    with pytest.raises(ValueError, match="names must be 2"):
        plots.forecast(ax, np.ones((4, 2)), np.ones((2, 2)), names=["a"])
    with pytest.raises(ValueError, match=r"errors must be \(horizon \+ 1,\)"):
        plots.errors_by_horizon(ax, [-1.0, 2.0])
    with pytest.raises(ValueError, match="errors is empty"):
        plots.errors_by_horizon(ax, {})
