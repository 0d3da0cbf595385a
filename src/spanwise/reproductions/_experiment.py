"""The head of every experiment: `run(settings, preset=..., ...)`, and what its body gets of it."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from spanwise.report import Progress, Result

S = TypeVar("S")
T = TypeVar("T", contravariant=True)


@dataclass(frozen=True, kw_only=True)
class Run(Generic[S]):
    """One run of an experiment."""

    settings: S
    """What was asked for."""
    preset: str = "default"
    """The name that the result carries."""
    workers: int | None = None
    """Processes at once; by default one for each core."""
    cache: str | Path | None = None
    """Folder of finished cells."""
    progress: Progress | None = None
    """Told how far it is."""
    begun: float = field(default_factory=time.perf_counter)
    """When, on the clock of `time.perf_counter`."""

    @property
    def where(self) -> dict[str, Any]:
        """Where its cells run, as `run_cells` and `Workers` take it."""
        return {"workers": self.workers, "cache": self.cache, "progress": self.progress}


@runtime_checkable
class Runner(Protocol[T]):
    """What an experiment's module calls `run`."""

    def __call__(
        self,
        settings: T | None = None,
        *,
        preset: str = "default",
        workers: int | None = None,
        cache: str | Path | None = None,
        progress: Progress | None = None,
    ) -> Result:
        """Run it, and say what follows.

        Args:
            settings: The experiment; by default that of `preset`.
            preset: The name that the result carries.
            workers: Processes at once; by default one for each core.
            cache: Folder of finished cells.
            progress: Told how far it is.
        """
        ...


def experiment(presets: Mapping[str, S]) -> Callable[[Callable[[Run[S]], Result]], Runner[S]]:
    """Make a `Runner` out of a function of a `Run`.

    Args:
        presets: The settings of every size.

    Example:
        >>> @experiment({"default": 3})
        ... def run(this):
        ...     return this.settings, this.preset, this.where["workers"]
        >>> run(), run(5, preset="quick", workers=1)
        ((3, 'default', None), (5, 'quick', 1))
    """

    def made(body: Callable[[Run[S]], Result]) -> Runner[S]:
        def run(
            settings: S | None = None,
            *,
            preset: str = "default",
            workers: int | None = None,
            cache: str | Path | None = None,
            progress: Progress | None = None,
        ) -> Result:
            return body(
                Run(
                    settings=presets[preset] if settings is None else settings,
                    preset=preset,
                    workers=workers,
                    cache=cache,
                    progress=progress,
                )
            )

        # Not functools.wraps: help would show the signature of `body`.
        run.__doc__, run.__module__ = body.__doc__, body.__module__
        return run

    return made
