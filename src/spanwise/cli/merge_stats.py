"""`spanwise merge stats`: its options; what it does is loaded when it runs."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from spanwise.cli._shared import Interrupted, Terminal, run_verb

Kind = Literal["gram", "fisher", "kfac"]


@dataclass(frozen=True, kw_only=True)
class StatsOptions:
    """Collect what a model's own data says of its weights, for merging without that data.

    Some methods weigh every model's weights by how much its data needs them: regmean, fisher and
    mats. Whoever owns a model and its data makes one file of sums, in which no text is left:

      spanwise merge stats llama-code --data code.jsonl --out code.safetensors
      spanwise merge stats llama-math --data math.jsonl --out math.safetensors

    Whoever merges needs the models and these files, in the models' order:

      spanwise merge llama llama-code llama-math --method regmean
      --stats code.safetensors math.safetensors --out merged

    A few hundred texts are enough. Files of one model add up, data by data:

      spanwise merge stats --merge monday.safetensors tuesday.safetensors --out both.safetensors

    --kind gram is what regmean takes: what enters each linear map, from forward passes. fisher is
    squared gradients of every tensor, one backward pass a text. kfac, for mats, is gram and the
    gradients at what leaves each map. Ask what they would take with --plan.
    """

    model: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")] = None
    """A causal language model's or an encoder's transformers folder, a PEFT LoRA folder, or a
    packaged name (smollm2-135m)."""
    data: tuple[str, ...] = ()
    """Text of the model's own task: files, folders, globs, .jsonl (text | prompt,completion |
    messages), .csv, python-stdlib, python-docs, or a hub's owner/name. One example a text."""
    kind: tuple[Kind, ...] = ("gram",)
    """What to sum, one or several: gram for regmean, fisher for fisher, kfac for mats."""
    out: Path = Path("stats.safetensors")
    """The file to write; it appears when it is whole."""
    overwrite: bool = False
    """Replace the file if it exists."""
    merge: tuple[Path, ...] = ()
    """Instead of MODEL and --data: files of one model whose sums and counts are added."""
    base: str | None = None
    """What a LoRA folder was trained on; by default what its adapter_config.json says."""
    examples: int = 1000
    """Read at most so many, spread evenly over the data."""
    sequence: int = 256
    """Tokens in an example at most: language models read the rest of a text as further examples,
    encoders do not."""
    batch: int = 4
    """Examples in a forward pass; fisher of all tensors takes one at a time."""
    text: str | None = None
    """Column or key that holds the text in --data."""
    label: str | None = None
    """Column or key with the answer, or with an encoder's class; the text is then read only."""
    tokenizer: str | None = None
    """`bytes`, a folder or a model's name; by default the model's own."""
    labels: Literal["data", "model"] = "data"
    """Gradients (fisher, kfac) of the data's own tokens or classes, or of ones drawn from what the
    model predicts."""
    include: tuple[str, ...] | None = None
    """Only tensors whose name contains one of these parts."""
    exclude: tuple[str, ...] = ()
    """No tensors whose name contains one of these parts."""
    maps_only: bool = False
    """fisher of linear maps only, which takes whole batches at a time."""
    memory: float = 2.0**32
    """Bytes that the sums may take in memory; where they would take more, the data is read several
    times, each time for a part of the tensors."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the model computes in; sums are float32 or wider."""
    device: str = "cpu"
    """Where the model runs."""
    seed: int = 0
    """Of the labels that --labels model draws."""
    plan: bool = False
    """Tell the bytes of the file and of the sums, and the number of passes, and stop."""

    def __post_init__(self) -> None:
        for name in ("examples", "batch", "memory"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        if self.sequence < 2:
            raise ValueError(f"sequence must be at least 2, got {self.sequence}.")
        if not self.kind:
            raise ValueError("kind is empty: name what to sum, --kind gram.")
        if self.merge:
            if self.model is not None or self.data:
                raise ValueError(
                    "--merge adds files that exist: leave MODEL and --data out, or collect first."
                )
            if len(self.merge) < 2:
                raise ValueError(f"--merge adds two files or more, got {self.merge[0]} alone.")
        elif self.model is None:
            raise ValueError("name the model whose statistics are collected, or files to --merge.")
        elif not self.data and not self.plan:
            raise ValueError("data is missing: name text of the model's own task, --data PATH.")

    @property
    def kinds(self) -> tuple[str, ...]:
        """As `collect_stats` calls them."""
        return tuple("diag_fisher" if kind == "fisher" else kind for kind in self.kind)


def main(argv: list[str]) -> int:
    """Run `spanwise merge stats`."""
    try:
        return run_verb(StatsOptions, argv, _stats, prog="spanwise merge stats")
    except KeyboardInterrupt as stop:
        again = f"spanwise merge stats {shlex.join(argv)}"
        raise Interrupted(f"the same command repeats only what is missing: {again}") from stop


def _stats(options: StatsOptions, terminal: Terminal) -> None:
    from spanwise.cli import _merge_stats

    if options.merge:
        _merge_stats.add(options, terminal)
    else:
        _merge_stats.collect(options, terminal)
