"""What an optimizer does to each tensor, and the exact bytes that it keeps for it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from spanwise.optim._engine.groups import resolve_side

if TYPE_CHECKING:
    from spanwise.optim._engine.base import GroupedOptimizer

Kind = Literal["projected", "plain", "frozen"]

COUNTERS = ("step", "refreshed", "first_refresh", "moments_from", "proj_step")
"""State that is no moment or basis: counts that stay where they are, on the CPU."""


@dataclass(frozen=True, kw_only=True)
class ReportRow:
    """One tensor."""

    name: str
    shape: tuple[int, ...]
    kind: Kind
    rank: int | None = None
    side: str | None = None
    guarded: tuple[str, ...] = ()
    """Sides of the map on which updates are constrained."""
    state_bytes: int
    """Bytes of basis and moments once the state exists; counters excluded."""
    adamw_bytes: int
    """Bytes that AdamW's two moments would take in the parameter's dtype."""


@dataclass(frozen=True)
class OptimizerReport:
    """Every tensor of an optimizer; printing it gives one line."""

    method: str
    rows: tuple[ReportRow, ...]
    idle: tuple[str, ...] = ()
    """Weights of the atlas that this optimizer does not train."""

    def _count(self, kind: Kind) -> int:
        return sum(row.kind == kind for row in self.rows)

    @property
    def projected(self) -> int:
        """Tensors that are updated in a subspace."""
        return self._count("projected")

    @property
    def plain(self) -> int:
        """Tensors under plain AdamW."""
        return self._count("plain")

    @property
    def guarded(self) -> int:
        """Tensors whose updates are constrained."""
        return sum(bool(row.guarded) for row in self.rows)

    @property
    def frozen(self) -> int:
        """Tensors to which the constraint leaves no direction."""
        return self._count("frozen")

    @property
    def state_bytes(self) -> int:
        """Bytes of all states."""
        return sum(row.state_bytes for row in self.rows)

    @property
    def adamw_bytes(self) -> int:
        """Bytes that AdamW would keep for the same tensors."""
        return sum(row.adamw_bytes for row in self.rows)

    def __str__(self) -> str:
        frozen = f", {self.frozen} frozen" if self.frozen else ""
        if self.idle:
            frozen += f" ({len(self.idle)} weights of the atlas do not train here)"
        return (
            f"{self.method}: {self.projected} tensors projected, {self.plain} AdamW, "
            f"{self.guarded} guarded{frozen}; state {self.state_bytes / 1e6:.1f} MB "
            f"(AdamW: {self.adamw_bytes / 1e6:.1f} MB)"
        )

    def table(self) -> str:
        """One line per tensor, aligned."""
        width = max(len(row.name) for row in self.rows)
        lines = [str(self)]
        for row in self.rows:
            where = f"rank {row.rank} {row.side}" if row.rank is not None else row.kind
            guard = f"  guarded: {'+'.join(row.guarded)}" if row.guarded else ""
            shape = "x".join(map(str, row.shape))
            lines.append(
                f"  {row.name:<{width}}  {shape:>14}  {where:<14} "
                f"{row.state_bytes / 1e6:9.3f} MB{guard}"
            )
        return "\n".join(lines)


def build_report(optimizer: "GroupedOptimizer") -> OptimizerReport:
    """The report of a subspace optimizer, before or after its first step."""
    rows = []
    for i, group in enumerate(optimizer.param_groups):
        for member in optimizer._group_members(i):
            p = member.parameter
            constraint = optimizer._constraints.get(member.name, p)
            frozen = constraint is not None and constraint.frozen
            adamw = 2 * p.numel() * p.element_size()
            rank = side = None
            state = optimizer.plain_numbers(p.numel(), group) * p.element_size()
            treated = optimizer.is_projected(group)
            if treated:
                size = optimizer._state_dtype(p).itemsize
                rank = optimizer.rank_of(member, group)
                side = resolve_side(group["side"], *member.matrix_shape)
                options = {**group, "rank": rank}
                numbers = optimizer.state_numbers(*member.matrix_shape, options)
                state = size * member.stack * numbers
                if not group["rank"]:  # a method without a subspace
                    rank = side = None
            kind: Kind = "frozen" if frozen else "projected" if treated else "plain"
            if frozen and treated:
                state = 0
            rows.append(
                ReportRow(
                    name=member.name,
                    shape=tuple(p.shape),
                    kind=kind,
                    rank=rank,
                    side=side,
                    guarded=constraint.sides if constraint else (),
                    state_bytes=state,
                    adamw_bytes=adamw,
                )
            )
    return OptimizerReport(optimizer.method, tuple(rows), tuple(optimizer._constraints.idle))


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of every tensor that `optimizer` holds as state now, counters excluded.

    Of sharded parameters that is what this process holds; a report counts the whole once.
    """
    return sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for key, value in state.items()
        if isinstance(value, Tensor) and key not in COUNTERS
    )
