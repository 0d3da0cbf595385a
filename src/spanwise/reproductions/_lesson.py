"""A lesson: a small model that knows one text is taught another by one of several arms."""

import functools
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from spanwise.atlas import Atlas
from spanwise.datasets import cache_folder
from spanwise.errors import CorruptFileError
from spanwise.io import open_tensors, save_tensors
from spanwise.optim import GaLore
from spanwise.reproductions._byte_texts import ByteText, byte_text
from spanwise.reproductions._keeping import (
    Losses,
    Taught,
    Watch,
    anywhere,
    evenly,
    mean_loss,
    teach,
)
from spanwise.reproductions._settings import check_counts, check_rank, width_of
from spanwise.zoo import load_model


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The experiment; the defaults are the committed run."""

    old: str = "python-stdlib"
    """What the model knows."""
    new: str = "unicode-names"
    """What it learns: unicode-names is far from the old text, python-docs is near."""
    model: str = "llama-1m"
    """Its shape."""
    layers: int = 4
    """How many of the shape's layers."""
    length: int = 128
    """Bytes in a sequence."""
    batch: int = 16
    """Sequences in a step."""
    pretrain_steps: int = 400
    """Steps on the old text."""
    pretrain_rate: float = 3e-3
    """Their peak rate (AdamW; linear warm-up and decay)."""
    steps: int = 60
    """Steps on the new text, at a constant rate."""
    every: int = 10
    """Steps between two evaluations."""
    held_out: int = 64
    """Held-out sequences of either text in an evaluation."""
    energy: float = 0.98
    """Share of the old activations' mean square that the atlas keeps."""
    atlas_sequences: int = 192
    """Old sequences, from its training part, that the atlas is made of."""
    rank: int = 32
    """GaLore's rank, a quarter of the width."""
    refresh_every: int = 20
    """Steps between two of GaLore's bases."""
    level: float = 0.8
    """Nats per byte of learning at which arms are compared."""
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    """Grid of rates, common to all arms."""
    extensions: int = 3
    """How many rates an arm's grid may grow by while its best lies on the edge."""
    tuning_seeds: tuple[int, ...] = (0,)
    """Seeds that choose the rates."""
    seeds: tuple[int, ...] = (100, 101, 102)
    """Seeds that judge."""

    def __post_init__(self) -> None:
        for name in (
            "layers", "batch", "pretrain_steps", "steps", "every", "held_out", "atlas_sequences",
            "rank", "refresh_every",
        ):  # fmt: skip
            check_counts(self, name)
        check_rank(self, width_of(self.model))
        if self.length < 2:
            raise ValueError(f"length must be at least 2, got {self.length}.")
        if not self.seeds:
            raise ValueError("seeds is empty: name at least one seed that judges.")

    @property
    def checkpoints(self) -> list[int]:
        """Steps at which to evaluate; one early, where learning is fastest."""
        early = [self.every // 2] if self.every > 1 else []
        return [*early, *range(self.every, self.steps, self.every), self.steps]


@dataclass(frozen=True)
class Texts:
    """What the model knows and what it learns."""

    old: ByteText
    new: ByteText

    @classmethod
    def load(cls, settings: Settings) -> "Texts":
        """Both texts of an experiment."""
        return cls(byte_text(settings.old), byte_text(settings.new))

    @property
    def digest(self) -> str:
        """Of both together."""
        return hashlib.sha256(f"{self.old.digest} {self.new.digest}".encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """What a result records about them."""
        return {
            "name": f"{self.old.name}, then {self.new.name}",
            "digest": self.digest,
            **{f"old_{key}": value for key, value in self.old.describe().items()},
            **{f"new_{key}": value for key, value in self.new.describe().items()},
        }


@dataclass(frozen=True)
class Lesson:
    """A model that knows the old text, the atlas of what it needs for it, and what to learn."""

    settings: Settings
    texts: Texts
    seed: int
    file: Path
    """The model's weights, safetensors."""
    base: Losses
    atlas: Atlas

    @classmethod
    def prepare(
        cls, settings: Settings, seed: int, watch: Watch | None = None, *, fresh: bool = False
    ) -> "Lesson":
        """Pre-train the model, or take it from the cache, and extract the atlas.

        Args:
            settings: The experiment.
            seed: Start, batches and sketches.
            watch: Told how the pre-training goes; never called if the model was cached.
            fresh: Pre-train even so.
        """
        texts = Texts.load(settings)
        file = base_file(settings, texts, seed)
        if fresh or not _is_whole(file):
            pretrain(settings, texts, seed, file, watch)
        model = new_model(settings, file)
        generator = torch.Generator().manual_seed(seed)
        known = anywhere(texts.old.train, settings.atlas_sequences, settings.length, generator)
        atlas = Atlas.from_activations(model, known.split(16), energy=settings.energy)
        base = losses_of(model, settings, texts)
        return cls(settings, texts, seed, file, base, atlas)

    def batches(self) -> Iterator[dict[str, Tensor]]:
        """The same new text for every arm."""
        settings, generator = self.settings, torch.Generator().manual_seed(self.seed)
        while True:
            ids = anywhere(self.texts.new.train, settings.batch, settings.length, generator)
            yield {"input_ids": ids, "labels": ids}

    def optimizer(self, arm: str, rate: float, model: nn.Module) -> Optimizer:
        """The optimizer of an arm."""
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if arm.startswith("adamw"):
            return torch.optim.AdamW(named, lr=rate, weight_decay=0.0, fused=True)
        avoid = {"galore_avoid": self.atlas, "galore_random": self.atlas.random_like(self.seed)}
        settings = self.settings
        return GaLore(
            [{"params": named, "rank": settings.rank, "refresh_every": settings.refresh_every}],
            lr=rate,
            seed=self.seed,
            avoid=avoid.get(arm),
        )

    def teach(self, arm: str, rate: float, watch: Watch | None = None) -> tuple[nn.Module, Taught]:
        """Run one arm from the base; returns the model with its whole update, and the curves."""
        model = new_model(self.settings, self.file)
        taught = teach(
            model,
            functools.partial(self.optimizer, arm, rate),
            self.batches(),
            functools.partial(losses_of, model, self.settings, self.texts),
            base=self.base,
            checkpoints=self.settings.checkpoints,
            watch=watch,
        )
        return model, taught

    def inside(self, model: nn.Module, file: Path) -> float:
        """Write the model, read it back, and give the share of its update inside the atlas."""
        save_tensors(file, model.state_dict())
        return self.atlas.update_share(self.file, file).inside


def new_model(settings: Settings, file: Path | None = None, seed: int = 0) -> nn.Module:
    """The model in training mode, fresh or with the weights in `file`."""
    model = load_model(settings.model, layers=settings.layers, seed=seed).model.train()
    if file is not None:
        model.load_state_dict(dict(open_tensors(file)))
    return model


def losses_of(model: nn.Module, settings: Settings, texts: Texts) -> Losses:
    """Held-out losses, on sequences that never change."""
    new, old = (
        mean_loss(model, evenly(text.held_out, settings.held_out, settings.length), batch=32)
        for text in (texts.new, texts.old)
    )
    return Losses(new, old)


def _is_whole(file: Path) -> bool:
    """Whether a model lies there undamaged; what a cache has lost is made anew."""
    try:
        return file.is_file() and len(open_tensors(file)) > 0
    except CorruptFileError:
        return False


def base_file(settings: Settings, texts: Texts, seed: int) -> Path:
    """Where the cache keeps a pre-trained model; the name tells what made it."""
    chosen = ("model", "layers", "length", "batch", "pretrain_steps", "pretrain_rate")
    made_by = {name: getattr(settings, name) for name in chosen}
    key = json.dumps([made_by, texts.old.digest, seed, torch.__version__])
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    return cache_folder() / "demo" / f"base-{digest}.safetensors"


def pretrain(
    settings: Settings, texts: Texts, seed: int, file: Path, watch: Watch | None = None
) -> None:
    """Teach a fresh model the old text and write it to `file`."""
    model = new_model(settings, seed=seed)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=settings.pretrain_rate,
        betas=(0.9, 0.95),
        weight_decay=0.05,
        fused=True,
    )
    steps = settings.pretrain_steps
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 30, (steps - step) / (0.6 * steps))
    )
    generator = torch.Generator().manual_seed(seed)
    for step in range(1, steps + 1):
        ids = anywhere(texts.old.train, settings.batch, settings.length, generator)
        model(input_ids=ids, labels=ids).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if watch:
            measure = step % 50 == 0 or step == steps
            watch(step, losses_of(model, settings, texts) if measure else None)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(file, model.state_dict())
