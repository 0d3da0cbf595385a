"""What a run comes to: figures for machines, tables and curves for people."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spanwise.io.runs import RunFolder
from spanwise.training.alpha import AlphaPoint


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """The outcome of `train`."""

    out: Path
    """The run's folder; the model is in `out / "model"`."""
    method: str
    steps: int
    before: dict[str, float]
    """Losses before training by text, in nats per token; `held_out` is the learned text."""
    after: dict[str, float]
    """The same losses of the trained model, before any shrinking by alpha."""
    tokens_per_second: float
    state_bytes: int
    """Bytes of optimizer state at the end."""
    predicted_bytes: int
    """Peak memory as the plan has it."""
    measured_bytes: int
    """Peak memory of the training loop above the process without the model."""
    inside: float | None = None
    """Share of the squared update inside the atlas, from the written file; None without one."""
    outside: float | None = None
    """The share outside, which rounds to 1 where `inside` still tells the leak."""
    alpha: float = 1.0
    """The fraction of the update in the saved model."""
    alphas: list[AlphaPoint] = field(default_factory=list)
    """Losses along alpha, where they were asked for."""

    @property
    def model(self) -> Path:
        """The trained model, a transformers folder."""
        return self.out / "model"

    @property
    def learned(self) -> float:
        """Fall of the held-out loss, nats per token."""
        return self.before["held_out"] - self.after["held_out"]

    @property
    def forgot(self) -> dict[str, float]:
        """Rise of every watched text's loss, nats per token."""
        return {n: self.after[n] - self.before[n] for n in self.after if n != "held_out"}


def loss_rows(result: TrainResult) -> list[list[str]]:
    """Text, loss before, loss after, change."""
    return [
        [name, f"{before:.4f}", f"{result.after[name]:.4f}", f"{result.after[name] - before:+.4f}"]
        for name, before in result.before.items()
    ]


def history(run: RunFolder) -> list[dict[str, Any]]:
    """The run's events as one story: what a resumed run did again replaces its first telling."""
    story: list[dict[str, Any]] = []
    for event in run.events():
        if event.get("event") == "resume":
            story = [e for e in story if e.get("step", 0) <= event["step"]]
        story.append(event)
    return story
