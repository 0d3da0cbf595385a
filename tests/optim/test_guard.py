"""The guard: the guarantee on every optimizer, side, shape and decay, and what leaks without it."""

import copy

import pytest
import torch
from torch import nn

from spanwise import Atlas, Subspace
from spanwise.atlas import Entry
from spanwise.layouts import matrix_view
from spanwise.linalg.bases import random_basis
from spanwise.optim import (
    SNSM,
    AdamSN,
    GaLore,
    Grass,
    GrassJump,
    GrassWalk,
    guard,
    param_groups,
)
from spanwise.optim._guard.constraint import SideConstraint
from spanwise.optim.osd import OnlineSubspaceDescent

# name -> (shape, layout); dimensions of the map follow from the layout.
TENSORS = {
    "tall": ((24, 10), "linear"),
    "wide": ((10, 24), "linear"),
    "square": ((16, 16), "linear"),
    "conv1d": ((12, 20), "transposed"),
    "conv": ((14, 3, 2, 2), "conv"),
    "expert": ((3, 12, 10), "experts"),
}
SIDES = [("output",), ("input",), ("output", "input")]


def make_atlas(sides, *, rank=4, dtype=torch.float64, tensors=TENSORS):
    generator = torch.Generator().manual_seed(7)
    entries = []
    for name, (shape, layout) in tensors.items():
        m, n = matrix_view(torch.empty(shape), layout).shape[-2:]
        batch = shape[:1] if layout == "experts" else ()
        for side in sides:
            d = m if side == "output" else n
            basis = random_basis(d, rank, generator=generator, batch=batch, dtype=dtype)
            entries.append(
                Entry(name=name, side=side, subspace=Subspace(basis), layout=layout, shape=shape)
            )
    return Atlas(entries)


def make_parameters(dtype=torch.float64, tensors=TENSORS):
    generator = torch.Generator().manual_seed(0)
    # Weights of a trained network's size: what rounding leaks grows with |W| / |update|.
    return {
        name: nn.Parameter(
            (0.05 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
        )
        for name, (shape, _) in tensors.items()
    }


def galore(method=GaLore, **options):
    def make(parameters, decay, **constraint):
        group = {
            "params": list(parameters.items()),
            "layouts": [TENSORS[name][1] for name in parameters],
            "rank": 3,
        }
        settings = {"refresh_every": 3, **options, **constraint}
        return method([group], lr=1e-2, weight_decay=decay, **settings)

    return make


def selecting(method, **options):
    """An optimizer of selected rows: they must leave coordinates free under the constraint."""

    def make(parameters, decay, **constraint):
        group = {
            "params": list(parameters.items()),
            "layouts": [TENSORS[name][1] for name in parameters],
            "rank": 8 if "within" in constraint else 6,
        }
        return method(
            [group], lr=1e-2, weight_decay=decay, refresh_every=3, **options, **constraint
        )

    return make


def plain_galore_group(parameters, decay, **constraint):
    """AdamW tensors inside a GaLore optimizer, beside one projected matrix."""
    projected = [("tall", parameters["tall"])]
    rest = [(n, p) for n, p in parameters.items() if n != "tall"]
    return GaLore(
        [{"params": projected, "rank": 3}, {"params": rest}],
        lr=1e-2, weight_decay=decay, **constraint,
    )  # fmt: skip


def subset_norms(parameters, decay, **constraint):
    """Subset norms without a subspace, beside a plain group."""
    treated = {n: p for n, p in parameters.items() if n != "tall"}
    group = {"params": list(treated.items()), "layouts": [TENSORS[n][1] for n in treated]}
    plain = {"params": [(n, p) for n, p in parameters.items() if n == "tall"]}
    return AdamSN([group, plain], lr=1e-2, weight_decay=decay, **constraint)


def guarded(factory):
    def make(parameters, decay, **constraint):
        optimizer = factory(list(parameters.items()), decay)
        return guard(optimizer, **constraint) if constraint else optimizer

    return make


OPTIMIZERS = {
    "galore-short": galore(),
    "galore-long": galore(side="long", svd="exact"),
    "galore-full": galore(side="full", svd="gram"),
    "galore-warm": galore(svd="warm", moments="rotate", stagger=True),
    "galore-plain": plain_galore_group,
    "galore-fira": galore(residual="fira"),
    "grasswalk": galore(GrassWalk),
    "grasswalk-long-drop": galore(GrassWalk, side="long", residual="drop"),
    "grasswalk-track": galore(GrassWalk, basis="track"),
    "grassjump": galore(GrassJump),
    "grassjump-drop": galore(GrassJump, residual="drop", init="jump"),
    "osd": galore(OnlineSubspaceDescent, refresh_every=None),
    "osd-long-sgd": galore(OnlineSubspaceDescent, side="long", proj_optimizer="sgd", proj_lr=0.5),
    "osd-lion": galore(
        OnlineSubspaceDescent,
        refresh_every=None,
        base="lion",
        proj_optimizer="lion",
        proj_every=2,
        retract="qr",
        retract_every=2,
    ),
    "osd-adafactor": galore(
        OnlineSubspaceDescent,
        refresh_every=None,
        base="adafactor",
        proj_optimizer="adafactor",
        retract="polar",
        retract_every=1,
        ortho_penalty=0.1,
    ),
    "grass": selecting(Grass),
    "grass-sampled": selecting(Grass, select="multinomial_norm", moments="keep_common"),
    "grass-decay": selecting(Grass, select="uniform_nr", decay="selected"),
    "snsm": galore(SNSM),
    "snsm-rows-chunks": galore(SNSM, basis="rows", select="uniform_nr", subset_size=-1),
    "snsm-srht-keep": galore(SNSM, basis="srht", moments="keep", normalize="mean"),
    "snsm-sgd": galore(SNSM, second_moment="none", moments="rotate", debias_after_reset=True),
    "adamsn": subset_norms,
    "adamw": guarded(lambda p, wd: torch.optim.AdamW(p, lr=1e-2, weight_decay=wd)),
    "adamw-fused": guarded(
        lambda p, wd: torch.optim.AdamW(p, lr=1e-2, weight_decay=wd, fused=True)
    ),
    "sgd": guarded(lambda p, wd: torch.optim.SGD(p, lr=1e-2, momentum=0.9, weight_decay=wd)),
    "muon": guarded(lambda p, wd: torch.optim.Muon(p, lr=1e-2, weight_decay=wd)),
}


def run(make, decay, steps=8, dtype=torch.float64, tensors=TENSORS, project=None, **constraint):
    parameters = make_parameters(dtype, tensors)
    start = {n: p.detach().clone() for n, p in parameters.items()}
    optimizer = make(parameters, decay, **constraint)
    generator = torch.Generator().manual_seed(3)
    for _ in range(steps):
        for name, p in parameters.items():
            g = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(dtype)
            p.grad = g if project is None else project(name, g)
        optimizer.step()
    return {n: p.detach() - start[n] for n, p in parameters.items()}


def leak(atlas, updates):
    """Largest share of an update's norm inside the atlas, over tensors and sides."""
    worst = 0.0
    for entry in atlas:
        if entry.name not in updates:
            continue
        d = matrix_view(updates[entry.name], entry.layout)
        basis = entry.subspace.basis.to(d.dtype)
        inside = basis.mT @ d if entry.side == "output" else d @ basis
        worst = max(worst, float(inside.norm() / d.norm()))
    return worst


def only_matrices(name):
    return {"muon"} & {name}


def tensors_for(name):
    if only_matrices(name):
        return {k: v for k, v in TENSORS.items() if len(v[0]) == 2}
    return TENSORS


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("sides", SIDES, ids="+".join)
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_no_update_enters_the_avoided_directions(name, sides, decay):
    tensors = tensors_for(name)
    atlas = make_atlas(sides, tensors=tensors)
    updates = run(OPTIMIZERS[name], decay, tensors=tensors, avoid=atlas)
    assert all(d.norm() > 0 for d in updates.values())
    assert leak(atlas, updates) < 1e-12


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("sides", SIDES, ids="+".join)
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_every_update_stays_within_the_given_directions(name, sides, decay):
    tensors = tensors_for(name)
    # Selected rows hold an allowed direction only if there are more than the other rows.
    atlas = make_atlas(sides, tensors=tensors, rank=9 if "grass-" in f"{name}-" else 4)
    updates = run(OPTIMIZERS[name], decay, tensors=tensors, within=atlas)
    for entry in atlas:
        d = matrix_view(updates[entry.name], entry.layout)
        q = entry.subspace.basis
        kept = q @ (q.mT @ d) if entry.side == "output" else (d @ q) @ q.mT
        assert d.norm() > 0
        assert (d - kept).norm() < 1e-12 * d.norm()


@pytest.mark.parametrize(
    "name",
    [
        "galore-short",
        "galore-long",
        "grasswalk",
        "grassjump",
        "osd",
        "snsm",
        "adamsn",
        "adamw",
        "sgd",
        "muon",
    ],
)
def test_float32_keeps_the_guarantee_to_rounding(name):
    tensors = tensors_for(name)
    atlas = make_atlas(("output", "input"), dtype=torch.float32, tensors=tensors)
    updates = run(OPTIMIZERS[name], 0.0, dtype=torch.float32, tensors=tensors, avoid=atlas)
    assert leak(atlas, updates) < 1e-5


@pytest.mark.parametrize(
    ("name", "sides", "decay"),
    [
        ("adamw", ("output",), 0.0),
        ("adamw", ("input",), 0.1),
        ("muon", ("output",), 0.1),
        ("galore-short", ("output", "input"), 0.0),
        ("galore-long", ("output", "input"), 0.0),
        ("snsm", ("output",), 0.0),
        ("snsm-sgd", ("input",), 0.1),
        ("adamsn", ("output", "input"), 0.0),
        ("grasswalk", ("output", "input"), 0.0),
        ("grassjump", ("input",), 0.0),
        ("osd", ("output", "input"), 0.0),
        ("sgd", ("input",), 0.1),
    ],
)
def test_control_projecting_only_the_gradient_leaks(name, sides, decay):
    tensors = tensors_for(name)
    atlas = make_atlas(sides, tensors=tensors)

    def project(tensor, g):
        d = matrix_view(g, tensors[tensor][1])
        for entry in atlas.get(tensor).values():
            u = entry.subspace.basis
            inside = u @ (u.mT @ d) if entry.side == "output" else (d @ u) @ u.mT
            d.sub_(inside)
        return g

    updates = run(OPTIMIZERS[name], decay, tensors=tensors, project=project)
    assert leak(atlas, updates) > 1e-2


def test_avoid_and_within_together_obey_both():
    generator = torch.Generator().manual_seed(0)
    avoid = random_basis(12, 3, generator=generator, dtype=torch.float64)
    within = random_basis(12, 7, generator=generator, dtype=torch.float64)
    side = SideConstraint.build(avoid, within)
    x = side.rows(torch.randn(12, 5, generator=generator, dtype=torch.float64))
    assert side.free == 4
    assert (avoid.mT @ x).norm() < 1e-12
    assert (x - within @ (within.mT @ x)).norm() < 1e-12
    assert x.norm() > 0.1


def test_updates_of_an_unguarded_twin_are_those_without_the_atlas():
    tensors = {"tall": TENSORS["tall"], "wide": TENSORS["wide"]}
    only_tall = make_atlas(("output",), tensors={"tall": TENSORS["tall"]})
    guarded_ = run(OPTIMIZERS["adamw"], 0.0, tensors=tensors, avoid=only_tall)
    free = run(OPTIMIZERS["adamw"], 0.0, tensors=tensors)
    assert torch.equal(guarded_["wide"], free["wide"])
    assert not torch.equal(guarded_["tall"], free["tall"])


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.map = nn.Linear(6, 8).double()


def bias_atlas(side):
    d = 8 if side == "output" else 6
    basis = random_basis(d, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Atlas(
        [
            Entry(
                name="map.weight",
                side=side,
                subspace=Subspace(basis),
                layout="linear",
                shape=(8, 6),
                bias="map.bias",
            )
        ]
    ), basis


@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize("side", ["output", "input"])
def test_the_bias_obeys_with_its_weight(side, ours):
    atlas, basis = bias_atlas(side)
    torch.manual_seed(0)
    model = Layer()
    before = copy.deepcopy(model)
    if ours:
        optimizer = GaLore(param_groups(model, rank=2), lr=1e-2, avoid=atlas)
    else:
        optimizer = guard(torch.optim.AdamW(model.named_parameters(), lr=1e-2), avoid=atlas)
    for k in range(5):
        for p in model.parameters():
            p.grad = torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(k))
        optimizer.step()
    moved = model.map.bias.detach() - before.map.bias
    if side == "output":
        assert moved.norm() > 0
        assert (basis.mT @ moved).norm() < 1e-12
    else:
        assert torch.equal(model.map.bias, before.map.bias)
        x = (basis @ torch.randn(2, 4, dtype=torch.float64)).mT
        assert torch.allclose(model.map(x), before.map(x), atol=1e-12, rtol=0)


def test_bias_allow_lets_outputs_shift():
    atlas, _ = bias_atlas("input")
    model = Layer()
    optimizer = guard(torch.optim.SGD(model.named_parameters(), lr=1.0), avoid=atlas, bias="allow")
    before = model.map.bias.detach().clone()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert torch.allclose(model.map.bias, before - 1.0)


def test_a_full_atlas_freezes_the_weight_with_a_warning():
    basis = torch.eye(10, dtype=torch.float64)
    entry = Entry(name="tall", side="input", subspace=Subspace(basis), layout="linear",
                  shape=(24, 10))  # fmt: skip
    parameters = make_parameters()
    with pytest.warns(UserWarning, match="no free direction left and stay frozen.*tall"):
        optimizer = OPTIMIZERS["galore-short"](parameters, 0.1, avoid=Atlas([entry]))
    before = parameters["tall"].detach().clone()
    for p in parameters.values():
        p.grad = torch.randn_like(p)
    optimizer.step()
    assert torch.equal(parameters["tall"], before)
    assert optimizer.report().frozen == 1


def test_rank_is_clipped_to_what_is_left_with_a_warning():
    basis = random_basis(10, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    entry = Entry(name="tall", side="input", subspace=Subspace(basis), layout="linear",
                  shape=(24, 10))  # fmt: skip
    atlas = Atlas([entry])
    parameters = {"tall": make_parameters()["tall"]}
    with pytest.warns(UserWarning, match="fewer free directions than rank.*tall with rank 2"):
        optimizer = OPTIMIZERS["galore-short"](parameters, 0.0, avoid=atlas)
    start = parameters["tall"].detach().clone()
    for _ in range(5):
        parameters["tall"].grad = torch.randn(24, 10, dtype=torch.float64)
        optimizer.step()
    assert leak(atlas, {"tall": parameters["tall"].detach() - start}) < 1e-12
    assert optimizer.report().rows[0].rank == 2


@pytest.mark.parametrize("name", ["galore-short", "grasswalk", "grasswalk-long-drop", "grassjump"])
def test_growing_the_atlas_redraws_bases_and_keeps_the_promise_from_then_on(name):
    parameters = make_parameters()
    optimizer = OPTIMIZERS[name](parameters, 0.0)
    for _ in range(2):
        for p in parameters.values():
            p.grad = torch.randn_like(p)
        optimizer.step()
    atlas = make_atlas(("output", "input"))
    optimizer.set_constraints(avoid=atlas)
    start = {n: p.detach().clone() for n, p in parameters.items()}
    for _ in range(4):
        for p in parameters.values():
            p.grad = torch.randn_like(p)
        optimizer.step()
    assert leak(atlas, {n: p.detach() - start[n] for n, p in parameters.items()}) < 1e-12


def test_names_match_through_compile_ddp_and_peft_wrappers():
    atlas = make_atlas(("output",), tensors={"tall": TENSORS["tall"]})
    p = make_parameters()["tall"]
    for prefix in ("module.", "_orig_mod.", "base_model.model.", "module._orig_mod."):
        optimizer = guard(torch.optim.SGD([(prefix + "tall", p)], lr=0.1), avoid=atlas)
        assert optimizer.spanwise_guard.names == [prefix + "tall"]


def test_a_copied_galore_is_still_guarded():
    atlas = make_atlas(("output", "input"))
    parameters = make_parameters()
    optimizer = OPTIMIZERS["galore-short"](parameters, 0.0, avoid=atlas)
    twin, copied = copy.deepcopy((parameters, optimizer))
    start = {n: p.detach().clone() for n, p in twin.items()}
    for _ in range(3):
        for p in twin.values():
            p.grad = torch.randn_like(p)
        copied.step()
    assert leak(atlas, {n: p.detach() - start[n] for n, p in twin.items()}) < 1e-12


def test_closure_steps_are_guarded_too():
    atlas = make_atlas(("output", "input"), tensors={"tall": TENSORS["tall"]})
    p = make_parameters()["tall"]
    start = p.detach().clone()
    optimizer = guard(torch.optim.SGD([("tall", p)], lr=0.1), avoid=atlas)

    def closure():
        optimizer.zero_grad()
        loss = (p**3).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert (p.detach() - start).norm() > 0
    assert leak(atlas, {"tall": p.detach() - start}) < 1e-12


def test_removing_the_guard_frees_the_optimizer():
    atlas = make_atlas(("output",), tensors={"tall": TENSORS["tall"]})
    p = make_parameters()["tall"]
    optimizer = guard(torch.optim.SGD([("tall", p)], lr=0.1), avoid=atlas)
    optimizer.spanwise_guard.remove()
    start = p.detach().clone()
    p.grad = torch.randn_like(p)
    optimizer.step()
    assert leak(atlas, {"tall": p.detach() - start}) > 1e-2


def test_lora_adapter_obeys_once_its_first_factor_is_projected():
    peft = pytest.importorskip("peft")
    from spanwise.optim import project_lora_

    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(10, 12), nn.Tanh(), nn.Linear(12, 8)).double()
    basis = {
        side: random_basis(d, 3, generator=torch.Generator().manual_seed(d), dtype=torch.float64)
        for side, d in (("output", 12), ("input", 10))
    }
    atlas = Atlas(
        [
            Entry(name="0.weight", side=side, subspace=Subspace(b), layout="linear", shape=(12, 10))
            for side, b in basis.items()
        ]
    )
    model = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["0"])).double()
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    with pytest.raises(ValueError, match="project_lora_"):
        guard(torch.optim.AdamW(named, lr=1e-2), avoid=atlas)
    assert project_lora_(model, atlas) == 1
    optimizer = guard(torch.optim.AdamW(named, lr=1e-2), avoid=atlas)
    for k in range(5):
        model.zero_grad()
        x = torch.randn(16, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(k))
        model(x).square().sum().backward()
        optimizer.step()
    layer = model.base_model.model[0]
    delta = layer.get_delta_weight("default")
    assert delta.norm() > 0
    assert (basis["output"].mT @ delta).norm() < 1e-12 * delta.norm()
    assert (delta @ basis["input"]).norm() < 1e-12 * delta.norm()


class TestBadInput:
    def test_nothing_to_guard(self):
        with pytest.raises(ValueError, match="needs avoid=, within="):
            guard(torch.optim.SGD([nn.Parameter(torch.ones(2, 2))], lr=0.1))

    def test_optimizer_without_names(self):
        atlas = make_atlas(("output",))
        with pytest.raises(ValueError, match="no names to match an atlas with"):
            guard(torch.optim.SGD([nn.Parameter(torch.ones(2, 2))], lr=0.1), avoid=atlas)

    def test_atlas_that_matches_nothing(self):
        atlas = make_atlas(("output",))
        p = nn.Parameter(torch.ones(24, 10))
        with pytest.raises(ValueError, match=r"none of the atlas's 6 entries.*other\.weight"):
            guard(torch.optim.SGD([("other.weight", p)], lr=0.1), avoid=atlas)
        with pytest.raises(ValueError, match="none of the atlas's"):
            GaLore([{"params": [("other.weight", p)], "rank": 2}], avoid=atlas)

    def test_atlas_of_another_model(self):
        atlas = make_atlas(("output",))
        p = nn.Parameter(torch.ones(20, 10))
        with pytest.raises(ValueError, match=r"\(24, 10\), the model has \(20, 10\)"):
            guard(torch.optim.SGD([("tall", p)], lr=0.1), avoid=atlas)

    def test_guarding_twice(self):
        atlas = make_atlas(("output",))
        p = make_parameters()["tall"]
        optimizer = guard(torch.optim.SGD([("tall", p)], lr=0.1), avoid=atlas)
        with pytest.raises(ValueError, match="guarded already"):
            guard(optimizer, avoid=atlas)

    @pytest.mark.bad_input
    def test_something_that_is_no_optimizer(self):
        with pytest.raises(TypeError, match=r"must be a torch\.optim\.Optimizer, got int"):
            guard(3, avoid=make_atlas(("output",)))

    def test_half_precision_weights_warn_that_rounding_leaks(self):
        atlas = make_atlas(("output",))
        p = nn.Parameter(torch.ones(24, 10, dtype=torch.bfloat16))
        with pytest.warns(UserWarning, match="float32 master copy"):
            guard(torch.optim.SGD([("tall", p)], lr=0.1), avoid=atlas)


def test_the_report_counts_atlas_weights_that_do_not_train():
    atlas = make_atlas(("output",))
    parameters = {n: p for n, p in make_parameters().items() if n in ("tall", "wide")}
    optimizer = OPTIMIZERS["galore-short"](parameters, 0.0, avoid=atlas)
    report = optimizer.report()
    assert sorted(report.idle) == ["conv", "conv1d", "expert", "square"]
    assert "4 weights of the atlas do not train here" in str(report)


@pytest.mark.parametrize("atlas_side", [("output",), ("input",)])
@pytest.mark.parametrize("word", ["avoid", "within"])
def test_a_learning_basis_obeys_to_the_last_digit_after_every_step(atlas_side, word):
    # Its own rule leads it out at every step, and its columns are not orthonormal.
    atlas, parameters = make_atlas(atlas_side), make_parameters()
    optimizer = OPTIMIZERS["osd"](parameters, 0.0, **{word: atlas})
    for _ in range(5):
        for p in parameters.values():
            p.grad = torch.randn_like(p)
        optimizer.step()
        for member, _ in optimizer._projected():
            constraint = optimizer._constraints.get(member.name, member.parameter)
            state = optimizer.state[member.parameter]
            for key, allowed in (("left", constraint.rows), ("right", constraint.columns)):
                basis = state.get(f"basis_{key}")
                if allowed is not None and basis is not None:
                    assert (basis - allowed.rows(basis)).norm() < 1e-15 * basis.norm()
    assert all(int(optimizer.state[p]["proj_step"].max()) == 4 for p in parameters.values())
