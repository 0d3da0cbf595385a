"""Task singular vectors: TSV-M."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from spanwise.merging._methods._spectral import Spectral, Updates


@dataclass(frozen=True, kw_only=True)
class TSV(Spectral):
    """TSV-M: leading singular triples of every update, made orthogonal to each other.

    Of T updates of an m x n matrix each gives its r // T leading triples, r = min(m, n); the left
    and right vectors of all are replaced by the nearest orthonormal ones, and the values stay.
    Everything that is no matrix is averaged. A matrix with fewer rows or columns than there are
    models stays as it is in the base. Gargiulo et al., arXiv 2412.00081.

    Args:
        null: What becomes of directions that an update does not have. `true`: they are left out.
            `official`: arbitrary vectors, with value zero, turn the others when both sides are
            orthogonalised, as in the authors' code.
    """

    reference: ClassVar[str] = "https://arxiv.org/abs/2412.00081"

    @override
    def merge_matrix(self, updates: Updates) -> Tensor:
        q = min(updates.shape) // updates.count
        found = [self.triples(update, q) for update in updates]
        x = self.orthogonal(torch.cat([own.U for own in found], dim=1))
        y = self.orthogonal(torch.cat([own.V for own in found], dim=1))
        return (x * torch.cat([own.s for own in found])) @ y.mT
