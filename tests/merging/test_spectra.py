"""Effective rank and how many directions count, against their formulas."""

import math

import pytest
import torch

from spanwise.merging._spectra import of_values, size_for

F64 = torch.float64


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def test_equal_values_have_the_effective_rank_of_their_number():
    found = of_values(torch.full((5,), 3.0, dtype=F64))
    assert found.rank == 5
    assert max(abs(x - 5) for x in (found.effective_rank, found.stable_rank)) < 1e-10
    assert found.skew == 1
    assert abs(found.norm - 3 * math.sqrt(5)) < 1e-10


def test_effective_rank_is_the_exponential_of_the_entropy():
    found = of_values(torch.tensor([2.0, 1, 1], dtype=F64))
    assert abs(found.effective_rank - math.exp(0.5 * math.log(2) + 0.5 * math.log(4))) < 1e-10
    assert abs(found.stable_rank - 1.5) < 1e-10
    assert abs(found.skew - 1.5) < 1e-10


def test_a_zero_update_has_no_rank():
    found = of_values(torch.zeros(0))
    assert (found.rank, found.effective_rank, found.stable_rank) == (0, 0.0, 0.0)
    assert (found.norm, found.skew, found.rank_at(0.9)) == (0.0, 0.0, 0)


@pytest.mark.parametrize("lost", [0.01, 0.05, 0.3, 0.9])
def test_the_size_is_the_smallest_that_leaves_out_no_more(lost):
    m = draw(12, 9)
    u, s, _ = torch.linalg.svd(m, full_matrices=False)
    k = size_for(s, lost)

    def left_out(k):
        return float((m - u[:, :k] @ (u[:, :k].mT @ m)).norm() / m.norm())

    assert left_out(k) <= lost
    assert left_out(k - 1) > lost


def test_the_rank_at_an_energy_holds_it_and_one_less_does_not():
    s = torch.tensor([4.0, 2, 2, 1], dtype=F64)
    assert [of_values(s).rank_at(share) for share in (0.5, 0.7, 0.9, 0.99, 1)] == [1, 2, 3, 4, 4]


def test_a_share_out_of_range_is_named():
    with pytest.raises(ValueError, match=r"lost must be in \[0, 1\)"):
        size_for(torch.ones(2), 1.0)
