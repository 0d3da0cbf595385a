"""Symmetric matrices as vectors, so that sums of outer products are one matrix product.

A matrix is cut in blocks of `SIDE`. The vector holds, one after the other, the blocks below the
diagonal whole, times sqrt 2, and the lower triangles of those on it, their off-diagonal entries
times sqrt 2: d (d + 1) / 2 numbers, and inner products are those of the matrices. Whole blocks
let a batch of matrices be factored by batched products of blocks.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

SIDE = 32
"""Of a block: batched products run at full speed from here on, small factorisations up to here."""


class Layout:
    """Where the blocks of a symmetric (d, d) matrix lie in a vector.

    Args:
        d: Size of the matrix.
        like: A tensor of the dtype and on the device to work with.
        side: Of a block.
    """

    def __init__(self, d: int, like: Tensor, side: int = SIDE) -> None:
        self.rows = [slice(low, min(low + side, d)) for low in range(0, d, side)]
        self.sides = [rows.stop - rows.start for rows in self.rows]
        self.places: dict[tuple[int, int], slice] = {}
        self._triangles = {side: _Triangle(side, like) for side in set(self.sides)}
        at = 0
        for i, high in enumerate(self.sides):
            for j, wide in enumerate(self.sides[: i + 1]):
                size = high * wide if i != j else high * (high + 1) // 2
                self.places[i, j] = slice(at, at + size)
                at += size
        self.length = at

    def outer(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n p"]:
        """`z_i z_i'` of each row."""
        found = z.new_empty(len(z), self.length)
        scaled = z * math.sqrt(2)
        for (i, j), place in self.places.items():
            left, right = z[:, self.rows[i], None], z[:, None, self.rows[j]]
            if i == j:
                found[:, place] = self._triangles[self.sides[i]].pack(left * right)
            else:
                left = scaled[:, self.rows[i], None]
                torch.mul(left, right, out=self._block(found, i, j))
        return found

    def times(self, packed: Float[Tensor, "n p"], z: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Each matrix times its own vector."""
        found = torch.zeros_like(z)
        scaled = z * math.sqrt(0.5)
        for i, j in self.places:
            at, other = self.rows[i], self.rows[j]
            if i == j:
                found[:, at] += (self._diagonal(packed, i) @ z[:, at, None])[..., 0]
            else:
                held = self._block(packed, i, j)
                found[:, at] += (held @ scaled[:, other, None])[..., 0]
                found[:, other] += (scaled[:, None, at] @ held)[:, 0]
        return found

    def invert_one_plus(
        self, packed: Float[Tensor, "n p"], inverse: bool
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """`logdet(I + A)` and `tr (I + A)^-1`; `(I + A)^-1` takes the place of A.

        Args:
            packed: Positive semi-definite matrices.
            inverse: Whether the inverse is wanted; without it the trace is 0 and A stays.
        """
        A = {
            (i, j): self._diagonal(packed, i)
            if i == j
            else self._block(packed, i, j) * math.sqrt(0.5)
            for i, j in self.places
        }
        size = len(self.rows)
        logdet = packed.new_zeros(len(packed))
        L: dict[tuple[int, int], Tensor] = {}
        X: dict[tuple[int, int], Tensor] = {}  # L^-1
        for j in range(size):
            A[j, j].diagonal(dim1=-2, dim2=-1).add_(1)
            factor = torch.linalg.cholesky(A[j, j])
            logdet += factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            one = torch.eye(self.sides[j], dtype=factor.dtype, device=factor.device)
            X[j, j] = torch.linalg.solve_triangular(factor, one, upper=False)
            for i in range(j + 1, size):
                L[i, j] = A[i, j] @ X[j, j].mT
            for i in range(j + 1, size):
                for k in range(j + 1, i + 1):
                    A[i, k].baddbmm_(L[i, j], L[k, j].mT, alpha=-1)
        logdet.mul_(2)
        trace = torch.zeros_like(logdet)
        if not inverse:
            return logdet, trace
        for j in range(size):
            for i in range(j + 1, size):
                held = L[i, j] @ X[j, j]
                for k in range(j + 1, i):
                    held.baddbmm_(L[i, k], X[k, j])
                X[i, j] = (X[i, i] @ held).neg_()
        for (i, j), place in self.places.items():
            held = X[i, i].mT @ X[i, j]
            for k in range(i + 1, size):
                held.baddbmm_(X[k, i].mT, X[k, j])
            if i == j:
                trace += held.diagonal(dim1=-2, dim2=-1).sum(-1)
                packed[:, place] = self._triangles[self.sides[i]].pack(held)
            else:
                torch.mul(held, math.sqrt(2), out=self._block(packed, i, j))
        return logdet, trace

    def _block(self, packed: Float[Tensor, "n p"], i: int, j: int) -> Float[Tensor, "n a b"]:
        """A view of a block below the diagonal, sqrt 2 included."""
        return packed[:, self.places[i, j]].unflatten(1, (self.sides[i], self.sides[j]))

    def _diagonal(self, packed: Float[Tensor, "n p"], i: int) -> Float[Tensor, "n a a"]:
        """A block on the diagonal, whole."""
        return self._triangles[self.sides[i]].unpack(packed[:, self.places[i, i]])


class _Triangle:
    """The lower triangle of a small symmetric matrix as a vector, and back."""

    def __init__(self, side: int, like: Tensor) -> None:
        self.side = side
        rows, columns = torch.tril_indices(side, side, device=like.device)
        place = torch.empty(side, side, dtype=torch.int64, device=like.device)
        place[rows, columns] = place[columns, rows] = torch.arange(len(rows), device=like.device)
        self.taken, self.given = rows * side + columns, place.flatten()
        weight = torch.full(rows.shape, math.sqrt(2), dtype=torch.float64, device=like.device)
        self.weight = weight.masked_fill_(rows == columns, 1).to(like.dtype)
        self.inverse_weight = 1 / self.weight[self.given]

    def pack(self, matrices: Float[Tensor, "n a a"]) -> Float[Tensor, "n q"]:
        return matrices.flatten(1).index_select(1, self.taken).mul_(self.weight)

    def unpack(self, packed: Float[Tensor, "n q"]) -> Float[Tensor, "n a a"]:
        whole = packed.index_select(1, self.given).mul_(self.inverse_weight)
        return whole.unflatten(1, (self.side, self.side))
