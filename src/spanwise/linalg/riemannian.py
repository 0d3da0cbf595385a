"""Minimising over products of Stiefel manifolds and Euclidean spaces, many starts at once.

A point is a tuple of tensors, one for each factor. Their first axis is a batch of problems that
know nothing of each other: each has its own step lengths and stops on its own, while one call of
the cost serves all that are still running. Further leading axes of a Stiefel factor, as in
`(problems, 2, d, r)`, make a product of several frames within one problem.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from spanwise.linalg._arrays import largest_entry, matrix
from spanwise.linalg.stiefel import Retraction, check_retraction, retract, tangent_part

Factor = Literal["stiefel", "euclidean"]
Point = tuple[Tensor, ...]
"""One tensor for each factor, each with the problems along its first axis."""
Cost = Callable[[Point], tuple[Tensor, Point]]
"""Costs `(problems,)` at a point, and what the gradient there can reuse; it may be empty."""
Gradient = Callable[[Point, Point], Point]
"""The Euclidean gradient at a point, from what the cost gave there; it may overwrite that."""


@dataclass(frozen=True)
class Product:
    """A product of manifolds with the sum of their metrics, verb by verb.

    Raises:
        ValueError: If a factor or the retraction is unknown.
    """

    factors: Sequence[Factor]
    """What each tensor of a point is: `"stiefel"`, `(problems, *more, d, r)` with orthonormal
    columns, or `"euclidean"`, any shape."""
    retract_by: Retraction = "qr"
    """Retraction of the Stiefel factors."""

    def __post_init__(self) -> None:
        for factor in self.factors:
            if factor not in get_args(Factor):
                raise ValueError(
                    f'each of factors must be "stiefel" or "euclidean", got {factor!r}.'
                )
        check_retraction(self.retract_by)

    def projection(self, point: Point, vector: Point) -> Point:
        """The tangent part of a vector: a Euclidean gradient becomes the Riemannian one."""
        return tuple(
            tangent_part(x, u) if factor == "stiefel" else u
            for factor, x, u in zip(self.factors, point, vector, strict=True)
        )

    def retraction(self, point: Point, tangent: Point) -> Point:
        """Where a step arrives."""
        return tuple(
            retract(x, h, self.retract_by) if factor == "stiefel" else x + h
            for factor, x, h in zip(self.factors, point, tangent, strict=True)
        )

    def transport(self, there: Point, tangent: Point) -> Point:
        """Carry a tangent vector to another point, by projection."""
        return self.projection(there, tangent)

    def inner(self, a: Point, b: Point) -> Float[Tensor, "*problems"]:
        """Inner product of two tangent vectors, problem by problem."""
        found = [(x.flatten(1) * y.flatten(1)).sum(1) for x, y in zip(a, b, strict=True)]
        return torch.stack(found).sum(0) if len(found) > 1 else found[0]

    def check(self, point: Point) -> None:
        """Refuse what is no point.

        Raises:
            ValueError: If the number of tensors or of problems does not fit, one is not finite,
                or a frame is not orthonormal.
            TypeError: If one is not a dense, real, floating-point tensor.
        """
        if len(point) != len(self.factors):
            raise ValueError(
                f"a point of this product is {len(self.factors)} tensors, got {len(point)}."
            )
        for i, (factor, x) in enumerate(zip(self.factors, point, strict=True)):
            name = f"start[{i}]"
            x = matrix(name, x)
            largest_entry(name, x)
            if x.shape[0] != point[0].shape[0] or not x.shape[0]:
                raise ValueError(
                    f"{name} must have as many problems along its first axis as start[0], and at "
                    f"least one: {tuple(x.shape)} beside {tuple(point[0].shape)}."
                )
            if factor == "euclidean":
                continue
            if x.ndim < 3 or x.shape[-1] > x.shape[-2]:
                raise ValueError(
                    f"{name} must hold frames (problems, d, r) with r <= d, got {tuple(x.shape)}. "
                    "One problem alone is x.unsqueeze(0)."
                )
            off = x.mT @ x - torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
            if float(off.abs().max()) > 1e-3:
                raise ValueError(
                    f"{name} must have orthonormal columns, but X^T X is off the identity by "
                    f"{float(off.abs().max()):.1e}. Start from spanwise.linalg.orthonormalize(X)."
                )


class Minimum(NamedTuple):
    """Where `riemannian_cg` stopped."""

    point: Point
    """The last point of each problem."""
    cost: Float[Tensor, "*problems"]
    """The cost there."""
    iterations: Int[Tensor, "*problems"]
    """Accepted steps."""
    gradient_norm: Float[Tensor, "*problems"]
    """Norm of the Riemannian gradient there."""
    converged: Bool[Tensor, "*problems"]
    """Whether the gradient or the step became small, instead of the iterations running out."""
    stalled: Bool[Tensor, "*problems"]
    """Whether it was the step alone: no shorter one lowered the cost, as at a kink."""


@torch.no_grad()
def riemannian_cg(
    cost: Cost,
    gradient: Gradient,
    start: Point,
    manifold: Product,
    *,
    iterations: int = 100,
    gradient_tolerance: float = 1e-6,
    step_tolerance: float = 1e-10,
    retries: int = 0,
    callback: Callable[[int, Float[Tensor, "*problems"]], None] | None = None,
) -> Minimum:
    """Minimise by nonlinear conjugate gradient, Hestenes and Stiefel's rule, with line search.

    The path is that of pymanopt's `ConjugateGradient` with its defaults, step by step: adaptive
    backtracking that wants half of the decrease that the slope promises, halves at most ten times,
    and begins where the last search ended, or at twice that unless exactly one halving was needed.
    Its `max_iterations=n` makes n - 1 steps; ours makes n. No accepted step increases the cost.

    Args:
        cost: Costs of some of the problems, all by the same rule, and what `gradient` can reuse:
            tensors with the same problems along their first axis.
        gradient: Their Euclidean gradient.
        start: Where to start; its dtype is the one to work in, and it is not changed.
        manifold: What `start` is a point of.
        iterations: Steps at most, at least 0.
        gradient_tolerance: A problem is done once its Riemannian gradient is shorter.
        step_tolerance: A problem is done once its last step was shorter.
        retries: Where a search fails, begin anew from the negative gradient, with the step length
            at which the search gave up, this many times in a row before the problem is done. 0 is
            pymanopt's way, which stops early where the cost has kinks.
        callback: Called after each step with the number of steps and all problems' costs.

    Raises:
        ValueError: If `start` is no point of `manifold`, an option is out of range, or the cost is
            not finite at the start.

    Sources:
        Absil, Mahony and Sepulchre, "Optimization algorithms on matrix manifolds", 2008, section
        8.3. Townsend, Koep and Weichwald, "Pymanopt: a Python toolbox for optimization on
        manifolds using automatic differentiation", 2016. Boumal et al., "Manopt", 2014 (the line
        search).
    """
    manifold.check(start)
    _check_options(iterations, gradient_tolerance, step_tolerance, retries)
    run = _Run.begin(cost, gradient, start, manifold)
    final = Minimum(
        tuple(x.clone() for x in start),
        run.value.clone(),
        torch.zeros(len(run.value), dtype=torch.long, device=run.value.device),
        run.length.clone(),
        torch.zeros(len(run.value), dtype=torch.bool, device=run.value.device),
        torch.zeros(len(run.value), dtype=torch.bool, device=run.value.device),
    )
    for step in range(iterations + 1):
        flat = (run.length < gradient_tolerance) | (run.length == 0)
        still = (run.moved < step_tolerance) & (run.failures > retries)
        done = flat | still
        if step == iterations:
            done = torch.ones_like(done)
        if bool(done.any()):
            _settle(final, run, done, flat, still)
            if bool(done.all()):
                break
            run = run.rows((~done).nonzero().squeeze(1))
        run.step(cost, gradient, manifold, step_tolerance)
        if callback is not None:
            costs = final.cost.clone()
            costs[run.index] = run.value
            callback(step + 1, costs)
    return final


@dataclass
class _Run:
    """The problems that still run: all tensors have one row for each."""

    index: Tensor
    """Which problems they are."""
    point: Point
    value: Tensor
    grad: Point
    length: Tensor
    """Norm of `grad`."""
    direction: Point
    suggestion: Tensor
    """Multiple of the direction to try first; NaN before the first search."""
    moved: Tensor
    """Norm of the last step; infinite before the first."""
    accepted: Tensor
    failures: Tensor
    """Searches that failed, in a row."""

    @classmethod
    def begin(cls, cost: Cost, gradient: Gradient, start: Point, manifold: Product) -> "_Run":
        value, saved = cost(start)
        if not bool(torch.isfinite(value).all()):
            raise ValueError(
                f"the cost must be finite at the start, got {value.tolist()}. Scale the data, or "
                "start elsewhere."
            )
        grad = manifold.projection(start, gradient(start, saved))
        count = torch.zeros(len(value), dtype=torch.long, device=value.device)
        return cls(
            index=torch.arange(len(value), device=value.device),
            point=start,
            value=value,
            grad=grad,
            length=manifold.inner(grad, grad).sqrt(),
            direction=tuple(-g for g in grad),
            suggestion=torch.full_like(value, math.nan),
            moved=torch.full_like(value, math.inf),
            accepted=count,
            failures=count,
        )

    def rows(self, kept: Tensor) -> "_Run":
        return _Run(
            index=self.index[kept],
            point=_take(self.point, kept),
            value=self.value[kept],
            grad=_take(self.grad, kept),
            length=self.length[kept],
            direction=_take(self.direction, kept),
            suggestion=self.suggestion[kept],
            moved=self.moved[kept],
            accepted=self.accepted[kept],
            failures=self.failures[kept],
        )

    def step(
        self, cost: Cost, gradient: Gradient, manifold: Product, step_tolerance: float
    ) -> None:
        """Search along the direction, move, and find the next direction."""
        slope = manifold.inner(self.grad, self.direction)
        uphill = slope >= 0
        if bool(uphill.any()):  # forget the past: back to the steepest descent
            self.direction = _where(uphill, tuple(-g for g in self.grad), self.direction)
            slope = torch.where(uphill, -self.length.square(), slope)
        size = manifold.inner(self.direction, self.direction).sqrt()
        alpha = torch.where(self.suggestion.isnan(), 1 / size, self.suggestion)
        point, value, saved, alpha, tried = _search(cost, manifold, self, alpha, slope)

        failed = ~(value <= self.value)
        if bool(failed.any()):
            point = _where(failed, self.point, point)
            value = torch.where(failed, self.value, value)
        grad = manifold.projection(point, gradient(point, saved))
        if bool(failed.any()):
            grad = _where(failed, self.grad, grad)  # what was saved is another point's
        length = manifold.inner(grad, grad).sqrt()
        change = tuple(
            g - old for g, old in zip(grad, manifold.transport(point, self.grad), strict=True)
        )
        carried = manifold.transport(point, self.direction)
        below = manifold.inner(change, carried)
        beta = (manifold.inner(grad, change) / below).clamp(min=0)
        beta = torch.where((below == 0) | failed, 0, beta)
        self.direction = tuple(c * _column(beta, c) - g for c, g in zip(carried, grad, strict=True))
        self.moved = torch.where(failed, 0, alpha * size)
        stuck = self.moved < step_tolerance
        self.failures = torch.where(stuck, self.failures + 1, 0)
        self.accepted = self.accepted + (~failed).long()
        # On average one shortening a search: half a step too bold, half a step too shy.
        self.suggestion = torch.where((tried == 2) | failed, alpha, 2 * alpha)
        self.point, self.value, self.grad, self.length = point, value, grad, length


def _search(
    cost: Cost, manifold: Product, run: _Run, alpha: Tensor, slope: Tensor
) -> tuple[Point, Tensor, Point, Tensor, Tensor]:
    """Halve `alpha`, problem by problem, until half of the promised decrease is reached."""

    def ahead(point: Point, direction: Point, alpha: Tensor) -> Point:
        return manifold.retraction(point, tuple(h * _column(alpha, h) for h in direction))

    alpha = alpha.clone()
    point = ahead(run.point, run.direction, alpha)
    value, saved = cost(point)
    tried = torch.ones_like(run.accepted)
    for _ in range(10):
        # Negated, so that NaN counts as too far.
        rows = (~(value <= run.value + 0.5 * alpha * slope)).nonzero().squeeze(1)
        if not len(rows):
            break
        alpha[rows] *= 0.5
        tried[rows] += 1
        if len(rows) == len(value):
            point = ahead(run.point, run.direction, alpha)
            value, saved = cost(point)
            continue
        some = ahead(_take(run.point, rows), _take(run.direction, rows), alpha[rows])
        value[rows], reused = cost(some)
        for whole, part in zip((*point, *saved), (*some, *reused), strict=True):
            whole[rows] = part
    return point, value, saved, alpha, tried


def _settle(final: Minimum, run: _Run, done: Tensor, flat: Tensor, still: Tensor) -> None:
    """Write down what the problems that are done have come to."""
    where = run.index[done]
    for held, x in zip(final.point, run.point, strict=True):
        held[where] = x[done]
    final.cost[where] = run.value[done]
    final.iterations[where] = run.accepted[done]
    final.gradient_norm[where] = run.length[done]
    final.converged[where] = (flat | still)[done]
    final.stalled[where] = (still & ~flat)[done]


def _take(point: Point, rows: Tensor) -> Point:
    return tuple(x[rows] for x in point)


def _where(condition: Tensor, a: Point, b: Point) -> Point:
    return tuple(torch.where(_column(condition, x), x, y) for x, y in zip(a, b, strict=True))


def _column(numbers: Tensor, like: Tensor) -> Tensor:
    """One number for each problem, to multiply a tensor of theirs."""
    return numbers.view(-1, *[1] * (like.ndim - 1))


def _check_options(
    iterations: int, gradient_tolerance: float, step_tolerance: float, retries: int
) -> None:
    for name, count in (("iterations", iterations), ("retries", retries)):
        if count < 0:
            raise ValueError(f"{name} must not be negative, got {count}.")
    for name, value in (
        ("gradient_tolerance", gradient_tolerance),
        ("step_tolerance", step_tolerance),
    ):
        if not value >= 0:
            raise ValueError(f"{name} must not be negative, got {value}.")
