"""`spanwise merge`."""

import inspect
import shlex
import time
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spanwise.cli import dispatch
from spanwise.cli._models import atlas_path, check_different, model_path
from spanwise.cli._progress import Progress
from spanwise.cli._shared import Interrupted, Terminal, check_device, run_verb
from spanwise.merging.config import MergeConfig

if TYPE_CHECKING:
    from spanwise.merging import MergePlan, Written

VERBS = {
    "run": ("spanwise.cli.merge:merge", "merge; the same as without a verb"),
    "stats": (
        "spanwise.cli.merge_stats:main",
        "what a model's data says of its weights, for regmean, fisher, mats",
    ),
    "diagnose": (
        "spanwise.cli.merge_diagnose:main",
        "which models are alike, which in conflict, before any is merged",
    ),
    "methods": ("spanwise.cli.merge:methods", "the methods and their parameters, one line each"),
}
"""Verbs under `spanwise merge`; anything else is the base of a merge."""


def main(argv: list[str]) -> int:
    """Parse the options and merge, or run `spanwise merge VERB`."""
    if argv and argv[0] in VERBS and not _is_model(Path(argv[0])):
        return dispatch(VERBS, argv, prog="spanwise merge")
    if argv and not Path(argv[0]).exists() and get_close_matches(argv[0], VERBS, n=1, cutoff=0.8):
        return dispatch(VERBS, argv, prog="spanwise merge")  # says which one it may be
    return merge(argv)


def merge(argv: list[str]) -> int:
    """Run `spanwise merge BASE MODEL ...`, also called `spanwise merge run`."""
    try:
        return run_verb(MergeConfig, argv, run, prog="spanwise merge")
    except KeyboardInterrupt as stop:
        again = f"spanwise merge {shlex.join(argv)}"
        raise Interrupted(f"the same command goes on where it stopped: {again}") from stop


def run(config: MergeConfig, terminal: Terminal) -> int:
    """Check, then tell or merge."""
    from spanwise.merging._folder import unfinished

    begun = time.perf_counter()
    plan = prepared(config)
    for note in plan.notes:
        terminal.say(f"note: {note}")
    if config.plan or config.out is None:
        show_plan(plan, config, terminal)
        return 0
    found = unfinished(config.out)
    if found:
        total = plan.shards(config.max_shard_bytes)
        terminal.say(f"going on: {found} of {total} files of an earlier run are there")
    written = plan.write(
        config.out,
        max_shard_bytes=config.max_shard_bytes,
        workers=config.workers,
        memory=config.memory,
        overwrite=config.overwrite,
        watch=Progress(terminal, "tensor"),
    )
    tell(plan, written, time.perf_counter() - begun, terminal)
    return 0


def prepared(config: MergeConfig) -> "MergePlan":
    """The merge that the options ask for, checked."""
    import torch

    from spanwise.atlas import Atlas
    from spanwise.merging import plan_config, plan_folders

    check_device(config.device)
    avoid, within = (
        None if path is None else Atlas.load(atlas_path(path, config.models[0]))
        for path in (config.avoid, config.within)
    )
    shared: dict[str, Any] = {
        "avoid": avoid, "within": within, "device": config.device, "seed": config.seed,
    }  # fmt: skip
    if config.recipe is not None:
        return plan_config(config.recipe, **shared)
    check_different(config.models, ", and let --weight say how much it counts")
    base, *models = (spec if spec == "none" else model_path(spec) for spec in config.models)
    dtype = config.out_dtype
    return plan_folders(
        None if base == "none" else base,
        models,
        config.method or "iso_c",
        tokenizer=config.tokenizer,
        alpha=1.0 if config.alpha is None else config.alpha,
        alpha_vectors=config.alpha_vectors,
        include=config.include,
        exclude=config.exclude,
        work_dtype=getattr(torch, config.work_dtype),
        out_dtype=None if dtype is None else getattr(torch, dtype),
        **({"stats": config.stats} if config.stats else {}),
        **shared,
        **config.parameters,
    )


def show_plan(plan: "MergePlan", config: MergeConfig, terminal: Terminal) -> None:
    """What would be read, written and held, and how every tensor would be treated."""
    from spanwise.training.reporting import size

    written = sum(row.nbytes for row in plan.treatments)
    shards = plan.shards(config.max_shard_bytes)
    peak = plan.peak(config.workers, config.memory)
    terminal.table(
        ("tensors", "count", "treated as", "shape", "dtype", "bytes"),
        [
            (t.tensors, t.count, _WORDS[t.kind], _shape(t.shape), t.dtype, size(t.nbytes))
            for t in plan.treatments
        ],
        title=f"{plan.method} of {_models(plan)}",
        left=("treated as", "dtype"),
    )
    files = f"{shards} file{'s' * (shards != 1)}"
    terminal.say(
        f"reads {size(plan.read_bytes)}, writes {size(written)} in {files}; tensors in work take "
        f"at most {size(peak)}. Nothing was written."
    )
    terminal.result(
        {
            "method": plan.method,
            "treatments": plan.treatments,
            "read_bytes": plan.read_bytes,
            "written_bytes": written,
            "shards": shards,
            "peak_bytes": peak,
            "notes": plan.notes,
        }
    )


def tell(plan: "MergePlan", written: "Written", seconds: float, terminal: Terminal) -> None:
    """What was done."""
    from spanwise.report._worker import peak_bytes
    from spanwise.training.reporting import size

    kinds = [plan.parts.kind(name) for name in plan.parts.inputs.reference]
    counts = {kind: kinds.count(kind) for kind in ("matrix", "vector", "copy")}
    layers = removed_by_layer(written.removed)
    peak = peak_bytes()
    terminal.say(
        f"{plan.method} of {_models(plan)}: {counts['matrix']} matrices and {counts['vector']} "
        f"other tensors merged, {counts['copy']} copied"
    )
    if layers:
        terminal.table(
            ("layer", "energy removed"),
            [(layer, f"{100 * share:.2f} %") for layer, share in layers.items()],
        )
    held = "" if peak is None else f", peak memory {size(peak)}"
    if written.tensors or written.reused:
        kept = f"; {written.reused} files were there already" if written.reused else ""
        terminal.say(f"wrote {written.folder} in {seconds:.1f} s{held}{kept}")
    else:
        terminal.say(f"{written.folder} holds this very merge already: nothing to do")
    terminal.result(
        {
            "method": plan.method,
            "out": str(written.folder),
            "tensors": written.tensors,
            "merged": counts["matrix"] + counts["vector"],
            **counts,
            "reused": written.reused,
            "removed": layers,
            "notes": written.notes,
            "seconds": seconds,
            "peak_bytes": peak,
        }
    )


def removed_by_layer(removed: "dict[str, tuple[float, float]] | Any") -> dict[str, float]:
    """Share of the updates' energy that `avoid` and `within` took, by layer."""
    from spanwise.merging._schedule import layer_of

    sums: dict[str, list[float]] = {}
    for name, (taken, before) in removed.items():
        layer = layer_of(name)
        held = sums.setdefault(name if layer is None else str(layer), [0.0, 0.0])
        held[0], held[1] = held[0] + taken, held[1] + before
    order = sorted(sums, key=lambda key: (not key.isdigit(), int(key) if key.isdigit() else 0))
    return {key: sums[key][0] / sums[key][1] if sums[key][1] else 0.0 for key in order}


@dataclass(frozen=True, kw_only=True)
class MethodsOptions:
    """List the methods of merging, with their parameters.

    Parameters that each model has its own of are marked with a star.
    """


def methods(argv: list[str]) -> int:
    """`spanwise merge methods`."""
    return run_verb(MethodsOptions, argv, _methods, prog="spanwise merge methods")


def _methods(options: MethodsOptions, terminal: Terminal) -> None:
    del options
    from spanwise.merging import METHODS

    rows = []
    for name, kind in METHODS.items():
        own = [f"{key}* = {value:g}" for key, value in kind.per_model.items()]
        whole = [f"{f.name} = {f.default}" for f in fields(kind)]
        rows.append((name, first_line(kind), ", ".join([*own, *whole])))
    terminal.table(("method", "does", "parameters"), rows, left=("does", "parameters"))
    terminal.say(
        "\n* one value for all models or one each, by --weight, --density or --option; the others "
        "by --option NAME=VALUE."
    )
    terminal.result(
        [
            {
                "method": name,
                "does": first_line(kind),
                "reference": kind.reference,
                "per_model": dict(kind.per_model),
                "parameters": {f.name: f.default for f in fields(kind)},
                "needs_base": kind.needs_base,
            }
            for name, kind in METHODS.items()
        ]
    )


def first_line(kind: type) -> str:
    """The first line of a class's docstring."""
    return inspect.cleandoc(kind.__doc__ or "").partition("\n")[0]


_WORDS = {"matrix": "matrix", "vector": "no matrix", "copy": "copied"}


def _models(plan: "MergePlan") -> str:
    jobs = plan.parts.jobs
    if len(jobs) > 1:
        return f"{len(jobs)} slices"
    count = len(jobs[0].inputs.models)
    return f"{count} model{'s' * (count != 1)}"


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "scalar"


def _is_model(path: Path) -> bool:
    """Whether a verb's name is a model's too: a folder called stats need not be one."""
    return path.is_file() or any(path.glob("*.safetensors"))
