"""From a membership to labels, and how many there should be."""

import warnings
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from spanwise._lazy import require
from spanwise.estimators._arrays import make_generator
from spanwise.linalg._arrays import matrix


def spectral_labels(
    membership: Float[Tensor, "n n"],
    n_clusters: int,
    *,
    n_init: int = 10,
    random_state: Any = None,
) -> Int[Tensor, " n"]:
    """Spectral clustering of a doubly stochastic membership.

    k eigenvectors of the normalised Laplacian, rows scaled to length 1, then k-means.

    Args:
        membership: Symmetrised; not negative.
        n_clusters: k, in `[2, n]`.
        n_init: Starts of k-means.
        random_state: Seeds k-means; None is seed 0.

    Returns:
        Labels from 0, on the device of `membership`.

    Raises:
        ValueError: If `membership` is not square or k is out of range.
        TypeError: If k is no whole number.

    Sources:
        Ng, Jordan and Weiss, "On spectral clustering: analysis and an algorithm", 2001.
    """
    check_clusters(n_clusters, len(membership))
    vectors = embedding(membership, n_clusters)
    return kmeans(vectors, n_clusters, n_init, seed_of(random_state))


@torch.no_grad()
def embedding(membership: Float[Tensor, "n n"], count: int) -> Float[Tensor, "n k"]:
    """The `count` leading eigenvectors of `D^-1/2 (G + G')/2 D^-1/2`, largest first.

    Raises:
        ValueError: If `membership` is not square, negative, or not finite.
    """
    G = matrix("membership", membership)
    n = len(G)
    if G.ndim != 2 or G.shape[1] != n:
        raise ValueError(f"membership must be square, (n, n), got {tuple(G.shape)}.")
    if not bool(torch.isfinite(G).all()) or bool((G < 0).any()):
        raise ValueError("membership must be finite and not negative.")
    G = (G + G.mT).mul_(0.5)
    inverse = G.sum(1).clamp(min=torch.finfo(G.dtype).tiny).rsqrt_()
    G.mul_(inverse[:, None]).mul_(inverse)
    # All of them: clusters apart share an eigenvalue, and Krylov methods miss some of equal ones.
    return torch.linalg.eigh(G).eigenvectors[:, -count:].flip(1)


def kmeans(
    vectors: Float[Tensor, "n k"], n_clusters: int, n_init: int, seed: int
) -> Int[Tensor, " n"]:
    """k-means of the first `n_clusters` eigenvectors, rows scaled to length 1."""
    cluster = require("sklearn.cluster", "spectral clustering")
    rows = torch.nn.functional.normalize(vectors[:, :n_clusters], dim=1)
    found = cluster.KMeans(n_clusters, n_init=n_init, random_state=seed)
    with warnings.catch_warnings():
        # Fewer distinct rows than clusters: there are as many labels as there can be.
        warnings.simplefilter("ignore")
        labels = found.fit_predict(rows.double().cpu().numpy())
    # No number is left out: what is made of each cluster is in the order of these.
    labels = np.unique(labels, return_inverse=True)[1]
    return torch.from_numpy(labels.astype(np.int64)).to(vectors.device)


def check_clusters(n_clusters: Any, n: int) -> None:
    """Refuse numbers of clusters that no n samples have."""
    if not isinstance(n_clusters, (int, np.integer)):
        raise TypeError(f"n_clusters must be a whole number, got {n_clusters!r}.")
    if not 2 <= n_clusters <= n:
        raise ValueError(
            f"n_clusters must lie in [2, {n}], the number of samples, got {n_clusters}."
        )


def seed_of(random_state: Any) -> int:
    """A seed for scikit-learn."""
    return int(torch.randint(2**31 - 1, (), generator=make_generator(random_state)))
