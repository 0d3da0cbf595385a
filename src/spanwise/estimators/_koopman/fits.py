"""Least squares between features of successive states."""

from jaxtyping import Float
from torch import Tensor

from spanwise.linalg.thin import thin_svd


def step_matrix(
    before: Float[Tensor, "M D"], after: Float[Tensor, "M D"], rank_tol: float
) -> Float[Tensor, "D D"]:
    """K with `before K ~ after`, by the pseudo-inverse of the features themselves.

    The normal equations of textbooks square the condition number.
    """
    return least_squares(before, after, rank_tol)


def least_squares(
    a: Float[Tensor, "M D"], b: Float[Tensor, "M p"], rank_tol: float
) -> Float[Tensor, "D p"]:
    """The shortest solution of `a x ~ b`; singular values up to `rank_tol` of the largest are 0.

    Raises:
        ValueError: If `a` is zero.
    """
    u, s, v = thin_svd(a)
    kept = s > rank_tol * s[:1]
    if not bool(kept.any()):
        raise ValueError("all features are zero: there is nothing to fit.")
    return v[:, kept] @ ((u[:, kept].mT @ b) / s[kept, None])
