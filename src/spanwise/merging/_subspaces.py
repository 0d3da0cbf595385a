"""What updates have in common, and what each of them has alone, as atlases."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from spanwise.atlas import Atlas, Entry
from spanwise.atlas._delta import Place, known_places, place_of
from spanwise.atlas._storage import base_digest
from spanwise.atlas._weights import open_weights
from spanwise.layouts import Side, is_transposed
from spanwise.linalg import SVD, leading_triples
from spanwise.merging._job import Job
from spanwise.merging._methods._spectral import Updates
from spanwise.merging._methods.isotropic import IsoCTS, split
from spanwise.subspace import Subspace


@dataclass(frozen=True)
class Subspaces:
    """Directions of the updates of several models, matrix by matrix.

    Attributes:
        common: The k leading directions of the sum of all updates, on both sides of every map.
        tasks: Model -> the q leading directions of its update without the common ones on the left.
    """

    common: Atlas
    tasks: Mapping[str, Atlas]


def subspaces(job: Job, common_fraction: float = 0.8) -> Subspaces:
    """The common and task-specific subspaces of Iso-CTS, with k + q T = R, the rank of the sum.

    Every matrix is decomposed once for the sum and once for each model. Models without directions
    of their own have no entry.

    Args:
        job: The models, and what of them counts as a matrix.
        common_fraction: f in [0, 1]: k is about f R.

    Raises:
        ValueError: If f is out of range, there is no base, or no model changed a matrix.

    Sources:
        Marczak et al., arXiv 2502.04959.
    """
    IsoCTS(common_fraction=common_fraction)  # checks the range
    base = job.inputs.base
    if base is None:
        raise ValueError("subspaces are those of updates: give merge(base=...).")
    weights, places = open_weights(base.tensors), known_places(base.folder or {})
    common: list[Entry] = []
    tasks: dict[str, list[Entry]] = {model.label: [] for model in job.inputs.models}
    for name in job.names:
        shape = base.shape(name)
        place = place_of(name, weights, places)
        if job.kind(name) != "matrix" or len(shape) != 2 or place is None or 0 in shape:
            continue
        updates = Updates(job.work(name))
        found = leading_triples(updates.total(), min(shape))
        k, q = split(len(found.s), updates.count, common_fraction)
        shared = SVD(found.U[:, :k], found.s[:k], found.V[:, :k])
        common += _entries(place, shape, shared)
        if not q:
            continue
        for label, update in zip(tasks, updates, strict=True):
            rounding = 16 * torch.finfo(update.dtype).eps * float(update.norm())
            update.addmm_(shared.U, shared.U.mT @ update, alpha=-1)
            tasks[label] += _entries(place, shape, leading_triples(update, q, atol=rounding))
    if not common:
        raise ValueError("no model changed a matrix: there are no subspaces.")
    about = {"source": "merge", "common_fraction": str(common_fraction)}
    return Subspaces(
        _atlas(common, about, base.tensors),
        {
            label: _atlas(held, {**about, "task": label}, base.tensors)
            for label, held in tasks.items()
        },
    )


def _entries(place: Place, shape: tuple[int, ...], found: SVD) -> list[Entry]:
    """Both sides of one map; none of a zero matrix."""
    if not len(found.s):
        return []
    u, v = (found.V, found.U) if is_transposed(place.layout) else (found.U, found.V)
    sides: dict[Side, Tensor] = {"output": u, "input": v}
    return [
        Entry(
            name=place.name, side=side, subspace=Subspace(basis.contiguous(), found.s),
            layout=place.layout, shape=tuple(shape), aliases=place.aliases, bias=place.bias,
        )
        for side, basis in sides.items()
    ]  # fmt: skip


def _atlas(entries: list[Entry], about: Mapping[str, str], weights: Mapping[str, Tensor]) -> Atlas:
    atlas = Atlas(entries, about)
    if entries:
        atlas.metadata["base"] = base_digest(atlas, weights)
    return atlas
