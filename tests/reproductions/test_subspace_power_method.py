"""The subspace power method's experiment: rivals, sources, criterion, and the quick run."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from spanwise.report import Result, save_panels
from spanwise.reproductions import _spm_rivals as rivals
from spanwise.reproductions import _spm_sources as separation
from spanwise.reproductions import subspace_power_method as experiment

RESULT = Path(__file__).parents[2] / "results" / "subspace-power-method.json"


def test_the_error_takes_order_and_sign_away_and_counts_a_wrong_number_as_two():
    A, _ = rivals.random_tensor(4, 3, 0)
    assert rivals.recovery_error(A, -A[:, [2, 0, 1]]) < 1e-15
    assert rivals.recovery_error(A, A[:, :2]) == 2
    assert rivals.recovery_error(A, None) == 2
    assert rivals.recovery_error(A, np.full_like(A, np.nan)) == 2


@pytest.mark.parametrize("r", [3, 12])
def test_the_plain_algorithm_finds_rank_and_components(r):
    A, T = rivals.random_tensor(7, r, 1)
    assert rivals.recovery_error(A, rivals.plain_power_method(T, 1)) < 1e-10


def test_least_squares_starts_elsewhere_and_arrives():
    A, T = rivals.random_tensor(6, 4, 0)
    assert rivals.recovery_error(A, rivals.least_squares(T, 4, 0, steps=0)) > 0.1
    assert rivals.recovery_error(A, rivals.least_squares(T, 4, 0)) < 1e-4


def test_sources_are_standard_and_of_the_kurtosis_that_is_asked_for():
    rng = np.random.default_rng(0)
    image = np.cumsum(rng.laplace(size=(60, 80)), axis=1)
    S = separation.sources(5, [image, np.cumsum(rng.laplace(size=(60, 80)), axis=0)])
    np.testing.assert_allclose(S.mean(1), 0, atol=1e-10)
    np.testing.assert_allclose(S.std(1), 1, atol=1e-10)
    far = [abs(np.log(max(np.mean(x**4) - 3, 1e-9) / 10)) for x in S]
    assert far == sorted(far)


def rows(cosine=0.995, ica=0.9, error=1e-14, ratio=20.0, seeds=(100, 101, 102)):
    found = []
    for at, seed in enumerate(seeds):
        jitter = 1 + 1e-3 * at
        sizes = {s: {"seconds": 1.0, "error": error} for s in ("20,60", "20,120", "30,200")}
        slow = {s: {"seconds": ratio * jitter, "error": 0.0} for s in sizes}
        found += [
            {"arm": "spanwise", "seed": seed, "sizes": sizes, "error": error,
             "cosine": cosine * jitter},
            {"arm": "least_squares", "seed": seed, "sizes": slow, "error": 0.0},
            {"arm": "plain", "seed": seed, "sizes": slow, "error": 0.0},
            {"arm": "fastica", "seed": seed, "cosine": ica},
        ]  # fmt: skip
    return found


def test_every_part_of_the_criterion_is_judged():
    checks = experiment.judge(rows())
    assert len(checks) == 7
    assert all(check.holds for check in checks)
    assert not experiment.judge(rows(error=1e-9))[0].holds
    assert [check.holds for check in experiment.judge(rows(ratio=5.0))[1:5]] == [False] * 2 + [
        True
    ] * 2
    assert not experiment.judge(rows(cosine=0.98))[5].holds
    assert not experiment.judge(rows(ica=0.98))[6].holds


def test_a_quick_run_draws_its_figure_and_gives_no_verdict(tmp_path):
    pytest.importorskip("PIL")
    settings = replace(experiment.PRESETS["quick"], sizes=((10, 5),), samples=4000)
    result = experiment.run(settings, preset="quick", workers=1)
    assert result.verdict.outcome == "no verdict"
    assert result.verdict.checks[0].holds
    assert {row["arm"] for row in result.rows} >= {"spanwise", "plain", "fastica", "same_order"}
    assert ("tensorly" in result.arms) == rivals.has_tensorly()
    assert any("tensorly" in note for note in result.notes)
    assert save_panels(experiment.PANELS, result, tmp_path / "figure.svg")


def test_the_committed_result_is_drawn_and_follows_from_its_rows(tmp_path):
    result = Result.load(RESULT)
    assert [check.holds for check in experiment.judge(result.rows)] == [
        check.holds for check in result.verdict.checks
    ]
    assert save_panels(experiment.PANELS, result, tmp_path / "figure.svg")
