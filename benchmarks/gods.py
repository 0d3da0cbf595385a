"""`GODS` beside pymanopt on the same descent, and beside scikit-learn's OneClassSVM; one thread.

    python benchmarks/gods.py

pymanopt minimises the released objective with a gradient by hand in numpy, from the same start and
as many steps; it is left out where it is not installed. Seconds are the processor's.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from _timing import environment, interleave, set_threads, write_results
from sklearn.datasets import load_digits
from sklearn.svm import OneClassSVM

from spanwise.estimators import GODS
from spanwise.estimators._gods.objective import Objective, mirrored
from spanwise.estimators._gods.starts import PAIR, begin
from spanwise.linalg import riemannian_cg

ETA, LAM, STEPS = 0.1, 0.1, 100


def digits() -> np.ndarray:
    X, y = load_digits(return_X_y=True)
    kept = X[y == 0]
    return (kept - kept.mean(0)) / np.maximum(kept.std(0), 1e-3)


def mixture(n: int, d: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    return generator.normal(size=(n, d)) @ generator.normal(size=(d, d)) / np.sqrt(d)


def start(X: np.ndarray, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    return begin(torch.from_numpy(X), k, ETA, "random", 1, torch.Generator().manual_seed(0))


def ours(X: np.ndarray, k: int) -> tuple[float, int]:
    objective = Objective(torch.from_numpy(X), ETA, LAM)
    found = riemannian_cg(
        objective.cost, objective.gradient, start(X, k), PAIR, iterations=STEPS,
        gradient_tolerance=0.0,
    )  # fmt: skip
    return float(found.cost), int(found.iterations)


def theirs(X: np.ndarray, k: int) -> tuple[float, int]:
    import pymanopt

    d, n = X.shape[1], len(X)
    man = pymanopt.manifolds
    manifold = man.Product([man.Stiefel(d, k)] * 2 + [man.Euclidean(k)] * 2)

    def half(W: np.ndarray, b: np.ndarray, sign: float) -> tuple[np.ndarray, ...]:
        margins = X @ W + b
        signed = sign * margins
        least = signed.argmin(axis=1)
        hinge = np.maximum(0, ETA - signed[np.arange(n), least])
        return margins, least, hinge

    @pymanopt.function.numpy(manifold)
    def cost(W1: Any, W2: Any, b1: Any, b2: Any) -> Any:
        total = 0.0
        for W, b, sign in ((W1, b1, 1.0), (W2, b2, -1.0)):
            margins, _, hinge = half(W, b, sign)
            total += (hinge**2).sum() + LAM * (margins**2).sum()
        return total

    @pymanopt.function.numpy(manifold)
    def gradient(W1: Any, W2: Any, b1: Any, b2: Any) -> Any:
        frames, biases = [], []
        for W, b, sign in ((W1, b1, 1.0), (W2, b2, -1.0)):
            margins, least, hinge = half(W, b, sign)
            pull = 2 * LAM * margins
            pull[np.arange(n), least] -= 2 * sign * hinge
            frames.append(X.T @ pull)
            biases.append(pull.sum(axis=0))
        return [*frames, *biases]

    w, b = (t[0].numpy() for t in mirrored(*start(X, k)))
    found = pymanopt.optimizers.ConjugateGradient(
        max_iterations=STEPS + 1, min_gradient_norm=0.0, verbosity=0
    ).run(
        pymanopt.Problem(manifold, cost, euclidean_gradient=gradient),
        initial_point=[w[0], w[1], b[0], b[1]],
    )
    return float(found.cost), int(found.iterations)


def quiet(function: Callable[[], Any]) -> Callable[[], Any]:
    def call() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function()

    return call


def measure(name: str, X: np.ndarray, k: int, rounds: int) -> dict[str, Any]:
    fitted = GODS(k).fit(X)
    contenders = {
        "GODS, defaults": quiet(lambda: GODS(k).fit(X)),
        f"released objective, {STEPS} steps": lambda: ours(X, k),
        "OneClassSVM": lambda: OneClassSVM().fit(X),
        "GODS, scoring": lambda: fitted.score_samples(X),
    }
    row: dict[str, Any] = {"data": name, "n": len(X), "d": X.shape[1], "k": k}
    if find_spec("pymanopt"):
        contenders["pymanopt, the same"] = lambda: theirs(X, k)
        row["cost_and_steps"] = {"spanwise": ours(X, k), "pymanopt": theirs(X, k)}
    times = interleave(contenders, rounds=rounds, clock=time.process_time)
    row["cpu_seconds"] = {name: min(own) for name, own in times.items()}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    set_threads(1)
    rows = []
    for name, X, k in (
        ("digit 0 of scikit-learn", digits(), 5),
        ("digit 0 of scikit-learn", digits(), 32),
        ("Gaussian", mixture(10_000, 64), 10),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows.append(measure(name, X, k, options.rounds))
        print(rows[-1], flush=True)
    write_results("gods", {"environment": environment(), "rows": rows})


if __name__ == "__main__":
    main()
