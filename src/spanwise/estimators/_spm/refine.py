"""Least squares from components that are close: what noise asks for after the subspace method."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from spanwise.estimators._spm.objective import normalized
from spanwise.linalg.krylov import conjugate_gradient
from spanwise.linalg.symmetric import SymmetricSpace

Times = Callable[[Float[Tensor, "c r"]], Float[Tensor, "C r"]]
"""The flattening times a matrix."""


def best_weights(
    times: Times, rows: SymmetricSpace, columns: SymmetricSpace, A: Float[Tensor, "d r"]
) -> Float[Tensor, " r"]:
    """The w that minimises ||T - sum w_i a_i^m|| for given columns."""
    m = rows.order + columns.order
    inside = (rows.power(A) * times(columns.power(A))).sum(0)
    return torch.linalg.lstsq((A.mT @ A) ** m, inside.unsqueeze(-1)).solution.squeeze(-1)


def refine(
    times: Times,
    rows: SymmetricSpace,
    columns: SymmetricSpace,
    A: Float[Tensor, "d r"],
    steps: int,
    tol: float = 1e-10,
) -> tuple[Float[Tensor, " r"], Float[Tensor, "d r"], int]:
    """A minimum of ||T - sum w_i a_i^m|| near unit columns, by Levenberg and Marquardt.

    In c_i = |w_i|^(1/m) a_i the Gauss-Newton matrix acts on V, d x r, by products of d x r and
    r x r matrices alone, G = C^T C:

        m V G^(m-1) + m (m - 1) C (G^(m-2) * (C^T V))^T, entries to powers, signs aside;

    it is solved with by conjugate gradient, and formed nowhere.

    Args:
        times: The flattening, applied.
        rows: Its left space.
        columns: Its right space.
        A: Where to start.
        steps: At most.
        tol: Relative length of the last step.

    Returns:
        Weights, unit columns, and the steps taken.
    """
    m = rows.order + columns.order
    w = best_weights(times, rows, columns, A)
    size = w.abs().clamp(min=1e-12 * float(w.abs().max())) ** (1 / m)
    sign = w.sign() if m % 2 == 0 else torch.ones_like(w)
    C = A * (size if m % 2 == 0 else size * w.sign())

    def objective(C: Tensor) -> tuple[float, Tensor]:
        """||T - sum||^2 less ||T||^2, and half the gradient over m, with signs."""
        through = rows.contract(times(columns.power(C)) / rows.scale.unsqueeze(-1), C)
        gram = C.mT @ C
        value = -2 * float(((through * C).sum(0) * sign).sum())
        value += float(((gram**m) * sign * sign.unsqueeze(-1)).sum())
        return value, (C @ (sign.unsqueeze(-1) * gram ** (m - 1)) - through) * sign

    value, g = objective(C)
    damping, taken = 1e-3, 0
    for _ in range(steps):
        gram = C.mT @ C
        signs = sign * sign.unsqueeze(-1)
        first, second = signs * gram ** (m - 1), (m - 1) * signs * gram ** (m - 2)
        diagonal = gram.diagonal() ** (m - 1)

        ridge = damping * diagonal

        def normal(
            V: Tensor, C: Tensor = C, one: Tensor = first, two: Tensor = second, r: Tensor = ridge
        ) -> Tensor:
            return V @ one + C @ (two * (C.mT @ V)).mT + V * r

        def inverse(V: Tensor, C: Tensor = C, diagonal: Tensor = diagonal) -> Tensor:
            # Of every component by itself: the identity and m - 1 times its own direction.
            unit = normalized(C)
            along = unit * (unit * V).sum(0)
            return (V - along * (1 - 1 / m)) / diagonal

        step = conjugate_gradient(
            normal, -g, axes=2, iterations=5 * rows.d + 50, rtol=1e-3, precond=inverse
        ).x
        new_value, new_g = objective(C + step)
        if new_value >= value or not bool(torch.isfinite(step).all()):
            damping *= 10
            if damping > 1e6:
                break
            continue
        taken += 1
        C, value, g, damping = C + step, new_value, new_g, max(damping / 10, 1e-9)
        if float(step.norm()) < tol * float(C.norm()):
            break
    length = C.norm(dim=0)
    return sign * length**m, C / length, taken
