"""What updates have in common and what each has alone, as atlases."""

import pytest
import torch

from conformance.merging import models
from spanwise.atlas import Atlas
from spanwise.merging import merge
from spanwise.merging._methods.isotropic import split

NAME = "layers.0.up.weight"


def updates(base, tuned, name=NAME):
    return [(t[name] - base[name]).double() for t in tuned]


@pytest.fixture
def held():
    base, tuned = models(3)
    merged = merge(base, tuned, "iso_cts", common_fraction=0.5, work_dtype=torch.float64)
    return base, tuned, merged


def test_sizes_are_those_of_iso_cts(held):
    _, _, merged = held
    found = merged.subspaces()
    k, q = split(6, 3, 0.5)
    assert found.common.get(NAME)["output"].subspace.rank == k
    assert list(found.tasks) == ["model 1", "model 2", "model 3"]
    for atlas in found.tasks.values():
        assert {entry.subspace.rank for entry in atlas} == {q}


def test_the_common_directions_are_those_of_the_sum(held):
    base, tuned, merged = held
    u, s, vh = torch.linalg.svd(sum(updates(base, tuned)), full_matrices=False)
    entries = merged.subspaces().common.get(NAME)
    k = entries["output"].subspace.rank
    for side, reference in (("output", u[:, :k]), ("input", vh[:k].mT)):
        basis = entries[side].subspace.basis
        assert torch.allclose(basis @ basis.mT, reference @ reference.mT, atol=1e-10)
        assert torch.allclose(entries[side].subspace.values, s[:k], atol=1e-10)


def test_a_task_s_own_directions_are_its_update_s_without_the_common_ones(held):
    base, tuned, merged = held
    found = merged.subspaces()
    shared = found.common.get(NAME)["output"].subspace.basis
    for update, atlas in zip(updates(base, tuned), found.tasks.values(), strict=True):
        own = atlas.get(NAME)["output"].subspace
        rest = update - shared @ (shared.mT @ update)
        u = torch.linalg.svd(rest)[0][:, : own.rank]
        assert torch.allclose(own.basis @ own.basis.mT, u @ u.mT, atol=1e-10)
        assert float((shared.mT @ own.basis).abs().max()) < 1e-10


def test_together_they_are_what_the_merge_writes_into(held):
    _, _, merged = held
    found = merged.subspaces()
    whole = torch.cat(
        [a.get(NAME)["output"].subspace.basis for a in (found.common, *found.tasks.values())], 1
    )
    q = torch.linalg.qr(whole)[0]
    delta = merged.delta[NAME]
    assert torch.allclose(q @ (q.mT @ delta), delta, atol=1e-10)


def test_the_atlas_of_a_merge_is_saved_checked_and_avoided(held, tmp_path):
    base, tuned, merged = held
    file = merged.atlas.save(tmp_path / "common.atlas.safetensors")
    atlas = Atlas.load(file, base=base)
    again = merge(base, tuned, "task_arithmetic", avoid=atlas, work_dtype=torch.float64)
    u = atlas.get(NAME)["output"].subspace.basis.double()
    assert float((u.mT @ again.delta[NAME]).norm()) < 1e-6 * float(again.delta[NAME].norm())
    with pytest.raises(ValueError, match="another base"):
        Atlas.load(file, base=tuned[0])


def test_any_method_has_them_and_frozen_matrices_have_none():
    base, tuned = models(2)
    frozen = [{**t, NAME: base[NAME]} for t in tuned]
    found = merge(base, frozen, "ties").subspaces(0.8)
    assert not found.common.get(NAME)
    assert found.common.get("layers.1.square.weight")
    one = [{**base, NAME: tuned[0][NAME]}, {**base, "embed.weight": tuned[1]["embed.weight"]}]
    alone = merge(base, one, "task_arithmetic").subspaces(1.0)
    assert all(len(atlas) == 0 for atlas in alone.tasks.values())


def test_what_has_no_subspaces_is_named():
    base, tuned = models(2)
    with pytest.raises(ValueError, match="common_fraction must be in"):
        merge(base, tuned, "iso_c").subspaces(1.5)
    with pytest.raises(ValueError, match="give merge"):
        merge(None, tuned, "linear").subspaces()
    vectors = [{**base, "scale": base["scale"] + 1}, {**base, "scale": base["scale"] + 2}]
    with pytest.raises(ValueError, match="no model changed a matrix"):
        merge(base, vectors, "linear").subspaces()
