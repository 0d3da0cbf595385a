"""A packaged language model of 135M parameters that knows one text and learns another."""

import functools
import gzip
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.optim import Optimizer

from spanwise.atlas import Atlas
from spanwise.datasets import cache_folder, load, resolve
from spanwise.io import file_digest
from spanwise.optim import GaLore
from spanwise.reproductions._keeping import Losses, Taught, anywhere, evenly, mean_loss, teach
from spanwise.reproductions._settings import check_counts, check_rank, width_of
from spanwise.zoo import load as load_model

HELD_OUT_EVERY = 5
"""Every such document of the old text is for evaluation."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The experiment; the defaults are the committed run."""

    model: str = "smollm2-135m"
    """The packaged model, whole."""
    length: int = 128
    """Tokens in a sequence."""
    batch: int = 2
    """Sequences in a step."""
    steps: int = 30
    """Steps on the new text, at a constant rate."""
    checkpoints: tuple[int, ...] = (3, 6, 10, 15, 20, 30)
    """Steps at which to evaluate; the last is the end."""
    alphas: tuple[float, ...] = (0.3, 0.5, 0.7)
    """Fractions of the whole update that are evaluated."""
    held_out_old: int = 6
    """Held-out sequences of the old text in an evaluation."""
    held_out_new: int = 4
    """Held-out sequences of the new text."""
    energy: float = 0.95
    """Share of the old activations' mean square that the atlas keeps."""
    atlas_sequences: int = 64
    """Old sequences, from its training part, that the atlas is made of."""
    rank: int = 64
    """GaLore's rank, a ninth of the width."""
    refresh_every: int = 10
    """Steps between two of GaLore's bases."""
    level: float = 1.1
    """Nats per token of learning at which arms are compared."""
    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    """Grid of rates, common to all arms."""
    extensions: int = 1
    """How many rates an arm's grid may grow by while its best lies on the edge."""
    tuning_seeds: tuple[int, ...] = (0,)
    """Seeds that choose the rates."""
    seeds: tuple[int, ...] = (100, 101, 102)
    """Seeds that judge: batches, sketches and random atlases."""

    def __post_init__(self) -> None:
        check_counts(self, "length", "batch", "steps", "held_out_old", "held_out_new")
        check_rank(self, width_of(self.model))


@dataclass(frozen=True)
class Tokens:
    """A text as the model's tokens, split by documents."""

    train: Int64[Tensor, " n"]
    held_out: Int64[Tensor, " m"]
    name: str
    digest: str


@functools.lru_cache(maxsize=1)
def old_text(model: str) -> Tokens:
    """Python's manual, which the interpreter ships."""
    data = load("python-docs")
    held = range(HELD_OUT_EVERY // 2, len(data), HELD_OUT_EVERY)
    parts: tuple[list[str], list[str]] = ([], [])
    for index, document in enumerate(data.documents):
        parts[index in held].append(document.text)
    train, held_out = (_encode(model, "\n\n".join(part)) for part in parts)
    return Tokens(train, held_out, data.name, data.digest)


@functools.lru_cache(maxsize=1)
def new_text(model: str) -> Tokens:
    """CLINC150: what people ask an assistant, and which of 150 intents each question has."""
    path = resolve("clinc150")
    read = gzip.open if path.suffix == ".gz" else open
    with read(path, "rt", encoding="utf-8") as stream:
        data = json.load(stream)
    # The file is sorted by intent; a fixed shuffle mixes them, the same for every seed.
    generator = torch.Generator().manual_seed(0)
    train, held_out = (
        _encode(model, "".join(f"{text} -> {intent}\n" for text, intent in _mixed(rows, generator)))
        for rows in (data["train"], data["val"])
    )
    return Tokens(train, held_out, "clinc150", file_digest(path))


def _mixed(rows: list[list[str]], generator: torch.Generator) -> list[list[str]]:
    return [rows[i] for i in torch.randperm(len(rows), generator=generator).tolist()]


def _encode(model: str, text: str) -> Int64[Tensor, " n"]:
    return torch.tensor(_tokenizer(model).encode(text))


@functools.lru_cache(maxsize=1)
def _tokenizer(model: str) -> Any:
    from spanwise.zoo.models import load_tokenizer

    return load_tokenizer(model)


def digest(settings: Settings) -> str:
    """Of both texts together."""
    both = f"{old_text(settings.model).digest} {new_text(settings.model).digest}"
    return hashlib.sha256(both.encode()).hexdigest()


class Lesson:
    """The pretrained model, the atlas of what it needs for the old text, and what to learn."""

    def __init__(self, settings: Settings, seed: int) -> None:
        self.settings, self.seed = settings, seed
        self.model: nn.Module = load_model(settings.model).model.train()
        self.old, self.new = old_text(settings.model), new_text(settings.model)
        self.start = {name: p.detach().clone() for name, p in self.model.state_dict().items()}
        self.atlas = self._atlas()
        self.base = self.losses()

    def _atlas(self) -> Atlas:
        """The same for every seed, so it is made once and kept in the cache."""
        settings = self.settings
        key = f"{settings.model} {self.old.digest} {settings.length} {settings.atlas_sequences}"
        name = hashlib.sha256(f"{key} {settings.energy}".encode()).hexdigest()[:16]
        file = cache_folder() / "avoid" / f"{name}.atlas.safetensors"
        if file.is_file():
            return Atlas.load(file, base=self.model)
        known = evenly(self.old.train, settings.atlas_sequences, settings.length)
        atlas = Atlas.from_activations(self.model, known.split(4), energy=settings.energy)
        file.parent.mkdir(parents=True, exist_ok=True)
        atlas.save(file)
        return atlas

    def losses(self) -> Losses:
        """Held-out losses, on sequences that never change."""
        s = self.settings
        new, old = (
            mean_loss(self.model, evenly(text.held_out, count, s.length), batch=8)
            for text, count in ((self.new, s.held_out_new), (self.old, s.held_out_old))
        )
        return Losses(new, old)

    def batches(self) -> Iterator[dict[str, Tensor]]:
        """The same new text for every arm."""
        settings, generator = self.settings, torch.Generator().manual_seed(self.seed)
        while True:
            ids = anywhere(self.new.train, settings.batch, settings.length, generator)
            yield {"input_ids": ids, "labels": ids}

    def optimizer(self, arm: str, rate: float, model: nn.Module) -> Optimizer:
        """The optimizer of an arm."""
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if arm.startswith("adamw"):
            return torch.optim.AdamW(named, lr=rate, weight_decay=0.0, fused=True)
        avoid = None
        if arm == "galore_avoid":
            avoid = self.atlas
        elif arm == "galore_random":
            avoid = self.atlas.random_like(self.seed)
        settings = self.settings
        return GaLore(
            [{"params": named, "rank": settings.rank, "refresh_every": settings.refresh_every}],
            lr=rate,
            seed=self.seed,
            avoid=avoid,
        )

    def teach(self, arm: str, rate: float) -> Taught:
        """Run one arm from the pretrained weights; the model ends with the whole update."""
        self.model.load_state_dict(self.start)
        return teach(
            self.model,
            functools.partial(self.optimizer, arm, rate),
            self.batches(),
            self.losses,
            base=self.base,
            checkpoints=self.settings.checkpoints,
            alphas=self.settings.alphas,
            warmup=3,
        )

    def inside(self, file: Path) -> float:
        """Write the matrices that may move, read them back: their share inside the atlas."""
        from spanwise.io import save_tensors

        moved = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        save_tensors(file, moved)
        return self.atlas.update_share({name: self.start[name] for name in moved}, file).inside
