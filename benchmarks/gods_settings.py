"""What stands behind the settings of `GODS`: the figures of its page that no reproduction holds.

    python benchmarks/gods_settings.py

On the 16 sets that chose defaults, the area under the curve of every setting of every detector;
what the start changes; and how many samples are outside where few were learned from. Some two
processor minutes on one thread. Needs the sets of `spanwise reproduce gods`.
"""

import warnings
from typing import Any

import numpy as np
import torch
from _timing import environment, set_threads, write_results
from sklearn.datasets import load_breast_cancer, load_digits

from spanwise.datasets import load_anomalies
from spanwise.estimators import GODS
from spanwise.reproductions import gods
from spanwise.reproductions._detectors import DETECTORS, TRIALS
from spanwise.reproductions._gods_sets import CHOOSING


def choices() -> dict[str, Any]:
    """Area under the curve in percent by detector, setting and set; and each setting's mean."""
    rows = gods.PRESETS["default"].rows
    found: dict[str, dict[str, list[float]]] = {method: {} for method in TRIALS}
    for name in CHOOSING:
        print(name, flush=True)
        asked = {"set": name, "data": load_anomalies(name).digest, "seed": 0, "rows": rows}
        record = gods.cell({**asked, "trials": 5, "chosen": None})["trials"]
        for method, trials in record.items():
            found[method][name] = [trial["defaults"]["auc"] for trial in trials]
    means = {method: np.mean([*held.values()], axis=0).tolist() for method, held in found.items()}
    return {
        "settings": {method: list(trials) for method, trials in TRIALS.items()},
        "best_mean": {DETECTORS[method]: max(held) for method, held in means.items()},
        "mean": means,
        "by_set": found,
    }


def normals() -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Normal samples to learn from and held out, half each, and others."""
    found = {}
    for name, (X, inside) in {
        "digit 0": (lambda x, y: (x, y == 0))(*load_digits(return_X_y=True)),
        "breast cancer, benign": (lambda x, y: (x, y == 1))(*load_breast_cancer(return_X_y=True)),
    }.items():
        rows = np.random.default_rng(0).permutation(np.flatnonzero(inside))
        half = -(-len(rows) // 2)
        found[name] = X[rows[:half]], X[rows[half:]], X[~inside]
    return found


def starts(X: np.ndarray) -> dict[str, dict[str, float]]:
    """The released objective, k = 5, eta = lam = 0.1, at the start and after 999 steps.

    Means over five draws; a slab is the same for all.
    """
    common = {"eta": 0.1, "lam": 0.1, "coupling": 0.0, "scaling": "standard", "tol": 0.0}
    return {
        start: {
            str(steps): float(
                np.mean(
                    [
                        GODS(5, start=start, max_iter=steps, random_state=seed, **common)
                        .fit(X)
                        .objective_
                        for seed in range(1 if start == "slab" else 5)
                    ]
                )
            )
            for steps in (0, 999)
        }
        for start in ("official", "one_sided", "slab")
    }


def outside(X: np.ndarray, new: np.ndarray, others: np.ndarray) -> dict[str, dict[str, float]]:
    """Share of samples outside: of those learned, of new normal ones, and of others."""
    wide = {"kernel": "rbf", "n_components": 50, "gamma": 1 / X.shape[1]}
    detectors = {
        "GODS()": GODS(),
        "GODS(contamination=None)": GODS(contamination=None),
        'GODS.preset("kernel")': GODS.preset("kernel"),
        'GODS(kernel="rbf", n_components=50, gamma=1 / d)': GODS(**wide),
    }
    parts = {"learned": X, "new": new, "others": others}
    return {
        name: {
            part: float((detector.fit(X).predict(held) < 0).mean()) for part, held in parts.items()
        }
        for name, detector in detectors.items()
    }


def main() -> None:
    set_threads(1)
    torch.set_grad_enabled(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        held = normals()
        write_results(
            "gods_settings",
            {
                "environment": environment(),
                "starts": {name: starts(X) for name, (X, _, _) in held.items()},
                "outside": {name: outside(*parts) for name, parts in held.items()},
                "choices": choices(),
            },
        )


if __name__ == "__main__":
    main()
