"""From documents to equal sequences of ids: tokenise, pack, hold some out, fix the order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import override

from spanwise.datasets import ByteTokenizer, Document, TextData

IGNORED = -100
"""The label of tokens that are read but not learned, torch's convention."""


@dataclass(frozen=True)
class Blocks:
    """Packed sequences of one text."""

    ids: Int[np.ndarray, "n sequence"]
    learned: Any
    """Which ids count in the loss, a boolean array of the same shape; None if all do."""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = torch.from_numpy(self.ids[index].astype(np.int64))
        labels = ids.clone()
        if self.learned is not None:
            labels[torch.from_numpy(~self.learned[index])] = IGNORED
        return {"input_ids": ids, "labels": labels}

    def take(self, index: Any) -> "Blocks":
        """The sequences at `index`."""
        return Blocks(self.ids[index], None if self.learned is None else self.learned[index])

    def spread(self, count: int) -> "Blocks":
        """At most `count` sequences, evenly spaced."""
        if len(self) <= count:
            return self
        return self.take(np.linspace(0, len(self) - 1, count).round().astype(np.int64))

    def batches(self, size: int) -> Iterator[dict[str, Tensor]]:
        """Batches in order, the last one perhaps smaller."""
        for start in range(0, len(self), size):
            rows = [self[i] for i in range(start, min(start + size, len(self)))]
            yield {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def encode(document: Document, tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Ids of one document, an end-of-text token last, and which of them are learned.

    Raises:
        ValueError: If the document holds messages and the tokenizer has no chat template.
    """
    if document.tokens:
        ids = np.asarray(document.tokens, dtype=np.int32)
        return ids, np.ones(len(ids), dtype=bool)
    if document.messages:
        return _encode_messages(document, tokenizer)
    prompt = _ids(document.prompt, tokenizer)
    answer = _ids(document.text, tokenizer)
    end = getattr(tokenizer, "eos_token_id", None)
    tail = np.asarray([] if end is None else [end], dtype=np.int32)
    ids = np.concatenate([prompt, answer, tail])
    learned = np.ones(len(ids), dtype=bool)
    learned[: len(prompt)] = False
    return ids, learned


def pack(
    data: TextData, tokenizer: Any, sequence: int, *, held_out: float = 0.0
) -> tuple[Blocks, Blocks]:
    """Sequences to learn from and sequences kept away, both packed end to end.

    With twenty documents or more, whole documents are held out, chosen by a fixed seed; with
    fewer, the end of the text is. What does not fill a last sequence is dropped.

    Args:
        data: Documents.
        tokenizer: Anything with `encode`; `ByteTokenizer` or one of transformers.
        sequence: Tokens in a sequence.
        held_out: Share of the tokens to keep away; 0 keeps none.

    Returns:
        Blocks to learn and blocks held out.

    Raises:
        ValueError: If the text does not fill one sequence for each part.
    """
    pairs = [encode(document, tokenizer) for document in data.documents]
    total = sum(len(ids) for ids, _ in pairs)
    wanted = max(int(total * held_out), sequence) if held_out else 0
    if total < sequence + wanted:
        least = 2 * sequence if held_out else sequence
        raise ValueError(
            f"{data.name} has {total} tokens, but a sequence is {sequence} and at least "
            f"{least} are needed{' (one sequence is held out)' if held_out else ''}. "
            "Give more text, or lower --sequence."
        )
    if not held_out:
        return _blocks(pairs, sequence), Blocks(np.empty((0, sequence), np.int32), None)
    if len(pairs) >= 20:
        away = _chosen([len(ids) for ids, _ in pairs], wanted)
        kept = [pair for i, pair in enumerate(pairs) if i not in away]
        # A few huge documents may leave too little on one side; then the text is cut instead.
        if sum(len(ids) for ids, _ in kept) >= sequence:
            return _blocks(kept, sequence), _blocks([pairs[i] for i in sorted(away)], sequence)
    ids = np.concatenate([ids for ids, _ in pairs])
    learned = np.concatenate([mask for _, mask in pairs])
    cut = total - wanted
    return _blocks([(ids[:cut], learned[:cut])], sequence), _blocks(
        [(ids[cut:], learned[cut:])], sequence
    )


class Stream(Dataset[dict[str, Tensor]]):
    """The sequences of a whole run in order: every pass over the text in its own permutation.

    One item after another for `length` items, whatever a step takes, so that the order depends
    on the seed alone and a resumed run finds its place by counting.

    Args:
        blocks: What to draw from.
        length: Sequences in the whole run.
        seed: Of the permutations.
    """

    def __init__(self, blocks: Blocks, length: int, seed: int) -> None:
        self.blocks = blocks
        self.length = length
        self.seed = seed
        self._orders: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self.length

    @override
    def __getitem__(self, index: int) -> dict[str, Tensor]:
        passes, place = divmod(index, len(self.blocks))
        if passes not in self._orders:
            # Only the pass in use is kept, and its predecessor for batches across the border.
            self._orders = {k: v for k, v in self._orders.items() if k == passes - 1}
            generator = np.random.default_rng([self.seed, passes])
            self._orders[passes] = generator.permutation(len(self.blocks))
        return self.blocks[int(self._orders[passes][place])]


def _chosen(lengths: Sequence[int], wanted: int) -> set[int]:
    """Documents in a fixed random order until they hold `wanted` tokens."""
    away: set[int] = set()
    for i in np.random.default_rng(0).permutation(len(lengths)):
        if wanted <= 0:
            break
        away.add(int(i))
        wanted -= lengths[i]
    return away


def _blocks(pairs: list[tuple[np.ndarray, np.ndarray]], sequence: int) -> Blocks:
    ids = np.concatenate([ids for ids, _ in pairs])
    learned = np.concatenate([mask for _, mask in pairs])
    count = len(ids) // sequence
    ids = ids[: count * sequence].reshape(count, sequence)
    if learned.all():
        return Blocks(ids, None)
    learned = learned[: count * sequence].reshape(count, sequence)
    # The first token of a sequence has no predecessor: a block needs another one to learn.
    useful = learned[:, 1:].any(axis=1)
    if not useful.any():
        raise ValueError("no token is left to learn: every sequence is all prompt.")
    return Blocks(ids[useful], learned[useful])


def _ids(text: str, tokenizer: Any) -> np.ndarray:
    if not text:
        return np.empty(0, dtype=np.int32)
    if isinstance(tokenizer, ByteTokenizer):
        data = np.frombuffer(text.encode("utf-8", "replace"), dtype=np.uint8)
        return data.astype(np.int32) + 3
    return np.asarray(tokenizer.encode(text, add_special_tokens=False), dtype=np.int32)


def _encode_messages(document: Document, tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """The conversation as the chat template writes it; only the assistant's turns are learned."""
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "the data holds `messages`, but this tokenizer has no chat template. Use an instruct "
            "model's tokenizer, or write the conversations out as `text`."
        )
    messages = list(document.messages)
    parts: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    written = ""
    for turn, message in enumerate(messages):
        answers = message["role"] == "assistant"
        # The header that asks for an answer belongs to the prompt, not to the answer.
        before = (
            tokenizer.apply_chat_template(
                messages[:turn], tokenize=False, add_generation_prompt=answers
            )
            if turn
            else ""
        )
        after = tokenizer.apply_chat_template(messages[: turn + 1], tokenize=False)
        for text, learn in ((before, False), (after, answers)):
            if not text.startswith(written) or len(text) <= len(written):
                continue
            ids = _ids(text[len(written) :], tokenizer)
            parts.append(ids)
            masks.append(np.full(len(ids), learn))
            written = text
    return np.concatenate(parts), np.concatenate(masks)
