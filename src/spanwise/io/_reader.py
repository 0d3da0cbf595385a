"""Tensors from files, folders and mappings, one at a time."""

import hashlib
import json
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from spanwise.errors import CorruptFileError
from spanwise.io._header import NAMES, Slot, read_header

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_SINGLE = (
    "model.safetensors",
    "adapter_model.safetensors",
    "diffusion_pytorch_model.safetensors",
)
_PIECE = 2**24


class TensorReader(Mapping[str, Tensor]):
    """A mapping from names to tensors that are read when asked for, and not kept.

    Attributes:
        metadata: Text by key: of the file, or of the first shard.
    """

    metadata: dict[str, str]

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""

    @abstractmethod
    def dtype(self, name: str) -> torch.dtype:
        """Dtype of a tensor, without reading it."""

    @abstractmethod
    def rows(self, name: str, start: int, stop: int, into: Tensor | None = None) -> Tensor:
        """Rows `start` to `stop` (exclusive) of a tensor's first axis, without the others.

        Args:
            name: Which tensor.
            start: The first row.
            stop: The row after the last one.
            into: Bytes (uint8, on the CPU, at least as many as the rows have) in which they may be
                put, where they have to be put somewhere.

        Raises:
            ValueError: If the tensor is a scalar, or not 0 <= start <= stop <= rows.
        """

    @abstractmethod
    def _pieces(self, name: str) -> Iterator[memoryview]:
        """The bytes of a tensor, a few at a time."""

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        total = 0
        for name in self:
            total += torch.Size(self.shape(name)).numel() * self.dtype(name).itemsize
        return total

    def digest(self) -> str:
        """SHA-256 over names, dtypes, shapes and bytes, 64 hexadecimal digits.

        It does not depend on the order of tensors, on sharding, or on metadata.
        """
        total = hashlib.sha256()
        for name in sorted(self):
            kind = NAMES.get(self.dtype(name), str(self.dtype(name)))
            total.update(json.dumps([name, kind, list(self.shape(name))]).encode() + b"\n")
            for piece in self._pieces(name):
                total.update(piece)
        return total.hexdigest()

    def _check_rows(self, name: str, start: int, stop: int) -> None:
        shape = self.shape(name)
        if not shape or not 0 <= start <= stop <= shape[0]:
            raise ValueError(
                f"rows {start} to {stop} of {name!r} are out of range: its shape is {shape}."
            )


class FileReader(TensorReader):
    """Tensors in one or several safetensors files. No file stays open between reads."""

    def __init__(self, slots: dict[str, Slot], metadata: dict[str, str]) -> None:
        self._slots = slots
        self.metadata = metadata

    def __getitem__(self, name: str) -> Tensor:
        slot = self._slots[name]
        return _read(slot, slot.start, slot.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)

    @override
    def __contains__(self, name: object) -> bool:
        return name in self._slots  # the mixin's would read the tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return self._slots[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """Dtype of a tensor, without reading it."""
        return self._slots[name].dtype

    def rows(self, name: str, start: int, stop: int, into: Tensor | None = None) -> Tensor:
        """Rows `start` to `stop` (exclusive) of a tensor's first axis, without the others."""
        self._check_rows(name, start, stop)
        slot = self._slots[name]
        row = slot.nbytes // slot.shape[0] if slot.shape[0] else 0
        return _read(slot, slot.start + start * row, (stop - start, *slot.shape[1:]), into)

    def _pieces(self, name: str) -> Iterator[memoryview]:
        slot = self._slots[name]
        for begin in range(0, slot.nbytes, _PIECE):
            piece = _read_bytes(slot, slot.start + begin, min(_PIECE, slot.nbytes - begin))
            yield piece.numpy().data


class MappingReader(TensorReader):
    """The same interface around tensors that are in memory, or behind another mapping."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self.metadata = {}

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name].detach()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    @override
    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        """Dtype of a tensor."""
        return self._tensors[name].dtype

    def rows(self, name: str, start: int, stop: int, into: Tensor | None = None) -> Tensor:
        """Rows `start` to `stop` (exclusive) of a tensor's first axis; where they are."""
        del into
        self._check_rows(name, start, stop)
        return self[name][start:stop]

    def _pieces(self, name: str) -> Iterator[memoryview]:
        yield tensor_bytes(self[name])


class ReaderAround(TensorReader):
    """Another reader's tensors as they are; subclasses change some of them.

    Args:
        tensors: What is read.
    """

    def __init__(self, tensors: TensorReader) -> None:
        self._tensors = tensors
        self.metadata = {}

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    @override
    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._tensors.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        """Dtype of a tensor."""
        return self._tensors.dtype(name)

    def rows(self, name: str, start: int, stop: int, into: Tensor | None = None) -> Tensor:
        """Rows `start` to `stop` (exclusive) of a tensor's first axis."""
        return self._tensors.rows(name, start, stop, into)

    def _pieces(self, name: str) -> Iterator[memoryview]:
        yield tensor_bytes(self[name])


def open_tensors(source: "str | Path | Mapping[str, Tensor]") -> TensorReader:
    """Open tensors for reading one at a time, by offset.

    Args:
        source: A safetensors file, a transformers or PEFT folder (`model.safetensors`, or the
            shards of `model.safetensors.index.json`), an index file, or a mapping of tensors.

    Returns:
        A mapping that holds headers only; a tensor is read when it is asked for.

    Raises:
        FileNotFoundError: If nothing is there, or a shard is missing.
        CorruptFileError: If a header is damaged or a file shorter or longer than its header says;
            headers of files that spanwise wrote carry a digest of themselves.
        ValueError: If `source` holds no safetensors.
        TypeError: If `source` is neither a path nor a mapping of tensors.
    """
    if isinstance(source, TensorReader):
        return source
    if isinstance(source, Mapping):
        return MappingReader(source)
    if not isinstance(source, (str, Path)):
        raise TypeError(
            "tensors come from a safetensors file, a folder or a mapping, got "
            f"{type(source).__name__}."
        )
    path = Path(source)
    if path.is_dir():
        path = _in_folder(path)
    if not path.exists():
        raise FileNotFoundError(2, "No safetensors file or folder", str(path))
    if path.name.endswith(".index.json"):
        return _sharded(path)
    if path.suffix in PICKLED:
        raise ValueError(
            f"{path} is a pickled checkpoint, which runs code when it is read. Load it with "
            "torch.load(..., weights_only=True) and save it with spanwise.io.save_tensors."
        )
    return FileReader(*read_header(path))


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor in row-major order; copies only what is strided or on a device."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    if not flat.numel():  # whose stride may be 0, so that it has no view as bytes
        return memoryview(b"")
    return flat.view(torch.uint8).numpy().data


def _in_folder(folder: Path) -> Path:
    """The file of a folder that holds its weights, by the names that the ecosystem uses."""
    for name in _SINGLE:
        for candidate in (folder / name, folder / f"{name}.index.json"):
            if candidate.is_file():
                return candidate
    found = sorted(folder.glob("*.safetensors.index.json")) or sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(path.name for path in found[:4])
        raise ValueError(f"{folder} holds several safetensors files ({names}): name one of them.")
    inside = sorted(folder.iterdir())
    pickled = [path.name for path in inside if path.suffix in PICKLED]
    below = [path for path in inside if path.is_dir() and any(path.glob("*.safetensors"))]
    if pickled:
        hint = f" {pickled[0]} is pickled: convert it to safetensors first."
    elif below:
        best = next((path for path in below if path.name == "model"), below[-1])
        hint = f" Did you mean {best}?"
    else:
        hint = " A model's folder has model.safetensors, or shards and their index."
    raise ValueError(f"{folder} holds no safetensors file.{hint}")


def _sharded(index: Path) -> FileReader:
    try:
        weight_map: Any = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = {name: str(file) for name, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptFileError(
            f"{index} is damaged: expected JSON with a weight_map, found {error!r}. Copy it again."
        ) from error
    headers = {}
    for file in sorted(set(shards.values())):
        if Path(file).name != file:
            raise CorruptFileError(f"{index} names a shard outside its folder: {file!r}.")
        if not (index.parent / file).is_file():
            missing = "A shard that the index names is missing"
            raise FileNotFoundError(2, missing, str(index.parent / file))
        headers[file] = read_header(index.parent / file)
    slots = {}
    for name, file in shards.items():
        if name not in headers[file][0]:
            raise CorruptFileError(
                f"{index.parent / file} is not the shard that {index.name} expects: it lacks "
                f"{name!r}."
            )
        slots[name] = headers[file][0][name]
    first = min(headers, default="")
    return FileReader(slots, headers[first][1] if headers else {})


def _read(slot: Slot, start: int, shape: tuple[int, ...], into: Tensor | None = None) -> Tensor:
    count = math.prod(shape) * slot.dtype.itemsize
    return _read_bytes(slot, start, count, into).view(slot.dtype).view(shape)


def _read_bytes(slot: Slot, start: int, count: int, into: Tensor | None = None) -> Tensor:
    """`count` bytes from an offset, straight into the memory of a tensor."""
    held = torch.empty(count, dtype=torch.uint8) if into is None else into[:count]
    view = held.numpy().data
    done = 0
    with FileIO(slot.path) as stream:
        stream.seek(start)
        while done < count:  # one call moves at most 2 GiB
            got = stream.readinto(view[done : done + 2**30])
            if not got:
                raise CorruptFileError(
                    f"{slot.path} was truncated after it was opened (expected {count} bytes at "
                    f"offset {start}, found {done})."
                )
            done += got
    return held
