"""A sharded folder that several processes fill, and go on with after a kill.

The shards are laid out before the first byte: which tensors, where in the file. They are written
into a hidden folder beside the target, each under a name that nothing reads until it is whole, and
the folder takes the target's name when the last one is there.
"""

import contextlib
import json
import math
import os
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spanwise.io._atomic import _replace_folder, _sync, _sync_tree, write_json
from spanwise.io._header import format_header
from spanwise.io._reader import tensor_bytes

Entries = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]

STALE = 120.0
"""Seconds without a sign of life after which a claim counts as given up."""
WAIT = 0.2
"""Seconds between two looks at what others are doing."""

_JOB = ".job.json"


@dataclass(frozen=True)
class Shard:
    """One file of the folder and what it will hold."""

    file: str
    entries: Entries

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(math.prod(shape) * dtype.itemsize for dtype, shape in self.entries.values())


def plan_shards(entries: Entries, max_shard_bytes: float) -> list[Shard]:
    """Tensors in their order, as many to a file as fit; a larger one gets its own.

    Raises:
        ValueError: If there are no tensors, or `max_shard_bytes` is not positive.
    """
    if not max_shard_bytes > 0:
        raise ValueError(f"max_shard_bytes must be positive, got {max_shard_bytes}.")
    if not entries:
        raise ValueError("there is no tensor to write.")
    parts: list[dict[str, tuple[torch.dtype, tuple[int, ...]]]] = []
    filled = 0
    for name, (dtype, shape) in entries.items():
        size = math.prod(shape) * dtype.itemsize
        if not parts or (filled and filled + size > max_shard_bytes):
            parts.append({})
            filled = 0
        parts[-1][name] = (dtype, shape)
        filled += size
    if len(parts) == 1:
        return [Shard("model.safetensors", parts[0])]
    count = len(parts)
    return [
        Shard(f"model-{index:05d}-of-{count:05d}.safetensors", part)
        for index, part in enumerate(parts, start=1)
    ]


class ShardFile:
    """One shard while it is written: tensors go to their places in any order.

    Args:
        folder: Where it will lie.
        shard: What it will hold.
        metadata: Text by key.
    """

    def __init__(self, folder: Path, shard: Shard, metadata: Mapping[str, str]) -> None:
        self.shard = shard
        self._target = folder / shard.file
        self._staged = folder / f".{shard.file}.{secrets.token_hex(6)}.tmp"
        # Wide dtypes first: every tensor is then aligned to its dtype.
        order = sorted(shard.entries, key=lambda name: (-shard.entries[name][0].itemsize, name))
        header = format_header({name: shard.entries[name] for name in order}, dict(metadata))
        self._places: dict[str, int] = {}
        place = len(header)
        for name in order:
            self._places[name] = place
            dtype, shape = shard.entries[name]
            place += math.prod(shape) * dtype.itemsize
        self._stream = self._staged.open("xb", buffering=0)
        try:
            with self._named():
                self._stream.write(header)
                self._stream.truncate(place)
        except BaseException:
            self.discard()
            raise

    def add(self, name: str, tensor: Tensor) -> None:
        """Write a tensor to its place.

        Raises:
            ValueError: If the shard has no place for it, or it was written before.
        """
        expected = self.shard.entries.get(name)
        if expected != (tensor.dtype, tuple(tensor.shape)) or name not in self._places:
            raise ValueError(
                f"{self.shard.file} expects {name!r} once, as {expected}, got "
                f"{(tensor.dtype, tuple(tensor.shape))}."
            )
        data, place = tensor_bytes(tensor), self._places.pop(name)
        with self._named():
            self._stream.seek(place)
            done = 0
            while done < len(data):  # one call moves at most 2 GiB
                done += self._stream.write(data[done : done + 2**30]) or 0

    def close(self) -> None:
        """Sync the file and give it its name.

        Raises:
            ValueError: If tensors are missing.
        """
        if self._places:
            raise ValueError(f"{self.shard.file} still lacks {next(iter(self._places))!r}.")
        with self._named():
            os.fsync(self._stream.fileno())
            self._stream.close()
        os.replace(self._staged, self._target)
        _sync(self._target.parent)

    def discard(self) -> None:
        """Delete what was written, unless it is whole."""
        self._stream.close()
        self._staged.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Say which file it was: what a failed write raises does not."""
        try:
            yield
        except OSError as error:
            if error.errno is None or error.filename is not None:
                raise
            raise type(error)(error.errno, error.strerror, str(self._target)) from error


class SharedFolder:
    """The folder of one job, filled by one or several processes or machines.

    Args:
        folder: Where the result will lie.
        shards: From `plan_shards`, the same in every process.
        job: What identifies the job, JSON; the rest of another job is refused.
        metadata: Text by key, written to every shard.
        overwrite: Whether a folder that is there already is replaced at the end.

    Attributes:
        staging: The hidden folder that is filled.
        reused: Shards that were there already.

    Raises:
        FileExistsError: If `folder` is there and not empty, and `overwrite` is False.
        ValueError: If another job has left an unfinished folder.
    """

    def __init__(
        self,
        folder: str | Path,
        shards: list[Shard],
        *,
        job: Mapping[str, Any],
        metadata: Mapping[str, str] | None = None,
        overwrite: bool = False,
    ) -> None:
        self.target = Path(os.path.realpath(folder))
        if not overwrite and (self.target.is_file() or _filled(self.target)):
            raise FileExistsError(
                17, "already exists; name another folder, or remove it first", str(folder)
            )
        self.shards = shards
        self.metadata = {"format": "pt", **(metadata or {})}
        self.staging = self.target.with_name(f".{self.target.name}.partial")
        self.staging.mkdir(parents=True, exist_ok=True)
        self._join(json.loads(json.dumps(dict(job))))
        self.reused = sum(self._whole(shard) for shard in shards)

    def pending(self) -> Iterator[ShardFile]:
        """Shards that nobody has written or is writing, claimed one by one.

        Close the file when its tensors are written; a shard whose process died is given out again.
        The iterator ends when every shard is whole, whoever wrote it.
        """
        while self.staging.is_dir():
            missing = [shard for shard in self.shards if not self._whole(shard)]
            if not missing:
                return
            shard = next((s for s in missing if self._claim(s.file)), None)
            if shard is None:
                time.sleep(WAIT)
                continue
            if self._whole(shard):
                self._release(shard.file)
                continue
            file = None
            try:
                file = ShardFile(self.staging, shard, self.metadata)
                with _signs_of_life(self._claim_of(shard.file)):
                    yield file
            finally:
                if file is not None:
                    file.discard()
                self._release(shard.file)

    def finish(self, complete: Callable[[Path], None]) -> bool:
        """Give the folder its name, once every shard is there.

        Args:
            complete: Adds the other files of the folder, given the staging folder.

        Returns:
            Whether this process did it; another may have been first.
        """
        while not self._claim("finish"):
            if not self.staging.is_dir():
                return False
            time.sleep(WAIT)
        try:
            complete(self.staging)
            if len(self.shards) > 1:
                write_json(self.staging / "model.safetensors.index.json", self._index())
            claim = self._claim_of("finish")
            for path in self.staging.iterdir():
                if path.name == _JOB or (path.suffix in (".claim", ".tmp") and path != claim):
                    path.unlink()
            _sync_tree(self.staging)
            _replace_folder(self.staging, self.target)
        except BaseException:
            self._release("finish")
            raise
        # Last: without it another process could begin to finish what is being renamed.
        (self.target / claim.name).unlink()
        _sync(self.target.parent)
        return True

    def remove(self) -> None:
        """Delete what an unfinished job has left."""
        shutil.rmtree(self.staging, ignore_errors=True)

    def _join(self, job: dict[str, Any]) -> None:
        file = self.staging / _JOB
        if not file.is_file():
            write_json(file, job)
        held = json.loads(file.read_text(encoding="utf-8"))
        if held != job:
            keys = sorted(key for key in {*held, *job} if held.get(key) != job.get(key))
            raise ValueError(
                f"{self.staging} holds the unfinished result of another job ({', '.join(keys)} "
                "differ): remove it, or name another folder."
            )

    def _whole(self, shard: Shard) -> bool:
        return (self.staging / shard.file).is_file()

    def _claim_of(self, name: str) -> Path:
        return self.staging / f".{name}.claim"

    def _claim(self, name: str) -> bool:
        path = self._claim_of(name)
        owner = json.dumps({"host": socket.gethostname(), "pid": os.getpid()})
        for _ in range(2):
            try:
                descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileNotFoundError:
                return False  # the folder has got its name meanwhile
            except FileExistsError:
                if not _abandoned(path):
                    return False
                # Of several that see this, one wins the rename.
                with contextlib.suppress(FileNotFoundError):
                    moved = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
                    os.rename(path, moved)
                    moved.unlink()
                continue
            with os.fdopen(descriptor, "w") as stream:
                stream.write(owner)
            return True
        return False

    def _release(self, name: str) -> None:
        self._claim_of(name).unlink(missing_ok=True)

    def _index(self) -> dict[str, Any]:
        places = {name: shard.file for shard in self.shards for name in shard.entries}
        total = sum(shard.nbytes for shard in self.shards)
        return {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}


def _filled(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _abandoned(claim: Path) -> bool:
    """Whether nobody works under a claim any more."""
    try:
        age = time.time() - claim.stat().st_mtime
    except FileNotFoundError:
        return True
    try:
        held = json.loads(claim.read_text(encoding="utf-8"))
        host, pid = held["host"], int(held["pid"])
    except FileNotFoundError:
        return True
    except (ValueError, KeyError, TypeError):
        return age > 5.0  # killed between making and filling it, or just being filled
    return age > STALE or (host == socket.gethostname() and not _runs(pid))


@contextlib.contextmanager
def _signs_of_life(claim: Path) -> Iterator[None]:
    """Touch a claim while the body runs."""
    done = threading.Event()

    def touch() -> None:
        while not done.wait(STALE / 4):
            with contextlib.suppress(OSError):
                os.utime(claim)

    thread = threading.Thread(target=touch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
