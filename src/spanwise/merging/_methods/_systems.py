"""The sums of quadratic forms that MaTS minimises: how they act, and where they are closed."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from spanwise.linalg.krylov import kronecker_sum
from spanwise.linalg.psd import NEGATIVE, psd_eigh, psd_solve
from spanwise.merging._methods._quadratic import shrunk
from spanwise.merging._stats import (
    BLOCK_FISHER,
    DIAG_FISHER,
    GRADIENT_GRAM,
    GRAM,
    TensorStats,
)  # fmt: skip
from spanwise.merging._work import Work

EIGH = 20
"""Products of two n x n matrices that their eigenvectors cost, as measured on one core."""
FLOOR = 1e-6
"""Least eigenvalue of a preconditioner's matrix, as a share of the largest."""
RANGE = 1e-9
"""Share of the largest eigenvalue below which the closed form of two models sees none."""

Apply = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Turn:
    """The same system in orthonormal coordinates in which it is cheaper."""

    apply: Apply
    into: Apply
    back: Apply


class System(ABC):
    """`A = sum_t A_t` with A_t positive semi-definite, weights and scales included.

    Args:
        work: The tensor.
        lam: Factor of the entries of Gram matrices off their diagonal.
        normalize: Whether each A_t is divided by its mean diagonal.
    """

    def __init__(self, work: Work, *, lam: float = 1.0, normalize: bool = False) -> None:
        self.work, self.lam, self.normalize = work, lam, normalize

    @abstractmethod
    def add(self, weight: float, held: TensorStats | None, x: Tensor) -> Tensor:
        """Take in the next model's A_t; `A_t x`, a tensor of its own.

        Raises:
            ValueError: If a Gram matrix has a negative eigenvalue beyond rounding.
        """

    @abstractmethod
    def apply(self, x: Tensor) -> Tensor:
        """`A x`."""

    @abstractmethod
    def closed(self, b: Tensor, x0: Tensor) -> Tensor:
        """The limit of conjugate gradient from `x0`."""

    @abstractmethod
    def precond(self, kind: str) -> Apply:
        """An approximate inverse of A."""

    def turned(self, iterations: int, columns: int) -> Turn | None:
        """Cheaper coordinates for so many iterations on so many columns, if there are."""
        del iterations, columns
        return None

    def _gram(self, held: TensorStats | None, kind: str, weight: float) -> Tensor:
        """A Gram matrix, after a look at its eigenvalues that costs a third of a product."""
        assert held is not None
        matrix = shrunk(self.work, held, kind, self.lam)
        slack = NEGATIVE * float(torch.linalg.matrix_norm(matrix))
        shifted = matrix.clone()
        shifted.diagonal().add_(slack + torch.finfo(matrix.dtype).tiny)
        if int(torch.linalg.cholesky_ex(shifted)[1]):
            try:
                psd_eigh(matrix.double())  # what Cholesky doubts is measured
            except ValueError as error:
                raise ValueError(f"the {kind} of {self.work.name!r}: {error}") from error
        return matrix.mul_(self._factor(weight, matrix.diagonal()))

    def _factor(self, weight: float, diagonal: Tensor) -> float:
        mean = float(diagonal.mean()) if self.normalize else 1.0
        return weight / mean if mean > 0 else weight


class Diagonal(System):
    """A_t multiplies entry by entry; without statistics, by the model's weight."""

    total: Tensor | float = 0.0

    @override
    def add(self, weight: float, held: TensorStats | None, x: Tensor) -> Tensor:
        if held is None:
            own = x.new_tensor(weight)
        else:
            own = held[DIAG_FISHER].to(self.work.device, self.work.dtype).reshape(x.shape)
            own.mul_(self._factor(weight, own))
        term = x * own
        self.total = own.add_(self.total)
        return term

    @override
    def apply(self, x: Tensor) -> Tensor:
        return x * self.total

    @override
    def closed(self, b: Tensor, x0: Tensor) -> Tensor:
        # An entry that matters to no task stays where it began.
        total = torch.as_tensor(self.total)
        return torch.where(total > 0, b / torch.where(total > 0, total, 1), x0)

    @override
    def precond(self, kind: str) -> Apply:
        inverse = _floored(torch.as_tensor(self.total)).reciprocal()
        return lambda r: r * inverse


class Inputs(System):
    """`A_t X = C_t X`: RegMean. Only the sum of the C_t is held."""

    kind: ClassVar[str] = GRAM
    total: Tensor | None = None

    @override
    def add(self, weight: float, held: TensorStats | None, x: Tensor) -> Tensor:
        own = self._gram(held, self.kind, weight)
        self.total = own if self.total is None else self.total.add_(own)
        return own @ x

    @override
    def apply(self, x: Tensor) -> Tensor:
        return self._sum @ x

    @override
    def closed(self, b: Tensor, x0: Tensor) -> Tensor:
        return psd_solve(self._sum, b, x0).x

    @override
    def precond(self, kind: str) -> Apply:
        if kind == "kronecker":
            inverse = _inverse(self._sum)
            return lambda r: inverse @ r
        diagonal = _floored(self._sum.diagonal()).reciprocal().unsqueeze(-1)
        return lambda r: r * diagonal

    @override
    def turned(self, iterations: int, columns: int) -> Turn | None:
        """E^T X, where A only scales rows: all iterations together cost less than one eigh."""
        if iterations * columns <= EIGH * self._sum.shape[0]:
            return None
        values, vectors = psd_eigh(self._sum)
        rows = values.unsqueeze(-1)
        return Turn(lambda x: x * rows, lambda x: vectors.mT @ x, lambda x: vectors @ x)

    @property
    def _sum(self) -> Tensor:
        assert self.total is not None
        return self.total


class Block(Inputs):
    """`A_t v = F_t v` for a vector, with the whole Fisher matrix of its entries."""

    kind: ClassVar[str] = BLOCK_FISHER


class Kronecker(System):
    """`A_t X = C_t X B_t`: K-FAC."""

    def __init__(self, work: Work, *, lam: float = 1.0, normalize: bool = False) -> None:
        super().__init__(work, lam=lam, normalize=normalize)
        self.pairs: list[tuple[Tensor, Tensor]] = []

    @override
    def add(self, weight: float, held: TensorStats | None, x: Tensor) -> Tensor:
        pair = self._gram(held, GRAM, weight), self._gram(held, GRADIENT_GRAM, 1.0)
        self.pairs.append(pair)
        return pair[0] @ x @ pair[1]

    @override
    def apply(self, x: Tensor) -> Tensor:
        return self._operator(x)

    @cached_property
    def _operator(self) -> Apply:
        inputs, outputs = (torch.stack(side) for side in zip(*self.pairs, strict=True))
        return kronecker_sum(inputs, outputs)

    @override
    def closed(self, b: Tensor, x0: Tensor) -> Tensor:
        """Of one or two models, in the coordinates that make both of their terms diagonal.

        With C_1 + C_2 = I and B_1 + B_2 = I there, C_1 = diag(l) and B_1 = diag(m), A multiplies
        entry (i, j) by l_i m_j + (1 - l_i)(1 - m_j). What lies outside the ranges of the sums
        stays `x0`'s.
        """
        inputs, outputs = (
            [matrix.double() for matrix in side] for side in zip(*self.pairs, strict=True)
        )
        residual = b.double()
        for c, d in zip(inputs, outputs, strict=True):
            residual = residual - c @ x0.double() @ d
        cut = max(RANGE, max(b.shape) * torch.finfo(b.dtype).eps)
        (p, left), (q, right) = _diagonalised(inputs, cut), _diagonalised(outputs, cut)
        share = left.unsqueeze(-1) * right
        if len(inputs) == 2:
            share = share + (1 - left).unsqueeze(-1) * (1 - right)
        known = share > 10 * torch.finfo(torch.float64).eps / cut
        z = torch.where(known, (p.mT @ residual @ q) / torch.where(known, share, 1), 0)
        return x0 + (p @ z @ q.mT).to(x0.dtype)

    @override
    def precond(self, kind: str) -> Apply:
        if kind == "kronecker":
            left = _inverse(torch.stack([c for c, _ in self.pairs]).sum(0))
            right = _inverse(torch.stack([b for _, b in self.pairs]).sum(0))
            return lambda r: left @ r @ right
        total = torch.stack([torch.outer(c.diagonal(), b.diagonal()) for c, b in self.pairs]).sum(0)
        diagonal = _floored(total).reciprocal()
        return lambda r: r * diagonal


SYSTEMS: dict[str, type[System]] = {
    "identity": Diagonal,
    "diag_fisher": Diagonal,
    "regmean": Inputs,
    "kfac": Kronecker,
    "block_fisher": Block,
}
"""The system of each objective."""


def _floored(values: Tensor) -> Tensor:
    largest = values.max()
    return values.clamp(min=FLOOR * float(largest)) if largest > 0 else torch.ones_like(values)


def _inverse(matrix: Tensor) -> Tensor:
    values, vectors = psd_eigh(matrix)
    return (vectors / _floored(values)) @ vectors.mT


def _diagonalised(terms: Sequence[Tensor], cut: float) -> tuple[Tensor, Tensor]:
    """P and l: on the range of the sum, P^T makes it I and the first term diag(l)."""
    values, vectors = psd_eigh(torch.stack(list(terms)).sum(0))
    kept = values > cut * values[-1]
    whitened = vectors[:, kept] / values[kept].sqrt()
    shares, turned = torch.linalg.eigh(whitened.mT @ terms[0] @ whitened)
    return whitened @ turned, shares.clamp(0, 1)
