"""What LRAN's reproduction concludes from rows, and that its systems are what it says."""

import math

import numpy as np
import pytest

from spanwise.reproductions import _dynamics, lran

GOOD = {"basin_accuracy": 99.0, "slow_rate": 0.01, "pair_distance": 0.2}


def rows(**scale):
    """Errors of 1 everywhere, times an arm's own factor."""
    found = []
    for seed in (100, 101, 102):
        for arm in lran.ARMS:
            factor = scale.get(arm.replace("-", "_"), 1.0) * (1 + 0.01 * (seed - 101))
            row = {"arm": arm, "seed": seed, "errors": [factor] * 30, "error": factor}
            found.append({**row, **(GOOD if arm == "duffing-lran" else {})})
    return found


def test_all_parts_hold_where_the_paper_is_right():
    good = rows(ks_lran=0.2, wake_lran=0.5, ks_balanced=0.8)
    assert [check.holds for check in lran.judge(good)] == [True] * 7


def test_every_part_can_fail_by_itself():
    for name, scale in (
        ("4 steps", {"ks_lran": 0.5, "wake_lran": 0.5, "ks_balanced": 0.8}),
        ("Wake", {"ks_lran": 0.2, "wake_lran": 1.5, "ks_balanced": 0.8}),
        ("balanced", {"ks_lran": 0.2, "wake_lran": 0.5, "ks_balanced": 1.2}),
    ):
        failed = [check for check in lran.judge(rows(**scale)) if not check.holds]
        assert len(failed) == 1
        assert name in failed[0].statement


def test_a_forecast_that_overflows_fails_its_parts():
    found = rows(ks_lran=0.2, wake_lran=0.5, ks_balanced=0.8)
    for row in found:
        if row["arm"] == "ks-lran" and row["seed"] == 101:
            row["errors"] = row["error"] = None
    assert [check.holds for check in lran.judge(found)][3:5] == [False, False]
    assert lran.notes(found)


def test_knobs_belong_to_their_system():
    best = {"ks-dmd": 2.0, "wake-dmd": 0.5, "ks-lran": 1.0}
    assert lran.knobs_of(best, "ks") == {"dmd": 2.0, "lran": 1.0}


def test_seeds_that_judge_see_no_wake_of_those_that_tune():
    tuning, *fresh = (_dynamics.draw("wake", seed, 0.01) for seed in (0, 100, 101, 102))
    seen = [*tuning.train, *tuning.validation]
    for data in fresh:
        for wake in (*data.train, *data.test):
            assert not any(np.array_equal(wake, held) for held in seen)
        assert not any(np.array_equal(data.test[0], held) for held in data.train)
    assert len({data.test.tobytes() for data in fresh}) == 3


@pytest.mark.parametrize("method", ["dmd", "edmd", "kdmd", "kdmd_cut", "balanced", "lran"])
def test_every_method_forecasts_the_oscillator(method):
    row = _dynamics.judged(method, "duffing", {"kdmd": 1.0}, 0, 0.01, tuning=True)
    assert len(row["errors"]) == 21
    assert math.isfinite(row["error"])
    assert row["rank"] == {"dmd": 2, "kdmd_cut": 3, "balanced": 3, "lran": 3}.get(
        method, row["rank"]
    )
    assert ("basin_accuracy" in row) == (method == "lran")
