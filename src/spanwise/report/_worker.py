"""The child process of `run_cells`: reads cells as JSON lines, writes results as JSON lines.

A process of its own, started by module name, so that a cell needs neither pickling nor a
guarded `__main__`, and starts with the thread count already in its environment.
"""

import hashlib
import importlib
import json
import os
import queue
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any


def peak_bytes() -> int | None:
    """The largest resident size of this process so far; None where the system keeps none."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def source_digest(path: str | Path) -> str | None:
    """SHA-256 of a source file; None if it is gone."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return None


def loaded_sources(roots: set[str]) -> dict[str, str | None]:
    """Digest of each source file that this process has loaded from the packages `roots`.

    A finished cell is valid while exactly these files stay as they are.
    """
    files = {
        str(getattr(module, "__file__", None))
        for name, module in list(sys.modules.items())
        # What runs cells and shows them cannot change what they compute.
        if name.partition(".")[0] in roots and not name.startswith("spanwise.report")
    }
    return {f: source_digest(f) for f in sorted(files) if f.endswith(".py")}


def main(target: str, path: list[str]) -> None:
    """Serve cells of `target`, written "module:function".

    The end of the input means that nobody waits for an answer any more: the process then leaves
    at once, in the middle of a cell too, so that a killed parent leaves no children behind.

    Args:
        target: The function of a cell.
        path: Where modules are found, `sys.path` of the parent.
    """
    sys.path[:] = path
    # Prints inside a cell must not mix with the answers, so these keep a private copy of stdout.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    module, _, name = target.partition(":")
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    while True:
        line = lines.get()
        start, processor = time.perf_counter(), time.process_time()
        answer: dict[str, Any] = {}
        try:
            value = getattr(importlib.import_module(module), name)(json.loads(line))
            if not isinstance(value, dict):
                raise TypeError(f"{target} must return a dict, got a {type(value).__name__}.")
            json.dumps(value, allow_nan=False)
            answer["value"] = value
        except Exception as error:
            answer["error"] = traceback.format_exc()
            if isinstance(error, (ValueError, OSError, ModuleNotFoundError)):
                answer["reason"] = str(error)
        answer["seconds"] = round(time.perf_counter() - start, 3)
        answer["processor_seconds"] = round(time.process_time() - processor, 3)
        answer["peak_bytes"] = peak_bytes()
        answer["sources"] = loaded_sources({"spanwise", module.partition(".")[0]})
        print(json.dumps(answer), file=answers, flush=True)


def _listen(lines: queue.SimpleQueue[str]) -> None:
    """Pass the input's lines on, and end the process with it."""
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)
