"""Outlier detectors side by side: how a set is split, what each may try, and how it is scored."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from spanwise._lazy import require
from spanwise.datasets import AnomalySet

DETECTORS = {
    "gods": "GODS",
    "kods": "KODS",
    "released": "GODS, released objective",
    "bods": "BODS",
    "published": "GODS as published",
    "ocsvm": "OneClassSVM",
    "forest": "IsolationForest",
    "lof": "LOF",
    "pca": "PCA reconstruction",
    "mahalanobis": "Mahalanobis",
}
_GODS = {
    "scaling": "whiten", "n_directions": 0.5, "eta": 2.0, "lam": 1.0, "coupling": 1.0,
    "start": "slab", "max_iter": 50, "tol": 1e-3,
}  # fmt: skip
_KODS = {**_GODS, "kernel": "rbf", "n_components": 50}
_ALONE = {**_GODS, "coupling": 0.0}
TRIALS: dict[str, tuple[dict[str, Any], ...]] = {
    "gods": (
        _GODS,
        {**_GODS, "eta": 3.0, "coupling": 3.0},
        {**_GODS, "eta": 1.0, "lam": 0.1},
        {**_GODS, "n_directions": 0.75},
        {**_GODS, "scaling": "standard"},
    ),
    "kods": (
        {**_KODS, "widen": 0.5},
        {**_KODS, "widen": 0.2},
        {**_KODS, "widen": 0.1},
        {**_KODS, "widen": 0.05},
        {**_KODS, "widen": 0.2, "n_components": 100},
    ),
    "released": (
        {**_ALONE, "scaling": "standard", "n_directions": 5, "eta": 0.01, "lam": 0.1},
        {**_ALONE, "scaling": "standard", "n_directions": 0.5, "eta": 0.1, "lam": 0.1},
        {**_ALONE, "scaling": "standard", "n_directions": 0.25, "eta": 0.1, "lam": 1.0},
        {**_ALONE, "scaling": "whiten", "n_directions": 0.5, "eta": 0.1, "lam": 1.0},
        {**_ALONE, "scaling": "whiten", "n_directions": 1.0, "eta": 1.0, "lam": 1.0},
    ),
    "ocsvm": (
        {}, {"nu": 0.1}, {"nu": 0.1, "widen": 5.0}, {"nu": 0.1, "widen": 20.0},
        {"nu": 0.1, "widen": 5.0, "whiten": True},
    ),
    "forest": (
        {}, {"max_samples": 64}, {"max_samples": 1.0}, {"whiten": True},
        {"max_samples": 1.0, "whiten": True},
    ),
    "lof": (
        {}, {"n_neighbors": 5}, {"n_neighbors": 50}, {"whiten": True},
        {"n_neighbors": 50, "whiten": True},
    ),
    "pca": tuple({"energy": energy} for energy in (0.9, 0.5, 0.7, 0.95, 0.99)),
    "mahalanobis": tuple({"shrink": shrink} for shrink in (None, 0.0, 0.001, 0.01, 0.1)),
}  # fmt: skip
"""Detector -> the settings that it may try, as many for each; scikit-learn's default comes first.
`widen` multiplies the rbf kernel's usual gamma, 1 / (d times the variance)."""
PUBLISHED: dict[str, Any] = {"preset": "paper"}
"""The released code's own settings, which nothing chooses."""


Score = Callable[[Any], np.ndarray]
"""Scores of samples, higher for normal ones."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """One set, cut by one seed; every detector sees the same."""

    train: Float[np.ndarray, "n d"]
    """Normal samples."""
    mixed: Float[np.ndarray, "m d"]
    """The same with anomalies among them, as many as the set has, 10 % at most."""
    validation: Float[np.ndarray, "v d"]
    validation_y: Bool[np.ndarray, " v"]
    """True for an anomaly."""
    test: Float[np.ndarray, "t d"]
    test_y: Bool[np.ndarray, " t"]


def split(
    held: AnomalySet, seed: int, *, rows: int, normals: int = 20, anomalies: int = 10
) -> Split:
    """Half of the normal samples to train; of the others a few to validate, the rest to test.

    Half of the anomalies are for `mixed` and validation, the other half for the test.

    Args:
        held: The set.
        seed: Of the order in which samples are dealt out.
        rows: At most so many normal samples train, and at most so many test; and anomalies half
            as many.
        normals: In the validation part.
        anomalies: In the validation part, at most.
    """
    generator = np.random.default_rng(seed)
    inside = generator.permutation(np.flatnonzero(~held.y))
    outside = generator.permutation(np.flatnonzero(held.y))
    half, few = len(inside) // 2, len(outside) // 2
    train = inside[:half][:rows]
    share = min(held.y.mean(), 0.1)
    mixed = np.concatenate([train, outside[:few][: round(len(train) * share / (1 - share))]])
    checked = inside[half : half + normals], outside[:few][:anomalies]
    tested = inside[half + normals :][:rows], outside[few:][: rows // 2]
    X = held.X
    return Split(
        train=X[train],
        mixed=X[generator.permutation(mixed)],
        validation=X[np.concatenate(checked)],
        validation_y=np.repeat([False, True], [len(part) for part in checked]),
        test=X[np.concatenate(tested)],
        test_y=np.repeat([False, True], [len(part) for part in tested]),
    )


def scores(
    method: str,
    options: Mapping[str, Any],
    train: Float[np.ndarray, "n d"],
    *parts: Float[np.ndarray, "_ d"],
    seed: int = 0,
) -> list[Float[np.ndarray, " _"]]:
    """Scores of the training samples and of each part, higher for normal ones.

    Features are brought to mean 0 and deviation 1 on the training samples; with `whiten` among
    the options, made uncorrelated as GODS does it.

    Args:
        method: One of `DETECTORS`.
        options: Of the detector.
        train: What it is fitted to.
        parts: What else is scored.
        seed: For those that draw.
    """
    options = dict(options)
    scaled = _scaled(options.pop("whiten", False), train, *parts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few steps, few samples: the scores tell
        score = _FIT[method](options, scaled[0], seed)
        own = score(scaled[0]) if method != "lof" else score(None)
        rest = score(np.concatenate(scaled[1:]))  # at once: a forest asks each tree once
    return [own, *np.split(rest, np.cumsum([len(part) for part in scaled[1:-1]]))]


def measures(
    found: Float[np.ndarray, " t"], y: Bool[np.ndarray, " t"], threshold: float
) -> dict[str, float]:
    """Area under the curve, average precision and F1 of anomalies, in percent.

    Args:
        found: Scores, higher for normal samples.
        y: True for an anomaly.
        threshold: Below it a sample counts as anomaly; F1 alone depends on it.
    """
    values, at = np.unique(found, return_inverse=True)
    hits = np.bincount(at, weights=y, minlength=len(values)).cumsum()  # at or below each score
    taken = np.bincount(at, minlength=len(values)).cumsum()
    bad, good = hits[-1], taken[-1] - hits[-1]
    recall, false = np.append(0, hits / bad), np.append(0, (taken - hits) / good)
    return {
        "auc": 100 * float(np.trapezoid(recall, false)),
        "ap": 100 * float((np.diff(recall) * hits / taken).sum()),
        "f1": 100 * f1(found < threshold, y),
    }


def f1(flagged: Bool[np.ndarray, " t"], y: Bool[np.ndarray, " t"]) -> float:
    """Of anomalies; 0 where none is flagged."""
    return float(2 * (flagged & y).sum() / max(1, flagged.sum() + y.sum()))


def best_threshold(found: Float[np.ndarray, " v"], y: Bool[np.ndarray, " v"]) -> float:
    """The threshold of the largest F1, halfway between two scores."""
    ordered = np.unique(found)
    between = [*(ordered[1:] + ordered[:-1]) / 2, ordered[-1] + 1]
    return float(between[int(np.argmax([f1(found < cut, y) for cut in between]))])


def _scaled(whiten: bool, train: np.ndarray, *parts: np.ndarray) -> list[np.ndarray]:
    import torch

    from spanwise.estimators._arrays import column_scales
    from spanwise.estimators._gods.features import whitener

    mean, scale = train.mean(axis=0), column_scales(torch.from_numpy(train)).numpy()
    found = [(part - mean) / scale for part in (train, *parts)]
    if whiten:
        turn = whitener(torch.from_numpy(found[0])).numpy()
        found = [part @ turn for part in found]
    return found


def _gods(options: dict[str, Any], train: np.ndarray, seed: int) -> Score:
    from spanwise.estimators import GODS

    d = train.shape[1]
    if "widen" in options:
        options["gamma"] = options.pop("widen") / d
    if not isinstance(k := options.get("n_directions", 0.5), float):
        options["n_directions"] = min(k, d)
    preset = options.pop("preset", "tuned")
    return GODS.preset(preset, **options, random_state=seed).fit(train).score_samples


def _ocsvm(options: dict[str, Any], train: np.ndarray, seed: int) -> Score:
    gamma = options.pop("widen", 1.0) / (train.shape[1] * (train.var() or 1.0))
    kind = require("sklearn.svm", "this comparison").OneClassSVM
    return kind(gamma=gamma, **options).fit(train).score_samples


def _forest(options: dict[str, Any], train: np.ndarray, seed: int) -> Score:
    kind = require("sklearn.ensemble", "this comparison").IsolationForest
    return kind(random_state=seed, **options).fit(train).score_samples


def _lof(options: dict[str, Any], train: np.ndarray, seed: int) -> Score:
    """Of None, the scores of the training samples, which are no neighbours of their own."""
    kind = require("sklearn.neighbors", "this comparison").LocalOutlierFactor
    count = min(int(options.pop("n_neighbors", 20)), len(train) - 1)
    model = kind(n_neighbors=count, novelty=True, **options).fit(train)
    return lambda x: model.negative_outlier_factor_ if x is None else model.score_samples(x)


def _pca(options: dict[str, Any], train: np.ndarray, seed: int) -> Score:
    """The part of a sample outside the directions that hold a share of the variance; one is."""
    values, vectors = np.linalg.eigh(train.T @ train)
    held = np.cumsum(values[::-1]) / values.sum()
    inside = 1 + int(np.searchsorted(held, options["energy"]))
    outside = vectors[:, : max(1, len(values) - inside)]
    return lambda x: -((x @ outside) ** 2).sum(axis=1)


def _mahalanobis(options: dict[str, Any], train: np.ndarray, seed: int) -> Score:
    """Distance by the covariance; `shrink` None is Ledoit and Wolf's choice."""
    covariance = require("sklearn.covariance", "this comparison")
    if options["shrink"] is None:
        fitted = covariance.LedoitWolf(assume_centered=True).fit(train)
    else:
        kind = covariance.ShrunkCovariance
        fitted = kind(shrinkage=options["shrink"], assume_centered=True).fit(train)
    return lambda x: -fitted.mahalanobis(x)


_FIT: dict[str, Callable[[dict[str, Any], np.ndarray, int], Score]] = {
    "gods": _gods,
    "kods": _gods,
    "released": _gods,
    "bods": _gods,
    "published": _gods,
    "ocsvm": _ocsvm,
    "forest": _forest,
    "lof": _lof,
    "pca": _pca,
    "mahalanobis": _mahalanobis,
}
