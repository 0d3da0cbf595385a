"""Coding rates: how many nats the rows of a matrix take at a precision, whole and by cluster."""

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spanwise.estimators._mlc.cluster_rate import cluster_rate
from spanwise.linalg._arrays import full_precision, matrix


def coding_rate(Z: Float[Tensor, "*batch n d"], eps: float) -> Float[Tensor, "*batch"]:
    """`R(Z) = 1/2 logdet(I + d / (n eps^2) Z'Z)`, in nats a sample.

    At most `d/2 log(1 + 1/eps^2)` for rows of length 1, where `Z'Z = n/d I`. The half is that of
    all released code; the paper's formula leaves it out.

    Args:
        Z: Samples in rows.
        eps: The precision, above 0; not its square, which released code calls eps.

    Raises:
        ValueError: If `eps` is not above 0, or Z has no rows or is not finite.

    Sources:
        Yu, Chan, You, Song and Ma, "Learning diverse and discriminative representations via the
        principle of maximal coding rate reduction", 2020, section 2.1.
    """
    Z = checked(Z, eps)
    n, d = Z.shape[-2:]
    with full_precision(Z):
        gram = Z.mT @ Z if d <= n else Z @ Z.mT
        return logdet_one_plus(gram * (d / (n * eps**2))) / 2


def rate_reduction(
    Z: Float[Tensor, "n d"],
    membership: Float[Tensor, "n k"] | Int[Tensor, " n"],
    eps: float,
) -> Float[Tensor, ""]:
    """`R(Z) - R_c(Z, Gamma)`: what coding each cluster by itself saves, in nats a sample.

        R_c = sum_j t_j / (2 n) logdet(I + d / (t_j eps^2) Z' diag(Gamma_j) Z)

    with t_j the sum of column j. Not below 0 where the rows of `membership` sum to 1. With labels
    it is MCR2's.

    Args:
        Z: Samples in rows.
        membership: Labels `(n,)`, one column a cluster `(n, k)`, or doubly stochastic `(n, n)`;
            not negative.
        eps: The precision, above 0; not its square.

    Raises:
        ValueError: If shapes do not fit, a membership is negative or not finite, or `eps` is not
            above 0.

    Sources:
        Ding et al., "Unsupervised manifold linearizing and clustering", 2023, equations 1 and 2.
    """
    Z = checked(Z, eps)
    return coding_rate(Z, eps) - cluster_rate(Z, columns_of(membership, Z), eps)


def coding_bits(Z: Float[Tensor, "n d"], labels: Int[Tensor, " n"], eps: float) -> float:
    """The length of a code for Z cluster by cluster, and for the labels, in nats.

        sum_j (m_j + d) / 2 logdet(I + d / (m_j eps^2) Z_j'Z_j) - m_j log(m_j / n)

    Its minimum over clusterings weighs how well subspaces fit against how many there are.

    Args:
        Z: Samples in rows.
        labels: A whole number for each.
        eps: The precision, above 0; not its square.

    Raises:
        ValueError: If there is not one label for each row, Z is not finite, or `eps` is not
            above 0.

    Sources:
        Ma, Derksen, Hong and Wright, "Segmentation of multivariate mixed data via lossy data
        coding and compression", 2007, equation 11; Chu et al., "Image clustering via the principle
        of rate reduction in the age of pretrained models", 2024.
    """
    Z = checked(Z, eps).detach()
    (n, d), labels = Z.shape, labels_of(labels, Z)
    total = 0.0
    for label in labels.unique():
        part = Z[labels == label]
        m = len(part)
        total += (m + d) * float(coding_rate(part, eps)) - m * math.log(m / n)
    return total


def logdet_one_plus(a: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch"]:
    """`logdet(I + A)` for symmetric positive semi-definite A, by Cholesky."""
    shifted = a.clone()
    shifted.diagonal(dim1=-2, dim2=-1).add_(1)
    factor = torch.linalg.cholesky(shifted)
    return 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def checked(Z: Any, eps: float) -> Tensor:
    """Z in float32 at least, or an error that says what is wrong."""
    Z = matrix("Z", Z)
    if not 0 < eps < math.inf:
        raise ValueError(f"eps must be finite and above 0, got {eps}.")
    if not Z.numel():
        raise ValueError(f"Z must have rows and columns, got shape {tuple(Z.shape)}.")
    if not bool(torch.isfinite(Z.detach()).all()):
        raise ValueError("Z contains NaN or infinity.")
    return Z


def columns_of(membership: Any, Z: Tensor) -> Tensor:
    """A membership as columns beside Z, or an error that says what is wrong."""
    if not isinstance(membership, Tensor):
        membership = torch.as_tensor(membership, device=Z.device)
    if membership.ndim not in (1, 2) or len(membership) != len(Z) or not membership.numel():
        raise ValueError(
            f"membership must be labels (n,) or columns (n, k) with n = {len(Z)}, got shape "
            f"{tuple(membership.shape)}."
        )
    if membership.ndim == 1:
        labels = labels_of(membership, Z)
        return (labels[:, None] == labels.unique()).to(Z.dtype)
    held = membership.detach()
    if not bool(((held >= 0) & (held < math.inf)).all()):  # NaN is neither
        raise ValueError(
            "membership must be finite and must not be negative, it reaches from "
            f"{float(held.min()):.3g} to {float(held.max()):.3g}."
        )
    return membership.to(Z.dtype)


def labels_of(labels: Any, Z: Tensor) -> Tensor:
    """A whole number for each row of Z, on its device, or an error that says what is wrong."""
    labels = torch.as_tensor(labels, device=Z.device)
    if labels.shape != Z.shape[:1]:
        raise ValueError(
            f"labels must be ({len(Z)},), one for each row of Z, got shape {tuple(labels.shape)}."
        )
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"labels must be whole numbers, got {labels.dtype}.")
    return labels
