"""The flattening of a symmetric tensor: its range, its singular values, and its rank."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from spanwise.linalg.symmetric import SymmetricSpace


@dataclass(frozen=True)
class Spectrum:
    """The leading part of mat(T) = V diag(D) U^T, in the coordinates of symmetric tensors."""

    rows: SymmetricSpace
    """Order n = ceil(m / 2)."""
    columns: SymmetricSpace
    """Order m - n."""
    V: Float[Tensor, "C r"]
    """Orthonormal basis of the range."""
    values: Float[Tensor, " r"]
    """D: eigenvalues of either sign for even m, singular values for odd m."""
    U: Float[Tensor, "c r"]
    """Right vectors; V itself for even m."""
    rest: Float[Tensor, "C q"] | None
    """A basis of the complement of V, where it is narrower than V and was reckoned anyway."""
    eigenvalues: Float[Tensor, " k"]
    """All values that were reckoned, largest magnitude first: a scree plot for the rank."""

    @property
    def rank(self) -> int:
        """The number r of components."""
        return self.V.shape[-1]

    def right_powers(self, A: Float[Tensor, "d k"]) -> Float[Tensor, "r k"]:
        """U^T a^(m-n) for each column."""
        return self.U.mT @ self.columns.power(A)

    def duals(self, A: Float[Tensor, "d k"]) -> Float[Tensor, "r k"]:
        """D^-1 U^T a^(m-n): orthogonal, in coordinates of V, to every other component's power.

        Of M = sum w_i v_i u_i^T with v_i, u_i in the ranges follows u_j^+ M^+ v_i = 0 for i != j
        and 1 / w_i for i = j. What is left after component j is the complement of its dual. D is
        the original one throughout, so that no error builds up.
        """
        return self.right_powers(A) / self.values.unsqueeze(-1)

    def weights(self, A: Float[Tensor, "d k"]) -> Float[Tensor, " k"]:
        """w_i = 1 / (v_i^T M^+ u_i) of the unit columns of A."""
        return 1 / ((self.V.mT @ self.rows.power(A)) * self.duals(A)).sum(0)


def spaces(d: int, order: int, device: torch.device) -> tuple[SymmetricSpace, SymmetricSpace]:
    """Symmetric tensors of order ceil(m / 2) and of the other half, in float64."""
    rows = SymmetricSpace(d, (order + 1) // 2, torch.float64, device)
    return rows, rows if order % 2 == 0 else rows.lower


def decompose(
    M: Float[Tensor, "C c"],
    rows: SymmetricSpace,
    columns: SymmetricSpace,
    rank: int | None,
    rank_tol: float,
) -> Spectrum:
    """The spectrum of a flattening in coordinates.

    Args:
        M: The flattening.
        rows: Its left space.
        columns: Its right space.
        rank: How many values count, or None to see.
        rank_tol: For `choose_rank`.
    """
    if rows is columns:
        values, vectors = torch.linalg.eigh(M)
        order = values.abs().argsort(descending=True)
        values, vectors = values[order], vectors[:, order]
        r = choose_rank(values, rank, rank_tol)
        V, rest = vectors[:, :r].contiguous(), vectors[:, r:]
        narrow = rest.contiguous() if rest.shape[-1] < r else None
        return Spectrum(rows, columns, V, values[:r], V, narrow, values)
    left, values, right = torch.linalg.svd(M, full_matrices=False)
    r = choose_rank(values, rank, rank_tol)
    V, U = left[:, :r].contiguous(), right[:r].mT.contiguous()
    return Spectrum(rows, columns, V, values[:r], U, None, values)


def choose_rank(values: Float[Tensor, " k"], rank: int | None, rank_tol: float) -> int:
    """How many values count: those above `rank_tol` times mean(D^2) / mean(|D|).

    The threshold scales with T. Values at rounding never count.

    Raises:
        ValueError: If `rank` asks for more than there are.
    """
    size = values.abs()
    noise = len(values) * torch.finfo(values.dtype).eps * size.max()
    above = int((size > noise).sum())
    if rank is None:
        threshold = rank_tol * size.square().mean() / size.mean()
        return int((size > torch.maximum(threshold, noise)).sum())
    if rank > above:
        raise ValueError(
            f"rank = {rank} exceeds the number of values of the flattening that are not rounding, "
            f"{above}. Give rank={above} or less, or None to find it."
        )
    return rank


def rank_bound(d: int, order: int) -> int:
    """The largest rank for which generic components are isolated maxima: C - d, at least 1.

    C = binom(d + n - 1, n), n = ceil(m / 2). For odd m the smaller side of the flattening,
    binom(d + n - 2, n - 1), bounds the rank as well.

    Sources:
        Kileel and Pereira, "Subspace power method for symmetric tensor decomposition", 2019,
        arXiv 1912.04007, proposition on generic uniqueness (the trisecant lemma).
    """
    rows = SymmetricSpace(d, (order + 1) // 2)
    bound = max(1, rows.dim - d)
    return bound if order % 2 == 0 else min(bound, rows.lower.dim)
