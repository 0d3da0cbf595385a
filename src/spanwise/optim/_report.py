"""What an optimizer does to each tensor, and the exact bytes that it keeps for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from spanwise.optim._groups import resolve_side

if TYPE_CHECKING:
    from spanwise.optim._base import GroupedOptimizer

Kind = Literal["projected", "plain", "frozen"]

COUNTERS = ("step", "refreshed", "moments_from")
"""State that is no moment or basis: 0-dim tensors that stay where they are, on the CPU."""


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
            where = f"rank {row.rank} {row.side}" if row.kind == "projected" else row.kind
            guard = f"  guarded: {'+'.join(row.guarded)}" if row.guarded else ""
            shape = "x".join(map(str, row.shape))
            lines.append(
                f"  {row.name:<{width}}  {shape:>14}  {where:<14} "
                f"{row.state_bytes / 1e6:9.3f} MB{guard}"
            )
        return "\n".join(lines)


def projected_numbers(rows: int, cols: int, rank: int, side: str, stack: int = 1) -> int:
    """Numbers that basis and moments of one projected matrix take.

    A one-sided projection keeps r * (its side) + 2 r * (the other side).
    """
    side = resolve_side(side, rows, cols)
    one = {
        "left": rank * rows + 2 * rank * cols,
        "right": rank * cols + 2 * rank * rows,
        "full": rank * (rows + cols) + 2 * rank * rank,
    }[side]
    return stack * one


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
            state = adamw
            if group["rank"]:
                size = optimizer._state_dtype(p).itemsize
                rank = optimizer.rank_of(member, group)
                side = resolve_side(group["side"], *member.matrix_shape)
                state = size * projected_numbers(*member.matrix_shape, rank, side, member.stack)
            kind: Kind = "frozen" if frozen else "projected" if group["rank"] else "plain"
            if frozen and group["rank"]:
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
    """Bytes of every tensor that `optimizer` holds as state now, counters excluded."""
    return sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for key, value in state.items()
        if isinstance(value, Tensor) and key not in COUNTERS
    )


def plan_state_bytes(
    shapes: Mapping[str, Sequence[int]],
    method: str,
    *,
    rank: int | None = None,
    side: str = "short",
    projected: Sequence[str] = (),
    itemsize: int = 4,
) -> int:
    """Bytes of optimizer state that `method` will keep, predicted from shapes alone.

    Args:
        shapes: Parameter name to shape.
        method: `galore`, `adamw`, `muon` (one momentum for matrices, AdamW for the rest),
            `sgd` (none) or `sgd_momentum`.
        rank: Subspace dimension, for `galore`.
        side: Which side carries the basis, for `galore`.
        projected: Names that are projected (`galore`) or orthogonalised (`muon`).
        itemsize: Bytes per number of state.

    Raises:
        ValueError: If `method` is unknown, or `galore` has no rank.
    """
    if method not in ("galore", "adamw", "muon", "sgd", "sgd_momentum"):
        raise ValueError(
            f"method must be galore, adamw, muon, sgd or sgd_momentum, got {method!r}."
        )
    if method == "galore" and rank is None:
        raise ValueError("galore needs rank=... to predict its state.")
    chosen, numbers = set(projected), 0
    for name, shape in shapes.items():
        size = prod(shape)
        if method == "sgd":
            continue
        if method == "sgd_momentum":
            numbers += size
        elif name not in chosen or method == "adamw":
            numbers += 2 * size
        elif method == "muon":
            numbers += size
        else:
            numbers += _galore_numbers(shape, rank, side)
    return numbers * itemsize


def _galore_numbers(shape: Sequence[int], rank: Any, side: str) -> int:
    stack, rows = (shape[0], shape[1]) if len(shape) == 3 else (1, shape[0])
    cols = prod(shape[1:]) if len(shape) != 3 else shape[2]
    return projected_numbers(rows, cols, min(rank, rows, cols), side, stack)
