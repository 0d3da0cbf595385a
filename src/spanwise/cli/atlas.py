"""`spanwise atlas extract | show | compare`."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from spanwise.cli import dispatch
from spanwise.cli._shared import Terminal, run_verb

VERBS = {
    "extract": ("spanwise.cli.atlas:extract", "record the directions a model uses on a text"),
    "show": ("spanwise.cli.atlas:show", "what is in an atlas file"),
    "compare": ("spanwise.cli.atlas:compare", "angles between two atlases, beside chance"),
}


@dataclass(frozen=True, kw_only=True)
class ExtractOptions:
    """Record the directions that a model's layers use on a text, and save them as one file.

      spanwise atlas extract smollm2-135m --data old.txt --out know.atlas.safetensors

    Training with `--avoid know.atlas.safetensors` then keeps out of them.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A transformers folder, a size preset (llama-1m) or a zoo name (smollm2-135m)."""
    data: tuple[str, ...] = ()
    """Text whose responses are to be kept: files, folders, globs, .jsonl, .csv, .npz,
    python-stdlib, python-docs."""
    out: Path = Path("know.atlas.safetensors")
    """The file to write."""
    overwrite: bool = False
    """Replace the file if it exists."""
    energy: float = 0.8
    """Keep the fewest directions that hold this share of the mean squared activation."""
    rank: int | None = None
    """Keep this many directions of each activation instead."""
    sides: tuple[Literal["input", "output"], ...] = ("input",)
    """input: responses to what layers read do not change; output: nothing moves along what
    they write."""
    include: tuple[str, ...] | None = None
    """Only parameters whose name contains one of these parts."""
    exclude: tuple[str, ...] = ("lm_head",)
    """No parameters whose name contains one of these parts."""
    embeddings: bool = False
    """Record embedding tables too (their output side)."""
    center: bool = False
    """Subtract the mean activation first; protects deviations from it only."""
    tokens: int = 32768
    """Read at most so many tokens, in sequences spread evenly over the text."""
    sequence: int = 256
    """Tokens in a sequence; the same as in training keeps positions alike."""
    batch: int = 8
    """Sequences in a forward pass."""
    text: str | None = None
    """Column or key that holds the text in --data."""
    tokenizer: str | None = None
    """`bytes`, a folder or a model's name; by default the model's own."""
    layers: int | None = None
    """Keep only the first so many layers of the model."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the bases in the file; bfloat16 halves it."""
    device: str = "cpu"
    """Where the model runs."""
    seed: int = 0
    """Draws a preset's fresh weights."""
    plan: bool = False
    """Print the memory and the largest size of the file, and stop."""

    def __post_init__(self) -> None:
        for name in ("tokens", "sequence", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}.")
        if not 0 < self.energy <= 1:
            raise ValueError(f"energy must be a share in (0, 1], got {self.energy}.")
        if self.tokens < self.sequence:
            raise ValueError(
                f"tokens = {self.tokens} is less than one sequence of {self.sequence}."
            )

    @property
    def choice(self) -> dict[str, Any]:
        """What is recorded, as `Atlas.from_activations` takes it."""
        names = ("sides", "include", "exclude", "embeddings")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """Show what is in an atlas file, after checking every bit of it."""

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """The atlas."""
    base: str | None = None
    """Check that it belongs to this model (folder, safetensors file or zoo name)."""


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Compare two atlases: principal angles by layer, beside random subspaces of equal rank."""

    a: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="A")]
    """One atlas."""
    b: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="B")]
    """The other; random subspaces take its ranks."""
    plot: Path | None = None
    """Draw a heat map of the mean angles: .svg, .png, or both without a suffix."""
    draws: int = 4
    """Random subspaces drawn for each entry."""
    seed: int = 0
    """Of the draws."""


def main(argv: list[str]) -> int:
    """Run `spanwise atlas VERB`."""
    return dispatch(VERBS, argv, prog="spanwise atlas")


def extract(argv: list[str]) -> int:
    """Run `spanwise atlas extract`."""
    return run_verb(ExtractOptions, argv, _lazily("extract"), prog="spanwise atlas extract")


def show(argv: list[str]) -> int:
    """Run `spanwise atlas show`."""
    return run_verb(ShowOptions, argv, _lazily("show"), prog="spanwise atlas show")


def compare(argv: list[str]) -> int:
    """Run `spanwise atlas compare`."""
    return run_verb(CompareOptions, argv, _lazily("compare"), prog="spanwise atlas compare")


def _lazily(verb: str) -> Callable[[Any, Terminal], None]:
    """The verb's function, imported when it runs: help needs no torch."""
    return lambda options, terminal: getattr(import_module("spanwise.cli._atlas_verbs"), verb)(
        options, terminal
    )
