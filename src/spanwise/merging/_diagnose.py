"""`diagnose`: what updates have in common, before anything is merged."""

import math
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from spanwise.merging._diagnosis import Diagnosis
from spanwise.merging._inputs import open_inputs
from spanwise.merging._merge import MEMORY, Watch
from spanwise.merging._pair_rows import Totals, layer_row, model_row, ranked
from spanwise.merging._pairs import Measured, bytes_of, matrices, measure, touched
from spanwise.merging._parallel import side_by_side
from spanwise.merging._sources import Inputs, Model
from spanwise.merging._spectra import size_for
from spanwise.merging._work import Work

RANK = 16
"""Leading directions that are compared, unless an energy or a rank is given."""

SizeOf = Callable[[Tensor], int]
"""From singular values, largest first, how many directions are compared."""

Compared = tuple[Tensor, list[tuple[str, Measured]]]
"""Inner products of the updates of one tensor, and its matrices by name."""


def diagnose(
    base: Model,
    models: Sequence[Model] | Mapping[str, Model],
    *,
    names: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    rank: int | None = None,
    energy: float | None = None,
    device: torch.device | str = "cpu",
    workers: int = 1,
    memory: float = MEMORY,
    progress: Watch | None = None,
) -> Diagnosis:
    """Compare fine-tunes of one base by the singular directions of their updates.

    One tensor of all models is looked at at a time. Arithmetic is float32 (float64 where a model
    is), Gram matrices and sums are float64. Updates of LoRA adapters alone are compared in the
    coordinates of their factors, exactly and without dense updates.

    With D_i the update of model i and U_j, V_j the k leading left and right singular vectors of
    D_j, the shared energy of a layer is the mean of ||U_j^T D_i||^2 / ||D_i||^2 and
    ||D_i V_j||^2 / ||D_i||^2, and of both with i and j exchanged. Everything else: `PairRow`,
    `ModelRow`, `Layer`.

    All of it describes updates. No number here is an accuracy, and a high score is no promise that
    a merge will be good.

    Args:
        base: What the models were trained from.
        models: Two or more: modules, state dicts, safetensors files, transformers folders or LoRA
            folders. A mapping gives them names.
        names: Only tensors whose name contains one of these; `*` stands for anything.
        exclude: No tensors whose name contains one of these.
        rank: k, the same for every update, at most its own rank; 16 by default.
        energy: Instead of a rank: k is the fewest directions that hold this share of an update's
            energy, in (0, 1].
        device: Where to compute.
        workers: Tensors at once, each on one core.
        memory: Bytes that tensors in work may take together.
        progress: Told how many tensors are done, and of how many.

    Raises:
        ValueError: If there are fewer than two models, they do not fit the base, nothing is left
            to compare, an update is not finite, or an option is out of range.

    Sources:
        Marczak et al., arXiv 2502.04959, equations 5 and 6, for the alignment ratio; Roy and
        Vetterli, "The effective rank", 2007.

    Example:
        >>> found = diagnose("llama", {"code": "llama-code", "math": "llama-math"})
        >>> print(found.pairs[0].score)  # doctest: +SKIP
    """
    named = _named(models)
    size_of = _size(rank, energy)
    inputs = open_inputs(base, named)
    chosen = _chosen(inputs, names, exclude)
    labels, at = list(named), torch.device(device)
    results: dict[str, Compared] = {}

    def compared(name: str) -> Compared:
        return _compared(_work(inputs, name, at), size_of)

    def size(name: str) -> int:
        return bytes_of(_work(inputs, name, at))

    tasks = side_by_side(compared, chosen, workers=workers, ceiling=memory, size=size)
    for name, found in tasks:
        results[name] = found
        if progress:
            progress(len(results), len(chosen))
    ordered = [results[name] for name in chosen]
    inner = torch.stack([found[0] for found in ordered]).sum(0)
    held = [row for found in ordered for row in found[1]]
    measured = [matrix for _, matrix in held]
    totals = Totals(len(labels))
    for matrix in measured:
        totals.add(matrix)
    return Diagnosis(
        pairs=ranked(labels, inner, totals),
        models=tuple(model_row(labels, i, inner, measured, totals) for i in range(len(labels))),
        layers=tuple(layer_row(name, matrix, labels) for name, matrix in held),
        settings={
            "rank": RANK if rank is None and energy is None else rank,
            "energy": energy,
            "names": None if names is None else list(names),
            "exclude": list(exclude),
            "tensors": len(chosen),
        },
        notes=tuple(_notes(labels, inner, inputs, chosen)),
    )


def _compared(work: Work, size_of: SizeOf) -> Compared:
    """Inner products of the updates of one tensor, and what its matrices have in common."""
    inner = torch.zeros(work.count, work.count, dtype=torch.float64)
    found: list[tuple[str, Measured]] = []
    if not touched(work) or not math.prod(work.shape):
        return inner, found
    if not work.matrix:
        for part in work.parts():
            updates = [update.flatten().double() for update in part.updates()]
            stacked = torch.stack(updates)
            inner += (stacked @ stacked.mT).cpu()
        return inner, found
    for name, updates in matrices(work):
        measured = measure(updates, size_of)
        if measured is not None:
            inner += measured.inner
            found.append((name, measured))
    return inner, found


def _work(inputs: Inputs, name: str, device: torch.device) -> Work:
    reference = inputs.reference
    shape, dtype = reference.shape(name), torch.float32
    for source in (reference, *inputs.models):
        dtype = torch.promote_types(dtype, source.dtype(name))
    matrix = len(shape) == 2 or (len(shape) == 3 and "expert" in name)
    return Work(name=name, shape=shape, matrix=matrix, inputs=inputs, dtype=dtype, device=device)


def _named(models: Any) -> dict[str, Model]:
    if not isinstance(models, (Mapping, Sequence)) or isinstance(models, str):
        raise TypeError(
            f"models must be a sequence or a mapping of models, got {type(models).__name__}."
        )
    named = dict(models) if isinstance(models, Mapping) else {
        f"model {index}": model for index, model in enumerate(models, start=1)
    }  # fmt: skip
    if len(named) < 2:
        raise ValueError(f"models must be two or more, for pairs are compared, got {len(named)}.")
    return named


def _size(rank: int | None, energy: float | None) -> SizeOf:
    """From singular values, how many directions to compare."""
    if rank is not None and energy is not None:
        raise ValueError(f"give rank = {rank} or energy = {energy}, not both.")
    if energy is not None:
        if not 0 < energy <= 1:
            raise ValueError(f"energy must be a share in (0, 1], got {energy}.")
        lost = math.sqrt(1 - energy)
        return lambda s: size_for(s, lost)
    most = RANK if rank is None else rank
    if isinstance(most, bool) or not isinstance(most, int):
        raise TypeError(f"rank must be an integer, got {rank!r}.")
    if most < 1:
        raise ValueError(f"rank must be at least 1, got {rank}.")
    return lambda s: min(most, len(s))


def _chosen(inputs: Inputs, names: Sequence[str] | None, exclude: Sequence[str]) -> list[str]:
    """Floating-point tensors that are looked at."""
    for key, texts in (("names", names), ("exclude", exclude)):
        if isinstance(texts, str):
            raise TypeError(f"{key} must be a sequence of texts, got the text {texts!r}.")
    reference = inputs.reference
    known = [name for name in reference if reference.dtype(name).is_floating_point]
    found = [
        name
        for name in known
        if (names is None or any(_fits(name, text) for text in names))
        and not any(_fits(name, text) for text in exclude)
    ]
    if not found:
        raise ValueError(
            f"no tensor is left to compare with names = {names} and exclude = {exclude}: the "
            f"base's are {', '.join(known[:3]) or 'none'}, ..."
        )
    return found


def _fits(name: str, text: str) -> bool:
    return text in name or fnmatchcase(name, f"*{text}*")


def _notes(
    labels: Sequence[str], inner: Tensor, inputs: Inputs, chosen: Sequence[str]
) -> list[str]:
    notes = []
    for label, energy in zip(labels, inner.diagonal().tolist(), strict=True):
        if not energy:
            where = "the base" if len(chosen) == len(inputs.names) else "the base in these tensors"
            notes.append(f"{label} equals {where}: it has no update, and its pairs score 0")
    return notes
