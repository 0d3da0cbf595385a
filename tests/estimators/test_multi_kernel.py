"""The multi-kernel regressor between its two limits, and scikit-learn's contract."""

import math
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge

from conformance.estimators import EstimatorSuite
from spanwise.estimators import MultiKernelRegressor


def data(n=40, d=3, p=2, seed=0):
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((n, d))
    x = z @ rng.standard_normal((d, p)) + np.sin(2 * z[:, :p]) + 0.3
    return z, x


@pytest.mark.parametrize("intercept", [True, False])
def test_without_the_kernel_it_is_linear_ridge(intercept):
    z, x = data()
    expected = Ridge(alpha=len(z) * 0.1, fit_intercept=intercept).fit(z, x).predict(z)
    for penalty, atol in ((1e12, 1e-8), (math.inf, 1e-10)):
        model = MultiKernelRegressor(0.1, penalty, fit_intercept=intercept).fit(z, x)
        np.testing.assert_allclose(model.predict(z), expected, atol=atol)


def test_without_the_linear_part_it_is_kernel_ridge():
    z, x = data()
    new = data(seed=1)[0]
    expected = KernelRidge(alpha=len(z) * 1e-3, kernel="rbf", gamma=0.5).fit(z, x).predict(new)
    model = MultiKernelRegressor(1e12, 1e-3, gamma=0.5, fit_intercept=False).fit(z, x)
    np.testing.assert_allclose(model.predict(new), expected, atol=1e-8)


def test_it_is_kernel_ridge_with_the_sum_of_both_kernels():
    z, x = data()
    new = data(seed=1)[0]
    g0, g1, m = 0.2, 1e-3, len(z)

    def both(a, b):
        squares = ((a[:, None] - b[None]) ** 2).sum(-1)
        return a @ b.T / g0 + np.exp(-0.5 * squares) / g1

    expected = both(new, z) @ np.linalg.solve(both(z, z) + m * np.eye(m), x)
    model = MultiKernelRegressor(g0, g1, gamma=0.5, fit_intercept=False).fit(z, x)
    np.testing.assert_allclose(model.predict(new), expected, atol=1e-10)


def test_it_minimises_what_it_says():
    z, x = data(20, 2, 1)
    g0, g1 = 0.05, 1e-2
    model = MultiKernelRegressor(g0, g1, gamma=0.5).fit(z, x)
    gram = np.exp(-0.5 * ((z[:, None] - z[None]) ** 2).sum(-1))

    def objective(c, b, a):
        off = x - z @ c.T - b - gram @ a
        return (off**2).sum() / len(z) + g0 * (c**2).sum() + g1 * (a * (gram @ a)).sum()

    best = objective(model.coef_, model.intercept_, model.dual_coef_)
    rng = np.random.default_rng(0)
    for size in (1e-3, 1e-2):
        for _ in range(10):
            moved = [
                held + size * rng.standard_normal(held.shape)
                for held in (model.coef_, model.intercept_, model.dual_coef_)
            ]
            assert objective(*moved) >= best - 1e-12


def test_small_penalties_fit_exactly():
    z, x = data()
    model = MultiKernelRegressor(0.0, 1e-13, gamma=2.0).fit(z, x)
    np.testing.assert_allclose(model.predict(z), x, atol=1e-6)


def test_an_unpenalised_linear_part_follows_any_line():
    z, _ = data()
    line = z @ np.array([[1.0], [2.0], [-3.0]]) + 4
    model = MultiKernelRegressor(0.0, 1.0).fit(z, line)
    np.testing.assert_allclose(model.coef_, [[1, 2, -3]], atol=1e-8)
    np.testing.assert_allclose(model.intercept_, [4], atol=1e-8)


def test_the_linear_part_does_not_hang_on_the_inputs_units():
    z, _ = data()
    line = z @ np.array([[1.0], [2.0], [-3.0]]) + 4
    units = np.array([1.0, 1e-10, 1e3])
    model = MultiKernelRegressor(0.0, math.inf).fit(z * units, line)
    np.testing.assert_allclose(model.coef_ * units, [[1, 2, -3]], atol=1e-8)
    heavy = MultiKernelRegressor(1e18, math.inf).fit(z, line)
    np.testing.assert_allclose(heavy.intercept_, line.mean(0), atol=1e-8)


def test_landmarks_do_as_well_where_the_kernel_s_rank_is_low():
    z, x = data(60)
    whole = MultiKernelRegressor(1e-3, 1e-3, kernel="polynomial").fit(z, x)
    some = MultiKernelRegressor(1e-3, 1e-3, kernel="polynomial", max_landmarks=15).fit(z, x)
    assert len(some.landmarks_) == 10
    np.testing.assert_allclose(some.predict(z), whole.predict(z), atol=1e-7)


def test_one_target_comes_back_as_one():
    z, x = data()
    model = MultiKernelRegressor().fit(z, x[:, 0])
    assert model.predict(z).shape == (40,)
    assert model.coef_.shape == (3,)
    np.testing.assert_allclose(
        model.predict(z), MultiKernelRegressor().fit(z, x).predict(z)[:, 0], atol=1e-9
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_come_back_as_tensors_of_their_dtype(dtype):
    z, x = (torch.from_numpy(held).to(dtype) for held in data())
    found = MultiKernelRegressor().fit(z, x).predict(z)
    assert found.dtype == dtype
    expected = MultiKernelRegressor().fit(*data()).predict(data()[0])
    np.testing.assert_allclose(found, expected, atol=1e-9 if dtype == torch.float64 else 1e-3)


def test_a_saved_one_predicts_alike(tmp_path):
    z, x = data()
    model = MultiKernelRegressor().fit(z, x)
    again = MultiKernelRegressor.load(model.save(tmp_path / "regressor.safetensors"))
    np.testing.assert_allclose(again.predict(z), model.predict(z), atol=1e-10)


class TestContract(EstimatorSuite):
    estimator = MultiKernelRegressor
    options: ClassVar[dict[str, Any]] = {"kernel_penalty": 1e-2}

    def fit(self, model, X):
        return model.fit(X, np.random.default_rng(0).normal(size=(len(X), 2)))


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"linear_penalty": -1.0}, "linear_penalty must be finite and at least 0, got -1.0"),
            ({"kernel_penalty": 0.0}, "kernel_penalty must be above 0, got 0.0"),
            ({"gamma": -1.0}, "gamma must be None or above 0"),
            ({"degree": 0}, "degree must be at least 1"),
            ({"max_landmarks": 0}, "max_landmarks must be at least 1"),
        ],
    )
    def test_options_out_of_range(self, options, message):
        with pytest.raises(ValueError, match=message):
            MultiKernelRegressor(**options).fit(*data())

    def test_targets_that_do_not_fit(self):
        z, x = (torch.from_numpy(held) for held in data())
        with pytest.raises(ValueError, match=r"y must be \(M,\) or \(M, p\) with M = 40"):
            MultiKernelRegressor().fit(z, x[:5])
        x[0, 0] = math.nan
        with pytest.raises(ValueError, match="y contains NaN or infinity"):
            MultiKernelRegressor().fit(z, x)
