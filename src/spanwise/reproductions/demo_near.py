"""The demo's experiment with a text that is near to what the model knows: the harder case."""

from pathlib import Path

from spanwise.report import Progress, Result
from spanwise.reproductions import demo
from spanwise.reproductions.demo import CLAIM, CRITERION, PANELS, Settings, figure

__all__ = ["CLAIM", "CRITERION", "PANELS", "PRESETS", "TITLE", "Settings", "figure", "run"]

TITLE = "Learning a text that is near to the old one"
PRESETS = demo.presets("python-docs")


def run(
    settings: Settings | None = None,
    *,
    preset: str = "default",
    workers: int | None = None,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> Result:
    """As `spanwise.reproductions.demo.run`."""
    return demo.run(
        settings or PRESETS[preset],
        preset=preset,
        workers=workers,
        cache=cache,
        progress=progress,
        slug="demo-near",
        title=TITLE,
    )
