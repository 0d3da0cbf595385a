"""Which layers read the same activation: told by the identity of the tensor object."""

import weakref
from collections.abc import Hashable
from dataclasses import dataclass

from torch import Tensor

from spanwise.atlas._moments import Moments


@dataclass(eq=False)
class _Read:
    tensor: "weakref.ref[Tensor]"
    version: int
    view: Hashable
    readers: set[Hashable]
    moments: Moments


class Reads:
    """Sums by the set of layers that read one tensor.

    A tensor's readers are known for certain only when it dies, so its moments wait until then
    and are added to the sum of exactly that set. A layer whose tensors have had different
    readers (a skipped branch, a weight used twice) is the sum over its sets.
    """

    def __init__(self) -> None:
        self._open: list[_Read] = []
        self._sums: dict[frozenset[Hashable], Moments] = {}

    def same(self, tensor: Tensor, view: Hashable, reader: Hashable) -> bool:
        """Note that `reader` sees `tensor`; whether it has been counted already."""
        self._close(dead_only=True)
        for read in self._open:
            if (
                read.tensor() is tensor
                and read.version == _version(tensor)
                and read.view == view
                # The same layer called twice on one tensor has seen it twice.
                and reader not in read.readers
            ):
                read.readers.add(reader)
                return True
        return False

    def new(self, tensor: Tensor, view: Hashable, reader: Hashable, moments: Moments) -> None:
        """Count a tensor's moments for the first layer that reads it."""
        self._open.append(_Read(weakref.ref(tensor), _version(tensor), view, {reader}, moments))

    def flush(self) -> None:
        """The end of a forward pass: no tensor of it will be read again."""
        self._close(dead_only=False)

    def moments(self, reader: Hashable) -> tuple[frozenset[frozenset[Hashable]], Moments | None]:
        """All that `reader` saw, and a key that is equal for layers that saw the same."""
        sets = frozenset(readers for readers in self._sums if reader in readers)
        found = [self._sums[readers] for readers in self._sums if readers in sets]
        if len(found) < 2:
            return sets, found[0] if found else None
        total = found[0].copy()
        for moments in found[1:]:
            total.add(moments)
        return sets, total

    def _close(self, *, dead_only: bool) -> None:
        waiting = []
        for read in self._open:
            if dead_only and read.tensor() is not None:
                waiting.append(read)
                continue
            readers = frozenset(read.readers)
            if readers in self._sums:
                self._sums[readers].add(read.moments)
            else:
                self._sums[readers] = read.moments
        self._open = waiting


def _version(tensor: Tensor) -> int:
    # Tensors made under inference_mode do not count their changes.
    return 0 if tensor.is_inference() else tensor._version
