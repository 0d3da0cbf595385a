"""`spanwise export`."""

import re
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING

from spanwise.cli._models import model_path
from spanwise.cli._progress import Progress
from spanwise.cli._shared import Interrupted, Terminal, run_verb
from spanwise.merging._export.config import ExportConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spanwise.merging import Checked, LoraPlan
    from spanwise.merging._export.commands import Command

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


def main(argv: list[str]) -> int:
    """Parse the options and export."""
    try:
        return run_verb(ExportConfig, argv, run, prog="spanwise export")
    except KeyboardInterrupt as stop:
        again = f"spanwise export {shlex.join(argv)}"
        raise Interrupted(f"nothing half is left; once more: {again}") from stop


def run(config: ExportConfig, terminal: Terminal) -> int:
    """A LoRA, a merged adapter, or a folder looked over."""
    from spanwise.cli._shared import check_device
    from spanwise.lora import is_adapter
    from spanwise.merging._open import locate

    check_device(config.device)
    folder = locate(model_path(config.folder))
    if config.as_ == "lora":
        return _lora(config, folder, terminal)
    if is_adapter(folder):
        return _merged(config, folder, terminal)
    if config.out is not None:
        raise ValueError(
            f"{folder} is a whole model already: leave --out away to have it checked, or make a "
            "LoRA of it with --as lora."
        )
    return _checked(config, folder, terminal)


def _lora(config: ExportConfig, folder: Path, terminal: Terminal) -> int:
    import torch

    from spanwise.merging import plan_lora
    from spanwise.merging._export.commands import serve_lora

    begun = time.perf_counter()
    _check_free(config)
    plan = plan_lora(
        _base(config, folder),
        folder,
        rank=config.rank,
        budget_rank=config.budget_rank,
        parameters=config.parameters,
        megabytes=config.megabytes,
        energy=config.energy,
        max_rank=config.max_rank,
        exclude=config.exclude,
        full_vectors=config.full_vectors,
        svd=config.svd,
        dtype=None if config.dtype is None else getattr(torch, config.dtype),
        device=config.device,
        seed=config.seed,
        watch=Progress(terminal, "looking at tensor"),
    )
    _tell(plan, terminal)
    if config.plan or config.out is None:
        terminal.say("Nothing was written.")
        terminal.result(plan.record())
        return 0
    progress = Progress(terminal, "writing matrix")
    written = plan.write(config.out, overwrite=config.overwrite, watch=progress)
    terminal.say(
        f"wrote {written.folder} in {time.perf_counter() - begun:.1f} s: "
        f"{_percent(written.energy)} of the difference's energy, measured on what was written"
    )
    ranks = [rank for _, rank in plan.chosen]
    commands = serve_lora(
        config.out,
        plan.difference.base.folder,
        ranks,
        whole=bool(plan.whole),
        transposed=any(target.kind == "conv1d" for target, _ in plan.chosen),
        tied=any(target.head is not None for target, _ in plan.chosen),
    )
    _show(commands, terminal)
    terminal.result(
        {**plan.record(), "energy": written.energy, "out": str(config.out), "serve": commands}
    )
    return 0


def _merged(config: ExportConfig, folder: Path, terminal: Terminal) -> int:
    import torch

    from spanwise.merging import check_model
    from spanwise.merging._export.commands import serve_model
    from spanwise.merging._export.merged import plan_merged
    from spanwise.training.reporting import size

    if config.out is None and not config.plan:
        raise ValueError(
            f"{folder} is an adapter: name the folder of the whole model, --out merged, or --plan."
        )
    dtype = None if config.dtype is None else getattr(torch, config.dtype)
    base = None if config.base is None else model_path(config.base)
    plan = plan_merged(folder, base, dtype=dtype, device=config.device)
    replaced = f", {plan.whole} tensors replaced" if plan.whole else ""
    terminal.say(
        f"{folder.name} changes {plan.adapted} matrices of {plan.base}{replaced}; writes "
        f"{size(plan.nbytes)}"
    )
    for note in plan.notes:
        terminal.say(f"note: {note}")
    if config.plan or config.out is None:
        terminal.say("Nothing was written.")
        terminal.result({"base": str(plan.base), "adapted": plan.adapted, "bytes": plan.nbytes})
        return 0
    plan.write(
        config.out,
        max_shard_bytes=config.max_shard_bytes,
        overwrite=config.overwrite,
        watch=Progress(terminal, "writing tensor"),
    )
    checked = check_model(config.out, values=False)
    return _report(checked, serve_model(config.out), terminal, verb="wrote", told=plan.notes)


def _checked(config: ExportConfig, folder: Path, terminal: Terminal) -> int:
    from spanwise.merging import check_model
    from spanwise.merging._export.commands import serve_model

    if folder.is_file():
        raise ValueError(f"{folder} is a file: name the folder that holds it and its config.json.")
    watch = None if config.quick else Progress(terminal, "reading tensor")
    checked = check_model(folder, values=not config.quick, watch=watch)
    return _report(checked, serve_model(folder), terminal, verb="checked")


def _report(
    checked: "Checked",
    commands: "list[Command]",
    terminal: Terminal,
    *,
    verb: str,
    told: "Sequence[str]" = (),
) -> int:
    from spanwise.training.reporting import size

    terminal.say(
        f"{verb} {checked.folder}: {checked.architecture or 'no architecture'}, "
        f"{checked.tensors} tensors, {checked.dtype}, {size(checked.nbytes)}"
    )
    for note in checked.notes:
        if note not in told:
            terminal.say(f"note: {note}")
    for problem in checked.problems:
        terminal.say(f"problem: {problem}")
    if not checked.problems:
        _show(commands, terminal)
    found = {**vars(checked), "folder": str(checked.folder)}
    terminal.result(found if checked.problems else {**found, "serve": commands})
    if checked.problems:
        more = len(checked.problems) - 1
        rest = f" ({more} more problem{'s' * (more != 1)})" if more else ""
        raise ValueError(f"{checked.folder} would not load: {checked.problems[0]}{rest}.")
    return 0


def _tell(plan: "LoraPlan", terminal: Terminal) -> None:
    """Ranks by kind of matrix, what is left behind, and what uniform ranks would keep."""
    from spanwise.training.reporting import size

    rows = {}
    for found in plan.matrices:
        key = (_NUMBER.sub("*", found.target.name), found.target.shape)
        rows.setdefault(key, []).append(found)
    terminal.table(
        ("tensors", "count", "shape", "ranks", "of their energy", "of all"),
        [
            (
                name,
                len(held),
                " x ".join(map(str, shape)),
                _span([m.rank for m in held]),
                _percent(sum(m.kept for m in held) / sum(m.energy for m in held)),
                _percent(sum(m.energy for m in held) / plan.total),
            )
            for (name, shape), held in rows.items()
        ],
        title=f"{plan.difference.tuned.label} minus {plan.difference.base.label}",
    )
    left: dict[tuple[str, str, bool], list[float]] = {}
    for name, found in plan.left.items():
        key = (_NUMBER.sub("*", name), found.reason, found.saved)
        left.setdefault(key, []).append(found.energy)
    if left:
        terminal.table(
            ("not in factors", "count", "because", "of all", "fate"),
            [
                (name, len(held), reason, _percent(sum(held) / plan.total),
                 "written whole" if saved else "left behind")
                for (name, reason, saved), held in left.items()
            ],
            left=("because", "fate"),
        )  # fmt: skip
    for note in plan.notes:
        terminal.say(f"note: {note}")
    terminal.say(
        f"{len(plan.chosen)} of {len(plan.matrices)} matrices, {plan.parameters} parameters, "
        f"{size(plan.nbytes)}: {_percent(plan.energy)} of the difference's energy"
    )
    alike = plan.uniform
    if alike is not None and plan.budget.rank is None:
        terminal.say(f"uniform rank {alike[0]}, of as many bytes, would hold {_percent(alike[1])}")


def _show(commands: "Sequence[Command]", terminal: Terminal) -> None:
    for command in commands:
        note = f"  # {command.note}" if command.note else ""
        terminal.say(f"{command.program}: {command.line}{note}")


def _base(config: ExportConfig, folder: Path) -> str:
    """The base that was given, or the one that the folder says it comes from."""
    from spanwise.lora import is_adapter
    from spanwise.merging._export.merged import merged_from, named_base
    from spanwise.merging._open import locate

    if config.base is not None:
        return str(locate(model_path(config.base)))
    found = named_base(folder) if is_adapter(folder) else merged_from(folder)
    if found is None:
        raise ValueError(
            "base is missing: a LoRA is what was added to a base. Name what the model was trained "
            "from, --base llama."
        )
    return str(locate(found))


def _check_free(config: ExportConfig) -> None:
    """Raise before the work, not after it, if the folder is taken or cannot be made."""
    from spanwise.io import check_place

    out = config.out
    if out is None or config.plan:
        return
    check_place(out)
    if config.overwrite:
        return
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise FileExistsError(17, "already exists; name another folder, or --overwrite", str(out))


def _span(ranks: list[int]) -> str:
    low, high = min(ranks), max(ranks)
    return str(low) if low == high else f"{low} to {high}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %" if share < 0.9999 or share == 1 else f"{100 * share:.6f} %"
