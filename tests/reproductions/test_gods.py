"""The comparison of detectors: its measures, its tests of significance, its split, its run."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from spanwise.datasets import AnomalySet, load_anomalies, source_of
from spanwise.datasets.anomalies import ADBENCH
from spanwise.estimators import GODS
from spanwise.reproductions import gods
from spanwise.reproductions._detectors import (
    DETECTORS,
    TRIALS,
    best_threshold,
    measures,
    scores,
    split,
)
from spanwise.reproductions._gods_sets import CHOOSING, REPORTED
from spanwise.reproductions._ranks import ranking, wilcoxon_holm

RESULTS = Path(__file__).parents[2] / "results"


def test_measures_are_scikit_learns():
    generator = np.random.default_rng(0)
    for digits in (1, 8):  # with ties, without
        found, y = generator.normal(size=80).round(digits), generator.random(80) < 0.2
        got = measures(found, y, -0.5)
        assert got["auc"] == pytest.approx(100 * roc_auc_score(y, -found))
        assert got["ap"] == pytest.approx(100 * average_precision_score(y, -found))
        assert got["f1"] == pytest.approx(100 * f1_score(y, found < -0.5))


def test_the_best_threshold_separates_what_can_be_separated():
    found, y = np.array([3.0, -1.0, 2.0, 0.0]), np.array([False, True, False, True])
    assert 0 < best_threshold(found, y) < 2
    assert measures(found, y, best_threshold(found, y))["f1"] == 100


def test_ranks_and_friedman_are_those_of_the_textbook():
    table = np.random.default_rng(1).normal(size=(4, 9))
    table[2] = table[1]
    found = ranking({name: list(row) for name, row in zip("abcd", table, strict=True)})
    assert sum(found.ranks.values()) == pytest.approx(10)
    assert found.ranks["b"] == found.ranks["c"]
    assert found.friedman == pytest.approx(stats.friedmanchisquare(*table).pvalue)
    # Demsar's table: q is 2.569 for four methods.
    assert found.critical_difference == pytest.approx(2.569 * np.sqrt(4 * 5 / (6 * 9)), rel=1e-3)


def test_holm_multiplies_the_least_probability_by_the_number_of_tests():
    ours = np.arange(12.0) + 5
    others = {"same": list(ours), "worse": list(ours - np.linspace(1, 2, 12))}
    found = wilcoxon_holm(list(ours), others)
    assert found["same"] == 1
    assert found["worse"] == pytest.approx(2 * stats.wilcoxon(ours - others["worse"]).pvalue)


def test_no_part_of_a_split_shares_a_sample_with_another():
    y = np.arange(300) % 5 == 0
    held = AnomalySet(name="numbers", X=np.arange(300.0)[:, None], y=y)
    part = split(held, 3, rows=80)
    train, mixed, validation, test = (
        set(p[:, 0]) for p in (part.train, part.mixed, part.validation, part.test)
    )
    assert not y[[int(i) for i in train]].any()
    assert train < mixed
    assert len(mixed - train) == round(80 / 9)
    assert not (train | mixed | validation) & test
    assert not train & validation
    assert (len(part.validation), part.validation_y.sum()) == (30, 10)
    assert part.test_y.tolist() == [bool(y[int(i)]) for i in part.test[:, 0]]


def test_sets_that_choose_share_no_source_with_those_that_judge():
    assert (len(CHOOSING), len(REPORTED)) == (16, 20)
    judging = {source_of(name) for name in (*REPORTED, *gods.DIGITS)}
    assert not {source_of(name) for name in CHOOSING} & judging
    assert {*CHOOSING, *REPORTED} == {*ADBENCH} - {"internetads"}


def test_all_detectors_have_as_many_trials():
    assert {len(trials) for trials in TRIALS.values()} == {5}
    assert {*TRIALS, "bods", "published"} == {*DETECTORS}


def test_defaults_and_the_kernels_preset_are_what_the_other_sets_chose():
    chosen = json.loads((RESULTS / "gods.json").read_text())["notes"][0]
    linear, kernel = TRIALS["gods"][2], TRIALS["kods"][4]
    assert f"GODS {linear}; KODS {kernel};" in chosen
    assert linear.items() <= GODS().get_params().items()
    own = GODS.preset("kernel")
    assert {k: v for k, v in kernel.items() if k != "widen"}.items() <= own.get_params().items()
    X = np.random.default_rng(0).normal(size=(30, 4))
    model = own.set_params(scaling="standard", max_iter=0, n_components=3).fit(X)
    assert model.gamma_ == pytest.approx(kernel["widen"] / 4)


CHEAP = {
    **{key: {"max_iter": 3} for key in ("gods", "kods", "released")},
    "forest": {"n_estimators": 10},
}
"""For tests: few steps, few trees."""


@pytest.mark.parametrize("method", [*TRIALS])
def test_each_detector_finds_a_far_point(method):
    X = np.random.default_rng(0).normal(size=(60, 4))
    far = np.full((1, 4), 8.0)
    options = {**TRIALS[method][0], **CHEAP.get(method, {})}
    own, rest = scores(method, options, X, np.concatenate([X[:5], far]))
    assert len(own) == 60
    assert rest.argmin() == 5


def test_a_quick_run_fills_all_three_tables(monkeypatch):
    cheap = {m: ({**t[0], **CHEAP.get(m, {})},) for m, t in TRIALS.items()}
    monkeypatch.setattr(gods, "TRIALS", cheap)
    monkeypatch.setattr(gods, "PUBLISHED", {**gods.PUBLISHED, "max_iter": 3, "start": "random"})
    settings = gods.PRESETS["quick"]
    cell = {"seed": 100, "rows": 40, "trials": 1, "chosen": dict.fromkeys(TRIALS, 0)}
    asked = [{**cell, "set": name, "data": load_anomalies(name).digest} for name in settings.sets]
    rows = gods.table_rows(asked, [gods.cell(c) for c in asked])
    arms = {row["arm"] for row in rows}
    assert len(arms) == 8 + 10 + 10
    assert all(0 <= row[key] <= 100 for row in rows for key in ("auc", "ap", "f1"))
    assert set(rows[0]["sets"]) == {"breast-cancer", "digits"}
    assert len(gods.judge(rows)) == 5
    assert len(gods.notes(rows, cell["chosen"])) == 4
