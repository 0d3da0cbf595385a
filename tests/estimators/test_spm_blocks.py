"""Block terms: subspaces and cores are recovered; bad input."""

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning

from spanwise.estimators import symmetric_btd, symmetric_cp
from spanwise.estimators._spm.search import Remaining
from spanwise.linalg import principal_angles, random_basis
from spanwise.linalg.symmetric import SymmetricSpace, symmetrize, unflatten_symmetric

F64 = torch.float64


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def union(d, dims, m, seed=0):
    """Bases, cores and the tensor of generic moments on subspaces of these dimensions."""
    g = torch.Generator().manual_seed(seed)
    n = m // 2
    bases, cores, T = [], [], 0
    for dim in dims:
        A = torch.linalg.qr(torch.randn(d, dim, generator=g, dtype=F64))[0]
        small = SymmetricSpace(dim, n)
        powers = small.power(torch.randn(dim, 40, generator=g, dtype=F64))
        core = powers @ powers.mT / 40
        bases.append(A)
        cores.append(unflatten_symmetric(core, small, small))
        big = SymmetricSpace(d, n)
        T = T + unflatten_symmetric(big.induced(A) @ core @ big.induced(A).mT, big, big)
    return bases, cores, T


def rebuilt(cores, bases):
    total = 0
    for core, A in zip(cores, bases, strict=True):
        term = torch.as_tensor(core)
        for _ in range(term.ndim):
            term = torch.tensordot(term, torch.as_tensor(A), dims=([0], [1]))
        total = total + term
    return total


def worst_angle(bases, found):
    """Largest principal angle of any subspace to the found one nearest to it."""
    return max(
        min(float(principal_angles(A, B).max()) for B in found if B.shape == A.shape) for A in bases
    )


@pytest.mark.parametrize(
    ("d", "dims", "m"), [(6, [2, 2], 4), (10, [3, 3, 3, 3], 4), (6, [2, 2, 2, 2], 6)]
)
def test_subspaces_are_recovered_to_rounding(d, dims, m):
    bases, _, T = union(d, dims, m)
    cores, found, info = symmetric_btd(T, len(dims), dims[0])
    assert worst_angle(bases, found) < 1e-10
    assert info.residual < 1e-10
    assert info.n_unreached == 0
    torch.testing.assert_close(rebuilt(cores, found), T, atol=1e-10, rtol=0)
    for A in found:
        torch.testing.assert_close(A.mT @ A, torch.eye(dims[0], dtype=F64), atol=1e-12, rtol=0)


def test_dimensions_and_their_number_are_found():
    bases, _, T = union(8, [1, 2, 3], 4)
    _, found, info = symmetric_btd(1e6 * T)
    assert sorted(A.shape[1] for A in found) == [1, 2, 3]
    assert worst_angle(bases, found) < 1e-10
    assert info.fit.min() > 1 - 1e-10


def test_blocks_of_one_dimension_are_components():
    T = union(5, [1, 1, 1, 1], 4)[2]
    weights, factor, _ = symmetric_cp(T)
    cores, bases, _ = symmetric_btd(T, 4, 1)
    got = torch.stack([A[:, 0] for A in bases], dim=1)
    torch.testing.assert_close(got, factor, atol=1e-10, rtol=0)
    got = torch.stack([core.reshape(()) for core in cores])
    torch.testing.assert_close(got, weights, atol=1e-10, rtol=0)


def test_a_core_comes_in_its_principal_axes_and_largest_first():
    cores, _, _ = symmetric_btd(union(7, [2, 2, 2], 4)[2], 3, 2)
    norms = torch.stack([core.norm() for core in cores])
    assert (norms.diff() <= 0).all()
    for core in cores:
        gram = core.flatten(1) @ core.flatten(1).mT
        assert abs(gram[0, 1]) < 1e-10 * gram[0, 0]
        assert gram[0, 0] >= gram[1, 1]


def test_an_orthogonal_change_of_basis_turns_the_subspaces():
    bases, _, T = union(6, [2, 2], 4)
    Q = random_basis(6, 6, generator=torch.Generator().manual_seed(1), dtype=F64)
    turned = torch.einsum("abcd,ia,jb,kc,ld->ijkl", T, Q, Q, Q, Q)
    _, found, _ = symmetric_btd(turned, 2, 2)
    assert worst_angle([Q @ A for A in bases], found) < 1e-10


@pytest.mark.parametrize("noise", [1e-6, 1e-3])
def test_noise_turns_subspaces_by_as_much_as_it_is_large(noise):
    bases, _, T = union(6, [2, 2], 4)
    E = symmetrize(normal(6, 6, 6, 6, seed=3))
    _, found, _ = symmetric_btd(T + noise * T.norm() / E.norm() * E, 2, 2)
    assert worst_angle(bases, found) < 20 * noise


def test_a_search_ends_where_all_that_it_finds_is_out_already(monkeypatch):
    T = symmetrize(torch.randn(4, 4, 4, 4, generator=torch.Generator().manual_seed(0), dtype=F64))
    monkeypatch.setattr(Remaining, "take_out_block", lambda self, S: False)
    with pytest.warns(ConvergenceWarning):
        _, bases, info = symmetric_btd(T, 1, 2, n_tries=1, max_iter=5)
    assert bases == []
    assert info.n_unreached > 0


def test_arrays_come_back_as_arrays_and_zero_has_no_terms():
    cores, bases, info = symmetric_btd(union(6, [2, 2], 4)[2].float().numpy(), 2, 2)
    assert all(isinstance(x, np.ndarray) and x.dtype == np.float32 for x in [*cores, *bases])
    assert isinstance(info.fit, np.ndarray)
    cores, bases, info = symmetric_btd(np.zeros((3, 3, 3, 3)))
    assert (cores, bases) == ([], [])
    assert isinstance(info.eigenvalues, np.ndarray)


def test_a_seed_repeats_bit_for_bit():
    T = union(6, [2, 2, 2], 4)[2]
    first, again = (symmetric_btd(T, 3, 2, random_state=3)[1] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize(
    ("order", "options", "message"),
    [
        (3, {}, "even number of axes, got 3"),
        (4, {"block": 4}, "block must be from 1 to d - 1 = 3"),
        (4, {"n_blocks": 2}, "needs block"),
        (4, {"n_blocks": 0, "block": 2}, "n_blocks must be at least 1"),
        (4, {"n_blocks": 3, "block": 2}, "at most 6 generic"),
        (4, {"component_tol": 0.0}, "component_tol must be in"),
    ],
)
def test_bad_input_is_refused_with_the_way_out(order, options, message):
    with pytest.raises(ValueError, match=message):
        symmetric_btd(np.ones([4] * order), **options)
