"""Balanced reduction: its identities, its limits, and what it is for."""

import numpy as np
import pytest
import torch
from sklearn.base import clone

from spanwise.datasets.dynamics import duffing, koopman_invariant
from spanwise.estimators import DMD, EDMD, BalancedReduction, KernelDMD, MultiKernelRegressor
from spanwise.linalg import finite_gramian


def invariant(x):
    return np.stack([x[:, 0], x[:, 1], x[:, 0] ** 2], axis=1)


def oscillators():
    return duffing(60, 10, seed=0)


@pytest.fixture(scope="module")
def over_specified():
    return KernelDMD(gamma=1.0, rank_tol=1e-8).fit(oscillators())


def gramians(model, X, encoder, lift, horizon):
    """Of the reduced coordinates, from their definitions."""
    z = model.transform(X).reshape(-1, len(model.koopman_matrix_)) @ encoder
    matrix, decoder = lift.T @ model.koopman_matrix_ @ encoder, lift.T @ model.decoder_
    seen = finite_gramian(torch.from_numpy(matrix), torch.from_numpy(decoder), horizon)
    return z.T @ z / len(z), seen.numpy()


class TestIdentities:
    def test_both_reduced_gramians_are_the_hankel_values_when_nothing_is_cut(self):
        X = koopman_invariant(40, 8)
        model = EDMD(invariant).fit(X)
        found = BalancedReduction(model, 3, horizon=6, prefit=True).fit(X)
        excited, seen = gramians(model, X, found.encoder_, found.lift_, 6)
        expected = np.diag(found.hankel_singular_values_)
        np.testing.assert_allclose(excited, expected, atol=1e-8)
        np.testing.assert_allclose(seen, expected, atol=1e-8)

    def test_the_hankel_values_are_roots_of_the_gramians_product(self):
        X = koopman_invariant(40, 8)
        model = EDMD(invariant).fit(X)
        found = BalancedReduction(model, 3, horizon=6, prefit=True).fit(X)
        eye = np.eye(3)
        excited, seen = gramians(model, X, eye, eye, 6)
        expected = np.sort(np.sqrt(np.linalg.eigvals(excited @ seen).real))[::-1]
        np.testing.assert_allclose(found.hankel_singular_values_, expected, atol=1e-10)

    def test_the_hankel_values_do_not_change_with_the_features_basis(self):
        X = koopman_invariant(40, 8)
        mixing = np.random.default_rng(0).standard_normal((3, 3))
        one = BalancedReduction(EDMD(invariant), 3).fit(X)
        other = BalancedReduction(EDMD(lambda x: invariant(x) @ mixing), 3).fit(X)
        np.testing.assert_allclose(
            other.hankel_singular_values_, one.hankel_singular_values_, atol=1e-8
        )

    def test_all_coordinates_forecast_as_the_model_does(self):
        X = koopman_invariant(40, 8)
        model = EDMD(invariant).fit(X)
        found = BalancedReduction(model, 3, prefit=True).fit(X)
        np.testing.assert_allclose(found.predict(X[:, 0], 8), model.predict(X[:, 0], 8), atol=1e-6)
        np.testing.assert_allclose(found.eigenvalues_, [0.9, 0.81, 0.5], atol=1e-8)

    def test_a_centred_dmd_keeps_its_constant(self):
        angle = np.arange(60) / 5
        X = np.stack([5 + np.sin(angle), 3 + np.cos(angle), 1 - np.sin(angle)], axis=1)
        found = BalancedReduction(DMD(center=True), 3).fit(X)
        assert np.abs(found.eigenvalues_ - 1).min() < 1e-10
        np.testing.assert_allclose(found.predict(X[0], 59), X, atol=1e-10)

    def test_encoding_and_lifting_are_biorthogonal(self, over_specified):
        found = BalancedReduction(over_specified, 7, prefit=True).fit(oscillators())
        np.testing.assert_allclose(found.lift_.T @ found.encoder_, np.eye(7), atol=1e-8)

    def test_the_horizon_keeps_an_unstable_model_balanced(self):
        X = (1.3 ** np.arange(20.0))[:, None] * [[1.0, 0.2]] + (0.5 ** np.arange(20.0))[:, None]
        found = BalancedReduction(DMD(), 2, horizon=12).fit(X)
        assert found.spectral_radius_ == pytest.approx(1.3, abs=1e-6)
        assert np.isfinite(found.hankel_singular_values_).all()


class TestUse:
    def test_few_coordinates_forecast_nearly_as_well_as_all(self, over_specified):
        X = duffing(60, 10, seed=1)
        found = BalancedReduction(over_specified, 12, horizon=8, prefit=True).fit(oscillators())
        full, cut = (m.errors_by_horizon(X, 5)[5] for m in (over_specified, found))
        assert len(over_specified.koopman_matrix_) > 60
        assert cut < 2.5 * full + 0.02

    def test_more_coordinates_than_there_are_are_cut(self):
        found = BalancedReduction(EDMD(invariant), 50).fit(koopman_invariant(40, 8))
        assert found.transform(np.ones((4, 2))).shape == (4, 3)

    def test_a_model_that_is_fitted_is_used_as_it_is(self, over_specified):
        X = oscillators()
        found = BalancedReduction(over_specified, 4, prefit=True).fit(X)
        assert found.estimator_ is over_specified
        fresh = BalancedReduction(clone(over_specified), 4).fit(X)
        np.testing.assert_allclose(found.predict(X[0, 0], 3), fresh.predict(X[0, 0], 3), atol=1e-7)

    def test_states_come_back_by_a_regressor_of_ones_own(self, over_specified):
        X = oscillators()
        smooth = MultiKernelRegressor(1e-8, 1e-6)
        plain = BalancedReduction(over_specified, 3, horizon=8, prefit=True).fit(X)
        kernel = BalancedReduction(
            over_specified, 3, horizon=8, prefit=True, reconstructor=smooth, rolled_steps=2
        ).fit(X)
        new = duffing(60, 10, seed=1)
        errors = [model.errors_by_horizon(new, 2) for model in (plain, kernel)]
        assert errors[1][0] < 0.7 * errors[0][0]
        assert kernel.predict(X[0, 0], 3).shape == (4, 2)

    def test_time_along_columns_is_taken_from_the_model(self):
        X = koopman_invariant(4, 10)
        rows = BalancedReduction(EDMD(invariant), 2).fit(X)
        columns = BalancedReduction(EDMD(invariant, time_axis=1), 2).fit(X.swapaxes(1, 2))
        np.testing.assert_allclose(columns.predict(X[0, 0], 3), rows.predict(X[0, 0], 3).T)

    def test_tensors_come_back_as_tensors(self):
        X = torch.from_numpy(koopman_invariant(10, 8)).float()
        found = BalancedReduction(KernelDMD("polynomial"), 3).fit(X)
        assert found.predict(X[0, 0], 2).dtype == torch.float32
        assert isinstance(found.hankel_singular_values_, torch.Tensor)

    def test_a_saved_one_forecasts_alike(self, tmp_path, over_specified):
        X = oscillators()
        for regressor in (None, MultiKernelRegressor(max_landmarks=50)):
            model = BalancedReduction(
                over_specified, 4, horizon=5, prefit=True, reconstructor=regressor
            ).fit(X)
            again = BalancedReduction.load(model.save(tmp_path / "model.safetensors"))
            found, expected = (held.predict(X[:, 0], 3) for held in (again, model))
            np.testing.assert_allclose(found, expected, atol=1e-12)
            assert again.estimator.gamma == over_specified.gamma
            assert not hasattr(again.estimator, "koopman_matrix_")

    def test_another_library_s_regressor_decodes_but_cannot_be_saved(self, tmp_path):
        from sklearn.linear_model import Ridge

        X = koopman_invariant(10, 8)
        model = BalancedReduction(EDMD(), 3, reconstructor=Ridge(1e-6)).fit(X)
        assert model.score(X, horizon=3) > -0.2
        with pytest.raises(TypeError, match="Ridge cannot be saved: only DMD"):
            model.save(tmp_path / "model.safetensors")

    def test_it_can_be_cloned(self):
        model = BalancedReduction(KernelDMD(gamma=0.3), 5, decay=0.9)
        again = clone(model)
        assert again.get_params()["estimator__gamma"] == 0.3
        assert again.set_params(estimator__gamma=2.0).estimator.gamma == 2.0
        assert model.estimator.gamma == 0.3


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"n_components": 0}, "n_components must be an integer of at least 1, got 0"),
            ({"horizon": 0}, "horizon must be an integer of at least 1, got 0"),
            ({"rolled_steps": -1}, "rolled_steps must be an integer of at least 0, got -1"),
            ({"decay": 0.0}, r"decay must be in \(0, 1\], got 0.0"),
            ({"decay": 1.5}, r"decay must be in \(0, 1\], got 1.5"),
        ],
    )
    def test_options_out_of_range(self, options, message):
        with pytest.raises(ValueError, match=message):
            BalancedReduction(DMD(), **options).fit(koopman_invariant(3, 5))

    def test_what_has_no_linear_decoder(self):
        with pytest.raises(TypeError, match="estimator must be a DMD, EDMD or KernelDMD"):
            BalancedReduction(MultiKernelRegressor()).fit(koopman_invariant(3, 5))

    def test_a_prefit_model_of_other_states(self):
        model = DMD().fit(np.random.default_rng(0).standard_normal((20, 3)))
        with pytest.raises(ValueError, match="X has 2 features, but the prefit estimator is"):
            BalancedReduction(model, prefit=True).fit(koopman_invariant(3, 5))

    def test_a_prefit_model_that_is_none(self):
        from sklearn.exceptions import NotFittedError

        with pytest.raises(NotFittedError):
            BalancedReduction(DMD(), prefit=True).fit(koopman_invariant(3, 5))
