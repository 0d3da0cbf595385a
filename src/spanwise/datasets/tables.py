"""Numbers from files: tables with named columns, and arrays of any shape."""

import csv
import gzip
import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spanwise.datasets.formats import suffix_of
from spanwise.datasets.resolve import nearest
from spanwise.io import open_tensors, write_bytes

Array = NDArray[Any]

ARRAYS = (".npy", ".npz", ".safetensors")
TABLES = (".csv", ".tsv", ".txt")
MISSING = ("", "na", "n/a", "nan", "null", "none", "?")
"""Cells that hold no value, in lower case."""
_USUAL = ("X", "x", "data", "features", "embeddings", "T", "arr_0")
"""The array of a file with several that is meant when none is named."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Samples in rows, features in named columns."""

    values: Array
    """`(n, d)`, float64, or float32 where the file has that."""
    columns: tuple[str, ...]
    """What the features are called: the header's names, or x0, x1, ..."""
    apart: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Columns that are no features, as text: names, dates, known labels."""
    dropped: tuple[str, ...] = ()
    """Columns that were left out."""
    path: Path
    digest: str
    """SHA-256 of the file."""

    def __len__(self) -> int:
        return len(self.values)


def load_table(
    path: str | Path,
    *,
    apart: Sequence[str] = (),
    drop: Sequence[str] = (),
    key: str | None = None,
    lenient: bool = False,
) -> Table:
    r"""Samples and features from a file.

    Args:
        path: `.csv`, `.tsv` or `.txt`, with or without a header, separated by commas, semicolons
            or tabs; `.npy`, `.npz` or `.safetensors` with a matrix `(n, d)` or a vector. All but
            the last may be gzipped (`.gz`).
        apart: Columns to keep as text, out of the features. Of an npz or safetensors file: arrays
            of n values beside the matrix.
        drop: Columns to leave out.
        key: Which array of an npz or safetensors file holds the features.
        lenient: Whether `apart` and `drop` may name columns that the file lacks, as one of two
            files may.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is empty or not what its ending says, a column is unknown, or a cell is
            no finite number; the message names the line, the column and the way out.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.csv"
        >>> _ = path.write_text("id,height,weight\na,1.5,50\nb,1.8,75\n")
        >>> load_table(path, apart=["id"]).columns
        ('height', 'weight')
    """
    path = Path(path).expanduser()
    data = _bytes(path)
    digest = hashlib.sha256(data).hexdigest()
    if suffix_of(path) in ARRAYS:
        values, columns, kept, names = _from_arrays(path, data, apart, drop, key, lenient)
    elif suffix_of(path) in TABLES:
        values, columns, kept, names = _from_text(path, data, apart, drop, lenient)
    else:
        raise ValueError(
            f"{path}: {suffix_of(path) or 'a file without an ending'} is no table that is read "
            f"here; expected one of {', '.join((*TABLES, *ARRAYS))}."
        )
    if not values.size:
        raise ValueError(
            f"{path} holds no numbers: {values.shape[0]} rows, {len(columns)} columns."
        )
    dropped = tuple(name for name in drop if name in names)
    return Table(
        values=values, columns=columns, apart=kept, dropped=dropped, path=path, digest=digest
    )


def load_array(path: str | Path, *, key: str | None = None) -> Array:
    """An array of any shape from a `.npy`, `.npz` or `.safetensors` file, or a table's values.

    Args:
        path: The file.
        key: Which array, where there are several.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no finite numbers, several arrays and no key was given, or pickled
            objects, which are never loaded.
    """
    path = Path(path).expanduser()
    if suffix_of(path) not in ARRAYS:
        return load_table(path, key=key).values
    arrays = _arrays(path, _bytes(path))
    return _numbers(path, _chosen(path, arrays, key), key)


def write_table(path: str | Path, columns: Mapping[str, Sequence[Any] | Array]) -> Path:
    """Write columns of equal length as CSV, whole or not at all.

    Floats are written so that reading them gives the same number.

    Args:
        path: The file to create or replace.
        columns: Header -> cells.
    """
    rows = zip(*(_plain(cells) for cells in columns.values()), strict=True)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return write_bytes(path, text.getvalue().encode("utf-8"))


def write_arrays(path: str | Path, arrays: Mapping[str, Array]) -> Path:
    """Write arrays as `.npz`, whole or not at all."""
    held = io.BytesIO()
    np.savez_compressed(held, allow_pickle=False, **arrays)
    return write_bytes(path, held.getbuffer())


def _bytes(path: Path) -> bytes:
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name the file that holds the numbers.")
    if not path.is_file():
        raise FileNotFoundError(2, "No such file", str(path))
    data = path.read_bytes()
    if path.suffix.lower() == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError) as error:
            raise ValueError(f"{path} is no whole gzip file ({error}). Copy it again.") from error
    if not data:
        raise ValueError(f"{path} is empty.")
    return data


def _from_text(
    path: Path, data: bytes, apart: Sequence[str], drop: Sequence[str], lenient: bool
) -> tuple[Array, tuple[str, ...], dict[str, tuple[str, ...]], tuple[str, ...]]:
    """Values, their columns, those apart, and the names of all columns."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}). Save it as UTF-8.") from error
    lines: list[tuple[int, list[str]]] = []
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=_separator(text), skipinitialspace=True
    )
    for cells in reader:
        if any(cell.strip() for cell in cells):
            lines.append((reader.line_num, [cell.strip() for cell in cells]))
    if not lines:
        raise ValueError(f"{path} is empty: it holds blank lines only.")
    header = None
    named = [cell for cell in lines[0][1] if cell]  # an index may have no name
    if not any(_is_number(cell) or cell.lower() in MISSING for cell in named):
        header = lines.pop(0)[1]
    width = len(header or lines[0][1])
    names = tuple(header) if header else tuple(f"x{i}" for i in range(width))
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise ValueError(f"{path}: two columns are called {repeated!r}. Rename one of them.")
    if "" in names and "" not in {*apart, *drop}:
        raise ValueError(
            f"{path}: the first line, taken for a header, has no name for column "
            f"{names.index('') + 1}. If it is an index, leave it out (drop, --drop ''), else name "
            "it."
        )
    apart = _known(path, apart, drop, names, lenient)
    for number, cells in lines:
        if len(cells) != width:
            raise ValueError(
                f"{path}, line {number}: {len(cells)} cells, expected {width}"
                f"{' as in the header' if header else ' as in the first line'}."
            )
    chosen = [i for i, name in enumerate(names) if name not in {*apart, *drop}]
    values = np.empty((len(lines), len(chosen)))
    for row, (number, cells) in zip(values, lines, strict=True):
        try:
            row[:] = [float(cells[i]) for i in chosen]
        except ValueError:
            column = next(i for i in chosen if not _is_number(cells[i]))
            raise _bad_cell(path, number, names[column], cells[column]) from None
    if not np.isfinite(values).all():
        row, column = (int(i) for i in np.argwhere(~np.isfinite(values))[0])
        number, cells = lines[row]
        raise _bad_cell(path, number, names[chosen[column]], cells[chosen[column]])
    kept = {name: tuple(cells[names.index(name)] for _, cells in lines) for name in apart}
    return values, tuple(names[i] for i in chosen), kept, names


def _separator(text: str) -> str:
    first = text.strip().partition("\n")[0]
    mark = max(",;\t", key=first.count)
    return " " if mark not in first and " " in first else mark


def _from_arrays(
    path: Path,
    data: bytes,
    apart: Sequence[str],
    drop: Sequence[str],
    key: str | None,
    lenient: bool,
) -> tuple[Array, tuple[str, ...], dict[str, tuple[str, ...]], tuple[str, ...]]:
    arrays = _arrays(path, data)
    values = _numbers(path, _chosen(path, arrays, key, other=apart), key)
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2:
        raise ValueError(
            f"{path} holds an array of shape {values.shape}; expected samples in rows and features "
            "in columns, (n, d)."
        )
    columns = tuple(f"x{i}" for i in range(values.shape[1]))
    names = (*columns, *(name for name in arrays if name))
    apart = _known(path, apart, drop, names, lenient)
    kept: dict[str, tuple[str, ...]] = {}
    for name in apart:
        if name in columns:
            kept[name] = tuple(str(value) for value in values[:, columns.index(name)])
            continue
        beside = np.asarray(arrays[name])
        if beside.shape != (len(values),):
            raise ValueError(
                f"{path}: {name!r} has shape {beside.shape}; expected one value for each of the "
                f"{len(values)} samples."
            )
        kept[name] = tuple(str(value) for value in beside)
    chosen = [i for i, name in enumerate(columns) if name not in {*apart, *drop}]
    return np.ascontiguousarray(values[:, chosen]), tuple(columns[i] for i in chosen), kept, names


def _arrays(path: Path, data: bytes) -> dict[str, Any]:
    """Arrays by name; that of an npy file has none."""
    suffix = suffix_of(path)
    if suffix == ".safetensors":
        reader = open_tensors(path)
        return {name: (reader[name].float() if reader.dtype(name).itemsize == 2 else reader[name])
                .numpy() for name in reader}  # fmt: skip
    try:
        loaded = np.load(io.BytesIO(data), allow_pickle=False)
        if suffix == ".npy":
            return {"": loaded}
        return {name: loaded[name] for name in loaded.files}
    except (ValueError, OSError, EOFError, KeyError) as error:
        hint = (
            "it holds Python objects, which are never loaded: save numbers"
            if "pickle" in str(error).lower()
            else f"it is damaged or no {suffix} file ({error})"
        )
        raise ValueError(f"{path}: {hint}.") from error


def _chosen(
    path: Path, arrays: Mapping[str, Any], key: str | None, other: Sequence[str] = ()
) -> Any:
    names = [name for name in arrays if name and name not in other]
    if key is not None and "" in arrays:
        raise ValueError(
            f"{path} holds one array, which has no name: leave key = {key!r} out (key, --key)."
        )
    if key is not None:
        if key not in names:
            raise ValueError(f"{path} holds no array {key!r}. {nearest(key, names)}")
        return arrays[key]
    if "" in arrays:
        return arrays[""]
    if len(names) == 1:
        return arrays[names[0]]
    usual = next((name for name in _USUAL if name in names), None)
    if usual is None:
        raise ValueError(
            f"{path} holds {len(names)} arrays ({', '.join(names[:6])}): name the one that is "
            "meant (key, --key)."
        )
    return arrays[usual]


def _numbers(path: Path, values: Any, key: str | None) -> Array:
    found = np.asarray(values)
    if found.dtype.kind not in "fiub":
        raise ValueError(
            f"{path}: {key or 'the array'} has dtype {found.dtype}; expected real numbers."
        )
    if found.dtype not in (np.float32, np.float64):
        found = found.astype(np.float64)
    if not np.isfinite(found).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(found))[0])
        raise ValueError(
            f"{path} holds NaN or infinity, first at index {place}. Drop or impute those samples."
        )
    return found


def _known(
    path: Path, apart: Sequence[str], drop: Sequence[str], names: Sequence[str], lenient: bool
) -> Sequence[str]:
    """Those of `apart` that the file has, which are all of them unless `lenient`."""
    if lenient:
        return [name for name in apart if name in names]
    for name in (*apart, *drop):
        if name not in names:
            raise ValueError(f"{path} has no column {name!r}. {nearest(name, list(names))}")
    return apart


def _bad_cell(path: Path, line: int, column: str, cell: str) -> ValueError:
    if cell.lower() in MISSING or _is_number(cell):
        what = "is empty" if not cell else f"is {cell!r}"
        way = "fill it in, remove the line, or leave the column out (drop, --drop)"
    else:
        what = f"is {cell!r}, which is no number"
        way = "leave the column out (drop, --drop), or keep it as text beside (apart, --keep)"
    return ValueError(f"{path}, line {line}: column {column!r} {what}; {way}.")


def _is_number(cell: str) -> bool:
    try:
        return not math.isnan(float(cell))
    except ValueError:
        return False


def _plain(cells: Sequence[Any] | Array) -> list[Any]:
    found = cells.tolist() if isinstance(cells, np.ndarray) else list(cells)
    return ["" if isinstance(cell, float) and math.isnan(cell) else cell for cell in found]
