"""What happens around a step: events, the live line, Ctrl-C and SIGTERM."""

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback
from typing_extensions import override

from spanwise.io.runs import RunFolder
from spanwise.training.reporting import Reporter, clock, percent, short, size

if TYPE_CHECKING:
    from spanwise.training.trainer import RunTrainer


class Progress(TrainerCallback):
    """Writes `events.jsonl` and the live line.

    Args:
        run: The run's folder.
        report: Who is told.
        tokens: Tokens that all processes read in a step.
        state_bytes: Called for the bytes of optimizer state held now.
        outside: Called for the share of the update outside the atlas, if there is an atlas; None
            while there is no update.
        patience: Seconds after which a line is due even before its step.
        baseline: Losses before training, by text, when resuming.
        latest: Losses at the last evaluation, when resuming.
    """

    trainer: "RunTrainer"

    def __init__(
        self,
        run: RunFolder,
        report: Reporter,
        *,
        tokens: int,
        state_bytes: Callable[[], int],
        outside: Callable[[], float | None] | None = None,
        patience: float = math.inf,
        baseline: dict[str, float] | None = None,
        latest: dict[str, float] | None = None,
    ) -> None:
        self._run = run
        self._report = report
        self._tokens = tokens
        self.state_bytes = state_bytes
        self._patience = patience
        self._outside = outside
        self.baseline = dict(baseline or {})
        self.latest: dict[str, float] = dict(latest or {})
        self.latest_step = -1
        self.share: float | None = None
        self._losses: list[tuple[int, torch.Tensor]] = []
        self._started: float | None = None
        self._seconds, self._steps = 0.0, 0
        self._total_seconds, self._total_steps = 0.0, 0

    @property
    def tokens_per_second(self) -> float:
        """Over all steps so far, evaluations and saves left out."""
        return self._tokens * self._total_steps / max(self._total_seconds, 1e-9)

    @override
    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock, unless it runs since an earlier step."""
        if self._started is None:
            self._started = time.perf_counter()

    @override
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keep the step's loss on its device; reading it each time would wait for the GPU."""
        loss = self.trainer.step_loss
        self.trainer.step_loss = None
        if loss is not None:
            self._losses.append((state.global_step, loss))
        self._steps += 1
        quiet_for = self._seconds + time.perf_counter() - (self._started or 0.0)
        if control.should_training_stop or quiet_for > self._patience:
            control.should_log = True
        if control.should_log or control.should_evaluate or control.should_save:
            # Evaluations and saves follow: they are no training, so the clock stops here.
            self.flush()
            self._seconds += time.perf_counter() - (self._started or 0.0)
            self._started = None

    @override
    def on_log(
        self,
        args: Any,
        state: Any,
        control: Any,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Write the losses since the last log, and show the line."""
        if not logs or "loss" not in logs:
            return
        loss = logs["loss"]
        speed = self._tokens * self._steps / max(self._seconds, 1e-9)
        self._total_seconds += self._seconds
        self._total_steps += self._steps
        left = (state.max_steps - state.global_step) * self._total_seconds / self._total_steps
        self._seconds, self._steps = 0.0, 0
        held = self.state_bytes()
        self._event(
            "log",
            step=state.global_step,
            loss=loss,
            lr=logs.get("learning_rate"),
            grad_norm=logs.get("grad_norm"),
            tokens_per_second=round(speed, 1),
            state_bytes=held,
        )
        width = len(str(state.max_steps))
        parts = [f"step {state.global_step:>{width}}/{state.max_steps}", f"loss {loss:.3f}"]
        parts += [f"{name} {self._compared(name)}" for name in self.latest]
        # A narrow terminal cuts the line: what matters most comes first.
        if self.share is not None:
            parts.append(f"outside atlas {percent(self.share)}")
        parts += [f"{short(speed)} tok/s", f"state {size(held)}"]
        if left > 1:
            parts.append(f"{clock(left)} left")
        self._report.live("  ".join(parts))

    @override
    def on_evaluate(
        self,
        args: Any,
        state: Any,
        control: Any,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Remember the losses; measure the update against the atlas."""
        self.latest = {
            key.removeprefix("eval_").removesuffix("_loss"): value
            for key, value in (metrics or {}).items()
        }
        self.latest_step = state.global_step
        if not self.baseline:
            self.baseline = dict(self.latest)
        if self._outside is not None and state.global_step:
            self.share = self._outside()
        self._event("eval", step=state.global_step, losses=self.latest, outside=self.share)

    @override
    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note the checkpoint."""
        self._event("checkpoint", step=state.global_step)

    def flush(self) -> None:
        """Write the losses of the steps since the last time, on all processes together.

        Raises:
            ValueError: If a loss is not finite. It is raised before such weights are saved.
        """
        if not self._losses:
            return
        steps = [step for step, _ in self._losses]
        stacked = torch.stack([loss.float() for _, loss in self._losses])
        # Every process has the loss of its own sequences; the mean is the step's.
        world = self.trainer.args.world_size
        if world > 1:
            stacked = self.trainer.accelerator.gather(stacked).view(world, -1).mean(0)
        self._losses.clear()
        for step, loss in zip(steps, stacked.tolist(), strict=True):
            self._event("step", step=step, loss=loss)
            if not math.isfinite(loss):
                raise ValueError(
                    f"the loss is {loss} at step {step}: the run has diverged. Lower --lr, or "
                    "lengthen --warmup. Checkpoints from before are as they were."
                )

    def _event(self, kind: str, **facts: Any) -> None:
        if self.trainer.is_world_process_zero():
            self._run.event({"event": kind}, **facts)

    def _compared(self, name: str) -> str:
        now, before = self.latest[name], self.baseline.get(name)
        text = f"{now:.3f}"
        return text if before is None or before == now else f"{text} ({now - before:+.3f})"


class StopOnSignal(TrainerCallback):
    """Ctrl-C or SIGTERM: the first finishes the step and saves, the second leaves at once.

    Attributes:
        asked: Whether a signal has come.
        number: The last signal's number.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.asked = False
        self.number = int(signal.SIGINT)

    @contextmanager
    def listening(self) -> Iterator["StopOnSignal"]:
        """Take over the signals for the body; in other threads than the main one, do nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._handle) for number in self._SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @override
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop after this step if asked to."""
        if self.asked:
            control.should_save = True
            control.should_training_stop = True

    @override
    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The same after an evaluation, which may have taken the signal."""
        if state.global_step:
            self.on_step_end(args, state, control)

    def _handle(self, number: int, frame: Any) -> None:
        self.number = number
        if self.asked:
            # Nothing is in the way of a third one any more.
            signal.signal(number, signal.SIG_DFL)
            raise KeyboardInterrupt
        self.asked = True
        again = b"Ctrl-C again" if number == signal.SIGINT else b"another signal"
        # Not print: the signal may have come in the middle of one.
        os.write(2, b"\nfinishing this step and saving; " + again + b" leaves at once.\n")
