"""Statistics straight into a file, in as many passes over the data as memory demands."""

import functools
import json
import operator
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spanwise.io import check_place, write_json
from spanwise.merging._chosen import COLLECTED, Chosen
from spanwise.merging._collect import Reading
from spanwise.merging._collector import check_told
from spanwise.merging._stats import DIAG_FISHER, Stats

SUMS = 2.0**32
"""Bytes that the sums of one pass may take, unless another ceiling is given."""

Watch = Callable[[int, int, int], None]
"""Told which pass it is, of how many, and how many examples it has seen."""

_JOB = "job.json"


@dataclass(frozen=True, kw_only=True)
class StatsPlan:
    """What statistics will take, from the shapes alone."""

    file: Mapping[str, int]
    """Kind -> bytes in the file."""
    tensors: Mapping[str, int]
    """Kind -> how many tensors have it."""
    passes: tuple[tuple[str, ...], ...]
    """What each pass over the data sums, by the names of the tensors."""
    memory: int
    """Bytes that the sums of a pass take at most, beside the model and its activations."""

    @property
    def nbytes(self) -> int:
        """Bytes of the file, but for its header."""
        return sum(self.file.values())


def plan_stats(
    model: nn.Module,
    kinds: Sequence[str] = COLLECTED,
    *,
    modules: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    others: bool = True,
    memory: float = SUMS,
) -> StatsPlan:
    """What `collect_stats_to_file` would take with the same options; no data is read.

    Args:
        model: It may lie on the meta device.
        kinds: As `collect_stats` takes them, like `modules`, `exclude` and `others`.
        modules: Only tensors whose name contains one of these.
        exclude: No tensors whose name contains one of these.
        others: Whether every tensor has a Fisher diagonal.
        memory: Bytes that the sums of one pass may take.

    Raises:
        ValueError: If an option is out of range, or no tensor is left.
    """
    return _planned(Chosen.of(model, kinds, modules, exclude, others=others), memory)


def collect_stats_to_file(
    model: nn.Module,
    dataloader: Iterable[Any],
    path: str | Path,
    kinds: Sequence[str] = COLLECTED,
    *,
    memory: float = SUMS,
    modules: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    others: bool = True,
    device: torch.device | str | None = None,
    job: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    watch: Watch | None = None,
    **reading: Any,
) -> Stats:
    """`collect_stats` for statistics larger than memory: the same numbers, in a file.

    Where the sums of all tensors exceed `memory`, the data is read several times, and each pass
    sums some of the tensors and writes them to a hidden folder beside `path`. The file appears
    when it is whole.

    Args:
        model: The fine-tuned model.
        dataloader: Batches; where several passes are needed it must give the same ones each time,
            as a list or a `DataLoader` without shuffling does.
        path: The safetensors file to write.
        kinds: As `collect_stats` takes them, like all that follows and is not explained here.
        memory: Bytes that the sums of one pass may take; a single tensor's may always.
        modules: Only tensors whose name contains one of these.
        exclude: No tensors whose name contains one of these.
        others: Whether every tensor has a Fisher diagonal.
        device: Where sums are kept.
        job: What identifies the model and the data, JSON. With it a call that was interrupted is
            gone on with by the next one of the same job, at the first pass that is missing.
        overwrite: Whether a file that is there is replaced.
        watch: Told how far it is, after each batch.
        **reading: `fisher`, `loss_reduction`, `max_examples`, `loss`, `seed`.

    Returns:
        The statistics, read from the file when they are asked for.

    Raises:
        FileExistsError: If `path` is there, and `overwrite` is off.
        OSError: If the disk has no room; checked before the model runs.
        ValueError: As `collect_stats` does; if `dataloader` can be read only once but several
            passes are needed.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(17, "already exists; name another file, or pass overwrite", str(path))
    how = Reading(device=None if device is None else torch.device(device), **reading)
    chosen = Chosen.of(model, kinds, modules, exclude, others=others)
    plan = _planned(chosen, memory)
    count = len(plan.passes)
    if count > 1 and iter(dataloader) is dataloader:
        raise ValueError(
            f"the sums take {count} passes over the data under memory = {memory:g}, but dataloader "
            "is an iterator, which can be read once: give a list or a DataLoader, or more memory."
        )
    _check_room(path, plan.nbytes * (2 if count > 1 else 1))
    staging = path.with_name(f".{path.name}.partial")
    if count > 1:
        own = {"options": how.options, "seed": how.seed, "max_examples": how.max_examples}
        _join(staging, {**own, "kinds": list(kinds), "passes": plan.passes, "job": job}, job)
    parts: list[Stats] = []
    for index, units in enumerate(plan.passes, start=1):
        file = staging / f"pass-{index:04d}.safetensors"
        if file.is_file():
            parts.append(Stats.load(file))
            continue
        progress = None if watch is None else functools.partial(watch, index, count)
        found = how(model, chosen.part(units), dataloader, progress)
        if count > 1 and len(found):
            found = Stats.load(found.save(file))
        parts.append(found)
    whole = functools.reduce(operator.add, parts)
    whole.skipped = {**chosen.skipped, **whole.skipped}
    try:
        check_told(whole)
    except ValueError:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    whole.save(path)
    shutil.rmtree(staging, ignore_errors=True)
    return Stats.load(path)


def passes_done(path: str | Path) -> int:
    """Passes that an interrupted call has left for `path`."""
    path = Path(path)
    return len(list(path.with_name(f".{path.name}.partial").glob("pass-*.safetensors")))


def _planned(chosen: Chosen, memory: float) -> StatsPlan:
    if not memory > 0:
        raise ValueError(f"memory must be positive, got {memory}.")
    file: dict[str, int] = {}
    tensors: dict[str, int] = {}
    passes: list[list[str]] = []
    sizes: list[int] = []
    for unit in chosen.units:
        for kind, size in chosen.stored(unit).items():
            file[kind] = file.get(kind, 0) + size
            names = len(chosen.units[unit]) if kind == DIAG_FISHER else 1
            tensors[kind] = tensors.get(kind, 0) + names
        size = chosen.held(unit)
        if not passes or (sizes[-1] and sizes[-1] + size > memory):
            passes.append([])
            sizes.append(0)
        passes[-1].append(unit)
        sizes[-1] += size
    return StatsPlan(
        file=file, tensors=tensors, passes=tuple(map(tuple, passes)), memory=max(sizes)
    )


def _join(staging: Path, whole: Mapping[str, Any], job: Mapping[str, Any] | None) -> None:
    """Go on with the passes of the same job; begin anew where there is another one's, or none."""
    whole = json.loads(json.dumps(whole))
    try:
        held = json.loads((staging / _JOB).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        held = None
    if job is None or held != whole:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        write_json(staging / _JOB, whole)


def _check_room(path: Path, needed: int) -> None:
    check_place(path.parent)
    nearest = path.parent.absolute()
    while not nearest.exists():
        nearest = nearest.parent
    free = shutil.disk_usage(nearest).free
    if free < needed:
        raise OSError(
            28,
            f"the statistics take {needed / 1e9:.2f} GB, but the disk has {free / 1e9:.2f} GB "
            "free: name a file on another one, or fewer tensors",
            str(path),
        )
