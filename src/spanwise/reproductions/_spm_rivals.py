"""Rivals in symmetric decomposition: the paper's algorithm written plainly, and least squares."""

import contextlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def random_tensor(d: int, r: int, seed: int) -> tuple[Array, Array]:
    """Normal factors `(d, r)`, and the sum of the fourth powers of their columns."""
    A = np.random.default_rng(seed).standard_normal((d, r))
    square = (A[:, None] * A[None]).reshape(-1, r)
    return A, (square @ square.T).reshape([d] * 4)


def recovery_error(A: Array, found: Array | None) -> float:
    """||A - found|| / ||A|| after matching up to sign; 2 where the number of columns differs."""
    from scipy.optimize import linear_sum_assignment

    if found is None or found.shape != A.shape or not np.isfinite(found).all():
        return 2.0
    sizes = np.maximum(np.linalg.norm(found, axis=0), 1e-300)
    cosine = (A / np.linalg.norm(A, axis=0)).T @ (found / sizes)
    rows, columns = linear_sum_assignment(-np.abs(cosine))
    matched = found[:, columns] * np.sign(cosine[rows, columns])
    return float(np.linalg.norm(matched - A[:, rows]) / np.linalg.norm(A))


def plain_power_method(T: Array, seed: int) -> Array:
    """The paper's algorithm for order 4, line by line: one start, one component at a time.

    Power steps go on to the last digit, and every component is taken out by one reflection of
    the basis and of D^-1, which is a full matrix from then on.

    Args:
        T: Symmetric, of positive weights.
        seed: Of the starts.

    Returns:
        Components times the fourth roots of their weights.

    Sources:
        Kileel and Pereira, "Subspace power method for symmetric tensor decomposition", 2019,
        arXiv 1912.04007, algorithm 1; the shift of Kileel, Klock and Pereira, 2021.
    """
    d, rng = len(T), np.random.default_rng([seed, 1])
    i, j = np.triu_indices(d)
    scale = np.where(i == j, 1.0, np.sqrt(2.0))
    flat = T[i, j][:, i, j] * scale[:, None] * scale
    values, vectors = np.linalg.eigh(flat)
    order = np.argsort(-np.abs(values))
    values, vectors = values[order], vectors[:, order]
    r = int((np.abs(values) > 1e-4 * np.mean(values**2) / np.mean(np.abs(values))).sum())
    basis = np.zeros((r, d, d))
    basis[:, i, j] = basis[:, j, i] = (vectors[:, :r] / scale[:, None]).T
    inverse = np.diag(1 / values[:r])
    found = np.zeros((d, r))
    for k in range(r - 1, -1, -1):
        x = _ascend(basis, rng)
        alpha = (basis.reshape(-1, d) @ x).reshape(-1, d) @ x
        dual = inverse @ alpha
        found[:, k] = x * np.abs(1 / (alpha @ dual)) ** 0.25
        if k == 0:
            break
        h = dual / np.linalg.norm(dual) * (1 if dual[-1] >= 0 else -1)
        h[-1] += 1
        h /= np.sqrt(h[-1])  # I - h h^T takes the dual to the last axis
        flat = basis.reshape(k + 1, -1)
        flat -= np.outer(h, h @ flat)
        inverse -= np.outer(h, h @ inverse)
        inverse -= np.outer(inverse @ h, h)
        basis, inverse = basis[:k], inverse[:k, :k]
    return found


def _ascend(basis: Array, rng: np.random.Generator) -> Array:
    """A maximum of f, the best of three starts where none reaches 1 - 0.01."""
    k, d, _ = basis.shape
    flat, best = basis.reshape(-1, d), (-1.0, np.zeros(d))
    for _ in range(3):
        x, f = _unit(rng.standard_normal(d)), 0.0
        for _ in range(5000):
            opened = (flat @ x).reshape(k, d)
            g = (opened @ x) @ opened
            f = float(g @ x)
            if f < 1e-2 / np.sqrt(d):
                x = _unit(rng.standard_normal(d))
                continue
            gamma = np.sqrt(2 * f * max(1 - f, 0.0)) if f > 2 / 3 else 1 - f / 2
            new = _unit(g + gamma * np.sqrt(0.5) * x)
            moved = np.linalg.norm(new - x)
            x = new
            if moved < 1e-14:
                break
        best = max(best, (f, x), key=lambda pair: pair[0])
        if f > 1 - 1e-2:
            break
    return best[1]


def _unit(x: Array) -> Array:
    return x / np.linalg.norm(x)


class _Reached(Exception):
    """The residual is small enough."""


def least_squares(T: Array, r: int, seed: int, tol: float = 1e-6, steps: int = 2000) -> Array:
    """Minimise ||T - sum a_i^4|| by L-BFGS from a normal start, told the rank.

    Args:
        T: Symmetric, of positive weights.
        r: Number of components.
        seed: Of the start.
        tol: Relative residual at which to stop.
        steps: Iterations at most.
    """
    from scipy.optimize import minimize

    d = len(T)
    flat, total = T.reshape(d * d, d * d), float((T**2).sum())
    # Not the generator that drew the factors: that would start at the solution.
    last = np.random.default_rng([seed, 1]).standard_normal(d * r)

    def objective(x: Array) -> tuple[float, Array]:
        nonlocal last
        A = x.reshape(d, r)
        squares = (A[:, None] * A[None]).reshape(-1, r)
        image, gram = flat @ squares, A.T @ A
        value = (total - 2 * float((image * squares).sum()) + float((gram**4).sum())) / total
        last = x
        if value < tol**2:
            raise _Reached
        opened = np.einsum("ijr,jr->ir", image.reshape(d, d, r), A)
        return value, (8 * (A @ gram**3 - opened) / total).ravel()

    options: dict[str, Any] = {"maxiter": steps, "maxfun": 2 * steps, "ftol": 0, "gtol": 0}
    with contextlib.suppress(_Reached):
        last = minimize(
            objective, last.copy(), jac=True, method="L-BFGS-B", options={**options, "maxcor": 30}
        ).x
    return last.reshape(d, r)


def tensorly_als(T: Array, r: int, seed: int, sweeps: int) -> Array:
    """Alternating least squares of tensorly, which does not know of the symmetry.

    Raises:
        ModuleNotFoundError: If tensorly is not installed.
    """
    from tensorly.decomposition import parafac  # pyrefly: ignore[missing-import]

    weights, factors = parafac(T, r, init="random", random_state=seed, n_iter_max=sweeps, tol=1e-12)
    return factors[0] * np.abs(weights) ** 0.25


def has_tensorly() -> bool:
    """Whether its column can be filled."""
    from importlib.util import find_spec

    return find_spec("tensorly") is not None
