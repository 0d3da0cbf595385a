"""Symmetric tensors in the coordinates of their distinct entries.

A symmetric tensor of order n over R^d has C = binom(d + n - 1, n) distinct entries, one for each
sorted multi-index. Each is kept times the root of how often it occurs, so that inner products of
coordinates are those of the d^n entries: orthonormal there is orthonormal here, at up to n! times
less memory.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise, permutations

import torch
from jaxtyping import Float, Int
from torch import Tensor

_TABLES = ("index", "_axes", "_roots", "grown")
"""Of a space, the cached properties that do not depend on the dtype."""

_ENTRIES = 2**17
"""Of a part of a tensor that is looked at at once: a processor keeps it in its cache."""


@dataclass(frozen=True)
class SymmetricSpace:
    """The symmetric tensors of one order over R^d, an inner product space of dimension C."""

    d: int
    """Dimension of the underlying space, at least 1."""
    order: int
    """Order n, at least 1."""
    dtype: torch.dtype = torch.float64
    """Of `scale`."""
    device: torch.device | None = None
    """Where the tables live; the CPU by default."""

    def __post_init__(self) -> None:
        if self.d < 1 or self.order < 1:
            raise ValueError(
                f"d and order must be at least 1, got d = {self.d}, order = {self.order}."
            )
        if self.d**self.order >= 2**63:
            raise ValueError(
                f"{self.d}^{self.order} entries cannot be numbered by 64-bit integers."
            )

    @cached_property
    def dim(self) -> int:
        """C, the number of coordinates."""
        return math.comb(self.d + self.order - 1, self.order)

    @cached_property
    def index(self) -> Int[Tensor, "C n"]:
        """The sorted multi-index of each coordinate, in lexicographic order."""
        axis = torch.arange(self.d, device=self.device)
        if self.order == 1:
            return axis.unsqueeze(-1)
        # Not by torch.combinations, which makes all d^n multi-indices first.
        rest = self.lower.index
        starts = torch.searchsorted(rest[:, 0].contiguous(), axis).tolist()
        parts = [torch.nn.functional.pad(rest[at:], (1, 0), value=i) for i, at in enumerate(starts)]
        return torch.cat(parts)

    @cached_property
    def _axes(self) -> tuple[Tensor, ...]:
        """The columns of `index`. Rows are picked by `index_select`, ten times as fast as `[]`."""
        return tuple(self.index.mT.contiguous().unbind(0))

    @cached_property
    def scale(self) -> Float[Tensor, " C"]:
        """The root of how many of the d^n entries each coordinate stands for."""
        return self._roots.to(self.dtype)

    @cached_property
    def _roots(self) -> Float[Tensor, " C"]:
        repeats = torch.ones(self.dim, dtype=torch.int64, device=self.device)
        run = repeats.clone()
        for before, after in pairwise(self.index.unbind(-1)):
            run = torch.where(before == after, run + 1, 1)
            repeats *= run  # after a run of length l this has gained l!
        return (math.factorial(self.order) / repeats.double()).sqrt()

    def to(self, dtype: torch.dtype) -> "SymmetricSpace":
        """The same space for other numbers. It shares the tables, which take a while to make."""
        other = replace(self, dtype=dtype)
        vars(other).update({name: getattr(self, name) for name in _TABLES})
        if self.order > 1:
            vars(other)["lower"] = self.lower.to(dtype)
        return other

    @cached_property
    def lower(self) -> "SymmetricSpace":
        """The space of one order less."""
        return SymmetricSpace(self.d, self.order - 1, self.dtype, self.device)

    @cached_property
    def grown(self) -> Int[Tensor, "d c"]:
        """The coordinate whose multi-index is i together with that of `lower`'s coordinate."""
        if self.order == 1:
            return torch.arange(self.d, device=self.device).unsqueeze(-1)
        other = self.lower.index.expand(self.d, -1, -1)
        first = (
            torch.arange(self.d, device=self.device).view(-1, 1, 1).expand(-1, other.shape[1], 1)
        )
        return self.locate(torch.cat([first, other], dim=-1))

    def locate(self, index: Int[Tensor, "*batch n"]) -> Int[Tensor, "*batch"]:
        """The coordinate of each multi-index, sorted or not."""
        weights = self.d ** torch.arange(self.order - 1, -1, -1, device=self.device)
        codes = (self.index * weights).sum(-1)
        return torch.searchsorted(codes, (index.sort(-1).values * weights).sum(-1))

    @cached_property
    def entries(self) -> Int[Tensor, " C"]:
        """Where, among the d^n entries in row-major order, each coordinate's own entry lies."""
        weights = self.d ** torch.arange(self.order - 1, -1, -1, device=self.device)
        return (self.index * weights).sum(-1)

    def power(self, x: Float[Tensor, "d b"]) -> Float[Tensor, "C b"]:
        """Coordinates of the n-fold outer power of each column; its norm is that column's to n."""
        return self.monomials(x).mul_(self.scale.unsqueeze(-1))

    def monomials(self, x: Float[Tensor, "d b"]) -> Float[Tensor, "C b"]:
        """The distinct entries of those powers: coordinates without `scale`."""
        first, *others = self._axes
        found = x.index_select(0, first)
        for axis in others:
            found *= x.index_select(0, axis)
        return found

    def contract(
        self, entries: Float[Tensor, "C b"], x: Float[Tensor, "d b"], axes: int = 1
    ) -> Float[Tensor, "c b"]:
        """Each tensor contracted with its column of `x` along all axes but `axes`.

        Args:
            entries: Distinct entries: coordinates over `scale`.
            x: One column for each tensor.
            axes: How many to leave.

        Returns:
            The distinct entries of what is left: the vector itself for `axes=1`.
        """
        space, found = self, entries
        while space.order > axes:
            grown = space.grown
            held = found.index_select(0, grown.reshape(-1)).view(*grown.shape, -1)
            found = held.mul_(x.unsqueeze(1)).sum(0)
            space = space.lower
        return found

    def contract_to_matrices(
        self, entries: Float[Tensor, "C b"], x: Float[Tensor, "d b"]
    ) -> Float[Tensor, "b d d"]:
        """Each tensor contracted with its column of `x` along all axes but two."""
        space = self
        while space.order > 2:
            space = space.lower
        found = self.contract(entries, x, axes=2)
        found = found.index_select(0, space.grown.reshape(-1))
        return found.view(self.d, self.d, -1).permute(2, 0, 1)

    def opened(self, basis: Float[Tensor, "C k"]) -> Float[Tensor, "c d k"]:
        """`basis` as a linear map on powers of order n - 1: a d x k matrix from each.

        `opened(V)` contracted with `lower.power(x)` along its first axis is V contracted with x
        along all axes but one. Order 2 and above.
        """
        held = (basis / self.scale.unsqueeze(-1)).index_select(0, self.grown.mT.reshape(-1))
        held = held.view(self.lower.dim, self.d, -1)
        return held.mul_(self.lower.scale.view(-1, 1, 1))

    def induced(self, A: Float[Tensor, "d l"]) -> Float[Tensor, "C L"]:
        """The linear map that A induces on symmetric tensors: (A x ... x A) in coordinates.

        Its columns are an orthonormal basis of the symmetric tensors over A's range where A's
        columns are orthonormal; `induced(A) @ small.power(y) = power(A @ y)`, `small` being the
        space of this order over R^l.
        """
        small = SymmetricSpace(A.shape[1], self.order, self.dtype, self.device)
        found = A.new_zeros(self.dim, small.dim)
        for order in permutations(range(self.order)):
            term = A[self.index[:, 0]][:, small.index[:, order[0]]]
            for row, column in enumerate(order[1:], start=1):
                term = term * A[self.index[:, row]][:, small.index[:, column]]
            found += term
        return found.mul_(self.scale.unsqueeze(-1) / math.factorial(self.order)).mul_(small.scale)


def flatten_symmetric(
    tensor: Tensor, rows: SymmetricSpace, columns: SymmetricSpace
) -> Float[Tensor, "C c"]:
    """A symmetric tensor of order n + n' as the map between both spaces' coordinates.

    It has the singular values of the d^n x d^n' flattening, at (n! n'!) times less memory.

    Args:
        tensor: With `rows.order + columns.order` axes of length d.
        rows: Symmetric tensors of order n.
        columns: Symmetric tensors of order n'.
    """
    flat = tensor.reshape(rows.d**rows.order, columns.d**columns.order)
    picked = flat.index_select(0, rows.entries).index_select(1, columns.entries).to(rows.dtype)
    return picked.mul_(rows.scale.unsqueeze(-1)).mul_(columns.scale)


def unflatten_symmetric(
    M: Float[Tensor, "C c"], rows: SymmetricSpace, columns: SymmetricSpace
) -> Tensor:
    """All entries of the tensor whose flattening in coordinates is M; `flatten_symmetric` undone.

    Args:
        M: The flattening of a symmetric tensor.
        rows: Its left space.
        columns: Its right space.
    """
    entries = M / rows.scale.unsqueeze(-1) / columns.scale
    places = []
    for space in (rows, columns):
        axis = torch.arange(space.d, device=M.device)
        every = torch.cartesian_prod(*[axis] * space.order).reshape(-1, space.order)
        places.append(space.locate(every))
    return entries[places[0]][:, places[1]].reshape([rows.d] * (rows.order + columns.order))


def asymmetry(tensor: Tensor) -> float:
    """The largest difference between an entry and one of a permuted index.

    Two permutations generate all: the exchange of the first two axes, and the cycle.
    """
    found = 0.0
    if tensor.ndim < 2:
        return found
    # A few slices at a time: differences of the whole tensor are temporaries of its size.
    few = max(1, _ENTRIES * len(tensor) // max(tensor.numel(), 1))
    others = tensor.transpose(0, 1), tensor.movedim(-1, 0)
    for start in range(0, len(tensor), few):
        part = tensor[start : start + few]
        for other in (whole[start : start + few] for whole in others[: tensor.ndim - 1]):
            low, high = (part - other).aminmax() if part.numel() else (part.sum(), part.sum())
            found = max(found, -float(low), float(high))
    return found


def symmetrize(tensor: Tensor) -> Tensor:
    """The symmetric tensor nearest to `tensor`: the mean over all permutations of its axes.

    Done as a mean over the places of one axis after the other: m (m - 1) / 2 additions, not m!.
    """
    found = tensor
    for axes in range(2, tensor.ndim + 1):
        # A mean over where the last of these axes is put, of what is symmetric in the others.
        total = found.clone()
        for place in range(axes - 1):
            total += found.movedim(axes - 1, place)
        found = total / axes
    return found
