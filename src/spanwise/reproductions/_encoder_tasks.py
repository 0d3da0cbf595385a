"""Real text tasks for the sentence encoder: texts, their states below the layers that train, heads.

A task is a set of labelled texts and a frozen head, the encoder's own embeddings of the classes'
names: as in the papers' vision models, the base can do every task a little before it is trained.
The lower layers never change, so that what they make of a text is computed once and kept.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from safetensors.torch import load_file
from torch import Tensor, nn
from typing_extensions import override

from spanwise.datasets import (
    LabelledTexts,
    banking77,
    bbc_news,
    cache_folder,
    clinc150,
    dbpedia14,
    rotten_tomatoes,
)
from spanwise.io import file_digest, save_tensors
from spanwise.report._worker import source_digest
from spanwise.zoo import encoder_folder, load_encoder

SCALE = 20.0
"""Of cosines, as logits."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A text task."""

    label: str
    """What people read."""
    read: Callable[[], LabelledTexts]
    phrase: str = "{}"
    """How a class's name is put to the encoder."""


TASKS: dict[str, Task] = {
    "money": Task(
        label="CLINC150, money",
        read=functools.partial(clinc150, ("banking", "credit_cards")),
    ),
    "travel": Task(
        label="CLINC150, travel",
        read=functools.partial(clinc150, ("travel", "auto_and_commute")),
    ),
    "banking": Task(label="Banking77", read=banking77),
    "dbpedia": Task(label="DBpedia", read=dbpedia14, phrase="a text about: {}"),
    "news": Task(label="BBC news", read=bbc_news, phrase="news about {}"),
    "films": Task(label="film reviews", read=rotten_tomatoes, phrase="a {} film review"),
}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How texts are read; together with a task's texts it decides what is kept on disk."""

    model: str = "minilm-l6"
    """The encoder: a name of `spanwise.zoo`, or a folder."""
    layers: int = 2
    """Layers at the end that train."""
    max_tokens: int = 24
    """A text's tokens, the two special ones included; the rest is cut off."""
    pool: int = 1600
    """Texts of a task, from which every seed takes its own parts."""

    @classmethod
    def of(cls, settings: Any) -> "Reading":
        """The part of an experiment's settings that this is."""
        return cls(**{f.name: getattr(settings, f.name) for f in fields(cls)})


@dataclass(frozen=True)
class Pool:
    """A task's texts as the layers that train see them, without padding."""

    states: Float[Tensor, "tokens d"]
    """What the lower layers make of each token, text after text."""
    lengths: Int64[Tensor, " n"]
    """Tokens of each text."""
    labels: Int64[Tensor, " n"]
    head: Float[Tensor, "k d"]
    """A unit vector for each class: the base's embedding of its name."""

    @functools.cached_property
    def starts(self) -> Int64[Tensor, " n"]:
        """Where each text begins in `states`."""
        return self.lengths.cumsum(0) - self.lengths

    def batch(self, rows: Int64[Tensor, " b"]) -> tuple[dict[str, Tensor], Int64[Tensor, " b"]]:
        """Some texts, padded to the longest of them: what `Tail` is called with, and labels."""
        lengths, place = self.lengths[rows], torch.arange(int(self.lengths[rows].max()))
        mask = place < lengths[:, None]
        # Padding repeats a text's first token, and counts nowhere.
        at = self.starts[rows][:, None] + place * mask
        return {"hidden": self.states[at], "attention_mask": mask}, self.labels[rows]

    def batches(self, rows: Int64[Tensor, " n"], size: int) -> list[Int64[Tensor, " b"]]:
        """Rows in batches of texts about equally long, so that little is padded."""
        return list(rows[self.lengths[rows].argsort(stable=True)].split(size))


class Tail(nn.Module):
    """The encoder's last layers, the mean over tokens, and a head of unit vectors.

    The head is no part of the state: heads are not merged.
    """

    head: Tensor

    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        self.layers = layers
        self.register_buffer("head", torch.zeros(0), persistent=False)

    def embed(
        self, hidden: Float[Tensor, "b t d"], attention_mask: Bool[Tensor, "b t"]
    ) -> Float[Tensor, "b d"]:
        """Unit vectors of texts."""
        blocked = torch.zeros(attention_mask.shape, dtype=hidden.dtype)
        blocked = blocked.masked_fill_(~attention_mask, -torch.inf)[:, None, None, :]
        for layer in self.layers:
            hidden = layer(hidden, blocked)
        kept = attention_mask[..., None].to(hidden.dtype)
        return nn.functional.normalize((hidden * kept).sum(1) / kept.sum(1), dim=-1)

    @override
    def forward(
        self, hidden: Float[Tensor, "b t d"], attention_mask: Bool[Tensor, "b t"]
    ) -> Float[Tensor, "b k"]:
        """Logits."""
        return SCALE * self.embed(hidden, attention_mask) @ self.head.mT


def halves(reading: Reading) -> tuple[Any, Tail, Any]:
    """The encoder without the layers that train, these layers, and the tokenizer.

    Every call gives copies of its own.

    Raises:
        ValueError: If the encoder has no more layers than are to train.
    """
    model, tokenizer = load_encoder(reading.model)
    whole: Any = model
    layers = list(whole.encoder.layer)
    if not 1 <= reading.layers < len(layers):
        raise ValueError(f"layers must lie in [1, {len(layers) - 1}], got {reading.layers}.")
    whole.encoder.layer = nn.ModuleList(layers[: -reading.layers])
    return whole, Tail(nn.ModuleList(layers[-reading.layers :])).eval(), tokenizer


@functools.lru_cache(maxsize=1)
def lower(reading: Reading) -> tuple[Any, Any]:
    """The encoder below the layers that train, which stays as it is, and its tokenizer."""
    whole, _, tokenizer = halves(reading)
    return whole, tokenizer


def kept(key: Mapping[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors from the user's cache, or made and written there, whole or not at all.

    Args:
        key: Everything that decides them, JSON-able; this module's source and torch's version
            are added.
        make: Called where they are not there yet.
    """
    full = {**key, "torch": torch.__version__, "source": source_digest(__file__)}
    name = hashlib.sha256(json.dumps(full, sort_keys=True).encode()).hexdigest()[:20]
    path = cache_folder() / "encoder-tasks" / f"{key['kind']}-{name}.safetensors"
    if not path.is_file():
        save_tensors(path, make())
    return load_file(path)


def digest_of(task: str, reading: Reading) -> str:
    """Of everything that a task's pool depends on."""
    parts = [
        texts_of(task).digest, TASKS[task].phrase, model_digest(reading.model),
        version("transformers"),
    ]  # fmt: skip
    numbers = f"{reading.layers} {reading.max_tokens} {reading.pool}"
    return hashlib.sha256(" ".join([*parts, numbers]).encode()).hexdigest()


@functools.lru_cache(maxsize=1)
def model_digest(model: str) -> str:
    """Of the encoder's weights."""
    return file_digest(encoder_folder(model) / "model.safetensors")


@functools.lru_cache(maxsize=8)
def texts_of(task: str) -> LabelledTexts:
    """A task's texts.

    Raises:
        ValueError: If there is no such task.
    """
    if task not in TASKS:
        raise ValueError(f"tasks must be some of {', '.join(TASKS)}, got {task!r}.")
    return TASKS[task].read()


@functools.lru_cache(maxsize=8)
def pool_of(task: str, reading: Reading) -> Pool:
    """A task's texts as the last layers see them, computed once for all runs.

    Raises:
        ValueError: If the task has fewer texts than the pool is to hold.
    """
    data = texts_of(task)
    if len(data) < reading.pool:
        raise ValueError(f"pool = {reading.pool}, but {task!r} has {len(data)} texts.")
    digest = digest_of(task, reading)
    found = kept({"kind": "pool", "digest": digest}, lambda: read_pool(task, data, reading))
    return Pool(**found)


def read_pool(task: str, data: LabelledTexts, reading: Reading) -> dict[str, Tensor]:
    """The fields of `Pool`, through the encoder."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    rows = order[: reading.pool].tolist()
    states, lengths = lower_states([data.texts[i] for i in rows], reading)
    names = [TASKS[task].phrase.format(name) for name in data.classes]
    words, sizes = lower_states(names, reading)
    as_pool = Pool(words, sizes, torch.zeros_like(sizes), torch.zeros(0))
    with torch.no_grad():
        inputs, _ = as_pool.batch(torch.arange(len(names)))
        head = halves(reading)[1].embed(**inputs)
    labels = torch.tensor([data.labels[i] for i in rows])
    return {"states": states, "lengths": lengths, "labels": labels, "head": head}


@torch.no_grad()
def lower_states(
    texts: Sequence[str], reading: Reading
) -> tuple[Float[Tensor, "tokens d"], Int64[Tensor, " n"]]:
    """What the layers that do not train make of texts, without padding, and their lengths."""
    model, tokenizer = lower(reading)
    found: dict[int, Tensor] = {}
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for first in range(0, len(order), 64):
        some = order[first : first + 64]
        batch = tokenizer(
            [texts[i] for i in some], padding=True, truncation=True,
            max_length=reading.max_tokens, return_tensors="pt",
        )  # fmt: skip
        states = model(**batch).last_hidden_state
        for i, state, mask in zip(some, states, batch["attention_mask"].bool(), strict=True):
            found[i] = state[mask]
    every = [found[i] for i in range(len(texts))]
    return torch.cat(every), torch.tensor([len(state) for state in every])
