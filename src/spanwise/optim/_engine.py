"""One optimizer step for every method that works in a subspace of the gradient.

The order of a step, which each public class walks with its own settings:

1. project the gradient off `avoid` (quality: the basis and moments then never see it);
2. refresh the basis where due and carry the moments over;
3. R = project(G);
4. moments and direction of R by the rule;
5. hold the update itself to the constraint (the guarantee), decay, write.

The guarantee is on the step, not on the gradient: Adam's elementwise division, a raw residual
and weight decay all leave the allowed directions again.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from spanwise.layouts import Layout, stored_matrix
from spanwise.optim._base import GroupedOptimizer
from spanwise.optim._groups import Member, resolve_side
from spanwise.optim._projector import DenseProjector, find_basis
from spanwise.optim._rules import adam_
from spanwise.optim._transfer import change_of_basis, transfer_

Side = Literal["left", "right"]

# Projected gradients and directions of one fused call live at once; this bounds them.
_CHUNK_NUMBERS = 2**24


class SubspaceOptimizer(GroupedOptimizer):
    """Adam on the coordinates of each gradient in a low-dimensional subspace.

    Not used directly: `GaLore` and its relatives set `method`, `aliases` and their defaults.
    """

    # -- the step -------------------------------------------------------------------------

    # The schedule of refreshes is Python; compiling around it would recompile for every shape
    # and gain nothing, since a step is matrix products and one fused kernel.
    @torch.compiler.disable
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyrefly: ignore
        """Take one step.

        Args:
            closure: Re-evaluates the model and returns the loss, with gradients enabled.

        Raises:
            RuntimeError: If a gradient is sparse (before anything changes).
            FloatingPointError: If a gradient at a refresh is not finite and
                `on_nonfinite="raise"` (before anything changes).
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work = []
        for i, group in enumerate(self.param_groups):
            members = [m for m in self._group_members(i) if m.parameter.grad is not None]
            for member in members:
                _check_gradient(member)
            work.append((group, members))
        if self.on_nonfinite == "raise":
            self._refuse_early(work)
        for group, members in work:
            if group["rank"]:
                self._projected_step(group, members)
            else:
                self._plain_step(group, members)
        return loss

    def _plain_step(self, group: dict[str, Any], members: list[Member]) -> None:
        batches: dict[tuple[float, bool], list[tuple[Tensor, Any]]] = {}
        for member in members:
            p, state = member.parameter, self.state[member.parameter]
            if "step" not in state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            state["step"] += 1
            constraint = self._constraints.get(member.name, p)
            key = (float(state["step"]), constraint is not None)
            batches.setdefault(key, []).append((p, constraint))
        for (_, guarded), batch in batches.items():
            parameters = [p for p, _ in batch]
            grads = [p.grad for p in parameters]
            targets: list[Tensor] = list(parameters)
            if guarded:
                grads = [constraint.apply(p.grad).to(p.dtype) for p, constraint in batch]
                targets = [torch.zeros_like(p) for p in parameters]
            decay, lr = group["weight_decay"], float(group["lr"])
            self._adam(
                group, parameters, targets, grads, decay=0.0 if guarded or self.compat else decay
            )
            if guarded:
                for p, direction, (_, constraint) in zip(parameters, targets, batch, strict=True):
                    if decay:
                        direction.add_(p, alpha=-lr * decay)
                    p.add_(constraint.apply(direction))
            elif self.compat and decay:
                torch._foreach_mul_(parameters, 1 - lr * decay)

    def _projected_step(self, group: dict[str, Any], members: list[Member]) -> None:
        for chunk in self._chunks(group, members):
            ready: list[tuple[Member, DenseProjector, Tensor]] = []
            for member in chunk:
                projector = self._advance(group, member)
                if projector is not None:
                    g = self._gradient(member, full=False)
                    ready.append((member, projector, projector.project(g)))
            batches: dict[float, list[tuple[Member, DenseProjector, Tensor]]] = {}
            for item in ready:
                state = self.state[item[0].parameter]
                state["step"] += 1
                steps = float(state["step"]) - float(state.get("moments_from", 0))
                batches.setdefault(steps, []).append(item)
            for batch in batches.values():
                parameters = [m.parameter for m, _, _ in batch]
                states = [self.state[p]["exp_avg"] for p in parameters]
                grads = [
                    self._constrain_coordinates(m, projector, r).to(s.dtype)
                    for (m, projector, r), s in zip(batch, states, strict=True)
                ]
                directions = [torch.zeros_like(r) for r in grads]
                self._adam(group, parameters, directions, grads, decay=0.0)
                for (member, projector, _), x in zip(batch, directions, strict=True):
                    self._write(group, member, projector, x)

    def _adam(
        self,
        group: dict[str, Any],
        parameters: list[Tensor],
        targets: list[Tensor],
        grads: list[Any],
        *,
        decay: float,
    ) -> None:
        states = [self.state[p] for p in parameters]
        step = states[0]["step"] - states[0].get("moments_from", 0)
        eps = group["eps"]
        if self.compat:
            # sqrt(1 - b2^t) m / (sqrt(v) + eps) is the usual rule with eps / sqrt(1 - b2^t).
            eps = eps / math.sqrt(1 - group["betas"][1] ** float(step))
        for indices in _by_dtype(targets):
            adam_(
                [targets[i] for i in indices],
                [grads[i] for i in indices],
                [states[i]["exp_avg"] for i in indices],
                [states[i]["exp_avg_sq"] for i in indices],
                step=step,
                lr=group["lr"],
                betas=group["betas"],
                eps=eps,
                weight_decay=decay,
            )

    def _chunks(self, group: dict[str, Any], members: list[Member]) -> Iterator[list[Member]]:
        chunk: list[Member] = []
        numbers = 0
        for member in members:
            chunk.append(member)
            numbers += member.stack * max(member.matrix_shape) * group["rank"]
            if numbers >= _CHUNK_NUMBERS:
                yield chunk
                chunk, numbers = [], 0
        if chunk:
            yield chunk

    def _gradient(self, member: Member, *, full: bool) -> Tensor:
        g = member.parameter.grad
        assert g is not None
        g = stored_matrix(g, member.layout)
        constraint = self._constraints.get(member.name, member.parameter)
        if full and constraint is not None:
            wide = g if g.dtype in (torch.float32, torch.float64) else g.float()
            g = constraint.matrix(wide)
        return g

    # -- the basis ------------------------------------------------------------------------

    def _advance(self, group: dict[str, Any], member: Member) -> DenseProjector | None:
        """The projector to use now, refreshed if due; None if this parameter must wait."""
        constraint = self._constraints.get(member.name, member.parameter)
        if constraint is not None and constraint.frozen:
            return None
        state = self.state[member.parameter]
        if "step" not in state:
            self._init_state(group, member, state)
        if self.refresh_due(member, group):
            g = self._gradient(member, full=True)
            largest = float(g.abs().max()) if g.numel() else 0.0
            if not math.isfinite(largest):
                self._refuse(member)
                return None
            # A zero gradient has no subspace: torch's checkpoint helpers step once with zeros.
            if largest > 0:
                self._refresh(group, member, state, g)
            elif constraint is not None and int(state["refreshed"]) < 0 and _has_basis(state):
                return None  # the basis is from before this constraint, and moments are not zero
        return self._projector(group, member, state)

    def refresh_due(self, member: Member, group: dict[str, Any]) -> bool:
        """Whether this parameter's basis is to be redrawn at its next step.

        The first basis comes from the first gradient; the others every `refresh_every` steps,
        with `stagger` spread evenly over the interval so that no step pays for all.
        """
        state = self.state[member.parameter]
        every, k = group["refresh_every"], int(state["step"])
        offset = 0
        if group["stagger"]:
            total = sum(len(g["params"]) for g in self.param_groups)
            offset = member.index * every // total
        last_due = 0 if k < offset else k - (k - offset) % every
        return int(state["refreshed"]) < last_due or int(state["refreshed"]) < 0

    def _init_state(self, group: dict[str, Any], member: Member, state: dict[str, Any]) -> None:
        p = member.parameter
        dtype = self._state_dtype(p)
        rank, (rows, cols) = self.rank_of(member, group), member.matrix_shape
        side = resolve_side(group["side"], rows, cols)
        stack = p.shape[:1] if member.layout.startswith("experts") else ()
        state["step"] = torch.zeros((), dtype=torch.float32)
        state["refreshed"] = torch.full((), -1, dtype=torch.int64)
        shape = {"left": (rank, cols), "right": (rows, rank), "full": (rank, rank)}[side]
        if side in ("left", "full"):
            state["basis_left"] = torch.zeros(*stack, rows, rank, dtype=dtype, device=p.device)
        if side in ("right", "full"):
            state["basis_right"] = torch.zeros(*stack, cols, rank, dtype=dtype, device=p.device)
        for key in ("exp_avg", "exp_avg_sq"):
            state[key] = torch.zeros(*stack, *shape, dtype=dtype, device=p.device)

    def _projector(
        self, group: dict[str, Any], member: Member, state: dict[str, Any]
    ) -> DenseProjector:
        return DenseProjector(state.get("basis_left"), state.get("basis_right"))

    def _refresh(
        self, group: dict[str, Any], member: Member, state: dict[str, Any], g: Tensor
    ) -> None:
        keys = [key for key in ("basis_left", "basis_right") if key in state]
        if any(state[key].shape[-1] != self.rank_of(member, group) for key in keys):
            # A constraint came or went and left another rank: new coordinates, new moments.
            step = state["step"]
            self._init_state(group, member, state)
            state["step"], state["moments_from"] = step, step.clone()
        for key in (*keys, "exp_avg", "exp_avg_sq"):
            state[key] = state[key].to(self._state_dtype(member.parameter))
        fresh = int(state["refreshed"]) < 0 and not _has_basis(state)
        changes: dict[str, Tensor | None] = {"left": None, "right": None}
        sides: tuple[Side, Side] = ("left", "right")
        for which, side in enumerate(sides):
            key = f"basis_{side}"
            if key not in state:
                continue
            old = None if fresh else state[key]
            generator = torch.Generator(device=g.device)
            generator.manual_seed(_seed(self.seed, member.index, int(state["step"]), which))
            new = self._find_basis(group, member, g, side, old, generator)
            if old is not None:
                changes[side] = change_of_basis(old.to(new.dtype), new)
            state[key] = new.to(state[key].dtype)
        if not fresh:
            transfer_(
                group["moments"], state["exp_avg"], state["exp_avg_sq"], changes["left"],
                changes["right"], betas=group["betas"],
                step=float(state["step"]) - float(state.get("moments_from", 0)),
            )  # fmt: skip
            if group["moments"] == "reset":
                state["moments_from"] = state["step"].clone()
        state["refreshed"].copy_(state["step"])

    def _find_basis(
        self,
        group: dict[str, Any],
        member: Member,
        g: Tensor,
        side: Side,
        old: Tensor | None,
        generator: torch.Generator,
    ) -> Tensor:
        rank = self.rank_of(member, group)
        constraint = self._constraints.get(member.name, member.parameter)
        if self.compat and constraint is None:
            return _lapack_basis(g, rank, side)
        return find_basis(
            g,
            rank,
            side,
            method=group["svd"],
            old=None if self.compat else old,
            constraint=constraint,
            generator=generator,
        )

    def _refuse_early(self, work: list[tuple[dict[str, Any], list[Member]]]) -> None:
        for group, members in work:
            for member in members if group["rank"] else ():
                p = member.parameter
                constraint = self._constraints.get(member.name, p)
                if constraint is not None and constraint.frozen:
                    continue
                due = not self.state.get(p) or self.refresh_due(member, group)
                if due and not bool(torch.isfinite(self._gradient(member, full=False)).all()):
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

    # -- the write ------------------------------------------------------------------------

    def _constrain_coordinates(
        self, member: Member, projector: DenseProjector, x: Tensor
    ) -> Tensor:
        """The free sides of `x`; a side with a basis obeys already, as its basis does."""
        constraint = self._constraints.get(member.name, member.parameter)
        if constraint is None:
            return x
        if projector.left is None and constraint.rows is not None:
            x = constraint.rows.rows(x)
        if projector.right is None and constraint.columns is not None:
            x = constraint.columns.columns(x)
        return x

    def _write(
        self, group: dict[str, Any], member: Member, projector: DenseProjector, x: Tensor
    ) -> None:
        p, lr = member.parameter, float(group["lr"])
        decay, scale = group["weight_decay"], group["scale"]
        constraint = self._constraints.get(member.name, p)
        x = self._constrain_coordinates(member, projector, x)
        w = _writable_matrix(p, member.layout)
        if w is None or (constraint is not None and decay):
            update = projector.lift(x).mul_(scale)
            if decay:
                update.add_(stored_matrix(p, member.layout), alpha=-lr * decay)
            if constraint is not None:
                update = constraint.matrix(update)
            p.add_(update.reshape(p.shape).to(p.dtype))
            return
        if decay and not self.compat:
            w.mul_(1 - lr * decay)
        projector.lift_add_(w, x, scale)
        if decay and self.compat:
            w.mul_(1 - lr * decay)


def _has_basis(state: dict[str, Any]) -> bool:
    return any(bool(state[k].any()) for k in ("basis_left", "basis_right") if k in state)


def _lapack_basis(g: Tensor, rank: int, side: str) -> Tensor:
    # galore_torch's own call, signs as LAPACK leaves them.
    u, _, vh = torch.linalg.svd(g.float(), full_matrices=False)
    return (u[..., :rank] if side == "left" else vh[..., :rank, :].mT).contiguous()


def _writable_matrix(p: Tensor, layout: Layout) -> Tensor | None:
    """The stored matrix as a view of `p`, or None when its strides allow none."""
    if layout != "conv":
        return p
    return p.view(p.shape[0], -1) if p.is_contiguous() else None


def _by_dtype(tensors: list[Tensor]) -> Iterator[list[int]]:
    kinds: dict[tuple[Any, Any], list[int]] = {}
    for i, t in enumerate(tensors):
        kinds.setdefault((t.dtype, t.device), []).append(i)
    yield from kinds.values()


def _seed(*numbers: int) -> int:
    # A fixed polynomial hash: the same on every rank and in every run, unlike hash().
    value = 0
    for number in numbers:
        value = (value * 1_000_003 + number + 1) % (2**63 - 1)
    return value


def _check_gradient(member: Member) -> None:
    g = member.parameter.grad
    assert g is not None
    if g.is_sparse:
        raise RuntimeError(
            f"the gradient of {member.name} is sparse; use torch.optim.SparseAdam for it "
            "(nn.Embedding(sparse=True) makes such gradients)."
        )
