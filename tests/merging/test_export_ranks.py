"""Ranks under a budget: the greedy choice beside every other one."""

import itertools

import pytest
import torch

from spanwise.merging._export.ranks import (
    Budget,
    greedy_ranks,
    kept,
    ranks_for_energy,
    uniform_ranks,
)


def spectra(counts, seed):
    g = torch.Generator().manual_seed(seed)
    return [
        torch.rand(n, generator=g, dtype=torch.float64).pow(3).sort(descending=True).values
        for n in counts
    ]


def size(ranks, costs):
    return sum(r * c for r, c in zip(ranks, costs, strict=True))


def everything(energies):
    return itertools.product(*(range(len(e) + 1) for e in energies))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("budget", [5, 17, 40, 63])
def test_where_directions_cost_the_same_no_ranks_within_the_budget_hold_more(seed, budget):
    energies, costs = spectra((4, 3, 5), seed), [5, 5, 5]
    ranks = greedy_ranks(energies, costs, budget)
    best = max(kept(energies, r) for r in everything(energies) if size(r, costs) <= budget)
    assert size(ranks, costs) <= budget
    assert kept(energies, ranks) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("budget", [9, 20, 37, 55])
def test_of_unequal_costs_none_that_take_as_little_hold_more_and_the_budgets_best_is_near(
    seed, budget
):
    energies, costs = spectra((4, 3, 5, 2), seed), [3, 7, 4, 11]
    ranks = greedy_ranks(energies, costs, budget)
    held, used = kept(energies, ranks), size(ranks, costs)
    assert used <= budget

    # In the order of energy per byte, up to the first direction that does not fit.
    order = sorted(
        (
            (float(v) / c, i)
            for i, (e, c) in enumerate(zip(energies, costs, strict=True))
            for v in e
        ),
        reverse=True,
    )
    first, taken = [0] * len(costs), 0
    for ratio, owner in order:  # noqa: B007 - the ratio that did not fit is needed below
        if taken + costs[owner] > budget:
            break
        first[owner] += 1
        taken += costs[owner]
    assert held >= kept(energies, first) - 1e-15
    best_below = max(kept(energies, r) for r in everything(energies) if size(r, costs) <= taken)
    assert kept(energies, first) == pytest.approx(best_below, rel=1e-12)
    best = max(kept(energies, r) for r in everything(energies) if size(r, costs) <= budget)
    assert best - held <= ratio * (budget - taken) + 1e-15


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("share", [0.3, 0.8, 0.95, 1.0])
def test_an_energy_takes_the_fewest_bytes_but_for_its_last_direction(seed, share):
    energies, costs = spectra((4, 3, 5), seed), [3, 7, 4]
    wanted = share * float(sum(e.sum() for e in energies))
    ranks = ranks_for_energy(energies, costs, wanted)
    assert kept(energies, ranks) >= wanted * (1 - 1e-12)
    enough = (r for r in everything(energies) if kept(energies, r) >= wanted * (1 - 1e-12))
    fewest = min(size(r, costs) for r in enough)
    assert fewest <= size(ranks, costs) < fewest + max(costs)


def test_directions_without_energy_are_never_taken():
    energies = [torch.tensor([4.0, 0.0, 0.0]), torch.zeros(2), torch.tensor([1.0, 1.0])]
    energies = [e.double() for e in energies]
    assert greedy_ranks(energies, [1, 1, 1], 100) == [1, 0, 2]
    assert ranks_for_energy(energies, [1, 1, 1], 100) == [1, 0, 2]
    assert uniform_ranks(energies, 2) == [1, 0, 2]


def test_a_budget_of_a_rank_takes_no_more_than_that_rank_everywhere_and_holds_no_less():
    energies, costs = spectra((9, 6, 8), 0), [9, 12, 10]
    total = float(sum(e.sum() for e in energies))
    for rank in (1, 2, 5):
        alike = Budget(rank=rank).choose(energies, costs, 4, total)
        shared = Budget(budget_rank=rank).choose(energies, costs, 4, total)
        assert size(shared, costs) <= size(alike, costs)
        assert kept(energies, shared) >= kept(energies, alike) - 1e-12
    # Without a word it is rank 16, of which small matrices have less.
    assert kept(energies, Budget().choose(energies, costs, 4, total)) == pytest.approx(total)
    Budget().check([(3, 4)], 4)
    capped = Budget(budget_rank=5, max_rank=4).choose(energies, costs, 4, total)
    assert max(capped) <= 4


def test_megabytes_count_the_bytes_of_the_dtype():
    energies, costs = spectra((9, 6), 0), [10, 10]
    assert size(Budget(megabytes=40e-6).choose(energies, costs, 4, 1.0), costs) == 10
    assert size(Budget(megabytes=40e-6).choose(energies, costs, 2, 1.0), costs) == 20
    assert size(Budget(parameters=59).choose(energies, costs, 2, 1.0), costs) == 50


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"budget_rank": -2}, "budget_rank must be at least 1"),
        ({"parameters": 0}, "parameters must be at least 1"),
        ({"max_rank": 0}, "max_rank must be at least 1"),
        ({"energy": 0.0}, r"must be in \(0, 1\], got 0.0: 0.95 for 95 %"),
        ({"energy": 95.0}, r"must be in \(0, 1\], got 95.0"),
        ({"megabytes": -1.0}, "megabytes must be positive"),
        ({"megabytes": float("nan")}, "megabytes must be positive"),
        ({"rank": 4, "energy": 0.9}, "rank and energy both say how large"),
    ],
)
def test_a_budget_out_of_its_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Budget(**options)


def test_a_rank_above_every_matrix_and_a_budget_below_one_direction_are_refused():
    dims = [(8, 6), (4, 9)]
    Budget(rank=6).check(dims, 4)
    with pytest.raises(ValueError, match=r"rank = 7 exceeds min\(m, n\) = 6 of the largest"):
        Budget(rank=7).check(dims, 4)
    with pytest.raises(ValueError, match="budget_rank = 7 exceeds"):
        Budget(budget_rank=7).check(dims, 4)
    with pytest.raises(ValueError, match="below the 13 that one direction"):
        Budget(parameters=12).check(dims, 4)


@pytest.mark.bad_input
def test_a_rank_is_a_whole_number():
    with pytest.raises(TypeError, match="rank must be a whole number"):
        Budget(rank=2.5)
