"""Loading a state that does not fit: told by name before anything changes."""

import copy

import pytest
import torch
from torch import nn

from spanwise.optim import (
    SNSM,
    AdamSN,
    GaLore,
    Grass,
    GrassJump,
    OnlineSubspaceDescent,
)

FAMILY = {
    "galore": (GaLore, {}),
    "galore-full": (GaLore, {"side": "full"}),
    "grass": (Grass, {"moments": "keep_common", "select": "uniform"}),
    "grassjump": (GrassJump, {}),
    "osd": (OnlineSubspaceDescent, {}),
    "osd-adafactor": (OnlineSubspaceDescent, {"base": "adafactor", "proj_optimizer": "adafactor"}),
    "snsm": (SNSM, {}),
    "snsm-rows": (SNSM, {"basis": "rows", "subset_size": 4}),
    "adamsn": (AdamSN, {}),
}


def made(name, shape=(8, 6), **group):
    """An optimizer of one matrix and one vector, and what it trains."""
    method, options = FAMILY[name]
    generator = torch.Generator().manual_seed(0)
    w = nn.Parameter(torch.randn(shape, generator=generator))
    b = nn.Parameter(torch.randn(shape[0], generator=generator))
    keys = {"subset_size": "heuristics"} if method is AdamSN else {"rank": 2}
    optimizer = method([{"params": [("w", w)], **keys, **group}, {"params": [("b", b)]}], **options)
    return optimizer, (w, b)


def stepped(optimizer, params, count=2):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
    return optimizer


def assert_refused(optimizer, params, state, message):
    """Loading raises, and the optimizer goes on as its twin that nobody asked to load."""
    stepped(optimizer, params)
    twin, copies = copy.deepcopy((optimizer, params))
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state)
    for a, b in zip(optimizer.param_groups, twin.param_groups, strict=True):
        assert {k: v for k, v in a.items() if k != "params"} == {
            k: v for k, v in b.items() if k != "params"
        }
    stepped(optimizer, params)
    stepped(twin, copies)
    assert all(map(torch.equal, params, copies))


@pytest.mark.parametrize("name", FAMILY)
def test_a_checkpoint_of_a_matrix_of_another_shape_is_refused(name):
    # Torch does not look; its fused kernel would write beyond the end of the moments.
    state = stepped(*made(name)).state_dict()
    for shape in ((8, 20), (20, 6)):
        optimizer, params = made(name, shape)
        assert_refused(optimizer, params, state, r"the checkpoint has .* of [wb], this optimizer")


def test_a_checkpoint_of_a_plain_tensor_of_another_shape_is_refused():
    state = stepped(*made("grass")).state_dict()
    state["state"][1]["exp_avg"] = torch.zeros(5)
    optimizer, params = made("grass")
    assert_refused(optimizer, params, state, r"shape \(5,\) as exp_avg of b, .* shape \(8,\)")


@pytest.mark.parametrize("name", FAMILY)
def test_adamws_checkpoint_does_not_turn_an_optimizer_into_adamw(name):
    optimizer, params = made(name)
    twins = [nn.Parameter(p.detach().clone()) for p in params]
    adamw = torch.optim.AdamW([{"params": [("w", twins[0])]}, {"params": [("b", twins[1])]}])
    state = stepped(adamw, twins).state_dict()
    message = f"group 0 has no rank: it was not saved by {type(optimizer).__name__}"
    assert_refused(optimizer, params, state, message)


@pytest.mark.parametrize(
    ("saved", "here"), [("snsm", "galore"), ("galore", "snsm"), ("galore", "osd")]
)
def test_a_checkpoint_of_a_sibling_with_other_moments_is_refused(saved, here):
    state = stepped(*made(saved)).state_dict()
    optimizer, params = made(here)
    assert_refused(optimizer, params, state, r"the checkpoint('s group 0)? has")


@pytest.mark.parametrize("saved", ["grass", "snsm-rows"])
def test_selections_of_grass_and_snsm_are_not_taken_for_each_other(saved):
    group = {"side": "left", "basis": "rows"}
    state = stepped(*made(saved, **group)).state_dict()
    here = "snsm-rows" if saved == "grass" else "grass"
    optimizer, params = made(here, **group)
    assert_refused(optimizer, params, state, r"the checkpoint has .* of w, this optimizer needs")
