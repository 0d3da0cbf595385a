"""Reading text: files, folders, globs, JSONL, CSV, npz, or the name of a data set."""

import glob
import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from spanwise.datasets.builtin import python_docs, python_stdlib, unicode_names
from spanwise.datasets.formats import READERS, document_of, read_text_file, suffix_of
from spanwise.datasets.resolve import ASSETS, nearest, resolve
from spanwise.datasets.text import Document, TextData, join

BUILTIN: dict[str, Callable[[], TextData]] = {
    "python-stdlib": python_stdlib,
    "python-docs": python_docs,
    "unicode-names": unicode_names,
}
# An owner is asked for: a misspelled name of ours must not wait for a network.
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(:[\w.-]+)?(@[\w.\[\]:%-]+)?")


def names() -> list[str]:
    """The data sets that `load` knows by name."""
    return sorted([*BUILTIN, *ASSETS])


def load(name: str, *, path: str | Path | None = None) -> TextData:
    """A data set by name: text the interpreter ships, or an asset that `resolve` finds.

    Raises:
        ValueError: If the name is unknown.
        FileNotFoundError: If its file is nowhere.
    """
    if name in BUILTIN and path is None:
        return BUILTIN[name]()
    if name not in names():
        raise ValueError(f"unknown data set {name!r}. {nearest(name, names())}")
    found = load_text(resolve(name, path))
    return TextData(name=name, documents=found.documents, files=found.files)


def load_text(
    source: str | Path | Sequence[str | Path], *, text: str | None = None, label: str | None = None
) -> TextData:
    """Documents from wherever text usually lies.

    Args:
        source: One or several of: a file, a folder (all its text files, hidden ones left out),
            a glob, a name from `names()`, or a data set of the `datasets` library written
            `owner/name`, `owner/name:config` or `owner/name@split`. A file that ends in
            `.jsonl` holds one object per line with `text`, or `prompt` and `completion`, or
            `messages`; `.csv` and `.tsv` a table; `.npz` strings under `text` or ready ids
            under `input_ids`; all else is UTF-8 text. Any of them may be gzipped (`.gz`).
        text: The column or key that holds the text; `text` by default.
        label: A column or key with the answer. Then the text is read and only the answer is
            learned.

    Raises:
        FileNotFoundError: If a file, folder or glob holds nothing.
        ValueError: If a file is empty, not what its ending says, or lacks the column; the
            message names the file and the line. If a column is named and nothing has any.

    Example:
        >>> len(load_text("python-docs")) > 50
        True
    """
    if not isinstance(source, (str, Path)):
        parts = [_load(part, text, label) for part in source]
        found, columns = join([part for part, _ in parts]), any(held for _, held in parts)
    else:
        found, columns = _load(source, text, label)
    if (text is not None or label is not None) and not columns:
        flag = f"text = {text!r}" if text is not None else f"label = {label!r}"
        raise ValueError(
            f"{flag} names a column or key, but {found.name} has none: it is plain text, read "
            "whole. Leave it out, or give a table (.jsonl, .csv, .tsv, .npz)."
        )
    return found


def _load(source: str | Path, text: str | None, label: str | None) -> tuple[TextData, bool]:
    """One source, and whether it has columns or keys."""
    name = str(source)
    if not name.strip():
        raise ValueError("a text has no name: got an empty path. An unset shell variable?")
    if name in BUILTIN or name in ASSETS:
        return load(name), False
    paths = _paths(name)
    if not paths:
        return _from_hub(name, text, label), True
    documents: list[Document] = []
    files: list[tuple[str, str]] = []
    for path in paths:
        data = path.read_bytes()
        if len(paths) > 1 and not data.strip():
            continue  # an empty `__init__.py` in a folder is no mistake
        read = READERS.get(suffix_of(path), read_text_file)
        documents += read(data, path, text, label)
        files.append((str(path), hashlib.sha256(data).hexdigest()))
    if not documents:
        raise ValueError(f"{name}: {len(paths)} file(s) and none holds any text.")
    found = TextData(name=name, documents=tuple(documents), files=tuple(files))
    return found, any(suffix_of(path) in READERS for path in paths)


def _paths(source: str) -> list[Path]:
    """The files a path or glob stands for; none if it can only be a data set's name."""
    path = Path(source).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [p for p in sorted(path.rglob("*")) if p.is_file() and not _hidden(p, path)]
        if not found:
            raise FileNotFoundError(f"the folder {source} holds no files.")
        return [p for p in found if _looks_like_text(p)] or found
    if any(sign in source for sign in "*?["):
        if matches := [Path(p) for p in sorted(glob.glob(str(path), recursive=True))]:
            return [p for p in matches if p.is_file()]
        if "*" in source or "?" in source:
            raise FileNotFoundError(f"no file matches {source!r} (from {Path.cwd()}).")
    known = suffix_of(path) in {*READERS, ".txt", ".md", ".rst", ".py", ".json"}
    local = path.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1
    if known or local or (path.parent != Path() and path.parent.is_dir()):
        raise FileNotFoundError(f"no file or folder at {source!r} (from {Path.cwd()}).")
    return []


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith((".", "__pycache__")) for part in path.relative_to(root).parts)


def _looks_like_text(path: Path) -> bool:
    if suffix_of(path) in READERS or path.suffix == ".gz":
        return True
    with path.open("rb") as stream:
        return b"\0" not in stream.read(4096)


def _from_hub(name: str, text: str | None, label: str | None) -> TextData:
    """A data set of the `datasets` library, for names that are neither files nor ours."""
    missing = (
        f"{name!r} is no file, folder or glob here (from {Path.cwd()}) and no data set of "
        f"spanwise. {nearest(name, names())}"
    )
    if not _HUB_NAME.fullmatch(name):
        raise FileNotFoundError(missing)
    try:
        import datasets
    except ImportError as error:
        raise FileNotFoundError(
            f"{missing} To read it from the hub: pip install 'spanwise[hub]'."
        ) from error
    path, _, split = name.partition("@")
    path, _, config = path.partition(":")
    try:
        rows: Any = datasets.load_dataset(path, config or None, split=split or "train")
    except Exception as error:  # the library raises a dozen kinds, offline ones among them
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FileNotFoundError(f"{missing} The datasets library says: {reason}") from error
    documents = [
        document_of(row, f"{name}, row {index}", text, label) for index, row in enumerate(rows)
    ]
    return TextData(
        name=name,
        documents=tuple(d for d in documents if d.plain.strip()),
        files=((name, str(getattr(rows, "_fingerprint", ""))),),
    )
