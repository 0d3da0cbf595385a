"""How good clusters and their subspaces are."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from spanwise._lazy import require
from spanwise.estimators._mlc.rates import labels_of
from spanwise.linalg._arrays import matrix


def clustering_accuracy(labels: Any, predicted: Any) -> float:
    """Share of samples that are right under the best one-to-one match of clusters to classes.

    The match is the Hungarian algorithm's, not a greedy one.

    Args:
        labels: Classes, `(n,)`, of any kind.
        predicted: Clusters, `(n,)`.

    Raises:
        ValueError: If lengths differ or are 0.
    """
    truth, found = (
        np.asarray(x.cpu() if isinstance(x, Tensor) else x) for x in (labels, predicted)
    )
    if truth.ndim != 1 or truth.shape != found.shape or not truth.size:
        raise ValueError(
            "labels and predicted must have one equal axis of at least 1, got shapes "
            f"{truth.shape} and {found.shape}."
        )
    rows = np.unique(truth, return_inverse=True)[1]
    columns = np.unique(found, return_inverse=True)[1]
    table = np.zeros((rows.max() + 1, columns.max() + 1), dtype=np.int64)
    np.add.at(table, (rows, columns), 1)
    optimize = require("scipy.optimize", "clustering_accuracy")
    match = optimize.linear_sum_assignment(-table)
    return float(table[match].sum() / truth.size)


def numerical_rank(Z: Float[Tensor, "*batch n d"], energy: float = 0.95) -> Any:
    """How many singular values hold this share of the sum of all squares; 0 where all are 0.

    Args:
        Z: Samples in rows.
        energy: In `(0, 1]`.

    Returns:
        A number, or a tensor `(*batch)`.

    Raises:
        ValueError: If `energy` is out of range.
    """
    if not 0 < energy <= 1:
        raise ValueError(f"energy must lie in (0, 1], got {energy}.")
    squares = torch.linalg.svdvals(matrix("Z", Z).detach()).square()
    share = squares.cumsum(-1)
    total = squares.sum(-1, keepdim=True)
    # Rounding must not ask for directions that hold nothing.
    limit = energy * total * (1 - 8 * torch.finfo(squares.dtype).eps)
    rank = (share < limit).sum(-1) + (total[..., 0] > 0)
    return int(rank) if rank.ndim == 0 else rank


def subspace_affinity(
    Z: Float[Tensor, "n d"], labels: Int[Tensor, " n"], energy: float = 0.95
) -> Float[Tensor, "k k"]:
    """`||U_i' U_j||_F / sqrt(min rank)` of the clusters' subspaces: 1 for equal, 0 for orthogonal.

    Args:
        Z: Samples in rows.
        labels: A whole number for each; clusters are in the order of these.
        energy: Share of each cluster's sum of squares that its subspace holds, in `(0, 1]`.

    Sources:
        Soltanolkotabi and Candès, "A geometric analysis of subspace clustering with outliers",
        2012, definition 1.2.
    """
    bases = cluster_bases(Z, labels, energy)
    return torch.stack([torch.stack([_overlap(a, b) for b in bases]) for a in bases])


def _overlap(a: Float[Tensor, "d r"], b: Float[Tensor, "d s"]) -> Float[Tensor, ""]:
    least = max(1, min(a.shape[1], b.shape[1]))  # what holds nothing meets nothing
    return torch.linalg.matrix_norm(a.mT @ b) / least**0.5


def cluster_bases(
    Z: Float[Tensor, "n d"], labels: Int[Tensor, " n"], energy: float
) -> list[Float[Tensor, "d r"]]:
    """An orthonormal basis of each cluster's leading directions, by label."""
    found: list[Tensor] = []
    Z = matrix("Z", Z).detach()
    labels = labels_of(labels, Z)
    for label in labels.unique():
        part = Z[labels == label]
        _, _, right = torch.linalg.svd(part, full_matrices=False)
        found.append(right[: numerical_rank(part, energy)].mT.contiguous())
    return found
