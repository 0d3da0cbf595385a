"""Grass: Adam on selected rows of every weight matrix's gradient."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor
from typing_extensions import override

from spanwise.layouts import stored_matrix
from spanwise.optim._bases.kinds import BasisKind
from spanwise.optim._bases.rows import (
    SCALED,
    SELECTIONS,
    GatheredRows,
    RowProjector,
    row_gradient,
    synchronize,
)
from spanwise.optim._engine.groups import Member, resolve_side
from spanwise.optim._engine.options import CommonOptions, check_number
from spanwise.optim._engine.refresh import Projector, Side
from spanwise.optim._engine.subspace import SubspaceOptimizer, Work


class Grass(SubspaceOptimizer):
    """AdamW whose moments cover r rows of each gradient, chosen anew every T steps.

    With P = I[:, rows] diag(rho), Adam runs on R = P^T G, r rows of G, and W moves by a P N with
    N Adam's direction. There is no decomposition and no matrix product: a step gathers r rows,
    updates their moments and adds r rows. State is 2 r max(m, n) numbers and r indices. With
    `grass_linear_` the backward pass computes those r rows only.

    Args:
        params: Groups from `spanwise.optim.param_groups(model, rank=128)`, or your own; a group
            without `rank` is plain AdamW. The paper's keys `update_proj_gap` and `state` (for
            `moments`) are accepted.
        lr: Learning rate. The projected groups move by `scale * lr`.
        select: How rows are chosen from their norms: `topr` (the largest; default),
            `multinomial_norm` and `uniform` (drawn with replacement and scaled so that
            E[P P^T] = I), `multinomial_norm_nr` and `uniform_nr` (without, rho = 1).
        refresh_every: T, steps between two choices; None keeps the first.
        scale: a, the factor of the update.
        side: `short_left` (default) chooses rows where m <= n and columns elsewhere; `short` (a
            square matrix counts as columns), `long`, `left` (rows of the stored matrix), `right`
            (columns) or `local` (columns).
        moments: At a choice: `reset` to zero as in the paper, with bias correction restarted, or
            `keep_common`: rows that stay keep their moments and their own step count.
        refresh_warmup: Steps over which the rate rises again after each choice but the first;
            0 for none, 10 to 20 damp the jump of fresh moments.
        rho_max: Largest scale of a sampled row, above 0, or None. Adam does not see the scale of
            its gradient, so rho only lengthens the update of rarely drawn rows.
        decay: Whether weight decay reaches `all` of the weight or the `selected` rows only.
        stagger: Spread refreshes over the interval.
        **common: What all optimizers share: `betas`, `eps`, `weight_decay`, `rank`, `clamp_rank`,
            `on_nonfinite`, `seed`, `avoid`, `within`, `bias` (see `CommonOptions`).

    Raises:
        ValueError: If no group has a rank, a rank exceeds its matrix, an option is unknown, or
            an atlas matches nothing; in a step, before anything moves, if `avoid` or `within`
            leaves the selected rows no free coordinate.

    Sources:
        Muhamed, Li, Woodruff, Diab, Smith, "Grass: Compute efficient low-memory LLM training with
        structured sparse gradients", EMNLP 2024.

    Example:
        >>> opt = Grass(param_groups(model, rank=128), lr=5e-3)  # doctest: +SKIP
    """

    method = "grass"
    aliases: ClassVar = {"update_proj_gap": "refresh_every", "state": "moments"}
    choices: ClassVar = {
        "basis": ("rows",),
        "init": (None,),
        "side": ("short_left", "short", "long", "left", "right", "local"),
        "moments": ("reset", "keep_common"),
        "residual": ("drop",),
        "select": SELECTIONS,
        "decay": ("all", "selected"),
    }

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 5e-3,
        *,
        select: str = "topr",
        refresh_every: int | None = 200,
        scale: float = 0.25,
        side: str = "short_left",
        moments: str = "reset",
        refresh_warmup: int = 0,
        rho_max: float | None = 10.0,
        decay: str = "all",
        stagger: bool = False,
        **common: Unpack[CommonOptions],
    ) -> None:
        own = {
            "lr": lr, "basis": "rows", "select": select, "refresh_every": refresh_every,
            "scale": scale, "side": side, "moments": moments, "refresh_warmup": refresh_warmup,
            "rho_max": rho_max, "decay": decay, "stagger": stagger,
        }  # fmt: skip
        super().__init__(params, own, **common)

    @override
    def check_options(self, group: dict[str, Any]) -> None:
        """Raise if `rho_max` is not above 0."""
        if group["rho_max"] is not None:
            check_number("rho_max", group["rho_max"], 0, above=True)

    @classmethod
    @override
    def state_numbers(cls, rows: int, cols: int, options: Mapping[str, Any]) -> int:
        """Two moments of r rows, r indices (each as large as two numbers), their scale and age."""
        rank = options["rank"]
        side = resolve_side(options["side"], rows, cols)
        scaled = options["select"] in SCALED
        aged = options["moments"] == "keep_common"
        return 2 * rank * (cols if side == "left" else rows) + rank * (2 + scaled + aged)

    # -- rows with an age of their own ----------------------------------------------------

    @override
    def _allocate(self, group: dict[str, Any], member: Member) -> dict[str, Tensor]:
        state = super()._allocate(group, member)
        if group["moments"] == "keep_common":
            shape = (*member.stack_shape, self.rank_of(member, group))
            moment = state["exp_avg"]
            state["row_age"] = torch.zeros(shape, dtype=moment.dtype, device=moment.device)
        return state

    @override
    def _transfer(
        self,
        group: dict[str, Any],
        state: dict[str, Any],
        old: dict[Side, Tensor | None],
        new: dict[Side, Tensor],
    ) -> None:
        if group["moments"] != "keep_common":
            return super()._transfer(group, state, old, new)
        [(side, rows)] = new.items()
        before = old[side]
        assert before is not None
        # Both are ascending, so a row's old place is where it would be inserted.
        place = torch.searchsorted(before, rows).clamp(max=before.shape[-1] - 1)
        stays = before.gather(-1, place) == rows
        steps = float(state["step"]) - float(state.get("moments_from", 0))
        age = _age_of_rows(state, before, steps)
        state["row_age"] = torch.where(stays, age.gather(-1, place), 0)
        dim = -2 if side == "left" else -1
        for key in ("exp_avg", "exp_avg_sq"):
            moment = state[key]
            index = place.unsqueeze(-1 if side == "left" else -2).expand(moment.shape)
            mask = stays.unsqueeze(-1 if side == "left" else -2)
            state[key] = moment.gather(dim, index).mul_(mask)

    @override
    def _directions(self, group: dict[str, Any], batch: list[Work]) -> list[Tensor]:
        if group["moments"] != "keep_common":
            return super()._directions(group, batch)
        found = []
        for work in batch:
            state = work.state
            age = _age_of_rows(state, state[f"rows_{work.projector.sides[0]}"], work.age - 1).add_(
                1
            )
            found.append(
                _aged_adam(
                    work.r.to(state["exp_avg"].dtype), state["exp_avg"], state["exp_avg_sq"],
                    age=age.unsqueeze(-1 if "left" in work.projector.sides else -2),
                    betas=group["betas"], eps=group["eps"],
                )
            )  # fmt: skip
        return found

    @override
    def _write(self, group: dict[str, Any], work: Work, x: Tensor) -> None:
        decay, rate = group["weight_decay"], self._rate(group, work.state)
        if decay and rate and group["decay"] == "selected":
            projector = work.projector
            assert isinstance(projector, RowProjector)
            w = stored_matrix(work.member.held, work.member.layout)
            x = x.sub(projector.coordinates_of(w), alpha=float(group["lr"]) * decay / rate)
            group = {**group, "weight_decay": 0.0}
        super()._write(group, work, x)

    # -- gradients of which only the chosen rows exist ------------------------------------

    def choice_due(self, member: Member, group: dict[str, Any]) -> bool:
        """Whether rows are to be chosen anew from the next step's gradient."""
        constraint = self._constraints.get(member.name, member.parameter)
        if constraint is not None and constraint.frozen:
            return False
        return "step" not in self.state[member.parameter] or self.refresh_due(member, group)

    def choose(self, member: Member, group: dict[str, Any], g: Tensor | None) -> RowProjector:
        """The selection for the next step's gradient.

        Args:
            member: The parameter.
            group: Its group.
            g: The gradient to choose from, `(*stack, rows, cols)`; None keeps the old rows.
        """
        state = self.state[member.parameter]
        if "step" not in state:
            self._init_state(group, member, state)
        projector = super()._projector(member, state)
        assert isinstance(projector, RowProjector)
        if g is None:
            return projector
        constraint = self._constraints.get(member.name, member.parameter)
        if constraint is not None:
            g = constraint.matrix(g)
        kind, old, side = self._kind(group, member, state), projector.rows, projector.side
        rows, scale = super()._find_basis(group, member, g, side, old, kind)
        scale = None if scale is None else scale.to(self._state_dtype(member.parameter))
        return RowProjector(rows, side, projector.size, scale)

    @torch.compiler.disable
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; what `grass_linear_` left of the gradients is used up.

        Args:
            closure: Re-evaluates the model and returns the loss, with gradients enabled.

        Raises:
            RuntimeError: If a gradient is sparse, or a weight of `grass_linear_` has a gradient
                from elsewhere too (before anything changes).
            FloatingPointError: If a gradient at a refresh is not finite and
                `on_nonfinite="raise"` (before anything changes).
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # After the closure: the rows that it leaves are averaged too.
        synchronize(p for group in self.param_groups for p in group["params"])
        super().step()
        self._drop_row_gradients()
        return loss

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """What `torch.amp.GradScaler.step` asks first, and nothing else does.

        Raises:
            RuntimeError: If gradients wait as rows: the scaler divides `grad` only, and looks for
                what overflowed there only.
        """
        for group in self.param_groups:
            if any(row_gradient(p) is not None for p in group["params"]):
                raise RuntimeError(
                    "torch.amp.GradScaler does not see gradients that grass_linear_ leaves as "
                    "rows: they would be stepped with at the loss's scale. Train in bfloat16, "
                    "which needs no scaler, or remove() the conversion: Grass alone takes one."
                )
        return False

    @override
    def _has_gradient(self, member: Member) -> bool:
        dense = super()._has_gradient(member)
        if row_gradient(member.parameter) is None:
            return dense
        if dense:
            raise RuntimeError(
                f"{member.name} has a gradient outside its converted module: its weight is also "
                "used elsewhere. Leave it out of grass_linear_ with exclude=, or call "
                "remove() on what grass_linear_ returned."
            )
        return True

    @override
    def _gradient(self, member: Member, *, full: bool) -> Tensor:
        held = row_gradient(member.parameter)
        if held is None:
            return super()._gradient(member, full=full)
        # Nothing was chosen from a gradient with a NaN, wherever in the matrix it was.
        return held.values if held.finite else torch.full_like(held.values, math.nan)

    @override
    def _projector(self, member: Member, state: dict[str, Any]) -> Projector:
        projector = super()._projector(member, state)
        if row_gradient(member.parameter) is None or not isinstance(projector, RowProjector):
            return projector
        return GatheredRows(projector.rows, projector.side, projector.size, projector.scale)

    @override
    def _find_basis(
        self,
        group: dict[str, Any],
        member: Member,
        g: Tensor,
        side: Side,
        old: Tensor | None,
        kind: BasisKind,
    ) -> Any:
        held = row_gradient(member.parameter)
        if held is None:
            return super()._find_basis(group, member, g, side, old, kind)
        return held.projector.rows, held.projector.scale

    @override
    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset all gradients, those of `grass_linear_` included."""
        super().zero_grad(set_to_none)
        self._drop_row_gradients()

    @override
    def set_constraints(self, **rules: Any) -> None:
        """Replace what updates avoid and stay within; rows are chosen anew at the next step."""
        super().set_constraints(**rules)
        self._drop_row_gradients()

    def _drop_row_gradients(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if row_gradient(p) is not None:
                    p.spanwise_grad = None


def _age_of_rows(state: dict[str, Any], rows: Tensor, steps: float) -> Tensor:
    """Steps that the moments of each row have seen, in the state; `steps` for all at first.

    At first is also where `keep_common` comes on amid a run, or a checkpoint is from before.
    """
    if "row_age" not in state:
        state["row_age"] = state["exp_avg"].new_full(rows.shape, steps)
    return state["row_age"]


def _aged_adam(
    g: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *,
    age: Tensor,
    betas: tuple[float, float],
    eps: float,
) -> Tensor:
    """Adam's direction where each row has its own step count, `age`, for bias correction."""
    exp_avg.lerp_(g, 1 - betas[0])
    exp_avg_sq.mul_(betas[1]).addcmul_(g, g, value=1 - betas[1])
    denominator = (exp_avg_sq / (1 - betas[1] ** age)).sqrt_().add_(eps)
    return exp_avg.div(betas[0] ** age - 1).div_(denominator)
