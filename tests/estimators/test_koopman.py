"""DMD, EDMD and kernel DMD on systems whose spectrum is known, and against each other."""

import warnings
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from sklearn.base import clone

from conformance.estimators import EstimatorSuite
from spanwise.datasets.dynamics import koopman_invariant
from spanwise.estimators import DMD, EDMD, KernelDMD
from spanwise.estimators._koopman.dictionaries import monomial_count, monomials, thin_plate
from spanwise.estimators._koopman.kernels import KernelOptions

F64 = torch.float64
RATES = np.array([0.9, 0.81, 0.5])


def invariant(x):
    return np.stack([x[:, 0], x[:, 1], x[:, 0] ** 2], axis=1)


def linear_system(n=4, trajectories=5, steps=20, seed=0):
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.standard_normal((n, n)))
    matrix = q @ np.diag([0.95, 0.8, 0.6, 0.3][:n]) @ np.linalg.inv(q + 0.1 * np.eye(n))
    matrix *= 0.95 / np.abs(np.linalg.eigvals(matrix)).max()
    x = [rng.standard_normal((trajectories, n))]
    for _ in range(steps):
        x.append(x[-1] @ matrix)
    return np.stack(x, axis=1), matrix


def spectrum(values):
    return np.sort_complex(np.asarray(values).round(12))


SINGLE = {"check_fit2d_predict1d": "predict takes one initial state, (n,), without an axis"}


class TestDMDContract(EstimatorSuite):
    estimator = DMD
    exceptions: ClassVar[dict[str, str]] = SINGLE
    options: ClassVar[dict[str, Any]] = {"n_components": 3}


class TestEDMDContract(EstimatorSuite):
    estimator = EDMD
    exceptions: ClassVar[dict[str, str]] = SINGLE
    options: ClassVar[dict[str, Any]] = {"observables": "thin_plate", "n_centers": 8}


class TestKernelDMDContract(EstimatorSuite):
    estimator = KernelDMD
    exceptions: ClassVar[dict[str, str]] = SINGLE
    options: ClassVar[dict[str, Any]] = {"rank_tol": 1e-4}
    another_kind = 1e-8


class TestKnownSystem:
    def test_edmd_with_the_invariant_observables_has_its_eigenvalues(self):
        model = EDMD(invariant).fit(koopman_invariant(50, 10))
        np.testing.assert_allclose(model.eigenvalues_, RATES, atol=1e-12)
        assert model.score(koopman_invariant(20, 20, seed=1), horizon=20) > -1e-10

    def test_kernel_dmd_with_a_quadratic_kernel_has_them_and_1(self):
        model = KernelDMD("polynomial", degree=2).fit(koopman_invariant(50, 10))
        for rate in (1.0, *RATES):
            assert np.abs(model.eigenvalues_ - rate).min() < 1e-6

    def test_a_linear_system_gives_its_matrix(self):
        X, matrix = linear_system()
        for model in (DMD(), EDMD("identity"), KernelDMD("linear")):
            expected = spectrum(np.linalg.eigvals(matrix))
            found = spectrum(model.fit(X).eigenvalues_)
            np.testing.assert_allclose(found, expected, atol=1e-9)

    def test_eigenfunctions_grow_by_their_eigenvalue_along_trajectories(self):
        """Fails for a K that is transposed, which every loss lets pass."""
        X = koopman_invariant(5, 6)
        for model in (EDMD(invariant), KernelDMD("polynomial")):
            phi = model.fit(X).eigenfunctions(X)
            # A kernel has features beyond the invariant ones, whose step is a mere fit.
            own = [int(np.abs(model.eigenvalues_ - rate).argmin()) for rate in RATES]
            phi = phi[..., own]
            np.testing.assert_allclose(phi[:, 1:], RATES * phi[:, :-1], atol=1e-8)

    def test_states_are_sums_of_modes(self):
        X = koopman_invariant(5, 6)
        for model in (EDMD(invariant), DMD(), KernelDMD("polynomial")):
            phi = model.fit(X).eigenfunctions(X)
            found = (phi @ model.modes_.T).real
            np.testing.assert_allclose(found, X, atol=1e-8)
            assert model.modes_.shape == (2, len(model.eigenvalues_))

    def test_rates_are_logarithms_over_dt(self):
        model = EDMD(invariant, dt=0.5).fit(koopman_invariant(50, 10))
        np.testing.assert_allclose(model.continuous_eigenvalues_, np.log(RATES) / 0.5, atol=1e-10)

    def test_a_rotation_of_more_than_half_a_turn_a_step_is_aliased(self):
        for angle, seen in ((3.0, 3.0), (4.0, 4.0 - 2 * np.pi)):
            t = np.arange(30)
            X = np.stack([np.cos(angle * t), np.sin(angle * t)], axis=1)
            rates = DMD().fit(X).continuous_eigenvalues_
            assert np.abs(rates.imag).max() == pytest.approx(abs(seen), abs=1e-8)


class TestAgainstEachOther:
    @pytest.mark.parametrize("n", [2, 4])
    def test_kernel_dmd_with_the_linear_kernel_is_dmd(self, n):
        rng = np.random.default_rng(0)
        X = rng.standard_normal((40, n)).cumsum(axis=0) * 0.3
        dmd, kdmd = DMD().fit(X), KernelDMD("linear").fit(X)
        np.testing.assert_allclose(
            spectrum(kdmd.eigenvalues_), spectrum(dmd.eigenvalues_), atol=1e-8
        )
        np.testing.assert_allclose(kdmd.predict(X[0], 5), dmd.predict(X[0], 5), atol=1e-7)

    def test_dmd_is_the_textbook_s(self):
        rng = np.random.default_rng(1)
        X = rng.standard_normal((30, 6)).cumsum(axis=0)
        before, after = X[:-1].T, X[1:].T
        u, s, vh = np.linalg.svd(before, full_matrices=False)
        u, s, vh = u[:, :3], s[:3], vh[:3]
        expected = u.T @ after @ vh.T / s
        found = DMD(3).fit(X)
        np.testing.assert_allclose(
            spectrum(found.eigenvalues_), spectrum(np.linalg.eigvals(expected)), atol=1e-10
        )
        np.testing.assert_allclose(found.singular_values_[:3], s, atol=1e-10)
        projected = X[-1] @ u @ expected.T @ u.T
        np.testing.assert_allclose(found.forecast(X, 1)[0], projected, atol=1e-9)

    def test_kernel_dmd_is_edmd_with_the_kernel_s_features(self):
        X = koopman_invariant(10, 8, seed=3)
        root = np.sqrt(2)

        def features(x):
            a, b = x.T
            return np.stack([a**0, root * a, root * b, a**2, b**2, root * a * b], axis=1)

        one, other = EDMD(features).fit(X), KernelDMD("polynomial", rank_tol=1e-12).fit(X)
        np.testing.assert_allclose(one.predict(X[:, 0], 6), other.predict(X[:, 0], 6), atol=1e-7)

    def test_nystrom_landmarks_do_as_well_as_all_where_the_rank_is_low(self):
        X = koopman_invariant(30, 8)
        whole = KernelDMD("polynomial").fit(X)
        some = KernelDMD("polynomial", max_landmarks=12).fit(X)
        assert len(some.landmarks_) == 6  # binom(2 + 2, 2): pivoted Cholesky finds the rank
        np.testing.assert_allclose(some.predict(X[:, 0], 5), whole.predict(X[:, 0], 5), atol=1e-7)

    def test_a_superfluous_observable_gives_spurious_eigenvalues_at_no_residual(self):
        """Small residuals do not tell: the trap that balancing is for."""
        rng = np.random.default_rng(0)
        x = rng.standard_normal((3, 2))
        X = np.stack([x, x * [0.9, 0.5]], axis=1)

        def observables(s):
            return np.stack([s[:, 0], s[:, 1], np.sin(5 * s[:, 0] + s[:, 1])], axis=1)

        with pytest.warns(UserWarning, match="3 pair"):
            model = EDMD(observables).fit(X)
        psi = model.transform(X)
        assert np.abs(psi[:, 1] - psi[:, 0] @ model.koopman_matrix_).max() < 1e-9
        expected = np.sort([0.9, 0.5])
        off = [np.abs(model.eigenvalues_ - rate).min() for rate in expected]
        spurious = [min(abs(v - r) for r in expected) for v in model.eigenvalues_]
        assert max(off) > 1e-3 or max(spurious) > 1e-3


class TestFeatures:
    @pytest.mark.parametrize(("n", "degree"), [(1, 4), (2, 3), (3, 2)])
    def test_monomials_are_all_products_up_to_the_degree_once(self, n, degree):
        import itertools

        x = torch.rand(5, n, generator=torch.Generator().manual_seed(0), dtype=F64) + 0.5
        found = monomials(x, degree)
        assert found.shape[1] == monomial_count(n, degree)
        expected = [
            torch.stack([x[:, i] for i in picked], 1).prod(1)
            if picked
            else torch.ones(5, dtype=F64)
            for order in range(degree + 1)
            for picked in itertools.combinations_with_replacement(range(n), order)
        ]
        torch.testing.assert_close(
            found.sort(1).values, torch.stack(expected, 1).sort(1).values, atol=1e-12, rtol=0
        )

    def test_thin_plate_splines_are_0_at_their_center(self):
        x = torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=F64)
        found = thin_plate(x, x)
        far = 25 * np.log(5)
        expected = torch.tensor([[1, 0, 0, 0, far], [1, 3, 4, far, 0]], dtype=F64)
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)

    @pytest.mark.parametrize("kernel", ["rbf", "polynomial", "linear"])
    def test_kernels_are_their_formulas(self, kernel):
        rng = np.random.default_rng(0)
        a, b = rng.standard_normal((4, 3)), rng.standard_normal((5, 3))
        formula = {
            "rbf": lambda p, q: np.exp(-0.7 * ((p - q) ** 2).sum()),
            "polynomial": lambda p, q: (0.7 * p @ q + 1.5) ** 3,
            "linear": lambda p, q: p @ q,
        }[kernel]
        options = KernelOptions(kernel, 0.7, 3, 1.5)
        found = options(torch.from_numpy(a), torch.from_numpy(b))
        expected = [[formula(p, q) for q in b] for p in a]
        np.testing.assert_allclose(found, expected, atol=1e-12)
        own = options.diagonal(torch.from_numpy(a))
        np.testing.assert_allclose(own, [formula(p, p) for p in a], atol=1e-12)

    def test_a_function_of_two_arrays_is_a_kernel(self):
        X = koopman_invariant(20, 6)
        given = KernelDMD(lambda a, b: (1 + a @ b.T) ** 2).fit(X)
        named = KernelDMD("polynomial").fit(X)
        np.testing.assert_allclose(given.predict(X[0, 0], 4), named.predict(X[0, 0], 4), atol=1e-8)

    def test_a_fitted_transformer_gives_observables(self):
        from sklearn.preprocessing import PolynomialFeatures

        X = koopman_invariant(20, 6)
        features = PolynomialFeatures(2).fit(X[0])
        given, named = EDMD(features.transform).fit(X), EDMD("polynomial").fit(X)
        np.testing.assert_allclose(given.predict(X[0, 0], 4), named.predict(X[0, 0], 4), atol=1e-9)


class TestForecasts:
    def test_predict_0_steps_reconstructs_and_longer_ones_begin_alike(self):
        X = koopman_invariant(10, 8)
        for model in (DMD(1), EDMD(), KernelDMD()):
            model.fit(X)
            five = model.predict(X[0, 0], 5)
            assert five.shape == (6, 2)
            np.testing.assert_allclose(model.predict(X[0, 0], 3), five[:4], atol=1e-10)
            z = model.transform(X[0, :1])
            np.testing.assert_allclose(model.predict(X[0, 0], 0), model.inverse_transform(z))
            np.testing.assert_array_equal(model.predict(X[0, 0], 5), five)

    def test_long_forecasts_go_block_by_block_to_the_same_states(self, monkeypatch):
        X = koopman_invariant(10, 8)
        model = EDMD(invariant).fit(X)
        whole = model.predict(X[:4, 0], 7)
        monkeypatch.setattr("spanwise.estimators._dynamics.BLOCK", 36)  # 3 steps of 4 states
        np.testing.assert_allclose(model.predict(X[:4, 0], 7), whole, atol=1e-12)
        np.testing.assert_allclose(model.predict(X[:4, 0], 0), whole[:, :1], atol=1e-12)

    def test_forecast_is_the_future_not_a_reconstruction(self):
        X = koopman_invariant(10, 12)
        model = EDMD(invariant).fit(X[:, :8])
        np.testing.assert_allclose(model.forecast(X[:, :8], 5), X[:, 8:], atol=1e-9)
        np.testing.assert_allclose(model.forecast(X[3, :8], 5), X[3, 8:], atol=1e-9)
        ragged = [X[0, :8], X[1, 2:9]]
        found = model.forecast(ragged, 4)
        np.testing.assert_allclose(found[0], X[0, 8:12], atol=1e-9)
        np.testing.assert_allclose(found[1], X[1, 9:13], atol=1e-9)

    def test_several_initial_states_go_together(self):
        X = koopman_invariant(10, 8)
        model = EDMD().fit(X)
        found = model.predict(X[:4, 0], 5)
        assert found.shape == (4, 6, 2)
        np.testing.assert_allclose(found[2], model.predict(X[2, 0], 5), atol=1e-12)

    def test_simulate_knows_whole_steps(self):
        X = koopman_invariant(10, 8)
        model = EDMD(invariant, dt=0.5).fit(X)
        found = model.simulate(X[0, 0], [0, 1.5, 0.5])
        np.testing.assert_allclose(found, X[0, [0, 3, 1]], atol=1e-9)
        with pytest.raises(ValueError, match=r"times must be multiples of dt = 0.5.*continuous"):
            model.simulate(X[0, 0], [0.3])
        with pytest.raises(ValueError, match="times must be finite and not negative"):
            model.simulate(X[0, 0], [-1.0])

    def test_errors_by_horizon_are_those_of_a_loop(self):
        X = koopman_invariant(6, 9, seed=2)
        model = DMD().fit(koopman_invariant(10, 8))
        found = model.errors_by_horizon(X, 4)
        for step in range(5):
            off = total = 0.0
            for path in X:
                for start in range(len(path) - 4):
                    forecast = model.predict(path[start], step)[-1]
                    off += ((forecast - path[start + step]) ** 2).sum()
                    total += ((path[start + step] - model.mean_) ** 2).sum()
            assert found[step] == pytest.approx(np.sqrt(off / total), rel=1e-10)
        assert model.score(X, horizon=4) == pytest.approx(-found[1:].mean())

    def test_an_unstable_model_warns_with_its_spectral_radius(self):
        X = (1.5 ** np.arange(12.0))[:, None] * np.array([[1.0, 2.0]])
        model = DMD(1).fit(X)
        assert model.spectral_radius_ == pytest.approx(1.5)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.predict(X[0], 10)
        with pytest.warns(UserWarning, match=r"spectral radius is 1.5.*1.5\^40"):
            model.predict(X[0], 40)

    def test_centering_forecasts_what_settles_away_from_0(self):
        X, _ = linear_system()
        shifted = X + np.array([5.0, -3.0, 2.0, 1.0])
        model = DMD(center=True).fit(shifted)
        np.testing.assert_allclose(model.mean_, shifted.reshape(-1, 4).mean(0))
        assert model.score(shifted) > DMD().fit(shifted).score(shifted) - 1e-9

    @pytest.mark.parametrize("pairs", [7, 40])
    def test_centering_keeps_what_is_linear_away_from_0_exact(self, pairs):
        """The mean over time moves: states and successors each have one of their own."""
        rng = np.random.default_rng(0)
        A, c = 0.4 * rng.standard_normal((3, 3)), rng.standard_normal(3)
        path = [rng.standard_normal(3)]
        for _ in range(pairs):
            path.append(path[-1] @ A + c)
        X = np.stack(path)
        model = DMD(center=True).fit(X)
        values = np.sort_complex(np.append(np.linalg.eigvals(A), 1.0))
        np.testing.assert_allclose(np.sort_complex(model.eigenvalues_), values, atol=1e-8)
        ahead = X[-1] @ A + c
        np.testing.assert_allclose(model.forecast(X, 2), [ahead, ahead @ A + c], atol=1e-10)
        np.testing.assert_allclose(model.inverse_transform(model.transform(X)), X, atol=1e-12)

    def test_an_rbf_kernel_does_not_feel_where_zero_is(self):
        X = koopman_invariant(20, 8)
        here, there = (KernelDMD(rank_tol=1e-4).fit(X + far) for far in (0.0, 1e5))
        np.testing.assert_allclose(here.eigenvalues_[:8], there.eigenvalues_[:8], atol=1e-6)

    def test_centering_follows_a_drift(self):
        X = np.arange(9.0)[:, None] * np.array([[1.0, -2.0]]) + 3
        expected = np.arange(9.0, 12.0)[:, None] * np.array([[1.0, -2.0]]) + 3
        np.testing.assert_allclose(DMD(center=True).fit(X).forecast(X, 3), expected, atol=1e-10)


class TestInput:
    def test_trajectories_are_never_joined(self):
        """Two halves of different systems: a window across them would spoil the fit."""
        X = koopman_invariant(2, 10)
        apart = EDMD(invariant).fit([X[0], X[1, 3:]])
        np.testing.assert_allclose(apart.eigenvalues_, RATES, atol=1e-9)

    def test_time_may_run_along_columns(self):
        X = koopman_invariant(4, 10)
        rows, columns = DMD().fit(X), DMD(time_axis=1).fit(X.swapaxes(1, 2))
        np.testing.assert_allclose(columns.koopman_matrix_, rows.koopman_matrix_, atol=1e-12)
        np.testing.assert_allclose(columns.predict(X[0, 0], 3), rows.predict(X[0, 0], 3).T)
        np.testing.assert_allclose(columns.transform(X[0].T), rows.transform(X[0]).T, atol=1e-12)
        np.testing.assert_allclose(columns.forecast(X[0].T, 3), rows.forecast(X[0], 3).T)

    @pytest.mark.parametrize("model", [DMD(), EDMD(), KernelDMD()])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_tensors_come_back_as_tensors_of_their_dtype(self, model, dtype):
        X = torch.from_numpy(koopman_invariant(10, 8)).to(dtype)
        fitted = clone(model).fit(X)
        assert fitted.predict(X[0, 0], 3).dtype == fitted.transform(X).dtype == dtype
        assert isinstance(fitted.eigenvalues_, torch.Tensor)
        assert fitted.forecast(list(X), 2)[0].dtype == dtype
        expected = clone(model).fit(X.double().numpy()).predict(X[0, 0].double().numpy(), 3)
        atol = 1e-10 if dtype == torch.float64 else 1e-4
        np.testing.assert_allclose(fitted.predict(X[0, 0], 3).numpy(), expected, atol=atol)

    def test_frames_keep_their_names(self):
        pandas = pytest.importorskip("pandas")
        X = koopman_invariant(2, 10)
        frame = pandas.DataFrame(X[0], columns=["position", "speed"])
        model = DMD().fit([frame, pandas.DataFrame(X[1], columns=["position", "speed"])])
        assert list(model.feature_names_in_) == ["position", "speed"]
        with pytest.raises(ValueError, match="feature names should match"):
            model.transform(frame.rename(columns={"speed": "pace"}))

    def test_a_saved_model_forecasts_alike(self, tmp_path):
        X = koopman_invariant(10, 8)
        for model in (DMD(), EDMD("thin_plate", n_centers=20), KernelDMD()):
            model.fit(X)
            again = type(model).load(model.save(tmp_path / "model.safetensors"))
            # Memory is laid out anew, which rounding feels.
            found, expected = (held.predict(X[0, 0], 4) for held in (again, model))
            np.testing.assert_allclose(found, expected, atol=1e-12)

    def test_energy_chooses_the_rank(self):
        rng = np.random.default_rng(0)
        X = rng.standard_normal((200, 3)) * [10, 1, 0.1]
        assert [len(DMD(share).fit(X).eigenvalues_) for share in (0.5, 0.999, None)] == [1, 2, 3]


class TestBadInput:
    @pytest.mark.bad_input
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: DMD(0), "n_components must be at least 1, got 0"),
            (lambda: DMD(1.5), r"n_components must be None, an integer or a share"),
            (lambda: DMD(dt=0.0), "dt must be finite and above 0, got 0.0"),
            (lambda: DMD(time_axis=2), "time_axis must be 0 .* or 1 .*, got 2"),
            (lambda: DMD(rank_tol=-1.0), "rank_tol must be at least 0 and below 1"),
            (
                lambda: EDMD("splines"),
                "observables must be one of 'identity', 'polynomial', 'thin_plate'",
            ),
            (lambda: EDMD(degree=0), "degree must be at least 1, got 0"),
            (lambda: EDMD(n_centers=0), "n_centers must be at least 1, got 0"),
            (lambda: EDMD(lambda x: x[:1]), r"observables must return \(N, D\)"),
            (lambda: KernelDMD("spline"), "kernel must be one of 'rbf', 'polynomial', 'linear'"),
            (lambda: KernelDMD(gamma=0.0), "gamma must be None or above 0"),
            (lambda: KernelDMD(n_components=0), "n_components must be None or at least 1"),
            (lambda: KernelDMD(max_landmarks=0), "max_landmarks must be at least 1"),
            (lambda: KernelDMD(coef0=-1.0), "coef0 not negative"),
        ],
    )
    def test_options_out_of_range(self, make, message):
        with pytest.raises(ValueError, match=message):
            make().fit(koopman_invariant(3, 5))

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_what_is_not_finite(self, bad):
        X = koopman_invariant(3, 5)
        X[1, 2, 0] = bad
        with pytest.raises(ValueError, match=r"NaN|infinity"):
            DMD().fit(X)

    def test_complex_states(self):
        with pytest.raises(ValueError, match=r"[Cc]omplex"):
            DMD().fit(np.ones((4, 2)) * 1j)
        with pytest.raises(ValueError, match="must be dense and real"):
            DMD().fit(torch.ones(4, 2) * 1j)

    def test_a_single_state(self):
        with pytest.raises(ValueError, match="at least 2 states"):
            DMD().fit(np.ones((1, 3)))

    def test_a_user_s_kernel_whose_gram_matrix_has_rank_0(self):
        with pytest.raises(ValueError, match="the Gram matrix has numerical rank 0"):
            KernelDMD(lambda a, b: np.zeros((len(a), len(b)))).fit(koopman_invariant(3, 5))

    @pytest.mark.parametrize("model", [DMD(center=True), KernelDMD("linear", center=True)])
    def test_states_that_never_move_are_called_so(self, model):
        X = np.tile([0.1, 0.3, -7.7], (9, 1))
        with pytest.raises(ValueError, match="all states are alike: nothing moves"):
            model.fit(X)
        # As they are, what stays is an eigenvalue of 1.
        model.set_params(center=False).fit(X)
        np.testing.assert_allclose(model.eigenvalues_, [1.0], atol=1e-12)

    @pytest.mark.parametrize("model", [DMD(center=True), EDMD(), KernelDMD()])
    def test_a_fit_that_is_refused_leaves_the_one_before(self, model):
        X = koopman_invariant(20, 10)
        before = model.fit(X).predict(X[0, 0], 3)
        with pytest.raises(ValueError, match="all states are zero"):
            model.fit(np.zeros((4, 3)))
        np.testing.assert_array_equal(model.predict(X[0, 0], 3), before)

    def test_states_that_move_from_one_place_only_have_no_slope(self):
        X = [np.array([[0.1, 0.3], [y, 1.0]]) for y in range(7)]
        with pytest.raises(ValueError, match="all states with a successor are alike"):
            DMD(center=True).fit(X)

    @pytest.mark.parametrize("model", [DMD(), EDMD(), KernelDMD()])
    def test_pairs_that_determine_the_step_exactly_are_told(self, model):
        with pytest.warns(UserWarning, match=r"1 pair\(s\) of successive.*Give more states, or"):
            model.fit([[1.0, 2.0], [1.5, -1.0]])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.set_params(**{"rank_tol": 1e-4}).fit(koopman_invariant(20, 10))

    def test_modes_at_several_states_at_once(self):
        model = DMD().fit(koopman_invariant(3, 5))
        with pytest.raises(ValueError, match=r"x must be one state, \(n,\), got 2 of them"):
            model.modes(np.ones((2, 2)))

    def test_states_of_zeros(self):
        with pytest.raises(ValueError, match="all states are zero"):
            DMD().fit(np.zeros((5, 3)))
        with pytest.raises(ValueError, match="all states are zero"):
            KernelDMD("linear").fit(np.zeros((5, 3)))

    def test_trajectories_of_different_width(self):
        with pytest.raises(ValueError, match=r"as many state variables, got \[2, 3\]"):
            DMD().fit([np.ones((4, 2)), np.ones((4, 3))])

    def test_four_axes(self):
        with pytest.raises(ValueError, match=r"Flatten the axes of space"):
            DMD().fit(np.ones((2, 3, 4, 5)))

    def test_tensors_among_arrays(self):
        with pytest.raises(TypeError, match="mixes tensors and other arrays"):
            DMD().fit([np.ones((4, 2)), torch.ones(4, 2)])

    def test_another_state_dimension_later(self):
        model = DMD().fit(koopman_invariant(3, 5))
        with pytest.raises(ValueError, match="3 features, but DMD is expecting 2"):
            model.predict(np.ones(3), 2)
        with pytest.raises(ValueError, match="Z must have 2 coordinates a row"):
            model.inverse_transform(np.ones((2, 5)))

    def test_steps_that_are_none(self):
        model = DMD().fit(koopman_invariant(3, 5))
        with pytest.raises(ValueError, match="n_steps must be an integer of at least 0, got -1"):
            model.predict(np.ones(2), -1)
        with pytest.raises(ValueError, match="n_steps must be an integer of at least 1, got 0"):
            model.forecast(np.ones((3, 2)), 0)
        with pytest.raises(ValueError, match="horizon = 9 needs a trajectory of 10 states"):
            model.errors_by_horizon(np.ones((3, 2)), 9)

    def test_asking_before_fitting(self):
        from sklearn.exceptions import NotFittedError

        for ask in (lambda m: m.predict(np.ones(2)), lambda m: m.eigenvalues_, lambda m: m.modes_):
            with pytest.raises(NotFittedError):
                ask(DMD())

    def test_too_many_monomials(self):
        with pytest.raises(ValueError, match=r"has 176851 monomials. Lower degree"):
            EDMD(degree=3).fit(np.random.default_rng(0).standard_normal((5, 100)))
