"""What MLC's own measures choose: eta, the number of clusters, the start without views; seconds.

    python benchmarks/mlc_choice.py

Seed 0, which tunes, of the reproduction's sets: digits as they come there, and the three sets of
sentence embeddings. Classes judge, and do nothing else.
"""

import time
import warnings
from typing import Any

import torch
from _timing import environment, set_threads, write_results
from torch import Tensor

from spanwise.estimators import (
    MLC,
    SinkhornProjection,
    clustering_accuracy,
    coding_bits,
    rate_reduction,
    spectral_labels,
)
from spanwise.estimators._mlc.network import linear
from spanwise.reproductions import _mlc_sets as sets
from spanwise.reproductions._mlc_arms import Reference

SEED, EPS = 0, 0.1**0.5
ETAS, COUNTS = (0.1, 0.15, 0.2, 0.3), range(2, 21)


def fit(name: str, eta: float) -> tuple[MLC, Tensor, Tensor]:
    X, truth = sets.part(name, SEED)
    options: dict[str, Any] = dict(sets.SETS[name].options)
    model = MLC(len(truth.unique()), eta=eta, select=None, random_state=SEED, **options)
    return model.fit(X), X, truth


def number(model: MLC, X: Tensor) -> int:
    """Of fewest coding bits."""
    Z, G = model.transform(X), model.membership(X)
    bits = {k: coding_bits(Z, spectral_labels(G, k, n_init=3), EPS) for k in COUNTS}
    return min(bits, key=bits.__getitem__)


def judged(eta: float) -> dict[str, Any]:
    """A fit on digits, by labels and by each measure that needs none."""
    begun = time.process_time()
    model, X, truth = fit("digits", eta)
    seconds = time.process_time() - begun
    Z, G = model.transform(X), model.membership(X)
    return {
        "eta": eta,
        "accuracy": 100 * clustering_accuracy(truth, model.labels_),
        "rate_reduction": float(rate_reduction(Z, G, EPS)),
        "bits_of_features": coding_bits(Z, model.labels_, EPS) / len(X),
        "bits_of_samples": Reference(X).length(model.labels_),
        "clusters": number(model, X),
        "seconds": seconds,
    }


def starts(name: str) -> dict[str, float]:
    """Accuracy before the second stage, by principal axes and by a head drawn at random."""
    X, truth = sets.part(name, SEED)
    d, k = sets.SETS[name].options["n_features"], len(truth.unique())
    axes = torch.linalg.svd(X - X.mean(0), full_matrices=False)[2][:d]
    head = linear(X.shape[1], d, torch.Generator().manual_seed(SEED))
    with torch.no_grad():
        features = {"principal": (X - X.mean(0)) @ axes.mT, "random": head(X)}
    found = {}
    for start, rows in features.items():
        Z = torch.nn.functional.normalize(rows, dim=1)
        labels = spectral_labels(SinkhornProjection(0.2)((Z @ Z.mT).abs()), k, random_state=SEED)
        found[start] = 100 * clustering_accuracy(truth, labels)
    return found


def main() -> None:
    set_threads(1)
    warnings.simplefilter("ignore")  # epochs are fixed
    digits = []
    for eta in ETAS:
        digits.append(judged(eta))
        print(digits[-1], flush=True)
    texts = {name: starts(name) for name in sets.TEXTS}
    model, X, _ = fit("news", 0.3)
    result = {
        "environment": environment(), "digits": digits, "starts": texts,
        "clusters_of_news": number(model, X),
    }  # fmt: skip
    print(texts, result["clusters_of_news"])
    write_results("mlc_choice", result)


if __name__ == "__main__":
    main()
