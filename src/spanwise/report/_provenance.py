"""Which code ran: commits, as far as a git checkout can tell."""

import subprocess
from pathlib import Path
from typing import Any

from spanwise.io.runs import environment


def provenance(module_file: str | Path, criterion: str) -> dict[str, Any]:
    """The fields `criterion_commit`, `commit` and `environment` of a `Result`.

    Args:
        module_file: The experiment's `__file__`.
        criterion: Its criterion, as the file has it.
    """
    # One thread is what a cell gets, whatever this process, which only waits, may use.
    return {
        "criterion_commit": criterion_commit(module_file, criterion),
        "commit": code_commit(module_file),
        "environment": {**environment(), "threads": 1},
    }


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
