"""Subset-norm and subspace-momentum: two independent ways to shrink Adam's state."""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn
from typing_extensions import override

from spanwise.layouts import stored_matrix
from spanwise.optim._engine.groups import (
    Member,
    check_layouts,
    param_groups,
    resolve_aliases,
    resolve_side,
)
from spanwise.optim._engine.options import CommonOptions
from spanwise.optim._engine.refresh import SIDES, Side
from spanwise.optim._engine.subspace import _writable_matrix
from spanwise.optim._engine.transfer import rotate_
from spanwise.optim._snsm.generic_rule import WholeMoments, has_momentum, has_second_moment
from spanwise.optim._snsm.keys import default_side, translate
from spanwise.optim._snsm.rules import (
    Matrix,
    change_of,
    correction_of,
    divided,
    has_subsets,
    has_subspace,
    held_subsets,
    subset_kind,
    subsets_for,
    update_denominators,
    update_numerator,
)
from spanwise.optim._snsm.subset_norm import subsets_of


class SNSM(WholeMoments):
    """Momentum in a subspace, a plain gradient step outside it, one second moment per subset.

    With R = project(G), u <- b1 u + (1 - b1) R and, for each subset of entries,
    v <- b2 v + (1 - b2) sum of G^2:

        W <- W - lr c (G + lift(u - R)) / (sqrt(v) + eps),   c = sqrt(1 - b2^t) / (1 - b1^t)

    and then W <- (1 - lr wd) W. Nothing of the gradient is thrown away, unlike in GaLore. State
    is r (m + n) + max(m, n) numbers for a matrix instead of 2 m n.

    Args:
        params: Groups from `spanwise.optim.param_groups(model, rank=128)`, or your own. A group
            with `rank` or `subset_size` is treated as above; any other keeps whole moments
            (`momentum` sm is ema there, `second_moment` sn is ema). The released code's keys
            `proj_type`, `update_proj_gap`, `approx_svd`, `overlap_state` and `correct_bias` are
            accepted.
        lr: Learning rate. With `normalize="sum"` about sqrt(subset size) times Adam's.
        momentum: `sm` (in the subspace), `ema` (of the whole gradient) or `none`.
        second_moment: `sn` (one number per subset), `ema` (one per entry) or `none`. The second
            beta at 1 sums without forgetting, as AdaGrad does; it needs `bias_correction=False`.
        subset_size: For groups with a rank, or from `param_groups`, that do not name one.
            `heuristics`: one subset per row where m >= n, else one per column. k > 0: chunks of
            the row-major flattened matrix, of the largest divisor of m n up to k. -k: the same
            with sqrt(m n) / k. A group may say None for one second moment per entry.
        ragged: Chunks of exactly the size asked for, the last one shorter.
        normalize: `sum` of squares over a subset, the paper's rule, or their `mean`, with which
            Adam's learning rate carries over.
        basis: `svd` of the gradient, `rows` (a selection), or `srht` (a random orthonormal basis
            that needs no gradient).
        svd: How the decomposition is computed: `randomized`, `exact`, `gram` or `warm`.
        select: Which rows: `topr` (the largest norms), `uniform_nr` or `multinomial_norm_nr`.
        side: Which side carries the basis: `short`, `long`, `left`, `right`, `full`, `local`.
            None: the shorter one, or the longer one for `rows`, as in the released code.
        refresh_every: T: the basis is drawn at the first step and at every multiple of T.
        moments: At a refresh, `reset` the momentum (the paper), `keep` its coordinates, or
            `rotate` it into the new basis.
        bias_correction: Whether to multiply by c. As released, 1 / (1 - b1^t) multiplies the
            plain gradient outside the subspace too: 10 times at the first step. Warm up.
        debias_after_reset: Divide the momentum by 1 - b1^k, k steps after a reset, and leave the
            gradient outside without 1 / (1 - b1^t). Off as in the paper.
        scale: Factor of the update.
        stagger: Spread refreshes over the interval so that no single step pays for all.
        **common: What all optimizers share: `betas`, `eps`, `weight_decay`, `rank`, `clamp_rank`,
            `on_nonfinite`, `seed`, `avoid`, `within`, `bias` (see `CommonOptions`).

    Raises:
        ValueError: If no group is treated, a rank or subset exceeds its matrix, options exclude
            one another, or an atlas matches nothing.

    Sources:
        Nguyen and Nguyen, "Lean and mean adaptive optimization via subset-norm and
        subspace-momentum with convergence guarantees", 2025, algorithms 1 and 2; the released
        code at github.com/timmytonga/sn-sm, whose refresh step we do not follow (it lifts the
        old momentum with the new basis; see docs/methods/subset-norm-subspace-momentum).

    Example:
        >>> opt = SNSM(param_groups(model, rank=128), lr=1e-2)  # doctest: +SKIP
    """

    method = "snsm"
    aliases: ClassVar = {
        "update_proj_gap": "refresh_every",
        "correct_bias": "bias_correction",
        "on_refresh": "moments",
    }
    choices: ClassVar = {
        "momentum": ("sm", "ema", "none"),
        "second_moment": ("sn", "ema", "none"),
        "normalize": ("sum", "mean"),
        "basis": ("svd", "rows", "srht", "identity"),
        "select": ("topr", "uniform_nr", "multinomial_norm_nr"),
        "moments": ("reset", "keep", "rotate"),
        "residual": ("drop",),
    }
    group_keys: ClassVar = ("subset_size",)
    switches: ClassVar = (*WholeMoments.switches, "ragged", "bias_correction", "debias_after_reset")
    fixed: ClassVar = (*WholeMoments.fixed, "momentum", "second_moment", "subset_size",
                       "ragged", "normalize")  # fmt: skip

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        momentum: str = "sm",
        second_moment: str = "sn",
        subset_size: int | str = "heuristics",
        ragged: bool = False,
        normalize: str = "sum",
        basis: str = "svd",
        svd: str = "randomized",
        select: str = "topr",
        side: str | None = None,
        refresh_every: int | None = 200,
        moments: str = "reset",
        bias_correction: bool = True,
        debias_after_reset: bool = False,
        scale: float = 1.0,
        stagger: bool = False,
        **common: Unpack[CommonOptions],
    ) -> None:
        self._subset_size, self._side = subset_size, side
        own = {
            "lr": lr, "momentum": momentum, "second_moment": second_moment, "ragged": ragged,
            "normalize": normalize, "basis": basis, "svd": svd, "select": select,
            "refresh_every": refresh_every, "moments": moments, "scale": scale,
            "bias_correction": bias_correction, "debias_after_reset": debias_after_reset,
            "stagger": stagger,
        }  # fmt: skip
        super().__init__(params, own, **common)
        wanted = [g for g in self.param_groups if g["momentum"] == "sm" and has_momentum(g)]
        if wanted and not any(has_subspace(group) for group in wanted):
            raise ValueError(
                'momentum="sm" needs a subspace, but no group has a rank: use '
                'spanwise.optim.param_groups(model, rank=128), or momentum="ema" (AdamSN).'
            )

    # -- groups ---------------------------------------------------------------------------

    @override
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; one with a `rank` or `subset_size`, or from `param_groups`, is treated."""
        group = dict(param_group)
        resolve_aliases(group, self.aliases)
        translate(group)
        merged = {**self.defaults, **group}
        if merged["rank"] and merged["momentum"] in ("ema", "none"):
            warnings.warn(
                f"rank = {merged['rank']} has no effect with momentum = "
                f'"{merged["momentum"]}"; use momentum="sm", or groups without rank.',
                stacklevel=3,
            )
            group["rank"] = merged["rank"] = None
        if group.get("subset_size") is not None and merged["second_moment"] in ("ema", "none"):
            raise ValueError(
                f"a group has subset_size = {group['subset_size']!r} but second_moment = "
                f'"{merged["second_moment"]}", which has no subsets; use second_moment="sn" or '
                "remove the key."
            )
        matrices = bool(merged["rank"]) or "layouts" in group
        chosen = self._subset_size if matrices and merged["second_moment"] == "sn" else None
        group.setdefault("subset_size", chosen)
        if "side" not in group:
            group["side"] = self._side or default_side(merged["basis"])
        super().add_param_group(group)

    @override
    def _check_group(self, group: dict[str, Any]) -> None:
        betas = group["betas"]
        if isinstance(betas, (tuple, list)) and len(betas) == 2 and betas[1] == 1:
            if group["bias_correction"]:
                raise ValueError(
                    "betas[1] = 1 (AdaGrad) with bias_correction=True would multiply every step "
                    "by sqrt(1 - 1^t) = 0; pass bias_correction=False."
                )
            betas = (betas[0], 0.999)  # any valid one: the engine's other checks stand
        super()._check_group({**group, "betas": betas})

    @override
    def check_options(self, group: dict[str, Any]) -> None:
        """Every subset must fit its matrix."""
        names = group.get("param_names") or [f"#{i}" for i in range(len(group["params"]))]
        for name, p, layout in zip(names, group["params"], check_layouts(group), strict=True):
            if has_subsets(group):
                rows, cols = stored_matrix(p.detach(), layout).shape[-2:]
                size = group["subset_size"]
                subsets_of(rows, cols, size, ragged=group["ragged"], name=name)

    @override
    def is_projected(self, group: Mapping[str, Any]) -> bool:
        """Whether this group has a subspace or subsets."""
        return has_subspace(group) or has_subsets(group)

    @classmethod
    @override
    def state_numbers(cls, rows: int, cols: int, options: Mapping[str, Any]) -> int:
        """Numbers of state kept for one matrix; an index of a row counts as two."""
        numbers, whole = 0, rows * cols
        if has_subspace(options):
            rank, basis = options["rank"], options["basis"]
            side = resolve_side(options["side"] or default_side(basis), rows, cols)
            own = {"left": rows, "right": cols, "full": rows + cols}[side]
            other = {"left": cols, "right": rows, "full": rank}[side]
            numbers += (2 * rank if basis == "rows" else rank * own) + rank * other
        elif has_momentum(options):
            numbers += whole
        if has_second_moment(options):
            size = options["subset_size"] if has_subsets(options) else 1
            numbers += subsets_of(rows, cols, size, ragged=options["ragged"]).count
        return numbers

    # -- state ----------------------------------------------------------------------------

    @override
    def sharding_gap(self, group: Mapping[str, Any], rows: int, cols: int) -> str | None:
        """Why this group cannot treat a weight whose rows are spread; None if it can."""
        if has_second_moment(group) and subset_kind(group, rows, cols) == "chunks":
            return 'its second moments are no whole rows or columns (subset_size="heuristics")'
        return super().sharding_gap(group, rows, cols) if has_subspace(group) else None

    @override
    def spread_state(self, group: Mapping[str, Any], member: Member) -> tuple[str, ...]:
        """The keys of a sharded parameter's state that are spread as its rows are."""
        if not self.is_projected(group):
            return super().spread_state(group, member)
        keys = super().spread_state(group, member) if has_subspace(group) else ("exp_avg",)
        rows = subset_kind(group, *member.matrix_shape) == "rows"
        return tuple({*keys, "exp_avg_sq"} if rows else {*keys} - {"exp_avg_sq"})

    @override
    def _allocate_basis(self, group: dict[str, Any], member: Member) -> dict[str, Tensor]:
        return super()._allocate_basis(group, member) if has_subspace(group) else {}

    @override
    def _allocate(self, group: dict[str, Any], member: Member) -> dict[str, Tensor]:
        p = member.parameter
        shapes: dict[str, tuple[int, ...]] = {}
        if has_subspace(group):
            shapes["exp_avg"] = self._coordinates_shape(group, member)
        elif has_momentum(group):
            shapes["exp_avg"] = (*member.stack_shape, *member.held_shape)
        if has_second_moment(group):
            shapes["exp_avg_sq"] = (*member.stack_shape, held_subsets(group, member))
        dtype = self._state_dtype(p)
        return {k: torch.zeros(s, dtype=dtype, device=p.device) for k, s in shapes.items()}

    @override
    def _init_state(self, group: dict[str, Any], member: Member, state: dict[str, Any]) -> None:
        # A new rank means new coordinates, but the subsets are the same: their moments stay.
        second = state.get("exp_avg_sq")
        super()._init_state(group, member, state)
        if second is not None:
            state["exp_avg_sq"] = second

    @override
    def refresh_due(self, member: Member, group: dict[str, Any]) -> bool:
        """Whether the basis is to be redrawn: at step 1 and at steps T, 2T, ... counted from 1."""
        if not has_subspace(group):
            return False
        state = self.state[member.parameter]
        every, t = group["refresh_every"], int(state["step"]) + 1
        if every is None or int(state["refreshed"]) < 0:
            return int(state["refreshed"]) < 0
        return int(state["refreshed"]) + 1 < t - (t - self.refresh_offset(member, group)) % every

    @override
    def _transfer(
        self,
        group: dict[str, Any],
        state: dict[str, Any],
        old: dict[Side, Tensor | None],
        new: dict[Side, Tensor],
    ) -> None:
        if group["moments"] == "reset":
            state["exp_avg"].zero_()
            state["moments_from"] = state["step"].clone()
        elif group["moments"] == "rotate":
            dtype = state["exp_avg"].dtype
            changes = (change_of(old, new, side, dtype) for side in SIDES)
            rotate_(state["exp_avg"], *changes)

    # -- the step -------------------------------------------------------------------------

    @override
    def looks_beyond(self, group: dict[str, Any]) -> bool:
        """Outside its subspace the gradient moves the weight as it is."""
        return True

    @override
    def _refuse_early(self, work: list[tuple[dict[str, Any], list[Member]]]) -> None:
        # Without a subspace there is no refresh: a first gradient is like any other.
        super()._refuse_early([(g, members) for g, members in work if has_subspace(g)])

    @override
    def _projected_step(self, group: dict[str, Any], members: list[Member]) -> None:
        # Chunks of as many numbers as the gradients have: constrained ones are copies.
        for chunk in self._chunks({**group, "rank": None}, members):
            matrices = [m for member in chunk if (m := self._begin(group, member)) is not None]
            denominators = update_denominators(group, matrices)
            for matrix, denominator in zip(matrices, denominators, strict=True):
                self._move(group, matrix, denominator)

    def _begin(self, group: dict[str, Any], member: Member) -> Matrix | None:
        """One parameter's gradient and subspace; None if the parameter must wait."""
        state, projector = self.state[member.parameter], None
        constraint = self._constraints.get(member.name, member.parameter)
        if has_subspace(group):
            projector = self._advance(group, member)
            if projector is None:
                return None
        elif constraint is not None and constraint.frozen:
            return None
        elif "step" not in state:
            self._init_state(group, member, state)
        state["step"] += 1
        g, dtype = self._gradient(member, full=True), self._state_dtype(member.parameter)
        g = g if g.dtype == dtype else g.to(dtype)
        return Matrix(member, state, projector, constraint, g, subsets_for(group, member))

    def _move(self, group: dict[str, Any], matrix: Matrix, denominator: Tensor | None) -> None:
        """W <- W - rate (base - lift(pull)) / denominator, then decay."""
        member, projector, subsets = matrix.member, matrix.projector, matrix.subsets
        p, constraint = member.held, matrix.constraint
        rate = self._rate(group, matrix.state) * correction_of(group, float(matrix.state["step"]))
        decay = float(group["lr"]) * group["weight_decay"]
        base, pull = update_numerator(group, matrix)
        if pull is not None and projector is not None and denominator is not None:
            inside = divided(pull, denominator, subsets, projector)
            if inside is None:
                base = base.clone()
                projector.lift_add_(base, pull, -1.0)
            pull = inside
        w = _writable_matrix(p, member.layout)
        in_place = w is not None and w.dtype == base.dtype and constraint is None
        target = w if w is not None and in_place else torch.zeros_like(base)
        if denominator is None:
            target.add_(base, alpha=-rate)
        else:
            subsets.add_quotient_(target, base, denominator, -rate)
        if pull is not None and projector is not None:
            projector.lift_add_(target, pull, rate)
        if in_place:
            if decay:
                target.mul_(1 - decay)
            return
        if decay:
            target.mul_(1 - decay).add_(stored_matrix(p, member.layout), alpha=-decay)
        if constraint is not None:
            target = constraint.matrix(target)
        p.add_(target.reshape(p.shape).to(p.dtype))


class AdamSN(SNSM):
    """Adam with one second moment per subset and its momentum whole: half of Adam's state.

    `SNSM` with `momentum="ema"`; without momentum (`betas=(0, 0.999)`) hardly any state is left.

    Args:
        params: Groups from `spanwise.optim.param_groups(model, rank=None)`, or your own with
            `subset_size`; any other group is Adam.
        lr: Learning rate; with `normalize="sum"` about sqrt(subset size) times Adam's.
        subset_size: As for `SNSM`.
        ragged: As for `SNSM`.
        normalize: As for `SNSM`.
        bias_correction: As for `SNSM`.
        scale: Factor of the update.
        **common: As for `SNSM`; `rank` has no effect.

    Raises:
        ValueError: As `SNSM` does.

    Sources:
        As `SNSM`, algorithm 1.

    Example:
        >>> opt = AdamSN(param_groups(model, rank=None), lr=1e-2)  # doctest: +SKIP
    """

    method = "adamsn"
    needs_rank: ClassVar = False
    group_key: ClassVar = "subset_size"

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        subset_size: int | str = "heuristics",
        ragged: bool = False,
        normalize: str = "sum",
        bias_correction: bool = True,
        scale: float = 1.0,
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(
            params, lr, momentum="ema", subset_size=subset_size, ragged=ragged,
            normalize=normalize, bias_correction=bias_correction, scale=scale, **common,
        )  # fmt: skip

    @classmethod
    @override
    def groups_of(
        cls, model: nn.Module, rank: int, *, plain: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """The linear maps without a rank, and everything else."""
        return param_groups(model, None, plain=plain)

    @classmethod
    @override
    def state_numbers(cls, rows: int, cols: int, options: Mapping[str, Any]) -> int:
        """Numbers of state kept for one matrix."""
        return super().state_numbers(rows, cols, {**options, "momentum": "ema"})


class AdamSNSM(SNSM):
    """`SNSM` with its defaults, under the paper's name for them: Adam with both savings."""

    method = "adamsnsm"
