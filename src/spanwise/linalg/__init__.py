"""Linear algebra that knows nothing of papers: tensors in, tensors out, batch first, no state."""

from spanwise.linalg import grassmann, stiefel
from spanwise.linalg.balancing import Balanced, balance, finite_gramian, gramian_root
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
from spanwise.linalg.nystrom import PivotedCholesky, pivoted_cholesky
from spanwise.linalg.polar import Polar, inverse_sqrt, polar
from spanwise.linalg.psd import psd_solve
from spanwise.linalg.riemannian import Minimum, Product, riemannian_cg
from spanwise.linalg.sinkhorn import Scaling, sinkhorn
from spanwise.linalg.sketches import hadamard_transform, srht_basis
from spanwise.linalg.svd import SVD, captured_energy, top_subspace, truncated_svd
from spanwise.linalg.thin import leading_triples, thin_svd

__all__ = [
    "SVD",
    "Balanced",
    "GrowingBasis",
    "Minimum",
    "PivotedCholesky",
    "Polar",
    "Product",
    "Scaling",
    "align",
    "balance",
    "captured_energy",
    "complement",
    "conjugate_gradient",
    "coordinates",
    "distance",
    "expm_multiply",
    "finite_gramian",
    "gramian_root",
    "grassmann",
    "hadamard_transform",
    "intersection",
    "inverse_sqrt",
    "kronecker_sum",
    "lanczos",
    "leading_triples",
    "lift",
    "orthonormalize",
    "outside",
    "pivoted_cholesky",
    "polar",
    "principal_angles",
    "project",
    "psd_solve",
    "random_basis",
    "reject",
    "riemannian_cg",
    "sinkhorn",
    "srht_basis",
    "stiefel",
    "thin_svd",
    "top_subspace",
    "truncated_svd",
    "union",
]
