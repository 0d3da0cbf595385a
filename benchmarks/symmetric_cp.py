"""`symmetric_cp` beside the authors' Python, repaired, and tensorly: time and error, one thread.

    python benchmarks/symmetric_cp.py --official CHECKOUT_OF_joaompereira/SPM

The authors' code needs numba, and two repairs, made in memory: its deflation skips the first
component instead of the last, and it stops under NumPy 2. Peers that are not installed are left
out. Seconds are the processor's; the call that compiles the peer's code is timed by itself.
"""

import argparse
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _timing import environment, set_threads, write_results
from scipy.optimize import linear_sum_assignment

from spanwise.estimators import symmetric_cp

CASES = [(20, 20), (20, 120), (30, 200), (40, 400), (40, 600)]


def tensor(d: int, r: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    A = np.random.default_rng(seed).standard_normal((d, r))
    square = (A[:, None] * A[None]).reshape(-1, r)
    return A, (square @ square.T).reshape([d] * 4)


def error(A: np.ndarray, found: np.ndarray | None) -> float | None:
    """||A - found|| / ||A|| after matching up to sign; None where the number differs."""
    if found is None or found.shape != A.shape:
        return None
    cosine = (A / np.linalg.norm(A, axis=0)).T @ (found / np.linalg.norm(found, axis=0))
    rows, columns = linear_sum_assignment(-np.abs(cosine))
    matched = found[:, columns] * np.sign(cosine[rows, columns])
    return float(np.linalg.norm(matched - A[:, rows]) / np.linalg.norm(A))


def ours(T: np.ndarray, r: int) -> np.ndarray:
    w, A, _ = symmetric_cp(T)
    return A * np.abs(w) ** 0.25


def official(checkout: Path) -> Callable[[np.ndarray, int], np.ndarray]:
    """The authors' function with its two defects repaired, as if imported."""
    folder = checkout / "python"
    sys.path.insert(0, str(folder))
    source = (folder / "SPM.py").read_text()
    source, guards = re.subn(r"\n        if k:\n", "\n        if k < r - 1:\n", source)
    old = "w[k] = 1. / (alpha.T @ D1alpha)"
    if guards != 1 or old not in source:
        sys.exit(f"{folder / 'SPM.py'} is not the version that the repairs were written for.")
    scope: dict[str, Any] = {"__name__": "SPM"}
    exec(source.replace(old, "w[k] = 1. / (alpha.T @ D1alpha).item()"), scope)  # the point of it
    return lambda T, r: scope["subspace_power_method"](T, w_out=False)


def tensorly_als(T: np.ndarray, r: int) -> np.ndarray | None:
    from tensorly.decomposition import parafac

    w, factors = parafac(T, r, init="random", random_state=0, n_iter_max=20, tol=0)
    return factors[0] * np.abs(w) ** 0.25


def tensorly_power(T: np.ndarray, r: int) -> np.ndarray | None:
    from tensorly.decomposition import symmetric_parafac_power_iteration

    w, A = symmetric_parafac_power_iteration(T, r, n_repeat=1, n_iteration=10)
    return A * np.abs(w) ** 0.25


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    start = time.process_time()
    found = function(*arguments)
    return time.process_time() - start, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--official", type=Path, help="a checkout of joaompereira/SPM")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    set_threads(1)
    contenders: dict[str, Callable[..., Any]] = {"spanwise": ours}
    facts: dict[str, Any] = {}
    if options.official:
        contenders["official, repaired"] = official(options.official)
        seconds, _ = timed(contenders["official, repaired"], tensor(4, 3, 0)[1], 3)
        facts["official_compile_seconds"] = seconds
    slow: dict[str, Callable[..., Any]] = {}
    try:
        import tensorly  # noqa: F401
    except ModuleNotFoundError:
        pass
    else:
        slow = {"tensorly parafac, 20 sweeps": tensorly_als}
        slow["tensorly symmetric power iteration, 10 steps"] = tensorly_power
    timed(ours, tensor(4, 3, 0)[1], 3)
    rows = []
    for d, r in CASES:
        A, T = tensor(d, r, options.seed)
        row: dict[str, Any] = {"d": d, "r": r}
        for name, function in contenders.items():
            runs = [timed(function, T, r) for _ in range(options.rounds if d < 40 else 1)]
            row[name] = {
                "cpu_seconds": min(seconds for seconds, _ in runs),
                "error": error(A, runs[-1][1]),
            }
        for name, function in slow.items() if (d, r) == (20, 20) else ():
            seconds, found = timed(function, T, r)
            row[name] = {"cpu_seconds": seconds, "error": error(A, found)}
        if slow and (d, r) == (20, 120):
            name = "tensorly parafac, 20 sweeps"
            seconds, found = timed(tensorly_als, T, r)
            row[name] = {"cpu_seconds": seconds, "error": error(A, found)}
        if "official, repaired" in row:
            ratio = row["official, repaired"]["cpu_seconds"] / row["spanwise"]["cpu_seconds"]
            row["speedup"] = ratio
        print(row, flush=True)
        rows.append(row)
    write_results("symmetric_cp", {"environment": environment(), **facts, "rows": rows})


if __name__ == "__main__":
    main()
