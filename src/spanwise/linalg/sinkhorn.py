"""Scaling a positive matrix until its rows and columns sum to one."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from spanwise.linalg._arrays import at_least_float32, matrix

SAFE = 1e12
"""Scalings beyond this, either way, are taken into the potentials: no sum then underflows."""


class Scaling(NamedTuple):
    """What `sinkhorn` found."""

    plan: Float[Tensor, "n n"]
    """`exp(logits + u + v)`, whose rows and columns sum to 1."""
    u: Float[Tensor, " n"]
    """Potentials of rows."""
    v: Float[Tensor, " n"]
    """Potentials of columns; equal to `u` for symmetric logits."""
    iterations: int
    """Products with the matrix, one for each half-step."""
    error: float
    """How far the worst row or column is from summing to 1."""


@torch.no_grad()
def sinkhorn(
    logits: Float[Tensor, "n n"],
    *,
    iterations: int = 1000,
    tol: float = 1e-6,
    symmetric: bool = False,
) -> Scaling:
    """The doubly stochastic matrix `exp(logits + u 1' + 1 v')`.

    Potentials are kept as logarithms, so that logits of any size serve; between two absorptions a
    half-step is one product of a vector with the matrix, where the textbook's takes a logarithm of
    sums of exponentials.

    A general matrix alternates rows and columns: clusters that barely touch each other slow that
    down without bound. For symmetric logits `u = v`, and the damped step `u - log(row sum) / 2`
    halves the error at least where the result is positive semi-definite, whatever its clusters.

    Args:
        logits: Finite; half precision is scaled in float32.
        iterations: Half-steps at most, rows first.
        tol: Done once every row and column sums to 1 within this; at least 8 roundings.
        symmetric: Whether `logits` equals its transpose; not checked.

    Raises:
        ValueError: If `logits` is empty, not square or not finite, or `iterations` is below 1.

    Sources:
        Sinkhorn, "A relationship between arbitrary positive matrices and doubly stochastic
        matrices", 1964; Schmitzer, "Stabilized sparse scaling algorithms for entropy regularized
        transport problems", 2019, section 3; Knight, Ruiz and Uçar, "A symmetry preserving
        algorithm for matrix scaling", 2014.
    """
    logits = matrix("logits", logits)
    if logits.ndim != 2 or logits.shape[0] != logits.shape[1]:
        raise ValueError(f"logits must be square, (n, n), got {tuple(logits.shape)}.")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}.")
    if not len(logits):
        raise ValueError("logits must have rows, got shape (0, 0).")
    if not bool(torch.isfinite(logits).all()):
        raise ValueError(
            "logits hold NaN or infinity. A pair that must not meet is a large negative number."
        )
    tol = max(tol, 8 * torch.finfo(at_least_float32(logits.dtype)).eps)
    # Either begins with a step by logarithms: nothing is known yet of how large sums are.
    state = _Symmetric(logits) if symmetric else _Alternating(logits)
    count = 1
    while count < iterations:
        count += 1
        if state.step() <= tol:
            break
    plan = state.plan()
    sums = torch.cat([plan.sum(0), plan.sum(1)])
    return Scaling(plan, state.u, state.v, count, float((sums - 1).abs().max()))


class _Alternating:
    """Rows to 1, then columns, and so on."""

    def __init__(self, logits: Float[Tensor, "n n"]) -> None:
        self.logits, self.rows = logits, True
        self.u = logits.new_zeros(len(logits))
        self.v = torch.zeros_like(self.u)
        self._absorb()

    def step(self) -> float:
        """One half-step; how far the sums that it sets right had been from 1."""
        sums = self.kernel @ self.b if self.rows else self.a @ self.kernel
        own = self.a if self.rows else self.b
        low, high = float(sums.min()), float(sums.max())
        error = float((own * sums - 1).abs().max())
        if low > 1 / SAFE and high < SAFE:
            new = sums.reciprocal_()
            self.a, self.b = (new, self.b) if self.rows else (self.a, new)
            self.rows = not self.rows
        else:
            self.u, self.v = self.u + self.a.log(), self.v + self.b.log()
            self._absorb()
        return error

    def _absorb(self) -> None:
        """The half-step by logarithms, from potentials that hold everything."""
        if self.rows:
            self.u = -torch.logsumexp(self.logits + self.v, 1)
        else:
            self.v = -torch.logsumexp(self.logits + self.u[:, None], 0)
        self.rows = not self.rows
        self.kernel = (self.logits + self.u[:, None]).add_(self.v).exp_()
        self.a, self.b = torch.ones_like(self.u), torch.ones_like(self.u)

    def plan(self) -> Float[Tensor, "n n"]:
        """The matrix as it is; ends the iteration."""
        self.u, self.v = self.u + self.a.log(), self.v + self.b.log()
        return self.kernel.mul_(self.a[:, None]).mul_(self.b)


class _Symmetric:
    """Rows and columns half way to 1 together."""

    def __init__(self, logits: Float[Tensor, "n n"]) -> None:
        self.logits = logits
        self.u = -torch.logsumexp(logits, 1) / 2
        self._absorb()

    @property
    def v(self) -> Float[Tensor, " n"]:
        """The same as `u`."""
        return self.u

    def step(self) -> float:
        """One damped step; how far sums had been from 1."""
        sums = (self.kernel @ self.a).mul_(self.a)
        low, high = float(sums.min()), float(sums.max())
        error = max(high - 1, 1 - low)
        if low > 1 / SAFE and high < SAFE:
            self.a = self.a * sums.rsqrt_()
        else:
            self.u = self.u + self.a.log()
            held = torch.logsumexp(self.logits + self.u, 1) + self.u
            self.u = self.u - held / 2
            self._absorb()
        return error

    def _absorb(self) -> None:
        self.kernel = (self.logits + self.u[:, None]).add_(self.u).exp_()
        self.a = torch.ones_like(self.u)

    def plan(self) -> Float[Tensor, "n n"]:
        """The matrix as it is; ends the iteration."""
        self.u = self.u + self.a.log()
        return self.kernel.mul_(self.a[:, None]).mul_(self.a)
