"""Tensors in, tensors out: bases and decompositions that know nothing of papers."""

from spanwise.linalg.bases import (
    GrowingBasis,
    align,
    complement,
    coordinates,
    distance,
    intersection,
    lift,
    orthonormalize,
    outside,
    principal_angles,
    project,
    random_basis,
    reject,
    union,
)
from spanwise.linalg.svd import SVD, captured_energy, top_subspace, truncated_svd

__all__ = [
    "SVD",
    "GrowingBasis",
    "align",
    "captured_energy",
    "complement",
    "coordinates",
    "distance",
    "intersection",
    "lift",
    "orthonormalize",
    "outside",
    "principal_angles",
    "project",
    "random_basis",
    "reject",
    "top_subspace",
    "truncated_svd",
    "union",
]
