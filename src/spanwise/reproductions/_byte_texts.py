"""Two texts that every Python ships, as bytes: one to know, one to learn."""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int16
from torch import Tensor

from spanwise.datasets import ByteTokenizer, TextData, load

HELD_OUT_EVERY = 10
"""Every such document is for evaluation: whole documents, so that no sequence spans the split."""


@dataclass(frozen=True)
class ByteText:
    """A text as ids of `ByteTokenizer`, split by documents."""

    train: Int16[Tensor, " n"]
    held_out: Int16[Tensor, " m"]
    name: str
    digest: str
    documents: int

    def describe(self) -> dict[str, Any]:
        """What a result records about it."""
        return {
            "name": self.name,
            "digest": self.digest,
            "documents": self.documents,
            "train_bytes": len(self.train),
            "held_out_bytes": len(self.held_out),
        }


@functools.lru_cache(maxsize=4)
def byte_text(name: str) -> ByteText:
    """A data set by name.

    Raises:
        FileNotFoundError: If this interpreter ships without it.
        ValueError: If it has too few documents to hold one out.
    """
    data = load(name)
    if len(data) < HELD_OUT_EVERY:
        raise ValueError(f"{name} has {len(data)} documents; {HELD_OUT_EVERY} are needed.")
    held = range(HELD_OUT_EVERY // 2, len(data), HELD_OUT_EVERY)
    rest = [i for i in range(len(data)) if i not in held]
    return ByteText(_ids(data, rest), _ids(data, held), data.name, data.digest, len(data))


def _ids(data: TextData, indices: "list[int] | range") -> Int16[Tensor, " n"]:
    """The documents' bytes, shifted as the tokenizer shifts them, an end of text after each."""
    parts: list[Tensor] = []
    end = torch.tensor([ByteTokenizer.eos_token_id], dtype=torch.int16)
    for index in indices:
        text = data.documents[index].text.encode("utf-8", "replace")
        parts += [torch.frombuffer(bytearray(text), dtype=torch.uint8).short() + 3, end]
    return torch.cat(parts)
