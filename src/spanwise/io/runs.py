"""A run's folder: the resolved options, where everything came from, and what happened."""

import hashlib
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from spanwise.errors import CorruptFileError
from spanwise.io.configs import read_yaml, to_plain, to_yaml

VERSIONS_OF = ("spanwise", "torch", "numpy", "safetensors", "transformers", "accelerate", "peft")


class RunFolder:
    """`config.yaml`, `manifest.json` and `events.jsonl` of one run.

    Args:
        path: The folder; created if missing.
        resume: Whether a run that is already there is continued.

    Raises:
        ValueError: If the folder holds a run and `resume` is False.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: str | Path, *, resume: bool = False) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{path} is a file; name a folder for the run.")
        if self.config_path.exists() and not resume:
            raise ValueError(
                f"{path} already holds a run. Continue it with --resume, or name another folder."
            )
        self.path.mkdir(parents=True, exist_ok=True)
        self._whole_lines = False

    @property
    def config_path(self) -> Path:
        """Where the resolved options are; `--config` reads this file."""
        return self.path / "config.yaml"

    @property
    def manifest_path(self) -> Path:
        """Where the manifest is."""
        return self.path / "manifest.json"

    @property
    def events_path(self) -> Path:
        """Where the events are, one JSON object a line."""
        return self.path / "events.jsonl"

    def write_config(self, options: Any) -> Path:
        """Write the resolved options, a dataclass or a mapping."""
        _write(self.config_path, to_yaml(options))
        return self.config_path

    def read_config(self) -> dict[str, Any]:
        """The options that the run was started with."""
        return read_yaml(self.config_path)

    def write_manifest(
        self, *, inputs: Mapping[str, str | Path] | None = None, **facts: Any
    ) -> dict[str, Any]:
        """Write and return what one needs to repeat the run.

        Args:
            inputs: Label -> file or folder that the run reads; digests are recorded.
            **facts: Anything else, such as `seed=0, device="cpu"`.
        """
        manifest = {
            **environment(),
            **to_plain(facts),
            "inputs": {
                label: {"path": str(path), "sha256": digest(path)}
                for label, path in (inputs or {}).items()
            },
        }
        _write(self.manifest_path, json.dumps(manifest, indent=2) + "\n")
        return manifest

    def read_manifest(self) -> dict[str, Any]:
        """The manifest.

        Raises:
            CorruptFileError: If it is not the JSON that was written.
        """
        try:
            return json.loads(self.manifest_path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CorruptFileError(
                f"{self.manifest_path} is damaged ({error}). Restore it, or start a new run."
            ) from error

    def event(self, event: Mapping[str, Any], **more: Any) -> None:
        """Append one event and hand it to the operating system, so that `tail -f` sees it.

        The `time` of the event is seconds since the epoch.
        """
        record = {"time": round(time.time(), 3), **to_plain(event), **to_plain(more)}
        line = json.dumps(record) + "\n"
        with self.events_path.open("ab+") as file:
            if file.tell() and not self._whole_lines:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a crash cut the last line short
                    line = "\n" + line
            self._whole_lines = True
            file.write(line.encode())

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Events so far, in order; a last line that a crash cut short is left out.

        Args:
            kind: Keep those whose `event` is this.
        """
        if not self.events_path.exists():
            return []
        found = []
        for line in self.events_path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return [e for e in found if kind is None or e.get("event") == kind]

    def __fspath__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        stopped = kind is not None and issubclass(kind, KeyboardInterrupt)
        outcome = "done" if kind is None else "interrupted" if stopped else "error"
        self.event({"event": outcome})


def environment() -> dict[str, Any]:
    """Command, versions, threads and machine kind of this process, without loading anything."""
    found = {}
    for name in VERSIONS_OF:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    torch = sys.modules.get("torch")
    return {
        "command": shlex.join([_program(), *sys.argv[1:]]),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": found,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads() if torch else os.environ.get("OMP_NUM_THREADS"),
    }


def _program() -> str:
    """What one types to call this program: the package's name for `python -m PACKAGE`."""
    path = Path(sys.argv[0])
    return path.parent.name if path.name == "__main__.py" else path.name


def digest(path: str | Path) -> str:
    """SHA-256 of a file, or of a folder's relative names and files in order.

    Raises:
        FileNotFoundError: If nothing is there.
    """
    path = Path(path)
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if not path.is_dir():
        raise FileNotFoundError(2, "No such file or folder", str(path))
    total = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        total.update(f"{file.relative_to(path).as_posix()}\0{digest(file)}\n".encode())
    return total.hexdigest()


def _write(path: Path, text: str) -> None:
    from spanwise.io import write_bytes

    write_bytes(path, text.encode("utf-8"))
