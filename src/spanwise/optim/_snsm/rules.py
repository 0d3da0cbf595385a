"""What one matrix of `SNSM` keeps, and how its numerator and denominator come about."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spanwise.optim._bases.rows import RowProjector
from spanwise.optim._engine.groups import Member
from spanwise.optim._engine.refresh import Projector, Side
from spanwise.optim._engine.transfer import change_of_basis
from spanwise.optim._guard.constraint import Constraint
from spanwise.optim._snsm.generic_rule import correction, has_momentum, has_second_moment
from spanwise.optim._snsm.subset_norm import Subsets, subsets_of


def has_subspace(group: Mapping[str, Any]) -> bool:
    """Whether the group's momentum lives in a subspace."""
    return bool(group["rank"]) and group.get("momentum", "sm") == "sm" and has_momentum(group)


def has_subsets(group: Mapping[str, Any]) -> bool:
    """Whether the group's second moments are subset norms."""
    chosen = group.get("subset_size") is not None and group.get("second_moment", "sn") == "sn"
    return chosen and has_second_moment(group)


def subsets_for(group: Mapping[str, Any], member: Member) -> Subsets:
    """The subsets of one parameter; single entries where the group has none."""
    size = group["subset_size"] if has_subsets(group) else 1
    return _cached(*member.matrix_shape, size, group["ragged"])


def subset_kind(group: Mapping[str, Any], rows: int, cols: int) -> str:
    """What the subsets of a rows x cols matrix are: rows, columns or chunks."""
    size = group["subset_size"] if has_subsets(group) else 1
    return _cached(rows, cols, size, group["ragged"]).kind


def held_subsets(group: Mapping[str, Any], member: Member) -> int:
    """How many second moments this process keeps of one matrix."""
    subsets = subsets_for(group, member)
    return member.held_shape[0] if subsets.kind == "rows" else subsets.count


@functools.cache
def _cached(rows: int, cols: int, size: int | str, ragged: bool) -> Subsets:
    return subsets_of(rows, cols, size, ragged=ragged)


def correction_of(group: Mapping[str, Any], step: float) -> float:
    """The bias correction c of step t."""
    if not group["bias_correction"]:
        return 1.0
    first = has_momentum(group) and not (group["debias_after_reset"] and has_subspace(group))
    return correction(step, group["betas"], momentum=first, second_moment=has_second_moment(group))


@dataclass
class Matrix:
    """One parameter within one step."""

    member: Member
    state: dict[str, Any]
    projector: Projector | None
    constraint: Constraint | None
    g: Tensor
    """Stored gradient in the state's dtype, `(*stack, rows, cols)`, held to the constraint."""
    subsets: Subsets


def update_denominators(
    group: Mapping[str, Any], matrices: Sequence[Matrix]
) -> list[Tensor] | list[None]:
    """Update the second moments; sqrt(v) + eps for each subset, or None without them.

    All at once: the vectors are short, and a call for each would cost more than its arithmetic.
    """
    if not has_second_moment(group) or not matrices:
        return [None] * len(matrices)
    mean, beta, eps = group["normalize"] == "mean", group["betas"][1], group["eps"]
    vs = [m.state["exp_avg_sq"] for m in matrices]
    squares = [
        (m.subsets.means_of_squares if mean else m.subsets.sums_of_squares)(m.g, v.dtype)
        for m, v in zip(matrices, vs, strict=True)
    ]
    for i, matrix in enumerate(matrices):
        shard = matrix.member.shard
        if shard is not None and matrix.subsets.kind == "columns":
            squares[i] = shard.sum(squares[i])
    if beta < 1:
        torch._foreach_lerp_(vs, squares, 1 - beta)
    else:
        torch._foreach_add_(vs, squares)
    denominators = list(torch._foreach_sqrt(vs))
    torch._foreach_add_(denominators, eps)
    if eps == 0:  # 0 / 0 where no gradient ever was
        for d in denominators:
            d.clamp_(min=torch.finfo(d.dtype).tiny)
    return denominators


def update_numerator(group: Mapping[str, Any], matrix: Matrix) -> tuple[Tensor, Tensor | None]:
    """Update the momentum; (base, pull) with numerator = base - lift(pull), pull = R - u."""
    state, g, projector = matrix.state, matrix.g, matrix.projector
    if "exp_avg" not in state:
        return g, None
    u, beta = state["exp_avg"], group["betas"][0]
    if projector is None:
        return u.lerp_(g, 1 - beta), None
    r = projector.project(g)
    u.lerp_(r, 1 - beta)
    if not group["debias_after_reset"]:
        return g, r.sub_(u)
    age = float(state["step"]) - float(state.get("moments_from", 0))
    return g, r.sub_(u, alpha=1 / (1 - beta**age))


def divided(
    pull: Tensor, denominator: Tensor, subsets: Subsets, projector: Projector
) -> Tensor | None:
    """Coordinates divided by the denominator, where that commutes with the lift; else None.

    It does where each subset is a line along which the projector mixes or selects: rows with a
    basis on the right, or rows of which some are selected; columns likewise.
    """
    left, right = "left" in projector.sides, "right" in projector.sides
    selects = isinstance(projector, RowProjector)
    if subsets.kind == "rows" and (selects if left else right):
        own = denominator.gather(-1, projector.rows) if left else denominator  # pyrefly: ignore[missing-attribute]
        return pull.div_(own.unsqueeze(-1))
    if subsets.kind == "columns" and (selects if right else left):
        own = denominator.gather(-1, projector.rows) if right else denominator  # pyrefly: ignore[missing-attribute]
        return pull.div_(own.unsqueeze(-2))
    return None


def change_of(
    old: dict[Side, Tensor | None], new: dict[Side, Tensor], side: Side, dtype: torch.dtype
) -> Tensor | None:
    """C = P_new^T P_old of one side, for bases or for selections; None where it has neither."""
    before, after = old.get(side), new.get(side)
    if before is None or after is None:
        return None
    if after.is_floating_point():
        return change_of_basis(before.to(after.dtype), after).to(dtype)
    return (after.unsqueeze(-1) == before.unsqueeze(-2)).to(dtype)
