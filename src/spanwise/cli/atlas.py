"""`spanwise atlas extract | show | compare`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from spanwise.cli import dispatch
from spanwise.cli._shared import Terminal, run_verb

if TYPE_CHECKING:
    from spanwise.atlas import Atlas, AtlasComparison, Entry
    from spanwise.datasets import TextData

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
    """Draw a heat map of the mean angles to this file (.svg or .png)."""
    draws: int = 4
    """Random subspaces drawn for each entry."""
    seed: int = 0
    """Of the draws."""


def main(argv: list[str]) -> int:
    """Run `spanwise atlas VERB`."""
    return dispatch(VERBS, argv, prog="spanwise atlas")


def extract(argv: list[str]) -> int:
    """Run `spanwise atlas extract`."""
    return run_verb(ExtractOptions, argv, _extract, prog="spanwise atlas extract")


def show(argv: list[str]) -> int:
    """Run `spanwise atlas show`."""
    return run_verb(ShowOptions, argv, _show, prog="spanwise atlas show")


def compare(argv: list[str]) -> int:
    """Run `spanwise atlas compare`."""
    return run_verb(CompareOptions, argv, _compare, prog="spanwise atlas compare")


# -- extract ----------------------------------------------------------------------------------


def _extract(options: ExtractOptions, terminal: Terminal) -> int | None:
    if options.plan:
        return _plan(options, terminal)
    if not options.data:
        raise ValueError("give the text whose responses are to be kept: --data PATH.")
    if options.out.is_dir():
        raise ValueError(f"{options.out} is a folder; name a file for the atlas.")
    if options.out.exists() and not options.overwrite:
        raise ValueError(f"{options.out} exists. Name another file, or pass --overwrite.")
    from spanwise.atlas import Atlas
    from spanwise.datasets import load_text
    from spanwise.training.data import pack
    from spanwise.zoo import load_model

    text = load_text(list(options.data), text=options.text)
    loaded = load_model(
        options.model, seed=options.seed, layers=options.layers, tokenizer=options.tokenizer
    )
    blocks, _ = pack(text, loaded.tokenizer, options.sequence)
    blocks = blocks.spread(options.tokens // options.sequence)
    model: Any = loaded.model
    model = model.to(options.device)
    total = -(-len(blocks) // options.batch)
    terminal.say(f"{options.model} reads {len(blocks) * options.sequence} tokens of {text.name}")
    atlas = Atlas.from_activations(
        model,
        ({**_inputs(model, options), **_ids(batch)} for batch in blocks.batches(options.batch)),
        energy=options.energy,
        rank=options.rank,
        center=options.center,
        progress=lambda count: _progress(terminal, count, total),
        **options.choice,
    )
    atlas.metadata.update(_origin(options, text))
    _save(atlas, options, terminal)
    terminal.result({"out": str(options.out), **_summary(atlas)})
    return None


def _progress(terminal: Terminal, count: int, total: int) -> None:
    if terminal.interactive or count == total or count % max(1, total // 4) == 0:
        terminal.live(f"batch {count} of {total}")


def _ids(batch: dict[str, Any]) -> dict[str, Any]:
    """Without labels: no loss is needed."""
    return {"input_ids": batch["input_ids"]}


def _inputs(model: Any, options: ExtractOptions) -> dict[str, Any]:
    """Spare the head its work on every token where it is not recorded."""
    import inspect

    unseen = any("lm_head".startswith(part) or part in "lm_head.weight" for part in options.exclude)
    known = "logits_to_keep" in inspect.signature(model.forward).parameters
    return {"logits_to_keep": 1} if unseen and known else {}


def _origin(options: ExtractOptions, text: "TextData") -> dict[str, str]:
    """Where an atlas comes from, for its file."""
    return {
        "model": options.model,
        "layers": "" if options.layers is None else str(options.layers),
        "data": text.name,
        "data_sha256": text.digest,
        "sequence": str(options.sequence),
    }


def _save(atlas: "Atlas", options: ExtractOptions, terminal: Terminal) -> None:
    import torch

    from spanwise.atlas import file_bytes

    dtype = getattr(torch, options.dtype)
    _tell(atlas, terminal)
    for name, reason in atlas.skipped.items():
        terminal.say(f"skipped {name}: {reason}")
    terminal.say(f"writing {_megabytes(file_bytes(atlas, dtype))} to {options.out}")
    atlas.save(options.out, dtype)
    from spanwise.zoo import is_pretrained

    if is_pretrained(options.model):
        terminal.say(f"next: spanwise train {options.model} --data new.txt --avoid {options.out}")
    else:
        terminal.say(
            f"note: {options.model} is a size; its weights were drawn from seed {options.seed}"
        )


def _plan(options: ExtractOptions, terminal: Terminal) -> None:
    """Bounds from the shapes alone: no weights are read."""
    import torch
    from transformers import AutoModelForCausalLM

    from spanwise.atlas import activation_bytes
    from spanwise.zoo import load_config

    with torch.device("meta"):
        config = load_config(options.model, layers=options.layers, tokenizer=options.tokenizer)
        model = AutoModelForCausalLM.from_config(config)
    width = getattr(torch, options.dtype).itemsize
    planned = activation_bytes(model, rank=options.rank, itemsize=width, **options.choice)
    words = f"rank {options.rank}" if options.rank else "every direction kept"
    terminal.say(
        f"{options.model}: {planned.activations} activations. While it runs, the sums hold at most "
        f"{_megabytes(planned.sums)} beside the model; the file holds at most "
        f"{_megabytes(planned.file)} ({words}). Layers that read one activation share both."
    )
    terminal.result(planned)


# -- show -------------------------------------------------------------------------------------


def _show(options: ShowOptions, terminal: Terminal) -> None:
    from spanwise.atlas import Atlas

    atlas = Atlas.load(options.file, base=None if options.base is None else _base(options.base))
    for key, value in atlas.metadata.items():
        if value:
            terminal.say(f"{key:<12} {value}")
    _tell(atlas, terminal)
    size = options.file.stat().st_size
    shared = f"{len(atlas)} entries share {len(atlas.subspaces)} bases"
    checked = "" if options.base is None else f"; it belongs to {options.base}"
    terminal.say(f"{shared}, {_megabytes(size)}, every bit as written{checked}")
    terminal.result({"file": str(options.file), "bytes": size, **_summary(atlas)})


def _base(spec: str) -> Any:
    """Weights by path; a zoo name stands for its folder."""
    path = Path(spec).expanduser()
    if path.exists():
        return path
    from spanwise.zoo import source_folder

    return source_folder(spec) or spec


def _tell(atlas: "Atlas", terminal: Terminal) -> None:
    rows = []
    for entries in _by_basis(atlas):
        held = entries[0].subspace
        share = f"{held.rank / held.dim:.0%}"
        spread = "" if held.values is None else f"{_first_share(held.values):.0%}"
        label = _label([entry.name for entry in entries])
        rows.append((label, entries[0].side, held.dim, held.rank, share, spread))
    terminal.table(
        ["activation of", "side", "dim", "rank", "of dim", "1st of kept"], rows, left=["side"]
    )


def _first_share(values: Any) -> float:
    energies = values.double().square()
    return float((energies[..., 0] / energies.sum(-1)).mean())


def _by_basis(atlas: "Atlas") -> list[list["Entry"]]:
    """Entries that share a basis together."""
    groups: dict[int, list[Entry]] = {}
    for entry in atlas:
        groups.setdefault(id(entry.subspace), []).append(entry)
    return list(groups.values())


def _label(names: list[str]) -> str:
    """Maps of one module on one line: "layers.0.self_attn.q_proj/k_proj/v_proj"."""
    parts = [name.removesuffix(".weight").rpartition(".") for name in names]
    if len({parent for parent, _, _ in parts}) > 1:
        return f"{''.join(parts[0])} and {len(names) - 1} more"
    return f"{parts[0][0]}{parts[0][1]}{'/'.join(own for _, _, own in parts)}"


def _summary(atlas: "Atlas") -> dict[str, Any]:
    entries = [
        {
            "name": e.name,
            "side": e.side,
            "layout": e.layout,
            "shape": list(e.shape),
            "dim": e.subspace.dim,
            "rank": e.subspace.rank,
            "aliases": list(e.aliases),
        }
        for e in atlas
    ]
    return {"metadata": atlas.metadata, "skipped": atlas.skipped, "entries": entries}


# -- compare ----------------------------------------------------------------------------------


def _compare(options: CompareOptions, terminal: Terminal) -> None:
    from spanwise.atlas import Atlas

    a, b = Atlas.load(options.a), Atlas.load(options.b)
    comparison = a.compare(b, draws=options.draws, seed=options.seed)
    terminal.table(
        [
            "map",
            "side",
            "dim",
            "rank A",
            "rank B",
            "least",
            "mean",
            "random",
            "shared",
            "by chance",
        ],
        [
            (
                row.name.removesuffix(".weight"),
                row.side,
                row.dim,
                row.rank_a,
                row.rank_b,
                f"{row.angles.min().rad2deg():.1f}°",
                f"{row.mean_angle:.1f}°",
                f"{row.random_mean_angle:.1f}°",
                f"{row.shared:.1%}",
                f"{row.expected_shared:.1%}",
            )
            for row in comparison.rows
        ],
        left=["side"],
    )
    for which, names in (("A", comparison.only_a), ("B", comparison.only_b)):
        if names:
            terminal.say(f"only in {which}: {len(names)} entries, the first {names[0]}")
    if a.metadata.get("base") != b.metadata.get("base"):
        terminal.say("note: the two were made from different weights")
    terminal.say(str(comparison))
    if options.plot is not None:
        _plot(comparison, options, terminal)
    terminal.result(comparison.as_dict())


def _plot(comparison: "AtlasComparison", options: CompareOptions, terminal: Terminal) -> None:
    from spanwise.atlas._figures import angle_map

    angle_map(comparison, options.plot, titles=(options.a.name, options.b.name))
    terminal.say(f"heat map: {options.plot}")


def _megabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
