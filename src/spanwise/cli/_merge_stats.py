"""What `spanwise merge stats` does; loaded when it runs."""

import functools
import inspect
import operator
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spanwise.atlas._select import chosen_maps
from spanwise.cli._models import check_different
from spanwise.cli._progress import Progress
from spanwise.cli._shared import Terminal, check_device
from spanwise.cli.merge_stats import StatsOptions
from spanwise.datasets import TextData, load_text
from spanwise.io import check_place, open_tensors
from spanwise.layouts import strip_prefixes
from spanwise.lora import CONFIG, is_adapter, open_adapter
from spanwise.merging import Stats, StatsPlan, collect_stats_to_file, plan_stats
from spanwise.merging._collect_file import passes_done
from spanwise.merging._open import read_config
from spanwise.merging._sources import whole_tensors
from spanwise.training.examples import (
    Example,
    Padded,
    causal_examples,
    classed_examples,
    spread,
)
from spanwise.training.reporting import size
from spanwise.zoo import is_pretrained, load_config, load_tokenizer, source_folder
from spanwise.zoo.encoders import CAUSAL, load_saved, saved_class

_NAMES = {"gram": "gram", "gradient_gram": "kfac, gradients", "diag_fisher": "fisher"}
_METHODS = {"gram": "regmean", "fisher": "fisher", "kfac": "mats"}
_PREDICTS = "ForSequenceClassification"


def collect(options: StatsOptions, terminal: Terminal) -> None:
    """Check, tell what it will take, and collect; or only tell."""
    _check_out(options)
    check_device(options.device)
    spec, adapter = _model(options)
    _check_head(options, spec)
    choice = {
        "modules": options.include, "exclude": options.exclude, "others": not options.maps_only,
    }  # fmt: skip
    if options.plan:
        empty = load_saved(spec, empty=True).model
        plan = plan_stats(empty, options.kinds, memory=options.memory, **choice)
        tell_plan(plan, options, terminal)
        terminal.result({"plan": asdict(plan), "bytes": plan.nbytes})
        return
    text = load_text(list(options.data), text=options.text, label=options.label)
    examples, pad = _examples(options, spec, text)
    model: Any = load_saved(spec, dtype=options.dtype).model
    if adapter is not None:
        _apply(model, adapter)
    model = model.to(options.device)
    plan = plan_stats(model, options.kinds, memory=options.memory, **choice)
    terminal.say(f"{options.model} reads {len(examples)} examples of {text.name}")
    tell_plan(plan, options, terminal)
    found = passes_done(options.out)
    if found:
        terminal.say(f"going on: {found} passes of an earlier run are there, if it was the same")
    singly = "fisher" in options.kind and not options.maps_only
    batches = Padded(examples, 1 if singly else options.batch, pad)
    begun = time.perf_counter()
    stats = collect_stats_to_file(
        model,
        _Fed(batches, _spared(model, options)),
        options.out,
        options.kinds,
        memory=options.memory,
        fisher="empirical" if options.labels == "data" else "true",
        max_examples=None,
        seed=options.seed,
        job=_job(options, spec, adapter, text),
        overwrite=options.overwrite,
        watch=_Passes(terminal, len(examples)),
        **choice,
    )
    tell(stats, options, time.perf_counter() - begun, terminal)


def add(options: StatsOptions, terminal: Terminal) -> None:
    """Add up the sums and counts of several files."""
    _check_out(options)
    check_different([str(path) for path in options.merge], ", or its data counts twice", "file")
    parts = [Stats.load(path) for path in options.merge]
    whole = functools.reduce(operator.add, parts)
    begun = time.perf_counter()
    whole.save(options.out)
    terminal.say(f"added {len(parts)} files")
    tell(Stats.load(options.out), options, time.perf_counter() - begun, terminal)


def tell_plan(plan: StatsPlan, options: StatsOptions, terminal: Terminal) -> None:
    """One line: what the statistics will take."""
    parts = [
        f"{_NAMES[kind]} {size(count)} ({plan.tensors[kind]} tensors)"
        for kind, count in plan.file.items()
    ]
    passes = len(plan.passes)
    again = "in one pass" if passes == 1 else f"in each of {passes} passes"
    terminal.say(
        f"{options.out} will take {size(plan.nbytes)}: {', '.join(parts)}; the sums take at most "
        f"{size(plan.memory)} beside the model, {again} over the data"
    )


def tell(stats: Stats, options: StatsOptions, seconds: float, terminal: Terminal) -> None:
    """What was collected."""
    rows = _rows(stats)
    terminal.table(
        ("statistics", "tensors", "counted over", "most"),
        [(_NAMES[kind], row["tensors"], row["over"], row["most"]) for kind, row in rows.items()],
        left=("counted over",),
    )
    for reason, count in Counter(stats.skipped.values()).items():
        first = next(name for name, why in stats.skipped.items() if why == reason)
        more = f" and {count - 1} others" if count > 1 else ""
        terminal.say(f"left out: {first}{more}: {reason}")
    nbytes = options.out.stat().st_size
    terminal.say(f"wrote {options.out}, {size(nbytes)}, in {seconds:.1f} s")
    methods = [_METHODS[kind] for kind in options.kind] if not options.merge else []
    if methods:
        terminal.say(
            f"next: spanwise merge BASE {options.model} MODEL ... --method {methods[0]} "
            f"--stats {options.out} FILE ... --out merged"
        )
    terminal.result(
        {
            "out": str(options.out),
            "bytes": nbytes,
            "statistics": rows,
            "skipped": stats.skipped,
            "options": stats.options,
            "seconds": seconds,
        }
    )


def _rows(stats: Stats) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for entry in stats.entries.values():
        for kind, count in entry.counts.items():
            over = "examples" if kind == "diag_fisher" else "tokens"
            row = rows.setdefault(kind, {"tensors": 0, "over": over, "most": 0})
            row["tensors"] += 1
            row["most"] = max(row["most"], count)
    return rows


class _Fed:
    """Batches with what spares the model work, as often as they are asked for."""

    def __init__(self, batches: Padded, more: Mapping[str, Any]) -> None:
        self.batches, self.more = batches, more

    def __iter__(self) -> Any:
        return ({**batch, **self.more} for batch in self.batches)


def _spared(model: Any, options: StatsOptions) -> dict[str, Any]:
    """Spare a head its work on every token where nothing is asked of it."""
    if options.kinds != ("gram",):
        return {}
    maps = chosen_maps(model, options.include, options.exclude)
    head = model.get_output_embeddings()
    known = "logits_to_keep" in inspect.signature(model.forward).parameters
    return {"logits_to_keep": 1} if known and all(m.module is not head for m in maps) else {}


def _model(options: StatsOptions) -> tuple[str, Path | None]:
    """What is loaded, and the adapter that is added to it."""
    spec = options.model or ""
    folder = Path(spec).expanduser()
    if is_adapter(folder):
        said = read_config(folder, CONFIG).get("base_model_name_or_path")
        base = options.base or said
        if not base:
            raise ValueError(f"{spec} is a LoRA folder: name what it was trained on, --base MODEL.")
        if not Path(base).expanduser().exists() and _is_missing(base):
            raise ValueError(
                f"{spec} was trained on {base}, which is not here: name its folder, --base MODEL."
            )
        return str(base), folder
    if options.base is not None:
        raise ValueError(f"base is for LoRA folders, but {spec} is a whole model: leave it out.")
    if not is_pretrained(spec):
        raise ValueError(
            f"{spec} is a size with fresh weights: statistics belong to a model that was trained."
        )
    return spec, None


def _is_missing(spec: str) -> bool:
    """Whether a name is neither a folder nor a packaged model."""
    try:
        return source_folder(spec) is None
    except ValueError:
        return True


def _check_head(options: StatsOptions, spec: str) -> None:
    """Raise `ValueError` unless the model can be asked for these kinds."""
    name = saved_class(spec)
    if load_config(spec).is_encoder_decoder:
        raise ValueError(
            f"{name} has an encoder and a decoder: collect_stats in Python takes its batches."
        )
    gradients = [kind for kind in options.kind if kind != "gram"]
    if not gradients or name.endswith(CAUSAL):
        return
    if not name.endswith(_PREDICTS):
        raise ValueError(
            f"{name} predicts nothing that text alone answers, so there is no gradient for "
            f"{' and '.join(gradients)}: collect gram, or save the model with its classifier."
        )
    if options.labels == "data" and options.label is None and not options.plan:
        raise ValueError(
            f"{' and '.join(gradients)} of {name} needs classes: name their column, --label, or "
            "draw them from the model, --labels model."
        )


def _examples(options: StatsOptions, spec: str, text: TextData) -> tuple[list[Example], int]:
    tokenizer = load_tokenizer(options.tokenizer or spec)
    pad = getattr(tokenizer, "pad_token_id", None)
    if saved_class(spec).endswith(CAUSAL):
        found = causal_examples(text, tokenizer, options.sequence)
    else:
        config = load_config(spec)
        needed = (
            options.label is not None and options.labels == "data" and options.kinds != ("gram",)
        )
        classes = {str(k): int(v) for k, v in (config.label2id or {}).items()} if needed else None
        found = classed_examples(text, tokenizer, options.sequence, classes)
    if options.kinds == ("gram",):  # inputs need no labels, nor the loss that a model makes of them
        found = [{"input_ids": row["input_ids"]} for row in found]
    return spread(found, options.examples), 0 if pad is None else int(pad)


def _apply(model: nn.Module, folder: Path) -> None:
    """Add a LoRA adapter's updates to the weights, and put what it keeps whole in their place."""
    adapter = open_adapter(folder)
    weights = {strip_prefixes(name): p for name, p in model.named_parameters()}
    for name in adapter:
        if name not in weights or tuple(weights[name].shape) != adapter.shape(name):
            raise ValueError(f"{folder} changes {name!r}, which its base lacks: name it by --base.")
    with torch.no_grad():
        for name, key in whole_tensors(folder.name, adapter, open_tensors(weights)).items():
            weights[name].copy_(adapter.other(key))
        for name in adapter:
            weights[name].add_(adapter.update(name).to(weights[name].dtype))


def _job(options: StatsOptions, spec: str, adapter: Path | None, text: TextData) -> dict[str, Any]:
    """What tells these statistics from others, for going on after an interruption."""
    folders = [f for f in (source_folder(spec), adapter) if f is not None]
    files = [file for folder in folders for file in sorted(folder.glob("*.safetensors"))]
    names = ("examples", "sequence", "labels", "include", "exclude", "maps_only", "dtype")
    return {
        "model": [[str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns] for f in files],
        "data": text.digest,
        "tokenizer": options.tokenizer,
        **{name: getattr(options, name) for name in names},
    }


def _check_out(options: StatsOptions) -> None:
    if options.out.is_dir():
        raise ValueError(f"{options.out} is a folder; name a file for the statistics.")
    if options.out.exists() and not options.overwrite and not options.plan:
        raise ValueError(f"{options.out} exists. Name another file, or pass --overwrite.")
    check_place(options.out.parent)


class _Passes:
    """Progress over the examples of all passes."""

    def __init__(self, terminal: Terminal, total: int) -> None:
        self.progress, self.total = Progress(terminal, "example"), total

    def __call__(self, index: int, count: int, done: int) -> None:
        if count > 1:
            self.progress.part = f"pass {index}/{count}  example"
        self.progress((index - 1) * self.total + done, count * self.total)
