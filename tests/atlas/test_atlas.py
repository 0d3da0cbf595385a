"""Atlas: look-up by name, set algebra, random controls."""

import pytest
import torch
from torch import nn

from spanwise.atlas import Atlas, Entry
from spanwise.subspace import Subspace

TIGHT = {"rtol": 1e-10, "atol": 1e-10}


def subspace(d, r, seed=0, batch=()):
    generator = torch.Generator().manual_seed(seed)
    return Subspace.random(d, r, generator=generator, batch=batch, dtype=torch.float64)


def entry(name="w.weight", side="input", held=None, shape=(4, 6), layout="linear", **options):
    held = subspace(6, 2) if held is None else held
    return Entry(name=name, side=side, subspace=held, layout=layout, shape=shape, **options)


def same_span(a, b):
    torch.testing.assert_close(a.basis @ a.basis.mT, b.basis @ b.basis.mT, **TIGHT)


def test_names_resolve_through_wrappers_and_ties():
    atlas = Atlas([entry("model.embed.weight", aliases=("lm_head.weight",))])
    for name in ("model.embed.weight", "lm_head.weight", "module._orig_mod.lm_head.weight"):
        assert atlas.get(name) == {"input": atlas.entries["model.embed.weight", "input"]}
        assert name in atlas
    assert atlas.get("other.weight") == {}
    assert "other.weight" not in atlas


def test_sides_of_one_parameter_come_together():
    atlas = Atlas([entry(), entry(side="output", held=subspace(4, 1))])
    assert list(atlas.get("w.weight")) == ["output", "input"]
    assert (len(atlas), atlas.names, atlas.sides) == (2, ("w.weight",), ("output", "input"))


def test_lora_factors_take_their_side_of_the_base_entry():
    atlas = Atlas([entry("q.weight"), entry("q.weight", side="output", held=subspace(4, 1))])
    a = atlas.get("base_model.model.q.lora_A.default.weight")
    b = atlas.get("q.lora_B.weight")
    assert (list(a), a["input"].shape, a["input"].layout) == (["input"], (-1, 6), "linear")
    assert (list(b), b["output"].shape) == (["output"], (4, -1))
    assert a["input"].subspace is atlas.entries["q.weight", "input"].subspace
    assert atlas.get("k.lora_A.default.weight") == {}


def test_shared_bases_count_once():
    held = subspace(6, 2)
    atlas = Atlas([entry("q.weight", held=held), entry("k.weight", held=held, shape=(2, 6))])
    assert (len(atlas), len(atlas.subspaces), atlas.nbytes) == (2, 1, 6 * 2 * 8)
    moved = atlas.to(dtype=torch.float32)
    assert len(moved.subspaces) == 1
    assert moved.nbytes == 6 * 2 * 4
    assert len(atlas.union(atlas).subspaces) == 1


def test_union_spans_both_and_keeps_what_only_one_has():
    q = subspace(6, 5).basis
    a = Atlas([entry(held=Subspace(q[:, :3])), entry("only_a.weight")])
    b = Atlas([entry(held=Subspace(q[:, 2:])), entry("only_b.weight")])
    union = a.union(b)
    assert set(union.names) == {"w.weight", "only_a.weight", "only_b.weight"}
    same_span(union.get("w.weight")["input"].subspace, Subspace(q))


def test_intersection_keeps_what_both_have_and_drops_the_rest():
    q = subspace(6, 5).basis
    a = Atlas([entry(held=Subspace(q[:, :3])), entry("x.weight", held=subspace(6, 2, 5))])
    b = Atlas([entry(held=Subspace(q[:, 2:])), entry("x.weight", held=subspace(6, 2, 6))])
    common = a.intersection(b)
    assert common.names == ("w.weight",)
    same_span(common.get("w.weight")["input"].subspace, Subspace(q[:, 2:3]))
    assert a.intersection(b, max_angle=1.57).names == ("w.weight", "x.weight")


def test_union_and_intersection_with_itself_change_nothing():
    atlas = Atlas([entry(), entry(side="output", held=subspace(4, 3))])
    for other in (atlas.union(atlas), atlas.intersection(atlas)):
        for e in atlas:
            same_span(other.get(e.name)[e.side].subspace, e.subspace)


def test_tied_names_meet_in_a_union():
    a = Atlas([entry("embed.weight", aliases=("head.weight",))])
    b = Atlas([entry("head.weight", held=subspace(6, 3, 1))])
    union = a.union(b)
    assert union.names == ("embed.weight",)
    assert union.get("head.weight")["input"].subspace.rank == 5


def experts(held):
    return Atlas([entry("e", held=held, shape=(2, 4, 6), layout="experts")])


def test_experts_unite_and_intersect_each_by_itself():
    q = subspace(6, 5, batch=(2,)).basis
    a, b = experts(Subspace(q[..., :3])), experts(Subspace(q[..., 2:]))
    united = a.union(b).get("e")["input"].subspace
    common = a.intersection(b).get("e")["input"].subspace
    assert (united.rank, common.rank) == (5, 1)
    for i in range(2):
        same_span(Subspace(united.basis[i]), Subspace(q[i]))
        same_span(Subspace(common.basis[i]), Subspace(q[i][:, 2:3]))


def test_experts_with_unequal_overlap_keep_the_safe_rank():
    q = subspace(6, 4).basis
    a = Subspace(torch.stack([q[:, :2], q[:, :2]]))
    b = Subspace(torch.stack([q[:, :2], q[:, 1:3]]))
    united = experts(a).union(experts(b)).get("e")["input"].subspace
    common = experts(a).intersection(experts(b)).get("e")["input"].subspace
    assert (united.rank, common.rank) == (3, 1)
    for i in range(2):
        whole = torch.cat([a.basis[i], b.basis[i]], dim=-1)
        torch.testing.assert_close(Subspace(united.basis[i]).project(whole), whole, **TIGHT)
        inside = Subspace(common.basis[i])
        torch.testing.assert_close(
            Subspace(b.basis[i]).project(inside.basis), inside.basis, **TIGHT
        )


def test_a_combination_belongs_to_the_base_that_both_share():
    a, b = (Atlas([entry()], {"base": "x", "source": s}) for s in ("activations", "delta"))
    assert a.union(b).metadata == {"source": "union of activations and delta", "base": "x"}
    b.metadata["base"] = "y"
    assert "base" not in a.intersection(b).metadata


def test_a_random_control_has_the_same_shape_and_follows_its_seed():
    held = subspace(6, 2)
    atlas = Atlas([entry("q.weight", held=held), entry("k.weight", held=held)], {"base": "x"})
    control = atlas.random_like(seed=3)
    assert [e.key for e in control] == [e.key for e in atlas]
    assert len(control.subspaces) == 1
    assert control.subspaces[0].basis.shape == held.basis.shape
    assert control.metadata == {"base": "x", "source": "random", "seed": "3"}
    basis = control.subspaces[0].basis
    torch.testing.assert_close(basis.mT @ basis, torch.eye(2).double(), **TIGHT)
    assert torch.equal(atlas.random_like(3).subspaces[0].basis, basis)
    assert not torch.equal(atlas.random_like(4).subspaces[0].basis, basis)


def test_a_selection_keeps_the_metadata():
    atlas = Atlas([entry("a.weight"), entry("b.weight")], {"source": "s"})
    chosen = atlas.select(lambda e: e.name.startswith("a"))
    assert (chosen.names, chosen.metadata) == (("a.weight",), {"source": "s"})


def test_the_repr_says_what_is_inside():
    text = repr(Atlas([entry(), entry(side="output", held=subspace(4, 1))]))
    assert "2 entries on 1 parameters, 2 bases, rank 1 to 2, sides output/input" in text
    assert "0 entries" in repr(Atlas())


@pytest.mark.bad_input
def test_entries_that_do_not_fit_are_refused():
    with pytest.raises(
        ValueError, match=r"w.weight: the output side of a linear parameter of shape"
    ):
        entry(side="output")
    with pytest.raises(ValueError, match=r"needs a basis of shape \(2, 6, 'r'\), got \(6, 2\)"):
        entry(shape=(2, 4, 6), layout="experts")
    with pytest.raises(ValueError, match="side must be"):
        entry(side="left")
    with pytest.raises(ValueError, match=r"two entries for w\.weight, input side"):
        Atlas([entry(), entry()])
    with pytest.raises(ValueError, match="claimed by two entries"):
        Atlas([entry(), entry("v.weight", aliases=("w.weight",))])


@pytest.mark.bad_input
@pytest.mark.parametrize("verb", ["union", "intersection", "compare"])
def test_atlases_of_other_architectures_do_not_combine(verb):
    other = Atlas([entry(shape=(5, 6))])
    with pytest.raises(ValueError, match=r"w.weight: one atlas has.*different architectures"):
        getattr(Atlas([entry()]), verb)(other)


def test_an_atlas_is_reached_from_the_front_door():
    import spanwise

    assert spanwise.Atlas is Atlas
    assert isinstance(nn.Linear(2, 2), nn.Module)
