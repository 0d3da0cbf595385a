"""What tells two models apart, tensor by tensor, and its leading directions."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spanwise.linalg import truncated_svd
from spanwise.linalg._arrays import largest_entry
from spanwise.linalg.thin import gram, gram_spectrum, rank_tolerance, squared_noise
from spanwise.merging._export.targets import Structure, structure_of
from spanwise.merging._sources import AdapterSource, Model, Source, open_source

Decomposition = Literal["exact", "randomized"]


@dataclass(frozen=True)
class Difference:
    """A model minus its base, read a tensor at a time.

    Attributes:
        base: What the LoRA is added to.
        tuned: What base and LoRA shall amount to.
        structure: Which tensor is which part of the model.
        stored: Name -> name in `tuned`, for every floating-point tensor, tied ones once.
        device: Where to compute.
    """

    base: Source
    tuned: Source
    structure: Structure
    stored: Mapping[str, tuple[str, str]]
    device: torch.device

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return self.base.shape(self.stored[name][0])

    def dtype(self, name: str) -> torch.dtype:
        """The base's dtype of a tensor."""
        return self.base.dtype(self.stored[name][0])

    def of(self, name: str) -> Tensor:
        """The difference of one tensor, in float32 or wider.

        Raises:
            ValueError: If either model is not finite there.
        """
        here, there = self.stored[name]
        own = self.base.read(here)
        dtype = torch.promote_types(
            torch.promote_types(own.dtype, torch.float32), self.tuned.dtype(there)
        )
        found = self.tuned.update(there, own.to(self.device, dtype))
        if found.numel() and not bool(torch.isfinite(found.sum())) and not found.isfinite().all():
            label = self.base.label if not own.isfinite().all() else self.tuned.label
            raise ValueError(f"{name!r} of {label} is not finite: nothing can be exported from it.")
        return found

    def whole(self, name: str) -> Tensor:
        """The tuned tensor itself, in its own dtype."""
        here, there = self.stored[name]
        if isinstance(self.tuned, AdapterSource):
            return self.tuned.weight(there, self.base.read(here))
        return self.tuned.read(there)

    def whole_dtype(self, name: str) -> torch.dtype:
        """The dtype of what `whole` gives."""
        return self.tuned.dtype(self.stored[name][1])


def open_difference(
    base: Model,
    tuned: Model,
    *,
    model: nn.Module | None = None,
    device: torch.device | str = "cpu",
) -> Difference:
    """Open two models and make sure that one may be the other's base; reads headers only.

    Args:
        base: A transformers folder, a safetensors file, a state dict or a module.
        tuned: Any of those, or a LoRA of the base.
        model: A module that tells how the base's weights are used, where neither a module nor a
            folder with a configuration is given.
        device: Where to compute.

    Raises:
        ValueError: If names or shapes differ, or weights are quantised.
    """
    opened = open_source("the base", base)
    other = open_source(_label(tuned), tuned, opened)
    shapes = {name: opened.shape(name) for name in opened}
    known = base if isinstance(base, nn.Module) else model
    structure = structure_of(shapes, known, opened.folder)
    structure = _with_aliases(structure, opened.aliases)
    here, there = _by_name(opened, structure), _by_name(other, structure)
    _check_same(here, there, opened, other)
    stored = {
        name: (own, there[name])
        for name, own in here.items()
        if opened.dtype(own).is_floating_point
    }
    return Difference(opened, other, structure, stored, torch.device(device))


def energies(
    matrix: Float[Tensor, "m n"], method: Decomposition, most: int, generator: torch.Generator
) -> tuple[Float[Tensor, " k"], float]:
    """Squared singular values of a matrix, largest first, and its squared Frobenius norm.

    Values that rounding cannot tell from zero are zero.

    Args:
        matrix: Any finite matrix.
        method: `"exact"`: all of them, as eigenvalues of the smaller Gram matrix in float64, which
            gives each to 1e-16 of the largest. `"randomized"`: the first `most`, by a sketch.
        most: How many of them, for a sketch.
        generator: Source of the sketch.
    """
    m, n = matrix.shape
    total = float(torch.linalg.vector_norm(matrix, dtype=torch.float64)) ** 2
    if not total:
        return torch.zeros(min(m, n), dtype=torch.float64), 0.0
    if method == "randomized" and most < min(m, n):
        s = truncated_svd(matrix, most, "randomized", generator=generator).s
        found = s.double().square().cpu()
    else:
        tall = matrix if m >= n else matrix.mT
        scale = largest_entry("M", tall)
        values = torch.linalg.eigvalsh(gram(tall, scale)).flip(-1).clamp_(min=0)
        found = (values * scale.double().squeeze().square()).cpu()
    cut = max(rank_tolerance((m, n), matrix.dtype), squared_noise(min(m, n)))
    return torch.where(found > cut**2 * found[0], found, 0.0), total


def factors(
    matrix: Float[Tensor, "m n"], rank: int, method: Decomposition, generator: torch.Generator
) -> tuple[Float[Tensor, "r n"], Float[Tensor, "m r"]]:
    """A and B with B A the best matrix of a rank, each holding the roots of the singular values.

    Exactly: one factor is made of eigenvectors of the smaller Gram matrix (float64), the other of
    their products with the matrix. B A is then a projection of the matrix on leading directions,
    and nothing is divided by a small singular value.

    Args:
        matrix: Any finite matrix.
        rank: At least 1.
        method: As for `energies`.
        generator: Source of the sketch.
    """
    m, n = matrix.shape
    if method == "randomized" and rank < min(m, n):
        u, s, v = truncated_svd(matrix, rank, "randomized", generator=generator)
        root = s.sqrt()
        return (v * root).mT.contiguous(), (u * root).contiguous()
    tall = matrix if m >= n else matrix.mT
    scale = largest_entry("M", tall)
    s, v = gram_spectrum(tall, scale)
    root = (s[:rank] * scale.double().squeeze()).sqrt()
    root = torch.where(root > 0, root, 1)
    v = v[:, :rank]
    image = (tall @ (v / root).to(tall.dtype)).contiguous()
    short = (v * root).mT.to(tall.dtype).contiguous()
    return (short, image) if m >= n else (image.mT.contiguous(), short.mT.contiguous())


def _label(tuned: Model) -> str:
    return Path(tuned).name or str(tuned) if isinstance(tuned, (str, Path)) else "the model"


def _with_aliases(structure: Structure, aliases: Mapping[str, str]) -> Structure:
    """Tied tensors of a state dict, which the structure may not know."""
    more = {
        other: name
        for other, name in aliases.items()
        if other not in structure.aliases and name not in structure.aliases
    }
    if not more:
        return structure
    return Structure(
        structure.kinds, {**structure.aliases, **more}, structure.modules, structure.refused,
        structure.note,
    )  # fmt: skip


def _by_name(source: Source, structure: Structure) -> dict[str, str]:
    """The name that counts -> the name it is stored under."""
    found: dict[str, str] = {}
    for name in source:
        found.setdefault(structure.aliases.get(name, name), name)
    return found


def _check_same(
    here: Mapping[str, str], there: Mapping[str, str], base: Source, tuned: Source
) -> None:
    lacks, more = [n for n in here if n not in there], [n for n in there if n not in here]
    if lacks or more:
        what = f"lacks {lacks[0]!r}" if lacks else f"has {more[0]!r} more"
        raise ValueError(
            f"{tuned.label} {what} ({len(lacks) + len(more)} names differ from {base.label}'s): a "
            "LoRA changes the tensors that its base has. Give the model that it was trained from "
            "as base, or keep the whole model: --as merged."
        )
    for name, own in here.items():
        a, b = base.shape(own), tuned.shape(there[name])
        if a != b:
            rows = len(a) == 2 == len(b) and a[1] == b[1] and math.prod(a) != math.prod(b)
            hint = (
                " If tokens were added, resize the base's table to the same rows first "
                "(resize_token_embeddings),"
                if rows
                else " Give the model that it was trained from as base,"
            )
            raise ValueError(
                f"{name!r} has shape {b} in {tuned.label} and {a} in {base.label}: a LoRA cannot "
                f"change a shape.{hint} or keep the whole model: --as merged."
            )
