"""KnOTS: updates are merged in coordinates that they share."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import override

from spanwise.merging._methods._method import Method
from spanwise.merging._methods._shared import Memory
from spanwise.merging._methods._spectral import factors, squareness
from spanwise.merging._methods.averages import TaskArithmetic, mean
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
        method, memory = _INNER[self.inner](), Memory()
        works = {name: work for name in names if _is_matrix(work := work_of(name))}
        if self.inner == "ties" and works:
            held = {name: coordinates(work, memory) for name, work in works.items()}
            method = method.begin(list(held), lambda name: held[name])
        return _Begun(inner=self.inner, method=method, memory=memory)

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
    memory: Memory

    @override
    def begin(self, names: Sequence[str], work_of: Callable[[str], Work]) -> Method:
        return self

    @override
    def merge_tensor(self, work: Work) -> Tensor:
        if not _is_matrix(work):
            return mean(work)
        if self.inner == "mean" and factors(work) is None:  # U U^T D_t = D_t
            return self.method.merge_tensor(work)
        shared = self.memory.of(work)
        if not shared.rank:  # nothing was trained
            return torch.zeros(work.shape, dtype=work.dtype, device=work.device)
        found = shared.lift(self.method.merge_tensor(coordinates(work, self.memory)))
        self.memory.drop(work.name)
        return found


def _average() -> Method:
    return TaskArithmetic(normalize=True)


_INNER: Mapping[str, Callable[[], Method]] = {
    "mean": _average,
    "ties": Ties,
    "dare_ties": DareTies,
}


@dataclass(frozen=True, kw_only=True)
class Coordinates(Work):
    """A matrix whose updates are coordinates, for methods that merge entry by entry."""

    whole: Work
    memory: Memory = field(repr=False)

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
    def stream(
        self, base: Tensor | None = None, models: Sequence[int] | None = None
    ) -> Iterator[Tensor]:
        yield from (self.update(index) for index in models or range(self.count))

    @override
    def parts(self) -> list[Work]:
        return [self]  # any row of coordinates takes all rows of the update


def coordinates(work: Work, memory: Memory) -> Work:
    """The same matrix in coordinates of shape (R, n)."""
    own: dict[str, Any] = {name: getattr(work, name) for name in work.__dataclass_fields__}
    own |= {"shape": (memory.of(work).rank, work.shape[1]), "keep": None}
    return Coordinates(**own, whole=work, memory=memory)


def _is_matrix(work: Work) -> bool:
    return work.matrix and len(work.shape) == 2 and math.prod(work.shape) > 0
