"""One merge, checked and ready: which tensor is treated how, and what comes of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from spanwise.merging._keep import Keeper
from spanwise.merging._methods._method import Method
from spanwise.merging._schedule import Depths, Schedule
from spanwise.merging._scratch import Scratch
from spanwise.merging._sources import Inputs
from spanwise.merging._stats import Stats
from spanwise.merging._work import BLOCK, Work, row_blocks

Kind = Literal["copy", "matrix", "vector"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that one merged tensor depends on."""

    inputs: Inputs
    method: Method
    schedules: Mapping[str, Schedule]
    per_model: Mapping[str, Sequence[Schedule]]
    depths: Depths
    alpha: Schedule
    alpha_vectors: Schedule | None = None
    """Scale of everything that is no matrix, where it differs."""
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float32
    out_dtype: torch.dtype | None = None
    device: torch.device
    seed: int = 0
    keeper: Keeper | None = None
    stats: Sequence[Stats] = ()
    log: dict[str, dict[str, float]] = field(default_factory=dict)
    """Tensor -> what the method noted while merging it."""
    scratch: Scratch = field(default_factory=Scratch)

    @property
    def names(self) -> list[str]:
        """The tensors that are merged; all others are copied."""
        return [name for name in self.inputs.names if self.kind(name) != "copy"]

    def begun(self) -> "Job":
        """The same job after the method has looked at all tensors, where it needs to."""
        return replace(self, method=self.method.begin(self.names, self.work))

    def kind(self, name: str) -> Kind:
        """How a tensor is treated: copied from the base, as a matrix, or as anything else."""
        reference = self.inputs.reference
        if not reference.dtype(name).is_floating_point:
            return "copy"
        if self.include is not None and not any(text in name for text in self.include):
            return "copy"
        shape = reference.shape(name)
        experts = len(shape) == 3 and "expert" in name
        matrix = (len(shape) == 2 or experts) and not any(text in name for text in self.exclude)
        return "matrix" if matrix else "vector"

    def stored_dtype(self, name: str) -> torch.dtype:
        """The dtype that a tensor has in the result."""
        own = self.inputs.reference.dtype(name)
        wanted = self.out_dtype
        return own if wanted is None or not own.is_floating_point else wanted

    def scale(self, name: str) -> float:
        """The scale at a tensor."""
        matrix = self.kind(name) == "matrix"
        schedule = self.alpha if matrix or self.alpha_vectors is None else self.alpha_vectors
        found = schedule(name, self.depths.of_tensor(name))
        return 1.0 if found is None else float(found)

    def work(self, name: str, rows: slice | None = None, stored: Tensor | None = None) -> Work:
        """What the method sees of a tensor.

        Args:
            name: Which.
            rows: Which rows of it; None for all.
            stored: The base's, if they have been read.
        """
        return Work(
            name=name,
            shape=self.inputs.reference.shape(name),
            matrix=self.kind(name) == "matrix",
            inputs=self.inputs,
            dtype=self.dtype,
            device=self.device,
            depth=self.depths.of_tensor(name),
            schedules=self.schedules,
            per_model=self.per_model,
            seed=self.seed,
            rows=rows,
            keep=None if self.keeper is None else self.keeper.of(name),
            stats=[held.get(name) for held in self.stats],
            log=self.log,
            stored=stored,
            scratch=self.scratch,
        )

    def update(self, name: str) -> Tensor | None:
        """The merged update of a tensor in the work dtype; None for one that is only copied.

        Without a base it is the merged tensor itself.
        """
        if self.kind(name) == "copy":
            return None
        blocks = self._blocks(name)
        if blocks is None:
            return self._merge(self.work(name))
        found = torch.empty(self.inputs.reference.shape(name), dtype=self.dtype, device=self.device)
        for rows in blocks:
            found[rows] = self._merge(self.work(name, rows))
        return found

    def tensor(self, name: str, scale: float | None = None) -> Tensor:
        """A tensor of the result, `base + alpha * update`, in its own dtype.

        Raises:
            ValueError: If an input is not finite, or the result does not fit its dtype.
        """
        scale = self.scale(name) if scale is None else scale
        if self.kind(name) == "copy" or (self.inputs.base is not None and scale == 0):
            return self.inputs.reference.read(name)
        blocks = self._blocks(name)
        if blocks is None:
            return self.applied(name, self._merge(self.work(name)), scale)
        found = self._empty(name)
        for rows in blocks:
            stored = self._stored(name, rows)
            update = self._merge(self.work(name, rows, stored))
            self._apply(name, stored, update, scale, found[rows])
        return found

    def applied(self, name: str, update: Tensor, scale: float) -> Tensor:
        """`base + scale * update` in the result's dtype; the base's own bits where it is zero.

        Args:
            name: The tensor.
            update: In the work dtype.
            scale: What it is multiplied by.

        Raises:
            ValueError: If the result does not fit its dtype.
        """
        if self.inputs.base is not None and _is_zero(update):
            scale = 0.0
        found = self._empty(name)
        for rows in row_blocks(self.inputs.reference.shape(name), BLOCK) or [None]:
            part = ... if rows is None else rows
            self._apply(name, self._stored(name, rows), update[part], scale, found[part])
        return found

    def _empty(self, name: str) -> Tensor:
        shape, dtype = self.inputs.reference.shape(name), self.stored_dtype(name)
        return torch.empty(shape, dtype=dtype, device=self.device)

    def _stored(self, name: str, rows: slice | None) -> Tensor | None:
        """Some rows of the base, in memory that the next ones overwrite."""
        base = self.inputs.base
        return None if base is None else base.lent(name, rows, self.scratch, "stored base")

    def _apply(
        self, name: str, stored: Tensor | None, update: Tensor, scale: float, out: Tensor
    ) -> None:
        """Write `stored + scale * update` into `out`, or the update itself without a base."""
        if stored is None:
            out.copy_(update)
        elif scale == 0 or _is_zero(update):
            out.copy_(stored)
        elif stored.dtype == update.dtype and stored.device == update.device:
            out.copy_(torch.add(stored, update, alpha=scale))
        else:
            own = self.scratch("base", stored.shape, update.dtype, update.device)
            out.copy_(own.copy_(stored).add_(update, alpha=scale))
        # Inputs are finite; what is not has left the range of a narrow dtype. A sum is the
        # cheapest pass; one of finite numbers that overflows is looked at again.
        summed = torch.float32 if out.dtype == torch.float16 else out.dtype
        if not torch.isfinite(out.sum(dtype=summed)) and not out.isfinite().all():
            raise ValueError(
                f"{name!r} leaves the range of {out.dtype} when it is merged with alpha = "
                f"{scale:g}: choose a smaller alpha, or out_dtype=torch.float32."
            )

    def bytes_of(self, name: str) -> int:
        """Peak memory of making one tensor, estimated before it is made."""
        count = math.prod(self.inputs.reference.shape(name))
        out = count * self.stored_dtype(name).itemsize
        if self.kind(name) == "copy":
            return out
        blocks = self._blocks(name)
        seen = count if blocks is None else min(count, BLOCK)
        return out + int(self.method.copies(self.work(name)) * seen * self.dtype.itemsize)

    def _blocks(self, name: str) -> list[slice] | None:
        """Rows to merge at once; None for the whole tensor at once."""
        shape = self.inputs.reference.shape(name)
        if not self.method.splits(shape):
            return None
        if self.keeper is not None and self.keeper.of(name) is not None:
            return None
        return row_blocks(shape, BLOCK)

    def _merge(self, work: Work) -> Tensor:
        """The method's update of a base, or its weights without one."""
        found = self.method.merge_tensor(work)
        if self.inputs.base is not None and self.method.gives == "weights":
            found = found - work.base()
        # Merging may turn projected updates out of what is allowed: elect, flatten, rescale.
        keep = None if self.keeper is None else self.keeper.of(work.name, counted=False)
        return found if keep is None else keep(found)


def _is_zero(x: Tensor) -> bool:
    # Nearly always the first entry tells.
    return not x.numel() or (float(x[(0,) * x.ndim]) == 0 and not x.any())
