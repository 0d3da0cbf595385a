"""Isotropic merging: Iso-C and Iso-CTS."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from spanwise.merging._methods._spectral import (
    Spectral,
    Updates,
    flattened,
    is_long,
    squareness,
)
from spanwise.merging._work import Work

PAPER = "https://arxiv.org/abs/2502.04959"


@dataclass(frozen=True, kw_only=True)
class IsoC(Spectral):
    """The sum of the updates with all singular values made equal; Marczak et al., arXiv 2502.04959.

    With M = sum D_t = U diag(s) V^T the merged update is (sum s_i / R) U V^T, R the number of
    singular values that are not zero. Everything that is no matrix is averaged.

    Args:
        null: What becomes of directions that M does not have. `true`: nothing, and the mean is over
            the R others. `official`: the mean is over min(m, n) values and stands on arbitrary
            vectors too, as in the authors' code.
    """

    reference: ClassVar[str] = PAPER

    @override
    def merge_matrix(self, updates: Updates) -> Tensor:
        return flattened(updates.total(), self.null)

    @override
    def copies(self, work: Work) -> float:
        if is_long(work) and self.null == "true":
            # M becomes the result; in float64 there are Gram matrices.
            return 2.0 + 10.0 * squareness(work)
        return 8.0


@dataclass(frozen=True, kw_only=True)
class IsoCTS(Spectral):
    """Common directions of the sum and those of each task, all made equal; arXiv 2502.04959.

    The k leading singular triples of M = sum D_t are what the tasks have in common. Each task adds
    the q leading ones of its update without them, D_t - U_c U_c^T D_t. Both sides are made
    orthonormal, and all k + q T = R singular values are replaced by their mean.

    Args:
        common_fraction: f in [0, 1]: k is about f R. At 1 it is Iso-C.
        null: What becomes of directions that M does not have. `true`: R is the numerical rank of
            M, and tasks add true directions only. `official`: R is min(m, n), whatever the vectors
            are, as in the authors' code.
    """

    reference: ClassVar[str] = PAPER

    common_fraction: float = 0.8

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.common_fraction <= 1:
            raise ValueError(
                f"common_fraction must be in [0, 1], the share of directions that the tasks have "
                f"in common, got {self.common_fraction}."
            )

    @override
    def merge_matrix(self, updates: Updates) -> Tensor:
        if updates.count == 1 or self.common_fraction == 1:
            return flattened(updates.total(), self.null)  # the same, by one polar factor
        r = min(updates.shape)
        common = self.triples(updates.total(), r)
        if self.null == "true":
            r = len(common.s)
        k, q = split(r, updates.count, self.common_fraction)
        if q == 0:
            return (common.U @ common.V.mT).mul_(common.s.sum() / max(1, r))
        shared = common.U[:, :k]
        values, left, right = [common.s[:k]], list[Tensor](), list[Tensor]()
        for update in updates:
            # What the subtraction leaves of directions that are shared is rounding of the update.
            rounding = 16 * torch.finfo(update.dtype).eps * float(update.norm())
            update.addmm_(shared, shared.mT @ update, alpha=-1)
            own = self.triples(update, q, rounding)
            left.append(own.U)
            values.append(own.s)
            right.append(own.V)
        scale = torch.cat(values).mean()
        y = self.orthogonal(torch.cat([*right, common.V[:, :k]], dim=1))
        x = torch.cat(left, dim=1)
        if self.null == "official":
            x = self.orthogonal(torch.cat([x, shared], dim=1))
        else:
            # The tasks' directions are orthogonal to the shared ones already; projected again,
            # because small ones carry rounding of large ones.
            x = torch.cat([self.orthogonal(x - shared @ (shared.mT @ x)), shared], dim=1)
        return (x @ y.mT).mul_(scale)


def split(r: int, tasks: int, common_fraction: float) -> tuple[int, int]:
    """Sizes (k, q) of the common subspace and of each task's own: k + q T = r, all at least 0.

    The authors' rounding, half to even, but never more for the tasks than there is: their code
    fails where it is.

    Example:
        >>> split(576, 8, 0.8)
        (464, 14)
    """
    q = round((r - int(r * common_fraction)) / tasks)
    q = min(q, r // tasks)
    return r - q * tasks, q
