"""Texts as examples: one for each document, where training packs them end to end."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spanwise.datasets import TextData
from spanwise.training.data import IGNORED, encode

Example = dict[str, Tensor]
"""`input_ids` (length,) and `labels`, (length,) or one class."""


def causal_examples(data: TextData, tokenizer: Any, sequence: int) -> list[Example]:
    """Documents for a language model, longer ones in pieces of at most `sequence` tokens.

    Each begins with the token that the tokenizer begins texts with, if it does. Prompts are read
    without being learned; a piece that is all prompt is left out.

    Args:
        data: Documents.
        tokenizer: Anything with `encode`.
        sequence: Tokens of an example at most, at least 2.

    Raises:
        ValueError: If nothing is left to learn.
    """
    first = _first_ids(tokenizer)
    found: list[Example] = []
    for document in data.documents:
        ids, learned = encode(document, tokenizer)
        # A chat template writes the first token itself.
        own = np.empty(0, ids.dtype) if ids[:1].tolist() == first else np.asarray(first, ids.dtype)
        step = sequence - len(own)
        for start in range(0, len(ids), step):
            piece = np.concatenate([own, ids[start : start + step]])
            mask = np.concatenate([np.zeros(len(own), bool), learned[start : start + step]])
            # The first token has no predecessor that could tell it.
            if mask[1:].any():
                row = torch.from_numpy(piece.astype(np.int64))
                labels = row.masked_fill(torch.from_numpy(~mask), IGNORED)
                found.append({"input_ids": row, "labels": labels})
    if not found:
        raise ValueError(f"{data.name} leaves no token to learn: every text is all prompt.")
    return found


def classed_examples(
    data: TextData, tokenizer: Any, sequence: int, classes: Mapping[str, int] | None
) -> list[Example]:
    """Documents for an encoder, cut at `sequence` tokens, with their classes where they have one.

    Args:
        data: Documents; with a label, the text is the prompt and the label the answer.
        tokenizer: One of transformers', which adds the tokens that the model expects.
        sequence: Tokens of an example at most.
        classes: Label -> class; numbers stand for themselves. None leaves labels out.

    Raises:
        ValueError: If a label is no class.
    """
    found: list[Example] = []
    for document in data.documents:
        text = document.prompt.strip() or document.plain
        ids = tokenizer(text, truncation=True, max_length=sequence)["input_ids"]
        row: Example = {"input_ids": torch.tensor(ids, dtype=torch.int64)}
        if classes is not None and document.prompt:
            row["labels"] = torch.tensor(_class(document.text.strip(), classes, data.name))
        found.append(row)
    return found


def spread(examples: Sequence[Example], count: int) -> list[Example]:
    """At most `count` examples, evenly spaced."""
    if len(examples) <= count:
        return list(examples)
    places = np.linspace(0, len(examples) - 1, count).round().astype(int)
    return [examples[i] for i in places]


class Padded:
    """Batches of examples, each padded to its longest, as often as they are asked for.

    Args:
        examples: What to read.
        size: Examples in a batch.
        pad: The id that fills; a mask says where.
    """

    def __init__(self, examples: Sequence[Example], size: int, pad: int) -> None:
        self.examples, self.size, self.pad = examples, size, pad

    def __len__(self) -> int:
        return -(-len(self.examples) // self.size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for start in range(0, len(self.examples), self.size):
            rows = self.examples[start : start + self.size]
            ids = [row["input_ids"] for row in rows]
            found = {
                "input_ids": _stacked(ids, self.pad),
                "attention_mask": _stacked([torch.ones_like(row) for row in ids], 0),
            }
            if all("labels" in row for row in rows):
                labels = [row["labels"] for row in rows]
                flat = labels[0].ndim == 0
                found["labels"] = torch.stack(labels) if flat else _stacked(labels, IGNORED)
            yield found


def _stacked(rows: Sequence[Tensor], fill: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=fill)


def _first_ids(tokenizer: Any) -> list[int]:
    """The token that begins every text, if the tokenizer adds one."""
    begin = getattr(tokenizer, "bos_token_id", None)
    if begin is None:
        return []
    ids = list(tokenizer("")["input_ids"])
    return [begin] if ids[:1] == [begin] else []


def _class(label: str, classes: Mapping[str, int], name: str) -> int:
    if label in classes:
        return classes[label]
    if label.isdigit() and int(label) in classes.values():
        return int(label)
    known = ", ".join(list(classes)[:6])
    raise ValueError(f"{name}: the label {label!r} is no class of the model; it knows {known}.")
