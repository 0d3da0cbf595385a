"""update_share: what was built inside counts as inside, what was built outside as outside."""

import copy

import pytest
import torch
from torch import nn

from spanwise.atlas import Atlas, Entry
from spanwise.atlas._share import split_energy
from spanwise.layouts import map_dims, matrix_view
from spanwise.subspace import Subspace

CASES = [
    ((6, 9), "linear"),
    ((6, 9), "transposed"),
    ((6, 2, 3, 2), "conv"),
    ((3, 6, 9), "experts"),
    ((3, 6, 9), "experts_transposed"),
]


def bases(shape, layout, sides, r=2):
    batch, m, n = map_dims(shape, layout)
    generator = torch.Generator().manual_seed(1)
    return {
        side: Subspace.random(
            m if side == "output" else n, r, generator=generator, batch=batch, dtype=torch.float64
        ).basis
        for side in sides
    }


def kept_out(delta, layout, held):
    """(I - U U^T) D (I - V V^T), written into a copy of the stored tensor."""
    delta = delta.clone()
    view = matrix_view(delta, layout)
    if "output" in held:
        view -= held["output"] @ (held["output"].mT @ view)
    if "input" in held:
        view -= (view @ held["input"]) @ held["input"].mT
    return delta


@pytest.mark.parametrize("sides", [("output",), ("input",), ("output", "input")])
@pytest.mark.parametrize(("shape", "layout"), CASES)
def test_an_update_outside_has_no_share_and_one_inside_has_all(shape, layout, sides):
    held = bases(shape, layout, sides)
    delta = torch.randn(shape).double()
    outside = kept_out(delta, layout, held)
    inside, rest = split_energy(outside, layout, held)
    assert inside / (inside + rest) < 1e-12
    inside, rest = split_energy(delta - outside, layout, held)
    assert rest / (inside + rest) < 1e-12
    inside, rest = split_energy(delta, layout, held)
    assert inside + rest == pytest.approx(float(delta.square().sum()), rel=1e-12)
    assert rest == pytest.approx(float(outside.square().sum()), rel=1e-12)


@pytest.fixture
def setting():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3)).double()
    held = bases((8, 6), "linear", ("output", "input"))
    atlas = Atlas(
        Entry(
            name="0.weight",
            side=side,
            subspace=Subspace(basis),
            layout="linear",
            shape=(8, 6),
            bias="0.bias",
        )
        for side, basis in held.items()
    )
    return model, atlas, held


def test_an_outside_update_of_a_model_has_share_zero(setting):
    model, atlas, held = setting
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        tuned[0].weight += kept_out(torch.randn(8, 6).double(), "linear", held)
    share = atlas.update_share(model, tuned)
    assert share.inside < 1e-12
    assert share.outside == pytest.approx(1, abs=1e-12)
    assert share.uncovered == {}


def test_an_inside_update_of_a_model_has_share_one(setting):
    model, atlas, held = setting
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        tuned[0].weight += held["output"] @ torch.randn(2, 6).double()
    share = atlas.update_share(model, tuned)
    assert share.inside == pytest.approx(1, abs=1e-12)
    assert share.outside < 1e-12


def test_biases_count_with_the_output_entry_and_the_rest_is_uncovered(setting):
    model, atlas, held = setting
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        tuned[0].bias += held["output"][:, 0] * 2
        tuned[1].weight += 1
    share = atlas.update_share(model, tuned)
    rows = {row.name: row for row in share.rows}
    assert rows["0.bias"].inside == pytest.approx(1, abs=1e-12)
    assert rows["0.weight"].inside == rows["0.weight"].outside == 0
    assert share.uncovered == {"1.weight": pytest.approx(24)}
    assert share.covered == pytest.approx(4 / 28)
    assert "14.3% of the update" in str(share)
    assert share.as_dict()["tensors"]["0.bias"] == pytest.approx(1, abs=1e-12)


def test_state_dicts_with_wrappers_do(setting):
    model, atlas, _ = setting
    wrapped = {f"module.{name}": p + 1 for name, p in model.state_dict().items()}
    assert {r.name for r in atlas.update_share(model, wrapped).rows} == {"0.weight", "0.bias"}


def test_tied_weights_count_once(llama, ids):
    atlas = Atlas.from_activations(
        llama, [{"input_ids": ids}], sides=("output",), embeddings=True, include=["embed"],
        exclude=(),
    )  # fmt: skip
    tuned = {name: p + 1 for name, p in llama.state_dict().items()}
    base = dict(llama.state_dict())
    assert "lm_head.weight" in base
    share = atlas.update_share(base, tuned)
    assert [row.name for row in share.rows] == ["model.embed_tokens.weight"]
    assert "lm_head.weight" not in share.uncovered


def test_half_precision_differences_are_taken_exactly(setting):
    _, atlas, _ = setting
    old = {"0.weight": torch.full((8, 6), 256.0, dtype=torch.bfloat16)}
    new = {"0.weight": torch.full((8, 6), 258.0, dtype=torch.bfloat16)}
    row = atlas.update_share(old, new).rows[0]
    assert row.inside_energy + row.outside_energy == pytest.approx(4 * 48, rel=1e-12)


@pytest.mark.bad_input
def test_weights_that_do_not_fit_are_refused(setting):
    model, atlas, _ = setting
    state = model.state_dict()
    lacking = {k: v for k, v in state.items() if k != "0.weight"}
    with pytest.raises(ValueError, match=r"the tuned weights lack 0\.weight"):
        atlas.update_share(model, lacking)
    with pytest.raises(ValueError, match=r"0.weight has shape \(8, 6\) in base and \(8, 5\)"):
        atlas.update_share(model, {**state, "0.weight": torch.zeros(8, 5)})
    with pytest.raises(ValueError, match="the atlas covers no tensor of these weights"):
        atlas.update_share({"x": torch.zeros(2, 2)}, {"x": torch.ones(2, 2)})
    with pytest.raises(TypeError, match="weights must be a module"):
        atlas.update_share(3, model)
