"""Sums of statistics that are made when they are asked for, one tensor at a time."""

import functools
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from typing_extensions import override

from spanwise.io import TensorReader
from spanwise.io._reader import tensor_bytes


class Added(TensorReader):
    """Tensors that are the sum of one or several, made when they are asked for.

    Args:
        parts: Name -> what holds its terms.
    """

    def __init__(self, parts: Mapping[str, Sequence[TensorReader]]) -> None:
        self._parts = dict(parts)
        self.metadata = {}

    def __getitem__(self, name: str) -> Tensor:
        first, *more = self._parts[name]
        return sum((part[name] for part in more), start=first[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    @override
    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without making it."""
        return self._parts[name][0].shape(name)

    def dtype(self, name: str) -> torch.dtype:
        """Dtype of a tensor, without making it."""
        first, *more = (part.dtype(name) for part in self._parts[name])
        return functools.reduce(torch.promote_types, more, first)

    def rows(self, name: str, start: int, stop: int, into: Tensor | None = None) -> Tensor:
        """Some rows of a tensor's first axis."""
        del into
        first, *more = (part.rows(name, start, stop) for part in self._parts[name])
        return sum(more, start=first)

    def _pieces(self, name: str) -> Iterator[memoryview]:
        yield tensor_bytes(self[name])


class Stored(Mapping[str, Tensor]):
    """Sums as a file holds them, one at a time."""

    def __init__(self, sums: TensorReader, keys: Sequence[str], dtype: torch.dtype | None) -> None:
        self._sums, self._keys, self._dtype = sums, keys, dtype

    def __getitem__(self, key: str) -> Tensor:
        return self._sums[key].to("cpu", self._dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)
