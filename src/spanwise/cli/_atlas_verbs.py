"""What the verbs of `spanwise atlas` do; loaded when one of them runs."""

import inspect
from pathlib import Path
from typing import Any

import torch

from spanwise.atlas import (
    Atlas,
    AtlasComparison,
    Comparison,
    Entry,
    activation_bytes,
    file_bytes,
)
from spanwise.atlas._select import chosen_maps
from spanwise.cli._shared import Terminal, check_device
from spanwise.cli.atlas import CompareOptions, ExtractOptions, ShowOptions
from spanwise.datasets import TextData, load_text
from spanwise.io import check_place
from spanwise.zoo import is_pretrained, load_config, load_model, source_folder

# -- extract ----------------------------------------------------------------------------------


def extract(options: ExtractOptions, terminal: Terminal) -> None:
    """Record, tell, write; or only tell what it would need."""
    if options.plan:
        _plan(options, terminal)
        return
    if not options.data:
        raise ValueError("give the text whose responses are to be kept: --data PATH.")
    if options.out.is_dir():
        raise ValueError(f"{options.out} is a folder; name a file for the atlas.")
    if options.out.exists() and not options.overwrite:
        raise ValueError(f"{options.out} exists. Name another file, or pass --overwrite.")
    check_place(options.out.parent)
    check_device(options.device)
    from spanwise.training.data import pack

    text = load_text(list(options.data), text=options.text)
    loaded = load_model(
        options.model, seed=options.seed, layers=options.layers, tokenizer=options.tokenizer
    )
    blocks, _ = pack(text, loaded.tokenizer, options.sequence)
    blocks = blocks.spread(options.tokens // options.sequence)
    model: Any = loaded.model
    model = model.to(options.device)
    spared = _spared(model, options)
    total = -(-len(blocks) // options.batch)
    terminal.say(f"{options.model} reads {len(blocks) * options.sequence} tokens of {text.name}")
    atlas = Atlas.from_activations(
        model,
        # Without labels: no loss is needed.
        ({"input_ids": b["input_ids"], **spared} for b in blocks.batches(options.batch)),
        energy=options.energy,
        rank=options.rank,
        center=options.center,
        progress=lambda count: _progress(terminal, count, total),
        **options.choice,
    )
    atlas.metadata.update(_origin(options, text))
    _save(atlas, options, terminal)
    terminal.result({"out": str(options.out), **_summary(atlas)})


def _progress(terminal: Terminal, count: int, total: int) -> None:
    if terminal.interactive or count == total or count % max(1, total // 4) == 0:
        terminal.live(f"batch {count} of {total}")


def _spared(model: Any, options: ExtractOptions) -> dict[str, Any]:
    """Spare the head its work on every token where it is not recorded."""
    maps = chosen_maps(model, options.include, options.exclude, embeddings=options.embeddings)
    head = model.get_output_embeddings()
    known = "logits_to_keep" in inspect.signature(model.forward).parameters
    return {"logits_to_keep": 1} if known and all(m.module is not head for m in maps) else {}


def _origin(options: ExtractOptions, text: TextData) -> dict[str, str]:
    """Where an atlas comes from, for its file."""
    return {
        "model": options.model,
        "layers": "" if options.layers is None else str(options.layers),
        "data": text.name,
        "data_sha256": text.digest,
        "sequence": str(options.sequence),
    }


def _save(atlas: Atlas, options: ExtractOptions, terminal: Terminal) -> None:
    dtype = getattr(torch, options.dtype)
    _tell(atlas, terminal)
    for name, reason in atlas.skipped.items():
        terminal.say(f"skipped {name}: {reason}")
    terminal.say(f"writing {_size(file_bytes(atlas, dtype))} to {options.out}")
    atlas.save(options.out, dtype)
    if is_pretrained(options.model):
        terminal.say(f"next: spanwise train {options.model} --data new.txt --avoid {options.out}")
    else:
        terminal.say(
            f"note: {options.model} is a size; its weights were drawn from seed {options.seed}"
        )


def _plan(options: ExtractOptions, terminal: Terminal) -> None:
    """Bounds from the shapes alone: no weights are read."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        config = load_config(options.model, layers=options.layers, tokenizer=options.tokenizer)
        model = AutoModelForCausalLM.from_config(config)
    width = getattr(torch, options.dtype).itemsize
    planned = activation_bytes(model, rank=options.rank, itemsize=width, **options.choice)
    words = f"rank {options.rank}" if options.rank else "every direction kept"
    terminal.say(
        f"{options.model}: {planned.activations} activations. While it runs, the sums hold at most "
        f"{_size(planned.sums)} beside the model; the file holds at most "
        f"{_size(planned.file)} ({words}). Layers that read one activation share both."
    )
    terminal.result(planned)


# -- show -------------------------------------------------------------------------------------


def show(options: ShowOptions, terminal: Terminal) -> None:
    """Tell where an atlas comes from and what it holds."""
    atlas = Atlas.load(options.file, base=None if options.base is None else _base(options.base))
    for key, value in atlas.metadata.items():
        if value:
            terminal.say(f"{key:<12} {value}")
    _tell(atlas, terminal)
    size = options.file.stat().st_size
    shared = f"{len(atlas)} entries share {len(atlas.subspaces)} bases"
    checked = "" if options.base is None else f"; it belongs to {options.base}"
    terminal.say(f"{shared}, {_size(size)}, every bit as written{checked}")
    terminal.result({"file": str(options.file), "bytes": size, **_summary(atlas)})


def _base(spec: str) -> Any:
    """Weights by path; a zoo name stands for its folder."""
    path = Path(spec).expanduser()
    if path.exists():
        return path

    return source_folder(spec) or spec


def _tell(atlas: Atlas, terminal: Terminal) -> None:
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


def _by_basis(atlas: Atlas) -> list[list[Entry]]:
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


def _summary(atlas: Atlas) -> dict[str, Any]:
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


def compare(options: CompareOptions, terminal: Terminal) -> None:
    """Tell the angles between two atlases, and draw them if asked."""
    if options.plot is not None:
        from spanwise.plots._figure import check_path

        check_path(options.plot)
    a, b = Atlas.load(options.a), Atlas.load(options.b)
    comparison = a.compare(b, draws=options.draws, seed=options.seed)
    _tell_angles(comparison, terminal)
    for which, names in (("A", comparison.only_a), ("B", comparison.only_b)):
        if names:
            terminal.say(f"only in {which}: {len(names)} entries, the first {names[0]}")
    if a.metadata.get("base") != b.metadata.get("base"):
        terminal.say("note: the two were made from different weights")
    terminal.say(str(comparison))
    if options.plot is not None:
        _plot(comparison, options.plot, terminal)
    terminal.result(comparison.as_dict())


def _tell_angles(comparison: AtlasComparison, terminal: Terminal) -> None:
    """One line for each pair of bases: maps that share both stand together."""
    groups: dict[int, list[Comparison]] = {}
    for row in comparison.rows:
        groups.setdefault(id(row.angles), []).append(row)
    columns = ["activation of", "side", "dim", "rank A", "rank B"]
    columns += ["least", "mean", "random", "shared", "by chance"]
    cells = [
        (
            _label([row.name for row in rows]),
            rows[0].side,
            rows[0].dim,
            rows[0].rank_a,
            rows[0].rank_b,
            f"{rows[0].angles.min().rad2deg():.1f}°",
            f"{rows[0].mean_angle:.1f}°",
            f"{rows[0].random_mean_angle:.1f}°",
            f"{rows[0].shared:.1%}",
            f"{rows[0].expected_shared:.1%}",
        )
        for rows in groups.values()
    ]
    terminal.table(columns, cells, left=["side"])


def _plot(comparison: AtlasComparison, path: Path, terminal: Terminal) -> None:
    from spanwise.cli._atlas_figure import angle_map

    for file in angle_map(comparison, path):
        terminal.say(f"heat map: {file}")


def _size(count: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"
