"""Symmetric decompositions: recovery, the method's theorems, bad input, moments of data."""

import math
import warnings
from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from conformance.estimators import EstimatorSuite
from spanwise.estimators import SubspacePowerMethod, flattening_values, symmetric_cp
from spanwise.estimators._arrays import make_generator
from spanwise.estimators._moments import moment_flattening
from spanwise.estimators._spm.ascent import Log, climb, finish
from spanwise.estimators._spm.objective import Objective, normalized, power_step
from spanwise.estimators._spm.search import Remaining
from spanwise.estimators._spm.spectrum import decompose, rank_bound, spaces
from spanwise.linalg import random_basis
from spanwise.linalg.symmetric import flatten_symmetric, symmetrize

F64 = torch.float64
CASES = [(10, 5, 4), (20, 120, 4), (10, 40, 6), (8, 8, 3), (8, 20, 5)]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def build(A, w, m):
    """sum w_i a_i^m with all d^m entries, by a product of two Khatri-Rao powers."""
    halves = []
    for n in ((m + 1) // 2, m // 2):
        power = A
        for _ in range(n - 1):
            power = (power.unsqueeze(1) * A).reshape(-1, A.shape[1])
        halves.append(power)
    return ((halves[0] * w) @ halves[1].mT).reshape([len(A)] * m)


def unit(d, r, seed=0):
    return normalized(normal(d, r, seed=seed))


def signs(r):
    return torch.where(torch.arange(r) % 3 == 0, -1.0, 1.0).to(F64)


def match(A, w, found_w, found):
    """Largest error of factors and weights after matching, signs taken from the order's parity."""
    assert found.shape == A.shape
    cosine = A.mT @ found
    rows, columns = linear_sum_assignment(-cosine.abs().numpy())
    sign = cosine[rows, columns].sign()
    factor_error = (found[:, columns] * sign - A[:, rows]).norm() / A.norm()
    return float(factor_error), found_w[columns], w[rows], sign


def flattened(T):
    rows, columns = spaces(len(T), T.ndim, T.device)
    return decompose(flatten_symmetric(T, rows, columns), rows, columns, None, 1e-4)


@pytest.mark.parametrize(("d", "r", "m"), CASES)
def test_components_signs_and_rank_are_recovered_exactly(d, r, m):
    A, w = unit(d, r), signs(r) * torch.linspace(0.5, 2, r, dtype=F64)
    found_w, found, info = symmetric_cp(build(A, w, m))
    error, got, expected, sign = match(A, w, found_w, found)
    assert error < 1e-10
    if m % 2:
        got = got * sign
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=0)
    assert info.residual < 1e-12
    assert (found.norm(dim=0) - 1).abs().max() < 1e-12
    assert info.n_unreached == 0


@pytest.mark.parametrize("scale", [1e-200, 1e-6, 1e9])
def test_rank_and_components_do_not_depend_on_the_scale_of_the_tensor(scale):
    A, w = unit(6, 8), signs(8)
    found_w, found, _ = symmetric_cp(scale * build(A, w, 4))
    error, got, expected, _ = match(A, w, found_w / scale, found)
    assert error < 1e-10
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize(("d", "r"), [(8, 28), (20, 180)])
def test_ranks_up_to_the_bound_are_recovered(d, r):
    assert r <= rank_bound(d, 4)
    A, w = unit(d, r), torch.ones(r, dtype=F64)
    found_w, found, info = symmetric_cp(build(A, w, 4))
    assert match(A, w, found_w, found)[0] < 1e-10
    assert info.n_unreached == 0


def test_bases_stay_orthonormal_and_equal_those_of_the_deflated_tensor():
    A, w = unit(6, 12), signs(12)
    T = build(A, w, 4)
    left = Remaining(flattened(T))
    for start, stop in ((0, 5), (5, 6), (6, 10)):
        left.take_out(A[:, start:stop])
        V = left.V
        torch.testing.assert_close(V.mT @ V, torch.eye(12 - stop, dtype=F64), atol=1e-12, rtol=0)
        rest = flattened(T - build(A[:, :stop], w[:stop], 4))
        torch.testing.assert_close(V @ V.mT, rest.V @ rest.V.mT, atol=1e-10, rtol=0)
        if left.rest is not None:
            assert (left.rest.mT @ V).abs().max() < 1e-12


@pytest.mark.parametrize("m", [3, 5])
def test_odd_orders_deflate_with_the_duals_of_the_other_side(m):
    A, w = unit(5, 4), torch.ones(4, dtype=F64)
    left = Remaining(flattened(build(A, w, m)))
    left.take_out(A[:, :2])
    rest = flattened(build(A[:, 2:], w[2:], m))
    torch.testing.assert_close(left.V @ left.V.mT, rest.V @ rest.V.mT, atol=1e-10, rtol=0)


@pytest.mark.parametrize(("d", "r", "m"), [(6, 12, 4), (5, 20, 6), (6, 18, 4)])
def test_gradient_and_normal_matrix_are_those_of_autograd(d, r, m):
    spectrum = flattened(build(unit(d, r), torch.ones(r, dtype=F64), m))
    space, V = spectrum.rows, spectrum.V
    n, X = space.order, unit(d, 3, seed=4)
    whole = torch.linalg.qr(V, mode="complete")[0]

    def inside(x):
        return V.mT @ space.power(x.unsqueeze(-1))[:, 0]

    def outside(x):
        return whole[:, r:].mT @ space.power(x.unsqueeze(-1))[:, 0]

    for objective in (Objective(space, V), Objective(space, V, spectrum.rest)):
        value, defect, g = objective.value(X)
        matrix = objective.normal_matrix(X)
        for b in range(3):
            x = X[:, b]
            f = inside(x).square().sum()
            gradient = torch.autograd.functional.jacobian(lambda x: inside(x).square().sum(), x)
            torch.testing.assert_close(value[b], f, atol=1e-10, rtol=0)
            torch.testing.assert_close(defect[b], 1 - value[b], atol=1e-10, rtol=0)
            torch.testing.assert_close(2 * n * g[:, b], gradient, atol=1e-10, rtol=0)
            # Gauss and Newton's matrix of 1 - f = ||rest^T x^n||^2, halved, over n.
            J = torch.autograd.functional.jacobian(outside, x)
            P = torch.eye(d, dtype=F64) - torch.outer(x, x)
            expected = P @ (J.mT @ J / n) @ P
            torch.testing.assert_close(P @ matrix[b] @ P, expected, atol=1e-10, rtol=0)


def test_bases_and_entries_of_the_tensor_are_numbered_alike():
    # Coordinates scattered to all d^n places and reshaped: a wrong order is another tensor.
    A, w = unit(3, 4), signs(4)
    T = build(A, w, 6)
    rows, columns = spaces(3, 6, T.device)
    V = decompose(flatten_symmetric(T, rows, columns), rows, columns, 4, 1e-4).V
    values, vectors = torch.linalg.eigh(T.reshape(27, 27))
    V_full = vectors[:, values.abs().argsort()[-4:]].reshape(3, 3, 3, 4)
    X = unit(3, 5, seed=1)
    f, _, g = Objective(rows, V).value(X)
    for mode in range(3):  # the modes are alike, whichever is left
        VA = torch.einsum("xyzk,yi,zi->xki", V_full.movedim(mode, 0), X, X)
        torch.testing.assert_close(g, torch.einsum("xki,yki,yi->xi", VA, VA, X), atol=1e-12, rtol=0)
    torch.testing.assert_close(f, (g * X).sum(0), atol=1e-12, rtol=0)


def test_power_steps_never_lower_f():
    spectrum = flattened(build(unit(8, 20), torch.ones(20, dtype=F64), 4))
    objective = Objective(spectrum.rows, spectrum.V)
    X = unit(8, 16, seed=3)
    f, _, g = objective.value(X)
    for _ in range(60):
        X = power_step(X, f, g, 2)
        new, _, g = objective.value(X)
        assert (new - f).min() > -1e-13
        assert new.max() <= 1 + 1e-12
        f = new


@pytest.mark.parametrize(("d", "r", "m"), [(8, 3, 4), (8, 20, 4), (8, 28, 4), (6, 20, 6)])
def test_longer_steps_do_not_lower_f_either(d, r, m):
    spectrum = flattened(build(unit(d, r), torch.ones(r, dtype=F64), m))
    objective = Objective(spectrum.rows, spectrum.V)
    X = unit(d, 16, seed=3)
    low = objective.value(X)[0].sort().values
    for steps in range(1, 12):
        # The same starts, one step more; points come back in another order.
        f = objective.value(climb(objective, X, steps, Log()))[0].sort().values
        assert (f - low).min() > -1e-6  # what float32 could not tell is let pass
        low = f


def test_points_that_are_close_are_finished_in_float64_and_others_dropped():
    A = unit(8, 20)
    spectrum = flattened(build(A, torch.ones(20, dtype=F64), 4))
    left = Remaining(spectrum)
    near = normalized(A[:, :6] + 1e-3 * normal(8, 6, seed=5))
    X = torch.cat([near, unit(8, 2, seed=9)], dim=1)
    found, defect = finish(left.coarse(), left.objective(), X, Log())
    cosine = (A.mT @ found).abs().amax(0)
    assert found.shape[1] >= 6
    assert int((cosine > 1 - 1e-14).sum()) >= 6
    assert defect.abs().min() < 1e-12


def test_an_orthogonal_change_of_basis_turns_the_components():
    A, w = unit(6, 10), signs(10)
    Q = random_basis(6, 6, generator=torch.Generator().manual_seed(1), dtype=F64)
    found_w, found, _ = symmetric_cp(build(Q @ A, w, 4))
    assert match(Q @ A, w, found_w, found)[0] < 1e-10


def test_the_order_of_modes_changes_nothing():
    T = build(unit(5, 8), signs(8) * torch.linspace(1, 2, 8, dtype=F64), 4)
    w, A, _ = symmetric_cp(T)
    other_w, other, _ = symmetric_cp(T.permute(2, 0, 3, 1))
    torch.testing.assert_close(other, A, atol=1e-10, rtol=0)
    torch.testing.assert_close(other_w, w, atol=1e-10, rtol=0)


def test_orthogonal_components_are_eigenvectors():
    A = random_basis(7, 4, dtype=F64)
    w = torch.tensor([3.0, 2.0, -1.5, 1.0], dtype=F64)
    for m in (3, 4):
        found_w, found, _ = symmetric_cp(build(A, w, m))
        sign = (A.mT @ found).diagonal()
        torch.testing.assert_close(sign.abs(), torch.ones(4, dtype=F64), atol=1e-12, rtol=0)
        got = found_w * sign if m % 2 else found_w
        torch.testing.assert_close(got, w, atol=1e-10, rtol=0)


@pytest.mark.parametrize("m", [5, 6])
def test_more_components_than_the_dimensions_that_they_span(m):
    A = torch.tensor([[1.0, 0, 0.6], [0, 1, 0.8], [0, 0, 0], [0, 0, 0]], dtype=F64)
    w = torch.tensor([1.0, 2.0, 3.0], dtype=F64)
    found_w, found, _ = symmetric_cp(build(A, w, m))
    error, got, expected, _ = match(A, w, found_w, found)
    assert error < 1e-12
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)


def test_components_that_are_not_unique_are_told():
    """Three in a plane, order 4: every vector of the plane has its square in the range."""
    A = torch.tensor([[1.0, 0, 0.6], [0, 1, 0.8], [0, 0, 0], [0, 0, 0]], dtype=F64)
    with pytest.warns(ConvergenceWarning, match="those of T are not unique"):
        symmetric_cp(build(A, torch.ones(3, dtype=F64), 4))


@pytest.mark.parametrize("noise", [1e-6, 1e-3])
def test_noise_costs_as_much_as_it_is_large(noise):
    A, w = unit(8, 6), torch.ones(6, dtype=F64)
    T = build(A, w, 4)
    E = symmetrize(normal(8, 8, 8, 8, seed=2))
    found_w, found, info = symmetric_cp(T + noise * T.norm() / E.norm() * E, rank=6)
    error, got, expected, _ = match(A, w, found_w, found)
    assert error < 3 * noise
    assert (got - expected).abs().max() < 10 * noise
    assert info.residual < noise  # of which a part is fitted; measured 0.93 of it


def test_one_dimension_and_rank_one():
    for order in (3, 4, 5, 6):
        w, A, _ = symmetric_cp(np.full((1,) * order, -8.0))
        np.testing.assert_allclose([w[0], A[0, 0]], [-8, 1])
    w, A, _ = symmetric_cp(build(unit(2, 1), torch.tensor([2.0], dtype=F64), 4))
    np.testing.assert_allclose(w, [2.0], atol=1e-12)


def test_integers_are_decomposed_in_float64():
    T = np.zeros((3, 3, 3), dtype=np.int32)
    T[0, 0, 0], T[1, 1, 1] = 2, -5
    w, A, _ = symmetric_cp(T)
    assert w.dtype == np.float64
    np.testing.assert_allclose(w, [-5, 2], atol=1e-12)
    np.testing.assert_allclose(A, np.eye(3)[:, [1, 0]], atol=1e-12)


def test_a_flattening_of_full_rank_may_be_forced():
    """Every power lies in its range: any components do that span as much."""
    T = build(unit(2, 5), torch.ones(5, dtype=F64), 4)
    with (
        pytest.warns(UserWarning, match="at most 1 generic"),
        pytest.warns(ConvergenceWarning, match="those of T are not unique"),
    ):
        w, _, info = symmetric_cp(T, 3, force=True)
    assert len(w) == 3
    assert info.fit.sub(1).abs().max() < 1e-10


def test_the_zero_tensor_has_no_components(tmp_path):
    w, A, info = symmetric_cp(np.zeros((3, 3, 3, 3)))
    assert (w.shape, A.shape, info.residual) == ((0,), (3, 0), 0.0)
    model = SubspacePowerMethod().fit(np.zeros((3, 3, 3, 3)))
    again = SubspacePowerMethod.load(model.save(tmp_path / "none.safetensors"))
    assert again.components_.shape == (0, 3)


def test_results_are_what_went_in_and_canonical():
    A, w = unit(6, 9), signs(9) * torch.linspace(1, 2, 9, dtype=F64)
    T = build(A, w, 4)
    for given, kind in ((T.float(), torch.Tensor), (T.float().numpy(), np.ndarray)):
        found_w, found, info = symmetric_cp(given)
        for result in (found_w, found, info.eigenvalues, info.fit):
            assert isinstance(result, kind)
            assert str(result.dtype).endswith("float32")
    found_w, found, _ = symmetric_cp(T)
    assert (found_w.abs().diff() <= 0).all()
    assert (found.gather(0, found.abs().argmax(0, keepdim=True)) > 0).all()
    whole = np.rint(100 * build(torch.eye(3, dtype=F64), torch.ones(3, dtype=F64), 4).numpy())
    np.testing.assert_allclose(symmetric_cp(whole.astype(int))[0], [100.0] * 3, atol=1e-10)


def test_results_may_be_differentiated_through():
    w, A, info = symmetric_cp(build(unit(5, 4), torch.ones(4, dtype=F64), 4))
    scale = torch.ones((), dtype=F64, requires_grad=True)
    ((scale * A).square().sum() * w.sum() + info.fit.sum()).backward()
    assert scale.grad is not None
    A.requires_grad_().square().sum().backward()


def test_a_seed_repeats_bit_for_bit():
    T = build(unit(8, 16), torch.ones(16, dtype=F64), 4)
    first, again = (symmetric_cp(T, random_state=3)[1] for _ in range(2))
    assert torch.equal(first, again)
    generator = torch.Generator().manual_seed(3)
    assert torch.equal(first, symmetric_cp(T, random_state=generator)[1])


@pytest.mark.parametrize(
    ("T", "options", "message"),
    [
        (np.eye(3), {}, "An order of 2 has no unique decomposition"),
        (np.zeros((3, 3, 4)), {}, "all of one length"),
        (np.zeros((0, 0, 0)), {}, "T is empty"),
        (np.full((3, 3, 3), np.nan), {}, "NaN or infinity"),
        (np.arange(27.0).reshape(3, 3, 3), {}, "T is not symmetric: .*symmetrize=True"),
        (np.ones((3, 3, 3)), {"rank": 0}, "rank must be at least 1"),
        (np.ones((3, 3, 3)), {"rank": 4}, "at most 3 generic components"),
        (np.ones((3, 3, 3)), {"rank": 2}, "not rounding, 1"),
        (np.ones((3, 3, 3)), {"rank_tol": 0}, "rank_tol must be positive"),
        (np.ones((3, 3, 3)), {"component_tol": 1.0}, "component_tol must be in"),
        (np.ones((3, 3, 3)), {"max_iter": 0}, "max_iter must be at least 1"),
        (np.full((2, 2, 2), "x"), {}, "must hold numbers"),
    ],
)
def test_bad_input_is_refused_with_the_way_out(T, options, message):
    with pytest.raises(ValueError, match=message):
        symmetric_cp(T, **options)


def test_complex_tensors_are_not_implemented():
    with pytest.raises(NotImplementedError, match=r"T.real and T.imag"):
        symmetric_cp(np.ones((2, 2, 2), dtype=complex))


def test_noise_of_full_rank_names_the_bound_and_force_warns():
    T = symmetrize(normal(4, 4, 4, 4))
    with pytest.raises(ValueError, match=r"has rank 10, but .* at most 6 .*raise rank_tol"):
        symmetric_cp(T)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        symmetric_cp(T, 7, force=True, n_tries=1, max_iter=5)
    told = [str(w.message) for w in caught if "at most" in str(w.message)]
    assert [text[:8] for text in told] == ["rank = 7"]
    with pytest.warns(UserWarning, match="has rank 10, but"):
        symmetric_cp(T, force=True, n_tries=1, max_iter=5)


def test_a_component_that_is_none_warns_with_its_f():
    T = symmetrize(normal(5, 5, 5, 5))
    with pytest.warns(ConvergenceWarning, match=r"components have f = 0\.\d+ at worst"):
        _, A, info = symmetric_cp(T, 3, n_tries=1)
    assert A.shape == (5, 3)
    assert info.n_unreached > 0


def test_symmetrizing_decomposes_the_nearest_symmetric_tensor():
    A, w = unit(5, 3), torch.ones(3, dtype=F64)
    shift = normal(5, 5, 5)
    T = build(A, w, 3) + shift - symmetrize(shift)
    assert match(A, w, *symmetric_cp(T, symmetrize=True)[:2])[0] < 1e-10


@pytest.mark.parametrize(("m", "d", "count"), [(3, 6, 5), (4, 6, 12), (5, 5, 7)])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_moments_of_data_equal_the_tensor_formed(m, d, count, kind):
    X = normal(count, d) if kind == "torch" else normal(count, d).numpy()
    fitted = SubspacePowerMethod(order=m).fit_moments(X)
    points = normal(count, d)
    T = build(points.mT, torch.full((count,), 1 / count, dtype=F64), m)
    other = SubspacePowerMethod().fit(T if kind == "torch" else T.numpy())
    assert fitted.rank_ == other.rank_ == count
    np.testing.assert_allclose(fitted.weights_, other.weights_, atol=1e-10)
    np.testing.assert_allclose(fitted.components_, other.components_, atol=1e-10)
    assert type(fitted.components_) is type(X)


def gauss_moment(X, order, noise_variance=None, cumulant=False):
    rows, columns = spaces(X.shape[1], order, X.device)
    return moment_flattening(X, rows, columns, noise_variance=noise_variance, cumulant=cumulant)


def quadrature(X, sigma):
    """Samples whose moments up to order 5 are those of x + sigma z, z normal, x in X's rows."""
    d = X.shape[1]
    nodes = torch.tensor([-math.sqrt(3), 0.0, math.sqrt(3)], dtype=F64)
    weights = torch.tensor([1, 4, 1])  # of Gauss and Hermite, times 6
    every = torch.cartesian_prod(*[torch.arange(3)] * d)
    counts = weights[every].prod(-1)
    z = nodes[every].repeat_interleave(counts, dim=0)
    return (X.unsqueeze(1) + sigma * z).reshape(-1, d)


@pytest.mark.parametrize("order", [3, 4, 5])
def test_gaussian_noise_is_taken_out_of_moments_exactly(order):
    X = normal(2, 3)
    clean, _ = gauss_moment(X, order)
    found, _ = gauss_moment(quadrature(X, 0.7), order, noise_variance=0.49)
    torch.testing.assert_close(found, clean, atol=1e-10, rtol=0)


def partial_matchings(places):
    """All ways to make pairs of some of the places: pairs, and what is left."""
    if not places:
        yield [], []
        return
    first, rest = places[0], places[1:]
    for pairs, left in partial_matchings(rest):
        yield pairs, [first, *left]
    for at, other in enumerate(rest):
        for pairs, left in partial_matchings(rest[:at] + rest[at + 1 :]):
            yield [(first, other), *pairs], left


@pytest.mark.parametrize("order", [5, 6, 7])
def test_noise_is_taken_out_by_hermite_tensors_of_any_order(order):
    X, s = normal(4, 3), 0.37
    identity, whole = torch.eye(3, dtype=F64), torch.zeros([3] * order, dtype=F64)
    for pairs, left in partial_matchings(list(range(1, order + 1))):
        factors = [torch.ones(4, dtype=F64), [0]]
        for pair in pairs:
            factors += [identity, list(pair)]
        for axis in left:
            factors += [X, [0, axis]]
        whole += (-s) ** len(pairs) * torch.einsum(*factors, list(range(1, order + 1))) / 4
    found, variance = gauss_moment(X, order, noise_variance=s)
    expected = flatten_symmetric(whole, *spaces(3, order, X.device))
    torch.testing.assert_close(found, expected, atol=1e-10 * float(whole.abs().max()), rtol=0)
    assert variance == s


def test_points_are_components_of_a_fifth_moment_behind_gaussian_noise():
    A = normal(3, 4)
    model = SubspacePowerMethod(5).fit_moments(quadrature(A.mT, 0.5), noise_variance=0.25)
    weights = A.norm(dim=0) ** 5 / 4
    error, found, true, sign = match(
        A / A.norm(dim=0), weights, model.weights_, model.components_.mT
    )
    assert error < 1e-8  # noise of the size of the points: a thousand times their moment cancels
    torch.testing.assert_close(found * sign, true, rtol=1e-8, atol=0)


def test_the_noise_variance_is_found_where_the_rank_leaves_room():
    clean, _ = gauss_moment(normal(4, 3), 4)
    found, variance = gauss_moment(quadrature(normal(4, 3), 0.3), 4, noise_variance="auto")
    assert abs(variance - 0.09) < 1e-10
    torch.testing.assert_close(found, clean, atol=1e-9, rtol=0)


@pytest.mark.parametrize("order", [3, 4])
def test_cumulants_of_independent_sources_are_theirs_times_powers_of_the_mixing(order):
    # Two-point sources of skewness and kurtosis, all combinations: exactly independent.
    atoms = torch.tensor([[-1.0, -1.0, 2.0], [-1.0, 1.0, 0.0]], dtype=F64)
    S = torch.cartesian_prod(atoms[0], atoms[1], atoms[0])
    mixing = normal(4, 3)
    M, _ = gauss_moment(S @ mixing.mT, order, cumulant=True)
    one = S - S.mean(0)
    kappa = (one**order).mean(0) - (3 * (one**2).mean(0) ** 2 if order == 4 else 0)
    rows, columns = spaces(4, order, M.device)
    expected = (rows.power(mixing) * kappa) @ columns.power(mixing).mT
    torch.testing.assert_close(M, expected, atol=1e-10, rtol=0)


def test_more_sources_than_sensors_are_told_apart():
    generator = np.random.default_rng(0)
    mixing = generator.standard_normal((4, 5))
    S = generator.uniform(-1, 1, (200_000, 5))
    fitted = SubspacePowerMethod(rank=5).fit_moments(S @ mixing.T, cumulant=True)
    cosine = np.abs(fitted.components_ @ (mixing / np.linalg.norm(mixing, axis=0)))
    assert cosine.max(0).min() > 0.95  # what 200000 samples know of the moment
    assert (fitted.weights_ < 0).all()  # uniform sources have negative kurtosis


@pytest.mark.parametrize(
    ("order", "options", "message"),
    [
        (2, {}, "order must be at least 3"),
        (5, {"cumulant": True}, "needs order 3 or 4"),
        (4, {"cumulant": True, "noise_variance": 1.0}, "holds no Gaussian noise"),
        (3, {"noise_variance": "auto"}, "needs order 4"),
        (6, {"noise_variance": "auto"}, "needs order 4, got order 6"),
        (4, {"noise_variance": "some"}, "must be a number, None"),
        (4, {"noise_variance": -1.0}, "must not be negative"),
        (4, {"noise_variance": math.nan}, "must be finite"),
    ],
)
def test_bad_moments_are_refused(order, options, message):
    with pytest.raises(ValueError, match=message):
        SubspacePowerMethod(order=order).fit_moments(normal(9, 3).numpy(), **options)
    with pytest.raises(ValueError, match=message):
        flattening_values(normal(9, 3).numpy(), order, **options)


def test_the_estimator_clones_saves_and_speaks_tensorly(tmp_path):
    A, w = unit(5, 4), torch.ones(4, dtype=F64)
    model = clone(SubspacePowerMethod(rank=4, random_state=1)).fit(build(A, w, 4).numpy())
    again = SubspacePowerMethod.load(model.save(tmp_path / "spm.safetensors"))
    np.testing.assert_array_equal(again.components_, model.components_)
    assert again.get_params() == model.get_params()
    weights, factors = again.cp_tensor_
    rebuilt = np.einsum("r,ir,jr,kr,lr->ijkl", weights, *factors)
    np.testing.assert_allclose(rebuilt, build(A, w, 4).numpy(), atol=1e-10)
    assert (model.rank_, model.order_, model.n_features_in_) == (4, 4, 5)
    assert make_generator(1).initial_seed() == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_tensor_on_cuda_stays_there():
    A, w = unit(8, 12), signs(12)
    found_w, found, _ = symmetric_cp(build(A, w, 4).cuda())
    assert found.is_cuda
    assert match(A, w, found_w.cpu(), found.cpu())[0] < 1e-10


class TestContract(EstimatorSuite):
    """Of tensors: `fit` takes one, and nothing is answered for samples."""

    estimator = SubspacePowerMethod
    options: ClassVar = {"rank": 4}
    takes_samples = False
    no_checks = "fit takes a symmetric tensor, scikit-learn's checks fit samples in rows"

    def data(self, seed=0):
        return build(unit(5, 4, seed=seed), torch.ones(4, dtype=F64), 4).numpy()

    def answers(self, model, X):
        return {"components": model.components_, "weights": model.weights_}


def test_a_verbose_search_tells_the_components_found(capsys):
    T = build(unit(5, 7), torch.linspace(1, 2, 7, dtype=F64), 4)
    symmetric_cp(T)
    assert capsys.readouterr().err == ""
    model = SubspacePowerMethod(verbose=True).fit(T.numpy())
    assert model.rank_ == 7
    assert "component 7/7" in capsys.readouterr().err
