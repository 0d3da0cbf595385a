"""DELLA: dropping by the rank of magnitudes."""

import pytest
import torch
from tests.conformance.merging import MergeSuite, models

from spanwise.merging import merge


class TestDella(MergeSuite):
    method = "della"
    permutes = False


class TestDellaLinear(MergeSuite):
    method = "della_linear"
    options = {"rescale": "l1"}  # noqa: RUF012
    permutes = False


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_chance_rises_with_the_rank_and_the_mean_is_the_update(dtype):
    base = {"w": torch.zeros(2, 5, dtype=torch.float64)}
    tuned = {"w": torch.tensor([[5.0, -1, 3, -4, 2], [0.1, 0.5, 0.4, -0.3, 0.2]]).double()}
    ranks = tuned["w"].abs().argsort(1).argsort(1).double()
    chance = 0.5 - 0.3 + 0.6 * ranks / 4
    seeds, total, kept = 400, torch.zeros(2, 5).double(), torch.zeros(2, 5).double()
    for seed in range(seeds):
        merged = merge(
            base, [tuned], "della_linear", density=0.5, epsilon=0.3, seed=seed, work_dtype=dtype
        )
        total += merged["w"]
        kept += merged["w"] != 0
    assert ((kept / seeds - chance).abs() <= 4 * (chance * (1 - chance) / seeds).sqrt()).all()
    sigma = tuned["w"].abs() * ((1 - chance) / chance / seeds).sqrt()
    assert ((total / seeds - tuned["w"]).abs() <= 4 * sigma).all()


def test_what_is_kept_is_divided_by_its_chance():
    base, tuned = models(1)
    merged = merge(base, tuned, "della_linear", work_dtype=torch.float64)
    update = (tuned[0]["embed.weight"] - base["embed.weight"]).double()
    chance = 0.35 + 0.3 * update.abs().argsort(1).argsort(1).double() / 5
    found = merged.delta["embed.weight"]
    expected = torch.where(found != 0, update / chance, 0.0)
    assert found.any()
    assert torch.allclose(found, expected, atol=1e-10, rtol=0)


def test_l1_restores_the_sum_of_magnitudes():
    base, tuned = models(1)
    merged = merge(base, tuned, "della_linear", rescale="l1", work_dtype=torch.float64)
    update = tuned[0]["embed.weight"] - base["embed.weight"]
    found = merged.delta["embed.weight"]
    assert float(found.abs().sum()) == pytest.approx(float(update.abs().sum()), rel=1e-12)


def test_without_dropping_it_is_task_arithmetic():
    base, tuned = models(3)
    della = merge(base, tuned, "della_linear", density=1.0)
    sums = merge(base, tuned, "task_arithmetic")
    assert all(torch.equal(della[n], sums[n]) for n in base)


def test_della_elects_among_what_is_kept():
    base, tuned = models(3)
    kept = [
        merge(base, {f"model {i}": t}, "della_linear", work_dtype=torch.float64).delta
        for i, t in enumerate(tuned, 1)
    ]
    merged = merge(base, tuned, "della", work_dtype=torch.float64)
    for name, update in merged.delta.items():
        x = torch.stack([k[name] for k in kept])
        agree = (x.sign() == torch.where(x.sum(0) >= 0, 1.0, -1.0)) & (x != 0)
        expected = (x * agree).sum(0) / agree.sum(0).clamp(min=1)
        assert torch.allclose(update, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("rescale", ["expectation", "l1"])
def test_rows_in_blocks_draw_the_same_masks(rescale, monkeypatch):
    base, tuned = models(2)
    monkeypatch.setattr("spanwise.merging._methods._draws.STRETCH", 10)
    whole = merge(base, tuned, "della", rescale=rescale, work_dtype=torch.float64)
    monkeypatch.setattr("spanwise.merging._job.BLOCK", 13)
    blocks = merge(base, tuned, "della", rescale=rescale, work_dtype=torch.float64)
    for name in whole.delta:
        assert torch.allclose(whole.delta[name], blocks.delta[name], atol=1e-14, rtol=1e-14)


@pytest.mark.parametrize(
    ("density", "epsilon"), [(0.9, 0.15), (0.1, 0.15), (0.5, -0.1), (1.0, -1.0)]
)
def test_probabilities_outside_are_refused(density, epsilon):
    base, tuned = models(1)
    with pytest.raises(ValueError, match=r"must lie inside \(0, 1\)"):
        merge(base, tuned, "della", density=density, epsilon=epsilon)
