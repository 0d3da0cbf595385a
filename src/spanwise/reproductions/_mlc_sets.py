"""Pictures and texts to cluster: rows, classes that only judge, and what MLC is told of them."""

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from spanwise.datasets import (
    LabelledTexts,
    bbc_news,
    clinc150,
    data_folders,
    dbpedia14,
    fashion_mnist,
)
from spanwise.estimators import image_shifts
from spanwise.reproductions import _digits_tasks as digits
from spanwise.reproductions._encoder_tasks import kept, model_digest
from spanwise.zoo import load_encoder

POOL = 2000
"""Texts of a set that are read; every seed takes its own part."""
MAX_TOKENS = 32
ENCODER = "minilm-l6"

Samples = tuple[Float[Tensor, "n p"], Int64[Tensor, " n"]]
"""Rows and classes."""


@dataclass(frozen=True, kw_only=True)
class Set:
    """What is clustered."""

    label: str
    """What people read."""
    read: Callable[[], Samples]
    samples: int
    """That a seed takes."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of `MLC`, equal for all sets of a kind."""


def read_digits() -> Samples:
    """1797 handwritten digits of 8 x 8 pixels."""
    data = digits.load_digits()
    return data.pixels.flatten(1), data.labels


def read_usps() -> Samples:
    """7291 handwritten digits of 16 x 16 pixels.

    Raises:
        FileNotFoundError: If the file is nowhere.
    """
    paths = [folder / "usps" / "usps.npz" for folder in data_folders()]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise FileNotFoundError(
            "usps.npz (x_train, y_train) is needed below $SPANWISE_DATA/usps; leave it out with "
            "--sets digits fashion clinc news dbpedia."
        )
    with np.load(path) as data:
        pixels = torch.from_numpy(data["x_train"]).flatten(1).float() / 255
        return pixels, torch.from_numpy(data["y_train"]).long()


def read_fashion() -> Samples:
    """60000 pictures of clothes of 28 x 28 pixels.

    Raises:
        FileNotFoundError: If the files are nowhere.
    """
    data = fashion_mnist()
    return torch.from_numpy(data.pixels / np.float32(255)).flatten(1), torch.from_numpy(data.labels)


@functools.lru_cache(maxsize=4)
def texts_of(name: str) -> LabelledTexts:
    """The texts of a set."""
    if name == "clinc":
        return clinc150(("banking",))
    return {"news": bbc_news, "dbpedia": dbpedia14}[name]()


def read_texts(name: str) -> Samples:
    """Mean-pooled, unit embeddings of texts; computed once and kept in the user's cache."""
    data = texts_of(name)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    rows = order[:POOL].tolist()
    key = {
        "kind": "embeddings",
        "texts": data.digest,
        "encoder": model_digest(ENCODER),
        "tokens": MAX_TOKENS,
        "pool": POOL,
    }
    held = kept(key, lambda: {"rows": embedded([data.texts[i] for i in rows])})
    return held["rows"], torch.tensor([data.labels[i] for i in rows])


@torch.no_grad()
def embedded(texts: list[str]) -> Float[Tensor, "n 384"]:
    """Each text as the encoder sees it."""
    model, tokenizer = load_encoder(ENCODER)
    whole: Any = model
    found = torch.zeros(len(texts), 384)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for first in range(0, len(order), 64):
        some = order[first : first + 64]
        batch = tokenizer(
            [texts[i] for i in some], padding=True, truncation=True, max_length=MAX_TOKENS,
            return_tensors="pt",
        )  # fmt: skip
        states = whole(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None].to(states.dtype)
        found[some] = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)
    return found


def pictures(side: int) -> dict[str, Any]:
    """Options for pictures of so many pixels a side."""
    return {
        "augment": image_shifts(side, side, 1, 0.1), "n_features": 32, "batch_size": 256,
        "lr": 3e-4, "epochs": 40,
    }  # fmt: skip


EMBEDDED: dict[str, Any] = {"n_features": 64, "batch_size": 500, "lr": 1e-3, "epochs": 20}

SETS: dict[str, Set] = {
    "digits": Set(label="digits", read=read_digits, samples=1500, options=pictures(8)),
    "usps": Set(label="USPS", read=read_usps, samples=1500, options=pictures(16)),
    "fashion": Set(
        label="Fashion-MNIST", read=read_fashion, samples=1500, options=pictures(28)
    ),
    "clinc": Set(
        label="CLINC150, banking", read=functools.partial(read_texts, "clinc"), samples=1000,
        options=EMBEDDED,
    ),
    "news": Set(
        label="BBC news", read=functools.partial(read_texts, "news"), samples=1000,
        options=EMBEDDED,
    ),
    "dbpedia": Set(
        label="DBpedia", read=functools.partial(read_texts, "dbpedia"), samples=1000,
        options=EMBEDDED,
    ),
}  # fmt: skip
PICTURES, TEXTS = ("digits", "usps", "fashion"), ("clinc", "news", "dbpedia")


@functools.lru_cache(maxsize=1)
def read(name: str) -> Samples:
    """A set's rows and classes."""
    return SETS[name].read()


def digest(name: str) -> str:
    """Of a set's rows and classes, without computing embeddings."""
    if name in TEXTS:
        parts = (texts_of(name).digest, model_digest(ENCODER), str(MAX_TOKENS), str(POOL))
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()
    rows, labels = read(name)
    return hashlib.sha256(rows.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()


def part(name: str, seed: int, samples: int | None = None) -> Samples:
    """The rows that a seed takes, and their classes."""
    rows, labels = read(name)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    chosen = order[: samples or SETS[name].samples]
    return rows[chosen], labels[chosen]
