"""Merges of folders: everything opened and checked, ready to be written."""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from spanwise.atlas import Atlas
from spanwise.io import plan_shards, write_json
from spanwise.io.configs import to_plain
from spanwise.merging._fits import check_filters, check_word, unmatched
from spanwise.merging._folder import Watch, Written, merge_to_folder, sources_of
from spanwise.merging._job import Job
from spanwise.merging._matched import stats_files
from spanwise.merging._merge import MEMORY, prepare
from spanwise.merging._mergekit import read_recipe
from spanwise.merging._methods._method import Method
from spanwise.merging._open import has_tokenizer, read_config, text_part
from spanwise.merging._parts import Parts, SliceDepths, layer_slice, layered_config
from spanwise.merging._recipe import Portion, Recipe, Reference, Slice, Tokens
from spanwise.merging._schedule import Depths
from spanwise.merging._shelf import Shelf
from spanwise.merging._sources import Source
from spanwise.merging._unchanged import told, unchanged
from spanwise.merging._vocabulary import FILES, retargeted

SHARD = 2e9
"""Bytes of tensors in one file at most, unless another size is given."""

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


@dataclass(frozen=True)
class Treatment:
    """Tensors that differ in the number of their layer only, and what happens to them."""

    tensors: str
    count: int
    kind: str
    """`matrix`, `vector` (averaged by methods for matrices) or `copy`."""
    shape: tuple[int, ...]
    dtype: str
    """As written."""
    nbytes: int
    """Of all of them, as written."""


@dataclass(frozen=True, kw_only=True)
class MergePlan:
    """A merge that has passed every check; nothing is written yet."""

    method: str
    parts: Parts
    notes: tuple[str, ...]
    complete: Callable[[Path], None]
    more: Mapping[str, Any]

    def write(
        self,
        out: str | Path,
        *,
        max_shard_bytes: float = SHARD,
        workers: int = 1,
        memory: float = MEMORY,
        overwrite: bool = False,
        watch: Watch | None = None,
    ) -> Written:
        """Merge into the folder `out`; see `merge_folders`."""
        written = merge_to_folder(
            self.parts, out, max_shard_bytes=max_shard_bytes, workers=workers, memory=memory,
            overwrite=overwrite, watch=watch, complete=self.complete, more=self.more,
        )  # fmt: skip
        return replace(written, notes=self.notes)

    @property
    def sources(self) -> list[Source]:
        """Every model that is read, as often as it is."""
        return sources_of(self.parts)

    @cached_property
    def treatments(self) -> list[Treatment]:
        """What happens to every tensor, in the order of the result."""
        rows: dict[tuple[Any, ...], int] = {}
        for name in self.parts.inputs.reference:
            shape = self.parts.inputs.reference.shape(name)
            dtype = str(self.parts.stored_dtype(name)).removeprefix("torch.")
            key = (_NUMBER.sub("*", name), self.parts.kind(name), shape, dtype)
            rows[key] = rows.get(key, 0) + 1
        return [
            Treatment(name, count, kind, shape, dtype, count * math.prod(shape) * _width(dtype))
            for (name, kind, shape, dtype), count in rows.items()
        ]

    @property
    def read_bytes(self) -> int:
        """Bytes of the files that are read; methods that look twice read them twice."""
        folders = {source.folder for source in self.sources if source.folder is not None}
        files = [file for folder in folders for file in folder.glob("*.safetensors")]
        loose = {id(s.tensors): s.tensors.nbytes for s in self.sources if s.folder is None}
        return sum(file.stat().st_size for file in files) + sum(loose.values())

    def peak(self, workers: int = 1, memory: float = MEMORY) -> int:
        """Estimated bytes of the tensors in work, at most."""
        sizes = sorted(map(self.parts.bytes_of, self.parts.inputs.reference), reverse=True)
        together = sum(sizes[: max(1, workers)])
        return max(sizes[0], int(min(memory, together)))

    def shards(self, max_shard_bytes: float = SHARD) -> int:
        """How many files the result has."""
        reference = self.parts.inputs.reference
        entries = {n: (self.parts.stored_dtype(n), reference.shape(n)) for n in reference}
        return len(plan_shards(entries, max_shard_bytes))


def plan_folders(
    base: str | Path | None,
    models: Sequence[str | Path] | Mapping[str, str | Path],
    method: str | Method = "iso_c",
    *,
    tokenizer: str | Path | None = None,
    out_dtype: torch.dtype | None = None,
    **options: Any,
) -> MergePlan:
    """A merge of folders, checked; arguments as `merge_folders` has them."""
    if isinstance(models, (str, Path)) or not isinstance(models, (Mapping, Sequence)):
        raise TypeError(f"models must be a sequence or a mapping of paths, got {models!r}.")
    named = models if isinstance(models, Mapping) else {
        f"model {index}": path for index, path in enumerate(models, start=1)
    }  # fmt: skip
    root = None if base is None else Reference(str(base))
    references = {label: Reference(str(path)) for label, path in named.items()}
    source = tokenizer if tokenizer in (None, "base", "union") else Reference(str(tokenizer))
    if isinstance(source, Reference):
        check_word(source.path)
    tokens = None if source is None else Tokens(source)
    shelf = Shelf(root, list(references.values()), tokens=tokens)
    opened = None if root is None else shelf.model(root, "base", None)
    sources = {label: shelf.model(ref, label, opened) for label, ref in references.items()}
    job = prepare(opened, sources, method, out_dtype=out_dtype, **options)
    check_filters(job)
    first = shelf.folder
    name = method if isinstance(method, str) else type(method).__name__
    return MergePlan(
        method=name,
        parts=Parts((job,), out_dtype, first),
        notes=(*shelf.notes, *unmatched(job), *_idle(job)),
        complete=_Finish(shelf, None, None),
        more={
            "tokenizer": None if tokens is None else str(tokens.source),
            "stats": _marks(options.get("stats")),
        },
    )


def plan_config(
    source: str | Path | Mapping[str, Any],
    *,
    avoid: Atlas | None = None,
    within: Atlas | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> MergePlan:
    """A merge that a mergekit configuration describes, checked; see `merge_config`."""
    recipe = read_recipe(source)
    if recipe.tokens is not None and isinstance(recipe.tokens.source, Reference):
        check_word(recipe.tokens.source.path)
    beside = Path(source).parent if isinstance(source, (str, Path)) else None
    shelf = Shelf(
        recipe.base, recipe.references, tokens=recipe.tokens, beside=beside, sliced=recipe.sliced
    )
    if recipe.sliced and (avoid is not None or within is not None):
        raise ValueError("avoid and within speak of a base's layers, which slices number anew.")
    out_dtype = _dtype(recipe.out_dtype or recipe.dtype)
    options = {
        "out_dtype": out_dtype, "avoid": avoid, "within": within, "device": device, "seed": seed,
        "work_dtype": torch.float64 if recipe.dtype == "float64" else torch.float32,
    }  # fmt: skip
    jobs: list[Job] = []
    layers: list[tuple[Reference, int]] = []
    for index, part in enumerate(recipe.slices):
        ends = (index == 0, index == len(recipe.slices) - 1)
        jobs.append(_job(shelf, part, len(layers), ends, options))
        first = part.base or part.models[0]
        start, stop = first.layers or (0, jobs[-1].depths.layers)
        layers += [(first.model, number) for number in range(start, stop)]
    notes = [*recipe.notes, *shelf.notes, *(() if recipe.sliced else _idle(jobs[0]))]
    template = _template(recipe, shelf, notes)
    return MergePlan(
        method=recipe.name,
        parts=Parts(tuple(jobs), out_dtype, shelf.folder),
        notes=tuple(notes),
        complete=_Finish(shelf, layers if recipe.sliced else None, template),
        more={"recipe": to_plain(recipe)},
    )


def merge_folders(
    base: str | Path | None,
    models: Sequence[str | Path] | Mapping[str, str | Path],
    method: str | Method,
    out: str | Path,
    *,
    tokenizer: str | Path | None = None,
    max_shard_bytes: float = SHARD,
    workers: int = 1,
    memory: float = MEMORY,
    overwrite: bool = False,
    watch: Watch | None = None,
    **options: Any,
) -> Written:
    """Merge models on disk into a folder that `from_pretrained` loads.

    A few tensors are in memory at a time. Everything is checked before the first byte is written:
    architectures, names, shapes, tokenizers, the method's needs, room on the disk. After a kill,
    the same call goes on with the first shard that is not whole; several processes that make the
    same call share the work.

    Args:
        base: The folder (or safetensors file) that the models were trained from; None for methods
            that need none.
        models: Folders of whole models or of PEFT LoRA adapters. A mapping gives them names, which
            errors and random draws use.
        method: A name of `spanwise.merging.METHODS`, or an instance of one of its classes.
        out: The folder to create; it appears when it is whole.
        tokenizer: What becomes of different vocabularies: `"base"`, `"union"`, or the folder of the
            tokenizer that the result gets. None demands that every row means the same token in
            every model.
        max_shard_bytes: Bytes of tensors in one file at most, which is also what a kill costs.
        workers: Tensors at once, each on one core.
        memory: Bytes that tensors in work may take together.
        overwrite: Whether a folder that is there is replaced.
        watch: Told how many tensors are written, and of how many.
        **options: As `merge` takes them: alpha, exclude, avoid, out_dtype, seed, and the method's
            own parameters.

    Raises:
        FileExistsError: If `out` holds something else.
        OSError: If the disk has no room; checked before the first byte.
        ValueError: If anything does not fit together.

    Example:
        >>> merge_folders(
        ...     "llama", ["llama-code", "llama-math"], "ties", "merged", density=0.2
        ... )  # doctest: +SKIP
    """
    plan = plan_folders(base, models, method, tokenizer=tokenizer, **options)
    return plan.write(
        out, max_shard_bytes=max_shard_bytes, workers=workers, memory=memory,
        overwrite=overwrite, watch=watch,
    )  # fmt: skip


def merge_config(
    config: str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    avoid: Atlas | None = None,
    within: Atlas | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    max_shard_bytes: float = SHARD,
    workers: int = 1,
    memory: float = MEMORY,
    overwrite: bool = False,
    watch: Watch | None = None,
) -> Written:
    """Merge as a mergekit configuration says, into a folder that `from_pretrained` loads.

    Its meaning is mergekit's, also where this library's defaults differ; arithmetic is float32
    whatever `dtype` says. `merge_method` may also name any method of `spanwise.merging.METHODS`.

    Args:
        config: A YAML file, or what it holds.
        out: The folder to create.
        avoid: Directions of the base that must not change.
        within: The only directions that may change.
        device: Where to compute.
        seed: Of methods that draw at random.
        max_shard_bytes: Bytes of tensors in one file at most.
        workers: Tensors at once.
        memory: Bytes that tensors in work may take together.
        overwrite: Whether a folder that is there is replaced.
        watch: Told how many tensors are written, and of how many.

    Raises:
        FileExistsError: If `out` holds something else.
        FileNotFoundError: If a model is not there.
        OSError: If the disk has no room.
        ValueError: If a key or a parameter is unknown or unsupported, or models do not fit.
    """
    plan = plan_config(config, avoid=avoid, within=within, device=device, seed=seed)
    return plan.write(
        out, max_shard_bytes=max_shard_bytes, workers=workers, memory=memory,
        overwrite=overwrite, watch=watch,
    )  # fmt: skip


def _job(
    shelf: Shelf, part: Slice, offset: int, ends: tuple[bool, bool], options: Mapping[str, Any]
) -> Job:
    """One slice's merge; `offset` layers lie before it."""

    def source(portion: Portion, label: str, base: Source | None) -> Source:
        if portion.layers is None:
            return shelf.model(portion.model, label, base)
        whole = shelf.whole(portion.model, label)
        start, stop = portion.layers
        layers = Depths.of(list(whole)).layers
        if stop > layers:
            raise ValueError(
                f"layer_range [{start}, {stop}] of {portion.model} reaches beyond its {layers} "
                "layers."
            )
        return layer_slice(whole, start, stop, offset, before=ends[0], after=ends[1])

    base = None if part.base is None else source(part.base, "base", None)
    models = {
        f"model {index}": source(portion, f"model {index}", base)
        for index, portion in enumerate(part.models, start=1)
    }
    stats = stats_files([(str(p.model), p.stats) for p in part.models], shelf.beside)
    job = prepare(
        base, models, part.method, alpha=part.alpha, stats=stats, **part.parameters, **options
    )
    span = part.models[0].layers
    count = Depths.of(job.inputs.names).layers if span is None else span[1] - span[0]
    job = replace(job, depths=SliceDepths(count, offset))
    check_filters(job)
    return job


def _idle(job: Job) -> list[str]:
    """A note of models that add nothing."""
    found = unchanged(job.inputs)
    return [told(found)] if found else []


def _marks(stats: Any) -> list[Any]:
    """What tells files of statistics from others, so that a merge is not resumed with new ones."""
    held = stats.values() if isinstance(stats, Mapping) else stats or ()
    files = [Path(file) for file in held if isinstance(file, (str, Path))]
    return [[str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns] for f in files]


def _template(recipe: Recipe, shelf: Shelf, notes: list[str]) -> str | None:
    """The chat template that is written into the result."""
    if recipe.chat_template != "auto":
        return recipe.chat_template
    found = Counter(
        text.strip() for folder in shelf.folders for text in [chat_template(folder)] if text
    )
    if not found:
        notes.append("chat_template: auto, but no model has one")
        return None
    return found.most_common(1)[0][0]


def chat_template(folder: Path) -> str | None:
    """The chat template of a tokenizer's folder."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    held = read_config(folder, "tokenizer_config.json").get("chat_template")
    return held if isinstance(held, str) else None


@dataclass(frozen=True)
class _Finish:
    """Configuration and tokenizer of the result, once copies of the base's lie there."""

    shelf: Shelf
    layers: Sequence[tuple[Reference, int]] | None
    template: str | None

    def __call__(self, folder: Path) -> None:
        self._config(folder)
        vocabulary = self.shelf.vocabulary
        if vocabulary is not None:
            vocabulary.write(folder)
        elif not has_tokenizer(folder):
            donor = next((f for f in self.shelf.folders if has_tokenizer(f)), None)
            for name in FILES if donor is not None else ():
                if donor is not None and (donor / name).is_file():
                    (folder / name).write_bytes((donor / name).read_bytes())
        if self.template is not None:
            (folder / "chat_template.jinja").write_text(self.template, encoding="utf-8")
            held = read_config(folder, "tokenizer_config.json")
            if "chat_template" in held:
                held["chat_template"] = self.template
                write_json(folder / "tokenizer_config.json", held)

    def _config(self, folder: Path) -> None:
        config = read_config(folder)
        if not config:
            return
        inner = text_part(config)
        part = dict(inner)
        if self.layers is not None:
            origins = [(text_part(self.shelf.config(ref)), n) for ref, n in self.layers]
            part = layered_config(part, origins)
        vocabulary, old, outer = self.shelf.vocabulary, self.shelf.ids, config
        if vocabulary is not None:
            part = {**retargeted(part, old, vocabulary.ids), "vocab_size": vocabulary.rows}
            outer = retargeted(config, old, vocabulary.ids)
            generation = read_config(folder, "generation_config.json")
            if generation:
                moved = retargeted(generation, old, vocabulary.ids)
                write_json(folder / "generation_config.json", moved)
        held = part if inner is config else {**outer, "text_config": part}
        write_json(folder / "config.json", held)


def _dtype(name: str | None) -> torch.dtype | None:
    return None if name is None else getattr(torch, name)


def _width(dtype: str) -> int:
    return getattr(torch, dtype).itemsize
