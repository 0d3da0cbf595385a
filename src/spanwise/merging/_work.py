"""One tensor's share of a merge: what a method sees."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from spanwise.merging._keep import Keep
from spanwise.merging._schedule import Schedule
from spanwise.merging._scratch import Scratch
from spanwise.merging._sources import Inputs
from spanwise.merging._stats import TensorStats

BLOCK = 2**18
"""Elements that are looked at together where rows can be taken apart: they fit into a cache."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a method needs to merge one tensor, or some of its rows.

    Everything it hands out is in the work dtype on the work device; methods may overwrite it.
    """

    name: str
    """The tensor's name in the result."""
    shape: tuple[int, ...]
    """Its whole shape."""
    matrix: bool
    """Whether methods for matrices treat it as one; otherwise they average it."""
    inputs: Inputs
    dtype: torch.dtype
    device: torch.device
    depth: float = 0.0
    """How far down the model it lies, from 0 to 1."""
    schedules: Mapping[str, Schedule] = field(default_factory=dict)
    """Parameters of the whole merge."""
    per_model: Mapping[str, Sequence[Schedule]] = field(default_factory=dict)
    """Parameters that each model has its own of."""
    seed: int = 0
    rows: slice | None = None
    """Which rows are asked for; None for the whole tensor."""
    keep: Keep | None = None
    """Projects an update of this tensor onto what `avoid` and `within` allow."""
    stats: Sequence[TensorStats | None] = ()
    """What `collect_stats` found for this tensor, one for each model that has any."""
    log: dict[str, dict[str, float]] = field(default_factory=dict)
    """Tensor -> what methods noted, shared by the whole merge."""
    stored: Tensor | None = None
    """The base's rows as they are stored, where they have been read."""
    scratch: Scratch = field(default_factory=Scratch)
    """Lends memory to whoever goes through all models once."""

    @property
    def count(self) -> int:
        """How many models are merged."""
        return len(self.inputs.models)

    @property
    def row(self) -> int:
        """How many weights feed one output, next to each other in memory; all of a vector."""
        if self.matrix or len(self.shape) < 2:
            return self.shape[-1] if self.shape else 1
        return math.prod(self.shape[1:])

    def at(self, rows: slice) -> "Work":
        """The same tensor, other rows of it."""
        return replace(self, rows=rows, stored=None)

    def base(self) -> Tensor:
        """The base's tensor; methods that need no base must not ask for it."""
        if self.stored is not None:
            return self.stored.to(self.device, self.dtype, copy=True)
        base = self.inputs.base
        assert base is not None  # checked before any tensor is read
        return base.read(self.name, self.rows).to(self.device, self.dtype)

    def update(self, index: int, base: Tensor | None = None) -> Tensor:
        """What one model adds to the base, a tensor of its own.

        Args:
            index: Which model.
            base: What `base()` gave, so that it is not read again.

        Raises:
            ValueError: If it is not finite.
        """
        base = self.base() if base is None else base
        update = self.inputs.models[index].update(self.name, base, self.rows)
        self._check(update, index)
        return update if self.keep is None else self.keep(update)

    def updates(self) -> Iterator[Tensor]:
        """Every model's update, one after the other; the base is read once."""
        base = self.base()
        for index in range(self.count):
            yield self.update(index, base)

    def stream(
        self, base: Tensor | None = None, models: Sequence[int] | None = None
    ) -> Iterator[Tensor]:
        """Every model's update in turn, for those who look at each once.

        Each lies in memory that a later one overwrites, and may hold NaN or infinity: what comes
        of them goes through `finite`, one look in place of one for each model.

        Args:
            base: What to take differences from; by default the base.
            models: Whose; by default all.
        """
        if base is None:
            source = self.inputs.base
            assert source is not None  # checked before any tensor is read
            stored = self.stored
            if stored is None:
                stored = source.lent(self.name, self.rows, self.scratch, "stored base")
            base = self._lent("base", stored)
        chosen = range(self.count) if models is None else models
        for update in self.inputs.updates(self.name, base, self.rows, chosen, self.scratch):
            yield update if self.keep is None else self.keep(update)

    def finite(self, found: Tensor) -> Tensor:
        """`found`, which was made of all models and is finite if they are.

        Raises:
            ValueError: If one of them is not; it is named.
        """
        if not torch.isfinite(found.sum()):  # also where finite numbers overflow
            for index in range(self.count):
                self.weight(index) if self.inputs.base is None else self.update(index)
        return found

    def weight(self, index: int) -> Tensor:
        """One model's tensor itself.

        Raises:
            ValueError: If it is not finite.
        """
        source = self.inputs.models[index]
        if self.keep is not None:
            base = self.base()
            return base + self.update(index, base)
        weight = source.weight(self.name, torch.empty(0, dtype=self.dtype, device=self.device),
                               self.rows)  # fmt: skip
        self._check(weight, index)
        return weight

    def parts(self) -> list["Work"]:
        """The same tensor, some rows at a time, for methods that look at it more than once."""
        blocks = None if self.keep is not None else row_blocks(self.shape, BLOCK)
        if self.rows is not None or blocks is None:
            return [self]
        return [self.at(rows) for rows in blocks]

    def value(self, key: str, index: int | None = None) -> Any:
        """A parameter's value at this tensor: one model's own, or the whole merge's.

        Raises:
            ValueError: If it is a model's own and no filter fits the tensor's name.
        """
        schedule = self.schedules[key] if index is None else self.per_model[key][index]
        found = schedule(self.name, self.depth)
        if found is None and index is not None:
            raise ValueError(
                f"no filter of {key} fits {self.name!r}: add an entry without a filter."
            )
        return found

    def values(self, key: str) -> list[Any]:
        """A per-model parameter's value for every model."""
        return [self.value(key, index) for index in range(self.count)]

    def note(self, **values: float) -> None:
        """Write into the merge's log how this tensor went; `Merged.log` shows it."""
        self.log.setdefault(self.name, {}).update(values)

    def generator(self, index: int) -> torch.Generator:
        """Randomness that belongs to one model's tensor, whatever is merged before it."""
        text = f"{self.seed} {self.inputs.models[index].label} {self.name}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
        return torch.Generator(self.device).manual_seed(seed % 2**63)

    def _lent(self, purpose: str, stored: Tensor) -> Tensor:
        """A stored tensor in the work dtype, in lent memory or as it is."""
        if stored.dtype == self.dtype and stored.device == self.device:
            return stored
        return self.scratch(purpose, stored.shape, self.dtype, self.device).copy_(stored)

    def _check(self, tensor: Tensor, index: int) -> None:
        # One pass; a sum of finite numbers that overflows is looked at again.
        if not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
            where = self.inputs.models[index].label
            base = self.inputs.base
            if base is not None and not torch.isfinite(self.base()).all():
                where = base.label
            raise ValueError(
                f"{self.name!r} of {where} holds NaN or infinity. Restore that checkpoint, or "
                "leave the model out."
            )


def row_blocks(shape: Sequence[int], most: int) -> list[slice] | None:
    """Rows that hold at most `most` elements together; None where all of them do."""
    if not shape or math.prod(shape) <= most:
        return None
    step = max(1, most // math.prod(shape[1:]))
    return [slice(i, min(i + step, shape[0])) for i in range(0, shape[0], step)]
