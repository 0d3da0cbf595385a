"""Which code ran: commits, as far as a git checkout can tell."""

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spanwise.io.runs import environment

_OWN = {"--out": 1, "--workers": 1, "--quiet": 0, "--json": 0}
"""Flags that say where and how a run took place, and change no number -> how many values follow."""


def provenance(module_file: str | Path, criterion: str) -> dict[str, Any]:
    """The fields `criterion_commit`, `commit` and `environment` of a `Result`.

    Args:
        module_file: The experiment's `__file__`.
        criterion: Its criterion, as the file has it.
    """
    held = environment()
    # One thread is what a cell gets, whatever this process, which only waits, may use.
    return {
        "criterion_commit": criterion_commit(module_file, criterion),
        "commit": code_commit(module_file),
        "environment": {**held, "command": repeated(held["command"]), "threads": 1},
    }


def repeated(command: str) -> str:
    """What a reader types for the same numbers: a command without the places of one machine.

    Example:
        >>> repeated("spanwise reproduce mats --out /tmp/runs --steps 30")
        'spanwise reproduce mats --steps 30'
    """
    words: Sequence[str] = shlex.split(command)
    kept: list[str] = []
    skip = 0
    for word in words:
        flag, sign, _ = word.partition("=")
        if skip:
            skip -= 1
        elif flag in _OWN:
            skip = 0 if sign else _OWN[flag]
        else:
            kept.append(word)
    return shlex.join(kept)


def code_commit(path: str | Path) -> str | None:
    """The commit that holds the file `path`, with "+" behind it if the package has edits since.

    Returns:
        A hash, or None where the file is not tracked by git (an installed package).
    """
    path = Path(path)
    if not _git(path, "ls-files", "--", path.name):
        return None
    commit = _git(path, "rev-parse", "HEAD")
    package = next((p for p in path.parents if p.name == "spanwise"), path.parent)
    edits = _git(path, "status", "--porcelain", "--untracked-files=no", "--", str(package))
    return commit and commit + ("+" if edits else "")


def criterion_commit(path: str | Path, criterion: str) -> str | None:
    """The commit that wrote the text `criterion` into the file `path`.

    Returns:
        A hash; None if the file in the last commit does not hold exactly this text (the
        criterion was changed and not committed), is not tracked by git, or the checkout is too
        shallow to tell.
    """
    path = Path(path)
    if _git(path, "rev-parse", "--is-shallow-repository") != "false":
        return None
    committed = _git(path, "show", f"HEAD:./{path.name}")
    if not committed or not criterion.strip() or criterion.strip() not in committed:
        return None
    return _git(path, "log", "-1", "--format=%H", f"-S{criterion.strip()}", "--", path.name)


def _git(path: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(path.parent), *arguments],
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
