"""`GPCA` beside k-means, spectral clustering and k-subspaces: agreement with the truth, and time.

    python benchmarks/gpca.py

Points on random subspaces with noise, and handwritten digits, which lie near no union of few
planes. The adjusted Rand index is the mean over seeds; seconds are the processor's.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _timing import environment, set_threads, write_results
from sklearn.cluster import KMeans, SpectralClustering
from sklearn.datasets import load_digits
from sklearn.decomposition import TruncatedSVD
from sklearn.metrics import adjusted_rand_score

from spanwise.estimators import GPCA
from spanwise.estimators.gpca import k_subspaces
from spanwise.linalg import random_basis

SYNTHETIC = [(2, 6, 2, 0.05), (4, 8, 3, 0.1), (6, 9, 2, 0.1), (6, 9, 2, 0.2)]
DIGITS = [(0, 1, 2), (1, 4, 7)]
SEEDS = (0, 1, 2)
PER_CLUSTER = 200


def planes(k: int, d: int, dim: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    g = np.random.default_rng(seed)
    bases = [np.linalg.qr(g.standard_normal((d, dim)))[0] for _ in range(k)]
    X = np.concatenate([g.standard_normal((PER_CLUSTER, dim)) @ A.T for A in bases])
    return X + noise * g.standard_normal(X.shape), np.repeat(np.arange(k), PER_CLUSTER)


def best_k_subspaces(X: np.ndarray, k: int, dim: int, seed: int, starts: int = 20) -> np.ndarray:
    """From random subspaces, the start of the smallest inertia."""
    points, g = torch.from_numpy(X), torch.Generator().manual_seed(seed)
    d, best = X.shape[1], (np.inf, np.zeros(len(X)))
    for _ in range(starts):
        start = torch.stack(
            [random_basis(d, dim, generator=g, dtype=torch.float64) for _ in range(k)]
        )
        subspaces, labels, _ = k_subspaces(points, start, 50)
        left = points - (points @ subspaces) @ subspaces.mT
        inertia = float(left.square().sum(-1).amin(0).sum())
        best = min(best, (inertia, labels.numpy()), key=lambda pair: pair[0])
    return best[1]


def contenders(k: int, dim: int, seed: int) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    return {
        "GPCA": lambda X: GPCA(k, dim, random_state=seed).fit(X).labels_,
        "GPCA, no random starts": lambda X: (
            GPCA(k, dim, n_random=0, random_state=seed).fit(X).labels_
        ),
        "GPCA, moment only": lambda X: GPCA(k, dim, max_iter=0, random_state=seed).fit(X).labels_,
        "k-subspaces, 20 starts": lambda X: best_k_subspaces(X, k, dim, seed),
        "k-means": lambda X: KMeans(k, n_init=10, random_state=seed).fit_predict(X),
        "spectral": lambda X: SpectralClustering(
            k, affinity="nearest_neighbors", random_state=seed
        ).fit_predict(X),
    }


def judged(sets: list[tuple[np.ndarray, np.ndarray]], k: int, dim: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for seed, (X, y) in zip(SEEDS, sets, strict=True):
        for name, function in contenders(k, dim, seed).items():
            start = time.process_time()
            labels = function(X)
            row = found.setdefault(name, {"ari": [], "cpu_seconds": []})
            row["cpu_seconds"].append(time.process_time() - start)
            row["ari"].append(float(adjusted_rand_score(y, labels)))
    return {name: {key: float(np.mean(v)) for key, v in row.items()} for name, row in found.items()}


def main() -> None:
    set_threads(1)
    rows = []
    for k, d, dim, noise in SYNTHETIC:
        sets = [planes(k, d, dim, noise, seed) for seed in SEEDS]
        case = {"data": f"{k} subspaces of dimension {dim} in R^{d}, noise {noise:g}"}
        rows.append({**case, **judged(sets, k, dim)})
        print(rows[-1], flush=True)
    X, y = load_digits(return_X_y=True)
    for classes in DIGITS:
        own = np.isin(y, classes)
        Z = TruncatedSVD(10, random_state=0).fit_transform(X[own])
        case = {"data": f"digits {', '.join(map(str, classes))}, 10 components, dimension 2"}
        rows.append({**case, **judged([(Z, y[own])] * len(SEEDS), len(classes), 2)})
        print(rows[-1], flush=True)
    write_results("gpca", {"environment": environment(), "seeds": list(SEEDS), "rows": rows})


if __name__ == "__main__":
    main()
