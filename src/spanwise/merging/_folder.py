"""A merge that streams from folder to folder."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spanwise.atlas import Atlas
from spanwise.io import SharedFolder, check_place, open_tensors, plan_shards, write_json
from spanwise.io._reader import tensor_bytes
from spanwise.merging._job import Job
from spanwise.merging._parallel import side_by_side
from spanwise.merging._parts import Parts
from spanwise.merging._sources import Source

Watch = Callable[[int, int], None]
"""Told how many tensors are written, and of how many."""

RECORD = "merge.json"
"""What a merged folder says of how it was made."""

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf")
_OTHERS = ("README.md", "optimizer.pt", "trainer_state.json", "training_args.bin", RECORD)


@dataclass(frozen=True)
class Written:
    """What `merge_to_folder` did.

    Attributes:
        folder: The merged model.
        tensors: How many tensors this process wrote.
        reused: Shards that an earlier, interrupted run had finished.
        removed: Tensor -> (energy that `avoid` and `within` took away, energy before), summed over
            the updates that this process projected.
        notes: What a reader should know: parameters left out, configurations that differ.
    """

    folder: Path
    tensors: int
    reused: int
    removed: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def merge_to_folder(
    job: Job | Parts,
    folder: str | Path,
    *,
    max_shard_bytes: float = 2e9,
    workers: int = 1,
    memory: float = 2**30,
    overwrite: bool = False,
    watch: Watch | None = None,
    complete: Callable[[Path], None] | None = None,
    more: Mapping[str, Any] | None = None,
) -> Written:
    """Merge into a folder that `from_pretrained` loads, a few tensors in memory at a time.

    Several processes, on one machine or on several that share the disk, may be given the same
    job and folder: they divide the shards among themselves. Run it again after a kill, and it goes
    on where it stopped.

    Args:
        job: From `prepare`.
        folder: What to create; it appears when it is whole.
        max_shard_bytes: Bytes of tensors in one file at most, which is also what a kill costs.
        workers: Tensors at once.
        memory: Bytes that tensors in work may take together.
        overwrite: Whether a folder that is there is replaced.
        watch: Told how far this process is.
        complete: Changes what lies beside the weights, given the folder before it is whole.
        more: What else identifies the job, JSON.

    Raises:
        FileExistsError: If `folder` holds something else.
        OSError: If the disk has no room; checked before the first byte.
        ValueError: If another unfinished job lies there, or an input turns out not to be finite.
    """
    folder = Path(folder)
    identity = {**describe(job), **(more or {})}
    if _made_by(folder, identity) and not overwrite:
        return Written(folder, 0, 0)
    reference = job.inputs.reference
    entries = {name: (job.stored_dtype(name), reference.shape(name)) for name in reference}
    shards = plan_shards(entries, max_shard_bytes)
    check_apart(folder, sources_of(job))
    _check_room(folder, sum(shard.nbytes for shard in shards))
    shared = SharedFolder(folder, shards, job=identity, overwrite=overwrite)
    total = sum(len(s.entries) for s in shards if not (shared.staging / s.file).is_file())
    begun: Job | Parts | None = None
    done = 0
    for file in shared.pending():
        begun = begun or job.begun()
        tasks = side_by_side(
            begun.tensor, file.shard.entries, workers=workers, ceiling=memory, size=begun.bytes_of
        )
        for name, tensor in tasks:
            file.add(name, tensor)
            done += 1
            if watch:
                watch(done, total)
        file.close()

    def beside(staging: Path) -> None:
        source = next((s.folder for s in (reference, *job.inputs.models) if s.folder), None)
        if source is not None:
            copy_companions(source, staging, job.out_dtype)
        if complete is not None:
            complete(staging)
        write_json(staging / RECORD, identity)

    shared.finish(beside)
    return Written(folder, done, shared.reused, removed(job))


def unfinished(folder: str | Path) -> int:
    """Shards that an interrupted run left for `folder`, which the next one will not redo."""
    target = Path(folder).resolve()
    staging = target.with_name(f".{target.name}.partial")
    return len([p for p in staging.glob("*.safetensors") if not p.name.startswith(".")])


def describe(job: Job | Parts) -> dict[str, Any]:
    """What identifies a merge: the method, every parameter, and the inputs."""
    if isinstance(job, Parts):
        return {"parts": [describe(part) for part in job.jobs], "out_dtype": str(job.out_dtype)}
    sources = [job.inputs.base, *job.inputs.models]
    return {
        "method": type(job.method).__name__,
        "options": _plain(asdict(job.method)),
        "reads": [_files(path) for path in job.method.reads()],
        "per_model": {k: [s.value for s in held] for k, held in job.per_model.items()},
        "schedules": {key: schedule.value for key, schedule in job.schedules.items()},
        "include": job.include and list(job.include),
        "exclude": list(job.exclude),
        "dtype": str(job.dtype),
        "out_dtype": str(job.out_dtype),
        "seed": job.seed,
        "stats": [held.digest() for held in job.stats],
        "avoid": None if job.keeper is None else _atlas_digest(job.keeper.avoid),
        "within": None if job.keeper is None else _atlas_digest(job.keeper.within),
        "inputs": [None if source is None else fingerprint(source) for source in sources],
    }


def fingerprint(source: Source) -> dict[str, Any]:
    """What tells one model from another: its files by size and time, or else every byte."""
    found: dict[str, Any] = {"label": source.label}
    if source.place is None:
        return {**found, "digest": source.digest()}
    found["place"] = str(source.place.resolve())
    found["files"] = _files(source.place)
    return found


def _files(place: Path) -> list[list[Any]]:
    """Names, sizes and times of a file, or of a folder's weights."""
    files = sorted(place.glob("*.safetensors")) if place.is_dir() else [place]
    return [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files]


def _atlas_digest(atlas: Atlas | None) -> str | None:
    if atlas is None:
        return None
    total = hashlib.sha256()
    for entry in sorted(atlas, key=lambda e: e.key):
        total.update(json.dumps([entry.name, entry.side, entry.layout]).encode())
        total.update(tensor_bytes(entry.subspace.basis))
    return total.hexdigest()


def copy_companions(source: Path, folder: Path, dtype: torch.dtype | None) -> None:
    """Copy what lies beside a model's weights: configuration, tokenizer, code.

    Args:
        source: A transformers folder.
        folder: Where to.
        dtype: What the configuration shall name as the weights' dtype; None keeps its own.
    """
    for path in sorted(source.iterdir()):
        if path.name.startswith(".") or path.name in _OTHERS or path.suffix in _WEIGHTS:
            continue
        if path.name.endswith(".index.json") or (folder / path.name).exists():
            continue
        if path.is_dir():
            if not any(f.suffix in _WEIGHTS for f in path.rglob("*")):
                shutil.copytree(path, folder / path.name)
        else:
            shutil.copyfile(path, folder / path.name)
    config = folder / "config.json"
    if dtype is not None and config.is_file():
        held = json.loads(config.read_text(encoding="utf-8"))
        for key in ("dtype", "torch_dtype"):
            if key in held:
                held[key] = str(dtype).removeprefix("torch.")
        write_json(config, held)


def removed(job: Job | Parts) -> dict[str, tuple[float, float]]:
    """Tensor -> (energy that `avoid` and `within` took away, energy before), so far."""
    keepers = [j.keeper for j in (job.jobs if isinstance(job, Parts) else [job])]
    held = {n: counts for k in keepers if k is not None for n, counts in k.removed.items()}
    return {name: (counts[0], counts[1]) for name, counts in held.items()}


def _made_by(folder: Path, identity: Mapping[str, Any]) -> bool:
    """Whether the folder is the finished result of the very same job."""
    try:
        held = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        open_tensors(folder)
    except (OSError, ValueError):
        return False
    return held == json.loads(json.dumps(identity))


def sources_of(job: Job | Parts) -> list[Source]:
    """Every model that a merge reads, as often as it does."""
    jobs = job.jobs if isinstance(job, Parts) else [job]
    return [s for j in jobs for s in (j.inputs.base, *j.inputs.models) if s is not None]


def check_apart(folder: Path, sources: Iterable[Source]) -> None:
    """Raise `ValueError` if a result would take the place of what it is made from."""
    for source in sources:
        if source.place is not None and source.place.resolve() == folder.resolve():
            raise ValueError(
                f"{folder} is read as {source.label}, and would be replaced by what is made of it: "
                "name another folder."
            )


def _check_room(folder: Path, needed: int) -> None:
    check_place(folder)
    nearest = folder.absolute()
    while not nearest.exists():
        nearest = nearest.parent
    free = shutil.disk_usage(nearest).free
    if free < needed:
        raise OSError(
            28,
            f"the merged model takes {needed / 1e9:.2f} GB, but the disk has {free / 1e9:.2f} GB "
            "free: name a folder on another one",
            str(folder),
        )


def _plain(value: Any) -> Any:
    """Options as JSON: tensors by their digest, mappings by what they hold."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Tensor):
        return hashlib.sha256(value.double().numpy().tobytes()).hexdigest()
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
