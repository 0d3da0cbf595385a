"""Symmetric tensors in compressed coordinates against the full ones."""

import itertools
import math

import pytest
import torch

from spanwise.linalg.symmetric import (
    SymmetricSpace,
    asymmetry,
    flatten_symmetric,
    symmetrize,
    unflatten_symmetric,
)

F64 = torch.float64
SIZES = [(1, 3), (3, 1), (4, 2), (3, 3), (2, 4)]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def outer(x, n):
    found = torch.ones((), dtype=F64)
    for _ in range(n):
        found = found.unsqueeze(-1) * x
    return found


def full(space, coordinates):
    """All d^n entries of one tensor."""
    every = torch.cartesian_prod(*[torch.arange(space.d)] * space.order)
    every = every.reshape(-1, space.order)
    found = (coordinates / space.scale)[space.locate(every)]
    return found.reshape([space.d] * space.order)


@pytest.mark.parametrize(("d", "n"), SIZES)
def test_coordinates_keep_inner_products(d, n):
    space = SymmetricSpace(d, n)
    a, b = normal(space.dim), normal(space.dim, seed=1)
    assert space.index.shape == (math.comb(d + n - 1, n), n)
    torch.testing.assert_close((full(space, a) * full(space, b)).sum(), a @ b, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("d", "n"), SIZES)
def test_powers_are_outer_products(d, n):
    space, x = SymmetricSpace(d, n), normal(d, 3)
    found = space.power(x)
    for column in range(3):
        expected = outer(x[:, column], n)
        torch.testing.assert_close(full(space, found[:, column]), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(found.norm(dim=0), x.norm(dim=0) ** n, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("d", "n"), SIZES)
def test_contraction_leaves_one_axis(d, n):
    space, x = SymmetricSpace(d, n), normal(d, 2)
    p = normal(space.dim, 2)
    found = space.contract(p / space.scale.unsqueeze(-1), x)
    for column in range(2):
        expected = full(space, p[:, column])
        for _ in range(n - 1):
            expected = expected @ x[:, column]
        torch.testing.assert_close(found[:, column], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("d", "n"), [(4, 2), (3, 3), (2, 4)])
def test_an_opened_basis_maps_lower_powers_to_contractions(d, n):
    space, x = SymmetricSpace(d, n), normal(d, 5)
    basis = normal(space.dim, 6)
    found = torch.einsum("cb,cdk->bdk", space.lower.power(x), space.opened(basis))
    for k in range(6):
        entries = basis[:, k : k + 1] / space.scale.unsqueeze(-1)
        one = space.contract(entries.expand(-1, 5), x)
        torch.testing.assert_close(found[:, :, k].mT, one, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("n", "m"), [(2, 2), (2, 1), (3, 2)])
def test_a_flattening_has_the_singular_values_of_the_full_one(n, m):
    d = 3
    tensor = symmetrize(normal(*[d] * (n + m)))
    small = flatten_symmetric(tensor, SymmetricSpace(d, n), SymmetricSpace(d, m))
    values = torch.linalg.svdvals(tensor.reshape(d**n, d**m))
    held = torch.linalg.svdvals(small)
    torch.testing.assert_close(values[: len(held)], held, atol=1e-12, rtol=0)
    torch.testing.assert_close(small.norm(), tensor.norm(), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 1), (3, 2)])
def test_unflattening_undoes_flattening(n, m):
    tensor = symmetrize(normal(*[3] * (n + m)))
    rows, columns = SymmetricSpace(3, n), SymmetricSpace(3, m)
    found = unflatten_symmetric(flatten_symmetric(tensor, rows, columns), rows, columns)
    torch.testing.assert_close(found, tensor, atol=1e-14, rtol=0)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_an_induced_map_takes_powers_to_powers_and_keeps_orthonormal_columns(n):
    space, small = SymmetricSpace(5, n), SymmetricSpace(3, n)
    A, y = normal(5, 3), normal(3, 4, seed=1)
    found = space.induced(A) @ small.power(y)
    torch.testing.assert_close(found, space.power(A @ y), atol=1e-12, rtol=0)
    Q = space.induced(torch.linalg.qr(A)[0])
    torch.testing.assert_close(Q.mT @ Q, torch.eye(small.dim, dtype=F64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_symmetrizing_is_the_mean_over_permutations(order):
    tensor = normal(*[3] * order)
    every = [tensor.permute(p) for p in itertools.permutations(range(order))]
    found = symmetrize(tensor)
    torch.testing.assert_close(found, torch.stack(every).mean(0), atol=1e-12, rtol=0)
    assert asymmetry(found) < 1e-14
    assert asymmetry(tensor) > 0.1


def test_asymmetry_sees_what_an_exchange_of_two_axes_does_not():
    tensor = normal(3, 3, 3)
    tensor = tensor + tensor.transpose(0, 1)
    assert asymmetry(tensor) > 0.1


@pytest.mark.parametrize(("d", "n"), [(1, 3), (3, 1), (4, 3), (3, 5)])
def test_indices_are_sorted_and_in_lexicographic_order(d, n):
    expected = list(itertools.combinations_with_replacement(range(d), n))
    assert SymmetricSpace(d, n).index.tolist() == [list(index) for index in expected]


def test_high_orders_need_room_for_distinct_entries_only():
    assert SymmetricSpace(5, 20).index.shape == (10626, 20)  # of 5^20 multi-indices


def test_sizes_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        SymmetricSpace(0, 2)
    with pytest.raises(ValueError, match="cannot be numbered"):
        SymmetricSpace(10**5, 4)


@pytest.mark.parametrize(("d", "n"), [(3, 1), (3, 3)])
def test_a_space_for_other_numbers_has_the_same_tables(d, n):
    space, fresh = SymmetricSpace(d, n).to(torch.float32), SymmetricSpace(d, n, torch.float32)
    assert space == fresh
    assert space.grown.equal(fresh.grown)
    while space.order > 1:
        space, fresh = space.lower, fresh.lower
        assert space == fresh
        assert space.scale.dtype == torch.float32
        assert space.scale.equal(fresh.scale)
