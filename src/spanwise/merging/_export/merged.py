"""An adapter added to its base, as a whole model that loads."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from spanwise.lora import CONFIG, is_adapter, open_adapter
from spanwise.merging._export.checks import Checked, check_model
from spanwise.merging._export.lora import Watch
from spanwise.merging._folder import RECORD, Written, merge_to_folder
from spanwise.merging._job import Job
from spanwise.merging._merge import MEMORY, prepare
from spanwise.merging._open import locate, other_base, read_config
from spanwise.merging._sources import AdapterSource, open_source


@dataclass(frozen=True)
class MergedPlan:
    """An adapter and its base, checked; nothing is written yet.

    Attributes:
        job: The merge.
        base: The folder of the base.
        adapted: How many matrices get an update.
        whole: How many tensors are replaced.
        nbytes: Bytes that are written.
        notes: What a reader should know.
    """

    job: Job
    base: Path
    adapted: int
    whole: int
    nbytes: int
    notes: tuple[str, ...]

    def write(
        self,
        out: str | Path,
        *,
        max_shard_bytes: float = 2e9,
        workers: int = 1,
        memory: float = MEMORY,
        overwrite: bool = False,
        watch: Watch | None = None,
    ) -> Written:
        """Add and write, a few tensors in memory at a time; goes on after a kill."""
        return merge_to_folder(
            self.job, out, max_shard_bytes=max_shard_bytes, workers=workers, memory=memory,
            overwrite=overwrite, watch=watch,
        )  # fmt: skip


def plan_merged(
    adapter: str | Path,
    base: str | Path | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> MergedPlan:
    """Open an adapter and its base, and make sure that the result would load.

    Args:
        adapter: A folder that PEFT or `export_lora` wrote.
        base: The model's folder; by default the one that the adapter names.
        dtype: Of the result; by default the base's.
        device: Where to compute.

    Raises:
        ValueError: If `adapter` is none, they do not belong together, or the base's folder has a
            problem that the result would have too.
    """
    folder = Path(adapter)
    if not is_adapter(folder):
        raise ValueError(f"{adapter} is no adapter: there is nothing to merge into a base.")
    home = locate(str(base if base is not None else named_base(folder)))
    if not home.is_dir():
        raise ValueError(f"{home} is a file: give the base as a folder with its config.json.")
    checked = check_model(home, values=False)
    if checked.problems:
        raise ValueError(f"the base {home}: {checked.problems[0]}.")
    opened = open_source("the base", home)
    held = open_adapter(folder)
    source = AdapterSource(folder.name, held, opened, folder)
    job = prepare(
        opened, {"adapter": source}, "task_arithmetic",
        out_dtype=dtype, device=device,
    )  # fmt: skip
    size = sum(torch.Size(opened.shape(n)).numel() * job.stored_dtype(n).itemsize for n in opened)
    said = other_base(held.config, home)
    odd = [] if said is None else [f"it says that it was trained on {said}, and is added to {home}"]
    notes = (*odd, *checked.notes)
    return MergedPlan(job, home, len(held), len(source.whole), size, notes)


def export_merged(
    adapter: str | Path,
    out: str | Path,
    *,
    base: str | Path | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    overwrite: bool = False,
    max_shard_bytes: float = 2e9,
    watch: Watch | None = None,
) -> Checked:
    """Add a PEFT LoRA folder to its base and check that the result will load.

    A few tensors are in memory at a time; norms and biases that the adapter keeps whole replace
    the base's.

    Args:
        adapter: The folder.
        out: The folder to create; it appears when it is whole, and a kill costs one shard.
        base: The model's folder; by default the one that the adapter names.
        dtype: Of the result; by default the base's.
        device: Where to compute.
        overwrite: Whether a folder that is there is replaced.
        max_shard_bytes: Bytes of tensors in one file at most.
        watch: Told how many tensors are written, and of how many.

    Returns:
        What `check_model` finds.

    Raises:
        FileExistsError: If `out` holds something else.
        ValueError: Before the first byte, if adapter and base do not belong together or the base's
            folder would not load.

    Example:
        >>> export_merged("code-lora", "llama-code", base="llama")  # doctest: +SKIP
    """
    plan = plan_merged(adapter, base, dtype=dtype, device=device)
    plan.write(out, max_shard_bytes=max_shard_bytes, overwrite=overwrite, watch=watch)
    return check_model(out, values=False)


def named_base(folder: Path) -> str:
    """The base that an adapter's configuration names."""
    name = read_config(folder if folder.is_dir() else folder.parent, CONFIG).get(
        "base_model_name_or_path"
    )
    if not name:
        raise ValueError(f"{folder} does not say what it was trained on: name it with --base.")
    return str(name)


def merged_from(folder: Path) -> str | None:
    """The base that a folder was merged from, as its record says."""
    try:
        held = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    parts = held.get("parts", [held]) if isinstance(held, Mapping) else []
    inputs = parts[0].get("inputs") if parts else None
    first = inputs[0] if inputs else None
    return first.get("place") if isinstance(first, Mapping) else None
