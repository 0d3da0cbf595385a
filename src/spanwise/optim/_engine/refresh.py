"""When the basis under each projected parameter is redrawn, and what carries over."""

import math
import warnings
from typing import Any, Literal

import torch
from torch import Tensor

from spanwise.layouts import stored_matrix
from spanwise.optim._bases.kinds import BASES, BasisKind, Request
from spanwise.optim._bases.projector import DenseProjector
from spanwise.optim._bases.rows import SCALED, RowProjector
from spanwise.optim._engine.base import GroupedOptimizer
from spanwise.optim._engine.groups import Member, resolve_side
from spanwise.optim._engine.transfer import change_of_basis, transfer_
from spanwise.optim._sharding.shard import own_part
from spanwise.optim._sharding.sharded import ShardedProjector, find_sharded

Projector = DenseProjector | RowProjector
Side = Literal["left", "right"]
SIDES: tuple[Side, Side] = ("left", "right")


class RefreshingOptimizer(GroupedOptimizer):
    """A basis for every projected parameter, redrawn on its schedule.

    `SubspaceOptimizer` adds the step.
    """

    def _has_gradient(self, member: Member) -> bool:
        return member.parameter.grad is not None

    def _gradient(self, member: Member, *, full: bool) -> Tensor:
        g = member.parameter.grad
        assert g is not None
        g = stored_matrix(g if member.shard is None else own_part(g), member.layout)
        constraint = self._constraints.get(member.name, member.parameter)
        if full and constraint is not None:
            wide = g if g.dtype in (torch.float32, torch.float64) else g.float()
            g = constraint.matrix(wide)
        return g

    def _advance(self, group: dict[str, Any], member: Member) -> Projector | None:
        """The projector to use now, refreshed if due; None if this parameter must wait."""
        constraint = self._constraints.get(member.name, member.parameter)
        if constraint is not None and constraint.frozen:
            return None
        state = self.state[member.parameter]
        if "step" not in state:
            self._init_state(group, member, state)
        if self.refresh_due(member, group):
            g = self._gradient(member, full=True)
            largest = _largest(g, member)
            if not math.isfinite(largest):
                self._refuse(member)
                return None
            # A zero gradient has no subspace: torch's checkpoint helpers step once with zeros.
            if largest > 0 or not self._kind(group, member, state).needs_gradient:
                self._refresh(group, member, state, g)
            elif constraint is not None and int(state["refreshed"]) < 0 and self._has_basis(member):
                return None  # the basis is from before this constraint, and moments are not zero
        return self._projector(member, state)

    def refresh_due(self, member: Member, group: dict[str, Any]) -> bool:
        """Whether this parameter's basis is to be redrawn at its next step.

        The first basis comes from the first gradient; the others every `refresh_every` steps,
        with `stagger` spread evenly over the interval so that no step pays for all.
        """
        state = self.state[member.parameter]
        every, k = group["refresh_every"], int(state["step"])
        if every is None or int(state["refreshed"]) < 0:
            return int(state["refreshed"]) < 0
        offset = self.refresh_offset(member, group)
        last_due = 0 if k < offset else k - (k - offset) % every
        return int(state["refreshed"]) < last_due

    def refresh_offset(self, member: Member, group: dict[str, Any]) -> int:
        """Steps by which this parameter's refreshes come later than the first parameter's.

        From 0 to `refresh_every` - 1; 0 without `stagger`.
        """
        if not group["stagger"] or group["refresh_every"] is None:
            return 0
        total = sum(len(g["params"]) for g in self.param_groups)
        return member.index * group["refresh_every"] // total

    def _init_state(self, group: dict[str, Any], member: Member, state: dict[str, Any]) -> None:
        state["step"] = torch.zeros((), dtype=torch.float32)
        state["refreshed"] = torch.full((), -1, dtype=torch.int64)
        state.update(self._allocate_basis(group, member))
        state.update(self._allocate(group, member))
        if group["moments"] == "reset" and any(
            f"{kind}_{side}" in state for kind in ("basis", "rows") for side in SIDES
        ):
            # From the start: distributed checkpoints load the keys that a fresh optimizer has.
            state["moments_from"] = torch.zeros((), dtype=torch.float32)
        if group["refresh_warmup"]:
            state["first_refresh"] = torch.zeros((), dtype=torch.int64)

    def _allocate_basis(self, group: dict[str, Any], member: Member) -> dict[str, Tensor]:
        """An empty basis for each side that has one."""
        if group["rank"] is None:
            return {}
        p, rank = member.parameter, self.rank_of(member, group)
        chosen = resolve_side(group["side"], *member.matrix_shape)
        found: dict[str, Tensor] = {}
        for side, size in zip(SIDES, member.held_shape, strict=True):
            if chosen not in (side, "full"):
                continue
            if BASES[group["basis"]].selects:
                rows = torch.arange(rank, device=p.device).expand(*member.stack_shape, -1).clone()
                found[f"rows_{side}"] = rows
                if group.get("select") in SCALED:
                    found["row_scale"] = torch.ones_like(rows, dtype=self._state_dtype(p))
            else:
                shape, dtype = (*member.stack_shape, size, rank), self._state_dtype(p)
                found[f"basis_{side}"] = torch.zeros(shape, dtype=dtype, device=p.device)
        return found

    def _allocate(self, group: dict[str, Any], member: Member) -> dict[str, Tensor]:
        """Moments of one parameter, zero."""
        p, shape = member.parameter, self._coordinates_shape(group, member)
        shapes = {"exp_avg": shape, "exp_avg_sq": shape}
        if group["residual"] != "drop":
            shapes["residual_norm"] = member.stack_shape
        dtype = self._state_dtype(p)
        return {
            key: torch.zeros(shape, dtype=dtype, device=p.device) for key, shape in shapes.items()
        }

    def _coordinates_shape(self, group: dict[str, Any], member: Member) -> tuple[int, ...]:
        rank, (rows, cols) = self.rank_of(member, group), member.held_shape
        side = resolve_side(group["side"], *member.matrix_shape)
        shape = {"left": (rank, cols), "right": (rows, rank), "full": (rank, rank)}[side]
        return (*member.stack_shape, *shape)

    def _projector(self, member: Member, state: dict[str, Any]) -> Projector:
        for side, size in zip(SIDES, member.matrix_shape, strict=True):
            if (rows := state.get(f"rows_{side}")) is not None:
                return RowProjector(rows, side, size, state.get("row_scale"))
        left, right = state.get("basis_left"), state.get("basis_right")
        if left is not None and member.shard is not None:
            return ShardedProjector(left, right, member.shard)
        return DenseProjector(left, right)

    def _kind(self, group: dict[str, Any], member: Member, state: dict[str, Any]) -> BasisKind:
        if group["init"] is None:
            return BASES[group["basis"]]
        first = not self._has_basis(member) or self._outgrown(group, member, state)
        return BASES[group["init"] if first else group["basis"]]

    def _outgrown(self, group: dict[str, Any], member: Member, state: dict[str, Any]) -> bool:
        """Whether a constraint came or went that leaves another rank than the basis has."""
        held = [state[k] for s in SIDES for k in (f"basis_{s}", f"rows_{s}") if k in state]
        return any(basis.shape[-1] != self.rank_of(member, group) for basis in held)

    def _selection_to_come(self, group: dict[str, Any], member: Member) -> RowProjector | None:
        """The rows that the next step will choose; None if it keeps those it has.

        Found as the step itself will find them: the seed knows the step, and nothing else changes
        but that a parameter without state gets an empty one.
        """
        state = self.state[member.parameter]
        if "step" not in state:
            self._init_state(group, member, state)
        if not self.refresh_due(member, group):
            return None
        held, g = self._projector(member, state), self._gradient(member, full=True)
        assert isinstance(held, RowProjector)
        largest = _largest(g, member)
        if not math.isfinite(largest):
            return None
        if largest == 0:
            return held
        kind = self._kind(group, member, state)
        rows, scale = self._find_basis(group, member, g, held.side, None, kind)
        return RowProjector(rows, held.side, held.size, scale)

    def _refresh(
        self, group: dict[str, Any], member: Member, state: dict[str, Any], g: Tensor
    ) -> None:
        keys = {s: k for s in SIDES for k in (f"basis_{s}", f"rows_{s}") if k in state}
        first = int(state["refreshed"]) < 0 and not _learned(member, state)
        if self._outgrown(group, member, state):  # new coordinates, new moments
            step = state["step"]
            self._init_state(group, member, state)
            state["step"], state["moments_from"] = step, step.clone()
        for key, value in state.items():
            if torch.is_tensor(value) and value.is_floating_point() and value.ndim:
                state[key] = value.to(self._state_dtype(member.parameter))
        fresh = not self._has_basis(member)
        kind = self._kind(group, member, state)
        old = {s: None if fresh else member.whole(s, state[key]) for s, key in keys.items()}
        new: dict[Side, Tensor] = {}
        for side, key in keys.items():
            found = self._find_basis(group, member, g, side, old[side], kind)
            if kind.selects:
                found, scale = found
                state.pop("row_scale", None)
                if scale is not None:
                    state["row_scale"] = scale.to(self._state_dtype(member.parameter))
            new[side] = found
            state[key] = member.own(side, found).to(state[key].dtype).contiguous()
        if not fresh:
            self._transfer(group, state, old, new)
        if first and "first_refresh" in state:
            state["first_refresh"].copy_(state["step"])
        state["refreshed"].copy_(state["step"])

    def _transfer(
        self,
        group: dict[str, Any],
        state: dict[str, Any],
        old: dict[Side, Tensor | None],
        new: dict[Side, Tensor],
    ) -> None:
        """Carry the moments from the old basis into the new one, by the group's rule."""
        changes: dict[str, Tensor | None] = {"left": None, "right": None}
        if group["moments"] in ("rotate", "project_aware"):
            for side, basis in new.items():
                before = old[side]
                assert before is not None
                changes[side] = change_of_basis(before.to(basis.dtype), basis)
        transfer_(
            group["moments"], state["exp_avg"], state.get("exp_avg_sq"), changes["left"],
            changes["right"], betas=group["betas"],
            step=float(state["step"]) - float(state.get("moments_from", 0)),
        )  # fmt: skip
        if group["moments"] == "reset":
            state["moments_from"] = state["step"].clone()

    def _find_basis(
        self,
        group: dict[str, Any],
        member: Member,
        g: Tensor,
        side: Side,
        old: Tensor | None,
        kind: BasisKind,
    ) -> Any:
        rank = self.rank_of(member, group)
        constraint = self._constraints.get(member.name, member.parameter)
        shard = member.shard
        if self.compat and constraint is None:
            if shard is not None:
                return shard.agree(_lapack_basis(shard.gather(g), rank, side))
            return _lapack_basis(g, rank, side)
        allowed = None
        if constraint is not None:
            allowed = constraint.rows if side == "left" else constraint.columns
        step = int(self.state[member.parameter]["step"])
        generator = torch.Generator(device=g.device)
        generator.manual_seed(_seed(self.seed, member.index, step, SIDES.index(side)))
        request = Request(
            g=g, rank=rank, side=side, old=None if self.compat else old, allowed=allowed,
            generator=generator, options=group,
        )  # fmt: skip
        return kind.find(request) if shard is None else find_sharded(kind, request, shard)

    def _has_basis(self, member: Member) -> bool:
        """Whether the state holds a basis, from now or from before another constraint came."""
        state = self.state[member.parameter]
        if int(state["refreshed"]) >= 0:
            return True
        if float(state["step"]) == 0:
            return False
        if any(f"rows_{side}" in state for side in SIDES):
            return True
        found = any(bool(state[k].any()) for k in ("basis_left", "basis_right") if k in state)
        return found if member.shard is None else member.shard.largest(float(found)) > 0

    def _refuse_early(self, work: list[tuple[dict[str, Any], list[Member]]]) -> None:
        for group, members in work:
            for member in members if self.is_projected(group) else ():
                p = member.parameter
                constraint = self._constraints.get(member.name, p)
                if constraint is not None and constraint.frozen:
                    continue
                due = not self.state.get(p) or self.refresh_due(member, group)
                if due and not math.isfinite(_largest(self._gradient(member, full=False), member)):
                    self._refuse(member)

    def _refuse(self, member: Member) -> None:
        message = (
            f"the gradient of {member.name} at a basis refresh is not finite; its basis and "
            "moments are kept and this step skips it. Lower the learning rate or clip gradients."
        )
        if self.on_nonfinite == "raise":
            raise FloatingPointError(message)
        if not self._warned_nonfinite:
            self._warned_nonfinite = True
            warnings.warn(message, stacklevel=6)


def _learned(member: Member, state: dict[str, Any]) -> bool:
    """Whether the moments have seen any gradient; all that came may have been zero."""
    found = any(
        bool(value.any())
        for key, value in state.items()
        if value.ndim and not key.startswith(("basis_", "rows_", "row_"))
    )
    return found if member.shard is None else member.shard.largest(float(found)) > 0


def _largest(g: Tensor, member: Member) -> float:
    """The largest magnitude of the whole gradient; NaN or infinity if there is one.

    On a CPU 20 times faster than a maximum norm.
    """
    largest = max(abs(float(x)) for x in torch.aminmax(g)) if g.numel() else 0.0
    return largest if member.shard is None else member.shard.largest(largest)


def _lapack_basis(g: Tensor, rank: int, side: str) -> Tensor:
    # galore_torch's own call, signs as LAPACK leaves them.
    u, _, vh = torch.linalg.svd(g.float(), full_matrices=False)
    return (u[..., :rank] if side == "left" else vh[..., :rank, :].mT).contiguous()


def _seed(*numbers: int) -> int:
    # A fixed polynomial hash: the same on every rank and in every run, unlike hash().
    value = 0
    for number in numbers:
        value = (value * 1_000_003 + number + 1) % (2**63 - 1)
    return value
