"""Coordinates that all updates of a matrix share, from one decomposition if memory allows."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spanwise.linalg import leading_triples
from spanwise.linalg.thin import rank_tolerance, resolved
from spanwise.merging._methods._spectral import factors
from spanwise.merging._work import Work

HELD = 2**30
"""Bytes of decompositions that are kept from pass to pass; what exceeds them is made anew."""


@dataclass(frozen=True)
class Shared:
    """[D_1 .. D_T] = U S V^T of a matrix, m x T n, as far as it is needed."""

    rank: int
    """R, how many directions there are."""
    of: Callable[[int], Tensor]
    """One update's coordinates Q_t = U^T D_t, (R, n), a tensor of its own."""
    lift: Callable[[Tensor], Tensor]
    """U Q."""
    nbytes: int


class Memory:
    """Decompositions by matrix: TIES looks at all coordinates several times."""

    def __init__(self) -> None:
        self._held: dict[str, Shared] = {}
        self._nbytes = 0
        self._last: tuple[str, Shared] | None = None

    def of(self, work: Work) -> Shared:
        """What `decompose` gives, or has given."""
        last = self._last
        found = self._held.get(work.name)
        if found is None and last is not None and last[0] == work.name:
            found = last[1]
        if found is None:
            found = decompose(work)
            if self._nbytes + found.nbytes <= HELD:
                self._held[work.name] = found
                self._nbytes += found.nbytes
            else:
                self._last = (work.name, found)
        return found

    def drop(self, name: str) -> None:
        """Forget a matrix that is done with."""
        found = self._held.pop(name, None)
        if found is not None:
            self._nbytes -= found.nbytes


def decompose(work: Work) -> Shared:
    """The coordinates of a matrix's updates."""
    low = factors(work)
    if low is not None:
        return _of_factors(low)
    m, n = work.shape
    found = _by_rows(work) if m <= work.count * n else _by_columns(work)
    if found is not None:
        return found
    whole = torch.cat(list(work.updates()), dim=1)
    return _with_basis(work, leading_triples(whole, min(whole.shape)).U)


def _of_factors(low: list[tuple[Tensor, Tensor]]) -> Shared:
    """D_t = L_t R_t: with [L_1 .. L_T] = P A only P^T D_t, which has few rows, is decomposed."""
    left, a = torch.linalg.qr(torch.cat([x for x, _ in low], dim=1))
    cores = a.split([x.shape[1] for x, _ in low], dim=1)
    rows = [core @ right for core, (_, right) in zip(cores, low, strict=True)]
    inside = leading_triples(torch.cat(rows, dim=1), left.shape[1]).U
    return Shared(
        rank=inside.shape[1],
        of=lambda index: inside.mT @ rows[index],
        lift=lambda q: left @ (inside @ q),
        nbytes=left.nbytes + sum(x.nbytes for x in rows),
    )


def _with_basis(work: Work, basis: Tensor) -> Shared:
    return Shared(
        rank=basis.shape[1],
        of=lambda index: basis.mT @ work.update(index),
        lift=lambda q: basis @ q,
        nbytes=basis.nbytes,
    )


def _by_rows(work: Work) -> Shared | None:
    """U from sum D_t D_t^T, with one update in memory; None where that is not accurate."""
    m = work.shape[0]
    total = torch.zeros(m, m, dtype=torch.float64, device=work.device)
    for update in work.updates():
        wide = update.double()
        total.addmm_(wide, wide.mT)
    found = _leading(total, work)
    return None if found is None else _with_basis(work, found[1].to(work.dtype))


def _by_columns(work: Work) -> Shared | None:
    """V and S from [D_1 .. D_T]^T [D_1 .. D_T], for tall matrices: U itself is never formed.

    The coordinates are S V^T, and U Q = [D_1 .. D_T] (V S^-1 Q), some rows at a time.
    """
    n = work.shape[1]
    size = work.count * n
    total = torch.zeros(size, size, dtype=torch.float64, device=work.device)
    for part in work.parts():
        block = torch.cat([update.double() for update in part.updates()], dim=1)
        total.addmm_(block.mT, block)
    found = _leading(total, work)
    if found is None:
        return None
    s, v = found

    def lift(q: Tensor) -> Tensor:
        # In float64: 1 / s has entries as large as the condition number.
        factor = (v / s) @ q.double()
        lifted = torch.empty(work.shape, dtype=work.dtype, device=work.device)
        for part in work.parts():
            block = torch.cat([update.double() for update in part.updates()], dim=1)
            lifted[slice(None) if part.rows is None else part.rows] = (block @ factor).to(q.dtype)
        return lifted

    return Shared(
        rank=len(s),
        of=lambda index: (v[index * n : (index + 1) * n] * s).mT.to(work.dtype).contiguous(),
        lift=lift,
        nbytes=v.nbytes,
    )


def _leading(gram: Tensor, work: Work) -> tuple[Tensor, Tensor] | None:
    """Singular values and vectors from a Gram matrix of all updates, in float64."""
    values, vectors = torch.linalg.eigh(gram)
    s = values.flip(-1).clamp_(min=0).sqrt_()
    rtol = rank_tolerance((work.shape[0], work.count * work.shape[1]), work.dtype)
    if not resolved(s, rtol, work.dtype):
        return None
    kept = int((s > rtol * s[0]).sum())
    return s[:kept], vectors.flip(-1)[:, :kept]
