"""What methods share that work on the singular vectors of updates."""

import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import override

from spanwise.linalg import SVD, leading_triples, polar, thin_svd
from spanwise.linalg.thin import ASPECT
from spanwise.merging._methods._method import Method
from spanwise.merging._methods.averages import mean, weighted_sum
from spanwise.merging._work import Work

Null = Literal["true", "official"]
"""What becomes of directions that a matrix does not have: nothing, or, as in the authors' code,
whatever vectors LAPACK returns for them."""


class Updates:
    """The updates of one matrix, T of them, one at a time."""

    def __init__(self, work: Work, expert: int | None = None) -> None:
        self.work, self.expert = work, expert
        self.shape = (work.shape[-2], work.shape[-1])
        """(m, n) of the matrix itself."""
        self.count = work.count

    def __iter__(self) -> Iterator[Tensor]:
        """Each update, to be overwritten."""
        if self.expert is None:
            yield from self.work.updates()
        elif self.work.keep is not None:  # an atlas speaks of all experts at once
            yield from (update[self.expert] for update in self.work.updates())
        else:
            rows = slice(self.expert, self.expert + 1)
            yield from (update[0] for update in self.work.at(rows).updates())

    def total(self) -> Tensor:
        """M, the sum: the only matrix of this size in memory where rows can be read apart."""
        if self.expert is None:
            return weighted_sum(self.work, [1.0] * self.count)
        return _sum(iter(self))

    def lift(self, core: Tensor) -> Tensor:
        """A matrix in the coordinates of `total` and the updates as it is stored."""
        return core


class LowRank(Updates):
    """Updates of LoRA adapters, D_t = L_t R_t, in the coordinates of all their factors.

    With QR decompositions [L_1 .. L_T] = P A and [R_1^T .. R_T^T] = S B every update is
    P (A_t B_t^T) S^T. What is made of singular vectors turns with P and S, so the small cores are
    merged instead, exactly.
    """

    def __init__(self, work: Work, factors: list[tuple[Tensor, Tensor]]) -> None:
        super().__init__(work)
        self.left, a = torch.linalg.qr(torch.cat([left for left, _ in factors], dim=1))
        self.right, b = torch.linalg.qr(torch.cat([right.mT for _, right in factors], dim=1))
        ranks = [left.shape[1] for left, _ in factors]
        self.cores = list(zip(a.split(ranks, dim=1), b.split(ranks, dim=1), strict=True))

    @override
    def __iter__(self) -> Iterator[Tensor]:
        yield from (a @ b.mT for a, b in self.cores)

    @override
    def total(self) -> Tensor:
        return _sum(iter(self))

    @override
    def lift(self, core: Tensor) -> Tensor:
        return self.left @ core @ self.right.mT


def factors(work: Work) -> list[tuple[Tensor, Tensor]] | None:
    """Factors of every update; None unless all have some, whose ranks add up to less than r.

    Raises:
        ValueError: If one is not finite.
    """
    if work.keep is not None or len(work.shape) != 2:
        return None
    found: list[tuple[Tensor, Tensor]] = []
    for index, source in enumerate(work.inputs.models):
        pair = source.factors(work.name)
        if pair is None:
            if source.changes(work.name):
                return None
            pair = torch.zeros(work.shape[0], 0), torch.zeros(0, work.shape[1])
        left, right = (x.to(work.device, work.dtype) for x in pair)
        work._check(left, index)
        work._check(right, index)
        found.append((left, right))
    ranks = sum(left.shape[1] for left, _ in found)
    return found if ranks < min(work.shape) else None


@dataclass(frozen=True, kw_only=True)
class Spectral(Method):
    """Merges matrices by their singular vectors, and averages everything else.

    Args:
        null: What becomes of directions that an update does not have, because LoRA or rounding
            left it rank-deficient. `true` leaves them out; `official` keeps the arbitrary vectors
            that LAPACK returns for them, as the authors' code does.
    """

    null: Null = "true"

    def __post_init__(self) -> None:
        if self.null not in ("true", "official"):
            raise ValueError(f"null must be 'true' or 'official', got {self.null!r}.")

    @override
    def check_kept(self) -> None:
        if self.null == "official":
            raise ValueError(
                "null='official' fills updates with arbitrary directions, which avoid and within "
                "cannot speak of: leave null at 'true'."
            )

    @abstractmethod
    def merge_matrix(self, updates: Updates) -> Tensor:
        """The merged update of one matrix, in the coordinates of `updates`."""

    @override
    def merge_tensor(self, work: Work) -> Tensor:
        if not work.matrix or not math.prod(work.shape):
            return mean(work)
        if len(work.shape) == 3:
            found = torch.empty(work.shape, dtype=work.dtype, device=work.device)
            for expert in range(work.shape[0]):
                found[expert] = self.merge_matrix(Updates(work, expert))
            return found
        low = factors(work) if self.null == "true" else None
        updates = Updates(work) if low is None else LowRank(work, low)
        return updates.lift(self.merge_matrix(updates))

    def triples(self, update: Tensor, count: int, atol: float = 0.0) -> SVD:
        """The leading singular triples; with `null="official"` also of values that are zero."""
        if self.null == "true":
            return leading_triples(update, count, atol=atol)
        u, s, v = thin_svd(update, as_stored=True)
        return SVD(u[:, :count], s[:count], v[:, :count])

    def orthogonal(self, columns: Tensor) -> Tensor:
        """The nearest matrix with orthonormal columns."""
        return polar(columns, complete=self.null == "official").Q

    @override
    def copies(self, work: Work) -> float:
        # LAPACK's own copies, both bases, and what a Gram matrix takes in float64.
        return 8.0 + 10.0 * squareness(work)


def flattened(total: Tensor, null: Null) -> Tensor:
    """M with all its singular values replaced by their mean.

    Args:
        total: M, which is destroyed.
        null: Whether the mean is over the R values that are not zero, or over all.
    """
    if null == "official":
        found = polar(total, "svd", complete=True)
        size = min(total.shape)
    else:
        found = polar(total, overwrite=True)
        size = max(1, int(found.rank))
    return found.Q.mul_(found.nuclear / size)


def squareness(work: Work) -> float:
    """Shorter side of a matrix over its longer one: Gram matrices are small where it is."""
    if not work.matrix or not math.prod(work.shape):
        return 0.0
    return min(work.shape[-2:]) / max(work.shape[-2:])


def is_long(work: Work) -> bool:
    """Whether the Gram matrix of the shorter side serves."""
    return squareness(work) * ASPECT <= 1


def _sum(updates: Iterator[Tensor]) -> Tensor:
    total = next(updates)
    for update in updates:
        total.add_(update)
    return total
