"""From starts to maxima: gradient steps, and Gauss-Newton in float32 and float64."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from spanwise.estimators._spm.objective import (
    Objective,
    factored,
    normalized,
    power_step,
    tangent_step,
)

NEAR = 0.2
"""1 - f, as a share of its mean over the sphere, from which Gauss-Newton takes over: it then needs
a handful of steps, power steps dozens."""

ROUNDING = 1e-14
"""Length of a step, or of a gradient, that no longer matters in float64."""


_SLACK = 1e-6
"""By which f in float32 may fall."""


@dataclass
class Log:
    """What a search did."""

    rounds: int = 0
    """Batches of starts."""
    starts: int = 0
    """Points that were started."""
    power_steps: int = 0
    """Power steps, over all points."""
    newton_steps: int = 0
    """Gauss-Newton and Newton steps, over all points."""
    exact: bool = True
    """Whether all components were exact but for rounding."""
    failed: list[float] = field(default_factory=list)
    """f of the components that no start reached well enough."""


def climb(
    objective: Objective, X: Float[Tensor, "d b"], max_iter: int, log: Log
) -> Float[Tensor, "d b"]:
    """Points from which Gauss-Newton goes on, by gradient steps from the columns of X.

    A power step without shift moves by the tangent gradient; this one goes further, by the
    inverse of the mean of 1 - f, which is the mean curvature at a component. Half as many steps
    arrive. Where f falls, the shifted power step, which never lowers it, comes next instead.
    """
    n = objective.space.order
    reach = max(1.5, 1 / objective.mean_defect)
    near: list[Tensor] = []
    f, defect, g = objective.value(X)
    fell, some = torch.zeros_like(f, dtype=torch.bool), False
    for step in range(max_iter):
        moved = normalized(torch.lerp(f * X, g, reach))
        if some:
            moved[:, fell] = power_step(X[:, fell], f[fell], g[:, fell], n)
        log.power_steps += X.shape[1]
        new_f, new_defect, new_g = objective.value(moved)
        fell = (new_f < f - _SLACK) & ~fell
        some = bool(fell.any())
        if some:
            new_f, new_defect = torch.where(fell, f, new_f), torch.where(fell, defect, new_defect)
            moved, new_g = torch.where(fell, X, moved), torch.where(fell, g, new_g)
        X, f, defect, g = moved, new_f, new_defect, new_g
        # Points are sorted out now and then only: a smaller product is no faster for a few less.
        if step % 2:
            arrived = defect < NEAR * objective.mean_defect
            if bool(arrived.all()):
                break
            if int(arrived.sum()) > X.shape[1] // 4:
                near.append(X[:, arrived])
                left = ~arrived
                X, f, defect, g = X[:, left], f[left], defect[left], g[:, left]
                fell = fell[left]
    return torch.cat([*near, X], dim=1)


def ascend(
    objective: Objective,
    X: Float[Tensor, "d b"],
    log: Log,
    *,
    until: float,
    steps: int = 30,
    wait: int = 10,
) -> tuple[Float[Tensor, "d b"], Float[Tensor, " b"], Tensor]:
    """Gauss-Newton from points with f near 1, which is quadratic where f reaches 1.

    A step is cut to 1/2; where it would lower f, a power step, which never does, takes its place.

    Args:
        objective: Its dtype is the one to work in.
        X: Unit columns.
        log: Is written to.
        until: Length of a point's last step.
        steps: At most.
        wait: Steps after which the last eighth of the points is given up.

    Returns:
        Points, in another order, 1 - f, and which took their last step.
    """
    n, total = objective.space.order, X.shape[1]
    rounding = 50 * torch.finfo(X.dtype).eps
    done_X: list[Tensor] = []
    done_defect: list[Tensor] = []
    f, defect, g = objective.value(X)
    for turn in range(steps):
        step = tangent_step(factored(objective.normal_matrix(X))[0], X, g - f * X)
        length = torch.linalg.vector_norm(step, dim=0)
        log.newton_steps += X.shape[1]
        before = X
        X = normalized(X + step * (0.5 / length).clamp(max=1))
        new_f, new_defect, new_g = objective.value(X)
        worse = new_defect > defect + rounding
        if bool(worse.any()):
            X[:, worse] = power_step(before[:, worse], f[worse], g[:, worse], n)
            again = objective.value(X[:, worse])
            new_f[worse], new_defect[worse], new_g[:, worse] = again
        f, defect, g = new_f, new_defect, new_g
        still = (length > until) | worse
        if not bool(still.all()):
            done_X.append(X[:, ~still])
            done_defect.append(defect[~still])
            X, f, defect, g = X[:, still], f[still], defect[still], g[:, still]
        if not X.shape[1] or (turn >= wait and 8 * X.shape[1] < total):
            break
    settled = torch.arange(total, device=X.device) < total - X.shape[1]
    return torch.cat([*done_X, X], dim=1), torch.cat([*done_defect, defect]), settled


def finish(
    coarse: Objective, objective: Objective, X: Float[Tensor, "d b"], log: Log, steps: int = 8
) -> tuple[Float[Tensor, "d s"], Float[Tensor, " s"]]:
    """Float64 for points that are close: Gauss-Newton with one float32 factorisation for all.

    A factorisation at a point that is off by e makes every step divide what is missing by 1 / e,
    at the cost of one gradient. Points that halve it no more are dropped.

    Args:
        coarse: The objective in float32.
        objective: The same in float64.
        X: Unit columns.
        log: Is written to.
        steps: At most.

    Returns:
        Maxima, in another order, and 1 - f before the last step.
    """
    factor = factored(coarse.normal_matrix(X.float()))[0]
    done: list[Tensor] = []
    defects: list[Tensor] = []
    last = torch.full_like(X[0], 0.1)
    for _ in range(steps):
        f, defect, g = objective.value(X)
        step = tangent_step(factor, X.float(), (g - f * X).float()).double()
        length = torch.linalg.vector_norm(step, dim=0)
        log.newton_steps += X.shape[1]
        X = normalized(X + step)
        # What is missing after this step is to its length as that is to the length before.
        there = length * length < ROUNDING * last
        leaves = there | (length > last / 2)
        if bool(leaves.any()):
            done.append(X[:, there])
            defects.append(defect[there])
            X, length, factor = X[:, ~leaves], length[~leaves], factor[~leaves]
        last = length
        if not X.shape[1]:
            break
    empty = X[:, :0]
    return torch.cat([empty, *done], dim=1), torch.cat([empty[0], *defects])
