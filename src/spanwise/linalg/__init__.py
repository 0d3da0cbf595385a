"""Linear algebra that knows nothing of papers: tensors in, tensors out, batch first, no state."""

from spanwise.linalg import grassmann
from spanwise.linalg.bases import (
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
from spanwise.linalg.growing import GrowingBasis
from spanwise.linalg.krylov import conjugate_gradient, expm_multiply, kronecker_sum, lanczos
from spanwise.linalg.psd import psd_solve
from spanwise.linalg.sketches import hadamard_transform, srht_basis
from spanwise.linalg.svd import SVD, captured_energy, top_subspace, truncated_svd

__all__ = [
    "SVD",
    "GrowingBasis",
    "align",
    "captured_energy",
    "complement",
    "conjugate_gradient",
    "coordinates",
    "distance",
    "expm_multiply",
    "grassmann",
    "hadamard_transform",
    "intersection",
    "kronecker_sum",
    "lanczos",
    "lift",
    "orthonormalize",
    "outside",
    "principal_angles",
    "project",
    "psd_solve",
    "random_basis",
    "reject",
    "srht_basis",
    "top_subspace",
    "truncated_svd",
    "union",
]
