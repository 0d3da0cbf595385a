import math

import pytest

from spanwise.report import tune


def bowl(best, calls=None):
    """Loss is lowest at a known rate of each arm."""

    def evaluate(cells):
        if calls is not None:
            calls.extend(cells)
        return [{"loss": abs(math.log(c["rate"] / best[c["arm"]]))} for c in cells]

    return evaluate


def test_an_interior_best_needs_no_further_runs():
    calls = []
    found = tune(bowl({"a": 2, "b": 2}, calls), ["a", "b"], [1, 2, 4], [0, 1])
    assert found.best == {"a": 2, "b": 2}
    assert found.untuned == ()
    assert len(calls) == len(found.rows) == 2 * 3 * 2


def test_a_best_on_the_edge_grows_the_grid_of_that_arm_until_it_is_inside():
    found = tune(bowl({"a": 2, "b": 16}), ["a", "b"], [1, 2, 4], [0])
    assert found.best == {"a": 2, "b": 16}
    assert {r["rate"] for r in found.rows if r["arm"] == "a"} == {1, 2, 4}
    assert {r["rate"] for r in found.rows if r["arm"] == "b"} == {1, 2, 4, 8, 16, 32}


def test_the_grid_grows_downwards_at_its_own_ratio():
    found = tune(bowl({"a": 0.001}), ["a"], [0.01, 0.03], [0])
    assert found.best["a"] == pytest.approx(0.00111)
    assert found.untuned == ()


def test_an_arm_still_on_the_edge_is_called_untuned():
    found = tune(bowl({"a": 1e9, "b": 2}), ["a", "b"], [1, 2, 4], [0], extensions=2)
    assert found.untuned == ("a",)
    assert found.best["a"] == 16


def test_a_diverged_rate_never_wins():
    def evaluate(cells):
        losses = {1: None, 2: 0.5, 4: 0.7, 8: math.nan}
        return [{"loss": losses[c["rate"]]} for c in cells]

    assert tune(evaluate, ["a"], [1, 2, 4, 8], [0]).best == {"a": 2}


def test_a_rate_is_judged_by_all_its_seeds():
    def evaluate(cells):
        losses = {(1, 0): 0.0, (1, 1): 9.0, (2, 0): 1.0, (2, 1): 1.0, (4, 0): 2.0, (4, 1): 2.0}
        return [{"loss": losses[c["rate"], c["seed"]]} for c in cells]

    assert tune(evaluate, ["a"], [1, 2, 4], [0, 1]).best == {"a": 2}


@pytest.mark.parametrize("rates", [[], [2, 1], [1, 1], [0, 1], [1]])
def test_a_grid_that_is_no_grid_is_refused(rates):
    with pytest.raises(ValueError, match="rates must"):
        tune(bowl({"a": 1}), ["a"], rates, [0])


def test_tuning_needs_a_seed():
    with pytest.raises(ValueError, match="at least one seed"):
        tune(bowl({"a": 1}), ["a"], [1, 2], [])
