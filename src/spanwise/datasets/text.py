"""Text as a value: documents, where they came from, and a digest of what was read."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any


@dataclass(frozen=True, slots=True)
class Document:
    """One text to learn from.

    A language model learns every token of `text`. Where `prompt` is set, it stands in front
    and is read but not learned; where `messages` is set, the tokenizer's chat template writes
    the text and only the assistant's turns are learned; `tokens` are ids that need no tokenizer.
    """

    text: str = ""
    prompt: str = ""
    messages: tuple[dict[str, str], ...] = ()
    tokens: tuple[int, ...] = ()

    @property
    def plain(self) -> str:
        """All that a reader would see, prompt and answers included."""
        if self.messages:
            return "\n".join(f"{m['role']}: {m['content']}" for m in self.messages)
        return self.prompt + self.text


@dataclass(frozen=True, kw_only=True)
class TextData:
    """Documents in a fixed order, with the names and digests of the files they were read from."""

    name: str
    documents: tuple[Document, ...]
    files: tuple[tuple[str, str], ...] = ()
    """(name, sha256 of the bytes on disk) of every file read; empty for texts made in memory."""

    @classmethod
    def from_strings(cls, texts: Iterable[str], name: str = "strings") -> "TextData":
        """Documents from strings already in memory; empty ones are dropped."""
        return cls(name=name, documents=tuple(Document(text) for text in texts if text.strip()))

    @cached_property
    def digest(self) -> str:
        """sha256 over all documents in order: equal digests mean equal training data."""
        sha = hashlib.sha256()
        for document in self.documents:
            for part in _parts(document):
                data = part.encode("utf-8", "surrogatepass")
                sha.update(len(data).to_bytes(8, "little") + data)
        return sha.hexdigest()

    @property
    def text(self) -> str:
        """Every document as plain text, two newlines between them."""
        return "\n\n".join(document.plain for document in self.documents)

    @property
    def characters(self) -> int:
        """How many characters the documents hold (0 for ready tokens)."""
        return sum(len(document.plain) for document in self.documents)

    def head(self, characters: int) -> "TextData":
        """The first documents that together hold at least `characters`; the last is cut.

        Raises:
            ValueError: If `characters` is below 1.
        """
        if characters < 1:
            raise ValueError(f"characters must be at least 1, got {characters}.")
        kept: list[Document] = []
        for document in self.documents:
            if characters <= 0:
                break
            if not document.messages and not document.tokens and not document.prompt:
                document = Document(document.text[:characters])
            kept.append(document)
            characters -= max(len(document.plain), 1)
        return TextData(name=self.name, documents=tuple(kept), files=self.files)

    def __len__(self) -> int:
        return len(self.documents)

    def __add__(self, other: "TextData") -> "TextData":
        return TextData(
            name=f"{self.name} + {other.name}",
            documents=self.documents + other.documents,
            files=self.files + other.files,
        )


def join(parts: Sequence[TextData]) -> TextData:
    """One `TextData` with the documents of several, in the order given.

    Raises:
        ValueError: If there is nothing to join.
    """
    if not parts:
        raise ValueError("join needs at least one TextData, got none.")
    return TextData(
        name=" + ".join(part.name for part in parts),
        documents=tuple(document for part in parts for document in part.documents),
        files=tuple(file for part in parts for file in part.files),
    )


def check_messages(messages: Any, where: str) -> tuple[dict[str, str], ...]:
    """`messages` as (role, content) dicts.

    Raises:
        ValueError: If a message lacks its role or content; `where` names the place.
    """
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{where}: `messages` must be a non-empty list of role and content.")
    for message in messages:
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise ValueError(f"{where}: every message needs `role` and `content`, got {message!r}.")
    return tuple({"role": str(m["role"]), "content": str(m["content"])} for m in messages)


def _parts(document: Document) -> Iterable[str]:
    yield document.prompt
    yield document.text
    for message in document.messages:
        yield message["role"]
        yield message["content"]
    if document.tokens:
        yield " ".join(map(str, document.tokens))
