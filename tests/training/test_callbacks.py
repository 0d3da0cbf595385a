"""What is said along the way."""

from types import SimpleNamespace

import pytest
import torch

from spanwise.io.runs import RunFolder
from spanwise.training.callbacks import Progress
from spanwise.training.reporting import Silent, clock, percent, short, size


class Line(Silent):
    def live(self, text):
        self.text = text


@pytest.fixture
def progress(tmp_path):
    def make(**options):
        line = Line()
        made = Progress(
            RunFolder(tmp_path / "run"), line, tokens=64, state_bytes=lambda: 1500, **options
        )
        made.trainer = SimpleNamespace(
            step_loss=None,
            args=SimpleNamespace(world_size=1),
            is_world_process_zero=lambda: True,
        )
        return made, line

    return make


def flags(**on):
    names = ("should_log", "should_evaluate", "should_save", "should_training_stop")
    return SimpleNamespace(**{name: on.get(name, False) for name in names})


def state(step, most=10):
    return SimpleNamespace(global_step=step, max_steps=most)


def take_step(progress, step, loss, control):
    progress.on_step_begin(None, state(step - 1), control)
    progress.trainer.step_loss = torch.tensor(loss)
    progress.on_step_end(None, state(step), control)


def test_every_loss_is_written_at_the_next_log(progress, tmp_path):
    made, line = progress()
    run = RunFolder(tmp_path / "run", resume=True)
    take_step(made, 1, 2.0, flags())
    assert run.events("step") == []
    take_step(made, 2, 1.0, flags(should_log=True))
    made.on_log(None, state(2), flags(), {"loss": 1.5})
    assert [(e["step"], e["loss"]) for e in run.events("step")] == [(1, 2.0), (2, 1.0)]
    assert line.text.startswith("step  2/10  loss 1.500")
    assert "state 1.5 kB" in line.text


def test_a_loss_that_is_not_finite_stops_the_run_before_a_save(progress):
    made, _ = progress()
    with pytest.raises(ValueError, match="loss is nan at step 3: the run has diverged"):
        take_step(made, 3, float("nan"), flags(should_save=True))


def test_a_change_since_the_start_is_shown_and_a_share_measured(progress):
    made, line = progress(outside=lambda: 0.25)
    made.on_evaluate(None, state(0), flags(), {"eval_old_loss": 2.0})
    assert made.share is None
    take_step(made, 1, 1.0, flags(should_log=True))
    made.on_evaluate(None, state(1), flags(), {"eval_old_loss": 2.125})
    made.on_log(None, state(1), flags(), {"loss": 1.0})
    assert "old 2.125 (+0.125)" in line.text
    assert "outside atlas 25 %" in line.text


def test_a_line_is_due_after_a_while_even_before_its_step(progress):
    made, _ = progress(patience=0.0)
    control = flags()
    take_step(made, 1, 1.0, control)
    assert control.should_log


def test_the_last_step_is_logged_whatever_the_interval(progress):
    made, _ = progress()
    control = flags(should_training_stop=True)
    take_step(made, 10, 1.0, control)
    assert control.should_log


def test_figures_read_well():
    assert [short(n) for n in (12, 1234, 5.6e6)] == ["12", "1.23k", "5.6M"]
    assert [size(n) for n in (12, 1234, 5.6e6, 7e9)] == ["12 B", "1.23 kB", "5.6 MB", "7 GB"]
    assert [percent(s) for s in (1.0, 1 - 1e-9, 0.9998, 0.25)] == [
        "100 %", "100 %", "99.98 %", "25 %"
    ]  # fmt: skip
    assert [clock(s) for s in (5, 65, 3725)] == ["0:05", "1:05", "1:02:05"]
