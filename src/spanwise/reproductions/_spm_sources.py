"""More sources than sensors: contrasts of photographs, mixed, and the mixing found again."""

import hashlib
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spanwise._lazy import require
from spanwise.estimators import SubspacePowerMethod

Array = NDArray[np.float64]

GRID = (3, 4)
"""Pieces of a photograph: rows and columns."""


def photographs() -> list[Array]:
    """The luminance of the two photographs that come with scikit-learn.

    Raises:
        ModuleNotFoundError: If Pillow is missing.
    """
    require("PIL", "reading photographs")
    from sklearn.datasets import load_sample_images

    return [image.astype(float).mean(2) for image in load_sample_images().images]


def digest(images: list[Array]) -> str:
    """SHA-256 of the pixels."""
    return hashlib.sha256(b"".join(np.ascontiguousarray(i).tobytes() for i in images)).hexdigest()


def sources(count: int, images: list[Array]) -> Array:
    """Contrasts of pieces of photographs, `(count, samples)`, of mean 0 and variance 1.

    Differences of neighbouring pixels, along rows and along columns: a linear filter, which
    mixing does not notice. Of all pieces those whose excess kurtosis is nearest to 10, by ratio:
    of very flat pieces a few edges are all, and no cumulant of them can be estimated.
    """
    pieces: list[Array] = []
    for image in images:
        height, width = (n // parts for n, parts in zip(image.shape, GRID, strict=True))
        for row in range(GRID[0]):
            for column in range(GRID[1]):
                p = image[row * height : (row + 1) * height, column * width : (column + 1) * width]
                x = np.concatenate([np.diff(p, axis=1).ravel(), np.diff(p, axis=0).ravel()])
                pieces.append((x - x.mean()) / x.std())
    pieces.sort(key=lambda x: abs(np.log(max(np.mean(x**4) - 3, 1e-9) / 10)))
    return np.stack(pieces[:count])


def separate(settings: Mapping[str, Any], seed: int) -> dict[str, dict[str, Any]]:
    """Arm -> how well the mixing's columns are found again.

    Args:
        settings: `sources`, `sensors`, `samples`.
        seed: Of the mixing, the order of samples, and the methods.
    """
    from sklearn.decomposition import FastICA

    rng = np.random.default_rng(seed)
    S = sources(settings["sources"], photographs())[:, : settings["samples"]]
    A = rng.standard_normal((settings["sensors"], len(S)))
    A /= np.linalg.norm(A, axis=0)
    mixed = (A @ np.stack([rng.permutation(x) for x in S])).T
    found: dict[str, dict[str, Any]] = {"spanwise": _by_cumulant(mixed, A, seed)}
    found["same_order"] = _by_cumulant((A @ S).T, A, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # with more sources than sensors it need not converge
        ica = FastICA(len(A), random_state=seed, max_iter=500).fit(mixed)
    columns = ica.mixing_ / np.linalg.norm(ica.mixing_, axis=0)
    # In its favour: a column may stand for several sources.
    found["fastica"] = {"cosine": float(np.abs(columns.T @ A).max(0).mean())}
    return found


def _by_cumulant(X: Array, A: Array, seed: int) -> dict[str, Any]:
    """Mean |cos| of the matched columns, and the smallest."""
    from scipy.optimize import linear_sum_assignment

    model = SubspacePowerMethod(rank=A.shape[1], component_tol=0.5, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dependent sources have components that are none
        model.fit_moments(X, cumulant=True)
    cosine = np.abs(model.components_ @ A)
    pairs = cosine[linear_sum_assignment(-cosine)]
    return {
        "cosine": float(pairs.mean()),
        "worst_cosine": float(pairs.min()),
        "eigenvalues": [float(x) for x in model.eigenvalues_],
    }
