"""Options of parameter groups: every key is read by something, every value is of its kind."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR

from spanwise.optim import OURS, SNSM, GaLore, Grass, GrassWalk

METHODS = pytest.mark.parametrize("method", sorted(OURS))


def group_of(method, **keys):
    """A group that `method` treats, of one 8 x 6 weight."""
    rank = {"rank": 2} if OURS[method].needs_rank else {"subset_size": "heuristics"}
    return {"params": [("w", nn.Parameter(torch.randn(8, 6)))], **rank, **keys}


def stepped(optimizer, count=2):
    for _ in range(count):
        for p in (p for group in optimizer.param_groups for p in group["params"]):
            p.grad = torch.randn_like(p)
        optimizer.step()


@METHODS
def test_a_key_that_nothing_reads_is_refused_with_the_nearest_and_all_there_are(method):
    message = r"key 'refresh_evry', which nothing.*Did you mean 'refresh_every'\?.* scale, "
    with pytest.raises(ValueError, match=message):
        OURS[method]([group_of(method, refresh_evry=7)])


def test_a_misspelt_key_of_a_paper_is_told_its_own_spelling():
    with pytest.raises(ValueError, match="Did you mean 'update_proj_gap'"):
        GaLore([group_of("galore", update_proj_gab=7)])


@METHODS
def test_a_group_added_later_with_an_unknown_key_is_not_added(method):
    optimizer = OURS[method]([group_of(method)])
    later = {"params": [("v", nn.Parameter(torch.randn(6)))], "wieght_decay": 0.1}
    with pytest.raises(ValueError, match="Did you mean 'weight_decay'"):
        optimizer.add_param_group(later)
    assert len(optimizer.param_groups) == 1


@METHODS
def test_keys_of_torch_its_schedulers_and_its_checkpoints_are_accepted(method):
    torchs = {"name": "matrices", "foreach": None, "fused": True, "capturable": False,
              "initial_lr": 0.1, "maximize": False}  # fmt: skip
    optimizer = OURS[method]([group_of(method, **torchs)], lr=0.1)
    schedule = lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=9)
    stepped(optimizer)
    schedule.step()
    SWALR(optimizer, swa_lr=0.05)
    state = copy.deepcopy(optimizer.state_dict())
    assert {"max_lr", "min_lr", "max_momentum", "swa_lr"} <= set(state["param_groups"][0])
    fresh = OURS[method]([group_of(method)])
    fresh.load_state_dict(state)
    stepped(fresh)
    # Groups of one optimizer, given to another.
    again = OURS[method]([dict(group) for group in fresh.param_groups])
    assert again.param_groups[0]["swa_lr"] == 0.05


@pytest.mark.parametrize("key", ["maximize", "amsgrad", "differentiable"])
def test_a_switch_of_torchs_that_would_change_the_method_is_refused_when_on(key):
    with pytest.raises(ValueError, match=f"{key} = True, which only torch's own"):
        GaLore([group_of("galore", **{key: True})])


def test_keys_of_a_kind_of_basis_go_with_those_that_may_have_it():
    GaLore([group_of("galore", basis="walk", walk_angle=0.1)])
    GaLore([group_of("galore", basis="rows", select="uniform", rho_max=2.0)])
    with pytest.raises(ValueError, match="the key 'walk_angle'"):
        Grass([group_of("grass", walk_angle=0.1)])


def gradients(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(8, 6, generator=generator) for _ in range(count)]


def go(optimizer, grads):
    (w,) = optimizer.param_groups[0]["params"]
    for g in grads:
        w.grad = g.clone()
        optimizer.step()
    return w.detach().clone()


@pytest.mark.parametrize("how", ["switched", "loaded", "from-before-there-was-one"])
@pytest.mark.parametrize("method", ["galore", "grasswalk", "grassjump"])
def test_recovery_that_comes_on_amid_a_run_starts_with_no_norm_to_compare_with(method, how):
    grads = gradients(6)
    group = group_of(method)
    start = group["params"][0][1].detach().clone()

    def made(residual):
        keys = {**group, "params": [("w", nn.Parameter(start.clone()))], "residual": residual}
        return OURS[method]([keys], refresh_every=2)

    # The same with the norm as it is at the start.
    expected = made("drop")
    go(expected, grads[:3])
    (w,) = expected.param_groups[0]["params"]
    expected.state[w]["residual_norm"] = torch.zeros(())
    expected.param_groups[0]["residual"] = "scaled"
    end = go(expected, grads[3:])

    first = made("drop")
    middle = go(first, grads[:3])
    if how != "switched":
        state = copy.deepcopy(first.state_dict())
        if how == "from-before-there-was-one":
            del state["param_groups"][0]["residual"]
        first = made("scaled")
        first.param_groups[0]["params"][0].data.copy_(middle)
        first.load_state_dict(state)
    first.param_groups[0]["residual"] = "scaled"
    assert torch.equal(go(first, grads[3:]), end)


def test_ages_of_rows_that_come_on_amid_a_run_are_those_of_their_moments():
    grads = gradients(6)
    whole = Grass([group_of("grass", moments="keep_common", refresh_every=None)])
    half = copy.deepcopy(whole)
    half.param_groups[0]["moments"] = "reset"
    go(half, grads[:3])
    assert "row_age" not in next(iter(half.state.values()))
    half.param_groups[0]["moments"] = "keep_common"
    assert torch.allclose(go(half, grads[3:]), go(whole, grads), atol=1e-7, rtol=0)


@pytest.mark.parametrize("spelling", ["growth_limit", "norm_growth_limit"])
def test_a_limit_beside_the_switch_that_turns_it_off_is_refused(spelling):
    off = {"norm_growth_limiter_off": True}
    with pytest.raises(
        ValueError, match=r"growth_limit = 1\.05 and norm_growth_limiter_off = True"
    ):
        GrassWalk([group_of("grasswalk", **{spelling: 1.05}, **off)])
    on = {"norm_growth_limiter_off": False}
    held = GrassWalk([group_of("grasswalk", **{spelling: 1.05}, **on)]).param_groups[0]
    assert held["growth_limit"] == 1.05


@pytest.mark.bad_input
class TestSwitches:
    def test_so_is_that_of_subtracks_limiter(self):
        with pytest.raises(TypeError, match="norm_growth_limiter_off must be True or False"):
            GrassWalk([group_of("grasswalk", norm_growth_limiter_off="no")])

    @METHODS
    @pytest.mark.parametrize("value", ["no", 2, 1, None])
    def test_stagger_is_true_or_false(self, method, value):
        with pytest.raises(TypeError, match="stagger must be True or False, got"):
            OURS[method]([group_of(method, stagger=value)])
        with pytest.raises(TypeError, match="clamp_rank must be True or False, got"):
            OURS[method]([group_of(method)], clamp_rank=value)

    @pytest.mark.parametrize(
        "key", ["ragged", "bias_correction", "debias_after_reset", "approx_svd", "overlap_state"]
    )
    def test_so_are_those_of_snsm(self, key):
        with pytest.raises(TypeError, match=f"{key} must be True or False, got 'no'"):
            SNSM([group_of("snsm", **{key: "no"})])

    @pytest.mark.parametrize("betas", [(True, 0.9), (False, 0.9), (0.9, False)])
    def test_a_decay_rate_is_no_switch(self, betas):
        with pytest.raises(ValueError, match=r"betas\[[01]\] must be in \[0, 1\), got"):
            GrassWalk([group_of("grasswalk", betas=betas)])
