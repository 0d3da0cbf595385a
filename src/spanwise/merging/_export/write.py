"""A LoRA folder, written matrix by matrix."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spanwise.io import Shard, ShardFile, atomic_folder, check_place, write_json
from spanwise.lora import CONFIG, FILE
from spanwise.merging._export.difference import factors
from spanwise.merging._export.peft import adapter_config
from spanwise.merging._folder import check_apart

if TYPE_CHECKING:
    from spanwise.merging._export.lora import LoraPlan

RECORD = "export.json"
"""What a LoRA folder says of how it was made."""


@dataclass(frozen=True)
class WrittenLora:
    """What `export_lora` wrote.

    Attributes:
        folder: For `PeftModel.from_pretrained(base, folder)`.
        ranks: Weight -> rank; 0 where it was left out.
        energy: Share of the difference's squared Frobenius norm that is held, in [0, 1]; measured
            on the factors as they were rounded.
        nbytes: Bytes of tensors.
        notes: What a reader should know.
    """

    folder: Path
    ranks: dict[str, int]
    energy: float
    nbytes: int
    notes: tuple[str, ...] = ()


def write_lora(
    plan: "LoraPlan",
    out: str | Path,
    *,
    overwrite: bool = False,
    watch: Callable[[int, int], None] | None = None,
) -> WrittenLora:
    """Decompose again and write; see `LoraPlan.write`."""
    check_place(out)
    difference, whole = plan.difference, plan.whole
    check_apart(Path(out), (difference.base, difference.tuned))
    generator = torch.Generator().manual_seed(plan.seed)
    lost = sum(m.energy for m in plan.matrices if not m.rank)
    lost += sum(found.energy for found in plan.left.values() if not found.saved)
    with atomic_folder(out, overwrite=overwrite) as staged:
        file = ShardFile(staged, Shard(FILE, plan.entries), {"format": "pt"})
        try:
            for index, (target, rank) in enumerate(plan.chosen):
                matrix = target.matrix(difference.of(target.name))
                a, b = factors(matrix, rank, plan.method, generator)
                pair = (a.to(plan.dtype), b.to(plan.dtype))
                lost += _error(target.name, matrix, pair)
                for name, tensor in target.tensors(*pair).items():
                    file.add(name, tensor)
                if watch:
                    watch(index + 1, len(plan.chosen))
            for name, key in whole.items():
                file.add(key, difference.whole(name))
            file.close()
        finally:
            file.discard()
        held = max(0.0, 1 - lost / plan.total)
        write_json(staged / CONFIG, adapter_config(difference, plan.chosen, whole))
        write_json(staged / RECORD, {**plan.record(), "energy": held})
    return WrittenLora(Path(out), plan.ranks, held, plan.nbytes, plan.notes)


def _error(name: str, matrix: Tensor, pair: tuple[Tensor, Tensor]) -> float:
    """||D - B A||_F^2 with the factors as they are stored."""
    a, b = (x.to(matrix.dtype) for x in pair)
    if not all(bool(x.isfinite().all()) for x in (a, b)):
        raise ValueError(
            f"{name!r} leaves the range of {pair[0].dtype} as factors: choose float32 or bfloat16."
        )
    # One temporary of the matrix's size; the difference itself is not needed any more.
    rest = torch.addmm(matrix, b, a, alpha=-1)
    return float(torch.linalg.vector_norm(rest, dtype=torch.float64)) ** 2
