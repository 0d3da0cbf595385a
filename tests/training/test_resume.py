"""Resuming continues exactly: the same losses and the same weights, bit for bit."""

import signal

import pytest
import torch
from safetensors.torch import load_file

from spanwise.io.runs import RunFolder
from spanwise.training import TrainConfig, TrainingInterrupted, train
from spanwise.training.checkpoints import last_complete
from spanwise.training.reporting import Silent
from spanwise.training.result import history

METHODS = [
    {"method": "galore"},
    {"method": "galore", "stagger": True, "svd": "warm", "moments": "rotate"},
    {"method": "adamw", "refresh_every": None},
    {"method": "muon", "refresh_every": None},
]


@pytest.fixture(autouse=True, scope="module")
def _no_figures():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spanwise.training.finish._draw", lambda *_: None)
        yield


class Stop(Silent):
    """Does something when the live line shows a step."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def live(self, text):
        if text.split()[1].startswith(f"{self.step}/"):
            self.action()


def interrupt():
    signal.raise_signal(signal.SIGINT)


def crash():
    raise RuntimeError("power cut")


def told(out):
    """Every loss of the run's story, by step and text."""
    found = {}
    for event in history(RunFolder(out, resume=True)):
        if event["event"] == "step":
            found[event["step"]] = event["loss"]
        elif event["event"] == "eval":
            found["eval", event["step"]] = event["losses"]
    return found


def weights(out):
    return load_file(out / "model" / "model.safetensors")


def assert_same_story(a, b):
    assert told(a) == told(b)
    left, right = weights(a), weights(b)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def undisturbed(flat_options, tmp_path_factory):
    """The run that the others are compared to."""
    chosen = flat_options(tmp_path_factory.mktemp("undisturbed") / "run")
    train(TrainConfig.flat(**chosen))
    return chosen["out"]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: "-".join(map(str, m.values())))
def test_an_interrupted_run_resumes_bit_for_bit(options, tmp_path, method):
    options |= method
    train(TrainConfig.flat(**options))
    other = {**options, "out": tmp_path / "stopped"}
    with pytest.raises(TrainingInterrupted) as stopped:
        train(TrainConfig.flat(**other), Stop(6, interrupt))
    assert "--resume" in stopped.value.resume
    # The signal came after step 6: step 7 is finished, then saved.
    assert last_complete(other["out"])[0].name == "checkpoint-7"
    result = train(TrainConfig.flat(**other, resume=True))
    assert result.steps == 9
    assert_same_story(options["out"], other["out"])


def test_an_interrupt_before_an_evaluation_is_obeyed_after_it(options):
    with pytest.raises(TrainingInterrupted):
        train(TrainConfig.flat(**options), Stop(4, interrupt))
    assert last_complete(options["out"])[0].name == "checkpoint-4"
    assert ("eval", 4) in told(options["out"])


def test_a_crash_between_checkpoints_loses_nothing_but_time(options, undisturbed):
    with pytest.raises(RuntimeError, match="power cut"):
        train(TrainConfig.flat(**options), Stop(8, crash))
    assert last_complete(options["out"])[0].name == "checkpoint-6"
    train(TrainConfig.flat(**options, resume=True))
    assert_same_story(undisturbed, options["out"])


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(options, undisturbed):
    with pytest.raises(RuntimeError, match="power cut"):
        train(TrainConfig.flat(**options), Stop(8, crash))
    damaged = options["out"] / "checkpoint-6" / "optimizer.pt"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    heard = []
    report = Silent()
    report.say = lambda text="": heard.append(text)
    train(TrainConfig.flat(**options, resume=True), report)
    assert any("ignored checkpoint-6: optimizer.pt has" in line for line in heard)
    assert "resuming at step 3" in heard
    assert_same_story(undisturbed, options["out"])


def test_without_a_checkpoint_a_resumed_run_starts_again(options, undisturbed):
    with pytest.raises(RuntimeError, match="power cut"):
        train(TrainConfig.flat(**options), Stop(2, crash))
    train(TrainConfig.flat(**options, resume=True))
    assert_same_story(undisturbed, options["out"])


def test_accumulated_batches_resume_as_well(options, tmp_path):
    options |= {"accumulate": 2, "batch": 1}
    train(TrainConfig.flat(**options))
    other = {**options, "out": tmp_path / "stopped"}
    with pytest.raises(TrainingInterrupted):
        train(TrainConfig.flat(**other), Stop(4, interrupt))
    train(TrainConfig.flat(**other, resume=True))
    assert_same_story(options["out"], other["out"])


def test_a_second_interrupt_leaves_at_once_and_the_run_can_be_resumed(options):
    def twice():
        interrupt()
        interrupt()

    with pytest.raises(TrainingInterrupted):
        train(TrainConfig.flat(**options), Stop(4, twice))
    assert last_complete(options["out"])[0].name == "checkpoint-3"
    assert train(TrainConfig.flat(**options, resume=True)).steps == 9


def test_a_finished_run_can_be_swept_without_training_again(options):
    first = train(TrainConfig.flat(**options))
    again = train(TrainConfig.flat(**options, resume=True, alpha="sweep"))
    assert [point.alpha for point in again.alphas][::5] == [0.0, 0.5, 1.0]
    assert again.alphas[-1].losses == first.after
    assert again.alphas[0].losses == first.before


def test_checkpoints_hold_plain_tensors(undisturbed):
    folder, _ = last_complete(undisturbed)
    state = torch.load(folder / "optimizer.pt", weights_only=True)
    assert any("basis_left" in s for s in state["state"].values())
    assert not (folder / "training_args.bin").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 2e-2}, "lr was 0.01, is 0.02"),
        ({"steps": 20}, "steps was 9, is 20"),
        ({"seed": 5}, "seed was 0, is 5"),
    ],
)
def test_other_options_are_refused(options, change, message):
    with pytest.raises(RuntimeError, match="power cut"):
        train(TrainConfig.flat(**options), Stop(4, crash))
    with pytest.raises(ValueError, match=message):
        train(TrainConfig.flat(**{**options, **change}, resume=True))


def test_a_text_that_changed_is_refused(options, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("one two three four five six. " * 50)
    options |= {"data": str(text)}
    with pytest.raises(RuntimeError, match="power cut"):
        train(TrainConfig.flat(**options), Stop(4, crash))
    text.write_text("one two three four five SIX. " * 50)
    with pytest.raises(ValueError, match="'data' has changed"):
        train(TrainConfig.flat(**options, resume=True))


def test_nothing_to_resume_is_an_error(options):
    with pytest.raises(ValueError, match="no run at"):
        train(TrainConfig.flat(**options, resume=True))
    assert not options["out"].exists()
