"""What experiments on merging the sentence encoder share: parts, fine-tunes, scores, scales."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from spanwise.merging import Merged
from spanwise.report import Progress, Workers
from spanwise.reproductions._encoder_tasks import (
    TASKS,
    Pool,
    Reading,
    Tail,
    digest_of,
    halves,
    kept,
    pool_of,
)

Weights = Mapping[str, Tensor]
PARTS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class Settings(Reading):
    """What these experiments have in common."""

    tasks: tuple[str, ...] = tuple(TASKS)
    """Text tasks, each with a frozen head of its own."""
    train: int = 600
    """Texts that a task is fine-tuned on."""
    validation: int = 200
    """Texts of each task that choose a scale."""
    test: int = 300
    """Texts of each task that judge."""
    epochs: int = 3
    """Passes over the training texts."""
    batch: int = 32
    """Texts in a step."""
    rate: float = 3e-4
    """Peak rate of AdamW; it rises over a tenth of the steps and falls to zero along a line."""
    alphas: tuple[float, ...] = (0.05, 0.1, 0.2, 0.35, 0.6, 1.0, 1.8, 3.0)
    """Scales that every method is tried at; two more lie on either side of the best."""
    seeds: tuple[int, ...] = (100, 101, 102)
    """Seeds that judge: parts of the texts, and the order of training."""

    def __post_init__(self) -> None:
        unknown = [task for task in self.tasks if task not in TASKS]
        if unknown or len(set(self.tasks)) != len(self.tasks) or len(self.tasks) < 2:
            raise ValueError(
                f"tasks must be two or more different ones of {', '.join(TASKS)}, got {self.tasks}."
            )
        if self.train + self.validation + self.test > self.pool:
            raise ValueError(
                f"train + validation + test is {self.train + self.validation + self.test}, more "
                f"than the pool of {self.pool} texts a task."
            )
        if len(self.alphas) < 2 or any(a <= 0 for a in self.alphas):
            raise ValueError(f"alphas must hold at least two positive scales, got {self.alphas}.")


class Seed:
    """One seed's parts of every task's texts, its fine-tunes, and their accuracy.

    Attributes:
        settings: The experiment.
        seed: Of the parts and the order of training.
        base: The layers before, by name.
    """

    def __init__(self, settings: Settings, seed: int) -> None:
        self.settings, self.seed = settings, seed
        self.reading = Reading.of(settings)
        self.model: Tail = halves(self.reading)[1]
        self.base = self._state()

    def part(self, task: str, part: str) -> tuple[Pool, Int64[Tensor, " n"]]:
        """A task's pool and the rows of one part; the same task has the same parts in every run."""
        pool = pool_of(task, self.reading)
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(pool.labels), generator=generator)
        sizes = [getattr(self.settings, name) for name in PARTS]
        return pool, order[: sum(sizes)].split(sizes)[PARTS.index(part)]

    def tuned(self, task: str) -> dict[str, Tensor]:
        """The layers fine-tuned on a task: from the user's cache, or trained and kept there."""
        names = ("train", "validation", "test", "epochs", "batch", "rate")
        key = {
            "kind": "tuned",
            "task": task,
            "seed": self.seed,
            "digest": digest_of(task, self.reading),
            **{name: getattr(self.settings, name) for name in names},
        }
        return kept(key, lambda: self._train(task))

    def every_tuned(self) -> dict[str, dict[str, Tensor]]:
        """All fine-tunes by task."""
        return {task: self.tuned(task) for task in self.settings.tasks}

    def accuracy(self, weights: Weights, task: str, part: str) -> float:
        """Percent of a part's texts that the layers and the task's head name rightly."""
        pool, rows = self.part(task, part)
        weights = {name: weights[name] for name in self.base}
        self.model.head = pool.head
        right = 0
        with torch.no_grad():
            for some in pool.batches(rows, 50):
                inputs, labels = pool.batch(some)
                logits = torch.func.functional_call(self.model, weights, (), inputs)
                right += int((logits.argmax(1) == labels).sum())
        return 100 * right / len(rows)

    def accuracies(
        self, weights: Weights, part: str, tasks: Sequence[str] | None = None
    ) -> dict[str, float]:
        """The same by task."""
        # A merge puts its tensors together when it is asked for them: once for all tasks.
        weights = {name: weights[name] for name in self.base}
        return {task: self.accuracy(weights, task, part) for task in tasks or self.settings.tasks}

    def examples(
        self, task: str, part: str = "train"
    ) -> list[tuple[dict[str, Tensor], Int64[Tensor, " b"]]]:
        """Batches of inputs and labels, padding masked; the head is set to the task's."""
        pool, rows = self.part(task, part)
        self.model.head = pool.head
        return [pool.batch(some) for some in pool.batches(rows, self.settings.batch)]

    def _train(self, task: str) -> dict[str, Tensor]:
        settings = self.settings
        pool, rows = self.part(task, "train")
        self.model.load_state_dict(self.base)
        self.model.head = pool.head
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=settings.rate, weight_decay=0.01)
        generator = torch.Generator().manual_seed(self.seed)
        order = [
            some
            for _ in range(settings.epochs)
            for some in shuffled(pool, rows, settings.batch, generator)
        ]
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: rate_at(step, len(order))
        )
        for some in order:
            inputs, labels = pool.batch(some)
            loss = nn.functional.cross_entropy(self.model(**inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        found = self._state()
        self.model.load_state_dict(self.base)
        return found

    def _state(self) -> dict[str, Tensor]:
        return {name: t.detach().clone() for name, t in self.model.state_dict().items()}


def shuffled(
    pool: Pool, rows: Int64[Tensor, " n"], size: int, generator: torch.Generator
) -> list[Int64[Tensor, " b"]]:
    """All rows in random batches, each of texts about equally long.

    Texts are drawn for eight batches at a time and sorted within them, which spares padding.
    """
    rows = rows[torch.randperm(len(rows), generator=generator)]
    found = [batch for chunk in rows.split(8 * size) for batch in pool.batches(chunk, size)]
    return [found[int(i)] for i in torch.randperm(len(found), generator=generator)]


def rate_at(step: int, steps: int) -> float:
    """Share of the peak rate at a step, counted from 0."""
    rise = max(1, steps // 10)
    return min(1.0, (step + 1) / rise) * (1 - max(0, step - rise) / max(1, steps - rise))


def normalised(found: Mapping[str, float], single: Mapping[str, float]) -> float:
    """Mean over tasks of the share of each fine-tune's own accuracy, in percent."""
    return statistics.fmean(shares(found, single).values())


def shares(found: Mapping[str, float], single: Mapping[str, float]) -> dict[str, float]:
    """Task -> accuracy as a share of the fine-tune's own, which counts as 1 % at least."""
    return {task: 100 * value / max(single[task], 1.0) for task, value in found.items()}


def best_scale(
    merged: Merged,
    alphas: Sequence[float],
    evaluate: Callable[[Merged], float],
    *,
    refine: bool = True,
) -> tuple[float, list[tuple[float, float]]]:
    """The scale that `evaluate` likes best: of a grid, and of two more beside the grid's best.

    These lie halfway, as ratios, to its neighbours; on the edge of the grid one lies outside, a
    whole ratio away. Of equals the smaller scale wins.

    Args:
        merged: The merge.
        alphas: The grid, positive.
        evaluate: Called with the merge at each scale.
        refine: Whether the two more are tried.

    Returns:
        The scale, and (scale, value) of all that were tried, in the order of scales.
    """
    grid = sorted(alphas)
    found = dict(merged.sweep(grid, evaluate))
    at = grid.index(max(grid, key=lambda a: (found[a], -a)))
    below = grid[0] ** 2 / grid[1] if at == 0 else math.sqrt(grid[at - 1] * grid[at])
    last = len(grid) - 1
    above = grid[-1] ** 2 / grid[-2] if at == last else math.sqrt(grid[at] * grid[at + 1])
    if refine:
        found |= merged.sweep([float(f"{a:.3g}") for a in (below, above)], evaluate)
    best = max(found, key=lambda a: (found[a], -a))
    return best, sorted(found.items())


def outside(alpha: float | None, alphas: Sequence[float]) -> bool:
    """Whether a chosen scale lies beyond the grid, so that a wider one might do better."""
    return alpha is not None and not min(alphas) <= alpha <= max(alphas)


def tune_cell(cell: Mapping[str, Any]) -> dict[str, Any]:
    """One task's fine-tune on one seed: made, kept on disk, and judged alone and by the base."""
    at, task = Seed(Settings(**cell["settings"]), cell["seed"]), cell["task"]
    if (digest := digest_of(task, at.reading)) != cell["data"]:
        raise ValueError(f"the texts of {task!r} have changed: {digest}, not {cell['data']}.")
    weights = at.tuned(task)
    return {
        "single": {part: at.accuracy(weights, task, part) for part in PARTS[1:]},
        "base": {part: at.accuracy(at.base, task, part) for part in PARTS[1:]},
    }


def digests(settings: Settings) -> dict[str, str]:
    """Task -> digest of its texts, of the encoder, and of how it reads them."""
    return {task: digest_of(task, Reading.of(settings)) for task in settings.tasks}


Tuned = dict[tuple[int, str], dict[str, Any]]
"""(seed, task) -> what `tune_cell` returned."""


def tune_all(
    settings: Settings,
    *,
    workers: int | None = None,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> Tuned:
    """Fine-tune every task on every seed, unless that is done already."""
    # Scales and the other tasks change no fine-tune: experiments share them.
    own = {
        f.name: getattr(settings, f.name)
        for f in fields(Settings)
        if f.name not in ("tasks", "alphas", "seeds")
    }
    cells = [
        {"task": task, "seed": seed, "settings": own, "data": digest}
        for task, digest in digests(settings).items()
        for seed in settings.seeds
    ]
    with Workers(tune_cell, workers, cache=cache, progress=progress) as pool:
        found = pool.map(cells)
    return {(c["seed"], c["task"]): record for c, record in zip(cells, found, strict=True)}


def single(tuned: Tuned, seed: int, part: str, tasks: Sequence[str]) -> dict[str, float]:
    """Each fine-tune's accuracy on its own task."""
    return {task: tuned[seed, task]["single"][part] for task in tasks}
