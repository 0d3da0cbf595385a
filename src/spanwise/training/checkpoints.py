"""Checkpoints that are whole or absent: staged, synced, marked, renamed; found again by the mark.

A step's files are written into `.staging-STEP`, synced, listed with their digests in the mark
`complete.json`, and renamed to `checkpoint-STEP`. A folder without a mark that fits its files
is what a crash or a full disk left behind, and is never resumed from.
"""

import json
import os
import re
import shutil
from pathlib import Path

from spanwise.io import file_digest, write_json

MARK = "complete.json"
_NAME = re.compile(r"checkpoint-(\d+)")
_FORMAT = 1


def staging_folder(run: str | Path, step: int) -> Path:
    """Where the files of a step are written before they count; the same on every process."""
    return Path(run) / f".staging-{step}"


def seal(folder: Path, step: int) -> Path:
    """Sync every file of `folder` to disk and write the mark last.

    Returns:
        The mark.

    Raises:
        OSError: If a file cannot be synced or the mark not written.
    """
    files = {}
    for path in _files(folder):
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
        files[path.relative_to(folder).as_posix()] = {
            "bytes": path.stat().st_size,
            "sha256": file_digest(path),
        }
    write_json(folder / MARK, {"format": _FORMAT, "step": step, "files": files})
    _sync_folders(folder)
    return folder / MARK


def publish(staged: Path, run: str | Path, step: int) -> Path:
    """Seal a staged checkpoint and give it its name in one rename.

    Returns:
        `run/checkpoint-STEP`.

    Raises:
        OSError: If sealing or renaming fails; the staged files are then removed by the caller.
    """
    seal(staged, step)
    target = Path(run) / f"checkpoint-{step}"
    if target.exists():  # of an earlier attempt at this step: unmarked, or replaced as a whole
        shutil.rmtree(target)
    staged.rename(target)
    _sync(Path(run))
    return target


def why_incomplete(folder: str | Path) -> str | None:
    """Why a checkpoint must not be resumed from, or None if it is whole.

    Reads every byte: a checkpoint of the right length may still be damaged.
    """
    folder = Path(folder)
    try:
        mark = json.loads((folder / MARK).read_text(encoding="utf-8"))
        files = dict(mark["files"])
    except FileNotFoundError:
        return "it was never marked complete"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its mark is unreadable ({error})"
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{name} has {path.stat().st_size} bytes of {expected['bytes']}"
        if file_digest(path) != expected["sha256"]:
            return f"{name} is damaged: its digest is not the recorded one"
    return None


def checkpoints(run: str | Path) -> list[Path]:
    """Every folder named like a checkpoint, earliest step first, whole or not."""
    run = Path(run)
    found = (
        [p for p in run.iterdir() if p.is_dir() and _NAME.fullmatch(p.name)] if run.is_dir() else []
    )
    return sorted(found, key=step_of)


def step_of(folder: Path) -> int:
    """The step in a checkpoint's name."""
    match = _NAME.fullmatch(folder.name)
    if match is None:
        raise ValueError(f"{folder} is not named like a checkpoint (checkpoint-STEP).")
    return int(match[1])


def last_complete(run: str | Path) -> tuple[Path | None, list[str]]:
    """The latest whole checkpoint of a run, and a sentence for each later one passed over."""
    notes = []
    for folder in reversed(checkpoints(run)):
        reason = why_incomplete(folder)
        if reason is None:
            return folder, notes
        notes.append(f"ignored {folder.name}: {reason}")
    return None, notes


def rotate(run: str | Path, keep: int) -> None:
    """Delete all but the last `keep` marked checkpoints, and every leftover of a staging."""
    marked = [folder for folder in checkpoints(run) if (folder / MARK).is_file()]
    for folder in marked[:-keep]:
        # The mark goes first: a deletion that is cut short leaves an unmarked folder.
        (folder / MARK).unlink()
        shutil.rmtree(folder)
    clear_staging(run)


def clear_staging(run: str | Path) -> None:
    """Remove what an interrupted save left in its staging folder."""
    for leftover in Path(run).glob(".staging-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MARK)


def _sync_folders(folder: Path) -> None:
    for path in [*(p for p in folder.rglob("*") if p.is_dir()), folder]:
        _sync(path)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
