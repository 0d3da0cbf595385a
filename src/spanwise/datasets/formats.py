"""One reader per file format; each turns bytes into documents and names the line it fails on."""

import csv
import gzip
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from spanwise.datasets.resolve import nearest
from spanwise.datasets.text import Document, check_messages

Reader = Callable[[bytes, Path, str | None, str | None], list[Document]]


def suffix_of(path: Path) -> str:
    """The ending that tells the format, a `.gz` behind it left out."""
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def document_of(
    row: Mapping[str, Any], where: str, text: str | None = None, label: str | None = None
) -> Document:
    """A document from a record with `text`, `prompt` and `completion`, or `messages`.

    Raises:
        ValueError: If the record has none of these, or lacks the named `text` or `label` key.
    """
    if label is not None:
        prompt = str(_field(row, text or "text", where))
        return Document(text=str(_field(row, label, where)), prompt=prompt.rstrip() + "\n")
    if text is not None:
        return Document(text=_string(_field(row, text, where), text, where))
    if "messages" in row:
        return Document(messages=check_messages(row["messages"], where))
    if "prompt" in row and "completion" in row:
        prompt = _string(row["prompt"], "prompt", where)
        return Document(text=_string(row["completion"], "completion", where), prompt=prompt)
    if "text" in row:
        return Document(text=_string(row["text"], "text", where))
    raise ValueError(
        f"{where}: needs the key `text`, or `prompt` and `completion`, or `messages`; has "
        f"{', '.join(map(str, row)) or 'none'}. Name the key that holds the text with --text."
    )


def read_text_file(data: bytes, path: Path, text: str | None, label: str | None) -> list[Document]:
    """A whole file as one document."""
    content = _decode(data, path)
    if not content.strip():
        raise ValueError(f"{path} is empty: there is nothing to learn from it.")
    return [Document(content)]


def read_jsonl(data: bytes, path: Path, text: str | None, label: str | None) -> list[Document]:
    """One JSON object per line; blank lines are skipped."""
    documents = []
    for number, line in enumerate(_decode(data, path).splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: not valid JSON ({error}).") from error
        if isinstance(row, str):
            row = {"text": row}
        if not isinstance(row, dict):
            raise ValueError(f"{where}: expected an object, got {type(row).__name__}.")
        documents.append(document_of(row, where, text, label))
    if not documents:
        raise ValueError(f"{path} is empty: there is nothing to learn from it.")
    return documents


def read_csv(data: bytes, path: Path, text: str | None, label: str | None) -> list[Document]:
    """A table with a header line, one document per row."""
    # Long texts are the point here; the default limit is 128 KiB a cell.
    csv.field_size_limit(2**31 - 1)
    delimiter = "\t" if suffix_of(path) == ".tsv" else ","
    rows = csv.DictReader(io.StringIO(_decode(data, path), newline=""), delimiter=delimiter)
    documents = [document_of(row, f"{path}, line {rows.line_num}", text, label) for row in rows]
    if not documents:
        raise ValueError(f"{path} has no rows below its header: there is nothing to learn.")
    return documents


def read_npz(data: bytes, path: Path, text: str | None, label: str | None) -> list[Document]:
    """Strings under `text` (or the key named by `text`), or ready ids under `input_ids`."""
    import numpy as np

    try:
        arrays = np.load(io.BytesIO(_unzip(data, path)), allow_pickle=False)
        found = {key: arrays[key] for key in arrays.files}
    except (ValueError, OSError, EOFError, KeyError) as error:
        raise ValueError(f"{path}: not a readable .npz file ({error}).") from error
    key = text or next((k for k in ("text", "input_ids", "tokens") if k in found), None)
    if key is None or key not in found:
        raise ValueError(
            f"{path}: needs the array `text` or `input_ids`; has {', '.join(found) or 'none'}."
        )
    values = found[key]
    if np.issubdtype(values.dtype, np.integer):
        rows = values.reshape(-1, values.shape[-1]) if values.ndim else values.reshape(1, 1)
        return [Document(tokens=tuple(row.tolist())) for row in rows]
    if values.dtype.kind not in "US":
        raise ValueError(f"{path}: the array {key!r} holds {values.dtype}, not strings or ids.")
    answers = found.get(label) if label else None
    if label and (answers is None or len(answers) != len(values)):
        raise ValueError(f"{path}: no array {label!r} as long as {key!r}.")
    if answers is not None:
        pairs = zip(values.ravel().tolist(), answers.ravel().tolist(), strict=True)
        return [Document(text=str(a), prompt=f"{str(t).rstrip()}\n") for t, a in pairs]
    return [Document(str(value)) for value in values.ravel().tolist() if str(value).strip()]


READERS: dict[str, Reader] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".npz": read_npz,
}


def _unzip(data: bytes, path: Path) -> bytes:
    if path.suffix.lower() != ".gz":
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError) as error:
        raise ValueError(f"{path}: not a whole gzip file ({error}).") from error


def _decode(data: bytes, path: Path) -> str:
    data = _unzip(data, path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not UTF-8 text (byte {error.start} is {data[error.start]:#04x}). "
            "Convert it, or leave it out."
        ) from error


def _field(row: Mapping[str, Any], key: str, where: str) -> Any:
    if row.get(key) is None:
        known = [str(k) for k in row if k is not None]
        raise ValueError(f"{where}: no {key!r} here. {nearest(key, known)}")
    return row[key]


def _string(value: Any, key: str, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where}: `{key}` must be a string, got {type(value).__name__}.")
    return value
