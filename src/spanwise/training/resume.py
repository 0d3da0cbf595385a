"""Where a run starts: at its beginning, or exactly where its last whole checkpoint left it."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spanwise.io.configs import to_plain
from spanwise.io.runs import RunFolder
from spanwise.training.checkpoints import last_complete, step_of
from spanwise.training.config import TrainConfig

# What a resumed run may change: nothing of these moves a weight.
_FREE = {"resume", "plan", "out", "record.alpha", "record.keep"}


@dataclass(frozen=True, kw_only=True)
class Start:
    """The state from which a run goes on."""

    checkpoint: Path | None = None
    baseline: dict[str, float] = field(default_factory=dict)
    """Losses before any training, where an earlier part of the run measured them."""
    latest: dict[str, float] = field(default_factory=dict)
    """Losses at the last evaluation before the checkpoint."""
    digests: dict[str, str] = field(default_factory=dict)
    """Of the texts that the earlier part read."""
    notes: tuple[str, ...] = ()
    """What a person should know."""

    @property
    def step(self) -> int:
        """Steps already done."""
        return step_of(self.checkpoint) if self.checkpoint else 0

    @classmethod
    def find(cls, config: TrainConfig, *, first: bool = True) -> "Start":
        """Look at the run's folder.

        Args:
            config: The options.
            first: Whether this is the process that writes; the others come when it may already
                have begun.

        Raises:
            ValueError: If the folder is taken and `resume` is off, or there is nothing to
                resume, or the options are not those of the run.
        """
        assert config.out is not None
        if not config.resume:
            if first:
                _check_free(config.out)
            return cls()
        run = RunFolder.__new__(RunFolder)  # reading only: the folder must not be made here
        run.path = config.out
        if not run.config_path.is_file():
            raise ValueError(
                f"there is no run at {config.out} to resume (no config.yaml). "
                "Leave out --resume to start one."
            )
        _check_same(config, run.read_config())
        checkpoint, notes = last_complete(config.out)
        where = (
            f"resuming at step {step_of(checkpoint)}"
            if checkpoint
            else ("no complete checkpoint yet: starting again at step 0")
        )
        if checkpoint is None:
            return cls(notes=(*notes, where))
        evaluations = [e for e in run.events("eval") if e["step"] <= step_of(checkpoint)]
        manifest = run.read_manifest()
        return cls(
            checkpoint=checkpoint,
            baseline=evaluations[0]["losses"] if evaluations else {},
            latest=evaluations[-1]["losses"] if evaluations else {},
            digests={name: text["sha256"] for name, text in manifest.get("texts", {}).items()},
            notes=(*notes, where),
        )

    def check_texts(self, digests: Mapping[str, str]) -> None:
        """Raise `ValueError` if a text is not what it was when the run began."""
        for name, digest in self.digests.items():
            if digests.get(name, digest) != digest:
                raise ValueError(
                    f"the text {name!r} has changed since the run began: resuming would not be "
                    "exact. Restore it, or start a new run."
                )


def resume_line(config: TrainConfig) -> str:
    """The command that continues a run."""
    assert config.out is not None
    return f"spanwise train --config {shlex.quote(str(config.out / 'config.yaml'))} --resume"


def _check_free(out: Path) -> None:
    if out.is_file():
        raise ValueError(f"out = {out} is a file; name a folder for the run.")
    if out.is_dir() and any(out.iterdir()):
        way = (
            "Continue it with --resume, or name another folder."
            if (out / "config.yaml").is_file()
            else "Name a new or an empty one."
        )
        raise ValueError(f"out = {out} is not empty. {way}")


def _check_same(config: TrainConfig, saved: Mapping[str, Any]) -> None:
    now, before = _flat(to_plain(config)), _flat(saved)
    changed = [
        f"{key.rpartition('.')[2]} was {before.get(key)!r}, is {now[key]!r}"
        for key in now
        if key not in _FREE and now[key] != before.get(key)
    ]
    if changed:
        raise ValueError(
            f"resume continues exactly, but the options differ from {config.out}/config.yaml: "
            f"{'; '.join(changed)}. Resume with: {resume_line(config)}"
        )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
