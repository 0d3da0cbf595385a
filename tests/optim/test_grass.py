"""Grass: what the paper proves or promises, and what must not go wrong."""

import copy

import pytest
import torch
from torch import nn

from conformance.optimizers import OptimizerSuite, small_model, train, weights
from spanwise import Atlas, Subspace
from spanwise.atlas import Entry
from spanwise.linalg.bases import random_basis
from spanwise.optim import (
    SNSM,
    AdamSN,
    GaLore,
    Grass,
    GrassJump,
    GrassWalk,
    OnlineSubspaceDescent,
    param_groups,
    state_bytes,
)
from spanwise.optim._bases.rows import SELECTIONS

SIDES = ["short_left", "short", "long", "left", "right"]


class TestGrassSuite(OptimizerSuite):
    def make(self, groups, **options):
        return Grass(groups, refresh_every=3, **options)


class TestGrassSuiteSampledKeepingCommonRows(OptimizerSuite):
    def make(self, groups, **options):
        return Grass(
            groups, refresh_every=3, select="multinomial_norm", moments="keep_common",
            stagger=True, refresh_warmup=2, **options,
        )  # fmt: skip


class TestGrassSuiteUniform(OptimizerSuite):
    def make(self, groups, **options):
        return Grass(groups, refresh_every=2, select="uniform_nr", side="long", **options)


def matrix(rows, cols, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return nn.Parameter(torch.randn(rows, cols, generator=g, dtype=torch.float64).to(dtype))


def gradients(rows, cols, count, seed=1):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, cols, generator=g, dtype=torch.float64) for _ in range(count)]


def make(w, rank=3, **options):
    return Grass([{"params": [("w", w)], "rank": rank}], **{"lr": 1e-2, **options})


def run(w, grads, rank=3, **options):
    optimizer = make(w, rank, **options)
    for g in grads:
        w.grad = g.clone()
        optimizer.step()
    return optimizer


def rows_of(optimizer, w):
    """The side, the indices and the scale in use."""
    state = optimizer.state[w]
    side = "left" if "rows_left" in state else "right"
    rows = state[f"rows_{side}"]
    return side, rows, state.get("row_scale", torch.ones(rows.shape, dtype=torch.float64))


def naive_step(w, g, side, rows, scale, m, v, ages, *, rate, decay):
    """One step on a dense matrix, one row after the other, from the definition.

    `m`, `v` and `ages` are dicts by row: a row without an entry has no history.
    """
    if side == "right":
        w, g = w.mT, g.mT
    w = w.clone() if decay is None else w * (1 - decay)
    for i, rho in zip(rows.tolist(), scale.tolist(), strict=True):
        r = rho * g[i]
        ages[i] = ages.get(i, 0) + 1
        m[i] = 0.9 * m.get(i, 0) + 0.1 * r
        v[i] = 0.999 * v.get(i, 0) + 0.001 * r * r
        hat = m[i] / (1 - 0.9 ** ages[i])
        w[i] -= rate * rho * hat / ((v[i] / (1 - 0.999 ** ages[i])).sqrt() + 1e-6)
    return w if side == "left" else w.mT


@pytest.mark.parametrize("moments", ["reset", "keep_common"])
@pytest.mark.parametrize("select", SELECTIONS)
@pytest.mark.parametrize("shape", [(9, 14), (14, 9), (10, 10)])
def test_trajectory_equals_a_naive_dense_reference(shape, select, moments):
    lr, decay, scale, every, warmup = 1e-2, 0.1, 0.25, 3, 2
    w = matrix(*shape)
    expected = w.detach().clone()
    optimizer = make(w, 4, lr=lr, weight_decay=decay, scale=scale, select=select,
                     moments=moments, refresh_every=every, refresh_warmup=warmup)  # fmt: skip
    m, v, ages, chosen = {}, {}, {}, []
    for k, g in enumerate(gradients(*shape, 10)):
        w.grad = g.clone()
        optimizer.step()
        side, rows, rho = rows_of(optimizer, w)
        assert side == ("left" if shape[0] <= shape[1] else "right")
        if k % every == 0:
            chosen.append(rows)
            stay = set(rows.tolist()) if moments == "keep_common" else set()
            for held in (m, v, ages):
                for i in set(held) - stay:
                    del held[i]
        since = k % every + 1
        rate = lr * scale * (since / warmup if k >= every and since < warmup else 1.0)
        expected = naive_step(expected, g, side, rows, rho, m, v, ages, rate=rate,
                              decay=lr * decay)  # fmt: skip
        assert torch.allclose(w.detach(), expected, atol=1e-10, rtol=0)
    assert any(not torch.equal(chosen[0], later) for later in chosen[1:])


@pytest.mark.parametrize("select", SELECTIONS)
@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (7, 7)])
def test_with_every_row_grass_is_adamw(select, shape):
    w, plain = matrix(*shape), matrix(*shape)
    optimizer = make(w, min(shape), lr=1e-2, scale=1.0, weight_decay=0.1, select=select,
                     refresh_every=None)  # fmt: skip
    adamw = torch.optim.AdamW([plain], lr=1e-2, eps=1e-6, weight_decay=0.1)
    for g in gradients(*shape, 6):
        w.grad, plain.grad = g.clone(), g.clone()
        optimizer.step()
        adamw.step()
        assert torch.allclose(w, plain, atol=1e-12, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_order_of_the_rows_does_not_matter(side):
    grads = gradients(8, 9, 6)
    w, twin = matrix(8, 9), matrix(8, 9)
    first = run(w, grads[:3], 4, side=side)
    second = run(twin, grads[:3], 4, side=side)
    state, order = second.state[twin], torch.tensor([2, 0, 3, 1])
    dim = 0 if side == "left" else 1
    state[f"rows_{side}"] = state[f"rows_{side}"][order]
    for key in ("exp_avg", "exp_avg_sq"):
        state[key] = state[key].index_select(dim, order)
    for g in grads[3:]:
        w.grad, twin.grad = g.clone(), g.clone()
        first.step()
        second.step()
    assert torch.equal(w, twin)


@pytest.mark.parametrize("side", ["left", "right"])
def test_it_is_galore_with_coordinate_directions_as_basis(side):
    grads = gradients(9, 8, 6)
    w, twin = matrix(9, 8), matrix(9, 8)
    grass = run(w, grads[:1], 3, side=side, weight_decay=0.1)
    rows = grass.state[w][f"rows_{side}"]
    galore = GaLore([{"params": [twin], "rank": 3}], lr=1e-2, side=side, weight_decay=0.1)
    twin.grad = torch.zeros(9, 8, dtype=torch.float64)
    galore.step()
    twin.data = matrix(9, 8).data
    state = galore.state[twin]
    state["step"].zero_()
    state["refreshed"].zero_()
    state[f"basis_{side}"] = torch.eye(9 if side == "left" else 8, dtype=torch.float64)[:, rows]
    twin.grad = grads[0].clone()
    galore.step()
    for g in grads[1:]:
        w.grad, twin.grad = g.clone(), g.clone()
        grass.step()
        galore.step()
        assert torch.allclose(w, twin, atol=1e-12, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("select", SELECTIONS)
def test_rows_outside_the_selection_do_not_move(side, select):
    w = matrix(12, 10)
    start = w.detach().clone()
    optimizer = make(w, 3, side=side, select=select, refresh_every=4)
    allowed = set()
    for k, g in enumerate(gradients(12, 10, 12)):
        w.grad = g
        optimizer.step()
        allowed |= set(rows_of(optimizer, w)[1].tolist())
        moved = (w.detach() - start).abs().amax(1 if side == "left" else 0).nonzero().flatten()
        assert set(moved.tolist()) == allowed
        assert len(moved) <= 3 * (k // 4 + 1)


def test_it_selects_on_the_shorter_side_and_rows_of_a_square():
    for shape, side in (((6, 9), "left"), ((9, 6), "right"), ((7, 7), "left")):
        w = matrix(*shape)
        assert rows_of(run(w, gradients(*shape, 1)), w)[0] == side
    w = matrix(7, 7)
    assert rows_of(run(w, gradients(7, 7, 1), side="short"), w)[0] == "right"


@pytest.mark.parametrize("side", ["left", "right"])
def test_top_rows_are_those_of_largest_norm(side):
    g = gradients(8, 9, 1)[0]
    w = matrix(8, 9)
    rows = rows_of(run(w, [g], 3, side=side), w)[1]
    norms = g.norm(dim=1 if side == "left" else 0)
    assert set(rows.tolist()) == set(norms.topk(3).indices.tolist())


def test_first_step_after_a_reset_is_a_sign_step_of_size_lr_times_scale():
    w = matrix(8, 6)
    optimizer = run(w, gradients(8, 6, 5), refresh_every=5, lr=0.1, scale=0.5, eps=1e-12)
    before = w.detach().clone()
    w.grad = 100 * gradients(8, 6, 1, seed=3)[0]
    optimizer.step()
    moved = (w.detach() - before)[:, rows_of(optimizer, w)[1]]
    assert torch.allclose(moved.abs(), torch.full_like(moved, 0.05), atol=1e-12, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_keep_common_with_unchanged_rows_is_no_refresh_at_all(side):
    size = torch.ones(8, 6, dtype=torch.float64)
    (size if side == "left" else size.mT)[:3] = 100
    found = []
    for every in (2, None):
        w = matrix(8, 6)
        grads = [size * (1 + 0.1 * g.tanh()) for g in gradients(8, 6, 9)]
        run(w, grads, side=side, moments="keep_common", refresh_every=every)
        found.append(w.detach())
    reset = matrix(8, 6)
    run(reset, grads, side=side, refresh_every=2)
    assert torch.equal(*found)
    assert not torch.allclose(reset, found[0], atol=1e-4)


def test_keep_common_agrees_with_the_shared_step_count_until_the_first_refresh():
    found = []
    for moments in ("reset", "keep_common"):
        w = matrix(8, 6)
        run(w, gradients(8, 6, 5), moments=moments, refresh_every=5)
        found.append(w.detach())
    assert torch.allclose(*found, atol=1e-12, rtol=0)


@pytest.mark.parametrize("select", ["topr", "multinomial_norm"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_decay_of_the_selected_rows_leaves_the_others_alone(select, side):
    grads = gradients(9, 9, 7)
    w, free = matrix(9, 9), matrix(9, 9)
    optimizer = make(w, 3, lr=0.1, weight_decay=0.5, decay="selected", side=side, select=select,
                     refresh_every=4)  # fmt: skip
    plain = make(free, 3, lr=0.1, side=side, select=select, refresh_every=4)
    for g in grads:
        before = w.detach().clone()
        free.data = before.clone()
        w.grad, free.grad = g.clone(), g.clone()
        optimizer.step()
        plain.step()
        rows = rows_of(optimizer, w)[1]
        pull = torch.zeros_like(before)
        index = (rows, slice(None)) if side == "left" else (slice(None), rows)
        pull[index] = -0.05 * before[index]
        assert torch.allclose(w - free, pull, atol=1e-12, rtol=0)


def test_zero_gradient_decays_the_whole_weight_and_chooses_nothing():
    w = matrix(8, 6)
    start = w.detach().clone()
    optimizer = run(w, [torch.zeros(8, 6, dtype=torch.float64)] * 3, lr=0.1, weight_decay=0.5,
                    select="multinomial_norm")  # fmt: skip
    assert torch.allclose(w.detach(), start * 0.95**3, atol=1e-14, rtol=0)
    assert int(optimizer.state[w]["refreshed"]) == -1
    w.grad = gradients(8, 6, 1)[0]
    optimizer.step()
    assert int(optimizer.state[w]["refreshed"]) == 3


@pytest.mark.parametrize(
    ("options", "extra"),
    [
        ({}, 0),
        ({"select": "uniform_nr"}, 0),
        ({"select": "multinomial_norm"}, 5),
        ({"moments": "keep_common"}, 5),
        ({"select": "uniform", "moments": "keep_common"}, 10),
    ],
)
@pytest.mark.parametrize("side", ["short_left", "long"])
def test_state_bytes_are_exactly_as_counted(options, extra, side):
    w = matrix(20, 10, dtype=torch.float32)
    optimizer = Grass([{"params": [("w", w)], "rank": 5}], side=side, **options)
    predicted = optimizer.report().state_bytes
    w.grad = torch.randn(20, 10, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    moments = 2 * 5 * (20 if side == "short_left" else 10)
    assert predicted == state_bytes(optimizer) == 4 * (moments + extra) + 8 * 5


def test_bytes_of_the_60m_llama_are_a_quarter_of_adamws():
    shapes = [(512, 512)] * 32 + [(1376, 512)] * 16 + [(512, 1376)] * 8
    params = [nn.Parameter(torch.empty(s, device="meta")) for s in shapes]
    groups = [{"params": params, "rank": 128}]
    report = Grass(groups).report()
    indices = 8 * 128 * len(shapes)
    assert report.state_bytes == sum(8 * 128 * max(s) for s in shapes) + indices
    assert round((report.state_bytes - indices) / 1e6, 1) == 50.6
    assert round(GaLore(groups).report().state_bytes / 1e6, 1) == 65.3
    assert round(report.adamw_bytes / 1e6, 1) == 202.4


def test_same_seed_and_gradient_give_the_same_rows_and_another_seed_others():
    found = []
    for seed in (0, 0, 1):
        w = matrix(30, 40)
        optimizer = run(w, gradients(30, 40, 1), 8, select="multinomial_norm_nr", seed=seed)
        found.append(rows_of(optimizer, w)[1])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_equal_matrices_draw_different_rows():
    a, b = matrix(30, 40), matrix(30, 40)
    optimizer = Grass([{"params": [a, b], "rank": 8}], select="uniform_nr")
    a.grad = b.grad = gradients(30, 40, 1)[0]
    optimizer.step()
    assert not torch.equal(rows_of(optimizer, a)[1], rows_of(optimizer, b)[1])


@pytest.mark.parametrize("moments", ["reset", "keep_common"])
def test_resume_in_the_middle_of_a_warm_up_after_a_refresh(moments):
    def optimizer_of(model):
        return Grass(param_groups(model, rank=4), lr=1e-2, refresh_every=4, refresh_warmup=3,
                     select="multinomial_norm", moments=moments)  # fmt: skip

    model = small_model()
    optimizer = optimizer_of(model)
    train(model, optimizer, steps=5)
    twin = copy.deepcopy(model)
    second = optimizer_of(twin)
    second.load_state_dict(optimizer.state_dict())
    train(model, optimizer, steps=5, seed=2)
    train(twin, second, steps=5, seed=2)
    assert torch.equal(weights(twin), weights(model))


def test_the_rate_rises_again_after_every_choice_but_the_first():
    w = matrix(8, 6)
    optimizer = make(w, refresh_every=5, refresh_warmup=4, lr=0.1, scale=0.5, betas=(0.0, 0.9),
                     eps=1e-12)  # fmt: skip
    sizes = []
    for g in gradients(8, 6, 10):
        before = w.detach().clone()
        w.grad = g.sign()
        optimizer.step()
        sizes.append(float((w.detach() - before).abs().max()))
    assert sizes == pytest.approx([0.05] * 5 + [0.0125, 0.025, 0.0375, 0.05, 0.05])


def test_a_gradient_that_is_not_finite_keeps_rows_and_moments():
    w = matrix(8, 6)
    optimizer = run(w, gradients(8, 6, 3), 2, refresh_every=3)
    before = {k: v.clone() for k, v in optimizer.state[w].items()}
    weight = w.detach().clone()
    w.grad = gradients(8, 6, 1)[0]
    w.grad[0, 0] = float("nan")
    with pytest.warns(UserWarning, match="w at a basis refresh is not finite"):
        optimizer.step()
    assert torch.equal(w, weight)
    assert all(torch.equal(v, before[k]) for k, v in optimizer.state[w].items())
    w.grad = gradients(8, 6, 1, seed=9)[0]
    optimizer.step()
    assert int(optimizer.state[w]["refreshed"]) == 3
    assert torch.isfinite(w).all()


@pytest.mark.parametrize("select", ["topr", "uniform_nr"])
def test_stacked_experts_and_convolutions_follow_their_matrices(select):
    experts = nn.Parameter(torch.stack([matrix(9, 6, seed=i).detach() for i in range(3)]))
    conv = nn.Parameter(matrix(6, 8).detach().reshape(6, 2, 2, 2).clone())
    optimizer = Grass(
        [{"params": [("e", experts), ("c", conv)], "layouts": ["experts", "conv"], "rank": 3}],
        lr=1e-2, refresh_every=2, select=select, moments="keep_common",
    )  # fmt: skip
    expected = [w.detach().clone() for w in (*experts, conv.flatten(1))]
    memories = [({}, {}, {}) for _ in expected]
    for k in range(5):
        experts.grad = torch.stack([gradients(9, 6, 1, seed=10 * k + i)[0] for i in range(3)])
        conv.grad = gradients(6, 8, 1, seed=10 * k + 7)[0].reshape(conv.shape)
        optimizer.step()
        selections = [("right", row) for row in optimizer.state[experts]["rows_right"]]
        selections.append(("left", optimizer.state[conv]["rows_left"]))
        grads = [*experts.grad, conv.grad.flatten(1)]
        for i, (g, (side, rows)) in enumerate(zip(grads, selections, strict=True)):
            if k % 2 == 0:
                for held in memories[i]:
                    for gone in set(held) - set(rows.tolist()):
                        del held[gone]
            ones = torch.ones(3, dtype=torch.float64)
            expected[i] = naive_step(expected[i], g, side, rows, ones, *memories[i],
                                     rate=2.5e-3, decay=None)  # fmt: skip
    assert torch.allclose(experts, torch.stack(expected[:3]), atol=1e-12, rtol=0)
    assert torch.allclose(conv.flatten(1), expected[3], atol=1e-12, rtol=0)


@pytest.mark.parametrize("word", ["avoid", "within"])
def test_a_constraint_that_leaves_the_rows_no_coordinate_is_refused_before_weights_move(word):
    basis = random_basis(9, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    entry = Entry(name="w", side="output", subspace=Subspace(basis), layout="linear", shape=(9, 14))
    w = matrix(9, 14)
    start = w.detach().clone()
    optimizer = make(w, 4, **{word: Atlas([entry])})
    w.grad = gradients(9, 14, 1)[0]
    with pytest.raises(ValueError, match=f"{word}: .* 4 selected rows of w.*side="):
        optimizer.step()
    assert torch.equal(w, start)
    other = make(w, 4, side="right", **{word: Atlas([entry])})
    other.step()
    d = w.detach() - start
    inside = basis @ (basis.mT @ d)
    assert d.norm() > 0
    assert torch.allclose(inside, d if word == "within" else torch.zeros_like(d), atol=1e-12)


@pytest.mark.parametrize("method", [Grass, GaLore])
@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("word", ["avoid", "within"])
def test_rows_without_a_free_coordinate_are_refused_before_any_other_weight_moves(
    word, later, method
):
    # Directions that fill every choice of 4 rows of `w`, which is the last to step.
    basis = random_basis(9, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    entry = Entry(name="w", side="output", subspace=Subspace(basis), layout="linear", shape=(9, 14))
    first, bias, w = matrix(9, 14, seed=1), nn.Parameter(torch.ones(3).double()), matrix(9, 14)
    groups = [{"params": [("first", first)], "rank": 4}, {"params": [("bias", bias)]},
              {"params": [("w", w)], "rank": 4}]  # fmt: skip
    keys = {"side": "left"} if method is Grass else {"side": "left", "basis": "rows"}
    for group in groups[::2]:
        group.update(keys)
    optimizer = method(groups, lr=0.1, **({} if later else {word: Atlas([entry])}))
    params = (first, bias, w)
    for p in params:
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(2)).double()
    if later:
        optimizer.step()
        optimizer.set_constraints(**{word: Atlas([entry])})
    before = copy.deepcopy([p.detach() for p in params])
    state = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=f"{word}: .* 4 selected rows of w.*side="):
        optimizer.step()
    assert all(map(torch.equal, params, before))
    assert str(optimizer.state_dict()) == str(state)
    optimizer.set_constraints()
    optimizer.step()
    assert not torch.equal(w, before[2])


def test_half_precision_weights_move_by_the_rounded_float32_update():
    w, twin = matrix(8, 6, dtype=torch.bfloat16), matrix(8, 6, dtype=torch.bfloat16).float()
    twin = nn.Parameter(twin.detach())
    for g in gradients(8, 6, 3):
        w.grad, twin.grad = g.bfloat16(), g.bfloat16().float()
    first, second = make(w, lr=0.1), make(twin, lr=0.1)
    first.step()
    second.step()
    assert first.state[w]["exp_avg"].dtype == torch.float32
    assert torch.equal(w, twin.bfloat16())


def test_changing_the_rank_between_runs_is_a_clear_error():
    model = small_model()
    optimizer = Grass(param_groups(model, rank=4), lr=1e-2)
    train(model, optimizer)
    other = Grass(param_groups(model, rank=3), lr=1e-2)
    with pytest.raises(ValueError, match="rank = 4, this optimizer 3"):
        other.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("method", [Grass, SNSM])
def test_complex_weights_are_refused_by_name(method):
    p = nn.Parameter(torch.ones(4, 4, dtype=torch.complex64))
    with pytest.raises(TypeError, match="w is complex"):
        method([{"params": [("w", p)], "rank": 2}])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", [Grass, SNSM, AdamSN])
def test_plain_groups_take_parameters_of_any_number_of_dimensions(method, dtype):
    g = torch.Generator().manual_seed(0)
    shapes = [(), (5,), (2, 3, 4), (2, 3, 4, 5), (0, 4), (0,)]
    plain = [nn.Parameter(torch.randn(s, generator=g).to(dtype)) for s in shapes]
    keys = {"subset_size": "heuristics"} if method is AdamSN else {"rank": 2}
    optimizer = method([{"params": [matrix(8, 6, dtype=dtype)], **keys}, {"params": plain}], lr=0.1)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    start = [p.detach().clone() for p in params]
    predicted = optimizer.report().state_bytes
    for _ in range(2):
        for p in params:
            p.grad = torch.randn(p.shape, generator=g).to(dtype)
        optimizer.step()
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert predicted == state_bytes(optimizer)
    for p, before in zip(params, start, strict=True):
        assert torch.isfinite(p).all()
        assert p.numel() == 0 or not torch.equal(p, before)


@pytest.mark.parametrize("method", [Grass, SNSM])
def test_a_loss_scaler_skips_what_overflowed_and_changes_nothing_else(method):
    found = []
    for scaled in (False, True):
        model = small_model(torch.float64)
        optimizer = method(param_groups(model, rank=4), lr=1e-2, refresh_every=2)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        x = torch.randn(9, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        for k in range(6):
            if not scaled and k in (0, 3):
                continue
            optimizer.zero_grad()
            loss = model(x * (k + 1)).square().mean() * (torch.inf if k in (0, 3) else 1.0)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        found.append(weights(model))
    assert torch.allclose(*found, atol=1e-12, rtol=0)


@pytest.mark.parametrize("method", [Grass, SNSM, GrassWalk, GrassJump, OnlineSubspaceDescent])
def test_tied_weights_are_trained_once_with_the_gradient_of_both(method):
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)).double()
    model[2].weight = model[0].weight
    optimizer = method(param_groups(model, rank=4), lr=1e-2)
    assert optimizer.param_groups[0]["param_names"] == ["0.weight"]
    w = model[0].weight
    alone = nn.Parameter(w.detach().clone())
    twin = method([{"params": [("0.weight", alone)], "rank": 4}], lr=1e-2)
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.ones(3, 8, dtype=torch.float64)).square().mean().backward()
        alone.grad = w.grad.clone()
        optimizer.step()
        twin.step()
    assert torch.equal(w, alone)


def test_the_papers_group_keys_are_accepted():
    group = {"params": [matrix(8, 6)], "rank": 2, "update_proj_gap": 7, "scale": 0.5,
             "select": "uniform", "state": "keep_common"}  # fmt: skip
    held = Grass([group]).param_groups[0]
    assert (held["refresh_every"], held["moments"]) == (7, "keep_common")


@pytest.mark.parametrize(
    ("group", "options", "error", "message"),
    [
        ({"rank": 0}, {}, ValueError, "rank must be at least 1, got 0"),
        ({"rank": 9}, {}, ValueError, r"rank = 9 exceeds min\(m, n\) = 6 for parameter w"),
        ({"rank": 2, "refresh_every": 0}, {}, ValueError, "refresh_every must be an int of at"),
        ({"rank": 2, "select": "best"}, {}, ValueError, "select must be one of topr, multi"),
        ({"rank": 2, "moments": "keep"}, {}, ValueError, "moments must be one of reset, keep_c"),
        ({"rank": 2, "side": "full"}, {}, ValueError, "side must be one of short_left"),
        ({"rank": 2, "basis": "svd"}, {}, ValueError, "basis must be one of rows"),
        ({"rank": 2, "decay": "some"}, {}, ValueError, "decay must be one of all, selected"),
        ({"rank": 2, "rho_max": 0}, {}, ValueError, "rho_max must be finite and above 0"),
        ({"rank": 2, "refresh_warmup": -1}, {}, ValueError, "refresh_warmup must be an int"),
        ({"rank": 2, "state": "reset", "moments": "reset"}, {}, ValueError, "alias"),
        ({}, {}, ValueError, "nothing to project"),
        ({"rank": 2}, {"on_nonfinite": "ignore"}, ValueError, "on_nonfinite must be one of"),
    ],
)
def test_bad_options_are_refused_by_name(group, options, error, message):
    with pytest.raises(error, match=message):
        Grass([{"params": [("w", matrix(8, 6))], **group}], **options)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"update_proj_gap": 3}, r"is a key of groups; as an argument it is refresh_every\)"),
        ({"selct": "topr"}, "no option 'selct'; its options are lr, select, refresh_every, .*seed"),
        ({"seed": "x"}, "seed must be an int, got 'x'"),
        ({"seed": True}, "seed must be an int, got True"),
    ],
)
def test_arguments_that_it_does_not_take_name_those_it_does(options, message):
    with pytest.raises(TypeError, match=message):
        Grass([{"params": [matrix(8, 6)], "rank": 2}], **options)
