"""Ways around the guard that once were open: late groups, resumed bases, biases, adapters."""

import copy
import io

import pytest
import torch
from torch import nn

from spanwise import Atlas, Subspace
from spanwise.atlas import Entry
from spanwise.linalg.bases import random_basis
from spanwise.optim import GaLore, GrassWalk, guard, param_groups, project_lora_
from spanwise.optim._zoo import MuonWithAdamW, muon_groups


def weight(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return nn.Parameter(0.05 * torch.randn(shape, generator=generator).to(dtype))


def entry(name, side="input", rank=3, dtype=torch.float64, shape=(12, 10), **options):
    d = shape[1] if side == "input" else shape[0]
    basis = random_basis(d, rank, generator=torch.Generator().manual_seed(d), dtype=dtype)
    options = {"layout": "linear", **options}
    return Entry(name=name, side=side, subspace=Subspace(basis), shape=shape, **options)


def take(optimizer, count=3, *, seed=1, low=None):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for group in optimizer.param_groups:
            for p in group["params"]:
                g = torch.randn(p.shape, generator=generator, dtype=torch.float64)
                if low:
                    g = g[:, :low] @ g[:low]
                p.grad = g.to(p.dtype)
        optimizer.step()


def leak(e, update):
    u, d = e.subspace.basis.double(), update.detach().double()
    inside = d @ u if e.side == "input" else u.mT @ d
    assert d.norm() > 0
    return float(inside.norm() / d.norm())


@pytest.mark.parametrize("ours", [True, False])
def test_a_group_added_later_is_guarded_too(ours):
    a, b = weight(12, 10), weight(12, 10, seed=1)
    atlas = Atlas([entry("a"), entry("b")])
    if ours:
        optimizer = GaLore([{"params": [("a", a)], "rank": 3}], avoid=atlas)
        optimizer.add_param_group({"params": [("b", b)], "rank": 3})
    else:
        optimizer = guard(torch.optim.AdamW([("a", a)]), avoid=atlas)
        optimizer.add_param_group({"params": [("b", b)]})
    start = b.detach().clone()
    take(optimizer)
    assert leak(entry("b"), b - start) < 1e-12


def test_a_group_that_does_not_fit_the_atlas_is_not_added():
    a = weight(12, 10)
    optimizer = GaLore([{"params": [("a", a)], "rank": 3}], avoid=Atlas([entry("a"), entry("b")]))
    with pytest.raises(ValueError, match="another model"):
        optimizer.add_param_group({"params": [("b", weight(9, 10))], "rank": 3})
    assert len(optimizer.param_groups) == 1
    take(optimizer)


@pytest.mark.parametrize("rank", [3, 8])
@pytest.mark.parametrize("side", ["short", "long", "full"])
def test_a_state_saved_without_the_atlas_does_not_leak_into_it(rank, side):
    # 8 of 10 directions avoided leave 2: the saved rank of 3 no longer fits.
    a, e = weight(12, 10), entry("a", rank=rank)
    groups = [{"params": [("a", a)], "rank": 3, "side": side}]
    free = GaLore(copy.copy(groups))
    take(free)
    if rank == 8:
        with pytest.warns(UserWarning, match="fewer free directions"):
            optimizer = GaLore(groups, avoid=Atlas([e]))
    else:
        optimizer = GaLore(groups, avoid=Atlas([e]))
    optimizer.load_state_dict(free.state_dict())
    start = a.detach().clone()
    take(optimizer)
    assert leak(e, a - start) < 1e-12


@pytest.mark.parametrize("moments", ["keep", "project_aware", "reset"])
def test_growing_the_atlas_below_the_rank_goes_on_with_what_is_left(moments):
    a, e = weight(12, 10), entry("a", rank=8)
    optimizer = GaLore([{"params": [("a", a)], "rank": 3}], moments=moments, refresh_every=2)
    take(optimizer)
    with pytest.warns(UserWarning, match="fewer free directions"):
        optimizer.set_constraints(avoid=Atlas([e]))
    start = a.detach().clone()
    take(optimizer, 5)
    assert leak(e, a - start) < 1e-12
    optimizer.set_constraints()
    take(optimizer, 3)
    assert optimizer.state[a]["basis_right"].shape == (10, 3)
    assert torch.isfinite(a).all()


def test_a_zero_gradient_after_the_atlas_grew_does_not_step_in_the_old_basis():
    a = weight(12, 10)
    optimizer = GaLore([{"params": [("a", a)], "rank": 3}])
    take(optimizer)
    optimizer.set_constraints(avoid=Atlas([entry("a")]))
    start = a.detach().clone()
    a.grad = torch.zeros_like(a)
    optimizer.step()
    assert torch.equal(a, start)


@pytest.mark.parametrize("init", ["svd", "jump"])
def test_a_zero_gradient_is_no_first_basis_of_another_rank(init):
    # A walk needs no gradient, but with new coordinates it starts as at first: by an SVD.
    a, e = weight(12, 10), entry("a", rank=8)
    optimizer = GrassWalk([{"params": [("a", a)], "rank": 3}], init=init, refresh_every=None)
    take(optimizer)
    with pytest.warns(UserWarning, match="fewer free directions"):
        optimizer.set_constraints(avoid=Atlas([e]))
    start = a.detach().clone()
    a.grad = torch.zeros_like(a)
    optimizer.step()
    assert torch.equal(a, start)
    a.grad = weight(12, 10, seed=5).detach()
    optimizer.step()
    basis = optimizer.state[a]["basis_right"]
    assert basis.shape == (10, 2)
    assert int(optimizer.state[a]["refreshed"]) == 3
    assert leak(e, a - start) < 1e-12


def test_guarded_galore_resumes_bitwise():
    e = [entry("a"), entry("a", "output")]
    runs = []
    for cut in (False, True):
        a = weight(12, 10, dtype=torch.float32)
        groups = [{"params": [("a", a)], "rank": 3}]
        optimizer = GaLore(groups, avoid=Atlas(e), refresh_every=4)
        take(optimizer, 6)
        if cut:
            buffer = io.BytesIO()
            torch.save(optimizer.state_dict(), buffer)
            buffer.seek(0)
            optimizer = GaLore(groups, avoid=Atlas(e), refresh_every=4)
            optimizer.load_state_dict(torch.load(buffer, weights_only=True))
        take(optimizer, 5, seed=2)
        runs.append(a.detach())
    assert torch.equal(*runs)


def test_a_checkpoint_of_other_parameters_is_refused():
    a, b = weight(10, 10), weight(10, 10, seed=1)
    saved = GaLore([{"params": [("a", a), ("module.b", b)], "rank": 3}]).state_dict()
    GaLore([{"params": [("a", a), ("b", b)], "rank": 3}]).load_state_dict(saved)
    other = GaLore([{"params": [("b", b), ("a", a)], "rank": 3}])
    with pytest.raises(ValueError, match="group 0 has a where this optimizer has b"):
        other.load_state_dict(saved)


def test_compat_obeys_when_the_gradient_has_fewer_directions_than_the_rank():
    # LAPACK's vectors for zero singular values may lie anywhere.
    a, e = weight(12, 10), entry("a")
    group = {"params": [("a", a)], "rank": 5, "update_proj_gap": 2}
    optimizer = GaLore([group], compat="galore_torch", avoid=Atlas([e]))
    start = a.detach().clone()
    take(optimizer, 5, low=2)
    assert leak(e, a - start) < 1e-12


@pytest.mark.filterwarnings("ignore:half-precision weights")
@pytest.mark.parametrize("compat", [None, "galore_torch"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_half_precision_weights_step_under_the_guard(compat, decay):
    a, b = (weight(12, 10, dtype=torch.bfloat16, seed=s) for s in (0, 1))
    e = [entry(n, side) for n in "ab" for side in ("output", "input")]
    optimizer = GaLore(
        [{"params": [("a", a)], "rank": 3}, {"params": [("b", b)]}],
        lr=1e-1, weight_decay=decay, avoid=Atlas(e), compat=compat,
    )  # fmt: skip
    starts = [p.detach().clone() for p in (a, b)]
    take(optimizer)
    assert optimizer.state[a]["basis_right"].dtype == torch.float32
    for p, start, name in zip((a, b), starts, "ab", strict=True):
        assert max(leak(x, p - start) for x in e if x.name == name) < 2e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_coarse_basis_is_made_orthonormal_before_it_guards(dtype):
    a = weight(12, 10)
    atlas = Atlas([entry("a", "output", dtype=dtype), entry("a", "input")])
    optimizer = guard(torch.optim.AdamW([("a", a)]), avoid=atlas)
    start = a.detach().clone()
    take(optimizer)
    assert max(leak(e, a - start) for e in atlas) < 1e-12


def test_memory_order_of_weights_and_gradients_does_not_matter():
    # torch's fused kernel on a CPU pairs weights and gradients by their place in memory.
    conv = weight(8, 4, 3, 3)
    last = nn.Parameter(conv.detach().to(memory_format=torch.channels_last))
    e = entry("c", "output", shape=(8, 4, 3, 3), layout="conv")
    for p in (conv, last):
        groups = [{"params": [("x", weight(12, 10))], "rank": 3}, {"params": [("c", p)]}]
        optimizer = GaLore(groups, lr=0.1, avoid=Atlas([e]))
        take(optimizer)
    assert torch.equal(conv, last)
    plain = []
    for transposed in (True, False):
        rest = weight(6, 5)
        groups = [{"params": [weight(12, 10)], "rank": 3}, {"params": [rest]}]
        optimizer = GaLore(groups, lr=0.1)
        g = torch.randn(5, 6, generator=torch.Generator().manual_seed(0)).double().T
        rest.grad = g if transposed else g.contiguous()
        optimizer.step()
        plain.append(rest.detach())
    assert torch.equal(*plain)


@pytest.mark.parametrize("frozen_weight", [False, True])
@pytest.mark.parametrize("side", ["output", "input"])
def test_a_bias_obeys_when_the_atlas_does_not_name_it_or_trains_alone(side, frozen_weight):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 12)).double()
    model[0].weight.requires_grad_(not frozen_weight)
    e = entry("0.weight", side)
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    optimizer = guard(torch.optim.AdamW(named, lr=0.1), avoid=Atlas([e]))
    start = model[0].bias.detach().clone()
    take(optimizer)
    if side == "input":
        assert torch.equal(model[0].bias, start)
    else:
        assert leak(e, (model[0].bias - start).unsqueeze(-1)) < 1e-12


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6).double(), nn.Linear(6, 6).double()
        self.second.weight = self.first.weight

    def inner(self, x):
        return torch.tanh(self.first(x)) * torch.tensor([1.0, 1, 0, 0, 0, 0])

    def forward(self, x):
        return self.second(self.inner(x))


def test_a_weight_that_two_layers_hold_keeps_what_both_read():
    torch.manual_seed(0)
    model = Tied()
    x = torch.randn(40, 1, dtype=torch.float64) @ torch.randn(1, 6, dtype=torch.float64)
    atlas = Atlas.from_activations(model, [x], energy=1.0)
    # The first layer reads a line, the second two coordinates.
    inner = model.inner(x).detach()
    v = atlas.get("second.weight")["input"].subspace.basis
    assert v.shape[1] == 3
    assert (inner - inner @ v @ v.mT).norm() < 1e-6 * inner.norm()
    optimizer = guard(torch.optim.AdamW(model.named_parameters(), lr=1e-2), avoid=atlas)
    before = model(x).detach()
    take(optimizer)
    assert torch.allclose(model(x), before, atol=1e-8)


@pytest.mark.parametrize("spoilt", [2.0, float("nan")])
def test_a_basis_that_is_not_of_unit_columns_is_refused(spoilt):
    e = entry("a")
    e.subspace.basis[:, 1] *= spoilt
    with pytest.raises(ValueError, match="a, input side, has columns that are not of length 1"):
        guard(torch.optim.AdamW([("a", weight(12, 10))]), avoid=Atlas([e]))


def test_a_removed_guard_can_be_replaced():
    a = weight(12, 10)
    optimizer = guard(torch.optim.AdamW([("a", a)]), avoid=Atlas([entry("a")]))
    optimizer.spanwise_guard.remove()
    guard(optimizer, avoid=Atlas([entry("a", "output")]))
    start = a.detach().clone()
    take(optimizer)
    assert leak(entry("a", "output"), a - start) < 1e-12
    assert leak(entry("a"), a - start) > 1e-2


def test_an_accelerators_wrapper_is_refused_because_it_runs_no_hooks():
    accelerate = pytest.importorskip("accelerate")
    a = weight(12, 10)
    wrapped = accelerate.Accelerator(cpu=True).prepare(torch.optim.AdamW([("a", a)]))
    with pytest.raises(TypeError, match="before an accelerator wraps it"):
        guard(wrapped, avoid=Atlas([entry("a")]))
    guard(wrapped.optimizer, avoid=Atlas([entry("a")]))
    start = a.detach().clone()
    a.grad = torch.randn_like(a)
    wrapped.step()
    assert leak(entry("a"), a - start) < 1e-12


def adapted(**options):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(10, 12), nn.Linear(12, 12)).double()
    config = peft.LoraConfig(r=4, target_modules=["0"], **options)
    model = peft.get_peft_model(base, config).double()
    return model, [(n, p) for n, p in model.named_parameters() if p.requires_grad]


def test_biases_and_whole_copies_beside_lora_are_guarded():
    atlas = Atlas([entry("0.weight"), entry("1.weight", shape=(12, 12))])
    for options in ({"bias": "all"}, {"modules_to_save": ["1"]}):
        model, named = adapted(**options)
        project_lora_(model, atlas)
        optimizer = guard(torch.optim.AdamW(named, lr=0.1), avoid=atlas)
        free = {n for n, _ in named} - set(optimizer.spanwise_guard.names)
        # B needs no guard: with input directions, what A does not read B cannot carry.
        assert [n for n in free if "lora_B" not in n] == []


def test_lora_within_an_atlas_starts_and_stays_inside():
    model, named = adapted()
    e = entry("0.weight")
    assert project_lora_(model, within=Atlas([e])) == 1
    optimizer = guard(torch.optim.AdamW(named, lr=0.1), within=Atlas([e]))
    take(optimizer)
    delta = model.base_model.model[0].get_delta_weight("default").detach()
    v = e.subspace.basis
    assert delta.norm() > 0
    assert (delta - delta @ v @ v.mT).norm() < 1e-12 * delta.norm()


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}])
def test_adapters_that_cannot_be_held_are_refused(options):
    model, named = adapted(**options)
    atlas = Atlas([entry("0.weight")])
    project_lora_(model, atlas)
    with pytest.raises(ValueError, match=r"changes the map of 0\.weight.*cannot be held"):
        guard(torch.optim.AdamW(named), avoid=atlas)


def test_muon_with_adamw_steps_late_groups_and_survives_copy_and_load():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 12), nn.Linear(12, 8))
    optimizer = MuonWithAdamW(muon_groups(model), lr=1e-2)
    late = nn.Parameter(torch.zeros(4))
    optimizer.add_param_group({"params": [("late", late)]})
    take(optimizer)
    assert late.detach().norm() > 0
    model.register_parameter("late", late)
    twin, copied = copy.deepcopy((model, optimizer))
    take(optimizer, 2, seed=5)
    take(copied, 2, seed=5)
    assert all(map(torch.equal, model.parameters(), twin.parameters()))
    loaded = MuonWithAdamW(muon_groups(twin), lr=1e-2)
    loaded.load_state_dict(MuonWithAdamW(muon_groups(model), lr=3e-3).state_dict())
    assert {g["lr"] for part in loaded._parts for g in part.param_groups} == {3e-3}


def test_scalar_parameters_have_their_state_counted_and_loaded():
    from spanwise.optim import state_bytes

    a, scalar, empty = weight(12, 10), nn.Parameter(torch.tensor(1.0)), weight(0)
    optimizer = GaLore(
        [{"params": [("a", a)], "rank": 3}, {"params": [("s", scalar), ("e", empty)]}]
    )
    take(optimizer)
    assert state_bytes(optimizer) == optimizer.report().state_bytes
    optimizer.load_state_dict(optimizer.state_dict())
    take(optimizer)
    assert torch.isfinite(scalar)


def test_groups_find_a_models_own_copy_under_peft():
    model, _ = adapted(modules_to_save=["1"])
    groups = param_groups(model, rank=3)
    assert "1.weight" in [n for n, _ in groups[0]["params"]]
