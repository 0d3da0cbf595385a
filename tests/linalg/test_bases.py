"""Orthonormal bases against scipy, dense references and identities."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.bases import BasisSuite, defect, gap, rank_matrix
from spanwise.linalg import (
    align,
    complement,
    coordinates,
    distance,
    intersection,
    lift,
    orthonormalize,
    outside,
    principal_angles,
    project,
    random_basis,
    reject,
    union,
)

F64 = torch.float64


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def basis(d, r, seed=0, dtype=F64, batch=()):
    return random_basis(d, r, generator=seeded(seed), dtype=dtype, batch=batch)


def projector(u):
    return u @ u.mT


@st.composite
def dimensions(draw, count=1, most=12):
    """An ambient dimension and `count` ranks that fit it together."""
    d = draw(st.integers(count, most))
    ranks = []
    for left in reversed(range(count)):
        ranks.append(draw(st.integers(1, d - sum(ranks) - left)))
    return d, *ranks, draw(st.integers(0, 10**6))


class TestOrthonormalize(BasisSuite):
    columns = None

    def make(self, m, rank, generator=None):
        return orthonormalize(m)


@given(dimensions())
@settings(max_examples=40, deadline=None)
def test_qr_keeps_the_flag_and_the_orientation_of_the_columns(dims):
    d, r, seed = dims
    m = torch.randn(d, r, generator=seeded(seed), dtype=F64)
    triangle = orthonormalize(m).mT @ m
    assert triangle.tril(-1).abs().max() < 1e-10
    assert (triangle.diagonal() > 0).all()


def test_qr_of_a_basis_is_that_basis():
    u = basis(20, 6)
    torch.testing.assert_close(orthonormalize(u), u, atol=1e-13, rtol=0)


@pytest.mark.parametrize("rank", [0, 1, 4])
def test_tolerance_drops_dependent_columns(rank):
    m = rank_matrix(12, 7, rank)
    found = orthonormalize(m, tolerance=1e-8)
    assert found.shape == (12, rank)
    assert torch.allclose(found.mT @ found, torch.eye(rank, dtype=F64), atol=1e-12)
    torch.testing.assert_close(found @ (found.mT @ m), m, atol=1e-10, rtol=0)


def test_tolerance_keeps_what_exceeds_it():
    m = basis(10, 3) * torch.tensor([1.0, 1e-3, 1e-5], dtype=F64)
    assert [orthonormalize(m, tolerance=t).shape[1] for t in (1e-6, 1e-4, 1e-2)] == [3, 2, 1]


def test_tolerance_takes_more_columns_than_rows():
    m = torch.randn(4, 9, dtype=F64)
    torch.testing.assert_close(
        projector(orthonormalize(m, tolerance=1e-8)), torch.eye(4, dtype=F64)
    )


@given(dimensions())
@settings(max_examples=40, deadline=None)
def test_project_and_reject_split_a_vector_orthogonally(dims):
    d, r, seed = dims
    u, x = basis(d, r, seed), torch.randn(d, 3, generator=seeded(seed + 1), dtype=F64)
    inside, rest = project(u, x), reject(u, x)
    torch.testing.assert_close(inside, projector(u) @ x, atol=1e-12, rtol=0)
    torch.testing.assert_close(inside + rest, x, atol=1e-12, rtol=0)
    torch.testing.assert_close(project(u, inside), inside, atol=1e-12, rtol=0)
    assert (u.mT @ rest).abs().max() < 1e-12
    torch.testing.assert_close(lift(u, coordinates(u, x)), inside, atol=1e-12, rtol=0)


def test_one_basis_acts_on_a_batch_and_a_batch_on_one():
    u, x = basis(9, 4), torch.randn(2, 3, 9, 5, dtype=F64)
    torch.testing.assert_close(project(u, x)[1, 2], project(u, x[1, 2]), atol=1e-12, rtol=0)
    many = basis(9, 4, batch=(2, 3))
    torch.testing.assert_close(
        reject(many, x[0, 0])[1, 2], reject(many[1, 2], x[0, 0]), atol=1e-12, rtol=0
    )


@pytest.mark.parametrize(
    ("left", "right", "result"),
    [
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
        (torch.float64, torch.float32, torch.float64),
    ],
)
def test_acting_returns_the_wider_dtype(left, right, result):
    u, x = basis(16, 4).to(left), torch.randn(16, 3).to(right)
    for act in (project, reject, coordinates):
        assert act(u, x).dtype == result
    assert lift(u, coordinates(u, x)).dtype == result


def test_half_precision_is_multiplied_in_float32():
    u, x = basis(512, 8).bfloat16(), torch.randn(512, 3).bfloat16()
    expected = u.float() @ (u.float().mT @ x.float())
    assert torch.equal(project(u, x), expected.bfloat16())


@given(dimensions())
@settings(max_examples=30, deadline=None)
def test_complement_completes_the_identity(dims):
    d, r, seed = dims
    u = basis(d, r, seed)
    rest = complement(u)
    assert rest.shape == (d, d - r)
    identity = torch.eye(d, dtype=F64)
    torch.testing.assert_close(projector(u) + projector(rest), identity, atol=1e-12, rtol=0)


def test_complement_of_nothing_is_everything():
    torch.testing.assert_close(
        projector(complement(torch.empty(5, 0, dtype=F64))), torch.eye(5, dtype=F64)
    )


def test_random_basis_is_uniform():
    # For Haar measure E[U U^T] = (r/d) I, and the first column's first entry is symmetric.
    u = basis(4, 2, batch=(20_000,))
    assert defect(u) < 1e-12
    assert (projector(u).mean(0) - torch.eye(4, dtype=F64) / 2).abs().max() < 0.01
    assert abs(float(u[:, 0, 0].mean())) < 0.02
    assert abs(float((u[:, 0, 0] ** 4).mean()) - 3 / 24) < 0.01  # 3 / (d (d + 2))


def test_random_basis_follows_its_generator_only():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    assert torch.equal(random_basis(8, 3), random_basis(8, 3))
    assert torch.equal(basis(8, 3, seed=5), basis(8, 3, seed=5))
    assert not torch.equal(basis(8, 3, seed=5), basis(8, 3, seed=6))
    assert torch.equal(torch.get_rng_state(), state)
    generator = seeded(5)
    first = random_basis(8, 3, generator=generator)
    assert not torch.equal(first, random_basis(8, 3, generator=generator))


def test_random_basis_in_half_precision_is_the_rounded_float32_one():
    rounded = basis(8, 3, dtype=torch.bfloat16)
    assert torch.equal(rounded, basis(8, 3, dtype=torch.float32).bfloat16())


@given(dimensions(count=2))
@settings(max_examples=40, deadline=None)
def test_outside_is_orthogonal_to_what_is_blocked_and_nearest_to_the_basis(dims):
    d, p, r, seed = dims
    blocked, u = basis(d, p, seed), basis(d, r, seed + 1)
    found = outside(u, blocked)
    assert found.shape == u.shape
    assert defect(found) < 1e-12
    assert (blocked.mT @ found).abs().max() < 1e-12
    rest = u - projector(blocked) @ u
    # The span is that of the rejected columns, unless rounding is all that is left of one.
    if torch.linalg.svdvals(rest)[-1] > 1e-4:
        assert gap(rest / rest.norm(dim=0), found) < 1e-10


def test_outside_survives_columns_that_are_blocked():
    blocked = basis(12, 4)
    u = torch.cat([blocked[:, :2], basis(12, 3, seed=1)], dim=1)
    found = outside(u, blocked)
    assert defect(found) < 1e-12
    assert (blocked.mT @ found).abs().max() < 1e-12


def test_outside_of_nothing_is_the_basis():
    u = basis(7, 3)
    torch.testing.assert_close(outside(u, u.new_empty(7, 0)), u, atol=1e-13, rtol=0)


def test_outside_blocks_every_matrix_of_a_batch():
    found = outside(basis(9, 2, batch=(3,)), basis(9, 4, seed=1))
    assert (basis(9, 4, seed=1).mT @ found).abs().max() < 1e-12


@given(dimensions(count=3))
@settings(max_examples=40, deadline=None)
def test_union_and_intersection_know_what_two_spans_share(dims):
    d, shared, only_a, seed = dims[0], dims[1], dims[2], dims[-1]
    whole = basis(d, min(d, shared + only_a + dims[3]), seed)
    a, b = (
        whole[:, : shared + only_a],
        torch.cat([whole[:, :shared], whole[:, shared + only_a :]], 1),
    )
    a, b = orthonormalize(a @ basis(a.shape[1], a.shape[1], 1)), orthonormalize(b.flip(1))
    both, common = union(a, b), intersection(a, b)
    assert both.shape == whole.shape
    assert common.shape == (d, shared)
    assert defect(both) < 1e-12
    torch.testing.assert_close(projector(both), projector(whole), atol=1e-10, rtol=0)
    expected = projector(whole[:, :shared])
    torch.testing.assert_close(projector(common), expected, atol=1e-8, rtol=0)
    assert torch.equal(both[:, : a.shape[1]], a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_union_with_itself_adds_nothing(dtype):
    a = basis(300, 60, dtype=dtype)
    turned = orthonormalize(a @ basis(60, 60, seed=1, dtype=dtype))
    assert union(a, turned).shape == a.shape
    assert intersection(a, turned).shape == a.shape


def test_union_stops_at_the_whole_space():
    assert union(basis(6, 4), basis(6, 5, seed=1)).shape == (6, 6)


def test_union_with_an_empty_basis():
    a, empty = basis(6, 2), torch.empty(6, 0, dtype=F64)
    assert torch.equal(union(a, empty), a)
    torch.testing.assert_close(projector(union(empty, a)), projector(a), atol=1e-12, rtol=0)
    assert intersection(a, empty).shape == (6, 0)


def rotated_pair(angles, seed=0):
    """Two bases of R^(2k) whose principal angles are `angles`."""
    k = len(angles)
    q = basis(2 * k, 2 * k, seed)
    t = torch.tensor(angles, dtype=F64)
    a = q[:, :k]
    return a, a * t.cos() + q[:, k:] * t.sin()


def test_tolerances_are_angles():
    a, b = rotated_pair([0.0, 1e-4, 1e-2, 1.0])
    ranks = [intersection(a, b, max_angle=t).shape[1] for t in (1e-6, 1e-3, 0.1, 1.2)]
    assert ranks == [1, 2, 3, 4]
    assert [union(a, b, tolerance=t).shape[1] for t in (1e-6, 1e-3, 0.1)] == [7, 6, 5]


def test_intersection_is_the_bisector_and_symmetric():
    a, b = rotated_pair([0.2, 1.3])
    c = intersection(a, b, max_angle=0.5)
    torch.testing.assert_close(principal_angles(c, a), torch.tensor([0.1], dtype=F64))
    torch.testing.assert_close(principal_angles(c, b), torch.tensor([0.1], dtype=F64))
    other = projector(intersection(b, a, max_angle=0.5))
    torch.testing.assert_close(projector(c), other, atol=1e-12, rtol=0)


@pytest.mark.parametrize("theta", [0.0, 1e-12, 1e-10, 1e-4, 0.7, 1.5, math.pi / 2])
def test_angles_recover_a_known_rotation(theta):
    a, b = rotated_pair([theta, 0.3])
    expected = torch.tensor(sorted([theta, 0.3]), dtype=F64)
    torch.testing.assert_close(principal_angles(a, b), expected, atol=1e-14, rtol=1e-12)


@given(dimensions(count=2))
@settings(max_examples=40, deadline=None)
def test_angles_agree_with_scipy(dims):
    d, r, s, seed = dims
    a, b = basis(d, r, seed), basis(d, s, seed + 1)
    expected = np.sort(scipy.linalg.subspace_angles(a.numpy(), b.numpy()))
    np.testing.assert_allclose(principal_angles(a, b).numpy(), expected, atol=1e-10)


def test_angles_are_batched_and_symmetric():
    a, b = basis(9, 4, batch=(3,)), basis(9, 2, seed=1)
    angles = principal_angles(a, b)
    assert angles.shape == (3, 2)
    torch.testing.assert_close(angles, principal_angles(b, a), atol=1e-12, rtol=0)
    torch.testing.assert_close(angles[1], principal_angles(a[1], b), atol=1e-12, rtol=0)


@given(dimensions(count=2))
@settings(max_examples=30, deadline=None)
def test_distances_are_those_of_the_projectors(dims):
    d, r, _, seed = dims
    a, b = basis(d, r, seed), basis(d, r, seed + 1)
    apart = projector(a) - projector(b)
    chordal = torch.linalg.matrix_norm(apart) / math.sqrt(2)
    torch.testing.assert_close(distance(a, b), chordal, atol=1e-10, rtol=0)
    spectral = torch.linalg.matrix_norm(apart, ord=2)
    torch.testing.assert_close(distance(a, b, "projection"), spectral, atol=1e-10, rtol=0)
    geodesic = principal_angles(a, b).norm()
    torch.testing.assert_close(distance(a, b, "geodesic"), geodesic, atol=1e-12, rtol=0)


@pytest.mark.parametrize("metric", ["chordal", "geodesic", "projection"])
def test_distance_is_a_metric(metric):
    a, b, c = (basis(8, 3, seed=i) for i in range(3))
    assert distance(a, a, metric) < 1e-12
    assert distance(a, c, metric) <= distance(a, b, metric) + distance(b, c, metric) + 1e-12
    turned = a @ basis(3, 3, seed=9)
    torch.testing.assert_close(distance(turned, b, metric), distance(a, b, metric))


@given(dimensions(), st.booleans())
@settings(max_examples=40, deadline=None)
def test_align_undoes_a_permutation_and_signs(dims, batched):
    d, r, seed = dims
    u = basis(d, r, seed, batch=(2,) if batched else ())
    order = torch.randperm(r, generator=seeded(seed))
    signs = torch.randint(0, 2, (r,), generator=seeded(seed)) * 2.0 - 1
    assert torch.equal(align(u[..., order] * signs, u), u)


def test_align_matches_greedily_by_the_largest_overlap():
    new, old = basis(10, 6), basis(10, 6, seed=1)
    overlap = (old.mT @ new).abs()
    expected = [0] * 6
    for _ in range(6):
        i, j = divmod(int(overlap.argmax()), 6)
        expected[i] = j
        overlap[i, :] = overlap[:, j] = -1
    found = align(new, old)
    torch.testing.assert_close(found.abs(), new[:, expected].abs(), atol=0, rtol=0)
    assert ((old * found).sum(0) >= 0).all()
    torch.testing.assert_close(projector(found), projector(new), atol=1e-12, rtol=0)


def test_align_ends_when_all_overlaps_tie():
    new = torch.eye(8, dtype=F64)[:, :3]
    found = align(new, torch.eye(8, dtype=F64)[:, 4:7])
    assert defect(found) == 0


@pytest.mark.parametrize(
    "function",
    [
        lambda m: orthonormalize(m),
        lambda m: principal_angles(orthonormalize(m[:, :2]), orthonormalize(m[:, 1:])),
        lambda m: distance(orthonormalize(m[:, :2]), orthonormalize(m[:, 1:]), "geodesic"),
        lambda m: project(orthonormalize(m[:, :2]), m),
        lambda m: outside(m[:, 1:], orthonormalize(m[:, :1])),
    ],
)
def test_gradients_are_those_of_finite_differences(function):
    m = torch.randn(6, 3, dtype=F64, generator=seeded(2), requires_grad=True)
    assert torch.autograd.gradcheck(function, (m,))


def test_gradient_of_equal_subspaces_is_not_nan():
    u = basis(5, 2).requires_grad_()
    principal_angles(u, u.detach() + 0).sum().backward()
    assert torch.isfinite(u.grad).all()


bad = pytest.mark.bad_input


@bad
@pytest.mark.parametrize("function", [project, reject, coordinates, outside, principal_angles])
def test_spaces_must_agree(function):
    with pytest.raises(ValueError, match=r"must live in the same space.*d = 5.*d = 6"):
        function(basis(5, 2), basis(6, 2))


@bad
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: orthonormalize(torch.zeros(3, 5)), ValueError, "must be tall.*give a tolerance"),
        (lambda: orthonormalize(torch.zeros(3)), ValueError, r"must be a matrix.*\(3,\)"),
        (lambda: orthonormalize(torch.zeros(3, 2, dtype=torch.long)), TypeError, "floating-point"),
        (lambda: orthonormalize([[1.0]]), TypeError, "m must be a torch.Tensor, got list"),
        (lambda: orthonormalize(torch.zeros(2, 3, 2), tolerance=1.0), ValueError, "single matrix"),
        (lambda: random_basis(3, 4), ValueError, "r must be between 0 and d = 3, got 4"),
        (lambda: complement(torch.zeros(2, 3)), ValueError, "basis must be tall"),
        (lambda: outside(basis(5, 3), basis(5, 3)), ValueError, "no room.*at most 2 columns"),
        (lambda: lift(basis(5, 3), torch.zeros(4, 2)), ValueError, "one row for each column"),
        (lambda: align(basis(5, 3), basis(5, 2)), ValueError, "must have one shape"),
        (lambda: distance(basis(5, 3), basis(5, 2)), ValueError, "one dimension.*r = 3 and 2"),
        (lambda: distance(basis(5, 3), basis(5, 3), "x"), ValueError, "chordal.*got 'x'"),
        (lambda: union(basis(5, 2, batch=(2,)), basis(5, 2)), ValueError, "union takes single"),
        (
            lambda: intersection(basis(5, 2), basis(5, 2), max_angle=1.6),
            ValueError,
            r"max_angle must be in \[0, pi/2\) radians, got 1.6",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("function", [union, intersection, principal_angles, outside])
def test_bases_that_are_not_finite_are_refused(function):
    broken = basis(5, 2)
    broken[0, 0] = float("nan")
    with pytest.raises(ValueError, match="non-finite"):
        function(broken, basis(5, 2, seed=1))
