"""Union, intersection and random controls of whole atlases.

Entries that share a subspace on both sides of an operation share the result too.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from spanwise.linalg import bases
from spanwise.subspace import Subspace

if TYPE_CHECKING:
    from spanwise.atlas._atlas import Atlas, Entry

R = TypeVar("R")


def union(a: "Atlas", b: "Atlas", tolerance: float) -> "Atlas":
    """The span of both, entry by entry; entries of one only are kept as they are."""
    combine = _once(lambda s, t: _union(s, t, tolerance))
    common = pairs(a, b)
    entries = [replace(e, subspace=combine(e.subspace, f.subspace)) for e, f in common]
    joined = {entry.key for entry in entries} | {f.key for _, f in common}
    entries += [entry for entry in (*a, *b) if entry.key not in joined]
    return _combined(a, b, entries, "union")


def intersection(a: "Atlas", b: "Atlas", max_angle: float) -> "Atlas":
    """What both hold up to an angle, entry by entry; what is in one only drops out."""
    combine = _once(lambda s, t: _intersection(s, t, max_angle))
    entries = []
    for e, f in pairs(a, b):
        common = combine(e.subspace, f.subspace)
        if common is not None:
            entries.append(replace(e, subspace=common))
    return _combined(a, b, entries, "intersection")


def random_like(atlas: "Atlas", seed: int) -> "Atlas":
    """Uniformly random subspaces of the same dimensions and ranks."""
    generator = torch.Generator().manual_seed(seed)

    def draw(subspace: Subspace) -> Subspace:
        shape = {"batch": subspace.batch, "dtype": subspace.basis.dtype}
        # Drawn on the CPU, so that a seed means the same subspaces on every device.
        drawn = Subspace.random(subspace.dim, subspace.rank, generator=generator, **shape)
        return drawn.to(subspace.basis.device)

    drawn = atlas.map(draw)
    drawn.metadata = {**atlas.metadata, "source": "random", "seed": str(seed)}
    return drawn


def pairs(a: "Atlas", b: "Atlas") -> list[tuple["Entry", "Entry"]]:
    """Entries of both for the same side of the same parameter, found through tied names too."""
    pairs = []
    for entry in a:
        other = next(
            (b.get(n)[entry.side] for n in (entry.name, *entry.aliases) if entry.side in b.get(n)),
            None,
        )
        if other is None:
            continue
        if (entry.layout, entry.shape) != (other.layout, other.shape):
            raise ValueError(
                f"{entry.name}: one atlas has a {entry.layout} parameter of shape {entry.shape}, "
                f"the other a {other.layout} one of shape {other.shape}. They belong to models of "
                "different architectures."
            )
        pairs.append((entry, other))
    return pairs


def _once(combine: Callable[[Subspace, Subspace], R]) -> Callable[[Subspace, Subspace], R]:
    """Remember results, so that what is shared on both sides stays shared and costs once."""
    known: dict[tuple[int, int], R] = {}

    def remembered(s: Subspace, t: Subspace) -> R:
        key = (id(s), id(t))
        if key not in known:
            known[key] = combine(s, t)
        return known[key]

    return remembered


def _union(s: Subspace, t: Subspace, tolerance: float) -> Subspace:
    t = t.to(s.basis.device, s.basis.dtype)
    if not s.batch:
        return s.union(t, tolerance=tolerance)
    both = [bases.union(x, y, tolerance=tolerance) for x, y in zip(s.basis, t.basis, strict=True)]
    # Experts share one rank, the largest; the others keep some directions more than they need.
    rank = max(basis.shape[-1] for basis in both)
    return Subspace(torch.stack([_filled(basis, rank) for basis in both]))


def _filled(basis: Float[Tensor, "d r"], rank: int) -> Float[Tensor, "d rank"]:
    missing = rank - basis.shape[-1]
    if not missing:
        return basis
    return torch.cat([basis, bases.complement(basis)[:, :missing]], dim=-1)


def _intersection(s: Subspace, t: Subspace, max_angle: float) -> Subspace | None:
    t = t.to(s.basis.device, s.basis.dtype)
    if not s.batch:
        return s.intersection(t, max_angle=max_angle)
    common = [
        bases.intersection(x, y, max_angle=max_angle) for x, y in zip(s.basis, t.basis, strict=True)
    ]
    # Experts share one rank, the smallest: a direction that is not common must not slip in.
    rank = min(basis.shape[-1] for basis in common)
    return Subspace(torch.stack([basis[:, :rank] for basis in common])) if rank else None


def _combined(a: "Atlas", b: "Atlas", entries: list["Entry"], verb: str) -> "Atlas":
    metadata = {"source": f"{verb} of {a.metadata.get('source')} and {b.metadata.get('source')}"}
    # A combination of two models' atlases belongs to neither base.
    if "base" in a.metadata and a.metadata["base"] == b.metadata.get("base"):
        metadata["base"] = a.metadata["base"]
    return type(a)(entries, metadata)
