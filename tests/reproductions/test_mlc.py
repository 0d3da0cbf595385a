"""The clustering experiment: its choice without labels, its rivals, its verdict, its run."""

from dataclasses import replace

import pytest
import torch

from examples import ROOT
from spanwise.estimators import clustering_accuracy
from spanwise.report import Result
from spanwise.reproductions import _mlc_sets as sets
from spanwise.reproductions import mlc
from spanwise.reproductions._mlc_arms import Reference, kmeans, least_squares, neighbours, scores


@pytest.fixture
def lines():
    """Four 2-planes of twenty dimensions, and which of them."""
    generator = torch.Generator().manual_seed(0)
    bases = torch.linalg.qr(torch.randn(4, 20, 2, generator=generator))[0]
    points = torch.randn(4, 60, 2, generator=generator) @ bases.mT
    noise = 0.01 * torch.randn(240, 20, generator=generator)
    return points.flatten(0, 1) + noise, torch.arange(4).repeat_interleave(60)


def test_the_reference_prefers_the_classes_to_what_mixes_them(lines):
    X, truth = lines
    mixed = truth.roll(30)
    chance = truth[torch.randperm(240, generator=torch.Generator().manual_seed(1))]
    found = {"chance": chance, "mixed": mixed, "true": truth}
    reference = Reference(X)
    assert reference.best(found) == "true"
    assert reference.length(mixed) < reference.length(chance)


def test_subspaces_are_found_by_least_squares_where_k_means_fails(lines):
    X, truth = lines
    assert clustering_accuracy(truth, least_squares(X, 4, 1.0, 0)) > 0.95
    assert clustering_accuracy(truth, kmeans(X, 4, 0)) < 0.8
    assert neighbours(X, 4, 10, 0).shape == truth.shape
    assert scores(truth, truth + 3) == {"accuracy": 100.0, "nmi": pytest.approx(100.0)}


def test_a_seed_takes_its_own_part_and_repeats_it():
    first, again, other = (sets.part("digits", seed, 300) for seed in (100, 100, 101))
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])
    assert len(sets.digest("digits")) == 64


def test_the_committed_verdict_follows_from_its_rows():
    result = Result.load(ROOT / "results" / "mlc.json")
    checks = mlc.judge(result.rows, result.settings["sets"])
    assert [c.statement for c in checks] == [c.statement for c in result.verdict.checks]
    assert [c.holds for c in checks] == [c.holds for c in result.verdict.checks]
    assert result.criterion == mlc.CRITERION


@pytest.mark.slow
def test_a_small_run_goes_through(tmp_path):
    settings = replace(mlc.PRESETS["quick"], samples=120, epochs=1, first_epochs=1)
    result = mlc.run(settings, preset="quick", workers=1, cache=tmp_path)
    assert result.verdict.outcome == "no verdict"
    assert {row["arm"] for row in result.rows} == {f"digits-{method}" for method in mlc.METHODS}
    assert all(0 <= row["accuracy"] <= 100 for row in result.rows)
    with pytest.raises(ValueError, match="sets must be some of digits, usps"):
        mlc.Settings(sets=("cifar",))
