"""One optimizer step for every method that works in a subspace of the gradient.

The order of a step, which each public class walks with its own settings:

1. project the gradient off `avoid` (quality: the basis and moments then never see it);
2. refresh the basis where due and carry the moments over;
3. R = project(G);
4. moments and direction of R by the rule;
5. add the residual, if the method keeps one; hold the update itself to the constraint (the
   guarantee), decay, write;
6. advance bases that learn.

The guarantee is on the step, not on the gradient: Adam's elementwise division, a raw residual
and weight decay all leave the allowed directions again.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from spanwise.layouts import Layout, stored_matrix
from spanwise.optim._bases.kinds import BASES
from spanwise.optim._bases.projector import DenseProjector
from spanwise.optim._bases.rows import RowProjector, always_free, coordinates_inside
from spanwise.optim._engine.groups import Member, resolve_side
from spanwise.optim._engine.refresh import Projector, RefreshingOptimizer
from spanwise.optim._engine.residual import recover_
from spanwise.optim._engine.rules import adam_
from spanwise.optim._guard.constraint import Constraint, SideConstraint
from spanwise.optim._sharding.shard import is_sharded, own_part

# Projected gradients and directions of one fused call live at once. On a GPU a few large calls
# are best; on a CPU what is still in the cache is.
_CHUNK_NUMBERS = {"cpu": 2**19}
_CHUNK_NUMBERS_ELSEWHERE = 2**24


@dataclass
class Work:
    """One parameter within one step."""

    member: Member
    state: dict[str, Any]
    """The parameter's state: plain tensors."""
    projector: Projector
    constraint: Constraint | None
    g: Tensor
    """Stored matrix of the gradient, `(*stack, rows, cols)`. Held to the constraint only if the
    method looks beyond its coordinates (`looks_beyond`)."""
    r: Tensor
    """Coordinates of the gradient, held to the constraint."""

    @property
    def age(self) -> float:
        """Steps that the moments have seen, this one included."""
        return float(self.state["step"]) - float(self.state.get("moments_from", 0))


class SubspaceOptimizer(RefreshingOptimizer):
    """Adam on the coordinates of each gradient in a low-dimensional subspace.

    Not used directly: `GaLore` and its relatives set `method`, `aliases` and their defaults, and
    override the parts of a step in which their paper differs.
    """

    @override
    def check_options(self, group: dict[str, Any]) -> None:
        """Refuse to carry moments over between selections of rows, which have no rotation."""
        selects = BASES[group["basis"]].selects
        if selects and group["moments"] in ("rotate", "project_aware"):
            raise ValueError(
                f"moments = {group['moments']!r} needs dense bases, and basis = {group['basis']!r} "
                "selects rows. Use moments='keep' or 'reset', or spanwise.optim.Grass."
            )

    # -- the step -------------------------------------------------------------------------

    # The schedule of refreshes is Python; compiling around it would recompile for every shape
    # and gain nothing, since a step is matrix products and one fused kernel.
    @torch.compiler.disable
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
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
            members = [m for m in self._group_members(i) if self._has_gradient(m)]
            for member in members:
                _check_gradient(member)
            work.append((group, members))
        if self.on_nonfinite == "raise":
            self._refuse_early(work)
        if len(self._constraints):
            self._check_selections(work)
        for group, members in work:
            if self.is_projected(group):
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
                for key in ("exp_avg", "exp_avg_sq"):
                    state[key] = torch.zeros_like(own_part(p), memory_format=torch.preserve_format)
            state["step"] += 1
            constraint = self._constraints.get(member.name, p)
            key = (float(state["step"]), constraint is not None)
            batches.setdefault(key, []).append((p, constraint))
        for (_, guarded), batch in batches.items():
            parameters = [p for p, _ in batch]
            weights = [own_part(p) for p in parameters]
            grads: list[Any] = [own_part(p.grad) for p in parameters]  # pyrefly: ignore
            targets = list(weights)
            if guarded:
                grads = [
                    constraint.apply(g).to(p.dtype)
                    for g, (p, constraint) in zip(grads, batch, strict=True)
                ]
                targets = [torch.zeros_like(w) for w in weights]
            decay, lr = group["weight_decay"], float(group["lr"])
            held = guarded or self.compat
            self._adam(group, parameters, targets, grads, lr=lr, decay=0.0 if held else decay)
            if guarded:
                for w, direction, (_, constraint) in zip(weights, targets, batch, strict=True):
                    if decay:
                        direction.add_(w, alpha=-lr * decay)
                    w.add_(constraint.apply(direction))
            elif self.compat and decay:
                torch._foreach_mul_(weights, 1 - lr * decay)

    def _projected_step(self, group: dict[str, Any], members: list[Member]) -> None:
        for chunk in self._chunks(group, members):
            works = [w for member in chunk if (w := self._prepare(group, member)) is not None]
            batches: dict[float, list[Work]] = {}
            for work in works:
                batches.setdefault(work.age, []).append(work)
            for batch in batches.values():
                self._update(group, batch)
            self._learn(group, works)

    def _prepare(self, group: dict[str, Any], member: Member) -> Work | None:
        """The gradient of one parameter in its subspace; None if the parameter must wait."""
        projector = self._advance(group, member)
        if projector is None:
            return None
        p = member.parameter
        state, constraint = self.state[p], self._constraints.get(member.name, p)
        g = self._gradient(member, full=self.looks_beyond(group))
        work = Work(member, state, projector, constraint, g, projector.project(g))
        work.r = self._constrain_coordinates(work, work.r)
        if group["residual"] != "drop" and "residual_norm" not in state:  # switched on amid a run
            state["residual_norm"] = state["exp_avg"].new_zeros(member.stack_shape)
        state["step"] += 1
        return work

    def looks_beyond(self, group: dict[str, Any]) -> bool:
        """Whether the method uses the gradient outside the subspace as well."""
        return group["residual"] != "drop"

    def _update(self, group: dict[str, Any], batch: list[Work]) -> None:
        """Moments, direction and write of parameters whose moments have equal age."""
        for work, x in zip(batch, self._directions(group, batch), strict=True):
            self._write(group, work, x)

    def _directions(self, group: dict[str, Any], batch: list[Work]) -> list[Tensor]:
        """Coordinates x of every step, which moves W by `lr * scale * lift(x)`."""
        grads = [w.r.to(w.state["exp_avg"].dtype) for w in batch]
        directions = [torch.zeros_like(r) for r in grads]
        self._adam(group, [w.member.parameter for w in batch], directions, grads, lr=1.0)
        return directions

    def _learn(self, group: dict[str, Any], works: list[Work]) -> None:
        """After the write: advance bases that learn from every gradient."""

    def _adam(
        self,
        group: dict[str, Any],
        parameters: list[Tensor],
        targets: list[Tensor],
        grads: list[Any],
        *,
        lr: float,
        decay: float = 0.0,
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
                lr=lr,
                betas=group["betas"],
                eps=eps,
                weight_decay=decay,
            )

    def _chunks(self, group: dict[str, Any], members: list[Member]) -> Iterator[list[Member]]:
        chunk: list[Member] = []
        numbers = 0
        for member in members:
            chunk.append(member)
            rank = group["rank"] or min(member.matrix_shape)
            numbers += member.stack * max(member.matrix_shape) * rank
            kind = member.parameter.device.type
            if numbers >= _CHUNK_NUMBERS.get(kind, _CHUNK_NUMBERS_ELSEWHERE):
                yield chunk
                chunk = []
                numbers = 0
        if chunk:
            yield chunk

    # -- the write ------------------------------------------------------------------------

    def _constrain_coordinates(self, work: Work, x: Tensor) -> Tensor:
        """Hold `x` to the constraint: its free sides, and coordinates of selected rows.

        A side with a dense basis obeys already, as its basis does.
        """
        if work.constraint is None:
            return x
        constraint, projector = work.constraint, work.projector
        for side, allowed in (("left", constraint.rows), ("right", constraint.columns)):
            if allowed is None:
                continue
            if side in projector.sides:
                if isinstance(projector, DenseProjector):
                    continue
                allowed = self._inside_selection(work.member.name, projector, allowed)
            x = allowed.rows(x) if side == "left" else allowed.columns(x)
        return x

    def _check_selections(self, work: list[tuple[dict[str, Any], list[Member]]]) -> None:
        """Raise where rows that are about to be chosen leave a constraint no coordinate.

        Rows of a step are known in the step only; asked here, nothing has moved yet.
        """
        for group, members in work:
            selects = self.is_projected(group) and BASES[group["basis"]].selects
            for member in members if selects and not self.looks_beyond(group) else ():
                constraint = self._constraints.get(member.name, member.parameter)
                if constraint is None or constraint.frozen:
                    continue
                left = resolve_side(group["side"], *member.matrix_shape) == "left"
                allowed = constraint.rows if left else constraint.columns
                if allowed is None or always_free(allowed, self.rank_of(member, group)):
                    continue
                fresh = not self.state.get(member.parameter)
                try:
                    if (chosen := self._selection_to_come(group, member)) is not None:
                        coordinates_inside(chosen, allowed, member.name)
                except ValueError:
                    if fresh:
                        del self.state[member.parameter]
                    raise

    def _inside_selection(
        self, name: str, projector: RowProjector, allowed: SideConstraint
    ) -> SideConstraint:
        held = self._selected.get(name)
        if held is None or held[0] is not projector.rows or held[1] is not allowed:
            inside = coordinates_inside(projector, allowed, name)
            held = self._selected[name] = (projector.rows, allowed, inside)
        return held[2]

    def _rate(self, group: dict[str, Any], state: dict[str, Any]) -> float:
        """What the lifted direction is multiplied by, the warm-up after a refresh included."""
        rate, warmup = float(group["lr"]) * group["scale"], group["refresh_warmup"]
        if not warmup:
            return rate
        refreshed = int(state["refreshed"])
        since = int(state["step"]) - refreshed
        if refreshed > int(state.get("first_refresh", 0)) and since < warmup:
            rate *= since / warmup
        return rate

    def _write(self, group: dict[str, Any], work: Work, x: Tensor) -> None:
        p, lr, decay = work.member.held, float(group["lr"]), group["weight_decay"]
        constraint, projector = work.constraint, work.projector
        rate, x = self._rate(group, work.state), self._constrain_coordinates(work, x)
        factor = None
        if group["residual"] != "drop":
            factor = recover_(
                work.g, work.r, x, work.state["residual_norm"], group=group, age=work.age,
                axis=-2 if projector.sides == ("left",) else -1, shard=work.member.shard,
            )  # fmt: skip
        w = _writable_matrix(p, work.member.layout)
        beyond = factor is not None and (constraint is not None or p.dtype != x.dtype)
        if w is None or beyond or (constraint is not None and decay):
            update = projector.lift(x)
            if factor is not None:
                update.addcmul_(work.g.to(update.dtype), factor)
            update.mul_(rate)
            if decay:
                update.add_(stored_matrix(p, work.member.layout), alpha=-lr * decay)
            if constraint is not None:
                update = constraint.matrix(update)
            p.add_(update.reshape(p.shape).to(p.dtype))
            return
        if decay and not self.compat:
            w.mul_(1 - lr * decay)
        if factor is not None:
            w.addcmul_(work.g, factor, value=rate)
        projector.lift_add_(w, x, rate)
        if decay and self.compat:
            w.mul_(1 - lr * decay)


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


def _check_gradient(member: Member) -> None:
    g = member.parameter.grad
    if g is not None and g.is_sparse:
        raise RuntimeError(
            f"the gradient of {member.name} is sparse; use torch.optim.SparseAdam for it "
            "(nn.Embedding(sparse=True) makes such gradients)."
        )
    p = member.parameter
    if g is not None and is_sharded(p) and getattr(g, "placements", None) != p.placements:  # pyrefly: ignore
        raise RuntimeError(
            f"the gradient of {member.name} is spread over processes in another way than its "
            f"weight, as {getattr(g, 'placements', 'one tensor')} instead of {p.placements}. "  # pyrefly: ignore
            "Redistribute it, or let fully_shard reduce it."
        )
