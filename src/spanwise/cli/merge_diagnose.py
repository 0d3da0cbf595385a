"""`spanwise merge diagnose`."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from spanwise.cli._models import check_different, model_path
from spanwise.cli._progress import Progress
from spanwise.cli._shared import Terminal, check_device, run_verb

if TYPE_CHECKING:
    from spanwise.merging._sources import Source

_REMEDY = "Rows of different tokens cannot be compared: compare models of one vocabulary."

FILES = ("diagnosis.json", "diagnosis.svg")
"""What is written into `--out`."""


@dataclass(frozen=True, kw_only=True)
class DiagnoseOptions:
    """Compare fine-tunes of one base before merging any: which pairs are alike, which in conflict.

    Give the base first, then two or more models that were trained from it, whole or as LoRA
    folders:

      spanwise merge diagnose llama llama-code llama-math llama-chat --out diagnosis

    What is told of each pair:

      score      (shared - by chance) / (1 - by chance) - 2 conflict; 1 for the same update, 0 for
                 unrelated ones, -1 for opposite ones; the table begins with the highest
      cosine     of the two task vectors, all tensors together
      shared     share of either update's energy in the other's leading singular directions, beside
                 what random directions of the same number hold
      conflict   how far the layers' updates point against each other
      alignment  the subspace alignment ratio of Iso-C's paper, one model beside the other

    This describes weights. No accuracy is measured, and a high score is no promise: try the merge
    on validation data.
    """

    models: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="BASE MODEL MODEL [MODEL ...]")
    ] = ()
    """The base, then the models: transformers folders, safetensors files, PEFT LoRA folders or
    packaged names (smollm2-135m)."""
    out: Path | None = None
    """A folder for diagnosis.json (every layer, model and pair) and diagnosis.svg (the picture)."""
    overwrite: bool = False
    """Replace these two files if they are there."""
    rank: int | None = None
    """How many leading directions of each update are compared (16)."""
    energy: float | None = None
    """Instead of --rank: as few as hold this share of each update's energy, such as 0.9."""
    layers: tuple[str, ...] | None = None
    """Only tensors whose name contains one of these; * stands for anything: layers.1*.mlp."""
    exclude: tuple[str, ...] = ()
    """No tensors whose name contains one of these, such as embed_tokens lm_head."""
    workers: int = 1
    """Tensors at once, each on one core."""
    memory: float = 2.0**30
    """Bytes that tensors in work may take together; a single tensor always may begin."""
    device: str = "cpu"
    """Where to compute."""

    def __post_init__(self) -> None:
        for name in ("workers", "memory"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        if self.rank is not None and self.energy is not None:
            raise ValueError("give --rank or --energy, not both.")


def main(argv: list[str]) -> int:
    """Run `spanwise merge diagnose`."""
    return run_verb(DiagnoseOptions, argv, run, prog="spanwise merge diagnose")


def run(options: DiagnoseOptions, terminal: Terminal) -> None:
    """Check, compare, tell, write."""
    if len(options.models) < 3:
        raise ValueError(
            "give the base and two models or more: pairs of models are compared, and "
            f"{max(0, len(options.models) - 1)} came after the base."
        )
    from spanwise.io import check_place
    from spanwise.merging._diagnose import diagnose
    from spanwise.report._worker import peak_bytes
    from spanwise.training.reporting import size

    begun = time.perf_counter()
    check_device(options.device)
    if options.out is not None:
        check_place(options.out)
        there = [name for name in FILES if (options.out / name).exists()]
        if there and not options.overwrite:
            raise ValueError(
                f"{options.out / there[0]} exists. Name another folder, or pass --overwrite."
            )
    base, models, notes = opened(options.models)
    found = diagnose(
        base,
        models,
        names=options.layers,
        exclude=options.exclude,
        rank=options.rank,
        energy=options.energy,
        device=options.device,
        workers=options.workers,
        memory=options.memory,
        progress=Progress(terminal, "tensor"),
    )
    for table in found.tables():
        terminal.say()
        terminal.table(table.head, table.cells, title=table.title)
    terminal.say()
    for note in (*notes, *found.notes):
        terminal.say(f"note: {note}")
    terminal.say(
        f"{len(found.layers)} matrices compared. This describes weights: no accuracy was measured."
    )
    files: list[Path] = []
    if options.out is not None:
        files.append(found.save(options.out / FILES[0]))
        try:
            files += found.figure(options.out / FILES[1])
        except ModuleNotFoundError as error:
            terminal.say(f"no picture: {error}")
    peak = peak_bytes()
    held = "" if peak is None else f", peak memory {size(peak)}"
    wrote = f"wrote {' and '.join(map(str, files))} in " if files else "done in "
    terminal.say(f"{wrote}{time.perf_counter() - begun:.1f} s{held}")
    terminal.result(found.to_json())


def opened(paths: Sequence[str]) -> tuple["Source", dict[str, "Source"], list[str]]:
    """The base, the models by the shortest name that tells them apart, and notes.

    Raises:
        FileNotFoundError: If one is not there.
        ValueError: If they are not of one architecture, or tokenizers differ.
    """
    from spanwise.merging._recipe import Reference
    from spanwise.merging._shelf import Shelf

    check_different(paths)
    base, *models = (Reference(model_path(path)) for path in paths)
    shelf = Shelf(base, models, remedy=_REMEDY)
    root = shelf.model(base, "base", None)
    labels = short_names([reference.path for reference in models])
    named = {
        label: shelf.model(reference, label, root)
        for label, reference in zip(labels, models, strict=True)
    }
    return root, named, list(shelf.notes)


def short_names(paths: Sequence[str]) -> list[str]:
    """As few of the last parts of each path as tell all of them apart.

    Example:
        >>> short_names(["runs/code/final", "runs/math/final"])
        ['code/final', 'math/final']

    Raises:
        ValueError: If two are the same.
    """
    parts = [Path(path).expanduser().absolute().parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-depth:]) for own in parts]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"one path is given twice: {', '.join(paths)}.")
