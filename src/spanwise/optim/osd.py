"""Online Subspace Descent: a basis that learns from every gradient instead of being redrawn."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor
from typing_extensions import override

from spanwise.layouts import stored_matrix
from spanwise.optim._engine.groups import Member, resolve_side
from spanwise.optim._engine.options import CommonOptions, check_count, check_number
from spanwise.optim._engine.subspace import SubspaceOptimizer, Work
from spanwise.optim._osd.lessons import batches_of, find_lessons, hold_basis
from spanwise.optim._osd.online_pca import MEMORY, memory_shapes, retract, step_bases_
from spanwise.optim._osd.other_rules import adafactor_, lion_

PROJ_LR = 1 / 200
BASES_RULES = tuple(MEMORY)
WEIGHT_RULES = ("adamw", "lion", "adafactor")
_LION_BETAS = (0.9, 0.99)
# What may become of the memory of R when a basis is redrawn: means of squares cannot be rotated.
_MOMENTS_KEPT = {"lion": ("keep", "rotate", "reset"), "adafactor": ("keep",)}


class OnlineSubspaceDescent(SubspaceOptimizer):
    """AdamW in a subspace that follows the gradient by one online-PCA step per training step.

    For a weight W (m x n) with gradient G, R = P^T G and Adam's direction N of R, W moves by
    a P N as in GaLore. Then P itself takes a step of an optimizer of its own on

        L(P) = ||P P^T G / ||G|| - G / ||G|| ||_F^2 + penalty ||P^T P - I||_F^2,

    so that after the first step there is no decomposition, and no step that takes longer than
    the others. P starts as the top singular subspace of the first gradient and is not kept
    orthonormal unless `retract` asks for it.

    Args:
        params: Groups from `spanwise.optim.param_groups(model, rank=128)`, or your own; a group
            without `rank` is plain AdamW. The released code's keys `update_proj_gap` (1 / proj_lr)
            and `proj_type` (`continuous`, `continuous_sgd`, ...) are accepted.
        lr: Learning rate at its highest. The projected groups move by `scale * lr`.
        scale: a, the factor of the lifted update.
        proj_lr: Rate of the basis when the group's rate is `lr`, 1/200 unless `alpha` is given.
            It follows a schedule: at rate lr_t it is proj_lr * lr_t / lr. 0 keeps the first
            basis for good.
        alpha: The paper's form instead, at least 0: the basis learns at alpha times the group's
            rate.
        proj_every: k; each basis learns on every k-th step, at k times its rate.
        proj_optimizer: `adamw`, `sgd` (no state), `lion` or `adafactor`.
        proj_weight_decay: Decoupled decay of the basis. None: 0.01 for `adamw`, as released, and
            0 for the others.
        ortho_penalty: Weight of ||P^T P - I||_F^2 in the loss, at least 0.
        retract: `qr` or `polar` to make the basis orthonormal again; None never does.
        retract_every: Steps of the basis between two retractions; needed with `retract`.
        base: Rule for R: `adamw`, `lion` (betas 0.9, 0.99) or `adafactor`. Groups without `rank`
            are AdamW in any case.
        side: Which side carries the basis: `short` (default; a square matrix counts as right),
            `long`, `left`, `right`, or `local`.
        svd: How the first basis is found: `randomized` (two power passes, seeded), `exact`
            (released code) or `gram`.
        stagger: With `proj_every` above 1, let the bases take turns, so that steps take equally
            long.
        refresh_every: Redraw the basis by `svd` after as many steps as well; None, as the paper
            has it, never does.
        reference_lr: The rate at which the basis learns at `proj_lr`; the group's `initial_lr`
            if a scheduler has left one, else its `lr` when it is added. Kept in the group, so
            that a resumed run goes on with it.
        compat: `"galore_torch"` follows the trajectory of the released code, a fork of that
            package: its epsilon outside the bias correction, decay after the update, exact SVD
            with LAPACK's signs, states in the weight's dtype, Lion's sign after lifting.
        **common: What all optimizers share: `betas`, `eps`, `weight_decay`, `rank`, `clamp_rank`,
            `on_nonfinite`, `seed`, `avoid`, `within`, `bias` (see `CommonOptions`).

    Raises:
        ValueError: If no group has a rank, a rank exceeds its matrix, an option is unknown or out
            of range, `proj_lr` and `alpha` are both given, or `proj_lr` has no rate above 0 to
            refer to.

    Sources:
        Liang et al., "Memory-efficient LLM training with online subspace descent", 2024,
        section 4 and its released code; where they differ see
        docs/methods/online-subspace-descent.md.

    Example:
        >>> groups = param_groups(model, rank=128)  # doctest: +SKIP
        >>> opt = OnlineSubspaceDescent(groups, lr=1e-2)  # doctest: +SKIP
    """

    method = "online-subspace-descent"
    choices: ClassVar = {
        "side": ("short", "long", "left", "right", "local"),
        "basis": ("svd",),
        "svd": ("randomized", "exact", "gram"),
        "residual": ("drop",),
        "proj_optimizer": BASES_RULES,
        "base": WEIGHT_RULES,
        "retract": (None, "qr", "polar"),
    }
    fixed = (*SubspaceOptimizer.fixed, "proj_optimizer", "base")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        scale: float = 0.25,
        proj_lr: float | None = None,
        alpha: float | None = None,
        proj_every: int = 1,
        proj_optimizer: str = "adamw",
        proj_weight_decay: float | None = None,
        ortho_penalty: float = 0.0,
        retract: str | None = None,
        retract_every: int | None = None,
        base: str = "adamw",
        side: str = "short",
        svd: str = "randomized",
        stagger: bool = True,
        refresh_every: int | None = None,
        reference_lr: float | None = None,
        compat: str | None = None,
        **common: Unpack[CommonOptions],
    ) -> None:
        own = {
            "lr": lr, "scale": scale, "proj_lr": proj_lr, "alpha": alpha,
            "proj_every": proj_every, "proj_optimizer": proj_optimizer,
            "proj_weight_decay": proj_weight_decay, "ortho_penalty": ortho_penalty,
            "retract": retract, "retract_every": retract_every, "base": base, "side": side,
            "svd": "exact" if compat else svd, "stagger": stagger, "reference_lr": reference_lr,
            "refresh_every": refresh_every,
        }  # fmt: skip
        super().__init__(params, own, compat=compat, **common)

    # -- options --------------------------------------------------------------------------

    @override
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; a group with a `rank` is projected, any other is plain AdamW."""
        super().add_param_group(_from_released_keys(param_group))

    @override
    def check_options(self, group: dict[str, Any]) -> None:
        """Refuse what is out of range, and note the rate that `proj_lr` refers to."""
        for key in ("proj_lr", "alpha", "proj_weight_decay"):
            if group[key] is not None:
                check_number(key, group[key], 0)
        check_number("ortho_penalty", group["ortho_penalty"], 0)
        check_count("proj_every", group["proj_every"])
        if (group["retract"] is None) != (group["retract_every"] is None):
            raise ValueError(
                f"retract = {group['retract']!r} and retract_every = {group['retract_every']!r} "
                "go together: give both, such as retract='qr', retract_every=100, or neither."
            )
        if group["retract_every"] is not None:
            check_count("retract_every", group["retract_every"])
        kept = _MOMENTS_KEPT.get(group["base"])
        if kept is not None and group["moments"] not in kept:
            raise ValueError(
                f"moments = {group['moments']!r} needs the two moments of Adam, and base = "
                f"{group['base']!r} has others; use one of {', '.join(kept)}, or base='adamw'."
            )
        if group["alpha"] is not None and group["proj_lr"] is not None:
            raise ValueError(
                f"alpha = {group['alpha']} and proj_lr = {group['proj_lr']} both set the rate of "
                "the basis; keep one."
            )
        if group["reference_lr"] is None:
            group["reference_lr"] = float(group.get("initial_lr", group["lr"]))
        check_number("reference_lr", group["reference_lr"], 0)
        if group["alpha"] is None and group["reference_lr"] == 0:
            raise ValueError(
                "lr = 0 leaves proj_lr no rate to refer to. Build the optimizer with its highest "
                "rate (a scheduler may then start at 0), or give reference_lr or alpha."
            )

    # -- state ----------------------------------------------------------------------------

    @override
    def sharding_gap(self, group: Mapping[str, Any], rows: int, cols: int) -> str | None:
        """Why this group cannot treat a rows x cols weight whose rows are spread; None if it can.

        What needs all rows of a spread basis or of spread coordinates at once is missing.
        """
        left = resolve_side(group["side"], rows, cols) == "left"
        if left and group["retract"] is not None:
            return f'retract = {group["retract"]!r} needs a basis in one place: side="local"'
        if left and group["proj_optimizer"] == "adafactor":
            return 'proj_optimizer = "adafactor" needs a basis in one place: side="local"'
        if not left and group["base"] == "adafactor":
            return 'base = "adafactor" needs coordinates in one place: side="left"'
        return super().sharding_gap(group, rows, cols)

    @override
    def spread_state(self, group: Mapping[str, Any], member: Member) -> tuple[str, ...]:
        """The keys of a sharded parameter's state that are spread as its rows are."""
        keys = super().spread_state(group, member)
        if "exp_avg" in keys:  # plain, or with a basis on the right
            return keys
        return (*keys, *MEMORY[group["proj_optimizer"]])

    @override
    def _allocate(self, group: dict[str, Any], member: Member) -> dict[str, Tensor]:
        p, dtype = member.parameter, self._state_dtype(member.parameter)
        rank = self.rank_of(member, group)
        left = resolve_side(group["side"], *member.matrix_shape) == "left"
        size = member.held_shape[0 if left else 1]
        shapes = _weight_memory(group["base"], self._coordinates_shape(group, member))
        shapes |= memory_shapes(group["proj_optimizer"], (*member.stack_shape, size, rank))
        found = {k: torch.zeros(s, dtype=dtype, device=p.device) for k, s in shapes.items()}
        # One count for each stacked expert: a zero gradient is no step of its basis.
        found["proj_step"] = torch.zeros(member.stack_shape, dtype=torch.int64)
        return found

    @classmethod
    @override
    def state_numbers(cls, rows: int, cols: int, options: Mapping[str, Any]) -> int:
        """Numbers of state kept for one projected matrix, counters excluded."""
        rank, size = options["rank"], _basis_size(options, rows, cols)
        shapes = _weight_memory(options["base"], (rank, rows + cols - size))
        shapes |= memory_shapes(options["proj_optimizer"], (size, rank))
        return rank * size + sum(math.prod(shape) for shape in shapes.values())

    @override
    def _refresh(
        self, group: dict[str, Any], member: Member, state: dict[str, Any], g: Tensor
    ) -> None:
        super()._refresh(group, member, state, g)
        for key in (*MEMORY[group["proj_optimizer"]], "proj_step"):
            state[key].zero_()  # they belong to the basis before

    @override
    def _transfer(self, group: dict[str, Any], state: dict[str, Any], old: Any, new: Any) -> None:
        # Row and column means of squares have no coordinates to rotate: they stay.
        if group["base"] != "adafactor":
            super()._transfer(group, state, old, new)

    @override
    def looks_beyond(self, group: dict[str, Any]) -> bool:
        """The basis learns from the whole gradient, so it is held to the constraint as a whole."""
        return True

    # -- the weight -----------------------------------------------------------------------

    @override
    def _update(self, group: dict[str, Any], batch: list[Work]) -> None:
        if self.compat and group["base"] == "lion":
            for work in batch:
                self._write_signs(group, work)
        else:
            super()._update(group, batch)

    def _write_signs(self, group: dict[str, Any], work: Work) -> None:
        # Released code: the sign of the lifted momentum, which is not in the subspace and knows
        # no scale. Energy falls for every path of P only if W moves by the lift of the sign.
        p, lr, decay = work.member.held, float(group["lr"]), group["weight_decay"]
        momentum, r = work.state["exp_avg"], work.r.to(work.state["exp_avg"].dtype)
        update = work.projector.lift(momentum.lerp(r, 1 - _LION_BETAS[0])).sign_().mul_(-lr)
        momentum.lerp_(r, 1 - _LION_BETAS[1])
        if decay:
            update.add_(stored_matrix(p, work.member.layout).add(update), alpha=-lr * decay)
        if work.constraint is not None:
            update = work.constraint.matrix(update)
        p.add_(update.reshape(p.shape).to(p.dtype))

    @override
    def _directions(self, group: dict[str, Any], batch: list[Work]) -> list[Tensor]:
        if group["base"] == "adamw":
            return super()._directions(group, batch)
        first, *_ = held = list(_weight_memory(group["base"], (1, 1)))
        states = [work.state for work in batch]
        grads = [work.r.to(s[first].dtype) for work, s in zip(batch, states, strict=True)]
        memory = [[s[key] for s in states] for key in held]
        directions = [torch.zeros_like(r) for r in grads]
        if group["base"] == "lion":
            lion_(directions, grads, *memory, lr=1.0, betas=_LION_BETAS)
        else:
            adafactor_(directions, grads, *memory, step=batch[0].age, lr=1.0)
        return directions

    # -- the basis ------------------------------------------------------------------------

    def basis_rate(self, group: dict[str, Any]) -> float:
        """The rate at which the bases of `group` learn now, on a step on which they do."""
        lr = float(group["lr"])
        if group["alpha"] is not None:
            return group["alpha"] * lr * group["proj_every"]
        rate = PROJ_LR if group["proj_lr"] is None else group["proj_lr"]
        return rate * lr / group["reference_lr"] * group["proj_every"]

    def _learns(self, group: dict[str, Any], work: Work) -> bool:
        # The step that found the basis has nothing to teach it.
        t, every = int(work.state["step"]) - 1 - int(work.state["refreshed"]), group["proj_every"]
        offset = work.member.index if group["stagger"] else 0
        return int(work.state["refreshed"]) >= 0 and t >= 1 and (t + offset) % every == 0

    @override
    def _learn(self, group: dict[str, Any], works: list[Work]) -> None:
        if 0 in (group["alpha"], group["proj_lr"]):
            return
        rule, decay = group["proj_optimizer"], group["proj_weight_decay"]
        if decay is None:
            decay = 0.01 if rule == "adamw" else 0.0
        works = [work for work in works if self._learns(group, work)]
        lessons = find_lessons(works, rule, group["ortho_penalty"])
        for batch in batches_of(lessons):
            step = batch[0].step
            step_bases_(
                rule,
                [lesson.basis for lesson in batch],
                [lesson.slope for lesson in batch],
                [lesson.memory for lesson in batch],
                step=step,
                lr=self.basis_rate(group),
                weight_decay=decay,
            )
            if group["retract"] and step % group["retract_every"] == 0:
                for lesson in batch:
                    lesson.basis.copy_(retract(lesson.basis, group["retract"]))
        for work, own in zip(works, lessons, strict=True):
            if own:
                hold_basis(work)


def _basis_size(options: Mapping[str, Any], rows: int, cols: int) -> int:
    return rows if resolve_side(options["side"], rows, cols) == "left" else cols


def _weight_memory(base: str, shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """What the rule for R remembers, by name and shape."""
    whole = tuple(shape)
    if base == "adafactor":
        return {"row_means": whole[:-1], "col_means": (*whole[:-2], whole[-1])}
    return dict.fromkeys(("exp_avg",) if base == "lion" else ("exp_avg", "exp_avg_sq"), whole)


def _from_released_keys(param_group: Mapping[str, Any]) -> dict[str, Any]:
    """A group with the released code's keys in ours."""
    group = dict(param_group)
    group.pop("names", None)  # labels of its tracker
    if (gap := group.pop("update_proj_gap", None)) is not None:
        if "proj_lr" in group:
            raise ValueError(
                "a parameter group has both 'proj_lr' and 'update_proj_gap' (1 / proj_lr); "
                "keep one."
            )
        check_number("update_proj_gap", gap, 0, above=True)
        group["proj_lr"] = 1 / gap
    if (kind := group.pop("proj_type", None)) is not None:
        if "proj_optimizer" in group:
            raise ValueError(
                "a parameter group has both 'proj_optimizer' and 'proj_type'; keep one."
            )
        group["proj_optimizer"] = _released_rule(str(kind))
    return group


def _released_rule(kind: str) -> str:
    if "continuous" not in kind:
        raise ValueError(
            f"proj_type must be continuous, continuous_sgd, continuous_lion or "
            f"continuous_adafactor, got {kind!r}. For a basis that is redrawn use "
            "spanwise.optim.GaLore."
        )
    if "8bit" in kind:
        raise ValueError(
            f"proj_type = {kind!r}: 8-bit states are not supported; use continuous (AdamW), or "
            "continuous_sgd, which keeps no state for the basis."
        )
    return next((rule for rule in BASES_RULES if rule in kind), "adamw")
