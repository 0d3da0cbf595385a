"""What one process holds of a weight that fully_shard spreads over many, and what they agree on.

torch's FSDP2 keeps every parameter as a DTensor with placement Shard(0): each process has some
consecutive rows, an equal chunk but for the last ones, which may be shorter or empty. Nothing here
copies a weight or a gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether `tensor` is a DTensor, of which this process may hold a part only."""
    return hasattr(tensor, "placements")


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of `tensor`, in the same memory: all of it, or its shard."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # pyrefly: ignore


def gathered(tensor: Tensor) -> Tensor:
    """All of `tensor`, gathered from every process if it is sharded. For small tensors."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # pyrefly: ignore


def spread_as(local: Tensor, like: Tensor, shape: torch.Size | tuple[int, ...]) -> "DTensor":
    """The DTensor, spread as `like` is, whose part on this process is `local`, without a copy."""
    from torch.distributed.tensor import DTensor

    assert isinstance(like, DTensor)
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        local, like.device_mesh, like.placements, run_check=False, shape=torch.Size(shape),
        stride=stride,
    )  # fmt: skip


@dataclass(frozen=True)
class Shard:
    """The rows of a tensor that this process holds, and the processes that hold the others.

    All methods but `rows` communicate, so every process of the group must call them alike.
    """

    size: int
    """Rows of the whole tensor."""
    start: int
    """The first one held here."""
    count: int
    """How many are held here; 0 on the last processes of a short tensor."""
    device: torch.device
    group: Any = None
    """The process group; None where every process holds all rows."""

    @classmethod
    def of(cls, tensor: Tensor) -> "Shard | None":
        """How `tensor` is sharded; None for an ordinary tensor.

        Raises:
            NotImplementedError: If it is sharded in another way than by rows.
        """
        if not is_sharded(tensor):
            return None
        mesh, placements = tensor.device_mesh, tensor.placements  # pyrefly: ignore
        size, count = tensor.shape[0], own_part(tensor).shape[0]
        # Not isinstance: the strided shards of FSDP on top of tensor parallelism are subclasses.
        cut = [i for i, place in enumerate(placements) if not place.is_replicate()]
        if not cut:
            return cls(size, 0, size, tensor.device)
        place = placements[cut[0]]
        if len(cut) > 1 or type(place).__name__ != "Shard" or place.dim != 0:
            raise NotImplementedError(
                f"it is sharded as {tuple(placements)}; only Shard(0) on one mesh dimension, which "
                "fully_shard makes, is supported here"
            )
        ranks, chunk = mesh.size(cut[0]), -(-size // mesh.size(cut[0]))
        start = min(size, mesh.get_local_rank(cut[0]) * chunk)
        if count != min(chunk, size - start):
            raise NotImplementedError(
                f"this process holds {count} of its {size} rows, where {ranks} equal chunks would "
                f"leave it {min(chunk, size - start)}"
            )
        return cls(size, start, count, tensor.device, mesh.get_group(cut[0]))

    def rows(self, x: Tensor) -> Tensor:
        """This process's rows of an `x` that every process has whole, as a view."""
        return x[self.start : self.start + self.count]

    def sum(self, x: Tensor) -> Tensor:
        """The sum of every process's `x`, which is overwritten where it can be."""
        x = x.contiguous()
        if self.group is not None:
            dist.all_reduce(x, group=self.group)
        return x

    def gather(self, x: Tensor) -> Tensor:
        """All rows of a matrix of which each process has those of its shard, on every process."""
        if self.group is None:
            return x
        ranks = dist.get_world_size(self.group)
        chunk = -(-self.size // ranks)
        padded = x.new_zeros(chunk, *x.shape[1:])
        padded[: self.count] = x
        found = x.new_empty(ranks * chunk, *x.shape[1:])
        dist.all_gather(list(found.split(chunk)), padded, group=self.group)
        return found[: self.size]

    def agree(self, x: Tensor) -> Tensor:
        """`x` as the first process has it: decompositions may differ from one LAPACK to another."""
        x = x.contiguous()
        if self.group is not None:
            dist.broadcast(x, group=self.group, group_src=0)
        return x

    def largest(self, value: float) -> float:
        """The largest of every process's number; infinity if one of them is NaN."""
        if self.group is None:
            return value
        # What a maximum makes of NaN depends on the backend.
        value = torch.inf if value != value else value
        found = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self.group)
        return float(found)

    def hypot(self, norm: Tensor) -> Tensor:
        """The Euclidean norm of every process's number, with no square out of range."""
        peak = self.largest(float(norm))
        if not 0 < peak < torch.inf:
            return torch.full_like(norm, peak)
        return self.sum((norm / peak).square()).sqrt() * peak

    def across(self, whole: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """A function of all rows applied to sharded ones: gathered, applied, cut again."""
        return self.rows(whole(self.gather(x)))
