"""What the updates of one matrix have in common, from Gram matrices of its shorter side.

Singular values and the vectors of the shorter side are the eigenvalues and eigenvectors of one
Gram matrix, summed in float64 over rows. No update is decomposed itself, and where matrices are
large no update is in memory as a whole.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from spanwise.linalg.thin import gram, rank_tolerance, squared_noise
from spanwise.merging._methods._spectral import LowRank, factors
from spanwise.merging._spectra import SHARE_LOST, Spectrum, of_values, size_for
from spanwise.merging._work import Work, row_blocks

HELD = 2**28
"""Bytes up to which all updates of a matrix stay in memory; beyond, they are read again."""

BLOCK = 2**22
"""Elements of an update that are looked at together, where not all of it is in memory."""

Rows = slice | None


class Updates(ABC):
    """The updates of one matrix, T of them, each turned so that it is not wider than tall.

    Attributes:
        count: T.
        shape: (m, n) as stored.
        dtype: What is computed in.
        blocks: Rows to look at one after the other.
    """

    count: int
    shape: tuple[int, int]
    dtype: torch.dtype
    blocks: Sequence[Rows]

    @abstractmethod
    def read(self, index: int, rows: Rows) -> Float[Tensor, "long short"]:
        """Some rows of one update, turned; not to be overwritten."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One matrix in T models; i and j run over models, shares are of energy ||D_i||_F^2."""

    shape: tuple[int, int]
    spectra: Sequence[Spectrum]
    total: Spectrum
    """Of M, the sum of all updates."""
    sizes: Sequence[int]
    """k_j: how many leading directions of each update are compared."""
    inner: Float[Tensor, "T T"]
    """<D_i, D_j>."""
    left: Float[Tensor, "T T"]
    """`left[i, j]`: share of D_i in the leading left directions of D_j."""
    right: Float[Tensor, "T T"]
    """The same with right directions."""
    aligned: Float[Tensor, "T T+1"]
    """Squared alignment ratio of D_i with D_j; the last column: with M."""
    aligned_sizes: Sequence[int]
    """How many left directions of D_j, and of M, the ratio takes."""


def matrices(work: Work) -> Iterator[tuple[str, Updates]]:
    """(Name, updates) of a tensor: one matrix, or one for each of stacked experts.

    LoRA updates come in the coordinates of their factors, `LowRank`, where all of them together
    have a smaller rank than the matrix.

    Raises:
        ValueError: If an update is not finite.
    """
    if len(work.shape) == 3:
        for expert in range(work.shape[0]):
            yield f"{work.name}[{expert}]", Dense(work, expert)
        return
    low = factors(work)
    yield work.name, Dense(work) if low is None else Cores(LowRank(work, low))


def touched(work: Work) -> bool:
    """Whether any model may have changed a tensor, without reading it."""
    return any(source.changes(work.name) for source in work.inputs.models)


class Dense(Updates):
    """Updates read from models, held where all of them are small."""

    def __init__(self, work: Work, expert: int | None = None) -> None:
        m, n = work.shape[-2:]
        self.count, self.shape, self.dtype = work.count, (m, n), work.dtype
        self._work = work if expert is None else replace(work, rows=slice(expert, expert + 1))
        self._base: tuple[Rows, Tensor] | None = None
        self._held: list[Tensor] = []
        self.blocks = [None]
        if work.count * m * n * work.dtype.itemsize <= HELD:
            self._held = [self._read(index, None) for index in range(work.count)]
            self._base = None
        elif expert is None and m >= n:
            self.blocks = row_blocks((m, n), BLOCK) or [None]

    @override
    def read(self, index: int, rows: Rows) -> Float[Tensor, "long short"]:
        return self._held[index] if self._held else self._read(index, rows)

    def _read(self, index: int, rows: Rows) -> Tensor:
        work = self._work if rows is None else replace(self._work, rows=rows)
        if self._base is None or self._base[0] != rows:
            self._base = (rows, work.base())
        update = work.update(index, self._base[1]).reshape(-1, self.shape[1])
        return update if self.shape[0] >= self.shape[1] else update.mT


class Cores(Updates):
    """Updates of LoRA adapters in the coordinates of their factors: small, and exact."""

    def __init__(self, low: LowRank) -> None:
        self.count, self.shape, self.dtype = low.count, low.shape, low.left.dtype
        self.blocks = [None]
        wide = low.shape[0] < low.shape[1]
        self._held = [core.mT if wide else core for core in low]

    @override
    def read(self, index: int, rows: Rows) -> Float[Tensor, "long short"]:
        del rows
        return self._held[index]


def measure(updates: Updates, size_of: Callable[[Tensor], int]) -> Measured | None:
    """Compare all updates of a matrix with each other and with their sum.

    With D = A diag(s) B^T, where D is not wider than tall, B and s come from D^T D. The energy of
    another update X inside a direction b of the shorter side is ||X b||^2, and inside one of the
    longer side, a = D b / s, it is ||a^T X||^2.

    Args:
        updates: D_t.
        size_of: From singular values, largest first, how many directions to compare.

    Returns:
        None where no model changed the matrix.
    """
    count = updates.count
    inner = inner_products(updates)
    energy = inner.diagonal()
    if not bool(energy.any()):
        return None
    tall = updates.shape[0] >= updates.shape[1]
    shares = torch.zeros(3, count, count + 1, dtype=torch.float64)
    left, right, aligned = shares
    spectra: list[Spectrum] = []
    sizes: list[int] = []
    aligned_sizes: list[int] = []
    for j in range(count + 1):
        s, basis = _leading(updates, j)
        spectra.append(of_values(s))
        # Of the sum only the alignment is asked for, which looks at left directions.
        k = size_of(s) if j < count and len(s) else 0
        wide_k = size_for(s, SHARE_LOST)
        sizes.append(k)
        aligned_sizes.append(wide_k)
        if not len(s):
            continue
        most = max(k, wide_k)
        long, short = _energies(updates, j, s, basis, *((most, k) if tall else (k, most)))
        by_left, by_right = (long, short) if tall else (short, long)
        if j < count:
            by_left[j], by_right[j] = s[:most].square(), s[:k].square()
        left[:, j] = by_left[:, :k].sum(1)
        right[:, j] = by_right[:, :k].sum(1)
        aligned[:, j] = by_left[:, :wide_k].sum(1)
    shares /= torch.where(energy > 0, energy, 1).unsqueeze(-1)
    shares.clamp_(max=1)
    return Measured(
        shape=updates.shape, spectra=spectra[:count], total=spectra[count], sizes=sizes[:count],
        inner=inner, left=left[:, :count], right=right[:, :count], aligned=aligned,
        aligned_sizes=aligned_sizes,
    )  # fmt: skip


def inner_products(updates: Updates) -> Float[Tensor, "T T"]:
    """<D_i, D_j> for all pairs, in float64."""
    found = torch.zeros(updates.count, updates.count, dtype=torch.float64)
    for rows in updates.blocks:
        # Large wide matrices are one block: then two updates are in memory, not all of them.
        for i in range(updates.count):
            own = updates.read(i, rows)
            for j in range(i + 1):
                other = own if i == j else updates.read(j, rows)
                found[i, j] += float((own * other).sum(dtype=torch.float64))
    return found + found.tril(-1).mT


def bytes_of(work: Work) -> int:
    """Peak memory of comparing the updates of one tensor, estimated beforehand."""
    if len(work.shape) < 2:
        return 4 * math.prod(work.shape) * work.dtype.itemsize
    short, whole = min(work.shape[-2:]), math.prod(work.shape[-2:])
    size = work.dtype.itemsize
    held = work.count * whole * size
    if held > HELD:
        blocked = work.shape[-2] >= work.shape[-1] and len(work.shape) == 2
        held = 4 * (BLOCK if blocked else whole) * size
    # Gram matrix, eigenvectors and LAPACK's own copies; projected updates.
    squares = 6 * 8 * short**2 + min(HELD, work.count * short**2 * size)
    return held + squares + 2 * min(whole, BLOCK) * size


def _read(updates: Updates, index: int, rows: Rows) -> Tensor:
    """An update, or the sum of all for an index beyond them."""
    if index < updates.count:
        return updates.read(index, rows)
    total = updates.read(0, rows).clone()
    for other in range(1, updates.count):
        total += updates.read(other, rows)
    return total


def _leading(updates: Updates, index: int) -> tuple[Tensor, Tensor]:
    """Singular values that are more than rounding, and the vectors of the shorter side."""
    found: Tensor | None = None
    for rows in updates.blocks:
        block = _read(updates, index, rows)
        part = gram(block, block.new_ones(1, 1))
        found = part if found is None else found.add_(part)
    assert found is not None  # there is at least one block
    values, vectors = torch.linalg.eigh(found)
    s = values.flip(-1).clamp_(min=0).sqrt_()
    # The Gram matrix squares: what it shows below this is its own rounding.
    share = max(rank_tolerance(updates.shape, updates.dtype), squared_noise(len(s)))
    kept = int((s > share * s[:1]).sum())
    return s[:kept].cpu(), vectors.flip(-1)[:, :kept]


def _energies(
    updates: Updates, index: int, s: Tensor, basis: Tensor, long_k: int, short_k: int
) -> tuple[Float[Tensor, "T p"], Float[Tensor, "T q"]]:
    """Energy of every other update in each leading direction of one, by side.

    Args:
        updates: D_t.
        index: Whose directions; beyond the models, those of the sum.
        s: Its singular values.
        basis: Its vectors of the shorter side.
        long_k: How many directions of the longer side.
        short_k: How many of the shorter one.
    """
    count, width = updates.count, basis.shape[0]
    long = torch.zeros(count, long_k, dtype=torch.float64)
    short = torch.zeros(count, short_k, dtype=torch.float64)
    turn = (basis[:, :long_k] / s[:long_k].to(basis)).to(updates.dtype)
    near = basis[:, :short_k].to(updates.dtype)
    others = [i for i in range(count) if i != index]
    together = max(1, HELD // max(1, long_k * width * updates.dtype.itemsize))
    for first in range(0, len(others), together):
        group = others[first : first + together]
        sums = torch.zeros(len(group), long_k, width, dtype=turn.dtype, device=turn.device)
        for rows in updates.blocks:
            far = _read(updates, index, rows) @ turn if long_k else None
            for place, i in enumerate(group):
                update = updates.read(i, rows)
                if far is not None:
                    sums[place].addmm_(far.mT, update)
                short[i] += _squares(update @ near, 0)
        for place, i in enumerate(group):
            long[i] = _squares(sums[place], 1)
    return long, short


def _squares(x: Tensor, dim: int) -> Tensor:
    """Squared norms along one axis, which float32 could not hold for tiny updates."""
    return torch.linalg.vector_norm(x, dim=dim, dtype=torch.float64).square().cpu()
