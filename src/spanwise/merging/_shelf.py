"""The models of one merge, each opened once and given one vocabulary."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spanwise.io import TensorReader
from spanwise.lora import Adapter, is_adapter, open_adapter
from spanwise.merging._open import (
    Applied,
    check_configs,
    check_rows,
    check_tokens,
    locate,
    other_base,
    read_config,
    text_part,
)
from spanwise.merging._recipe import Reference, Tokens
from spanwise.merging._sources import AdapterSource, Source, open_source
from spanwise.merging._vocabulary import Member, Vocabulary, choose, read_ids, rewritten, tables

CHOOSE = (
    "Say which vocabulary the result gets, --tokenizer base, union or a folder (in a "
    "configuration: tokenizer)."
)


@dataclass
class _Held:
    """A whole model on the shelf."""

    source: Source
    config: Mapping[str, Any]
    ids: dict[str, int] | None


class Shelf:
    """Opens the models of a merge and makes sure that they fit together.

    Args:
        base: What the others were trained from, if anything.
        references: All models, in the order of the configuration.
        tokens: The vocabulary that is asked for.
        beside: Where the configuration lies, for paths relative to it.
        sliced: Whether layers are taken from anywhere.
        remedy: What to do where vocabularies differ, a sentence.

    Attributes:
        beside: Where the configuration lies.
        vocabulary: The result's, where one was asked for.
        notes: What differs between the models without forbidding a merge.
        ids: Token -> id of the model whose configuration the result gets.

    Raises:
        FileNotFoundError: If a model is not there.
        ValueError: If architectures or tokenizers do not fit together.
    """

    def __init__(
        self,
        base: Reference | None,
        references: Sequence[Reference],
        *,
        tokens: Tokens | None = None,
        beside: Path | None = None,
        sliced: bool = False,
        remedy: str = CHOOSE,
    ) -> None:
        self.notes: list[str] = []
        self.vocabulary: Vocabulary | None = None
        self.ids: Mapping[str, int] = {}
        self._base, self.beside = base, beside
        self._held: dict[Path, _Held] = {}
        self._adapters: dict[Path, Adapter] = {}
        ordered = list(dict.fromkeys([*([base] if base else []), *references]))
        for ref in ordered:
            self._open(ref)
        if not self._held:
            raise ValueError("every model is an adapter: give the model they were trained on.")
        names = {path: _short(path) for path in self._held}
        configs = [(names[path], held.config) for path, held in self._held.items()]
        self.notes += check_configs(configs, sliced=sliced)
        if tokens is not None:
            self._retoken(tokens, ordered)
        else:
            first = next(iter(self._held.values()))
            rows = text_part(first.config).get("vocab_size", 0)
            known = [(names[path], held.ids) for path, held in self._held.items()]
            if not sliced:
                check_rows(configs, remedy)
            self.notes += check_tokens(known, rows, remedy)
            if all(ids is None for _, ids in known) and any(config for _, config in configs):
                self.notes.append("no model has a tokenizer, and neither will the result")

    @property
    def folders(self) -> list[Path]:
        """The folders of whole models, the base's first."""
        return [held.source.folder for held in self._held.values() if held.source.folder]

    @property
    def folder(self) -> Path | None:
        """Where configuration and tokenizer of the result come from."""
        return next(iter(self._held.values())).source.folder

    def config(self, ref: Reference) -> Mapping[str, Any]:
        """A model's configuration."""
        return self._home(ref).config

    def model(self, ref: Reference, label: str, base: Source | None) -> Source:
        """A model to merge: an adapter keeps its factors where it was trained on `base`."""
        adapter = self._adapter(ref)
        trained_on_base = adapter is not None and (
            ref.lora is None
            or (self._base is not None and self._path(ref) == self._path(self._base))
        )
        if adapter is not None and base is not None and trained_on_base:
            return AdapterSource(label, adapter[1], base, adapter[0])
        return self.whole(ref, label)

    def whole(self, ref: Reference, label: str) -> Source:
        """A model with all of its tensors."""
        home, adapter = self._home(ref), self._adapter(ref)
        tensors: TensorReader = home.source.tensors
        place = home.source.place
        if adapter is not None:
            tensors, place = Applied(tensors, adapter[1], str(ref)), adapter[0]
        return Source(label, tensors, {}, place)

    def _path(self, ref: Reference) -> Path:
        return locate(ref.path, ref.revision, self.beside)

    def _home(self, ref: Reference) -> _Held:
        """The whole model behind a reference."""
        path = self._path(ref)
        if path not in self._held and self._base is not None:
            path = self._path(self._base)
        if path not in self._held:
            raise ValueError(f"{ref} is an adapter: give the model it was trained on as base.")
        return self._held[path]

    def _adapter(self, ref: Reference) -> tuple[Path, Adapter] | None:
        path = self._path(ref) if ref.lora is None else locate(ref.lora, None, self.beside)
        return (path, self._adapters[path]) if path in self._adapters else None

    def _open(self, ref: Reference) -> None:
        path = self._path(ref)
        lora = locate(ref.lora, None, self.beside) if ref.lora is not None else None
        if is_adapter(path):
            if ref == self._base:
                raise ValueError(f"{ref} is an adapter, which cannot be the base.")
            path, lora = Path(), path
        if lora is not None and lora not in self._adapters:
            adapter = self._adapters[lora] = open_adapter(lora)
            root = ref if ref.lora is not None else self._base
            said = None if root is None else other_base(adapter.config, root.path)
            if root is not None and said is not None:
                self.notes.append(
                    f"{_short(lora)} says that it was trained on {said}, "
                    f"and is added to {root.path}"
                )
            if adapter.others:
                self.notes.append(
                    f"{_short(lora)} keeps {len(adapter.others)} tensors whole, "
                    f"{next(iter(adapter.others))!r} first: they are merged as a whole model's are"
                )
        if path != Path() and path not in self._held:
            source = open_source(str(ref.path), path)
            config = read_config(source.folder)
            ids = None if source.folder is None else read_ids(source.folder)
            self._held[path] = _Held(source, config, ids)

    def _retoken(self, tokens: Tokens, references: Sequence[Reference]) -> None:
        """Give every model the vocabulary that is asked for."""
        root = next(iter(self._held.values()))
        if root.ids is None:
            raise ValueError(
                f"tokenizer: {root.source.label} has no tokenizer to begin with; name a folder "
                "that has one, or leave tokenizer out."
            )
        members = []
        for path, held in self._held.items():
            rows = text_part(held.config).get("vocab_size")
            if held.source.folder is None or not isinstance(rows, int):
                raise ValueError(
                    f"tokenizer: {path} needs a config.json that names its vocab_size."
                )
            if not tables(held.source.tensors, rows):
                raise ValueError(
                    f"tokenizer: {path} has no table of {rows} rows, which is the vocab_size of "
                    "its config.json."
                )
            if held.ids is None:
                self.notes.append(f"{_short(path)} has no tokenizer: the base's counts for it")
            ids = root.ids if held.ids is None else held.ids
            owners = tuple(ref for ref in references if self._home(ref) is held)
            folder = held.source.folder if held.ids is not None else root.source.folder
            assert folder is not None
            inside = {token: row for token, row in ids.items() if row < rows}
            members.append(Member(_short(path), owners, folder, held.source.tensors, rows, inside))
        named = {tokens.source} if isinstance(tokens.source, Reference) else set()
        folders = {ref: self._path(ref) for ref in named}
        self.vocabulary = choose(tokens, members, 0, folders)
        self.ids = dict(root.ids)
        index = 0 if self._base is not None else None
        readers, notes = rewritten(tokens, self.vocabulary, members, index)
        self.notes += [*self.vocabulary.notes, *notes]
        for held, reader in zip(self._held.values(), readers, strict=True):
            held.source = Source(held.source.label, reader, {}, held.source.place)


def _short(path: Path) -> str:
    return path.name or str(path)
