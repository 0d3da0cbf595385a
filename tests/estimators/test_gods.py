"""GODS against its formula, finite differences, symmetries, limits, and scikit-learn's contract."""

import warnings
from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.covariance import ledoit_wolf
from sklearn.exceptions import ConvergenceWarning

from conformance.bases import defect, gap
from conformance.estimators import OutlierSuite
from conformance.pretend import pretended
from spanwise.estimators import GODS
from spanwise.estimators._gods.features import whitener
from spanwise.estimators._gods.objective import Objective, mirrored
from spanwise.estimators._gods.starts import PAIR, begin
from spanwise.estimators._kernels import gram, kernel_map
from spanwise.linalg import riemannian_cg, stiefel

F64 = torch.float64
N, D, K = 40, 6, 2
ETA, LAM = 0.3, 0.05


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def data(n=N, d=D, seed=0):
    mixing = torch.randn(d, d, generator=seeded(seed), dtype=F64)
    return torch.randn(n, d, generator=seeded(seed + 1), dtype=F64) @ mixing / 2 + 0.3


def point(n=1, d=D, k=K, seed=2):
    frames = stiefel.random_point(d, k, batch=(n, 2), generator=seeded(seed), dtype=F64)
    return frames, 0.3 * torch.randn(n, 2, k, generator=seeded(seed + 1), dtype=F64)


def formula(x, frames, biases, eta=ETA, lam=LAM, coupling=0.0):
    """The objective as the released code writes it, in numpy: W1, W2, b1, b2, no mirror."""
    (w1, w2), (b1, b2) = frames.numpy(), biases.numpy()
    one, two = x.numpy() @ w1 + b1, x.numpy() @ w2 + b2
    hinges = np.maximum(0, eta - one.min(1)) ** 2 + np.maximum(0, eta + two.max(1)) ** 2
    near = lam * ((one**2).sum() + (two**2).sum())
    return hinges.sum() + near + coupling * (((b1 - b2) ** 2).sum() + ((w1 - w2) ** 2).sum())


def descend(objective, start, **options):
    return riemannian_cg(objective.cost, objective.gradient, start, PAIR, **options)


RELEASED = {
    "n_directions": K, "coupling": 0.0, "scaling": None, "start": "random",
    "contamination": None,
}  # fmt: skip


def fitted(X=None, **options):
    options = {**RELEASED, "eta": ETA, "lam": LAM, "tol": 1e-4, "max_iter": 30, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return GODS(**options).fit(data().numpy() if X is None else X)


class TestObjective:
    @pytest.mark.parametrize("coupling", [0.0, 0.7])
    def test_is_the_released_formula(self, coupling):
        x = data()
        frames, biases = point(3)
        objective = Objective(x, ETA, LAM, coupling)
        value, _ = objective.cost(mirrored(frames, biases))
        for i in range(3):
            expected = formula(x, frames[i], biases[i], coupling=coupling)
            assert float(value[i]) == pytest.approx(expected, rel=1e-12)

    @pytest.mark.parametrize("options", [{}, {"coupling": 0.7}, {"ridge": 1.0}, {"lam": 0.0}])
    def test_gradient_is_that_of_finite_differences(self, options):
        objective = Objective(data(), **{"eta": ETA, "lam": LAM, **options})
        start = point(2)
        found = objective.gradient(start, objective.cost(start)[1])
        for which, (tensor, slope) in enumerate(zip(start, found, strict=True)):
            move = torch.randn(tensor.shape, generator=seeded(9), dtype=F64)
            ends = []
            for step in (1e-6, -1e-6):
                moved = [t.clone() for t in start]
                moved[which] += step * move
                ends.append(objective.cost(tuple(moved))[0])
            expected = (ends[0] - ends[1]) / 2e-6
            got = (slope * move).flatten(1).sum(1)
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)

    def test_riemannian_gradient_is_the_slope_along_retractions(self):
        objective, start = Objective(data(), ETA, LAM), point(2)
        slope = PAIR.projection(start, objective.gradient(start, objective.cost(start)[1]))
        ahead = PAIR.projection(start, tuple(torch.randn_like(t) for t in start))
        ends = [
            objective.cost(PAIR.retraction(start, tuple(step * h for h in ahead)))[0]
            for step in (1e-6, -1e-6)
        ]
        expected = (ends[0] - ends[1]) / 2e-6
        torch.testing.assert_close(PAIR.inner(slope, ahead), expected, rtol=1e-6, atol=1e-6)

    def test_sums_over_samples_so_that_each_counts_alike(self):
        x, at = data(), mirrored(*point())
        once, twice = (Objective(t, ETA, LAM).cost(at)[0] for t in (x, torch.cat([x, x])))
        torch.testing.assert_close(twice, 2 * once, rtol=1e-12, atol=0)

    @pytest.mark.parametrize("n", [1, 4, 40])
    def test_distances_of_all_samples_come_from_as_few_rows_as_their_span_has(self, n):
        x = 100 + data(n)  # far from the origin, where sums of squares would cancel
        frames, biases = point()
        biases = biases - torch.einsum("ncdk,d->nck", frames, x.mean(0))
        objective = Objective(x, 1e-3, LAM)
        value, saved = objective.cost((frames, biases))
        w1, w2 = mirrored(frames, biases)
        assert float(value) == pytest.approx(formula(x, w1[0], w2[0], eta=1e-3), rel=1e-12)
        assert len(saved[3].flatten(0, -2).mT) == min(n, D)

    def test_does_not_change_when_columns_are_permuted_with_their_biases(self):
        objective, (frames, biases) = Objective(data(), ETA, LAM), point(k=4)
        order = [2, 0, 3, 1]
        permuted = objective.cost((frames[..., order], biases[..., order]))[0]
        torch.testing.assert_close(permuted, objective.cost((frames, biases))[0])

    def test_turns_with_the_data(self):
        q = stiefel.random_point(D, D, generator=seeded(5), dtype=F64)
        frames, biases = point()
        plain = Objective(data(), ETA, LAM).cost((frames, biases))[0]
        turned = Objective(data() @ q.mT, ETA, LAM).cost((q @ frames, biases))[0]
        torch.testing.assert_close(turned, plain, rtol=1e-12, atol=0)

    def test_and_score_stay_when_the_classifiers_swap_and_change_sign(self):
        frames, biases = point()
        x = data()
        swapped = -frames[0].flip(0), -biases[0].flip(0)
        expected = formula(x, frames[0], biases[0])
        assert formula(x, *swapped) == pytest.approx(expected, rel=1e-13)
        model = fitted()
        scores = model.score_samples(x.numpy())
        model.frames_, model.biases_ = -model.frames_[::-1], -model.biases_[::-1]
        np.testing.assert_allclose(model.score_samples(x.numpy()), scores, atol=1e-12)


class TestDescent:
    def test_stays_orthonormal_and_never_climbs(self):
        objective, start, costs = Objective(data(), ETA, LAM), point(3), []
        for steps in (0, 1, 2, 3, 5, 8, 13, 40):
            found = descend(objective, start, iterations=steps)
            costs.append(found.cost)
            assert defect(found.point[0]) < 1e-12
        assert (torch.stack(costs).diff(dim=0) <= 0).all()

    @pytest.mark.parametrize("steps", [1, 2, 3, 5, 10, 40, 300])
    @pytest.mark.parametrize("k", [1, 3])
    def test_takes_pymanopts_path(self, steps, k):
        pymanopt = pytest.importorskip("pymanopt")
        man = pymanopt.manifolds
        frame = man.Sphere(D) if k == 1 else man.Stiefel(D, k)
        manifold = man.Product([frame, frame, man.Euclidean(k), man.Euclidean(k)])
        objective = Objective(data(), ETA, LAM)

        def pair(w1, w2, b1, b2):
            frames = torch.from_numpy(np.stack([w1.reshape(D, k), w2.reshape(D, k)]))
            return mirrored(frames[None], torch.from_numpy(np.stack([b1, b2]))[None])

        @pymanopt.function.numpy(manifold)
        def value(*p):
            return float(objective.cost(pair(*p))[0])

        @pymanopt.function.numpy(manifold)
        def slope(*p):
            at = pair(*p)
            w, b = mirrored(*objective.gradient(at, objective.cost(at)[1]))
            w, b = w[0].numpy(), b[0].numpy()
            return [w[0].reshape(p[0].shape), w[1].reshape(p[0].shape), b[0], b[1]]

        frames, biases = point(k=k)
        w = [f.numpy().reshape(D) if k == 1 else f.numpy() for f in frames[0]]
        theirs = pymanopt.optimizers.ConjugateGradient(max_iterations=steps + 1, verbosity=0).run(
            pymanopt.Problem(manifold, value, euclidean_gradient=slope),
            initial_point=[*w, *biases[0].numpy()],
        )
        ours = descend(objective, mirrored(frames, biases), iterations=steps)
        # At a kink rounding decides which direction pulls: in the end 1 % is what can be asked.
        assert float(ours.cost) == pytest.approx(theirs.cost, rel=1e-8 if steps <= 40 else 1e-2)

    def test_from_mirrored_classifiers_leaves_them_one_classifier(self):
        # In mirrored form W2 = -W1, b2 = -b1 is twice the same frame.
        frames, biases = (t[:, :1].expand_as(t).contiguous() for t in point())
        found = descend(Objective(data(), ETA, LAM), (frames, biases), iterations=30)
        torch.testing.assert_close(found.point[0][:, 0], found.point[0][:, 1], atol=1e-8, rtol=0)
        one, two = fitted().frames_
        assert np.abs(one + two).max() > 0.1

    def test_without_distances_puts_all_data_inside(self):
        model = fitted(lam=0.0, eta=0.01, tol=1e-8, max_iter=300)
        assert model.objective_ < 1e-6
        assert (model.predict(data().numpy()) == 1).all()

    def test_with_large_lam_finds_the_smallest_principal_directions(self):
        x = data(200) - data(200).mean(dim=0)
        values, vectors = torch.linalg.eigh(x.mT @ x)
        lam = 1e4
        model = fitted(x.numpy(), lam=lam, eta=0.01, start="random", tol=1e-5, max_iter=500)
        for frame in torch.from_numpy(model.frames_):
            assert gap(frame, vectors[:, :K]) < 1e-3
        assert model.objective_ == pytest.approx(float(2 * lam * values[:K].sum()), rel=1e-3)

    @pytest.mark.parametrize("k", [1, D])
    def test_takes_one_direction_or_all(self, k):
        model = fitted(n_directions=k)
        assert model.frames_.shape == (2, D, k)
        assert defect(torch.from_numpy(model.frames_)) < 1e-12

    def test_objective_is_the_formula_at_the_frames_found(self):
        model = fitted()
        found = formula(data(), torch.from_numpy(model.frames_), torch.from_numpy(model.biases_))
        assert model.objective_ == pytest.approx(found, rel=1e-10)

    def test_without_coupling_the_lower_objective_has_both_frames_in_one_place(self):
        # F is the same function of both once the second is mirrored: its minima are pairs of equal
        # frames, and a descent from a slab moves there.
        x = data(200).numpy()
        few = {"start": "slab", "max_iter": 120, "eta": 0.5, "lam": 0.1, "n_directions": 3}
        alone, coupled = (fitted(x, coupling=c, **few) for c in (0.0, 1.0))
        one, two = mirrored(torch.tensor(alone.frames_), torch.tensor(alone.biases_))
        objective = Objective(torch.from_numpy(x), 0.5, 0.1)
        halves = [
            float(objective.cost((w.expand(1, 2, -1, -1), b.expand(1, 2, -1)))[0])
            for w, b in zip(one, two, strict=True)
        ]
        assert min(halves) <= alone.objective_ * (1 + 1e-12)  # twice one frame is no worse
        assert np.abs(coupled.frames_[0] - coupled.frames_[1]).max() < 0.2  # the sides of a slab

    def test_of_several_starts_keeps_the_lowest(self):
        assert fitted(n_init=4).objective_ <= fitted().objective_ * (1 + 1e-6)


class TestStarts:
    def test_the_official_one_begins_on_the_wrong_side(self):
        x = data()
        objective = Objective(x, ETA, LAM)
        right = begin(x, K, ETA, "one_sided", 1, seeded(0))
        wrong = begin(x, K, ETA, "official", 1, seeded(0))
        torch.testing.assert_close(wrong[0], -right[0])
        assert not wrong[1].any()
        assert float(objective.cost(wrong)[0]) > float(objective.cost(right)[0])

    def test_a_slab_has_all_data_inside(self):
        x = data()
        _, saved = Objective(x, ETA, LAM).cost(begin(x, K, ETA, "slab", 1, seeded(0)))
        assert float(saved[1].max()) < 1e-12  # hinges

    def test_the_official_one_of_one_direction_leaves_the_data_alone(self):
        x = data()
        x[3] = 0
        before = x.clone()
        frames, biases = begin(x, 1, ETA, "official", 2, seeded(0))
        assert torch.equal(x, before)
        assert defect(frames) < 1e-12
        longest = x[x.norm(dim=1).argmax()]
        torch.testing.assert_close(-frames[0, 1, :, 0], longest / longest.norm())
        assert not biases.any()

    @pytest.mark.parametrize("start", ["one_sided", "slab", "random", "official"])
    def test_all_fit_alike_each_time(self, start):
        first, again = (fitted(start=start, max_iter=10, random_state=3) for _ in range(2))
        np.testing.assert_array_equal(first.frames_, again.frames_)


class TestWhitening:
    @pytest.mark.parametrize("n", [5, 12, 200])
    def test_inverts_the_covariance_of_ledoit_and_wolf(self, n):
        x = data(n) - data(n).mean(dim=0)
        turn = whitener(x)
        expected = np.linalg.inv(ledoit_wolf(x.numpy(), assume_centered=True)[0])
        np.testing.assert_allclose((turn @ turn.mT).numpy(), expected, rtol=1e-10)

    def test_shrinks_what_has_no_variance_and_survives_constant_data(self):
        x = data(200) - data(200).mean(dim=0)
        x[:, 2] = 0
        assert torch.isfinite(whitener(x)).all()
        assert torch.isfinite(whitener(torch.zeros(4, 3, dtype=F64))).all()


class TestKernel:
    def test_a_linear_one_is_plain_gods_in_the_space_of_the_rows(self):
        x = data()
        k = gram("linear", 1.0, x, x)
        z = k @ kernel_map(k, None)
        turn = torch.linalg.lstsq(x, z).solution
        assert defect(turn) < 1e-8
        start = mirrored(*point())
        plain = descend(Objective(x, ETA, LAM), start, iterations=20)
        inner = descend(Objective(z, ETA, LAM), (turn.mT @ start[0], start[1]), iterations=20)
        margins = Objective(x, ETA, LAM).cost(plain.point)[1][0]
        torch.testing.assert_close(
            Objective(z, ETA, LAM).cost(inner.point)[1][0], margins, atol=1e-6, rtol=0
        )

    def test_coordinates_reproduce_the_kernel(self):
        k = gram("rbf", 0.2, data(), data())
        z = k @ kernel_map(k, None)
        torch.testing.assert_close(z @ z.mT, k, atol=1e-8, rtol=0)

    def test_a_function_is_the_same_as_its_name(self):
        def rbf(a, b):
            return np.exp(-0.2 * ((a[:, None] - b[None]) ** 2).sum(-1))

        named = fitted(kernel="rbf", gamma=0.2, n_components=5, start="slab")
        given = fitted(kernel=rbf, n_components=5, start="slab")
        X = data(seed=4).numpy()
        np.testing.assert_allclose(given.score_samples(X), named.score_samples(X), atol=1e-6)

    @pytest.mark.parametrize(("dtype", "far"), [(torch.float64, 1e6), (torch.float32, 1e3)])
    def test_of_distances_does_not_mind_where_the_data_is(self, dtype, far):
        # Rounding of what is far is some 1e-10 or 1e-4 already.
        X, Y = data().to(dtype), data(seed=4).to(dtype)
        near, moved = (gram("rbf", 0.2, a + far, b + far) for a, b in ((X, Y), (X, X)))
        atol = 1e-8 if dtype == torch.float64 else 1e-3
        torch.testing.assert_close(near, gram("rbf", 0.2, X, Y), atol=atol, rtol=0)
        torch.testing.assert_close(moved, gram("rbf", 0.2, X, X), atol=atol, rtol=0)

    def test_in_float32_does_not_take_rounding_for_coordinates(self):
        # Beyond some 1e-7 of the largest eigenvalue, float32 has nothing but noise to divide.
        few, X = {"kernel": "rbf", "gamma": 0.02, "start": "slab", "max_iter": 0}, data(seed=4)
        near = fitted(data().float(), **few)
        kernel = gram("rbf", 0.02, data(), data()).numpy()
        values = np.linalg.eigvalsh(kernel)
        assert near.projector_.shape[1] <= (values > 1e-6 * values[-1]).sum()
        assert np.abs(near.margins(X.float()).numpy()).max() < 10

    def test_landmarks_take_the_place_of_all_samples(self):
        model = fitted(kernel="rbf", max_landmarks=10, max_iter=20)
        assert model.landmarks_.shape == (10, D)
        # A share of the trace, or a count, of coordinates.
        share = fitted(kernel="rbf", n_components=0.5, n_directions=1, max_iter=1)
        assert share.center_.shape[0] < 10
        assert model.score_samples(data().numpy()).shape == (N,)

    def test_what_is_no_kernel_is_refused(self):
        with pytest.raises(ValueError, match="must be positive semi-definite: eigenvalues range"):
            fitted(kernel=lambda a, b: -np.exp(-((a[:, None] - b[None]) ** 2).sum(-1)))
        with pytest.raises(ValueError, match="finite and symmetric"):
            fitted(kernel=lambda a, b: a[:, :1] * np.ones(len(b)))
        with pytest.raises(ValueError, match=r"kernel must return \(n, m\) = \(40, 40\)"):
            fitted(kernel=lambda a, b: a)


class TestDecision:
    def test_is_normal_where_all_inequalities_hold(self):
        model = fitted()
        X = data(seed=4).numpy()
        margins = model.margins(X)
        expected = np.stack(
            [X @ model.frames_[0] + model.biases_[0], -(X @ model.frames_[1] + model.biases_[1])], 1
        )
        np.testing.assert_allclose(margins, expected, atol=1e-12)
        np.testing.assert_array_equal(model.predict(X) == 1, (expected >= 0).all(axis=(1, 2)))
        np.testing.assert_allclose(model.score_samples(X), expected.min(axis=(1, 2)), atol=1e-12)
        np.testing.assert_array_equal(model.decision_function(X), model.score_samples(X))

    def test_of_the_paper_has_its_settings(self):
        model = GODS.preset("paper", n_directions=5)
        assert (model.n_directions, model.eta, model.lam, model.coupling) == (5, 0.01, 0.001, 0)
        assert (model.scaling, model.start, model.contamination) == ("rows", "official", None)
        assert GODS.preset("tuned").get_params() == GODS().get_params()
        kernel = GODS.preset("kernel", max_iter=3)
        assert (kernel.kernel, kernel.n_components, kernel.max_iter) == ("rbf", 100, 3)

    def test_of_a_whitened_kernel_finds_what_is_far_from_all(self):
        x = data(120).numpy()
        model = GODS(kernel="rbf", n_components=30).fit(x)
        far = np.concatenate([x[:20], 30 + x[:5]])
        assert set(model.score_samples(far).argsort()[:5]) == {20, 21, 22, 23, 24}

    def test_leaves_the_contamination_outside(self):
        model = fitted(contamination=0.2)
        assert (model.predict(data().numpy()) == -1).sum() == 8

    @pytest.mark.parametrize("kernel", [None, "linear"])
    @pytest.mark.parametrize("scaling", [None, "standard", "whiten", "rows"])
    def test_is_explained_feature_by_feature(self, scaling, kernel):
        model = fitted(scaling=scaling, kernel=kernel, max_iter=20)
        X = data(seed=4).numpy()
        parts = model.explain(X)
        assert parts.shape == X.shape
        margins = model.margins(X).reshape(len(X), -1)
        signed = np.concatenate([model.frames_[0], -model.frames_[1]], axis=1)
        centre = model.center_ @ signed + np.concatenate([model.biases_[0], -model.biases_[1]])
        active = margins.argmin(1)
        np.testing.assert_allclose(parts.sum(1), margins.min(1) - centre[active], atol=1e-10)

    def test_of_landmarks_of_a_linear_kernel_is_explained_too(self):
        model = fitted(kernel="linear", scaling="whiten", max_landmarks=4, max_iter=5)
        X, mean = data(seed=4).numpy(), data().numpy().mean(0, keepdims=True)
        signed = model.explain(X).sum(1)
        margins = model.margins(X).reshape(N, -1)
        at_mean = model.margins(mean).reshape(-1)[margins.argmin(1)]
        np.testing.assert_allclose(signed, margins.min(1) - at_mean, atol=1e-10)

    def test_of_a_shifted_feature_is_blamed_on_it(self):
        model = fitted(np.random.default_rng(0).normal(size=(200, 4)), n_directions=4, lam=0.5)
        X = np.zeros((1, 4))
        X[0, 2] = 50
        assert model.explain(X)[0].argmin() == 2
        assert model.predict(X) == -1

    def test_rows_of_any_length_score_alike_when_scaled(self):
        model = fitted(scaling="rows", max_iter=20)
        X = data(seed=4).numpy()
        np.testing.assert_allclose(model.score_samples(7 * X), model.score_samples(X), atol=1e-12)

    def test_with_pyods_habits_has_the_other_sign(self):
        X = data().numpy()
        detector = GODS(max_iter=20).as_pyod(0.1).fit(X)
        np.testing.assert_array_equal(
            detector.decision_scores_, -detector.estimator.score_samples(X)
        )
        assert detector.labels_.sum() == 4
        np.testing.assert_array_equal(detector.predict(X), detector.labels_)
        for method in ("linear", "unify"):
            chance = detector.predict_proba(X, method)
            np.testing.assert_allclose(chance.sum(1), 1)
            assert ((chance >= 0) & (chance <= 1)).all()
        with pytest.raises(ValueError, match=r"contamination must be in \(0, 0.5\]"):
            GODS().as_pyod(0.6)


class TestContract(OutlierSuite):
    estimator = GODS
    options: ClassVar = {"max_iter": 5}

    @pytest.mark.parametrize(
        "options",
        [
            {}, {"scaling": "rows", "kernel": "linear"}, {"start": "one_sided", "n_init": 2},
            {"kernel": "rbf", "max_landmarks": 9}, {"start": "official", "n_directions": 1},
            {"kernel": lambda a, b: a @ b.T},
        ],
    )  # fmt: skip
    def test_fits_and_judges_wherever_the_data_is(self, options, monkeypatch):
        monkeypatch.setattr("spanwise.estimators._gods.starts._ITERATIONS", 2)
        X, new = data(n=20).numpy(), data(n=5, seed=4)
        options = {"start": "slab", "scaling": "whiten", "n_directions": 1, **options}
        here = fitted(X, max_iter=1, **options)
        with pretended() as device:
            there = fitted(torch.from_numpy(X).to(device), max_iter=1, **options)
            for model, given in ((there, new.to(device)), (here, new.to(device)), (there, new)):
                for ask in ("margins", "predict", "explain"):
                    if ask == "explain" and here.kernel not in (None, "linear"):
                        continue
                    found = getattr(model, ask)(given)
                    assert found.device == given.device
                    expected = getattr(here, ask)(new.numpy())
                    np.testing.assert_allclose(found.cpu().numpy(), expected, atol=1e-9)
            assert isinstance(there.as_pyod().decision_function(new.to(device)), np.ndarray)

    @pytest.mark.parametrize("options", [{"scaling": "standard"}, {"kernel": "rbf"}])
    def test_a_saved_one_scores_alike(self, tmp_path, options):
        model = fitted(max_iter=10, **options)
        again = GODS.load(model.save(tmp_path / "gods.safetensors"))
        X = data(seed=4).numpy()
        np.testing.assert_allclose(again.score_samples(X), model.score_samples(X), atol=1e-12)
        assert again.get_params() == model.get_params()

    def test_float32_goes_the_same_way_for_some_steps(self):
        few = {"max_iter": 5, "start": "slab"}
        wide = fitted(**few).score_samples(data(seed=4).numpy())
        near = fitted(data().float(), **few).score_samples(data(seed=4).float())
        np.testing.assert_allclose(near.numpy(), wide, atol=1e-3)

    def test_says_what_to_do_when_it_does_not_converge(self):
        told = r"fell by \d\d?\.\d% in the last tenth of them. Raise max_iter, or scale the data"
        with pytest.warns(ConvergenceWarning, match=told):  # a single step falls from the start
            GODS(max_iter=1).fit(data().numpy())

    def test_progress_is_told_only_where_it_is_asked_for(self, capsys):
        fitted(max_iter=20)
        assert capsys.readouterr().err == ""
        fitted(max_iter=20, verbose=True)
        told = capsys.readouterr().err.splitlines()
        assert told[-1].startswith("GODS step 20/20  objective")

    def test_a_share_of_the_features_is_a_number_of_directions(self):
        for share, k in ((0.5, 3), (1.0, D), (0.01, 1)):
            assert fitted(n_directions=share, max_iter=1).frames_.shape == (2, D, k)

    def test_an_earlier_fit_leaves_nothing_behind(self):
        model = fitted(scaling="whiten", max_iter=5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.set_params(scaling=None).fit(data().numpy())
        assert not hasattr(model, "whitener_")
        assert not hasattr(model, "mean_")

    def test_more_directions_than_features_are_clipped(self):
        with pytest.warns(UserWarning, match="n_directions = 9 exceeds the 6 features: 6 are used"):
            model = GODS(9, tol=1.0).fit(data().numpy())
        assert model.frames_.shape == (2, D, D)


class TestBadInput:
    @pytest.mark.bad_input
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"n_directions": 0},
                "n_directions must be at least 1, or a share of the features in .*, got 0",
            ),
            ({"n_directions": 1.5}, "n_directions must be at least 1, or a share .*, got 1.5"),
            ({"eta": 0.0}, "eta must be finite and above 0, got 0.0"),
            ({"lam": -1.0}, "lam must be finite and at least 0, got -1.0"),
            ({"coupling": float("nan")}, "coupling must be finite and at least 0, got nan"),
            ({"kernel": "poly"}, "kernel must be None, 'linear', 'rbf' or a function, got 'poly'"),
            ({"scaling": "minmax"}, "scaling must be one of None, 'standard', 'whiten', 'rows'"),
            ({"start": "best"}, "start must be one of 'one_sided', 'slab', 'random', 'official'"),
            ({"contamination": 0.6}, r"contamination must be None or in \(0, 0.5\], got 0.6"),
            ({"contamination": 0.0}, r"contamination must be None or in \(0, 0.5\], got 0.0"),
            ({"n_init": 0}, "n_init must be a whole number, at least 1, got 0"),
            ({"max_iter": -1}, "max_iter must be a whole number, at least 0, got -1"),
            ({"max_iter": 2.5}, "max_iter must be a whole number, at least 0, got 2.5"),
            ({"retries": -1}, "retries must be a whole number, at least 0, got -1"),
            ({"max_landmarks": 0}, "max_landmarks must be a whole number, at least 1, got 0"),
            ({"lam": float("inf")}, "lam must be finite and at least 0, got inf"),
            ({"eta": float("inf")}, "eta must be finite and above 0, got inf"),
            ({"tol": -1e-3}, "tol must be finite and at least 0"),
            ({"n_components": 0}, "n_components must be None, at least 1, or a share"),
            ({"gamma": -1.0}, "gamma must be None or above 0"),
        ],
    )
    def test_options_out_of_range(self, options, message):
        with pytest.raises(ValueError, match=message):
            GODS(**options).fit(data().numpy())

    @pytest.mark.bad_input
    def test_are_refused_before_a_fit_is_touched(self):
        model = fitted(max_iter=5)
        with pytest.raises(ValueError, match="eta must be"):
            model.set_params(eta=0.0).fit(data(d=3).numpy())
        assert model.n_features_in_ == D
        assert model.score_samples(data().numpy()).shape == (N,)

    @pytest.mark.parametrize(
        ("X", "kind", "message"),
        [
            (sparse.csr_array(np.eye(5)), TypeError, "[Ss]parse"),
            (np.empty((0, 3)), ValueError, "0 sample"),
            (np.arange(5.0), ValueError, "1D array"),
            (torch.empty(0, 3), ValueError, "0 sample"),
        ],
    )
    def test_what_is_no_table_of_samples(self, X, kind, message):
        with pytest.raises(kind, match=message):
            GODS().fit(X)

    @pytest.mark.bad_input
    def test_an_unknown_preset(self):
        with pytest.raises(ValueError, match='preset must be "paper", "tuned" or "kernel", got'):
            GODS.preset("best")

    def test_an_explanation_of_a_kernel(self):
        with pytest.raises(ValueError, match=r"explain needs kernel=None or.*margins\(X\)"):
            fitted(kernel="rbf", max_iter=5).explain(data().numpy())

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_what_is_not_finite(self, bad):
        X = data().numpy()
        X[0, 0] = bad
        with pytest.raises(ValueError, match=r"NaN|infinity"):
            GODS().fit(X)
