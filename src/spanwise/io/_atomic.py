"""Files and folders that appear whole or not at all, also when the disk is full.

Everything is written beside its target, synced, and renamed: a reader sees the old content or
the new one, and a crash leaves at most a hidden `.NAME.*.tmp` that nothing reads.
"""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """A binary stream whose content becomes `path` when the body ends without an error.

    Missing parent folders are made. If `path` is a symbolic link, its target is replaced.

    Args:
        path: The file to create or replace.

    Raises:
        OSError: If writing fails, for instance on a full disk; `path` is then as it was.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = _beside(target)
    try:
        with staged.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(staged, target)
    except BaseException as error:
        staged.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None and error.errno is not None:
            # What a failed write raises does not say which file it was.
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise
    _sync(target.parent)


def write_bytes(path: str | Path, data: bytes | bytearray | memoryview) -> Path:
    """Write `data` to `path`, whole or not at all.

    Args:
        path: The file to create or replace; missing parent folders are made.
        data: Its content.

    Returns:
        `path`.

    Raises:
        OSError: If writing fails; `path` is then as it was.
    """
    with atomic_file(path) as stream:
        stream.write(data)
    return Path(path)


def write_json(path: str | Path, value: Any) -> Path:
    """Write `value` as indented JSON, whole or not at all.

    Args:
        path: The file to create or replace; missing parent folders are made.
        value: What `json.dumps` takes. NaN and infinity are refused: they are no JSON.

    Returns:
        `path`.

    Raises:
        TypeError: If `value` holds something that JSON cannot.
        ValueError: If `value` holds NaN or infinity.
        OSError: If writing fails; `path` is then as it was.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    return write_bytes(path, (text + "\n").encode("utf-8"))


@contextlib.contextmanager
def atomic_folder(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A staging folder that becomes `path` when the body ends without an error.

    Args:
        path: The folder to create.
        overwrite: Whether a folder that is there already is replaced, as a whole.

    Yields:
        The staging folder, in the same parent; write into it and let go of the files.

    Raises:
        FileExistsError: If something is at `path` (an empty folder does not count) and
            `overwrite` is False; checked before the body runs.
        OSError: If writing fails; nothing is left behind, and `path` is as it was.
    """
    target = Path(os.path.realpath(path))
    if not overwrite and (target.is_file() or (target.is_dir() and any(target.iterdir()))):
        raise FileExistsError(
            17, "already exists; name another folder, or remove it first", str(path)
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = _beside(target)
    staged.mkdir()
    try:
        yield staged
        _sync_tree(staged)
        _replace_folder(staged, target)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    _sync(target.parent)


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits.

    Args:
        path: The file; read in pieces.
    """
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _beside(target: Path) -> Path:
    # Not from tempfile: its files are private to the user, and the rename would keep that.
    return target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")


def _replace_folder(staged: Path, target: Path) -> None:
    """Rename `staged` to `target`; what is there moves aside first and back if that fails."""
    old = None
    if target.exists() and (target.is_file() or any(target.iterdir())):
        old = _beside(target)
        target.rename(old)
    try:
        staged.rename(target)
    except BaseException:
        if old is not None:
            old.rename(target)
        raise
    if old is not None:
        shutil.rmtree(old) if old.is_dir() else old.unlink()


def _sync_tree(folder: Path) -> None:
    for root, _, files in os.walk(folder, topdown=False):
        for name in files:
            _sync(Path(root) / name)
        _sync(Path(root))


def _sync(path: Path) -> None:
    """Push a file's content or a folder's entries to the disk; systems that cannot are excused."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_place(folder: str | Path) -> None:
    """Raise before any work if `folder` could not be made or written to.

    The nearest folder that exists is tried: to root everything is permitted, also where nothing
    can be made, such as in /proc.

    Raises:
        ValueError: If it, or a folder above it, is a file.
        PermissionError: If nothing can be made in the nearest folder that exists.
    """
    nearest = Path(folder).absolute()
    while not nearest.exists():
        nearest = nearest.parent
    if not nearest.is_dir():
        raise ValueError(f"{folder} cannot be a folder: {nearest} is a file. Name another place.")
    trial = _beside(nearest / "trial")
    try:
        trial.mkdir()
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        said = "this folder may not be written to"
        raise PermissionError(errno.EACCES, said, str(nearest)) from error
    trial.rmdir()
