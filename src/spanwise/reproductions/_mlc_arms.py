"""MLC and what it has to beat, each with a setting that is chosen without labels."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from spanwise._lazy import require
from spanwise.estimators import (
    MLC,
    SinkhornProjection,
    clustering_accuracy,
    coding_bits,
    coding_rate,
    numerical_rank,
    spectral_labels,
)

AXES, EPS = 16, 0.1**0.5
"""Of the reference in which labels are compared: leading principal axes, and its precision."""
STRONGEST = 20
"""Entries of each row of a self-representation that make the graph."""

Labels = Int64[Tensor, " n"]


class Reference:
    """How short a code of the samples themselves some labels give: lower is better, and no fit
    can make it lower by what it does to its own features.
    """  # noqa: D205

    def __init__(self, X: Float[Tensor, "n p"]) -> None:
        centred = (X - X.mean(0)).double()
        _, _, axes = torch.linalg.svd(centred, full_matrices=False)
        self.rows = torch.nn.functional.normalize(centred @ axes[:AXES].mT, dim=1)

    def length(self, labels: Labels) -> float:
        """Nats a sample."""
        return coding_bits(self.rows, labels, EPS) / len(labels)

    def best(self, found: Mapping[Any, Labels]) -> Any:
        """The setting of shortest code; the first of equals."""
        return min(found, key=lambda setting: self.length(found[setting]))


def kmeans(X: Float[Tensor, "n p"], k: int, seed: int) -> Labels:
    """The best of ten starts."""
    cluster = require("sklearn.cluster", "k-means")
    found = cluster.KMeans(k, n_init=10, random_state=seed).fit_predict(X.numpy())
    return torch.from_numpy(found).long()


def neighbours(X: Float[Tensor, "n p"], k: int, count: int, seed: int) -> Labels:
    """Spectral clustering of the graph of nearest neighbours."""
    cluster = require("sklearn.cluster", "spectral clustering")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a graph in several parts
        found = cluster.SpectralClustering(
            k, affinity="nearest_neighbors", n_neighbors=count, random_state=seed
        ).fit_predict(X.numpy())
    return torch.from_numpy(found).long()


def least_squares(X: Float[Tensor, "n p"], k: int, ridge: float, seed: int) -> Labels:
    """Subspace clustering by least squares: each sample from all others, strongest entries kept.

    Sources:
        Lu et al., "Robust and efficient subspace segmentation via least squares regression", 2012.
    """
    rows = torch.nn.functional.normalize(X.double(), dim=1)
    gram = rows @ rows.mT
    weights = torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=gram.dtype), gram).abs()
    weights.fill_diagonal_(0)
    kept, at = weights.topk(STRONGEST, dim=1)
    graph = torch.zeros_like(weights).scatter_(1, at, kept / kept.amax(1, keepdim=True))
    return spectral_labels(graph, k, random_state=seed)


def scores(truth: Labels, labels: Labels) -> dict[str, float]:
    """How well labels agree with classes, in percent."""
    metrics = require("sklearn.metrics", "scores")
    return {
        "accuracy": 100 * clustering_accuracy(truth, labels),
        "nmi": 100 * float(metrics.normalized_mutual_info_score(truth.numpy(), labels.numpy())),
    }


def geometry(Z: Float[Tensor, "n d"], truth: Labels) -> dict[str, float]:
    """Mean rank of the classes' features, rank and rate of all."""
    ranks = [numerical_rank(Z[truth == label]) for label in truth.unique()]
    return {
        "rank": sum(ranks) / len(ranks),
        "rank_of_all": numerical_rank(Z),
        "rate": float(coding_rate(Z, EPS)),
    }


def compare(
    X: Float[Tensor, "n p"],
    truth: Labels,
    seed: int,
    etas: tuple[float, ...],
    counts: tuple[int, ...],
    ridges: tuple[float, ...],
    options: Mapping[str, Any],
) -> dict[str, dict[str, Any]]:
    """Every arm's scores on one part of a set; classes judge, and do nothing else."""
    k, reference = len(truth.unique()), Reference(X)
    arms: dict[str, dict[str, Any]] = {}

    def judged(arm: str, found: Mapping[Any, Labels], **more: Any) -> Any:
        chosen = reference.best(found)
        arms[arm] = {
            **scores(truth, found[chosen]), "length": reference.length(found[chosen]),
            "setting": chosen,
            "every": {str(s): scores(truth, held)["accuracy"] for s, held in found.items()},
            **more,
        }  # fmt: skip
        return chosen

    judged("kmeans", {10: kmeans(X, k, seed)})
    graphs = {count: neighbours(X, k, count, seed) for count in counts}
    judged("spectral", graphs)
    judged("spectral_10", {10: graphs[10] if 10 in graphs else neighbours(X, k, 10, seed)})
    judged("least_squares", {ridge: least_squares(X, k, ridge, seed) for ridge in ridges})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # epochs are fixed
        at_start: dict[str, Any] = {**options, "epochs": 0}
        start = MLC(k, random_state=seed, select=None, **at_start).fit(X)
        Z = start.transform(X)
        K = (Z @ Z.mT).abs()
        begun = {eta: spectral_labels(SinkhornProjection(eta)(K), k, random_state=seed)
                 for eta in etas}  # fmt: skip
        judged("start", begun, **geometry(Z, truth))
        fits = {eta: MLC(k, eta=eta, random_state=seed, select=None, **options).fit(X)
                for eta in etas}  # fmt: skip
    chosen = reference.best({eta: fit.labels_ for eta, fit in fits.items()})
    judged(
        "mlc", {eta: fit.labels_ for eta, fit in fits.items()},
        **geometry(fits[chosen].transform(X), truth),
    )  # fmt: skip
    return arms
