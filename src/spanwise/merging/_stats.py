"""Statistics of one model's data: sums and counts by tensor, in memory or in a safetensors file.

A file holds, for tensors by name, `{name}::gram` (sum of x x^T over tokens, x the map's input),
`{name}::gradient_gram` (sum of g g^T, g the gradient at its output), both as packed upper
triangles, `{name}::diag_fisher` (sum over examples of squared gradients, in the tensor's own
shape), and for vectors `{name}::block_fisher` (sum of outer products, a triangle). Counts and
layouts are in the metadata. Files of the same model add up.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from spanwise.io import TensorReader, open_tensors, save_tensors
from spanwise.layouts import Layout, side_dim
from spanwise.merging._sums import Added, Stored

FORMAT, VERSION = "spanwise-merge-stats", 1
GRAM, GRADIENT_GRAM = "gram", "gradient_gram"
DIAG_FISHER, BLOCK_FISHER = "diag_fisher", "block_fisher"
KINDS = (GRAM, GRADIENT_GRAM, DIAG_FISHER, BLOCK_FISHER)

ASYMMETRY = 1e-4
"""Largest difference from its transpose, relative to the largest entry, of a given matrix."""


@dataclass(frozen=True)
class Entry:
    """What a file says of one tensor beside the sums."""

    layout: Layout
    counts: Mapping[str, int]
    """Kind -> tokens (for the Gram matrices) or examples (for the Fisher matrices)."""
    mark: str | None = None
    """A few digits of the tensor's first row, which tell models apart; None for adapters."""


class TensorStats(Mapping[str, Tensor]):
    """The means of one tensor by kind: whole symmetric matrices, or a diagonal in its shape.

    Raises:
        ValueError: When a mean is asked for, if its count is zero or it is not finite.
    """

    def __init__(self, name: str, entry: Entry, sums: TensorReader) -> None:
        self.name, self.entry, self._sums = name, entry, sums

    @property
    def layout(self) -> Layout:
        """How the tensor stores its linear map."""
        return self.entry.layout

    def __getitem__(self, kind: str) -> Tensor:
        count = self.entry.counts[kind]
        if count < 1:
            raise ValueError(
                f"the {kind} of {self.name!r} counts no data: collect it on at least one example."
            )
        total = self._sums[f"{self.name}::{kind}"]
        if not torch.isfinite(total.sum()):
            raise ValueError(
                f"the {kind} of {self.name!r} holds NaN or infinity: collect it again, in float32."
            )
        mean = total / count
        return mean if kind == DIAG_FISHER else unpacked(mean)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entry.counts)

    @override
    def __contains__(self, kind: object) -> bool:
        return kind in self.entry.counts  # the mixin's would read the sums

    def __len__(self) -> int:
        return len(self.entry.counts)

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raise `ValueError` unless the statistics fit a tensor of this shape."""
        for kind in self:
            held = self._sums.shape(f"{self.name}::{kind}")
            if kind == DIAG_FISHER:
                found, wanted = held, tuple(shape)
            elif kind == BLOCK_FISHER:
                found, wanted = width(held[0]), math.prod(shape)
            else:
                side = "input" if kind == GRAM else "output"
                found, wanted = width(held[0]), side_dim(shape, self.layout, side)
            if found != wanted:
                raise ValueError(
                    f"the {kind} of {self.name!r} is for {found}, but the tensor of shape "
                    f"{tuple(shape)} ({self.layout}) needs {wanted}: it belongs to another model."
                )


class Stats(Mapping[str, TensorStats]):
    """Tensor name -> its means; sums of further data are added with `+`.

    Attributes:
        options: How the sums were collected.
        skipped: Name -> why a tensor has fewer statistics than were asked for.

    Example:
        >>> stats = collect_stats(model, loader) + collect_stats(model, more)
        >>> stats.save("stats.safetensors")
    """

    def __init__(
        self,
        sums: Mapping[str, Tensor],
        entries: Mapping[str, Entry],
        options: Mapping[str, str] | None = None,
        skipped: Mapping[str, str] | None = None,
    ) -> None:
        self._sums, self.entries = open_tensors(sums), dict(entries)
        self.options, self.skipped = dict(options or {}), dict(skipped or {})

    def __getitem__(self, name: str) -> TensorStats:
        return TensorStats(name, self.entries[name], self._sums)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    @override
    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __len__(self) -> int:
        return len(self.entries)

    @classmethod
    def from_means(
        cls,
        means: Mapping[str, Mapping[str, Tensor]],
        count: int = 1,
        layouts: Mapping[str, Layout] | None = None,
    ) -> "Stats":
        """Statistics that were collected by other means.

        Args:
            means: Tensor name -> `{"gram": (n, n), "gradient_gram": (m, m), "diag_fisher":
                the tensor's shape, "block_fisher": (d, d)}`, any of them, m outputs and n inputs,
                d numbers of a vector.
            count: What the means were taken over.
            layouts: How tensors are stored where it is not `(m, n)`; `"transposed"` for Conv1D.

        Raises:
            ValueError: If a kind is unknown, or a matrix is not square, symmetric and finite, or a
                diagonal is negative, or what is made of gradients is all zero.
        """
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}.")
        sums: dict[str, Tensor] = {}
        entries: dict[str, Entry] = {}
        for name, held in means.items():
            layout = (layouts or {}).get(name, "linear")
            if layout not in ("linear", "transposed", "conv"):
                raise ValueError(
                    f"{name!r} is stored as {layout!r}: one Gram is no statistics of it."
                )
            for kind, mean in held.items():
                _check_mean(name, kind, mean)
                flat = mean if kind == DIAG_FISHER else packed((mean + mean.mT) / 2)
                sums[f"{name}::{kind}"] = flat * count
            entries[name] = Entry(layout, dict.fromkeys(held, count))
        return cls(sums, entries)

    def __add__(self, other: "Stats") -> "Stats":
        """The sums of both: of more data, or of other tensors of the same model.

        Tensors are added when they are asked for, so that files larger than memory can be.

        Raises:
            ValueError: If they were collected differently, or on different models.
        """
        for key in self.options.keys() & other.options.keys():
            if self.options[key] != other.options[key]:
                raise ValueError(
                    f"these statistics differ in {key}: {self.options[key]} and "
                    f"{other.options[key]}. Collect them alike."
                )
        entries = {**self.entries, **other.entries}
        sums: dict[str, list[TensorReader]] = {}
        for name in entries:
            mine, theirs = self.entries.get(name), other.entries.get(name)
            if mine is not None and theirs is not None:
                entries[name] = _joined(name, mine, theirs)
            for kind in entries[name].counts:
                key = f"{name}::{kind}"
                sums[key] = [
                    stats._sums
                    for stats, entry in ((self, mine), (other, theirs))
                    if entry is not None and kind in entry.counts
                ]
                if len({part.shape(key) for part in sums[key]}) > 1:
                    raise ValueError(
                        f"the {kind} of {name!r} is of another size in each: they belong to "
                        "different models."
                    )
        skipped = {**self.skipped, **other.skipped}
        return Stats(Added(sums), entries, {**self.options, **other.options}, skipped)

    def total(self, name: str, kind: str) -> Tensor:
        """The sum itself: a packed triangle, or a diagonal in the tensor's shape."""
        return self._sums[f"{name}::{kind}"]

    def digest(self) -> str:
        """What tells these statistics from others without reading them whole."""
        total = hashlib.sha256(json.dumps([self.options, self._rows()]).encode())
        for key in self._keys():
            few = self._sums.rows(key, 0, 1) if self._sums.shape(key) else self._sums[key]
            total.update(few.to("cpu", torch.float32).numpy().tobytes())
        return total.hexdigest()

    def save(self, path: str | Path, dtype: torch.dtype | None = torch.float32) -> Path:
        """Write a safetensors file, whole or not at all.

        Args:
            path: Where to.
            dtype: What sums are stored in; None keeps float64 where they were summed in it.
        """
        metadata = {
            "format": FORMAT,
            "version": str(VERSION),
            "entries": json.dumps(self._rows()),
            "options": json.dumps(self.options),
            "skipped": json.dumps(self.skipped),
        }
        return save_tensors(path, Stored(self._sums, self._keys(), dtype), metadata)

    @classmethod
    def load(cls, path: str | Path) -> "Stats":
        """Open a file; sums are read one at a time, when they are asked for.

        Raises:
            ValueError: If it is no file of statistics, or of another version.
        """
        reader = open_tensors(path)
        metadata = dict(reader.metadata or {})
        if metadata.get("format") != FORMAT or metadata.get("version") != str(VERSION):
            raise ValueError(
                f"{path} holds no statistics for merging (version {VERSION}): collect_stats(model, "
                "dataloader).save(path) writes them."
            )
        entries = {name: Entry(**row) for name, row in json.loads(metadata["entries"]).items()}
        options, skipped = (json.loads(metadata[key]) for key in ("options", "skipped"))
        return cls(reader, entries, options, skipped)

    def _keys(self) -> list[str]:
        return [f"{name}::{kind}" for name, e in self.entries.items() for kind in e.counts]

    def _rows(self) -> dict[str, dict[str, Any]]:
        return {
            name: {"layout": e.layout, "counts": dict(e.counts), "mark": e.mark}
            for name, e in self.entries.items()
        }


def mark_of(tensor: Tensor) -> str:
    """A few digits that tell a tensor's first row, whatever dtype it is held in."""
    row = tensor.detach().reshape(tensor.shape[0] if tensor.ndim else 1, -1)[:1]
    rounded = row.to("cpu", torch.bfloat16).float().contiguous()
    return hashlib.sha256(rounded.numpy().tobytes()).hexdigest()[:12]


def packed(matrix: Tensor) -> Tensor:
    """The upper triangle of a symmetric matrix, row after row."""
    return torch.cat([matrix[i, i:] for i in range(matrix.shape[0])])


def unpacked(triangle: Tensor) -> Tensor:
    """The symmetric matrix of an upper triangle."""
    n = width(triangle.shape[0])
    full, start = triangle.new_zeros(n, n), 0
    for i in range(n):
        full[i, i:] = triangle[start : start + n - i]
        full[i:, i] = triangle[start : start + n - i]
        start += n - i
    return full


def width(length: int) -> int:
    """n, from the n (n + 1) / 2 numbers of a triangle."""
    return (math.isqrt(8 * length + 1) - 1) // 2


def _joined(name: str, mine: Entry, theirs: Entry) -> Entry:
    if mine.layout != theirs.layout or (
        mine.mark is not None and theirs.mark is not None and mine.mark != theirs.mark
    ):
        raise ValueError(
            f"{name!r} is another tensor in each of these statistics: they were collected on "
            "different models. Only those of one model add up."
        )
    kinds = [kind for kind in KINDS if kind in mine.counts or kind in theirs.counts]
    counts = {kind: mine.counts.get(kind, 0) + theirs.counts.get(kind, 0) for kind in kinds}
    return Entry(mine.layout, counts, mine.mark or theirs.mark)


def _check_mean(name: str, kind: str, mean: Any) -> None:
    if kind not in KINDS:
        raise ValueError(f"{name!r} has statistics of unknown kind {kind!r}: {', '.join(KINDS)}.")
    if not bool(torch.isfinite(mean).all()):
        raise ValueError(f"the {kind} of {name!r} holds NaN or infinity.")
    if kind != GRAM and mean.numel() and not bool(mean.any()):
        raise ValueError(
            f"the {kind} of {name!r} is zero everywhere: no gradient reached it. Leave it out, and "
            "the tensor is averaged."
        )
    if kind == DIAG_FISHER:
        if bool((mean < 0).any()):
            raise ValueError(f"the {kind} of {name!r} is negative, but squares are not.")
        return
    if mean.ndim != 2 or mean.shape[0] != mean.shape[1]:
        raise ValueError(f"the {kind} of {name!r} must be square, got {tuple(mean.shape)}.")
    if mean.numel() and float((mean - mean.mT).abs().max()) > ASYMMETRY * float(mean.abs().max()):
        raise ValueError(f"the {kind} of {name!r} must be symmetric: it is a mean of x x^T.")
    if bool((mean.diagonal() < 0).any()):
        raise ValueError(f"the {kind} of {name!r} has negative entries on its diagonal.")
