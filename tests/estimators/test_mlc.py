"""MLC as an estimator: curves become subspaces, seeds repeat, files hold it, errors are named."""

import warnings
from unittest import mock

import numpy as np
import pytest
import torch
from sklearn.datasets import make_moons
from sklearn.exceptions import ConvergenceWarning

from conformance.estimators import EstimatorSuite
from spanwise.estimators import (
    MLC,
    clustering_accuracy,
    coding_rate,
    numerical_rank,
    rate_reduction,
)

SMALL = {
    "n_clusters": 2, "n_features": 6, "hidden": (24, 24), "ssl_epochs": 3, "epochs": 2, "n_init": 2,
}  # fmt: skip
LEAST = {**SMALL, "hidden": (8,), "ssl_epochs": 1, "epochs": 1, "n_init": 1}
"""For the checks that fit a hundred times and look at shapes and words."""


def fitted(X, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return MLC(**{**SMALL, **options}).fit(X)


def samples(n=60, p=5, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(n, p)) + 4 * generator.integers(2, size=(n, 1))


@pytest.fixture(scope="module")
def curves():
    """Two half circles in twelve dimensions, and which of them."""
    X, labels = make_moons(300, noise=0.04, random_state=0)
    basis = np.linalg.qr(np.random.default_rng(1).normal(size=(12, 2)))[0]
    return X @ basis.T, labels


@pytest.fixture(scope="module")
def unrolled(curves):
    """The fit that several tests look at."""
    X, _ = curves
    return fitted(
        X, n_features=8, hidden=(64, 64), augment=0.1, ssl_epochs=50, epochs=40, lr=1e-3, eta=0.05,
        batch_size=150, select=None, n_init=5,
    )  # fmt: skip


class TestMLC(EstimatorSuite):
    estimator = MLC
    options = LEAST
    exceptions = dict.fromkeys(
        (
            "check_dont_overwrite_parameters",
            "check_fit2d_1feature",
            "check_fit2d_predict1d",
            "check_methods_subset_invariance",
        ),
        "they ask for one cluster, which is refused: there is nothing to tell apart",
    )


class TestCurves:
    def test_two_half_circles_are_told_apart(self, curves, unrolled):
        assert clustering_accuracy(curves[1], unrolled.labels_) >= 0.95

    def test_clusters_shrink_while_the_whole_does_not(self, curves, unrolled):
        first = fitted(curves[0], **{**unrolled.get_params(), "epochs": 0})
        rates = unrolled.coding_rates_
        start = np.flatnonzero(rates["stage"] == 2)[0]
        assert rates["R"][-1] > 0.85 * rates["R"][start]
        assert rates["R_c"][-1] < rates["R_c"][start]
        ranks = []
        for model in (first, unrolled):
            Z = torch.from_numpy(model.transform(curves[0]))
            parts = [Z[torch.from_numpy(curves[1] == label)] for label in (0, 1)]
            ranks.append(sum(numerical_rank(part) for part in parts))
        assert ranks[1] < ranks[0]

    def test_subspaces_give_training_samples_their_own_labels(self, curves, unrolled):
        assert (unrolled.predict(curves[0]) == unrolled.labels_).mean() >= 0.95

    def test_new_samples_are_told_apart_too(self, unrolled):
        X, labels = make_moons(200, noise=0.04, random_state=5)
        basis = np.linalg.qr(np.random.default_rng(1).normal(size=(12, 2)))[0]
        assert clustering_accuracy(labels, unrolled.predict(X @ basis.T)) >= 0.95

    def test_features_are_unit_rows_and_bases_orthonormal(self, curves, unrolled):
        Z = unrolled.transform(curves[0])
        np.testing.assert_allclose(np.linalg.norm(Z, axis=1), 1, atol=1e-12)
        for basis in unrolled.bases_:
            np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-10)

    def test_membership_is_doubly_stochastic_and_mostly_within_curves(self, curves, unrolled):
        G = unrolled.membership(curves[0])
        np.testing.assert_allclose(G.sum(0), 1, atol=1e-5)
        np.testing.assert_allclose(G.sum(1), 1, atol=1e-5)
        same = curves[1][:, None] == curves[1]
        assert (G * same).sum() / G.sum() > 0.9


class TestHistory:
    def test_holds_the_rates_of_every_step(self):
        X = samples()
        model = fitted(X, batch_size=20, ssl_epochs=3, epochs=2, select=None)
        rates = model.coding_rates_
        assert rates["stage"].tolist() == [1] * 9 + [2] * 6
        assert np.isnan(rates["R_c"][:9]).all()
        np.testing.assert_allclose(rates["delta"][9:], (rates["R"] - rates["R_c"])[9:])
        assert (rates["delta"][9:] >= -1e-6).all()
        assert model.n_iter_ == model.best_epoch_ == 2
        assert len(model.selection_) == 0

    def test_selection_is_what_it_says(self):
        X = samples()
        model = fitted(X, select="rate_reduction", epochs=3)
        Z, G = (torch.from_numpy(f(X)) for f in (model.transform, model.membership))
        found = float(rate_reduction(Z, G, model.eps))
        assert model.selection_[model.best_epoch_] == pytest.approx(found, rel=1e-9)
        bits = fitted(X, select="coding_bits", epochs=3)
        assert -bits.selection_[bits.best_epoch_] * 60 == pytest.approx(bits.coding_bits_[0])

    def test_the_best_epoch_is_kept_and_training_ends_after_some_worse_ones(self):
        # A rate this high destroys what there was: nothing is better than the start.
        model = fitted(samples(), lr=3.0, epochs=30, patience=2, select="coding_bits")
        assert model.n_iter_ < 30
        assert model.n_iter_ == model.best_epoch_ + 2
        assert np.argmax(model.selection_) == model.best_epoch_
        again = fitted(samples(), lr=3.0, epochs=model.best_epoch_, select=None)
        np.testing.assert_array_equal(again.transform(samples()), model.transform(samples()))

    def test_what_still_improves_at_the_end_is_told_with_what_to_do(self):
        with pytest.warns(ConvergenceWarning, match=r"in epochs = 3: .* Raise epochs or lr"):
            MLC(**{**SMALL, "epochs": 3, "lr": 3e-3}).fit(samples())

    def test_progress_is_told_on_stderr_if_asked(self, capsys):
        fitted(samples(), verbose=True)
        told = capsys.readouterr()
        assert told.out == ""
        assert "MLC, first stage, epoch 3/3" in told.err
        assert "MLC epoch 2/2  R " in told.err


class TestNumber:
    def test_auto_takes_the_fewest_coding_bits(self):
        basis = np.linalg.qr(np.random.default_rng(0).normal(size=(12, 12)))[0]
        blocks = basis.T.reshape(4, 3, 12)
        X = np.concatenate(
            [np.random.default_rng(i).normal(size=(50, 3)) @ b for i, b in enumerate(blocks)]
        )
        X /= np.linalg.norm(X, axis=1, keepdims=True)
        model = fitted(
            X, n_clusters="auto", encoder=torch.nn.Identity(), n_features=24, ssl_epochs=0,
            epochs=10, candidates=range(2, 8), eta=0.05, eps=0.1**0.5, lr=1e-3,
        )  # fmt: skip
        assert model.candidates_.tolist() == [2, 3, 4, 5, 6, 7]
        assert model.n_clusters_ == 4
        assert np.argmin(model.coding_bits_) == 2
        assert clustering_accuracy(np.arange(4).repeat(50), model.labels_) > 0.95

    def test_samples_beyond_the_membership_join_by_their_subspaces(self):
        X = samples(200)
        model = fitted(X, max_samples=50)
        assert model.labels_.shape == (200,)
        assert (model.labels_ == model.predict(X)).mean() > 0.9


class TestPrincipal:
    def test_heads_on_the_samples_begin_as_their_principal_axes(self):
        X = samples(p=12)
        model = fitted(X, hidden=(), epochs=0, select=None, ssl_epochs=0)
        centred = X - X.mean(0)
        axes = np.linalg.svd(centred, full_matrices=False)[2][:6]
        expected = centred @ axes.T
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(np.abs(model.transform(X)), np.abs(expected), atol=1e-10)
        assert model.hidden_ == []

    def test_samples_as_they_are_get_heads_alone_and_views_a_trunk_and_a_first_stage(
        self, tmp_path
    ):
        X = samples()
        plain = fitted(X, hidden=None, ssl_epochs=None, n_features=None)
        assert plain.hidden_ == []
        assert (plain.coding_rates_["stage"] == 2).all()
        assert plain.transform(X).shape == (60, 5)
        viewed = fitted(X, hidden=None, ssl_epochs=None, augment=0.1, epochs=0)
        assert viewed.hidden_ == [256, 256]
        assert len(viewed.coding_rates_["stage"]) == 40
        # A file does not know the function that made views, but the trunk all the same.
        viewed.augment = lambda x, generator: x
        again = MLC.load(viewed.save(tmp_path / "model.safetensors"))
        assert again.augment is None
        np.testing.assert_array_equal(again.transform(X), viewed.transform(X))


class TestEncoder:
    def make(self):
        torch.manual_seed(0)
        return torch.nn.Sequential(
            torch.nn.Linear(5, 16), torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Linear(16, 10)
        )

    def test_a_users_module_is_trained_as_a_copy(self):
        encoder = self.make()
        before = {k: v.clone() for k, v in encoder.state_dict().items()}
        model = fitted(samples().astype(np.float32), encoder=encoder)
        for key, value in encoder.state_dict().items():
            assert torch.equal(value, before[key])
        assert not torch.equal(model.network_state_["trunk.0.weight"], before["0.weight"])

    def test_frozen_parameters_stay(self):
        encoder = self.make()
        encoder[0].requires_grad_(False)
        model = fitted(samples().astype(np.float32), encoder=encoder)
        assert torch.equal(model.network_state_["trunk.0.weight"], encoder[0].weight)
        assert not torch.equal(model.network_state_["trunk.3.weight"], encoder[3].weight)

    def test_dropout_repeats_with_the_seed_and_leaves_the_global_generators(self):
        X, encoder = samples().astype(np.float32), self.make()
        state = torch.manual_seed(3).get_state()
        with mock.patch("torch.cuda.manual_seed_all") as everywhere:
            first = fitted(X, encoder=encoder, random_state=1)
        assert not everywhere.called
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(4)
        again = fitted(X, encoder=encoder, random_state=1)
        np.testing.assert_array_equal(first.transform(X), again.transform(X))

    def test_a_file_needs_the_module_again(self, tmp_path):
        X = samples()
        model = fitted(X, encoder=self.make())
        path = model.save(tmp_path / "model.safetensors")
        again = MLC.load(path, encoder=self.make())
        np.testing.assert_array_equal(again.transform(X), model.transform(X))
        with pytest.raises(ValueError, match=r"MLC.load\(path, encoder=module\)"):
            MLC.load(path).predict(X)

    def test_views_come_from_the_users_function_and_generator(self):
        seen = []

        def augment(x, generator):
            seen.append(x.shape)
            return x + 0.1 * torch.randn(x.shape, generator=generator, dtype=x.dtype)

        X = samples()
        first, again = (fitted(X, augment=augment, views=3, random_state=2) for _ in range(2))
        np.testing.assert_array_equal(first.transform(X), again.transform(X))
        assert set(seen) == {(60, 5)}
        assert len(seen) == 2 * (3 * 2 + 2 * 3)


class TestBadInput:
    @pytest.mark.bad_input
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"n_clusters": 1}, r"n_clusters must lie in \[2, 60\]"),
            ({"n_clusters": 61}, r"n_clusters must lie in \[2, 60\]"),
            ({"n_clusters": "some"}, "must be a number or 'auto'"),
            ({"n_clusters": "auto", "candidates": (99,)}, "candidates must hold numbers"),
            ({"batch_size": 1}, "batch_size must be at least 2"),
            ({"eta": 0.0}, "eta must be finite and above 0"),
            ({"eps": 0.0}, "eps must be finite and above 0"),
            ({"gamma": -1.0}, "gamma must be finite and at least 0"),
            ({"affinity": "cosine"}, "affinity must be one of 'abs', 'linear'"),
            ({"optimizer": "lbfgs"}, "optimizer must be one of"),
            ({"select": "labels"}, "select must be one of"),
            ({"scaling": "rows"}, "scaling must be one of None, 'standard'"),
            ({"hidden": (0,)}, "hidden must hold widths"),
            ({"ssl_epochs": -1}, "ssl_epochs must be None or at least 0"),
            ({"subspace_energy": 0.0}, "subspace_energy must lie in"),
            ({"encoder": torch.nn.Unflatten(1, (5, 1))}, r"to \(n, width\), got \(2, 5, 1\)"),
            ({"augment": lambda x, g: x[:1]}, "a tensor of the shape of x"),
            ({"augment": -0.1}, "augment must be finite and at least 0, got -0.1"),
            ({"augment": float("nan")}, "augment must be finite and at least 0, got nan"),
        ],
    )
    def test_parameters_out_of_range_are_named(self, options, message):
        with pytest.raises(ValueError, match=message):
            fitted(samples(), **options)

    @pytest.mark.bad_input
    def test_wrong_kinds_are_named(self):
        with pytest.raises(TypeError, match=r"encoder must be None or a torch\.nn\.Module"):
            fitted(samples(), encoder="resnet")
        with pytest.raises(TypeError, match="augment must be None, a number or a function"):
            fitted(samples(), augment="flip")

    @pytest.mark.filterwarnings("ignore:MLC did not converge")
    def test_more_features_than_a_batch_can_fill_are_warned_of(self):
        with pytest.warns(UserWarning, match="n_features = 30 is not below the 20 samples"):
            MLC(**{**SMALL, "n_features": 30, "batch_size": 20}).fit(samples())

    def test_no_batch_is_left_with_a_single_sample(self):
        # 41 samples in batches of 20 would leave one, on which BatchNorm fails.
        assert fitted(samples(41), batch_size=20).labels_.shape == (41,)

    def test_scaling_makes_units_of_columns_count_nothing(self):
        X = samples()
        plain = fitted(X, scaling="standard")
        other = fitted(X * [1, 1000, 0.01, 3, 1] - 7, scaling="standard")
        np.testing.assert_allclose(
            other.transform(X * [1, 1000, 0.01, 3, 1] - 7), plain.transform(X), atol=1e-8
        )
        constant = np.c_[X, np.full(60, 3.0)]
        assert np.isfinite(fitted(constant, scaling="standard").transform(constant)).all()

    def test_scaling_leaves_a_constant_column_at_nothing(self):
        X = samples()
        constant = np.full((len(X), 1), 0.1)
        assert constant.std() > 0  # by rounding
        model = fitted(np.hstack([X, constant]), scaling="standard", epochs=0, ssl_epochs=0)
        assert model.scale_[-1] == 1
        assert not hasattr(model.set_params(scaling=None).fit(X), "scale_")

    def test_membership_of_one_sample_is_refused(self):
        with pytest.raises(ValueError, match="at least 2 samples"):
            fitted(samples()).membership(samples()[:1])


def test_rates_of_the_fit_are_those_of_its_features():
    X = samples()
    model = fitted(X, select=None, epochs=0, batch_size=60)
    assert model.n_iter_ == 1
    assert model.best_epoch_ == 0
    Z = torch.from_numpy(model.transform(X))
    assert float(coding_rate(Z, model.eps)) > 0
