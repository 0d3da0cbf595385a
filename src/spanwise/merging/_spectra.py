"""What the singular vectors of updates say before anything is merged."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from spanwise.linalg import SVD, leading_triples
from spanwise.linalg._arrays import largest_entry, matrix

SHARE_LOST = 0.05
"""Share of the norm that the leading directions of M may leave out, in the alignment ratio."""


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


def spectrum(M: Float[Tensor, "m n"]) -> Spectrum:
    """The singular values of an update, and how many of them count.

    Raises:
        ValueError: If `M` is not finite.

    Sources:
        Roy and Vetterli, "The effective rank", 2007.
    """
    return of_values(leading_triples(M, min(M.shape)).s)


def of_values(s: Float[Tensor, " r"]) -> Spectrum:
    """The same from singular values, largest first and all above zero."""
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


def alignment(update: Float[Tensor, "m n"], basis: Float[Tensor, "m k"]) -> float:
    """Subspace alignment ratio: ||P D||_F / ||D||_F with P = U U^T.

    Args:
        update: D.
        basis: U, orthonormal: the `size_for` leading left singular vectors of a merged update.

    Returns:
        In [0, 1]; 0 for a zero update.

    Raises:
        ValueError: If the update is not finite or lives in another space.

    Sources:
        Marczak et al., arXiv 2502.04959, equations 5 and 6. The authors' script for their figure
        cuts by another rule, and after the first task projects on that task's own vectors.
    """
    update = matrix("update", update)
    if basis.ndim != 2 or basis.shape[0] != update.shape[0]:
        raise ValueError(
            f"basis must have shape (m, k) with m = {update.shape[0]}, as update has rows, got "
            f"{tuple(basis.shape)}."
        )
    peak = float(largest_entry("update", update))
    if not peak > 0:
        return 0.0
    scaled = update / peak
    inside = torch.linalg.vector_norm(basis.to(scaled).mT @ scaled)
    return min(1.0, float(inside / torch.linalg.vector_norm(scaled)))


def alignments(
    updates: Sequence[Float[Tensor, "m n"]],
    merged: Float[Tensor, "m n"],
    lost: float = SHARE_LOST,
) -> list[float]:
    """The alignment ratio of every update with a merged one.

    Args:
        updates: D_t.
        merged: M, what a method made of them; its scale does not matter.
        lost: Share of the norm of M that its leading directions may leave out.
    """
    found = leading_triples(merged, min(merged.shape))
    basis = found.U[:, : size_for(found.s, lost)]
    return [alignment(update, basis) for update in updates]


@dataclass(frozen=True)
class Overlap:
    """How much of one update lies in the leading directions of another.

    Attributes:
        shared: `shared[i, j]`: share of the energy ||D_i||_F^2 inside the leading left directions
            of D_j, in [0, 1].
        random: `random[j]`: what a random subspace of that size holds on average, k_j / m.
        subspaces: `subspaces[i, j]`: mean squared cosine of the principal angles between the
            leading subspaces, relative to the smaller, in [0, 1]; symmetric.
        random_subspaces: What random subspaces of these sizes give, max(k_i, k_j) / m.
    """

    shared: Tensor
    random: Tensor
    subspaces: Tensor
    random_subspaces: Tensor


def overlap(updates: Sequence[Float[Tensor, "m n"]], rank: int) -> Overlap:
    """Pairwise shared energy of the leading left subspaces of updates, beside chance.

    Args:
        updates: D_t, all of one shape.
        rank: k, how many leading directions of each; fewer where an update has a smaller rank.

    Raises:
        ValueError: If `rank` is less than 1, there is no update, or shapes differ.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}.")
    if not updates or any(u.shape != updates[0].shape for u in updates):
        raise ValueError(
            f"updates must be matrices of one shape, got {[tuple(u.shape) for u in updates]}."
        )
    return overlap_of([leading_triples(update, min(update.shape)) for update in updates], rank)


def overlap_of(found: Sequence[SVD], rank: int) -> Overlap:
    """The same from whole decompositions, so that each update is decomposed once."""
    count, m = len(found), found[0].U.shape[0]
    shared = torch.zeros(count, count, dtype=torch.float64)
    inside = torch.zeros(count, count, dtype=torch.float64)
    sizes = torch.tensor([min(rank, len(svd.s)) for svd in found], dtype=torch.float64)
    for i, a in enumerate(found):
        share = a.s.double() / a.s.double().norm() if len(a.s) else a.s.double()
        for j, b in enumerate(found):
            k, own = int(sizes[j]), int(sizes[i])
            cosines = b.U[:, :k].double().mT @ a.U.double()
            # ||U_b^T D_a||^2 without D_a: its left vectors times its values.
            shared[i, j] = (cosines * share).square().sum().clamp(max=1)
            fewest = min(k, own)
            inside[i, j] = cosines[:, :own].square().sum() / fewest if fewest else 0.0
    larger = torch.maximum(sizes.unsqueeze(0), sizes.unsqueeze(1))
    return Overlap(shared, sizes / m, inside.clamp_(max=1), larger / m)
