"""What of a long job is done, so that it can go on where it stopped."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from spanwise.errors import CorruptFileError
from spanwise.io._atomic import write_json


class Manifest:
    """Steps of a job that are done, in a JSON file that is rewritten whole after each.

    Args:
        path: The file; read if it is there.
        job: What identifies the job: options, digests of the inputs. A file of another job is
            refused, so results of two never mix.

    Raises:
        ValueError: If the file belongs to another job.
        CorruptFileError: If the file is no manifest.

    Example:
        >>> manifest = Manifest("out/progress.json", job={"base": digest, "rank": 8})
        >>> for name in layers:
        ...     if name not in manifest:
        ...         manifest.done(name, rank=extract(name))
    """

    def __init__(self, path: str | Path, job: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.job: dict[str, Any] = json.loads(json.dumps(dict(job)))
        self._steps: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            self._load()

    def done(self, step: str, **facts: Any) -> None:
        """Record that `step` is done, with what is worth keeping about it.

        Raises:
            TypeError: If a fact is not JSON; the manifest is then as it was.
            OSError: If writing fails; likewise.
        """
        steps = {**self._steps, step: json.loads(json.dumps(facts))}
        write_json(self.path, {"job": self.job, "steps": steps})
        self._steps = steps

    def remove(self) -> None:
        """Delete the file, once the job is finished."""
        self.path.unlink(missing_ok=True)
        self._steps = {}

    def __getitem__(self, step: str) -> dict[str, Any]:
        return self._steps[step]

    def __contains__(self, step: object) -> bool:
        return step in self._steps

    def __iter__(self) -> Iterator[str]:
        return iter(self._steps)

    def __len__(self) -> int:
        return len(self._steps)

    def _load(self) -> None:
        try:
            held = json.loads(self.path.read_text(encoding="utf-8"))
            job, steps = held["job"], dict(held["steps"])
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptFileError(
                f"{self.path} is no manifest: expected JSON with job and steps, found {error!r}. "
                "Delete it to begin anew."
            ) from error
        if job != self.job:
            changed = sorted(key for key in {*job, *self.job} if job.get(key) != self.job.get(key))
            raise ValueError(
                f"{self.path} belongs to another job: {', '.join(changed)} differ. Delete it to "
                "begin anew, or name another file."
            )
        self._steps = steps
