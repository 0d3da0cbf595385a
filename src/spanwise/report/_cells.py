"""Run the cells of an experiment: one process of one thread each, as many as there are cores.

A cell is one training run or one measurement: a plain function of a JSON-able dict that
returns a JSON-able dict. Finished cells can be kept in a folder, so that an interrupted
experiment goes on where it stopped.
"""

import contextlib
import hashlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from spanwise.io import write_json
from spanwise.report._worker import source_digest

Cell = Mapping[str, Any]
Record = dict[str, Any]

_THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


_SERVE = (
    "import json, sys; from spanwise.report._worker import main; "
    "main(sys.argv[1], json.loads(sys.argv[2]))"
)


@runtime_checkable
class Progress(Protocol):
    """Called in the main process whenever something changed, and once a second."""

    def __call__(self, *, done: int, total: int, reused: int, seconds: float) -> None:
        """`done` of `total` cells are there, `reused` of them from the cache."""


class CellError(RuntimeError):
    """A cell raised, or its process died; the message holds the cell and what it said.

    Attributes:
        reason: The cell's own words, where its input was wrong (`ValueError`, `OSError`, a missing
            module); None for everything else.
    """

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason


Waiting = queue.SimpleQueue[tuple[str, Cell]]
"""Cells to run, each with its name in the cache."""
Answers = queue.SimpleQueue[tuple[str, Record | CellError]]
"""What came of them, by name."""


def cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1


def run_cells(
    function: Callable[[dict[str, Any]], dict[str, Any]],
    cells: Sequence[Cell],
    workers: int | None = None,
    *,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> list[Record]:
    """Call `function` on every cell, each in a process of one thread.

    Args:
        function: A function at the top level of an importable module. It gets one cell and
            returns a dict of JSON values.
        cells: Its arguments, JSON-able.
        workers: How many processes; by default one for each core.
        cache: Folder of finished cells. One is used again if the cell is equal and every
            source file that it had loaded (of this package and of the function's own) is
            unchanged.
        progress: Told how far it is.

    Returns:
        One dict a cell, in the order of `cells`: what `function` returned plus `seconds`,
        `processor_seconds` (what a busy machine does not lengthen) and `peak_bytes` (largest
        resident size of its process so far; None on Windows).

    Raises:
        ValueError: If `function` cannot be named in another process, or `workers` < 1.
        CellError: If a cell failed. Finished cells stay in the cache.
    """
    with Workers(function, workers, cache=cache, progress=progress) as pool:
        return pool.map(cells)


class Workers:
    """`run_cells` for several rounds: the processes, and what they imported, stay.

    Args: as `run_cells`. Use it as a context manager.
    """

    def __init__(
        self,
        function: Callable[[dict[str, Any]], dict[str, Any]],
        workers: int | None = None,
        *,
        cache: str | Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        if workers is not None and workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}.")
        self.target = _target(function)
        self.count = workers or cores()
        self.cache = Path(cache) if cache is not None else None
        self.progress = progress
        self.done = self.reused = 0
        self._children: list[_Child] = []
        self._start = time.perf_counter()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.close()
        self._children.clear()

    def map(self, cells: Sequence[Cell]) -> list[Record]:
        """Records of `cells`, in order; see `run_cells`."""
        keys = [_key(self.target, cell) for cell in cells]
        found = {key: self._cached(key) for key in dict.fromkeys(keys)}
        waiting: Waiting = queue.SimpleQueue()
        missing = {k: c for k, c in zip(keys, cells, strict=True) if found[k] is None}
        for item in missing.items():
            waiting.put(item)
        self.reused += len(found) - len(missing)
        self.done += len(found) - len(missing)
        total = self.done + len(missing)
        while len(self._children) < min(self.count, len(missing)):
            self._children.append(_Child(self.target))
        answers: Answers = queue.SimpleQueue()
        for child in self._children:
            child.start(waiting, answers)
        self._tell(total)
        left = len(missing)
        while left:
            try:
                key, record = answers.get(timeout=1.0)
            except queue.Empty:
                self._tell(total)
                continue
            if isinstance(record, CellError):
                raise record
            self._keep(key, missing[key], record)
            found[key] = record
            self.done += 1
            left -= 1
            self._tell(total)
        return [dict(record["value"]) for key in keys if (record := found[key])]

    def _tell(self, total: int) -> None:
        if self.progress:
            seconds = time.perf_counter() - self._start
            self.progress(done=self.done, total=total, reused=self.reused, seconds=seconds)

    def _cached(self, key: str) -> Record | None:
        """The finished cell, unless a source file that it ran has changed since."""
        if self.cache is None:
            return None
        try:
            record = json.loads((self.cache / f"{key}.json").read_text(encoding="utf-8"))
            sources = record["sources"].items()
        except (OSError, ValueError, KeyError, AttributeError):
            return None
        return record if all(source_digest(path) == digest for path, digest in sources) else None

    def _keep(self, key: str, cell: Cell, record: Record) -> None:
        if self.cache is not None:
            self.cache.mkdir(parents=True, exist_ok=True)
            write_json(self.cache / f"{key}.json", {"cell": dict(cell), **record})


class _Child:
    """One process and the files that connect to it."""

    def __init__(self, target: str) -> None:
        self.thread: threading.Thread | None = None
        # Closed with the process, so no context manager.
        self.errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        environment = {**os.environ, **dict.fromkeys(_THREADS, "1"), "TOKENIZERS_PARALLELISM": "0"}
        # A group of its own: Ctrl-C reaches the parent only, which then ends the children. Not a
        # session: Linux would give that a priority of its own, whatever the parent's is.
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, target, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            encoding="utf-8",
            env={**environment, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            process_group=0,
        )

    def start(self, waiting: Waiting, answers: Answers) -> None:
        """Serve one round of cells in the background."""
        self.thread = threading.Thread(target=self.serve, args=(waiting, answers), daemon=True)
        self.thread.start()

    def serve(self, waiting: Waiting, answers: Answers) -> None:
        """Feed cells to the process until none waits; runs in a thread of the parent."""
        while True:
            try:
                key, cell = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                answers.put((key, self.ask(cell)))
            except CellError as error:
                answers.put((key, error))
                return

    def ask(self, cell: Cell) -> Record:
        """The process's answer to one cell."""
        assert self.process.stdin
        assert self.process.stdout
        try:
            self.process.stdin.write(json.dumps(dict(cell)) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except (OSError, ValueError):
            line = ""
        if not line:
            code = self.process.wait()
            self.errors.seek(0)
            tail = self.errors.read()[-2000:].strip()
            raise CellError(f"the process of cell {dict(cell)} ended with code {code}.\n{tail}")
        answer = json.loads(line)
        if "error" in answer:
            text = f"cell {dict(cell)} failed:\n{answer['error']}"
            raise CellError(text, answer.get("reason"))
        for name in ("seconds", "processor_seconds", "peak_bytes"):
            answer["value"][name] = answer.pop(name)
        return answer

    def close(self) -> None:
        """End the process, whatever it does."""
        self.process.kill()
        self.process.wait()
        if self.thread:
            self.thread.join()
        for file in (self.process.stdin, self.process.stdout, self.errors):
            if file:
                with contextlib.suppress(OSError):  # unread input of a process that is gone
                    file.close()


def _key(target: str, cell: Cell) -> str:
    """Name of a cell in the cache: a digest of the function's name and the cell."""
    text = json.dumps([target, dict(cell)], sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _target(function: Callable[..., Any]) -> str:
    """`module:function`, as another process can import it."""
    module, name = function.__module__, function.__qualname__
    if module == "__main__":
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        module = spec.name if spec else module
    if "." in name or "<" in name or module == "__main__":
        raise ValueError(
            f"function must be at the top level of an importable module, got {name!r} of "
            f"{module!r}: cells run in other processes, which find it by name."
        )
    return f"{module}:{name}"
