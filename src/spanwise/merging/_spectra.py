"""What the singular vectors of updates say before anything is merged."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

SHARE_LOST = 0.05
"""Share of the norm that the leading directions of M may leave out, in the subspace alignment
ratio ||P D||_F / ||D||_F (Marczak et al., arXiv 2502.04959, equations 5 and 6). The authors' script
for their figure cuts by another rule, and after the first task projects on that task's own
vectors."""


@dataclass(frozen=True)
class Spectrum:
    """One matrix by its singular values.

    Attributes:
        values: Those that are not zero, largest first.
        effective_rank: exp of the entropy of s_i / sum s: how many equal values would be as spread
            out; 0 for a zero matrix.
        stable_rank: ||M||_F^2 / s_1^2, which never exceeds the rank; 0 for a zero matrix.
    """

    values: Tensor
    effective_rank: float
    stable_rank: float

    @property
    def rank(self) -> int:
        """How many singular values are not zero."""
        return len(self.values)

    @property
    def norm(self) -> float:
        """||M||_F."""
        return float(torch.linalg.vector_norm(self.values, dtype=torch.float64))

    @property
    def skew(self) -> float:
        """Largest value over the mean of those not zero: 1 for a flat spectrum, 0 for none.

        The mean is what Iso-C puts in place of all of them.
        """
        return float(self.values[0] / self.values.mean()) if self.rank else 0.0

    def rank_at(self, energy: float) -> int:
        """How few leading directions hold a share of ||M||_F^2."""
        return size_for(self.values, math.sqrt(1 - energy))


def of_values(s: Float[Tensor, " r"]) -> Spectrum:
    """From singular values, largest first and all above zero.

    Sources:
        Roy and Vetterli, "The effective rank", 2007.
    """
    if not len(s):
        return Spectrum(s, 0.0, 0.0)
    held = s.double()
    share = held / held.sum()
    entropy = -(share * share.log()).sum()
    return Spectrum(s, float(entropy.exp()), float((held / held[0]).square().sum()))


def size_for(s: Float[Tensor, " r"], lost: float = SHARE_LOST) -> int:
    """k_M: how few leading directions leave out at most `lost` of the Frobenius norm.

    The smallest k with ||M - P_k M||_F <= lost ||M||_F; 0 for a zero matrix.
    """
    if not 0 <= lost < 1:
        raise ValueError(f"lost must be in [0, 1), the share of the norm left out, got {lost}.")
    if not len(s):
        return 0
    held = s.double() / s.double()[0]
    # From the small end, where a difference of large sums would have nothing left.
    tail = held.flip(0).square().cumsum(0).flip(0).sqrt()
    kept = int((tail > lost * tail[0]).sum())
    return max(1, kept)
