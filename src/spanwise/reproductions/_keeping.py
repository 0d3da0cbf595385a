"""Teach a model something new, and measure what that costs of the old.

Every arm is judged by the same two curves from one training: the losses along the way (stop
early) and the losses of W_s + alpha (W_t - W_s) afterwards (keep a fraction). Arms differ in how
far they go, so they are compared where they have learned equally much.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Int64, Integer
from torch import Tensor, nn
from torch.optim import Optimizer

from spanwise.layouts import linear_maps
from spanwise.optim import state_bytes
from spanwise.training import alpha

ALPHAS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85)
"""Fractions of the final update that are evaluated; 0 and 1 are known."""


class Losses(NamedTuple):
    """Held-out losses of a model, in nats per token."""

    new: float
    old: float


@dataclass(frozen=True)
class Curve:
    """Points (at, learned, forgot) in order; the curve starts where nothing was learned."""

    points: tuple[tuple[float, float, float], ...]
    """`at` is a step or an alpha; learned is the fall of the new loss, forgot the old's rise."""

    @classmethod
    def of(cls, base: Losses, found: Iterable[tuple[float, Losses]]) -> "Curve":
        """From the losses before and those along the way."""
        return cls(
            tuple((at, base.new - losses.new, losses.old - base.old) for at, losses in found)
        )

    def at_level(self, level: float) -> float | None:
        """The first step or alpha at which the curve has learned `level`; None if it never has."""
        last, before = 0.0, 0.0
        for at, learned, _ in self.points:
            if before < level <= learned:
                return last + (at - last) * (level - before) / (learned - before)
            last, before = at, learned
        return None

    def forgot_at(self, level: float) -> float | None:
        """Least forgetting where the piecewise linear curve has learned exactly `level`.

        Returns:
            Nats per token; None if the curve never gets there.
        """
        found = []
        before, cost = 0.0, 0.0
        for _, learned, forgot in self.points:
            if min(before, learned) <= level <= max(before, learned) and before != learned:
                found.append(cost + (forgot - cost) * (level - before) / (learned - before))
            before, cost = learned, forgot
        return min(found, default=None)


def forgot_at(level: float, *curves: Curve) -> float | None:
    """Least forgetting at equal learning on any of the curves; None if none gets there."""
    values = [value for curve in curves if (value := curve.forgot_at(level)) is not None]
    return min(values, default=None)


@dataclass(frozen=True, kw_only=True)
class Taught:
    """What one training gave."""

    path: Curve
    """Along the steps."""
    shrink: Curve
    """Along the fraction of the final update that is kept; ends at the whole of it."""
    state_bytes: int
    step_ms: float
    """Median of forward, backward and step."""

    @property
    def learned(self) -> float:
        """Fall of the new loss at the end."""
        return self.path.points[-1][1]

    @property
    def forgot(self) -> float:
        """Rise of the old loss at the end."""
        return self.path.points[-1][2]

    def row(self) -> dict[str, Any]:
        """Plain values for a result; what was forgotten at a level is read off its curves."""
        return {
            "learned": self.learned,
            "forgot": self.forgot,
            "state_bytes": self.state_bytes,
            "step_ms": self.step_ms,
            "path": [list(point) for point in self.path.points],
            "shrink": [list(point) for point in self.shrink.points],
        }


def at_level(row: Mapping[str, Any], level: float) -> dict[str, Any]:
    """A row of `Taught` with what it forgot where it had learned `level`.

    Read off the curves afterwards, so that another level needs no other training.
    """
    path, shrink = (Curve(tuple(map(tuple, row[key]))) for key in ("path", "shrink"))
    return {"forgot_at_level": forgot_at(level, path, shrink), **row}


Watch = Callable[[int, Losses | None], None]
"""Told the number of steps done, and the losses where they were just measured."""


def teach(
    model: nn.Module,
    make_optimizer: Callable[[nn.Module], Optimizer],
    batches: Iterable[Mapping[str, Tensor]],
    evaluate: Callable[[], Losses],
    *,
    base: Losses,
    checkpoints: Sequence[int],
    warmup: int = 5,
    alphas: Sequence[float] = ALPHAS,
    watch: Watch | None = None,
) -> Taught:
    """Train the model's linear maps at a constant rate, and draw both curves.

    Embeddings, norms and the head stay as they are in every arm, so that an update is nothing
    but the matrices that an atlas speaks of.

    Args:
        model: Changed in place; it ends with the whole update.
        make_optimizer: Called once the parameters that may move are marked.
        batches: At least as many as the last checkpoint says.
        evaluate: Held-out losses of the model as it stands.
        base: Losses before.
        checkpoints: Steps, ascending, at which to evaluate; the last one ends the training.
        warmup: Steps over which the rate grows linearly.
        alphas: Fractions of the final update to evaluate.
        watch: Told how it goes.
    """
    freeze_all_but_linear_maps(model)
    start = alpha.weights(model)
    optimizer = make_optimizer(model)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warmup)
    )
    path: list[tuple[float, Losses]] = []
    times: list[float] = []
    for step, batch in enumerate(batches, start=1):
        begin = time.perf_counter()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - begin)
        schedule.step()
        losses = evaluate() if step in checkpoints else None
        if losses is not None:
            path.append((float(step), losses))
        if watch:
            watch(step, losses)
        if step == checkpoints[-1] or not math.isfinite(loss.item()):
            break
    held = state_bytes(optimizer)

    def both() -> dict[str, float]:
        return evaluate()._asdict()

    shrunk = [
        (point.alpha, Losses(**point.losses)) for point in alpha.sweep(model, start, both, alphas)
    ]
    return Taught(
        path=Curve.of(base, path),
        shrink=Curve.of(base, [*shrunk, (1.0, path[-1][1])]),
        state_bytes=held,
        step_ms=1e3 * statistics.median(times),
    )


def freeze_all_but_linear_maps(model: nn.Module) -> list[str]:
    """Let only the linear maps inside the layers move; returns their parameters' names."""
    chosen = [m for m in linear_maps(model) if "lm_head" not in m.name]
    model.requires_grad_(False)
    for found in chosen:
        found.parameter.requires_grad_(True)
    return [found.name for found in chosen]


@torch.no_grad()
def mean_loss(model: nn.Module, sequences: Int64[Tensor, "n t"], batch: int = 16) -> float:
    """Mean cross-entropy of the next token over equally long sequences, in nats."""
    training = model.training
    model.eval()
    total = sum(
        model(input_ids=part, labels=part).loss.item() * len(part)
        for part in sequences.split(batch)
    )
    model.train(training)
    return total / len(sequences)


def evenly(tokens: Integer[Tensor, " n"], count: int, length: int) -> Int64[Tensor, "count length"]:
    """`count` sequences of `length` tokens, evenly spread, the same for every run.

    Raises:
        ValueError: If there are too few tokens for one sequence.
    """
    if len(tokens) < length:
        raise ValueError(f"a text of {len(tokens)} tokens holds no sequence of {length}.")
    starts = torch.linspace(0, len(tokens) - length, count).long()
    return tokens[starts[:, None] + torch.arange(length)].long()


def anywhere(
    tokens: Integer[Tensor, " n"], count: int, length: int, generator: torch.Generator
) -> Int64[Tensor, "count length"]:
    """`count` sequences of `length` tokens from random places."""
    starts = torch.randint(len(tokens) - length + 1, (count, 1), generator=generator)
    return tokens[starts + torch.arange(length)].long()
