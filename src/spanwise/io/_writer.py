"""Safetensors files and sharded folders, written whole or not at all."""

import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from spanwise.io._atomic import atomic_file, atomic_folder, write_json
from spanwise.io._header import CHECK, NAMES, format_header
from spanwise.io._reader import tensor_bytes


def save_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Path:
    """Write a safetensors file, whole or not at all.

    Any reader of the format can open it. The metadata gets one more key, a digest of the header,
    which `open_tensors` checks and hides.

    Args:
        path: The file to create or replace; missing parent folders are made.
        tensors: Name -> tensor, on any device and in any stride; a lazy mapping is asked for one
            tensor at a time, but twice for each.
        metadata: Text by key.

    Returns:
        `path`.

    Raises:
        ValueError: If there is nothing to write, or a name or key is reserved.
        TypeError: If a value is not a dense tensor of a dtype the format knows, or metadata is
            not text.
        OSError: If writing fails, for instance on a full disk; `path` is then as it was.
    """
    metadata = _checked_metadata(metadata)
    if not tensors:
        raise ValueError(f"there is no tensor to write to {path}.")
    entries = {name: _checked(name, tensors[name]) for name in tensors}
    # Wide dtypes first, as the reference writer does: every tensor is then aligned to its dtype.
    order = sorted(entries, key=lambda name: (-entries[name][0].itemsize, name))
    with atomic_file(path) as stream:
        stream.write(format_header({name: entries[name] for name in order}, metadata))
        for name in order:
            stream.write(tensor_bytes(tensors[name]))
    return Path(path)


class ShardedWriter(AbstractContextManager["ShardedWriter"]):
    """A folder of safetensors shards in the layout of transformers, whole or not at all.

    Tensors go to disk as they come, so memory holds one at a time; the folder appears when the
    body ends without an error. A single shard is called `model.safetensors` and needs no index.

    Args:
        folder: The folder to create.
        max_shard_bytes: Bytes of tensors in a file at most; a larger tensor gets its own.
        metadata: Text by key, written to every shard; `format` is `"pt"` unless given, because
            transformers asks for it.
        overwrite: Whether a folder that is there already is replaced.

    Attributes:
        staging: Within the body, where other files of the folder (a config, a tokenizer) go.

    Raises:
        ValueError: If `max_shard_bytes` is not positive.

    Example:
        >>> with ShardedWriter("merged") as out:
        ...     for name in base:
        ...         out.add(name, base[name] + delta[name])
    """

    staging: Path

    def __init__(
        self,
        folder: str | Path,
        max_shard_bytes: float = 5e9,
        *,
        metadata: Mapping[str, str] | None = None,
        overwrite: bool = False,
    ) -> None:
        if not max_shard_bytes > 0:
            raise ValueError(f"max_shard_bytes must be positive, got {max_shard_bytes}.")
        self.max_shard_bytes = int(max_shard_bytes)
        self.metadata = {"format": "pt", **_checked_metadata(metadata)}
        self._folder = atomic_folder(folder, overwrite=overwrite)
        self._shards: list[dict[str, tuple[torch.dtype, tuple[int, ...]]]] = []
        self._names: set[str] = set()
        self._total = self._filled = 0

    def __enter__(self) -> "ShardedWriter":
        self.staging = self._folder.__enter__()
        return self

    def add(self, name: str, tensor: Tensor) -> None:
        """Append a tensor.

        Raises:
            ValueError: If the name was added before or is reserved, or outside the `with` body.
            TypeError: If it is not a dense tensor of a dtype the format knows.
        """
        if not hasattr(self, "staging"):
            raise ValueError("add tensors inside `with ShardedWriter(...) as out:`.")
        entry = _checked(name, tensor)
        if name in self._names:
            raise ValueError(f"{name!r} was added before: every name appears once.")
        size = tensor.numel() * tensor.element_size()
        if not self._shards or (self._filled and self._filled + size > self.max_shard_bytes):
            self._finish_shard()
            self._shards.append({})
            self._filled = 0
        # The header precedes the tensors but is known last: they wait in a file of their own.
        with self._body.open("ab") as stream:
            stream.write(tensor_bytes(tensor))
        self._shards[-1][name] = entry
        self._names.add(name)
        self._filled += size
        self._total += size

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        if error is None:
            try:
                self._finish()
            except BaseException as failure:
                self._folder.__exit__(type(failure), failure, failure.__traceback__)
                raise
        return self._folder.__exit__(kind, error, trace)

    @property
    def _body(self) -> Path:
        return self.staging / ".body"

    def _shard(self, index: int) -> Path:
        return self.staging / f".shard-{index}"

    def _finish_shard(self) -> None:
        if self._shards:
            with self._shard(len(self._shards)).open("xb") as stream, self._body.open("rb") as body:
                stream.write(format_header(self._shards[-1], self.metadata))
                shutil.copyfileobj(body, stream, 2**24)
            self._body.unlink()

    def _finish(self) -> None:
        """Name the shards, now that their number is known, and write the index."""
        if not self._shards:
            raise ValueError("no tensor was added: there is nothing to write.")
        self._finish_shard()
        count = len(self._shards)
        if count == 1:
            self._shard(1).rename(self.staging / "model.safetensors")
            return
        weight_map = {}
        for index, entries in enumerate(self._shards, start=1):
            file = f"model-{index:05d}-of-{count:05d}.safetensors"
            self._shard(index).rename(self.staging / file)
            weight_map.update(dict.fromkeys(entries, file))
        index_json = {
            "metadata": {"total_size": self._total},
            "weight_map": dict(sorted(weight_map.items())),
        }
        write_json(self.staging / "model.safetensors.index.json", index_json)


def _checked(name: str, tensor: Tensor) -> tuple[torch.dtype, tuple[int, ...]]:
    """Dtype and shape, after making sure that the format can hold the tensor."""
    if not isinstance(name, str) or not name or name == "__metadata__":
        raise ValueError(f"a tensor's name must be text other than '__metadata__', got {name!r}.")
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name!r} must be a torch.Tensor, got {type(tensor).__name__}.")
    if tensor.layout != torch.strided or tensor.device.type == "meta":
        raise TypeError(
            f"{name!r} must be a dense tensor with values, got layout {tensor.layout} on "
            f"{tensor.device}. Convert it with .to_dense() or load it first."
        )
    if tensor.dtype not in NAMES:
        raise TypeError(f"{name!r} has dtype {tensor.dtype}, which safetensors does not know.")
    return tensor.dtype, tuple(tensor.shape)


def _checked_metadata(metadata: Mapping[str, str] | None) -> dict[str, str]:
    found = dict(metadata or {})
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"metadata must map text to text, got {key!r}: {value!r}.")
    if CHECK in found:
        raise ValueError(f"the metadata key {CHECK!r} is reserved for the header's digest.")
    return found
