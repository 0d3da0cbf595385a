"""The experiment that merging methods share: eight or sixteen tasks of one small network.

The tasks are the same digits turned, mirrored and inverted. A network that has seen a few of all
of them is fine-tuned on each; the fine-tunes are merged, and the merged network is tested on every
task. Seconds a seed, real images, and a base that knows something of every task, without which
no merging works.
"""

import functools
import hashlib
import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from typing_extensions import override

from spanwise._lazy import require
from spanwise.merging import Merged

PIXELS, CLASSES = 64, 10

Weights = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Data, network and training, equal for every arm."""

    tasks: int = 8
    """8: every way to turn and mirror a square; 16: the same again, inverted."""
    width: int = 256
    """Width of the three hidden layers."""
    seen: int = 120
    """Images that the base is trained on, under every task's transform."""
    per_task: int = 600
    """Images that each task is fine-tuned on."""
    validation: int = 250
    """Images that choose alpha."""
    test: int = 447
    """Images that judge."""
    steps: int = 300
    """Steps of the base's training and of each fine-tuning."""
    batch: int = 64
    """Images in a step."""
    base_rate: float = 1e-3
    """Rate of AdamW for the base."""
    rate: float = 5e-4
    """Rate of AdamW for each task."""


@dataclass(frozen=True)
class Images:
    """Digits of one part of the data."""

    pixels: Float[Tensor, "n 8 8"]
    """From 0 to 1."""
    labels: Int64[Tensor, " n"]

    def __getitem__(self, rows: slice) -> "Images":
        return Images(self.pixels[rows], self.labels[rows])

    def __len__(self) -> int:
        return len(self.labels)


@functools.lru_cache(maxsize=1)
def load_digits() -> Images:
    """1797 handwritten digits of 8 x 8 pixels, which scikit-learn ships."""
    data = require("sklearn.datasets", "the digits experiment").load_digits()
    pixels = torch.from_numpy(np.asarray(data.images, dtype=np.float32)) / 16
    return Images(pixels, torch.from_numpy(np.asarray(data.target, dtype=np.int64)))


def digest() -> str:
    """Of the images and labels."""
    data = load_digits()
    both = data.pixels.numpy().tobytes() + data.labels.numpy().tobytes()
    return hashlib.sha256(both).hexdigest()


def transform(pixels: Float[Tensor, "n 8 8"], task: int) -> Float[Tensor, "n 64"]:
    """The images as one task sees them: turned by `task % 4` right angles, mirrored, inverted."""
    turned = torch.rot90(pixels, task % 4, (1, 2))
    if task // 4 % 2:
        turned = turned.flip(2)
    if task // 8:
        turned = 1 - turned
    return turned.flatten(1)


class Network(nn.Module):
    """Three hidden layers and a head, which stays frozen once the base is trained."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = [PIXELS, width, width, width]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.head = nn.Linear(width, CLASSES)

    @override
    def forward(self, x: Float[Tensor, "n 64"]) -> Float[Tensor, "n 10"]:
        """Logits."""
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.head(x)


class Tasks:
    """One seed's data, base and fine-tunes.

    Attributes:
        base: The network before, by name.
        tuned: One network a task.
        parts: "train", "validation" and "test" images.
        single: Each fine-tune's test accuracy on its own task, in percent.
    """

    def __init__(self, setup: Setup, seed: int) -> None:
        self.setup, self.seed = setup, seed
        generator = torch.Generator().manual_seed(seed)
        data = load_digits()
        order = torch.randperm(len(data), generator=generator)
        data = Images(data.pixels[order], data.labels[order])
        counts = [setup.seen, setup.per_task, setup.validation, setup.test]
        ends = np.cumsum([0, *counts])
        names = ("seen", "train", "validation", "test")
        self.parts = {n: data[slice(ends[i], ends[i + 1])] for i, n in enumerate(names)}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = Network(setup.width)
        self._train(range(setup.tasks), "seen", setup.base_rate, generator)
        self.base = self._state()
        self.network.head.requires_grad_(False)
        self.tuned: list[dict[str, Tensor]] = []
        for task in range(setup.tasks):
            self.network.load_state_dict(self.base)
            self._train([task], "train", setup.rate, generator)
            self.tuned.append(self._state())
        self.single = [
            self.accuracy(weights, task, "test") for task, weights in enumerate(self.tuned)
        ]

    def accuracy(self, weights: Weights, task: int, part: str) -> float:
        """Percent of a part's images that a network names rightly, as one task sees them."""
        images = self.parts[part]
        with torch.no_grad():
            logits = torch.func.functional_call(
                self.network, dict(weights), transform(images.pixels, task)
            )
        return 100 * float((logits.argmax(1) == images.labels).double().mean())

    def accuracies(self, weights: Weights, part: str) -> list[float]:
        """The same for every task."""
        weights = {name: weights[name] for name in self.base}
        return [self.accuracy(weights, task, part) for task in range(self.setup.tasks)]

    def scores(self, weights: Weights) -> dict[str, float]:
        """Test accuracy: the mean over tasks, the worst task, and the mean share of `single`."""
        found = self.accuracies(weights, "test")
        shares = [100 * a / b for a, b in zip(found, self.single, strict=True)]
        return {
            "accuracy": statistics.fmean(found),
            "worst": min(found),
            "normalised": statistics.fmean(shares),
        }

    def judged(self, merged: Merged, alphas: Sequence[float] | None = None) -> dict[str, float]:
        """`scores` at the best alpha of a grid, or as it is without one."""
        if alphas is None:
            return self.scores(merged)
        alpha = self.best_alpha(merged, alphas)
        return {**self.scores(merged.at(alpha)), "alpha": alpha}

    def validated(self, weights: Weights) -> float:
        """Mean accuracy on validation images, which may choose."""
        return statistics.fmean(self.accuracies(weights, "validation"))

    def best_alpha(self, merged: Merged, alphas: Sequence[float]) -> float:
        """The scale with the highest mean validation accuracy; the smaller one of equals."""
        found = merged.sweep(alphas, self.validated)
        return max(found, key=lambda point: (point[1], -point[0]))[0]

    def examples(self, task: int, part: str = "train") -> tuple[Tensor, Tensor]:
        """Inputs and labels of one task."""
        images = self.parts[part]
        return transform(images.pixels, task), images.labels

    def _train(
        self, tasks: Sequence[int], part: str, rate: float, generator: torch.Generator
    ) -> None:
        images, setup = self.parts[part], self.setup
        inputs = torch.stack([transform(images.pixels, task) for task in tasks])
        moving = [p for p in self.network.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(moving, lr=rate, weight_decay=0.01)
        for _ in range(setup.steps):
            rows = torch.randint(len(images), (setup.batch,), generator=generator)
            which = torch.randint(len(tasks), (setup.batch,), generator=generator)
            logits = self.network(inputs[which, rows])
            loss = nn.functional.cross_entropy(logits, images.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def _state(self) -> dict[str, Tensor]:
        return {name: t.detach().clone() for name, t in self.network.state_dict().items()}
