"""GaLore: what the papers prove or promise, and what must not go wrong."""

import warnings

import pytest
import torch
from torch import nn

from conformance.optimizers import OptimizerSuite, small_model, train, weights
from spanwise.linalg.bases import random_basis
from spanwise.optim import GaLore, param_groups, state_bytes
from spanwise.optim._bases.projector import DenseProjector

SIDES = ["left", "right", "full", "short", "long"]


class TestGaLoreSuite(OptimizerSuite):
    def make(self, groups, **options):
        return GaLore(groups, refresh_every=3, **options)


class TestGaLoreSuiteStaggeredWarmRotating(OptimizerSuite):
    def make(self, groups, **options):
        return GaLore(
            groups, refresh_every=3, svd="warm", stagger=True, moments="rotate", **options
        )


class TestGaLoreSuiteReset(OptimizerSuite):
    def make(self, groups, **options):
        return GaLore(groups, refresh_every=3, svd="exact", moments="reset", **options)


def matrix(rows, cols, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return nn.Parameter(torch.randn(rows, cols, generator=g, dtype=torch.float64).to(dtype))


def run(w, gradients, **options):
    optimizer = GaLore([{"params": [("w", w)], **options.pop("group", {})}], **options)
    for g in gradients:
        w.grad = g.clone()
        optimizer.step()
    return optimizer


def gradients(rows, cols, count, seed=1, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return [
        torch.randn(rows, cols, generator=g, dtype=torch.float64).to(dtype) for _ in range(count)
    ]


def naive_adam(grads, *, betas=(0.9, 0.999), eps=1e-6):
    """Directions of plain Adam on a list of matrices, written from its definition."""
    m = v = torch.zeros_like(grads[0])
    for t, g in enumerate(grads, start=1):
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        yield (m / (1 - betas[0] ** t)) / ((v / (1 - betas[1] ** t)).sqrt() + eps)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("shape", [(9, 14), (14, 9), (10, 10)])
def test_trajectory_equals_a_naive_dense_reference(side, shape):
    rows, cols = shape
    grads = gradients(rows, cols, 10)
    w = matrix(rows, cols)
    expected = w.detach().clone()
    lr, wd, scale, r, every = 1e-2, 0.1, 0.25, 4, 4
    run(w, grads, group={"rank": r}, lr=lr, weight_decay=wd, side=side, svd="exact",
        refresh_every=every)  # fmt: skip
    left = {"short": rows < cols, "long": rows >= cols}.get(side, side in ("left", "full"))
    right = side == "full" or not left
    m = v = p = b = None
    for k, g in enumerate(grads):
        if k % every == 0:
            u, _, vh = torch.linalg.svd(g, full_matrices=False)
            new_p, new_b = u[:, :r], vh[:r].mT
            if k:
                new_p, new_b = align_naively(new_p, p), align_naively(new_b, b)
            p, b = new_p, new_b
        low = p.mT @ g if left else g
        low = low @ b if right else low
        m = 0.1 * low if m is None else 0.9 * m + 0.1 * low
        v = 0.001 * low**2 if v is None else 0.999 * v + 0.001 * low**2
        n = (m / (1 - 0.9 ** (k + 1))) / ((v / (1 - 0.999 ** (k + 1))).sqrt() + 1e-6)
        n = p @ n if left else n
        n = n @ b.mT if right else n
        expected = expected * (1 - lr * wd) - lr * scale * n
    assert torch.allclose(w.detach(), expected, atol=1e-10, rtol=0)


def align_naively(new, old):
    """Match columns greedily by largest |cosine|, then match signs."""
    overlap = old.mT @ new
    order = [0] * new.shape[1]
    score = overlap.abs().clone()
    for _ in range(new.shape[1]):
        i, j = divmod(int(score.argmax()), new.shape[1])
        order[i] = j
        score[i, :] = -1
        score[:, j] = -1
    new = new[:, order]
    return new * torch.where((old * new).sum(0) < 0, -1.0, 1.0).to(new.dtype)


@pytest.mark.parametrize("svd", ["exact", "gram", "randomized", "warm"])
def test_basis_is_orthonormal_and_captures_the_gradient(svd):
    spectrum = torch.arange(1, 41, dtype=torch.float64) ** -0.6
    g = random_basis(60, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    h = random_basis(40, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grad = (g * spectrum) @ h.mT
    w = matrix(60, 40)
    optimizer = run(w, [grad], group={"rank": 8}, svd=svd, betas=(0.0, 0.0))
    basis = optimizer.state[w]["basis_right"]
    assert torch.allclose(basis.mT @ basis, torch.eye(8, dtype=basis.dtype), atol=1e-10)
    captured, best = (grad @ basis).square().sum(), spectrum[:8].square().sum()
    if svd in ("exact", "gram"):
        assert captured == pytest.approx(float(best), rel=1e-10)
    assert captured >= 0.995 * best


def test_with_the_identity_as_basis_galore_is_adamw():
    w, plain = matrix(6, 5), matrix(6, 5)
    adamw = torch.optim.AdamW([plain], lr=1e-2, eps=1e-6, weight_decay=0.1)
    optimizer = GaLore([{"params": [w], "rank": 5}], lr=1e-2, scale=1.0, weight_decay=0.1)
    for k, g in enumerate(gradients(6, 5, 6)):
        w.grad, plain.grad = g.clone(), g.clone()
        if k == 0:
            optimizer.step()
            optimizer.state[w]["basis_right"].copy_(torch.eye(5))
            w.data, plain.data = matrix(6, 5).data, matrix(6, 5).data
            optimizer.state[w]["step"].zero_()
            for key in ("exp_avg", "exp_avg_sq"):
                optimizer.state[w][key].zero_()
        optimizer.step()
        adamw.step()
        assert torch.allclose(w, plain, atol=1e-12, rtol=0)


def test_full_rank_is_adam_in_rotated_coordinates_and_not_adamw():
    grads = gradients(7, 5, 5)
    w = matrix(7, 5)
    start = w.detach().clone()
    optimizer = run(w, grads, group={"rank": 5}, lr=1e-2, scale=1.0, refresh_every=100)
    q = optimizer.state[w]["basis_right"]
    rotated, plain = start.clone(), start.clone()
    for n, a in zip(naive_adam([g @ q for g in grads]), naive_adam(grads), strict=True):
        rotated -= 1e-2 * n @ q.mT
        plain -= 1e-2 * a
    assert torch.allclose(w.detach(), rotated, atol=1e-10, rtol=0)
    assert (w.detach() - plain).norm() > 0.1 * (plain - start).norm()


@pytest.mark.parametrize("side", SIDES)
def test_update_rank_grows_by_r_per_window(side):
    w = matrix(12, 10)
    start = w.detach().clone()
    optimizer = GaLore([{"params": [w], "rank": 3}], lr=1e-2, side=side, refresh_every=4)
    for k, g in enumerate(gradients(12, 10, 12)):
        w.grad = g
        optimizer.step()
        windows = k // 4 + 1
        rank = int(torch.linalg.matrix_rank(w.detach() - start, rtol=1e-9))
        assert rank <= 3 * windows


def test_flipping_and_permuting_basis_with_moments_changes_nothing():
    grads = gradients(9, 8, 6)
    w, twin = matrix(9, 8), matrix(9, 8)
    first = run(w, grads[:3], group={"rank": 4}, lr=1e-2, refresh_every=100)
    second = run(twin, grads[:3], group={"rank": 4}, lr=1e-2, refresh_every=100)
    order, signs = torch.tensor([2, 0, 3, 1]), torch.tensor([1.0, -1, -1, 1], dtype=torch.float64)
    state = second.state[twin]
    state["basis_right"] = state["basis_right"][:, order] * signs
    state["exp_avg"] = state["exp_avg"][:, order] * signs
    state["exp_avg_sq"] = state["exp_avg_sq"][:, order]
    for g in grads[3:]:
        w.grad, twin.grad = g.clone(), g.clone()
        first.step()
        second.step()
    assert torch.allclose(w, twin, atol=1e-12, rtol=0)


def test_refresh_does_not_depend_on_lapack_signs(monkeypatch):
    import spanwise.optim._bases.kinds as bases

    real, calls = bases.top_subspace, []

    def flipped(*args, **kwargs):
        calls.append(1)
        basis = real(*args, **kwargs)
        # Another LAPACK may return any signs at a refresh, once there is a basis to align with.
        return basis if len(calls) == 1 else -basis

    runs = []
    for function in (real, flipped):
        monkeypatch.setattr(bases, "top_subspace", function)
        w = matrix(9, 8)
        run(w, gradients(9, 8, 9), group={"rank": 4}, lr=1e-2, svd="exact", refresh_every=3)
        runs.append(w.detach())
    assert len(calls) == 3
    assert torch.allclose(*runs, atol=1e-12, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_basis_ignores_orthogonal_mixing_of_the_other_side(side):
    g = gradients(8, 12, 1)[0]
    n = 12 if side == "left" else 8
    q = torch.linalg.qr(gradients(n, n, 1, seed=4)[0]).Q
    bases = []
    for grad in (g, g @ q if side == "left" else q @ g):
        w = matrix(8, 12)
        optimizer = run(w, [grad], group={"rank": 3}, side=side, svd="exact")
        bases.append(optimizer.state[w][f"basis_{side}"])
    assert torch.allclose(*[b @ b.mT for b in bases], atol=1e-10)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("rank", [4, 9])
def test_projecting_twice_is_projecting_once_and_full_rank_keeps_the_gradient(side, rank):
    g, w = gradients(9, 14, 1)[0], matrix(9, 14)
    state = run(w, [g], group={"rank": rank}, side=side, svd="exact").state[w]
    projector = DenseProjector(state.get("basis_left"), state.get("basis_right"))
    once = projector.lift(projector.project(g))
    assert torch.allclose(projector.lift(projector.project(once)), once, atol=1e-12, rtol=0)
    # Without moments the step is this: at full rank the whole gradient, below it the best part.
    values = torch.linalg.svdvals(g)
    assert (once - g).norm() == pytest.approx(float(values[rank:].norm()), abs=1e-12)


def test_zero_gradient_decays_and_does_nothing_else():
    w = matrix(8, 6)
    start = w.detach().clone()
    zeros = [torch.zeros(8, 6, dtype=torch.float64)] * 3
    run(w, zeros, group={"rank": 2}, lr=0.1, weight_decay=0.5)
    assert torch.allclose(w.detach(), start * 0.95**3, atol=1e-14, rtol=0)


@pytest.mark.parametrize(("side", "mirror"), [("left", "right"), ("right", "left")])
@pytest.mark.parametrize("svd", ["exact", "gram"])
def test_transposed_problem_gives_the_transposed_trajectory(side, mirror, svd):
    grads = gradients(9, 6, 7)
    w, t = matrix(9, 6), nn.Parameter(matrix(9, 6).detach().mT.contiguous())
    run(w, grads, group={"rank": 3}, lr=1e-2, side=side, svd=svd, refresh_every=3)
    run(t, [g.mT for g in grads], group={"rank": 3}, lr=1e-2, side=mirror, svd=svd,
        refresh_every=3)  # fmt: skip
    assert torch.allclose(w.detach(), t.detach().mT, atol=1e-10, rtol=0)


def test_rank_equal_to_the_shorter_side_works_on_every_side():
    # The released package infers the side from the low-rank shape and fails here.
    for side in SIDES:
        w = matrix(9, 14)
        run(w, gradients(9, 14, 3), group={"rank": 9}, side=side)
        assert torch.isfinite(w).all()


@pytest.mark.parametrize(
    ("side", "numbers"),
    [("short", 5 * 10 + 2 * 5 * 20), ("long", 5 * 20 + 2 * 5 * 10), ("full", 5 * 30 + 2 * 25)],
)
def test_state_bytes_are_exactly_as_counted(side, numbers):
    w = matrix(20, 10, dtype=torch.float32)
    optimizer = GaLore([{"params": [w], "rank": 5}], side=side)
    predicted = optimizer.report().state_bytes
    w.grad = torch.randn(20, 10)
    optimizer.step()
    assert predicted == state_bytes(optimizer) == optimizer.report().state_bytes == 4 * numbers


def test_bytes_of_the_60m_llama_are_the_papers():
    shapes = [(512, 512)] * 32 + [(1376, 512)] * 16 + [(512, 1376)] * 8
    params = [nn.Parameter(torch.empty(s, device="meta")) for s in shapes]
    report = GaLore([{"params": params, "rank": 128}]).report()
    assert report.state_bytes == 4 * sum(128 * min(s) + 2 * 128 * max(s) for s in shapes)
    assert round(report.state_bytes / 1e6, 1) == 65.3
    assert round(report.adamw_bytes / 1e6, 1) == 202.4


def test_first_step_with_zero_gradient_leaves_the_basis_unset():
    # torch.distributed.checkpoint creates optimizer state this way.
    w = matrix(8, 6)
    optimizer = run(w, [torch.zeros(8, 6, dtype=torch.float64)], group={"rank": 2}, lr=0.0)
    assert optimizer.state[w]["basis_right"].shape == (6, 2)
    assert int(optimizer.state[w]["refreshed"]) == -1
    w.grad = gradients(8, 6, 1)[0]
    optimizer.step()
    assert int(optimizer.state[w]["refreshed"]) == 1


def test_nonfinite_gradient_at_a_refresh_keeps_basis_and_moments():
    w = matrix(8, 6)
    optimizer = run(w, gradients(8, 6, 3), group={"rank": 2}, refresh_every=3)
    before = {k: v.clone() for k, v in optimizer.state[w].items()}
    weight = w.detach().clone()
    w.grad = torch.full((8, 6), float("nan"), dtype=torch.float64)
    with pytest.warns(UserWarning, match="w at a basis refresh is not finite"):
        optimizer.step()
    assert torch.equal(w, weight)
    assert all(torch.equal(v, before[k]) for k, v in optimizer.state[w].items())
    w.grad = gradients(8, 6, 1, seed=9)[0]
    optimizer.step()
    assert int(optimizer.state[w]["refreshed"]) == 3
    assert torch.isfinite(w).all()


def test_nonfinite_gradient_raises_when_asked():
    w = matrix(8, 6)
    with pytest.raises(FloatingPointError, match="not finite"):
        run(
            w,
            [torch.full((8, 6), float("inf"), dtype=torch.float64)],
            group={"rank": 2},
            on_nonfinite="raise",
        )


def test_nonfinite_gradient_raises_before_other_parameters_move():
    first, plain, bad = matrix(8, 6), matrix(3, 3), matrix(8, 6, seed=1)
    optimizer = GaLore([{"params": [plain]}, {"params": [first, bad], "rank": 2}],
                       on_nonfinite="raise")  # fmt: skip
    before = [p.detach().clone() for p in (first, plain)]
    for p in (first, plain, bad):
        p.grad = torch.ones_like(p)
    bad.grad[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="#2 at a basis refresh"):
        optimizer.step()
    assert all(map(torch.equal, (first, plain), before))
    assert not optimizer.state


def test_staggered_refreshes_spread_over_the_interval():
    params = [(f"w{i}", matrix(6, 5, seed=i)) for i in range(4)]
    optimizer = GaLore([{"params": params, "rank": 2}], refresh_every=8, stagger=True)
    per_step = []
    for k in range(17):
        for _, p in params:
            p.grad = gradients(6, 5, 1, seed=k)[0]
        optimizer.step()
        per_step.append(sum(int(optimizer.state[p]["refreshed"]) == k for _, p in params))
    assert per_step[0] == 4
    assert max(per_step[1:]) == 1
    assert [sum(per_step[k : k + 8]) for k in (1, 9)] == [4, 4]


def test_frequent_refresh_reaches_the_target_even_at_rank_one():
    target = torch.randn(10, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    w = matrix(10, 8)
    optimizer = GaLore([{"params": [w], "rank": 1}], lr=0.1, scale=1.0, refresh_every=1,
                       svd="exact", moments="reset", betas=(0.0, 0.9))  # fmt: skip
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 800)
    for _ in range(800):
        w.grad = w.detach() - target
        optimizer.step()
        scheduler.step()
    assert (w.detach() - target).norm() < 0.02 * target.norm()


def test_without_refresh_it_stalls_at_the_complement_of_the_basis():
    target = torch.randn(10, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    w = matrix(10, 8)
    start = w.detach() - target
    optimizer = GaLore([{"params": [w], "rank": 3}], lr=0.1, scale=1.0, refresh_every=10**6)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1500)
    for _ in range(1500):
        w.grad = w.detach() - target
        optimizer.step()
        scheduler.step()
    basis = optimizer.state[w]["basis_right"]
    stall = start - start @ basis @ basis.mT
    assert torch.allclose(w.detach() - target, stall, atol=1e-2)


@pytest.mark.parametrize("moments", ["keep", "rotate", "project_aware", "reset"])
def test_unchanged_basis_makes_every_transfer_a_no_op(moments):
    g = gradients(8, 6, 1)[0]
    weights_ = []
    for every in (2, 100):
        w = matrix(8, 6)
        run(w, [g] * 6, group={"rank": 6}, lr=1e-2, svd="exact", moments=moments,
            refresh_every=every)  # fmt: skip
        weights_.append(w.detach())
    same = torch.allclose(*weights_, atol=1e-9, rtol=0)
    # A constant gradient makes even a reset invisible: bias correction restarts with it.
    assert same


def test_project_aware_transfer_matches_its_formula():
    from spanwise.optim._engine.transfer import project_aware_

    gen = torch.Generator().manual_seed(0)
    m = torch.randn(3, 5, generator=gen, dtype=torch.float64)
    v = torch.rand(3, 5, generator=gen, dtype=torch.float64)
    c = torch.linalg.qr(torch.randn(6, 6, generator=gen, dtype=torch.float64)).Q[:3, :3]
    c1, c2 = 1 - 0.9**4, 1 - 0.999**4
    new_m = c @ m
    new_v = c2 * ((c * c) @ (v / c2 - (m / c1) ** 2) + (new_m / c1) ** 2).abs()
    project_aware_(m, v, c, None, step=4.0, betas=(0.9, 0.999))
    assert torch.allclose(m, new_m, atol=1e-12)
    assert torch.allclose(v, new_v, atol=1e-12)
    assert (v >= 0).all()


def test_stacked_experts_and_convolutions_follow_their_matrices():
    experts = nn.Parameter(torch.stack([matrix(9, 6, seed=i).detach() for i in range(3)]))
    conv = nn.Parameter(matrix(9, 8).detach().reshape(9, 2, 2, 2).clone())
    optimizer = GaLore(
        [{"params": [("e", experts), ("c", conv)], "layouts": ["experts", "conv"], "rank": 3}],
        lr=1e-2, svd="exact", refresh_every=2,
    )  # fmt: skip
    singles, flat = [matrix(9, 6, seed=i) for i in range(3)], matrix(9, 8)
    reference = GaLore([{"params": [*singles, flat], "rank": 3}], lr=1e-2, svd="exact",
                       refresh_every=2)  # fmt: skip
    for k in range(5):
        for i, p in enumerate(singles):
            p.grad = gradients(9, 6, 1, seed=10 * k + i)[0]
        flat.grad = gradients(9, 8, 1, seed=10 * k + 7)[0]
        experts.grad = torch.stack([p.grad for p in singles])
        conv.grad = flat.grad.reshape(conv.shape).clone()
        optimizer.step()
        reference.step()
    assert torch.allclose(experts, torch.stack(list(singles)), atol=1e-12, rtol=0)
    assert torch.allclose(conv.flatten(1), flat, atol=1e-12, rtol=0)


def test_channels_last_convolution_is_written():
    conv = nn.Parameter(torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last))
    plain = nn.Parameter(conv.detach().clone(memory_format=torch.contiguous_format))
    for p in (conv, plain):
        optimizer = GaLore([{"params": [p], "layouts": ["conv"], "rank": 3}], lr=1e-1)
        for k in range(3):
            p.grad = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(k))
            optimizer.step()
    assert torch.allclose(conv, plain, atol=1e-6)


def test_plain_group_is_torch_adamw_bitwise():
    model, twin = small_model(), small_model()
    groups = [
        {"params": [model[0].weight], "rank": 4},
        {"params": [p for n, p in model.named_parameters() if n != "0.weight"]},
    ]
    ours = GaLore(groups, lr=1e-2, weight_decay=0.1, eps=1e-8)
    theirs = torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=0.1, fused=True)
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        ours.step()
        theirs.step()
    assert torch.equal(model[2].weight, twin[2].weight)
    assert torch.equal(model[0].bias, twin[0].bias)


def test_changing_the_rank_between_runs_is_a_clear_error():
    model = small_model()
    optimizer = GaLore(param_groups(model, rank=4), lr=1e-2)
    train(model, optimizer)
    other = GaLore(param_groups(model, rank=3), lr=1e-2)
    with pytest.raises(ValueError, match="rank = 4, this optimizer 3"):
        other.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize(
    ("group", "options", "error", "message"),
    [
        ({"rank": 0}, {}, ValueError, "rank must be at least 1, got 0"),
        ({"rank": 2.5}, {}, TypeError, "rank must be an int, got 2.5"),
        ({"rank": True}, {}, TypeError, "rank must be an int"),
        ({"rank": 9}, {}, ValueError, r"rank = 9 exceeds min\(m, n\) = 6 for parameter w"),
        ({"rank": 2, "refresh_every": 0}, {}, ValueError, "refresh_every must be an int of at"),
        ({"rank": 2, "scale": 0}, {}, ValueError, "scale must be finite and above 0"),
        ({"rank": 2, "side": "top"}, {}, ValueError, "side must be one of short, long"),
        ({"rank": 2, "svd": "fast"}, {}, ValueError, "svd must be one of randomized"),
        ({"rank": 2, "moments": "lost"}, {}, ValueError, "moments must be one of keep"),
        ({"rank": 2, "update_proj_gap": 5, "refresh_every": 5}, {}, ValueError, "alias"),
        ({"rank": 2, "lr": -1}, {}, ValueError, "lr must be finite and at least 0"),
        ({"rank": 2, "betas": (1.0, 0.9)}, {}, ValueError, r"betas\[0\] must be in"),
        ({"rank": 2, "lr": float("inf")}, {}, ValueError, "lr must be finite"),
        ({"rank": 2, "betas": (0.9,)}, {}, ValueError, "betas must be two numbers"),
        ({"rank": 2, "scale": float("inf")}, {}, ValueError, "scale must be finite"),
        ({}, {}, ValueError, "nothing to project"),
        ({"rank": 2}, {"compat": "other"}, ValueError, "compat must be one of"),
        ({"rank": 2}, {"on_nonfinite": "ignore"}, ValueError, "on_nonfinite must be one of"),
    ],
)
def test_bad_options_are_refused_by_name(group, options, error, message):
    with pytest.raises(error, match=message):
        GaLore([{"params": [("w", matrix(8, 6))], **group}], **options)


def test_constructor_rank_on_bare_vectors_names_param_groups():
    with pytest.raises(ValueError, match=r"0\.bias .* is no matrix.*param_groups"):
        GaLore(small_model().named_parameters(), rank=2)


def test_projecting_an_embedding_warns():
    with pytest.warns(UserWarning, match="embed_tokens looks like an embedding table"):
        GaLore([{"params": [("embed_tokens", matrix(8, 6))], "rank": 2}])


def test_clamp_rank_uses_what_the_matrix_has():
    w = matrix(8, 6)
    optimizer = run(w, gradients(8, 6, 2), group={"rank": 9}, clamp_rank=True)
    assert optimizer.state[w]["basis_right"].shape == (6, 6)


def test_galore_torch_group_keys_are_accepted():
    group = {"rank": 2, "update_proj_gap": 7, "scale": 0.5, "proj_type": "reverse_std"}
    optimizer = GaLore([{"params": [matrix(8, 6)], **group}])
    assert optimizer.param_groups[0]["refresh_every"] == 7
    assert optimizer.param_groups[0]["side"] == "long"


def test_no_warning_in_an_ordinary_run():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = small_model()
        train(model, GaLore(param_groups(model, rank=4), lr=1e-2))
        assert torch.isfinite(weights(model)).all()
