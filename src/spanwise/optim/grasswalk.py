"""GrassWalk and GrassJump: Adam in a subspace that moves at random, with the residual recovered."""

import math
import warnings
from collections.abc import Iterable
from typing import Any, ClassVar, Unpack

from typing_extensions import override

from spanwise.layouts import stored_matrix
from spanwise.optim._bases.grassmann import WALK_ANGLE
from spanwise.optim._engine.groups import check_layouts, resolve_aliases, resolve_side
from spanwise.optim._engine.options import CommonOptions, check_number, check_switch
from spanwise.optim._engine.subspace import SubspaceOptimizer


class GrassmannOptimizer(SubspaceOptimizer):
    """What GrassWalk and GrassJump share: the names of options and their checks."""

    aliases: ClassVar = {
        "update_proj_gap": "refresh_every",
        "subspace_update_interval": "refresh_every",
        "proj_type": "side",
        "norm_growth_limit": "growth_limit",
    }

    @override
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; SubTrack++'s switches `adaptive_optimizer`, `recovery_scaling` are known."""
        group = dict(param_group)
        resolve_aliases(group, self.aliases)
        _switch(group, "adaptive_optimizer", "moments", on="project_aware", off="keep")
        _switch(group, "recovery_scaling", "residual", on="scaled", off="drop")
        off = group.pop("norm_growth_limiter_off", False)
        check_switch("norm_growth_limiter_off", off)
        if off and group.get("growth_limit") is not None:
            raise ValueError(
                f"a parameter group has growth_limit = {group['growth_limit']!r} and "
                "norm_growth_limiter_off = True, which means None; keep one."
            )
        if off:
            group["growth_limit"] = None
        super().add_param_group(group)

    @override
    def check_options(self, group: dict[str, Any]) -> None:
        """Raise if `walk_angle` is out of range; warn where a walk has nowhere to go.

        Raises:
            ValueError: If it is not in `[0, pi/2]`.
        """
        super().check_options(group)
        angle = group.get("walk_angle", WALK_ANGLE)
        check_number("walk_angle", angle, 0)
        if angle > math.pi / 2:
            raise ValueError(
                f"walk_angle must be at most pi/2 = 1.5708 radians, got {angle}: beyond a right "
                "angle a subspace comes back. For a new subspace each time there is GrassJump."
            )
        if group["basis"] not in ("walk", "track"):
            return
        names = group.get("param_names") or [f"#{i}" for i in range(len(group["params"]))]
        still = []
        for name, p, layout in zip(names, group["params"], check_layouts(group), strict=True):
            rows, cols = stored_matrix(p.detach(), layout).shape[-2:]
            side = resolve_side(group["side"], rows, cols)
            dims = {"left": rows, "right": cols, "full": min(rows, cols)}
            if group["rank"] >= dims[side]:
                still.append(name)
        if still:
            warnings.warn(
                f"{len(still)} parameters have no direction beyond rank = {group['rank']} for "
                f"their basis to move to, the first: {still[0]}. Lower rank, or leave them to a "
                "group without rank.",
                stacklevel=5,
            )


def _switch(group: dict[str, Any], theirs: str, ours: str, *, on: str, off: str) -> None:
    if theirs not in group:
        return
    if ours in group:
        raise ValueError(f"a parameter group has both {ours!r} and {theirs!r}; keep one.")
    value = group.pop(theirs)
    check_switch(theirs, value)
    group[ours] = on if value else off


class GrassWalk(GrassmannOptimizer):
    """Adam in a subspace that takes a small random step on the Grassmannian every T steps.

    For a gradient X (its shorter side s, basis S: s x r) a refresh draws a Gaussian tangent H
    with S^T H = 0 and follows its geodesic until the largest principal angle is `walk_angle`;
    moments are carried over as mean and variance (`project_aware`). Every step moves W by
    -lr a (S O + L): O is Adam's direction on S^T X, and L the rest of X with each column scaled
    as Adam scaled it inside (`residual`), its norm growing by at most 1 % a step. State is
    GaLore's and one number; no singular vectors are computed after the first basis.

    Args:
        params: Groups from `spanwise.optim.param_groups(model, rank=128)`, or your own; a group
            without `rank` is plain AdamW. SubTrack++'s keys `subspace_update_interval`,
            `adaptive_optimizer`, `recovery_scaling`, `norm_growth_limit` and GaLore's
            `update_proj_gap`, `proj_type` are accepted.
        lr: Learning rate. The projected groups move by `scale * lr`.
        walk_angle: Largest principal angle between two bases, in radians, in `[0, pi/2]`; 0
            keeps the first basis.
        refresh_every: T, steps between two bases; None keeps the first.
        scale: a, the factor of the lifted update.
        residual: `scaled` as above, `fira` (what that package computes: the residual is then not
            orthogonal to the basis and takes no factor a), or `drop`.
        residual_scale: Factor of L instead of a. None: a (`fira`: 1).
        growth_limit: zeta, how much the norm of L may grow from one step to the next, at least
            1; None for no limit.
        moments: At a refresh: `project_aware` (LDAdam's rule), `rotate` the first, `keep` or
            `reset`.
        basis: Kind of move: `walk`, or for comparison `jump`, `track` (one rank-1 turn towards
            the gradient by at most `walk_angle`, as SubTrack++) and `svd`.
        init: The first basis: `svd` (the leading subspace of the first gradient) or `jump`
            (drawn at random).
        side: Which side carries the basis: `short`, `long`, `left`, `right` or `local`.
        svd: How singular vectors are computed: `randomized`, `exact` or `gram`.
        stagger: Spread refreshes over the interval.
        **common: What all optimizers share: `betas`, `eps`, `weight_decay`, `rank`, `clamp_rank`,
            `on_nonfinite`, `seed`, `avoid`, `within`, `bias` (see `CommonOptions`).

    Raises:
        ValueError: If no group has a rank, a rank exceeds its matrix, an option is out of range,
            or an atlas matches nothing.

    Sources:
        Rajabi, Nonta, Vajpayee and Rambhatla, "Randomized gradient subspaces for efficient large
        language model training", 2025 (no code is public: the geodesic is SubTrack++'s, eq. 5,
        with a random tangent); Robert et al., "LDAdam", 2025, algorithm 1; Chen et al., "Fira",
        2024, eq. 8 to 11.

    Example:
        >>> opt = GrassWalk(param_groups(model, rank=128), lr=1e-2)  # doctest: +SKIP
    """

    method = "grasswalk"

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        walk_angle: float = WALK_ANGLE,
        refresh_every: int | None = 200,
        scale: float = 0.25,
        residual: str = "scaled",
        residual_scale: float | None = None,
        growth_limit: float | None = 1.01,
        moments: str = "project_aware",
        basis: str = "walk",
        init: str | None = "svd",
        side: str = "short",
        svd: str = "randomized",
        stagger: bool = False,
        **common: Unpack[CommonOptions],
    ) -> None:
        own = {
            "lr": lr, "walk_angle": walk_angle, "refresh_every": refresh_every, "scale": scale,
            "residual": residual, "residual_scale": residual_scale, "growth_limit": growth_limit,
            "moments": moments, "basis": basis, "init": init, "side": side, "svd": svd,
            "stagger": stagger,
        }  # fmt: skip
        super().__init__(params, own, **common)


class GrassJump(GrassmannOptimizer):
    """Adam in a subspace that is drawn anew, uniformly, every T steps.

    As `GrassWalk`, with each basis the orthonormal factor of a Gaussian matrix: the mean overlap
    with the one before is r / s, what moments it holds is carried over, and the gradient itself
    is never decomposed after the first basis.

    Args:
        params: Groups, as for `GrassWalk`.
        lr: Learning rate. The projected groups move by `scale * lr`.
        refresh_every: T, steps between two bases; None keeps the first.
        scale: a, the factor of the lifted update.
        residual: `scaled`, `fira` or `drop`, as for `GrassWalk`.
        residual_scale: Factor of the residual instead of a. None: a (`fira`: 1).
        growth_limit: How much the residual's norm may grow from one step to the next, at least
            1; None for no limit.
        moments: At a refresh: `project_aware`, `rotate` the first, `keep` or `reset`.
        init: The first basis: `svd` or `jump`.
        side: Which side carries the basis: `short`, `long`, `left`, `right` or `local`.
        svd: How the first basis is computed: `randomized`, `exact` or `gram`.
        stagger: Spread refreshes over the interval.
        **common: What all optimizers share (see `CommonOptions`).

    Raises:
        ValueError: As for `GrassWalk`.

    Sources:
        As for `GrassWalk`.

    Example:
        >>> opt = GrassJump(param_groups(model, rank=128), lr=1e-2)  # doctest: +SKIP
    """

    method = "grassjump"

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        refresh_every: int | None = 200,
        scale: float = 0.25,
        residual: str = "scaled",
        residual_scale: float | None = None,
        growth_limit: float | None = 1.01,
        moments: str = "project_aware",
        init: str | None = "svd",
        side: str = "short",
        svd: str = "randomized",
        stagger: bool = False,
        **common: Unpack[CommonOptions],
    ) -> None:
        own = {
            "lr": lr, "refresh_every": refresh_every, "scale": scale, "residual": residual,
            "residual_scale": residual_scale, "growth_limit": growth_limit, "moments": moments,
            "basis": "jump", "init": init, "side": side, "svd": svd, "stagger": stagger,
        }  # fmt: skip
        super().__init__(params, own, **common)
