"""Moments of data without their flattening: every way gives what the explicit one gives."""

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning

from spanwise.estimators import SubspacePowerMethod
from spanwise.estimators._moment_spectrum import (
    MomentOperator,
    few_components,
    few_samples,
    symmetric_product_times,
)
from spanwise.estimators._moments import moment_flattening, symmetric_product
from spanwise.linalg.symmetric import SymmetricSpace

F64 = torch.float64


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def sparse_sources(n, d, r, seed=0):
    """Samples that are multiples of one of r directions: moments of rank r exactly."""
    g = np.random.default_rng(seed)
    A = g.standard_normal((d, r))
    A /= np.linalg.norm(A, axis=0)
    return (g.standard_normal(n)[:, None]) * A.T[g.integers(r, size=n)]


@pytest.mark.parametrize("order", [4, 6])
def test_few_samples_give_what_the_explicit_moment_gives(order):
    X = normal(9, 6).numpy()
    one = SubspacePowerMethod(order).fit_moments(X, method="few_samples")
    other = SubspacePowerMethod(order).fit_moments(X, method="explicit")
    assert one.rank_ == other.rank_ == 9
    np.testing.assert_allclose(one.components_, other.components_, atol=1e-10)
    np.testing.assert_allclose(one.weights_, other.weights_, atol=1e-10)
    np.testing.assert_allclose(one.eigenvalues_, other.eigenvalues_[:9], atol=1e-10)
    assert one.residual_ < 1e-10


@pytest.mark.parametrize("order", [4, 6])
def test_few_components_give_what_the_explicit_moment_gives(order):
    X = sparse_sources(400, 10, 10)
    one = SubspacePowerMethod(order, 10).fit_moments(X, method="few_components")
    other = SubspacePowerMethod(order, 10).fit_moments(X, method="explicit")
    np.testing.assert_allclose(one.components_, other.components_, atol=1e-10)
    np.testing.assert_allclose(one.weights_, other.weights_, atol=1e-10)
    np.testing.assert_allclose(one.eigenvalues_[:10], other.eigenvalues_[:10], atol=1e-10)
    assert one.residual_ < 1e-10


@pytest.mark.parametrize("options", [{"cumulant": True}, {"noise_variance": 0.3}, {}])
def test_the_operator_is_the_flattening_with_what_is_taken_out(options):
    X = normal(50, 5)
    space = SymmetricSpace(5, 2)
    M, _ = moment_flattening(X, space, space, **options)
    centred = X - X.mean(0) if options.get("cumulant") else X
    B = normal(space.dim, 4, seed=1)
    torch.testing.assert_close(MomentOperator(centred, space, **options) @ B, M @ B)


def test_symmetric_products_are_applied_without_being_formed():
    space, B = SymmetricSpace(4, 2), normal(10, 3)
    P, Q = normal(4, 4), normal(4, 4, seed=1)
    P, Q = P + P.mT, Q + Q.mT
    expected = symmetric_product(P, Q, space) @ B
    torch.testing.assert_close(symmetric_product_times(P, Q, B, space), expected)


def test_leading_eigenvalues_of_either_sign_are_found_in_noise():
    g = np.random.default_rng(0)
    S = np.stack([g.uniform(-1, 1, 5000), g.laplace(size=5000)], axis=1)
    X = torch.from_numpy(S @ g.standard_normal((2, 8)) + 0.1 * g.standard_normal((5000, 8)))
    X = X - X.mean(0)
    space = SymmetricSpace(8, 2)
    M, _ = moment_flattening(X, space, space, cumulant=True)
    expected = torch.linalg.eigvalsh(M)
    expected = expected[expected.abs().argsort(descending=True)][:2]
    moment = MomentOperator(X, space, cumulant=True)
    spectrum, settled = few_components(moment, 2)
    assert settled
    torch.testing.assert_close(spectrum.values, expected, atol=1e-10, rtol=0)
    V = spectrum.V
    torch.testing.assert_close(V.mT @ V, torch.eye(2, dtype=F64), atol=1e-12, rtol=0)


def test_in_noise_too_it_does_not_matter_what_is_held():
    g = np.random.default_rng(0)
    X = g.uniform(-1, 1, (5000, 4)) @ g.standard_normal((4, 10)) + 0.1 * g.standard_normal(
        (5000, 10)
    )
    kept = [
        SubspacePowerMethod(rank=4, component_tol=0.5).fit_moments(X, cumulant=True, method=method)
        for method in ("explicit", "few_components")
    ]
    np.testing.assert_allclose(
        kept[0].components_, kept[1].components_, atol=1e-6
    )  # float32 starts
    np.testing.assert_allclose(kept[0].weights_, kept[1].weights_, atol=1e-6)


def test_the_thin_spectrum_is_that_of_the_flattening():
    X, space = normal(6, 5), SymmetricSpace(5, 2)
    M, _ = moment_flattening(X, space, space)
    spectrum = few_samples(X, space, None, 1e-4)
    built = (spectrum.V * spectrum.values) @ spectrum.V.mT
    torch.testing.assert_close(built, M, atol=1e-12, rtol=0)


def test_auto_holds_the_least_that_can_be_had():
    from spanwise.estimators._spm.moments import _chosen

    assert _chosen("auto", 100, 5050, 4, None, True, None) == "few_samples"
    assert _chosen("auto", 10**5, 5050, 4, 20, False, 0.1) == "few_components"
    assert _chosen("auto", 10**5, 5050, 4, None, True, None) == "explicit"
    assert _chosen("auto", 10**5, 5050, 4, 20, False, "auto") == "explicit"
    assert _chosen("auto", 10**5, 210, 4, 20, True, None) == "explicit"
    assert _chosen("auto", 100, 5050, 3, None, True, None) == "explicit"


def test_hundred_features_need_no_flattening():
    # C = 5050: the flattening would hold 204 MB, and its eigenvalues half a minute.
    X = sparse_sources(3000, 100, 12)
    model = SubspacePowerMethod(rank=12).fit_moments(X)
    kept = X / np.linalg.norm(X, axis=1, keepdims=True)
    cosine = np.abs(model.components_ @ kept.T)
    np.testing.assert_allclose(cosine.max(0), 1, atol=1e-10)
    assert model.residual_ < 1e-10


def test_eigenvalues_that_are_too_close_are_told(monkeypatch):
    monkeypatch.setattr("spanwise.estimators._moment_spectrum._PASSES", 2)
    model = SubspacePowerMethod(rank=3, n_tries=1, max_iter=5, component_tol=0.99)
    with pytest.warns(ConvergenceWarning, match='not found to rounding.*method="explicit"'):
        model.fit_moments(normal(400, 9).numpy(), method="few_components")


@pytest.mark.parametrize(
    ("order", "options", "message"),
    [
        (4, {"method": "few_samples", "cumulant": True}, "and terms to take out"),
        (3, {"method": "few_samples"}, "needs a plain moment of even order"),
        (4, {"method": "few_components"}, "needs an even order, a rank"),
        pytest.param(4, {"method": "some"}, 'method must be "auto"', marks=pytest.mark.bad_input),
    ],
)
def test_methods_that_cannot_serve_are_refused(order, options, message):
    with pytest.raises(ValueError, match=message):
        SubspacePowerMethod(order).fit_moments(normal(4, 3).numpy(), **options)


@pytest.mark.bad_input
def test_a_flattening_that_no_memory_holds_is_refused_by_its_size():
    X = np.random.default_rng(0).standard_normal((30, 20))
    with pytest.raises(ValueError, match=r"order 20 of 20 features .* Lower order"):
        SubspacePowerMethod(order=20).fit_moments(X, method="explicit")
