"""What every estimator of spanwise must do; one joins with a class of some lines."""

import copy
import json
import pickle
import warnings
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from conformance.pretend import pretended

ANSWERS = ("transform", "decision_function", "score_samples", "predict_proba", "predict")
"""Methods that answer for samples."""


def numbers(value):
    """An answer as an array, whatever its kind."""
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


class EstimatorSuite:
    """Inherit and set `estimator` and `options` that fit in a moment.

    Where samples are not rows of `X` alone (trajectories, a tensor), override `data`, `fit` and
    `answers`.
    """

    estimator: Any = None
    options: ClassVar[dict[str, Any]] = {}
    exceptions: ClassVar[dict[str, str]] = {}
    """Checks of scikit-learn that fail, each with the reason why it has to."""
    no_checks = ""
    """Why none of scikit-learn's checks can run, where that is so."""
    takes_samples = True
    """Whether `fit` takes samples in rows, and answers are by row."""
    rows_apart = True
    """Whether an answer for a row depends on that row alone."""
    another_kind = 1e-10
    """How far float64 answers may be from those to another kind of input."""

    elsewhere: ClassVar[dict[str, Any]] = {}
    """Further options for the pretended device, which takes a tenth of a millisecond a call."""

    def make(self, **more):
        return self.estimator(**{**self.options, **more})

    def data(self, seed=0):
        """Samples in rows, float64."""
        generator = np.random.default_rng(seed)
        return generator.normal(size=(40, 5)) @ np.diag([3.0, 2.0, 1.0, 0.7, 0.4]) + 0.3

    def fit(self, model, X):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a few steps need not converge
            return model.fit(X)

    def fitted(self, X=None, **more):
        return self.fit(self.make(**more), self.data() if X is None else X)

    def answers(self, model, X):
        """Everything that a fitted model says about `X`, by name."""
        return {name: getattr(model, name)(X) for name in ANSWERS if hasattr(model, name)}

    def same(self, model, other, X=None, *, tolerance=0.0):
        X = self.data(seed=1) if X is None else X
        for (name, ours), theirs in zip(
            self.answers(model, X).items(), self.answers(other, X).values(), strict=True
        ):
            np.testing.assert_allclose(
                numbers(ours), numbers(theirs), rtol=0, atol=tolerance, err_msg=name
            )

    # scikit-learn's contract

    @pytest.mark.slow
    def test_scikit_learns_checks_pass_but_for_those_that_are_named(self):
        if self.no_checks:
            pytest.skip(self.no_checks)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = check_estimator(
                self.make(),
                expected_failed_checks=self.exceptions,
                on_skip=None,
                on_fail=None,
            )
        failed = [
            f"{f['check_name']}: {f['exception']!r}" for f in found if f["status"] == "failed"
        ]
        assert failed == []
        # A reason that no longer holds has to go.
        assert {f["check_name"] for f in found if f["status"] == "xfail"} == set(self.exceptions)

    def test_the_constructor_stores_parameters_and_does_nothing_else(self):
        model = self.make()
        assert isinstance(model, BaseEstimator)
        assert vars(model) == model.get_params(deep=False)
        for name, value in self.options.items():
            assert getattr(model, name) is value

    def test_a_clone_has_the_parameters_and_no_fit(self):
        model = self.fitted()
        again = clone(model)
        assert repr(again.get_params()) == repr(model.get_params())
        assert [name for name in vars(again) if name.endswith("_")] == []
        self.same(self.fit(again, self.data()), model)

    def test_parameters_set_later_count_like_those_of_the_constructor(self):
        model = self.estimator()
        assert model.set_params(**self.options) is model
        self.same(self.fit(model, self.data()), self.fitted())
        with pytest.raises(ValueError, match="Invalid parameter"):
            model.set_params(no_such_parameter=1)

    def test_fit_returns_the_model_and_leaves_its_parameters_alone(self):
        model = self.make()
        before = {**vars(model)}
        assert self.fit(model, self.data()) is model
        assert {name: vars(model)[name] for name in before} == before

    def test_works_in_a_pipeline(self):
        if not self.takes_samples:
            pytest.skip("takes no samples in rows")
        pipe = self.fit(make_pipeline(StandardScaler(), self.make()), self.data())
        scaled = StandardScaler().fit(self.data())
        alone = self.fitted(scaled.transform(self.data()))
        for name, value in self.answers(alone, scaled.transform(self.data(1))).items():
            np.testing.assert_array_equal(numbers(getattr(pipe, name)(self.data(1))), value)

    # The same again

    def test_a_seed_gives_the_same_bits(self):
        first, again = (self.fitted(**self.seed(3)) for _ in range(2))
        self.same(first, again)
        self.same(self.fit(first, self.data()), again)  # fitted anew in place

    def test_global_generators_are_neither_used_nor_moved(self):
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002
        first = self.fitted()
        torch.manual_seed(2)
        np.random.seed(2)  # noqa: NPY002
        before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        again = self.fitted()
        assert torch.equal(before[0], torch.get_rng_state())
        assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002
        self.same(first, again)

    def test_generators_of_torch_and_numpy_are_taken(self):
        if not self.seed(0):
            pytest.skip("nothing is random here")
        for make in (
            np.random.RandomState,
            np.random.default_rng,
            lambda seed: torch.Generator().manual_seed(seed),
        ):
            self.same(self.fitted(random_state=make(3)), self.fitted(random_state=make(3)))

    def seed(self, value):
        """The parameter that seeds, where there is one."""
        named = "random_state" in self.make().get_params()
        return {"random_state": value} if named else {}

    @pytest.mark.parametrize("way", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
    def test_copies_and_pickles_answer_alike(self, way):
        model = self.fitted()
        self.same(way(model), model)

    def test_a_saved_one_is_loaded_whole_without_unpickling(self, tmp_path, monkeypatch):
        model = self.fitted()
        path = model.save(tmp_path / "model.safetensors")

        def refuse(*_, **__):
            raise AssertionError("unpickled")

        for module, name in ((pickle, "load"), (pickle, "loads"), (torch, "load")):
            monkeypatch.setattr(module, name, refuse)
        again = self.estimator.load(path)
        assert again.get_params() == json.loads(json.dumps(model.get_params()))
        assert {n for n in vars(again) if n.endswith("_")} == {
            n for n in vars(model) if n.endswith("_")
        }
        self.same(again, model)
        with path.open("rb") as file:  # safetensors: a length, then JSON
            size = int.from_bytes(file.read(8), "little")
            assert json.loads(file.read(size))["__metadata__"]["estimator"]

    def test_what_is_not_fitted_says_so(self, tmp_path):
        with pytest.raises(NotFittedError):
            self.make().save(tmp_path / "model.safetensors")
        if not self.takes_samples:
            return
        for name in ANSWERS:
            if hasattr(self.make(), name):
                with pytest.raises(NotFittedError):
                    getattr(self.make(), name)(self.data())

    # Kinds of input

    def test_tensors_in_tensors_out_with_the_numbers_of_arrays(self):
        arrays, tensors = self.fitted(), self.fitted(torch.from_numpy(self.data()))
        X = self.data(seed=1)
        ours = self.answers(tensors, torch.from_numpy(X))
        for name, value in self.answers(arrays, X).items():
            assert isinstance(value, np.ndarray), name
            assert isinstance(ours[name], torch.Tensor), name
            np.testing.assert_allclose(ours[name].numpy(), value, rtol=0, atol=self.another_kind)
        held = [n for n, v in vars(arrays).items() if n.endswith("_") and isinstance(v, np.ndarray)]
        for name in held:
            if vars(arrays)[name].dtype.kind == "f":
                assert isinstance(vars(tensors)[name], torch.Tensor), name

    def test_answers_are_of_the_kind_of_their_input_not_of_that_of_fit(self):
        if not self.takes_samples:
            pytest.skip("takes no samples in rows")
        X = self.data(seed=1)
        for name, value in self.answers(self.fitted(), torch.from_numpy(X)).items():
            assert isinstance(value, torch.Tensor), name
        for name, value in self.answers(self.fitted(torch.from_numpy(self.data())), X).items():
            assert isinstance(value, np.ndarray), name

    @pytest.mark.parametrize("kind", ["numpy", "torch"])
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_precision_is_kept(self, kind, dtype):
        def cast(X):
            return X.astype(dtype) if kind == "numpy" else torch.from_numpy(X.astype(dtype))

        model = self.fitted(cast(self.data()))
        for name, value in self.answers(model, cast(self.data(seed=1))).items():
            found = numbers(value)
            assert np.isfinite(found).all(), name
            if found.dtype.kind == "f":
                assert found.dtype == dtype, name

    def test_lists_and_other_memory_orders_are_the_same_data(self):
        X = self.data()
        model = self.fitted()
        self.same(self.fitted(X.tolist()), model, tolerance=self.another_kind)
        self.same(self.fitted(np.asfortranarray(X)), model, tolerance=self.another_kind)

    def test_data_is_never_written_to(self):
        X = self.data()
        for given in (X.copy(), torch.from_numpy(X.copy())):
            model = self.fitted(given)
            self.answers(model, given)
            np.testing.assert_array_equal(numbers(given), X)
        X.setflags(write=False)
        self.answers(self.fitted(X), X)

    def test_a_model_holds_no_view_of_the_data(self):
        X = self.data()
        model = self.fitted(X)
        expected = {k: numbers(v).copy() for k, v in self.answers(model, self.data(1)).items()}
        X[:] = 0
        for name, value in self.answers(model, self.data(1)).items():
            np.testing.assert_array_equal(numbers(value), expected[name], err_msg=name)

    def test_names_of_features_are_kept_and_compared(self):
        if not self.takes_samples:
            pytest.skip("takes no samples in rows")
        pandas = pytest.importorskip("pandas")
        names = [f"f{i}" for i in range(self.data().shape[1])]
        frame = pandas.DataFrame(self.data(), columns=names)
        model = self.fitted(frame)
        assert list(model.feature_names_in_) == names
        self.same(model, model, frame)
        for name in ANSWERS:
            if hasattr(model, name):
                with pytest.raises(ValueError, match="feature names"):
                    getattr(model, name)(frame[names[::-1]])
        assert not hasattr(self.fit(model, self.data()), "feature_names_in_")

    def test_the_number_of_features_is_kept_and_compared(self):
        if not self.takes_samples:
            pytest.skip("takes no samples in rows")
        model, X = self.fitted(), self.data(seed=1)[:, 1:]
        assert model.n_features_in_ == self.data().shape[1]
        for name in ANSWERS:
            if hasattr(model, name):
                for given in (X, torch.from_numpy(X)):
                    with pytest.raises(ValueError, match=r"X has \d+ features, but"):
                        getattr(model, name)(given)

    def test_answers_of_a_sample_do_not_depend_on_the_others(self):
        if not (self.takes_samples and self.rows_apart):
            pytest.skip("answers for all samples together")
        model, X = self.fitted(), self.data(seed=1)
        order = np.random.default_rng(0).permutation(len(X))
        whole, turned = self.answers(model, X), self.answers(model, X[order])
        parts = [self.answers(model, X[i : i + 1]) for i in range(5)]
        for name, value in whole.items():
            np.testing.assert_allclose(turned[name], value[order], rtol=1e-7, atol=1e-9)
            alone = np.concatenate([part[name] for part in parts])
            np.testing.assert_allclose(alone, value[:5], rtol=1e-7, atol=1e-9)

    @pytest.mark.bad_input
    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_what_is_not_finite_is_refused(self, bad):
        X = self.data()
        X.flat[3] = bad
        for given in (X, torch.from_numpy(X)):
            with pytest.raises(ValueError, match=r"NaN|infinity"):
                self.fitted(given)

    def test_tensors_of_another_device_never_mix_with_the_cpus(self):
        X = self.data(seed=1)
        cpu = self.answers(self.fitted(**self.elsewhere), X)
        with pretended() as device:
            model = self.fitted(torch.from_numpy(self.data()).to(device), **self.elsewhere)
            answers = self.answers(model, torch.from_numpy(X).to(device))
            for name, value in answers.items():
                assert value.device == device, name
                np.testing.assert_allclose(
                    numbers(value), cpu[name], rtol=0, atol=self.another_kind, err_msg=name
                )

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_stays_on_the_gpu_of_its_input(self):
        model = self.fitted(torch.from_numpy(self.data()).cuda())
        X = self.data(seed=1)
        cpu = self.answers(self.fitted(), X)
        for name, value in self.answers(model, torch.from_numpy(X).cuda()).items():
            assert value.is_cuda, name
            if value.is_floating_point():
                np.testing.assert_allclose(numbers(value), cpu[name], atol=1e-6, err_msg=name)


class OutlierSuite(EstimatorSuite):
    """More of the same, for outlier detectors."""

    def test_decisions_are_scores_less_the_offset_and_labels_their_sign(self):
        model, X = self.fitted(), self.data(seed=1)
        decision = model.decision_function(X)
        np.testing.assert_array_equal(decision, model.score_samples(X) - model.offset_)
        np.testing.assert_array_equal(model.predict(X), np.where(decision >= 0, 1, -1))

    def test_fit_predict_is_fit_then_predict(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = self.make().fit_predict(self.data())
        np.testing.assert_array_equal(found, self.fitted().predict(self.data()))

    @pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
    def test_contamination_is_the_share_of_training_data_outside(self, share):
        model = self.fitted(contamination=share)
        outside = float((model.predict(self.data()) == -1).mean())
        assert abs(outside - share) <= 1 / len(self.data())
