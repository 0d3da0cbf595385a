"""What one may ask of the demo."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Teach a small model a new text, seven ways, and see what each forgets of the old one.

    Takes about two and a half minutes on two cores and downloads nothing: the model learns
    Python's own source code first, then another text that Python ships. This is one seed of a
    shorter version of the committed experiment, which `spanwise reproduce demo` runs.
    """

    new: Literal["unicode-names", "python-docs"] = "unicode-names"
    """What the model learns: unicode-names is far from source code, python-docs is near."""
    out: Path = Path("runs/demo")
    """Folder for the page, the picture, the atlas and the taught models."""
    seed: int = 0
    """Of the start, the batches and the sketches."""
    fresh: bool = False
    """Train the model that knows Python anew instead of taking it from the cache."""
    quick: bool = False
    """A few steps only, to see the screens."""
    full: bool = False
    """The committed experiment's own settings: a longer pre-training, more held-out text."""

    def __post_init__(self) -> None:
        if self.quick and self.full:
            raise ValueError("--quick and --full exclude each other; name one.")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}.")
