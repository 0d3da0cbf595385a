"""The difference of two models as a LoRA: what it would hold, before it is written."""

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from spanwise.merging._export.difference import (
    Decomposition,
    Difference,
    energies,
    open_difference,
)
from spanwise.merging._export.peft import whole_tensors
from spanwise.merging._export.ranks import Budget, kept, uniform_ranks
from spanwise.merging._export.targets import Target
from spanwise.merging._export.write import WrittenLora, write_lora
from spanwise.merging._sources import Model

Watch = Callable[[int, int], None]
"""Told how many tensors are done, and of how many."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""What factors may be stored in."""


@dataclass(frozen=True)
class Matrix:
    """A matrix that differs.

    Attributes:
        target: Which.
        spectrum: Squared singular values of its difference, largest first.
        energy: Squared Frobenius norm of its difference.
        rank: How many directions the LoRA gets; 0 leaves it out.
    """

    target: Target
    spectrum: Tensor
    energy: float
    rank: int = 0

    @property
    def kept(self) -> float:
        """Energy of the directions that the LoRA gets."""
        return kept([self.spectrum], [self.rank])


@dataclass(frozen=True)
class Left:
    """A tensor that differs and gets no factors.

    Attributes:
        reason: Why.
        energy: Squared Frobenius norm of its difference.
        saved: Whether it is written whole beside the factors.
    """

    reason: str
    energy: float
    saved: bool = False


@dataclass(frozen=True, kw_only=True)
class LoraPlan:
    """A LoRA whose ranks are chosen; nothing is written yet.

    Attributes:
        matrices: What differs and could have factors, in the order of the model.
        left: Name -> what else differs.
        dtype: Of the factors.
        notes: What a reader should know.
    """

    difference: Difference
    matrices: tuple[Matrix, ...]
    left: Mapping[str, Left]
    budget: Budget
    dtype: torch.dtype
    method: Decomposition
    seed: int
    notes: tuple[str, ...] = ()

    @property
    def chosen(self) -> list[tuple[Target, int]]:
        """The matrices that get factors, with their ranks."""
        return [(m.target, m.rank) for m in self.matrices if m.rank]

    @property
    def total(self) -> float:
        """Squared Frobenius norm of the whole difference."""
        return sum(m.energy for m in self.matrices) + sum(f.energy for f in self.left.values())

    @property
    def energy(self) -> float:
        """Share of it that the folder holds, in [0, 1]: in factors, or whole."""
        whole = sum(found.energy for found in self.left.values() if found.saved)
        return min(1.0, (sum(m.kept for m in self.matrices) + whole) / self.total)

    @property
    def ranks(self) -> dict[str, int]:
        """Weight -> rank, of all that differ; 0 where the budget leaves it out."""
        return {m.target.name: m.rank for m in self.matrices}

    @property
    def parameters(self) -> int:
        """Numbers in the factors."""
        return sum(target.cost * rank for target, rank in self.chosen)

    @property
    def whole(self) -> dict[str, str]:
        """Vectors that are written whole -> PEFT's names of them."""
        saved = [name for name, found in self.left.items() if found.saved]
        return whole_tensors(self.difference, [t.module for t, _ in self.chosen], saved)

    @property
    def entries(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Dtype and shape of every tensor that is written, by PEFT's names."""
        found = {
            name: (self.dtype, shape)
            for target, rank in self.chosen
            for name, shape in target.shapes(rank).items()
        }
        for name, key in self.whole.items():
            found[key] = (self.difference.whole_dtype(name), self.difference.shape(name))
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors that are written."""
        return sum(math.prod(shape) * d.itemsize for d, shape in self.entries.values())

    @property
    def uniform(self) -> tuple[int, float] | None:
        """The rank that everywhere takes as much, and the share of energy it would hold.

        That of `budget_rank`; else the largest that takes no more, None where not even 1 does.
        """
        spectra = [m.spectrum for m in self.matrices]

        def size(rank: int) -> int:
            alike = uniform_ranks(spectra, rank)
            return sum(m.target.cost * r for m, r in zip(self.matrices, alike, strict=True))

        rank = self.budget.shared_rank
        if rank is None:
            widest = max(map(len, spectra))
            rank = bisect.bisect_right(range(1, widest + 1), self.parameters, key=size)
        if not rank:
            return None
        whole = sum(found.energy for found in self.left.values() if found.saved)
        return rank, min(1.0, (kept(spectra, uniform_ranks(spectra, rank)) + whole) / self.total)

    def record(self) -> dict[str, Any]:
        """How it is made and what it leaves out, as JSON."""
        return {
            "budget": {
                **{k: v for k, v in vars(self.budget).items() if v is not None},
                **({"budget_rank": shared} if (shared := self.budget.shared_rank) else {}),
            },
            "energy": self.energy,
            "parameters": self.parameters,
            "bytes": self.nbytes,
            "dtype": str(self.dtype).removeprefix("torch."),
            "svd": self.method,
            "ranks": self.ranks,
            "left": {
                name: {"reason": found.reason, "energy": found.energy / self.total}
                for name, found in self.left.items()
                if not found.saved
            },
            "whole": list(self.whole),
        }

    def write(
        self, out: str | Path, *, overwrite: bool = False, watch: Watch | None = None
    ) -> WrittenLora:
        """Write the folder; it appears when it is whole.

        Args:
            out: The folder to create.
            overwrite: Whether a folder that is there is replaced.
            watch: Told how far it is.

        Raises:
            FileExistsError: If `out` holds something already.
        """
        return write_lora(self, out, overwrite=overwrite, watch=watch)


def plan_lora(
    base: Model,
    tuned: Model,
    *,
    rank: int | None = None,
    budget_rank: int | None = None,
    parameters: int | None = None,
    megabytes: float | None = None,
    energy: float | None = None,
    max_rank: int | None = None,
    exclude: Sequence[str] = (),
    full_vectors: bool = False,
    dtype: torch.dtype | None = None,
    svd: Decomposition = "exact",
    model: nn.Module | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    watch: Watch | None = None,
) -> LoraPlan:
    """What a LoRA of the difference would hold; arguments as `export_lora` has them.

    Reads both models once, a tensor at a time, and keeps singular values only.
    """
    budget = Budget(
        rank=rank, budget_rank=budget_rank, parameters=parameters, megabytes=megabytes,
        energy=energy, max_rank=max_rank,
    )  # fmt: skip
    if isinstance(exclude, str):
        raise TypeError(f"exclude must be a sequence of texts, got the text {exclude!r}.")
    if svd not in get_args(Decomposition):
        raise ValueError(f"svd must be one of {', '.join(get_args(Decomposition))}, got {svd!r}.")
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(map(str, DTYPES))}, got {dtype}.")
    difference = open_difference(base, tuned, model=model, device=device)
    structure = difference.structure
    targets = {
        name: found
        for name in difference.stored
        if not any(text in name for text in exclude)
        for found in [structure.target(name, difference.shape(name))]
        if found is not None
    }
    if not targets:
        raise ValueError(
            "there is no matrix that a LoRA could change: exclude fewer, or give the model as a "
            "folder with its config.json."
        )
    own = dtype or difference.dtype(next(iter(targets)))
    dims = [target.dims for target in targets.values()]
    budget.check(dims, own.itemsize)
    most = budget.most(dims, own.itemsize)
    generator = torch.Generator().manual_seed(seed)
    matrices: list[Matrix] = []
    left: dict[str, Left] = {}
    for index, name in enumerate(difference.stored):
        found = difference.of(name)
        target = targets.get(name)
        if target is not None:
            spectrum, size = energies(target.matrix(found), svd, most, generator)
            if size:
                matrices.append(Matrix(target, spectrum, size))
        elif size := float(torch.linalg.vector_norm(found, dtype=torch.float64)) ** 2:
            left[name] = Left(_reason(difference, name, exclude), size)
        if watch:
            watch(index + 1, len(difference.stored))
    if not matrices:
        raise ValueError(
            f"{difference.tuned.label} and its base do not differ in any matrix that a LoRA could "
            "change: there is nothing to export."
        )
    ranks = budget.choose(
        [m.spectrum for m in matrices], [m.target.cost for m in matrices], own.itemsize,
        sum(m.energy for m in matrices),
    )  # fmt: skip
    matrices = [
        Matrix(m.target, m.spectrum, m.energy, r) for m, r in zip(matrices, ranks, strict=True)
    ]
    if full_vectors:
        keys = whole_tensors(difference, [m.target.module for m in matrices if m.rank], left)
        left = {n: Left(f.reason, f.energy, n in keys) for n, f in left.items()}
    notes = [] if structure.note is None else [structure.note]
    plan = LoraPlan(
        difference=difference, matrices=tuple(matrices), left=left, budget=budget, dtype=own,
        method=svd, seed=seed,
    )  # fmt: skip
    return replace(plan, notes=(*notes, *_notes(plan, most)))


def export_lora(
    base: Model,
    tuned: Model,
    out: str | Path,
    *,
    overwrite: bool = False,
    watch: Watch | None = None,
    **options: Any,
) -> WrittenLora:
    """Write what training added to a base as a LoRA folder that PEFT loads.

    For every matrix W of the base, B A is the best matrix of its rank next to the difference, in
    the Frobenius norm. The ranks are alike (`rank`), or chosen together so that no ranks of as
    many bytes leave a smaller error (all other budgets); by default they take the bytes of rank
    16. Two passes over both models, one tensor in memory at a time.

    Args:
        base: What the LoRA will be added to: a transformers folder, a safetensors file, a state
            dict or a module.
        tuned: What base and LoRA shall amount to: any of those, or a LoRA of the base.
        out: The folder to create; it appears when it is whole.
        overwrite: Whether a folder that is there is replaced.
        watch: Told how many matrices are written, and of how many.
        **options: One budget: `rank` (the same for all), `budget_rank` (the parameters of that
            rank, shared out), `parameters`, `megabytes`, or `energy` (the share of the
            difference's squared norm that is held, in (0, 1]); `max_rank` of any matrix;
            `exclude`, parts of the names of what gets no factors; `full_vectors`, whether norms
            and biases that changed are written whole; `dtype` of the factors, by default the
            base's; `svd`, `"exact"` or `"randomized"`; `model`, a module that tells how the
            weights of a bare state dict are used; `device`; `seed` of the sketches.

    Returns:
        Its ranks, bytes, the share of the difference's energy that is held, measured on what was
        written, and notes.

    Raises:
        FileExistsError: If `out` holds something already.
        TypeError: If an option is of the wrong kind.
        ValueError: Before anything is written, if names or shapes of the models differ, they are
            equal, a tensor is not finite, or an option is out of its range.

    Example:
        >>> export_lora("llama", "llama-code", "code-lora", budget_rank=16)  # doctest: +SKIP

    Sources:
        Eckart and Young, "The approximation of one matrix by another of lower rank", 1936.
    """
    return plan_lora(base, tuned, **options).write(out, overwrite=overwrite, watch=watch)


def _reason(difference: Difference, name: str, exclude: Sequence[str]) -> str:
    if any(text in name for text in exclude):
        return "excluded"
    refused = difference.structure.refused.get(name)
    if refused is not None:
        return refused
    if len(difference.shape(name)) < 2:
        return "a vector has no factors"
    return "no module that PEFT gives factors to"


def _notes(plan: LoraPlan, most: int) -> list[str]:
    notes = []
    full = sum(1 for m in plan.matrices if plan.budget.rank and m.rank < plan.budget.rank)
    if full:
        notes.append(f"{full} matrices have fewer directions than {plan.budget.rank}: held exactly")
    wanted = plan.budget.energy
    total = sum(m.energy for m in plan.matrices)
    held = sum(m.kept for m in plan.matrices) / total
    if wanted is not None and held < wanted * (1 - 1e-9):
        notes.append(
            f"{100 * held:.1f} % of what factors could hold is all that max_rank or the sketches "
            f"of {most} directions allow, not {100 * wanted:g} %"
        )
    if any(target.head for target, _ in plan.chosen):
        notes.append(
            "embeddings and output head are tied: PEFT changes both (ensure_weight_tying), and the "
            "file holds their factors twice; for other programs exclude the table, or merge"
        )
    return notes
