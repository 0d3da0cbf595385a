"""Effective rank, alignment ratio and shared energy, against their formulas."""

import math

import pytest
import torch

from spanwise.merging._spectra import (
    alignment,
    alignments,
    of_values,
    overlap,
    size_for,
    spectrum,
)

F64 = torch.float64


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def test_equal_values_have_the_effective_rank_of_their_number():
    q = torch.linalg.qr(draw(12, 5))[0]
    found = spectrum(3 * q)
    assert found.rank == 5
    assert abs(found.effective_rank - 5) < 1e-10
    assert abs(found.stable_rank - 5) < 1e-10


def test_effective_rank_is_the_exponential_of_the_entropy():
    found = spectrum(torch.diag(torch.tensor([2.0, 1, 1, 0], dtype=F64)))
    assert abs(found.effective_rank - math.exp(0.5 * math.log(2) + 0.5 * math.log(4))) < 1e-10
    assert abs(found.stable_rank - 1.5) < 1e-10


def test_a_zero_update_has_no_rank():
    found = spectrum(torch.zeros(4, 3))
    assert (found.rank, found.effective_rank, found.stable_rank) == (0, 0.0, 0.0)


@pytest.mark.parametrize("lost", [0.01, 0.05, 0.3, 0.9])
def test_the_size_is_the_smallest_that_leaves_out_no_more(lost):
    m = draw(12, 9)
    u, s, _ = torch.linalg.svd(m, full_matrices=False)
    k = size_for(s, lost)

    def left_out(k):
        return float((m - u[:, :k] @ (u[:, :k].mT @ m)).norm() / m.norm())

    assert left_out(k) <= lost
    assert left_out(k - 1) > lost


def test_the_alignment_ratio_is_the_share_of_the_norm_in_the_merged_directions():
    updates = [draw(12, 9, seed=t) for t in range(4)]
    merged = sum(updates)
    u, s, _ = torch.linalg.svd(merged, full_matrices=False)
    k = size_for(s, 0.3)
    p = u[:, :k] @ u[:, :k].mT
    expected = [float((p @ d).norm() / d.norm()) for d in updates]
    found = alignments(updates, merged, 0.3)
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) < 1e-10
    # Every task counts alike: not the first against the merge and the rest against themselves.
    turned = alignments(updates[::-1], merged, 0.3)[::-1]
    assert max(abs(a - b) for a, b in zip(found, turned, strict=True)) < 1e-12


def test_an_update_inside_the_basis_is_aligned_and_one_outside_is_not():
    q = torch.linalg.qr(draw(10, 6))[0]
    inside, outside = q[:, :3] @ draw(3, 5), q[:, 3:] @ draw(3, 5)
    assert abs(alignment(1e-200 * inside, q[:, :3]) - 1) < 1e-10
    assert alignment(outside, q[:, :3]) < 1e-10
    assert alignment(0 * inside, q[:, :3]) == 0


def test_shared_energy_of_orthogonal_and_equal_updates():
    q = torch.linalg.qr(draw(10, 6))[0]
    a, b = q[:, :3] @ draw(3, 7), q[:, 3:] @ draw(3, 7, seed=1)
    found = overlap([a, a.clone(), b, torch.zeros(10, 7, dtype=F64)], 3)
    eye = torch.tensor([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]], dtype=F64)
    assert float((found.shared - eye).abs().max()) < 1e-10
    assert float((found.subspaces - eye).abs().max()) < 1e-10
    assert found.random.tolist() == [0.3, 0.3, 0.3, 0.0]


def test_shared_energy_is_that_of_the_projection():
    updates = [draw(12, 9, seed=t) for t in range(3)]
    found = overlap(updates, 4)
    for i, d in enumerate(updates):
        for j, other in enumerate(updates):
            u = torch.linalg.svd(other, full_matrices=False).U[:, :4]
            expected = float((u.mT @ d).square().sum() / d.square().sum())
            assert abs(float(found.shared[i, j]) - expected) < 1e-10
    assert float((found.subspaces - found.subspaces.mT).abs().max()) < 1e-12


def test_random_updates_share_what_chance_says():
    m, k = 200, 20
    pairs = [
        (overlap([draw(m, 60, seed=2 * s), draw(m, 60, seed=2 * s + 1)], k)) for s in range(10)
    ]
    shared = torch.stack([p.shared[0, 1] for p in pairs])
    inside = torch.stack([p.subspaces[0, 1] for p in pairs])
    # Four standard errors of ten draws.
    for values in (shared, inside):
        assert abs(float(values.mean()) - k / m) < 4 * float(values.std()) / math.sqrt(10) + 1e-4
    assert pairs[0].random.tolist() == [0.1, 0.1]
    assert float(pairs[0].random_subspaces[0, 1]) == 0.1


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="rank must be at least 1"):
        overlap([draw(3, 3)], 0)
    with pytest.raises(ValueError, match=r"lost must be in \[0, 1\)"):
        size_for(of_values(torch.ones(2)).values, 1.0)
    with pytest.raises(ValueError, match="updates must be matrices of one shape"):
        overlap([draw(3, 3), draw(3, 4)], 1)
    with pytest.raises(ValueError, match="1 non-finite"):
        alignment(torch.tensor([[float("nan")]]), torch.ones(1, 1))


@pytest.mark.bad_input
def test_a_basis_of_another_space_is_named():
    with pytest.raises(ValueError, match="basis must have shape"):
        alignment(draw(4, 3), draw(5, 2))
