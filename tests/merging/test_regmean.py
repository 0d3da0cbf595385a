"""RegMean and Fisher merging: closed forms, and what is done where they have none."""

import pytest
import torch
from tests.conformance.merging import MergeSuite, models
from tests.merging.quadratic import DOWN, F64, LINEAR, UP, case, draw, means_of, shrink, stats_of

from spanwise.merging import Stats, merge

pytestmark = pytest.mark.filterwarnings("ignore:.*lack statistics")


class TestRegMean(MergeSuite):
    method = "regmean"
    permutes = False  # statistics belong to their models; see the test below

    def run(self, base, tuned, **more):
        return super().run(base, tuned, stats=stats_of(models(1)[0]), **more)


class TestFisher(TestRegMean):
    method = "fisher"


def run(base, tuned, stats, method="regmean", **more):
    return merge(base, tuned, method, stats=stats, work_dtype=F64, **more)


@pytest.mark.parametrize("lam", [1.0, 0.9, 0.3])
@pytest.mark.parametrize("based", [True, False])
def test_regmean_is_the_closed_form(lam, based):
    base, tuned, stats = case()
    merged = run(base if based else None, tuned, stats, lam=lam, weight=[1, 2, 0.5])
    for name in LINEAR:
        grams = [w * shrink(s[name]["gram"], lam) for w, s in zip([1, 2, 0.5], stats, strict=True)]
        right = sum(c @ t[name].mT for c, t in zip(grams, tuned, strict=True))
        assert torch.allclose(merged[name].mT, torch.linalg.solve(sum(grams), right), atol=1e-10)
        assert merged.log[name]["rank"] == len(grams[0])


def test_lam_zero_weighs_columns_by_the_energy_of_their_inputs():
    base, tuned, stats = case()
    merged = run(base, tuned, stats, lam=0.0)
    energies = [s[UP]["gram"].diagonal() for s in stats]
    mean = sum(e * t[UP] for e, t in zip(energies, tuned, strict=True)) / sum(energies)
    assert torch.allclose(merged[UP], mean, atol=1e-12, rtol=0)


@pytest.mark.parametrize("noise", [0.0, 1e-17])
def test_official_defect_a_singular_gram_is_no_reason_for_noise(noise):
    base, tuned, _ = case(2)
    means = [means_of(base, seed, rank=2) for seed in (1, 2)]
    for held in means:
        held[DOWN]["gram"] = held[DOWN]["gram"] + noise * torch.eye(10, dtype=F64)
    merged = run(base, tuned, [Stats.from_means(held) for held in means], lam=1.0)
    total = sum(held[DOWN]["gram"] for held in means)
    right = sum(h[DOWN]["gram"] @ t[DOWN].mT for h, t in zip(means, tuned, strict=True))
    mean = (tuned[0][DOWN] + tuned[1][DOWN]).mT / 2
    anchored = mean + torch.linalg.pinv(total, hermitian=True, rtol=1e-10) @ (right - total @ mean)
    assert torch.allclose(merged[DOWN].mT, anchored, atol=1e-9, rtol=0)
    assert merged.log[DOWN]["rank"] == 4
    # The inverse, where there is one at all, is a thousand times off.
    inverse = torch.linalg.inv_ex(total)[0] @ right
    assert not bool((inverse - anchored).abs().max() < 1e-3)


def test_a_dead_input_keeps_the_average():
    base, tuned, _ = case()
    means = [means_of(base, seed) for seed in (1, 2, 3)]
    for held in means:
        held[UP]["gram"][2], held[UP]["gram"][:, 2] = 0, 0
    merged = run(base, tuned, [Stats.from_means(held) for held in means])
    mean = sum(t[UP] for t in tuned) / 3
    assert torch.allclose(merged[UP][:, 2], mean[:, 2], atol=1e-14, rtol=0)


@pytest.mark.parametrize("method", ["regmean", "fisher"])
def test_one_model_is_returned_and_the_order_does_not_matter(method):
    base, tuned, stats = case()
    one = run(base, tuned[:1], stats[:1], method)
    assert all(torch.allclose(one[n], tuned[0][n], atol=1e-12, rtol=0) for n in base)
    there, back = run(base, tuned, stats, method), run(base, tuned[::-1], stats[::-1], method)
    assert all(torch.allclose(there[n], back[n], atol=1e-12, rtol=0) for n in LINEAR)


def test_transposed_storage_gives_the_transposed_result():
    base, tuned, _ = case()
    means = [{UP: {"gram": means_of(base, seed)[UP]["gram"]}} for seed in (1, 2, 3)]
    flipped = [{**t, UP: t[UP].mT.contiguous()} for t in (base, *tuned)]
    plain = run(base, tuned, [Stats.from_means(held) for held in means])
    stored = [Stats.from_means(held, layouts={UP: "transposed"}) for held in means]
    other = run(flipped[0], flipped[1:], stored)
    assert torch.allclose(plain[UP], other[UP].mT, atol=1e-12, rtol=0)


@pytest.mark.parametrize("based", [True, False])
def test_fisher_is_the_weighted_average_of_every_tensor(based):
    base, tuned, stats = case()
    merged = run(base if based else None, tuned, stats, "fisher", weight=[1, 2, 0.5])
    for name, tensor in base.items():
        if tensor.is_floating_point():
            fishers = [
                w * s[name]["diag_fisher"].clamp(min=1e-8)
                for w, s in zip([1, 2, 0.5], stats, strict=True)
            ]
            mean = sum(f * t[name] for f, t in zip(fishers, tuned, strict=True)) / sum(fishers)
            assert torch.allclose(merged[name], mean, atol=1e-12, rtol=0)


def test_a_fisher_of_zero_gives_the_average():
    base, tuned, _ = case()
    means = [means_of(base, seed) for seed in (1, 2, 3)]
    for held in means:
        held[UP]["diag_fisher"][3] = 0
    merged = run(base, tuned, [Stats.from_means(held) for held in means], "fisher")
    mean = sum(t[UP] for t in tuned) / 3
    assert torch.allclose(merged[UP][3], mean[3], atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("regmean", {"lam": 2.0}, "lam must be between 0 and 1"),
        ("fisher", {"floor": 0.0}, "floor must be positive"),
        ("fisher", {"weight": -1.0}, "weight must not be negative"),
        ("regmean", {"weight": 0.0}, "sum to 0"),
    ],
)
def test_parameters_out_of_range_are_named(method, options, message):
    base, tuned, stats = case()
    with pytest.raises(ValueError, match=message):
        run(base, tuned, stats, method, **options)


def test_rank_one_data_moves_one_direction_only():
    base, tuned, _ = case(2)
    x, y = draw(6, seed=8), draw(6, seed=9)
    means = [{UP: {"gram": v.outer(v)}} for v in (x, y)]
    merged = run(base, tuned, [Stats.from_means(held) for held in means], lam=1.0)[UP]
    assert torch.allclose(merged @ x, tuned[0][UP] @ x, atol=1e-9, rtol=0)
    assert torch.allclose(merged @ y, tuned[1][UP] @ y, atol=1e-9, rtol=0)
