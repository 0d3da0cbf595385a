"""Models whose tokenizers differ: one vocabulary, and each model's rows put in its order."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from spanwise._lazy import require
from spanwise.io import TensorReader
from spanwise.io._reader import ReaderAround
from spanwise.merging._recipe import Reference, TokenRule, Tokens
from spanwise.merging._schedule import layer_of

FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "merges.txt",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip
"""What a tokenizer consists of on disk."""

_POSITIONS = ("position", "wpe")
_FILL, _PAD = -1, -2
_RUNS = 64
"""More runs of rows than these are read as one stretch."""

Row = tuple[TensorReader, int]


@dataclass(frozen=True)
class Member:
    """A model whose vocabulary counts."""

    name: str
    references: tuple[Reference, ...]
    folder: Path
    tensors: TensorReader
    rows: int
    """Rows of its tables."""
    ids: Mapping[str, int]
    """Token -> row, rows that its tables have not left out."""


@dataclass(frozen=True)
class Vocabulary:
    """The vocabulary of the result."""

    ids: Mapping[str, int]
    rows: int
    source: Path
    """The folder of the tokenizer that it begins with."""
    tokenizer: Any = None
    """Saved instead of that folder's files, where tokens were added."""
    notes: tuple[str, ...] = ()

    def write(self, folder: Path) -> None:
        """Write the tokenizer into a folder, in place of the one that is there."""
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
            return
        for name in FILES:
            if (self.source / name).is_file():
                (folder / name).write_bytes((self.source / name).read_bytes())


def read_ids(folder: Path) -> dict[str, int] | None:
    """Token -> id of the tokenizer in a folder; None if there is none.

    `tokenizer.json` is read as it is; tokenizers without one are loaded by transformers.
    """
    file = folder / "tokenizer.json"
    if file.is_file():
        try:
            held = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} is damaged: {error}. Copy it again.") from error
        vocab = held.get("model", {}).get("vocab")
        if isinstance(vocab, (dict, list)):
            pairs = vocab.items() if isinstance(vocab, dict) else (
                (entry[0], index) for index, entry in enumerate(vocab)
            )  # fmt: skip
            added = {entry["content"]: entry["id"] for entry in held.get("added_tokens", [])}
            return {**dict(pairs), **added}
    if not any((folder / name).is_file() for name in FILES[1:8]):
        return None
    return dict(_load(folder).get_vocab())


def tables(tensors: TensorReader, rows: int) -> list[str]:
    """Tensors with a row for every token: embeddings and heads."""
    return [
        name
        for name in tensors
        if layer_of(name) is None
        and tensors.shape(name)[:1] == (rows,)
        and not any(part in name for part in _POSITIONS)
    ]


def choose(
    spec: Tokens, members: Sequence[Member], base: int, sources: Mapping[Reference, Path]
) -> Vocabulary:
    """The vocabulary that a configuration asks for.

    Args:
        spec: The configuration's part.
        members: All models.
        base: Which of them is the base.
        sources: The folders of further models that may be named as source.

    Raises:
        ValueError: If the source has no tokenizer.
    """
    root = members[base]
    if isinstance(spec.source, Reference):
        folder = sources[spec.source]
        ids = read_ids(folder)
        if ids is None:
            raise ValueError(f"tokenizer: {spec.source} has no tokenizer ({folder}).")
    else:
        folder, ids = root.folder, dict(root.ids)
    new: list[Any] = []
    notes: list[str] = []
    if spec.source == "union":
        plain: list[str] = []
        special: dict[str, Any] = {}
        for member in members:
            lacking = [token for token in member.ids if token not in ids]
            if member is root or not lacking:
                continue
            added = {t.content: t for t in _load(member.folder).added_tokens_decoder.values()}
            plain += [token for token in lacking if token not in added]
            for token in lacking:
                if token in added:
                    special.setdefault(token, added[token])
        new = [*dict.fromkeys(plain), *special.values()]
        if plain:
            notes.append(
                f"{len(set(plain))} pieces of other tokenizers were added to the base's as whole "
                "tokens; how those tokenizers merge pieces does not come along"
            )
    new += [token for token in spec.rules if token not in ids]
    tokenizer = None
    if new:
        tokenizer = _load(folder)
        tokenizer.add_tokens(new)
        ids = dict(tokenizer.get_vocab())
    rows = max(ids.values()) + 1
    if spec.pad_to_multiple_of:
        rows = -(-rows // spec.pad_to_multiple_of) * spec.pad_to_multiple_of
    return Vocabulary(ids, rows, folder, tokenizer, tuple(notes))


def rewritten(
    spec: Tokens, vocabulary: Vocabulary, members: Sequence[Member], base: int | None
) -> tuple[list[TensorReader], list[str]]:
    """Every model with its rows in the order of a vocabulary, and what to say about it.

    A token that a model lacks gets the base's row, or the only owner's, or the mean of all owners'
    rows, or zeros if nobody has it; padding gets the mean of the model's other rows.

    Raises:
        ValueError: If a rule names a token or a model that is not there.
    """
    token_of = {number: token for token, number in vocabulary.ids.items()}
    kinds = [np.full(vocabulary.rows, _PAD, np.int64) for _ in members]
    fills: dict[int, list[tuple[int, int]]] = {}
    orphans = []
    for number, token in token_of.items():
        owners = [(i, m.ids[token]) for i, m in enumerate(members) if token in m.ids]
        rule = spec.rules.get(token)
        if len(owners) < len(members) or (rule is not None and rule.force):
            fills[number] = _filling(token, rule, owners, members, base)
            if not owners and (rule is None or rule.derived):
                orphans.append(token)
        held = {} if rule is not None and rule.force else dict(owners)
        for index, kind in enumerate(kinds):
            kind[number] = held.get(index, _FILL)
    notes = []
    if orphans:
        notes.append(f"no model has a row for {_some(orphans)}: they begin as zeros")
    readers = [member.tensors for member in members]
    found: list[TensorReader] = [
        Rewritten(
            member.tensors,
            frozenset(tables(member.tensors, member.rows)),
            kind,
            {n: [(readers[i], row) for i, row in rows] for n, rows in fills.items()},
        )
        for member, kind in zip(members, kinds, strict=True)
    ]
    return found, notes


class Rewritten(ReaderAround):
    """A model whose tables have their rows in another order.

    Args:
        tensors: The model.
        names: Its tables.
        kinds: For each new row the old one, or -1 to fill it, or -2 for padding.
        fills: New row -> rows of models whose mean it is; zeros without any.
    """

    def __init__(
        self,
        tensors: TensorReader,
        names: frozenset[str],
        kinds: np.ndarray[Any, np.dtype[np.int64]],
        fills: Mapping[int, Sequence[Row]],
    ) -> None:
        super().__init__(tensors)
        self._names, self._kinds, self._fills = names, kinds, fills
        self._means: dict[str, Tensor] = {}

    @override
    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            return self._tensors[name]
        return self.rows(name, 0, len(self._kinds))

    @override
    def shape(self, name: str) -> tuple[int, ...]:
        shape = self._tensors.shape(name)
        return (len(self._kinds), *shape[1:]) if name in self._names else shape

    @override
    def rows(self, name: str, start: int, stop: int, into: Tensor | None = None) -> Tensor:
        if name not in self._names:
            return self._tensors.rows(name, start, stop, into)
        self._check_rows(name, start, stop)
        shape = (stop - start, *self._tensors.shape(name)[1:])
        found = torch.zeros(shape, dtype=self.dtype(name))
        kinds = self._kinds[start:stop]
        self._copy(name, kinds, found)
        for place in np.flatnonzero(kinds == _FILL):
            rows = [r.rows(name, i, i + 1)[0].float() for r, i in self._fills[start + int(place)]]
            if rows:
                found[int(place)] = torch.stack(rows).mean(0).to(found.dtype)
        padding = torch.from_numpy(kinds == _PAD)
        if padding.any():
            found[padding] = self._mean(name)
        return found

    def _copy(self, name: str, kinds: np.ndarray[Any, np.dtype[np.int64]], found: Tensor) -> None:
        """The rows that the model has itself."""
        mine = np.flatnonzero(kinds >= 0)
        if not len(mine):
            return
        breaks = np.flatnonzero((np.diff(mine) != 1) | (np.diff(kinds[mine]) != 1)) + 1
        if len(breaks) >= _RUNS:
            low, high = int(kinds[mine].min()), int(kinds[mine].max()) + 1
            stretch = self._tensors.rows(name, low, high)
            found[torch.from_numpy(mine)] = stretch[torch.from_numpy(kinds[mine] - low)]
            return
        for run in np.split(mine, breaks):
            first, old = int(run[0]), int(kinds[run[0]])
            found[first : first + len(run)] = self._tensors.rows(name, old, old + len(run))

    def _mean(self, name: str) -> Tensor:
        if name not in self._means:
            total, count = torch.zeros(self.shape(name)[1:], dtype=torch.float64), 0
            known = np.flatnonzero(self._kinds != _PAD)
            for part in np.array_split(known, max(1, len(known) // 4096)):
                for run in np.split(part, np.flatnonzero(np.diff(part) != 1) + 1):
                    rows = self.rows(name, int(run[0]), int(run[-1]) + 1)
                    total, count = total + rows.double().sum(0), count + len(run)
            self._means[name] = (total / max(1, count)).to(self.dtype(name))
        return self._means[name]


def retargeted(
    config: Mapping[str, Any], old: Mapping[str, int], new: Mapping[str, int]
) -> dict[str, Any]:
    """A configuration whose `..._token_id` name the same tokens in another vocabulary."""
    token_of = {number: token for token, number in old.items()}

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(v) for v in value]
        return new.get(token_of.get(value, ""), value) if type(value) is int else value

    return {k: moved(v) if k.endswith("_token_id") else v for k, v in config.items()}


def _filling(
    token: str,
    rule: TokenRule | None,
    owners: list[tuple[int, int]],
    members: Sequence[Member],
    base: int | None,
) -> list[tuple[int, int]]:
    if rule is not None and not rule.derived:
        return _ruled(token, rule, members)
    return [pair for pair in owners if pair[0] == base] or owners


def _ruled(token: str, rule: TokenRule, members: Sequence[Member]) -> list[tuple[int, int]]:
    if rule.model is None:
        return []
    index = next((i for i, m in enumerate(members) if rule.model in m.references), None)
    if index is None:
        raise ValueError(f"tokenizer.tokens[{token!r}]: {rule.model} is none of the models.")
    wanted = token if rule.token is None else rule.token
    member = members[index]
    row = wanted if isinstance(wanted, int) else member.ids.get(wanted)
    if row is None or not 0 <= row < member.rows:
        raise ValueError(f"tokenizer.tokens[{token!r}]: {rule.model} has no token {wanted!r}.")
    return [(index, row)]


def _load(folder: Path) -> Any:
    return require("transformers", "a tokenizer").AutoTokenizer.from_pretrained(folder)


def _some(tokens: Sequence[str]) -> str:
    shown = ", ".join(repr(t) for t in tokens[:3])
    return shown if len(tokens) <= 3 else f"{shown} and {len(tokens) - 3} others"
