"""What every estimator inherits: files without pickle, tensors as input, seeds."""

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError

from conformance.pretend import pretended
from spanwise.estimators._arrays import column_scales, make_generator
from spanwise.estimators._base import Estimator
from spanwise.estimators._progress import ProgressLine
from spanwise.io import open_tensors, save_tensors


class Means(Estimator):
    """Keeps the column means."""

    def __init__(self, shift=0.0, random_state=None):
        self.shift = shift
        self.random_state = random_state

    def fit(self, X, y=None):
        found, back = self._samples(X, reset=True, min_samples=2)
        self.means_ = back(found.mean(0) + self.shift)
        self.n_iter_ = np.int64(3)
        self.trace_ = [1.0, 2.0]
        return self

    def transform(self, X):
        found, back = self._samples(X, reset=False)
        return back(found)


class Others(Means):
    pass


def samples(dtype=torch.float64):
    return torch.arange(12, dtype=dtype).reshape(4, 3)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_a_saved_estimator_comes_back_whole(tmp_path, kind):
    X = samples() if kind == "torch" else samples().numpy()
    fitted = Means(shift=0.5).fit(X)
    again = Means.load(fitted.save(tmp_path / "means.safetensors"))
    assert again.get_params() == fitted.get_params()
    assert type(again.means_) is type(fitted.means_)
    np.testing.assert_array_equal(again.means_, fitted.means_)
    assert (again.n_iter_, again.trace_, again.n_features_in_) == (3, [1.0, 2.0], 3)


def test_state_dicts_and_lists_of_arrays_come_back_whole(tmp_path):
    fitted = Means().fit(samples())
    fitted.state_ = torch.nn.BatchNorm1d(3).state_dict()
    fitted.bases_ = [samples(), samples().numpy()[:, :1]]
    fitted.history_ = {"rate": np.arange(3.0), "note": "two kinds", "parts": [{"x": np.int64(4)}]}
    again = Means.load(fitted.save(tmp_path / "means.safetensors"))
    assert list(again.state_) == list(fitted.state_)
    assert all(torch.equal(again.state_[key], fitted.state_[key]) for key in fitted.state_)
    assert again.state_["num_batches_tracked"].dtype == torch.int64
    assert torch.equal(again.bases_[0], fitted.bases_[0])
    np.testing.assert_array_equal(again.bases_[1], fitted.bases_[1])
    np.testing.assert_array_equal(again.history_["rate"], fitted.history_["rate"])
    assert (again.history_["note"], again.history_["parts"]) == ("two kinds", [{"x": 4}])


class Networks(Means):
    _left_out = ("network",)

    def __init__(self, network=None, shift=0.0, random_state=None):
        super().__init__(shift, random_state)
        self.network = network


def test_a_parameter_that_no_file_holds_is_given_again(tmp_path):
    network = torch.nn.Linear(3, 2)
    path = Networks(network, shift=1.5).fit(samples()).save(tmp_path / "networks.safetensors")
    assert Networks.load(path).network is None
    again = Networks.load(path, network=network)
    assert again.network is network
    assert again.shift == 1.5


def test_names_of_features_are_saved_and_compared(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(samples().numpy(), columns=["a", "b", "c"])
    again = Means.load(Means().fit(frame).save(tmp_path / "means.safetensors"))
    assert list(again.feature_names_in_) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="feature names"):
        again.transform(frame[["b", "a", "c"]])


def test_a_file_of_another_estimator_is_refused(tmp_path):
    path = Others().fit(samples()).save(tmp_path / "others.safetensors")
    with pytest.raises(ValueError, match=r"holds a Others, not a Means. Load it with Others.load"):
        Means.load(path)
    save_tensors(tmp_path / "plain.safetensors", {"x": samples()})
    with pytest.raises(ValueError, match="is no estimator that this spanwise"):
        Means.load(tmp_path / "plain.safetensors")


def test_numbers_of_numpy_are_parameters_like_others(tmp_path):
    fitted = Means(shift=np.float32(0.5), random_state=np.int64(3)).fit(samples())
    again = Means.load(fitted.save(tmp_path / "means.safetensors"))
    assert again.get_params() == {"shift": 0.5, "random_state": 3}


def test_arrays_whose_names_would_collide_stay_apart(tmp_path):
    fitted = Means().fit(samples())
    fitted.state_ = {"a.b": np.zeros(2), "a": {"b": np.ones(2)}}
    again = Means.load(fitted.save(tmp_path / "means.safetensors"))
    assert (again.state_["a.b"].sum(), again.state_["a"]["b"].sum()) == (0, 2)
    fitted.state_ = {1: "one"}
    with pytest.raises(TypeError, match="state_ has the key 1, which is no text"):
        fitted.save(tmp_path / "means.safetensors")


def test_a_save_that_breaks_off_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = Means(shift=1.0).fit(samples()).save(tmp_path / "means.safetensors")
    before = path.read_bytes()

    def stop(*_):
        raise KeyboardInterrupt

    other = Means(shift=2.0).fit(samples())
    for broken in ("os.fsync", "os.replace"):
        with monkeypatch.context() as patched:
            patched.setattr(broken, stop)
            with pytest.raises(KeyboardInterrupt):
                other.save(path)
        assert [file.name for file in tmp_path.iterdir()] == [path.name]
        assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"parameters": "{"}, "is damaged: what it says of its Means cannot be read"),
        ({"attributes": '{"means_": {"array:": ["none", "numpy"]}}'}, "is damaged"),
        ({"attributes": "[]"}, "is damaged"),
        ({"parameters": '{"twist": 1}'}, "Means has no parameter 'twist' here"),
    ],
)
def test_a_damaged_or_foreign_file_is_named(tmp_path, changed, message):
    path = Means().fit(samples()).save(tmp_path / "means.safetensors")
    reader = open_tensors(path)
    save_tensors(path, dict(reader), {**reader.metadata, **changed})
    with pytest.raises(ValueError, match=message):
        Means.load(path)


def test_a_file_sets_nothing_but_what_a_fit_does(tmp_path):
    path = Means().fit(samples()).save(tmp_path / "means.safetensors")
    reader = open_tensors(path)
    crafted = {"attributes": '{"means_": 1, "transform": 2, "__class__": 3, "_left_out": 4}'}
    save_tensors(path, dict(reader), {**reader.metadata, **crafted})
    assert set(vars(Means.load(path))) == {"shift", "random_state", "means_"}


def test_what_json_cannot_hold_is_named(tmp_path):
    fitted = Means(random_state=torch.Generator()).fit(samples())
    with pytest.raises(TypeError, match="parameter random_state of Means is a Generator"):
        fitted.save(tmp_path / "means.safetensors")
    with pytest.raises(NotFittedError):
        Means().save(tmp_path / "means.safetensors")


@pytest.mark.parametrize(
    ("given", "held"),
    [
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.bfloat16, torch.float32),
        (torch.int64, torch.float64),
    ],
)
def test_a_tensor_keeps_its_precision(given, held):
    fitted = Means().fit(samples(given))
    assert fitted.means_.dtype == held
    assert fitted.transform(samples(given)).dtype == held


def test_an_array_keeps_its_precision_and_is_not_written_to():
    X = samples(torch.float32).numpy()
    X.setflags(write=False)
    assert Means().fit(X).means_.dtype == np.float32


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (samples().ravel(), "must have two axes"),
        (samples()[:1], "1 sample"),
        (samples()[:, :0], "0 feature"),
        (samples() * float("nan"), "NaN or infinity"),
        (samples().to(torch.complex128), "dense and real"),
        (samples().to_sparse(), "dense and real"),
    ],
)
def test_a_bad_tensor_is_refused(X, message):
    with pytest.raises(ValueError, match=message):
        Means().fit(X)


def test_another_number_of_features_is_refused():
    with pytest.raises(ValueError, match="X has 2 features, but Means is expecting 3"):
        Means().fit(samples()).transform(samples()[:, :2])


def first(random_state):
    return torch.rand(1, generator=make_generator(random_state)).item()


def test_a_seed_repeats_and_a_generator_goes_on():
    assert first(7) == first(np.int64(7)) != first(8)
    assert first(None) == first(0)
    for source in (torch.Generator(), np.random.RandomState(0), np.random.default_rng(0)):
        assert first(source) != first(source)
    with pytest.raises(TypeError, match="random_state must be None, an integer"):
        make_generator("seed")


def test_a_generator_elsewhere_gives_a_seed(monkeypatch):
    class Far(torch.Generator):
        device = torch.device("cuda")

    def draw(high, size, *, generator, device):
        assert (high, size, device.type) == (2**63 - 1, (), "cuda")
        return generator.seeds.pop(0)

    far = Far()
    far.seeds = [7, 8]
    monkeypatch.setattr(torch, "randint", draw)
    assert [first(far), first(far)] == [first(7), first(8)]


def test_progress_is_told_by_tenths_and_only_if_asked(capsys):
    with ProgressLine(True, "Means step", 40) as line:
        for step in range(1, 41):
            line(step, note="loss 0.5")
    told = capsys.readouterr()
    lines = told.err.splitlines()
    assert told.out == ""
    assert len(lines) == 10
    assert lines[-1].startswith("Means step 40/40  loss 0.5  0 s left")
    with ProgressLine(False, "Means step", 1) as line:
        line(1)
    assert capsys.readouterr().err == ""


def test_progress_rewrites_one_line_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("spanwise.estimators._progress.EVERY", 0.0)
    with ProgressLine(True, "Means step", 3) as line:
        for step in range(1, 4):
            line(step)
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert err.count("\r") == 3


def test_the_pretended_device_refuses_what_a_gpu_refuses():
    with pretended() as device:
        x = torch.ones(3).to(device)
        assert (x + 1).device == device
        for mixed in (
            lambda: x + torch.ones(3),
            lambda: x.numpy(),
            lambda: torch.randn(3, device=device, generator=torch.Generator()),
        ):
            with pytest.raises((RuntimeError, TypeError), match=r"devices|numpy|generator"):
                mixed()
        assert x.cpu().numpy().sum() == 3


def test_rounding_of_a_constant_column_is_no_spread():
    x = torch.stack([torch.full((9,), 1e6 + 0.1), torch.arange(9.0)], dim=1)
    x[0, 0] = torch.nextafter(x[0, 0], torch.tensor(torch.inf))
    assert column_scales(x).tolist() == pytest.approx([1.0, 20**0.5 / 3**0.5])
