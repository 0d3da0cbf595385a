"""The header of a safetensors file: 8 bytes of length, JSON, then the tensors without gaps."""

import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spanwise.errors import CorruptFileError

DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}

CHECK = "spanwise.header"
"""Metadata key of the header's own digest: a flipped bit in a name is valid JSON otherwise."""

_LONGEST = 100_000_000  # what the reference reader accepts


@dataclass(frozen=True)
class Slot:
    """Where a tensor is."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """Offset of the first byte in the file."""

    @property
    def nbytes(self) -> int:
        """Length in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(path: Path) -> tuple[dict[str, Slot], dict[str, str]]:
    """Slots by name, in the order of the file, and the metadata; every byte accounted for.

    Raises:
        CorruptFileError: If the header is damaged or the file is not as long as it promises.
    """
    size = os.path.getsize(path)
    with path.open("rb") as stream:
        prefix = stream.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8:
            raise _corrupt(path, "it is truncated", 8, size)
        if length > _LONGEST or length < 2:
            raise CorruptFileError(
                f"{path} is no safetensors file, or is damaged: its first 8 bytes promise a header "
                f"of {length} bytes; expected 2 to {_LONGEST}."
            )
        if 8 + length > size:
            raise _corrupt(path, "it is truncated within its header", 8 + length, size)
        text = stream.read(length)
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_no_duplicates)
        metadata = _metadata(header.pop("__metadata__", {}))
        slots = {n: _slot(path, n, entry, 8 + length) for n, entry in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        detail = " ".join(str(error).split())
        raise CorruptFileError(
            f"{path} has a damaged header ({length} bytes at offset 8): {detail}. Copy it again."
        ) from error
    end = 8 + length
    for name, slot in sorted(slots.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if slot.start != end:
            raise CorruptFileError(
                f"{path} has a damaged header: {name!r} begins at byte {slot.start}, expected "
                f"{end}. Copy it again."
            )
        end += slot.nbytes
    if end != size:
        what = "it is truncated" if size < end else "bytes follow its last tensor"
        raise _corrupt(path, what, end, size)
    _compare_check(path, header, metadata)
    return slots, metadata


def format_header(
    entries: dict[str, tuple[torch.dtype, tuple[int, ...]]], metadata: dict[str, str]
) -> bytes:
    """The bytes before the first tensor, for tensors written in the order of `entries`."""
    header: dict[str, Any] = {}
    offset = 0
    for name, (dtype, shape) in entries.items():
        end = offset + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    meta = {**metadata, CHECK: _check(header, metadata)}
    text = json.dumps({"__metadata__": meta, **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text


def _check(header: dict[str, Any], metadata: dict[str, str]) -> str:
    text = json.dumps([header, metadata], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _compare_check(path: Path, header: dict[str, Any], metadata: dict[str, str]) -> None:
    """Take the header's digest out of the metadata and compare it."""
    found = metadata.pop(CHECK, None)
    if found is not None and found != _check(header, metadata):
        raise CorruptFileError(
            f"{path} has a damaged header: expected its sha256 to be {found}, found "
            f"{_check(header, metadata)}. Copy it again."
        )
    for key, value in metadata.items():
        others = {k: v for k, v in metadata.items() if k != key}
        # The damage may have hit the key itself; its value then still fits the rest.
        if len(value) == 64 and value == _check(header, others):
            raise CorruptFileError(
                f"{path} has a damaged header: expected the metadata key {CHECK!r}, found "
                f"{key!r}. Copy it again."
            )


def _slot(path: Path, name: str, entry: Any, base: int) -> Slot:
    dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if len(entry) != 3:
        raise ValueError(f"{name!r} has unknown keys: {sorted(entry)}")
    if dtype not in DTYPES:
        raise ValueError(f"{name!r} has the unknown dtype {dtype!r}")
    numbers = [*shape, begin, end]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(f"{name!r} has a shape or offsets that are no counts: {numbers}")
    slot = Slot(path, DTYPES[dtype], tuple(shape), base + begin)
    if slot.nbytes != end - begin:
        raise ValueError(
            f"{name!r} of shape {shape} and dtype {dtype}: expected {slot.nbytes} bytes, found "
            f"offsets for {end - begin}"
        )
    return slot


def _metadata(held: Any) -> dict[str, str]:
    if not isinstance(held, dict) or not all(isinstance(value, str) for value in held.values()):
        raise ValueError("its metadata is not a map from text to text")
    return held


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name appears twice")
    return found


def _corrupt(path: Path, what: str, expected: int, found: int) -> CorruptFileError:
    return CorruptFileError(
        f"{path} is damaged: {what} (expected {expected} bytes, found {found}). Copy it again."
    )
