"""KnOTS: updates are merged in coordinates that they share."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import override

from spanwise.linalg import leading_triples
from spanwise.linalg.thin import rank_tolerance, resolved
from spanwise.merging._methods._method import Method
from spanwise.merging._methods._spectral import factors, in_parts, squareness
from spanwise.merging._methods.averages import TaskArithmetic
from spanwise.merging._methods.dare import DareTies
from spanwise.merging._methods.ties import Ties
from spanwise.merging._work import Work

Inner = Literal["mean", "ties", "dare_ties"]


@dataclass(frozen=True, kw_only=True)
class Knots(Method):
    """Merge the updates' coordinates in a basis of all of them; Stoica et al., arXiv 2410.19735.

    With the singular value decomposition [D_1 .. D_T] = U S V^T each update is U Q_t, and the Q_t
    are merged entry by entry. Linear merges are not changed by it; TIES is, because what competes
    for an entry is then the same direction in all models. Everything that is no matrix is averaged.

    Args:
        inner: How coordinates are merged: `mean`, `ties` or `dare_ties`, each with its own
            defaults; TIES ranks the coordinates of all matrices together.
    """

    per_model: ClassVar[Mapping[str, float]] = {"weight": 1.0, "density": 0.2}
    reference: ClassVar[str] = "https://arxiv.org/abs/2410.19735"

    inner: Inner = "ties"

    def __post_init__(self) -> None:
        if self.inner not in _INNER:
            raise ValueError(f"inner must be one of {', '.join(_INNER)}, got {self.inner!r}.")

    @override
    def begin(self, names: Sequence[str], work_of: Callable[[str], Work]) -> Method:
        method, memory = _INNER[self.inner](), _Memory()
        works = {name: work for name in names if _is_matrix(work := work_of(name))}
        if self.inner == "ties" and works:
            # Only the ranks are kept; decompositions are made anew when they are needed.
            held = {name: coordinates(work, memory) for name, work in works.items()}
            method = method.begin(list(held), lambda name: held[name])
        return _Begun(inner=self.inner, method=method)

    @override
    def merge_tensor(self, work: Work) -> Tensor:
        raise AssertionError("begin() chooses how coordinates are merged")

    @override
    def copies(self, work: Work) -> float:
        return 12.0 + 10.0 * squareness(work)

    @override
    def check(self, values: Mapping[str, list[float]]) -> None:
        _INNER[self.inner]().check(values)
        if self.inner == "mean" and any(v != self.per_model["density"] for v in values["density"]):
            raise ValueError(
                'density is for inner="ties" and "dare_ties"; a mean keeps everything.'
            )


@dataclass(frozen=True, kw_only=True)
class _Begun(Knots):
    """KnOTS once the inner method has seen all coordinates."""

    method: Method

    @override
    def begin(self, names: Sequence[str], work_of: Callable[[str], Work]) -> Method:
        return self

    @override
    def merge_tensor(self, work: Work) -> Tensor:
        if not _is_matrix(work):
            return in_parts(work)
        memory = _Memory()
        inner = coordinates(work, memory)
        if not math.prod(inner.shape):  # nothing was trained
            return torch.zeros(work.shape, dtype=work.dtype, device=work.device)
        merged = self.method.merge_tensor(inner)
        return memory.of(work).basis @ merged


def _average() -> Method:
    return TaskArithmetic(normalize=True)


_INNER: Mapping[str, Callable[[], Method]] = {
    "mean": _average,
    "ties": Ties,
    "dare_ties": DareTies,
}


@dataclass(frozen=True)
class Shared:
    """Updates in coordinates: D_t = basis @ of(t)."""

    basis: Tensor
    """U (m, R), orthonormal."""
    of: Callable[[int], Tensor]
    """One model's coordinates (R, n)."""


class _Memory:
    """The last matrix's decomposition: a pass asks for one matrix several times in turn."""

    def __init__(self) -> None:
        self._held: tuple[str, Shared] | None = None

    def of(self, work: Work) -> Shared:
        if self._held is None or self._held[0] != work.name:
            self._held = (work.name, decompose(work))
        return self._held[1]


@dataclass(frozen=True, kw_only=True)
class Coordinates(Work):
    """A matrix whose updates are coordinates, for methods that merge entry by entry."""

    whole: Work
    memory: _Memory = field(repr=False)

    @override
    def base(self) -> Tensor:
        return torch.zeros(0, dtype=self.dtype, device=self.device)

    @override
    def update(self, index: int, base: Tensor | None = None) -> Tensor:
        found = self.memory.of(self.whole).of(index)
        return found if self.rows is None else found[self.rows].clone()

    @override
    def updates(self) -> Iterator[Tensor]:
        yield from (self.update(index) for index in range(self.count))

    @override
    def parts(self) -> list[Work]:
        return [self]  # any row of coordinates takes all rows of the update


def coordinates(work: Work, memory: _Memory) -> Work:
    """The same matrix in coordinates of shape (R, n)."""
    own: dict[str, Any] = {name: getattr(work, name) for name in work.__dataclass_fields__}
    own |= {"shape": (memory.of(work).basis.shape[1], work.shape[1]), "keep": None}
    return Coordinates(**own, whole=work, memory=memory)


def decompose(work: Work) -> Shared:
    """Left singular vectors of [D_1 .. D_T], and each D_t in their coordinates, U^T D_t."""
    low = factors(work)
    if low is not None:
        # D_t = L_t R_t: with [L_1 .. L_T] = P A only P^T D_t, which has few rows, is decomposed.
        left, a = torch.linalg.qr(torch.cat([x for x, _ in low], dim=1))
        cores = a.split([x.shape[1] for x, _ in low], dim=1)
        rows = [core @ right for core, (_, right) in zip(cores, low, strict=True)]
        inside = leading_triples(torch.cat(rows, dim=1), left.shape[1]).U
        return Shared(left @ inside, lambda index: inside.mT @ rows[index])
    basis = _from_gram(work) if work.shape[0] <= work.count * work.shape[1] else None
    if basis is None:
        whole = torch.cat(list(work.updates()), dim=1)
        basis = leading_triples(whole, min(whole.shape)).U
    found = basis
    return Shared(found, lambda index: found.mT @ work.update(index))


def _from_gram(work: Work) -> Tensor | None:
    """From sum D_t D_t^T, so that no two updates are in memory; None where it is not accurate."""
    total = torch.zeros(work.shape[0], work.shape[0], dtype=torch.float64, device=work.device)
    for update in work.updates():
        wide = update.double()
        total.addmm_(wide, wide.mT)
    values, vectors = torch.linalg.eigh(total)
    s = values.flip(-1).clamp_(min=0).sqrt_()
    rtol = rank_tolerance((work.shape[0], work.count * work.shape[1]), work.dtype)
    if not resolved(s, rtol, work.dtype):
        return None
    kept = int((s > rtol * s[0]).sum())
    return vectors.flip(-1)[:, :kept].to(work.dtype)


def _is_matrix(work: Work) -> bool:
    return work.matrix and len(work.shape) == 2 and math.prod(work.shape) > 0
