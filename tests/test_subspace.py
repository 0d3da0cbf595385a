"""Subspace: theorems about projections, energies, angles and set algebra."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spanwise.subspace import Subspace, energy_rank

TIGHT = {"rtol": 1e-10, "atol": 1e-10}


def draw(d, r, seed=0, batch=()):
    generator = torch.Generator().manual_seed(seed)
    return Subspace.random(d, r, generator=generator, batch=batch, dtype=torch.float64)


def matrix(m, n, seed=0, batch=()):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*batch, m, n, generator=generator, dtype=torch.float64)


@settings(max_examples=25, deadline=None)
@given(d=st.integers(1, 12), seed=st.integers(0, 1000), data=st.data())
def test_projection_is_idempotent_and_splits_a_vector_orthogonally(d, seed, data):
    s = draw(d, data.draw(st.integers(1, d)), seed)
    x = matrix(d, 3, seed + 1)
    inside, outside = s.project(x), s.reject(x)
    torch.testing.assert_close(s.project(inside), inside, **TIGHT)
    torch.testing.assert_close(inside + outside, x, **TIGHT)
    torch.testing.assert_close(inside.mT @ outside, torch.zeros(3, 3).double(), **TIGHT)
    torch.testing.assert_close(s.lift(s.coordinates(x)), inside, **TIGHT)


def test_projection_equals_the_dense_projector():
    s, x = draw(7, 3), matrix(7, 4, 1)
    torch.testing.assert_close(s.project(x), s.basis @ s.basis.T @ x, **TIGHT)
    torch.testing.assert_close(s.project(x[:, 0]), (s.basis @ s.basis.T) @ x[:, 0], **TIGHT)


def test_batched_subspaces_project_each_its_own():
    s, x = draw(6, 2, batch=(3,)), matrix(6, 4, 1, batch=(3,))
    for i in range(3):
        torch.testing.assert_close(s.project(x)[i], Subspace(s.basis[i]).project(x[i]), **TIGHT)


def test_the_complement_swaps_project_and_reject_and_holds_no_basis():
    s, x = draw(7, 3), matrix(7, 2, 1)
    complement = ~s
    torch.testing.assert_close(complement.project(x), s.reject(x), **TIGHT)
    torch.testing.assert_close(complement.reject(x), s.project(x), **TIGHT)
    assert ~complement is s
    assert (complement.rank, complement.dim) == (4, 7)
    assert vars(complement) == {"subspace": s}


def test_a_materialized_complement_projects_alike():
    s, x = draw(7, 3), matrix(7, 2, 1)
    dense = (~s).materialize()
    assert dense.rank == 4
    torch.testing.assert_close(dense.project(x), (~s).project(x), **TIGHT)


@pytest.mark.parametrize("side", ["output", "input"])
def test_from_matrix_keeps_the_leading_singular_vectors(side):
    m = matrix(6, 9)
    u, values, vh = torch.linalg.svd(m, full_matrices=False)
    s = Subspace.from_matrix(m, rank=2, side=side)
    reference = u[:, :2] if side == "output" else vh[:2].T
    torch.testing.assert_close(s.basis @ s.basis.T, reference @ reference.T, **TIGHT)
    torch.testing.assert_close(s.values, values[:2], **TIGHT)


@settings(max_examples=25, deadline=None)
@given(energy=st.floats(0.01, 1.0), seed=st.integers(0, 100))
def test_from_matrix_keeps_the_fewest_directions_with_the_energy(energy, seed):
    m = matrix(6, 5, seed)
    s = Subspace.from_matrix(m, energy=energy)
    assert float(s.energy(m)) >= energy - 1e-10
    if s.rank > 1:
        assert float(Subspace(s.basis[:, :-1]).energy(m)) < energy


def test_an_energy_reached_exactly_needs_no_further_direction():
    m = torch.diag(torch.tensor([2.0, 2.0, 2.0, 2.0, 2.0], dtype=torch.float64))
    assert Subspace.from_matrix(m, energy=0.6).rank == 3


def test_full_energy_of_a_rank_deficient_matrix_is_its_range():
    m = matrix(8, 3) @ matrix(3, 6, 1)
    assert Subspace.from_matrix(m, energy=1.0).rank == 3


def test_energy_is_the_share_of_squared_singular_values():
    m = matrix(6, 4)
    values = torch.linalg.svdvals(m) ** 2
    for side in ("output", "input"):
        s = Subspace.from_matrix(m, rank=2, side=side)
        share = float(s.energy(m, side))
        assert share == pytest.approx(float(values[:2].sum() / values.sum()), abs=1e-10)


def test_batched_energy_rank_serves_the_neediest():
    assert energy_rank(torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]]), 0.9) == 3
    assert energy_rank(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), 0.9) == 1


def test_dimensions_of_union_and_intersection_add_up():
    q = draw(12, 9).basis
    a, b = Subspace(q[:, :5]), Subspace(q[:, 3:9])
    union, common = a.union(b), a.intersection(b)
    assert (union.rank, common.rank) == (9, 2)
    assert union.rank + common.rank == a.rank + b.rank
    torch.testing.assert_close(union.project(b.basis), b.basis, **TIGHT)
    torch.testing.assert_close(union.project(a.basis), a.basis, **TIGHT)
    torch.testing.assert_close(a.project(common.basis), common.basis, **TIGHT)
    torch.testing.assert_close(b.project(common.basis), common.basis, **TIGHT)
    assert union.values is None


def test_subspaces_in_general_position_share_nothing():
    assert draw(10, 3).intersection(draw(10, 3, 1)) is None


def test_angles_recover_a_known_rotation():
    e = torch.eye(4, dtype=torch.float64)
    tilted = torch.stack([e[:, 0], math.cos(0.3) * e[:, 1] + math.sin(0.3) * e[:, 2]], dim=1)
    angles = Subspace(e[:, :2]).angles(Subspace(tilted))
    torch.testing.assert_close(angles, torch.tensor([0.0, 0.3], dtype=torch.float64), **TIGHT)
    chordal = Subspace(e[:, :2]).distance(Subspace(tilted))
    assert float(chordal) == pytest.approx(math.sin(0.3), abs=1e-10)


def test_projection_passes_gradients():
    s = draw(6, 2)
    x = matrix(6, 2, 1).requires_grad_()
    s.project(x).square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * s.project(x.detach()), **TIGHT)


def test_half_precision_matrices_are_decomposed_in_float32():
    m = matrix(8, 6).bfloat16()
    s = Subspace.from_matrix(m, rank=3)
    assert s.basis.dtype == torch.float32
    torch.testing.assert_close(s.basis.mT @ s.basis, torch.eye(3), rtol=0, atol=1e-6)


def test_a_random_subspace_follows_its_generator_only():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    a = Subspace.random(6, 2, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(2)
    b = Subspace.random(6, 2, generator=torch.Generator().manual_seed(3))
    assert torch.equal(a.basis, b.basis)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_moving_keeps_values_and_mean():
    s = Subspace(torch.eye(3)[:, :2], torch.ones(2), torch.zeros(3)).to(dtype=torch.float64)
    assert {s.basis.dtype, s.values.dtype, s.mean.dtype} == {torch.float64}


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({}, "exactly one of rank and energy"),
        ({"rank": 2, "energy": 0.5}, "exactly one of rank and energy"),
        ({"energy": 0.0}, r"energy must be a share in \(0, 1\], got 0.0"),
        ({"energy": 1.5}, r"energy must be a share in \(0, 1\], got 1.5"),
        ({"rank": 0}, "rank"),
        ({"rank": 9}, "rank"),
        ({"rank": 2, "side": "left"}, 'side must be "output" or "input"'),
    ],
)
def test_from_matrix_refuses(arguments, match):
    with pytest.raises(ValueError, match=match):
        Subspace.from_matrix(matrix(4, 5), **arguments)


@pytest.mark.bad_input
@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_energy_of_nothing_or_of_nonsense_is_an_error(bad):
    with pytest.raises(ValueError, match="finite"):
        Subspace.from_matrix(torch.full((3, 3), bad), energy=0.5)


@pytest.mark.bad_input
def test_shapes_and_kinds_are_checked_at_construction():
    with pytest.raises(ValueError, match=r"tall.*\.mT"):
        Subspace(torch.eye(4)[:2])
    with pytest.raises(ValueError, match=r"values must have shape \(2,\)"):
        Subspace(torch.eye(4)[:, :2], torch.ones(3))
    with pytest.raises(ValueError, match=r"mean must have shape \(4,\)"):
        Subspace(torch.eye(4)[:, :2], mean=torch.ones(2))
    with pytest.raises(TypeError, match="floating-point"):
        Subspace(torch.ones(3, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="union takes single subspaces"):
        draw(4, 2, batch=(2,)).union(draw(4, 2))
