"""Subset-norm and subspace-momentum: what the paper proves or promises, and the traps."""

import math

import pytest
import torch
from torch import nn

from conformance.optimizers import OptimizerSuite, small_model, train, weights
from spanwise import Atlas, Subspace
from spanwise.atlas import Entry
from spanwise.linalg import random_basis
from spanwise.optim import (
    SNSM,
    AdamSN,
    AdamSNSM,
    GaLore,
    param_groups,
    plan_state_bytes,
    state_bytes,
)

F64 = torch.float64
SHAPES = [(24, 16), (16, 24), (20, 20)]
NEVER = None


class TestSNSMSuite(OptimizerSuite):
    def make(self, groups, **options):
        return SNSM(groups, refresh_every=3, **options)


class TestSelectedRowsKeptSuite(OptimizerSuite):
    def make(self, groups, **options):
        return AdamSNSM(groups, refresh_every=3, basis="rows", select="uniform_nr",
                        moments="keep", **options)  # fmt: skip


class TestHadamardRotatedChunksSuite(OptimizerSuite):
    def make(self, groups, **options):
        return SNSM(groups, refresh_every=3, basis="srht", moments="rotate", subset_size=5,
                    ragged=True, normalize="mean", debias_after_reset=True, stagger=True,
                    **options)  # fmt: skip


class TestAdamSNSuite(OptimizerSuite):
    def groups(self, model, rank=4):
        groups = super().groups(model)
        groups[0].pop("rank")
        return [{**groups[0], "subset_size": "heuristics"}, groups[1]]

    def make(self, groups, **options):
        return AdamSN(groups, **options)


def matrix(rows, cols, seed=0, dtype=F64):
    g = torch.Generator().manual_seed(seed)
    return nn.Parameter(torch.randn(rows, cols, generator=g, dtype=F64).to(dtype))


def gradients(rows, cols, count, seed=1, dtype=F64):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, cols, generator=g, dtype=F64).to(dtype) for _ in range(count)]


def run(w, grads, *, method=SNSM, group=None, **options):
    """The optimizer and the weights after each step."""
    optimizer = method([{"params": [("w", w)], **({"rank": 6} if group is None else group)}],
                       **options)  # fmt: skip
    after = []
    for g in grads:
        w.grad = g.clone()
        optimizer.step()
        assert torch.equal(w.grad, g)
        after.append(w.detach().clone())
    return optimizer, after


# -- against a naive dense reference -------------------------------------------------------


def dense_subsets(shape, subset_size):
    """For each entry the number of its subset, as a matrix; written from the definition."""
    m, n = shape
    if subset_size == "heuristics":
        number = torch.arange(m)[:, None] if m >= n else torch.arange(n)[None, :]
        return number.expand(m, n)
    k = subset_size if subset_size > 0 else max(1, int(math.sqrt(m * n) / -subset_size))
    size = max(s for s in range(1, k + 1) if m * n % s == 0)
    return torch.arange(m * n).div(size, rounding_mode="floor").view(m, n)


def naive_snsm(w, grads, *, lr=1e-2, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0,
               momentum="sm", second_moment="sn", subset_size="heuristics", normalize="sum",
               find=None, every=4, on_refresh="reset", bias_correction=True,
               debias=False):  # fmt: skip
    """Weights after each step, from dense projectors and whole matrices.

    `find(t, g)` gives (side, basis) of a refresh; None where there is no subspace.
    """
    w = w.clone()
    b1, b2 = betas if momentum != "none" else (0.0, betas[1])
    number = dense_subsets(w.shape, subset_size) if subset_size is not None else None
    u, v, basis, born = None, torch.zeros_like(w), None, 0
    for t, g in enumerate(grads, start=1):
        if momentum == "sm" and find is not None:
            if basis is None or t % every == 0:
                old = basis
                side, basis = find(t, g)
                if old is None or on_refresh == "reset":
                    u, born = None, t - 1
                elif on_refresh == "rotate":
                    c = basis.mT @ old
                    u = c @ u if side == "left" else u @ c.mT
            low = basis.mT @ g if side == "left" else g @ basis
            u = (1 - b1) * low if u is None else b1 * u + (1 - b1) * low
            correction = 1 - b1 ** (t - born) if debias else 1.0
            part = u / correction - low
            numerator = g + (basis @ part if side == "left" else part @ basis.mT)
        elif momentum != "none":
            u = (1 - b1) * g if u is None else b1 * u + (1 - b1) * g
            numerator = u / (1 - b1**t) if debias else u
        else:
            numerator = g
        square = g * g
        if second_moment == "sn" and number is not None:
            sums = torch.zeros(int(number.max()) + 1, dtype=g.dtype)
            sums.index_add_(0, number.flatten(), square.flatten())
            if normalize == "mean":
                sums /= number.flatten().bincount()
            square = sums[number]
        v = v + square if b2 == 1 else b2 * v + (1 - b2) * square
        denominator = 1.0 if second_moment == "none" or b2 == 0 else v.sqrt() + eps
        c = 1.0
        if bias_correction:
            c = 1.0 if second_moment == "none" else math.sqrt(1 - b2**t)
            c = c if debias else c / (1 - b1**t)
        w = w - lr * c * numerator / denominator
        w = w * (1 - lr * weight_decay)
        yield w


def leading(shape, r):
    """The paper's subspace: leading singular vectors on the shorter side."""

    def find(t, g):
        u, _, vh = torch.linalg.svd(g, full_matrices=False)
        return ("right", vh[:r].mT) if shape[0] >= shape[1] else ("left", u[:, :r])

    return find


def largest_rows(shape, r):
    """The r rows of largest norm along the longer side, as columns of the identity."""
    side = "left" if shape[0] >= shape[1] else "right"

    def find(t, g):
        norms = g.norm(dim=1 if side == "left" else 0)
        return side, torch.eye(max(shape), dtype=g.dtype)[:, norms.topk(r).indices.sort().values]

    return find


ADAGRAD = {"betas": (0.9, 1.0), "bias_correction": False}
CONFIGURATIONS = {
    "adam-snsm": {},
    "decay": {"weight_decay": 0.1},
    "chunks": {"subset_size": 10, "weight_decay": 0.1},
    "root-chunks": {"subset_size": -2},
    "mean": {"normalize": "mean"},
    "rotate": {"moments": "rotate"},
    "debias": {"debias_after_reset": True},
    "debias-rotate": {"debias_after_reset": True, "moments": "rotate"},
    "adagrad-snsm": ADAGRAD,
    "adam-sm": {"second_moment": "ema"},
    "sgd-sm": {"second_moment": "none", "bias_correction": False},
    "adam-sn": {"momentum": "ema"},
    "adam-sn-chunks": {"momentum": "ema", "subset_size": 10, "weight_decay": 0.1},
    "adagrad-sn": {"momentum": "ema", **ADAGRAD},
    "rmsprop-sn": {"momentum": "none", "betas": (0.0, 0.999), "bias_correction": False},
}


def cases():
    for name, options in CONFIGURATIONS.items():
        subspace = options.get("momentum", "sm") == "sm"
        for basis in ("svd", "rows") if subspace else (None,):
            yield pytest.param(options, basis, id=f"{name}-{basis}")


@pytest.mark.parametrize(("options", "basis"), list(cases()))
@pytest.mark.parametrize("shape", SHAPES)
def test_trajectory_equals_a_naive_dense_reference(options, basis, shape):
    grads, w = gradients(*shape, 11), matrix(*shape)
    naive = {"on_refresh" if k == "moments" else k: v for k, v in options.items()}
    naive["debias"] = naive.pop("debias_after_reset", False)
    find = {"svd": leading, "rows": largest_rows}[basis](shape, 6) if basis else None
    expected = list(naive_snsm(w.detach(), grads, find=find, **naive))
    options = {"subset_size": "heuristics", **options}
    group = {"subset_size": options["subset_size"]}
    if basis:
        group = {"rank": 6}
        options |= {"svd": "exact", "basis": basis, "refresh_every": 4}
    _, after = run(w, grads, group=group, lr=1e-2, **options)
    for ours, theirs in zip(after, expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, {"exp_avg", "exp_avg_sq"}),
        (ADAGRAD, {"exp_avg", "exp_avg_sq"}),
        ({"bias_correction": False}, {"exp_avg", "exp_avg_sq"}),
        ({"betas": (0.0, 0.99), "bias_correction": False, "momentum": "none"}, {"exp_avg_sq"}),
        ({"second_moment": "none", "bias_correction": False}, {"exp_avg"}),
    ],
)
def test_plain_groups_follow_the_same_rule_entry_by_entry(options, kept):
    w, plain, grads = matrix(12, 8), matrix(5, 7, seed=3), gradients(5, 7, 6, seed=4)
    whole = {"momentum": "ema", "second_moment": "ema", **options}
    expected = naive_snsm(plain.detach(), grads, weight_decay=0.1, subset_size=None, **whole)
    group = {"rank": 3} if "momentum" not in options else {"subset_size": "heuristics"}
    optimizer = SNSM([{"params": [plain]}, {"params": [w], **group}], lr=1e-2, weight_decay=0.1,
                     **options)  # fmt: skip
    for g, e in zip(grads, expected, strict=True):
        plain.grad, w.grad = g, gradients(12, 8, 1)[0]
        optimizer.step()
        assert torch.allclose(plain.detach(), e, atol=1e-12, rtol=1e-12)
    assert set(optimizer.state[plain]) == {"step", *kept}


# -- what the method promises --------------------------------------------------------------


@pytest.mark.parametrize("basis", ["svd", "srht", "identity", "rows"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_full_basis_is_ordinary_momentum_whatever_the_basis(basis, shape):
    grads, r = gradients(*shape, 9), min(shape)
    side = "short" if basis == "rows" else None
    whole, part = matrix(*shape), matrix(*shape)
    run(part, grads, group={"rank": r}, lr=1e-2, basis=basis, moments="rotate", refresh_every=4,
        side=side)  # fmt: skip
    run(whole, grads, group={"subset_size": "heuristics"}, lr=1e-2, momentum="ema")
    # Linear, so no rotation shows; GaLore at full rank is not Adam.
    assert torch.allclose(part, whole, atol=1e-10, rtol=0)


def test_without_the_first_beta_there_is_no_momentum():
    grads = gradients(12, 8, 6)
    first, second = matrix(12, 8), matrix(12, 8)
    optimizer, _ = run(first, grads, lr=1e-2, betas=(0.0, 0.999))
    run(second, grads, group={"subset_size": "heuristics"}, lr=1e-2, momentum="none",
        betas=(0.0, 0.999))  # fmt: skip
    assert torch.equal(first, second)
    assert set(optimizer.state[first]) == {"step", "refreshed", "exp_avg_sq"}


def test_momentum_none_takes_no_correction_for_a_momentum_that_is_not_there():
    # The released code divides by 1 - b1^t even then: ten times the rate at the first step.
    grads = gradients(12, 8, 3)
    first, second = matrix(12, 8), matrix(12, 8)
    for w, betas in ((first, (0.9, 0.999)), (second, (0.0, 0.999))):
        run(w, grads, group={"subset_size": "heuristics"}, momentum="none", betas=betas)
    assert torch.equal(first, second)


@pytest.mark.parametrize("basis", ["svd", "rows", "srht"])
@pytest.mark.parametrize("debias", [False, True])
def test_a_constant_gradient_is_averaged_inside_and_whole_outside(basis, debias):
    g = gradients(10, 7, 1)[0]
    w = matrix(10, 7)
    before = w.detach().clone()
    optimizer, after = run(w, [g] * 5, group={"rank": 3}, lr=0.1, basis=basis, svd="exact",
                           second_moment="none", bias_correction=False, refresh_every=NEVER,
                           debias_after_reset=debias)  # fmt: skip
    state = optimizer.state[w]
    if basis == "rows":
        inside = torch.zeros_like(g)
        inside[state["rows_left"]] = g[state["rows_left"]]
    else:
        inside = g @ state["basis_right"] @ state["basis_right"].mT
    assert (inside * (g - inside)).sum().abs() < 1e-12
    for t, now in enumerate(after, start=1):
        step, before = (before - now) / 0.1, now
        expected = g if debias else (1 - 0.9**t) * inside + (g - inside)
        assert torch.allclose(step, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("options", [{}, ADAGRAD])
def test_subsets_of_one_entry_are_coordinate_wise_bitwise(options):
    grads = gradients(9, 8, 6, dtype=torch.float32)
    one, every = matrix(9, 8, dtype=torch.float32), matrix(9, 8, dtype=torch.float32)
    run(one, grads, subset_size=1, **options)
    run(every, grads, second_moment="ema", **options)
    assert torch.equal(one, every)


def test_one_subset_of_all_entries_is_adagrad_norm():
    grads, w = gradients(9, 8, 5), matrix(9, 8)
    expected, total = w.detach().clone(), 0.0
    run(w, grads, group={"subset_size": 72}, lr=0.1, momentum="none", **ADAGRAD)
    for g in grads:
        total = total + g.square().sum()
        expected -= 0.1 * g / (total.sqrt() + 1e-6)
    assert torch.allclose(w, expected, atol=1e-13, rtol=0)


def test_adagrad_sums_every_square_and_its_rates_never_rise():
    grads, w = gradients(9, 8, 7), matrix(9, 8)
    optimizer = SNSM([{"params": [w], "subset_size": "heuristics"}], momentum="none", **ADAGRAD)
    total, last = torch.zeros(9, dtype=F64), torch.full((9,), torch.inf, dtype=F64)
    for g in grads:
        before, w.grad = w.detach().clone(), g
        optimizer.step()
        total += g.square().sum(1)
        rate = ((before - w.detach()) / g).mean(1)
        assert (rate <= last).all()
        last = rate
    assert torch.allclose(optimizer.state[w]["exp_avg_sq"], total, rtol=1e-12)


def test_permuting_inside_a_subset_permutes_the_update():
    grads = gradients(9, 6, 5)
    order = torch.stack([torch.randperm(6, generator=torch.Generator().manual_seed(i))
                         for i in range(9)])  # fmt: skip
    w, shuffled = matrix(9, 6), nn.Parameter(matrix(9, 6).detach().gather(1, order))
    group = {"subset_size": "heuristics"}
    run(w, grads, group=group, momentum="ema")
    run(shuffled, [g.gather(1, order) for g in grads], group=group, momentum="ema")
    assert torch.allclose(w.detach().gather(1, order), shuffled, atol=1e-13, rtol=0)


@pytest.mark.parametrize("normalize", ["sum", "mean"])
def test_scale_of_the_gradient_does_not_matter_without_epsilon(normalize):
    grads = gradients(9, 6, 5)
    first, second = matrix(9, 6), matrix(9, 6)
    for w, c in ((first, 1.0), (second, 1e4)):
        run(w, [c * g for g in grads], group={"rank": 3}, eps=0.0, normalize=normalize)
    assert torch.allclose(first, second, atol=1e-12, rtol=0)


@pytest.mark.parametrize("shape", [(9, 6), (6, 9)])
@pytest.mark.parametrize("subset_size", ["heuristics", 6])
def test_at_the_first_step_every_subset_moves_by_the_rate(shape, subset_size):
    # The sum rule in one line, and why its rate is sqrt(size) times Adam's.
    g, w = gradients(*shape, 1)[0], matrix(*shape)
    before = w.detach().clone()
    run(w, [g], group={"subset_size": subset_size}, lr=0.3, momentum="none", eps=0.0)
    number = dense_subsets(shape, subset_size).flatten()
    squares = (before - w.detach()).flatten().square()
    moved = torch.zeros(int(number.max()) + 1, dtype=F64).index_add_(0, number, squares).sqrt()
    assert torch.allclose(moved, torch.full_like(moved, 0.3), rtol=1e-10)


def test_mean_is_sum_at_a_rate_larger_by_the_root_of_the_subset_size():
    grads = gradients(9, 6, 5)
    first, second = matrix(9, 6), matrix(9, 6)
    run(first, grads, lr=1e-2, eps=0.0, normalize="mean")
    run(second, grads, lr=1e-2 * math.sqrt(6), eps=0.0, normalize="sum")
    assert torch.allclose(first, second, atol=1e-12, rtol=0)


@pytest.mark.parametrize("shape", [(20, 9), (9, 20)])
@pytest.mark.parametrize("select", ["topr", "uniform_nr"])
def test_selections_mask_the_gradient_along_the_longer_side(shape, select):
    g, w = gradients(*shape, 1)[0], matrix(*shape)
    before = w.detach().clone()
    optimizer, _ = run(w, [g], group={"rank": 4}, lr=1.0, basis="rows", select=select,
                       second_moment="none", bias_correction=False)  # fmt: skip
    side = "left" if shape[0] > shape[1] else "right"
    rows = optimizer.state[w][f"rows_{side}"]
    step = before - w.detach()
    ratio = (step / g).mean(1 if side == "left" else 0)
    expected = torch.ones(20, dtype=F64)
    expected[rows] = 0.1
    assert torch.allclose(ratio, expected, atol=1e-10)
    assert optimizer.state[w]["exp_avg"].shape == ((4, 9) if side == "left" else (9, 4))


def test_a_hadamard_basis_is_orthonormal_and_looks_at_no_gradient():
    bases = []
    for seed in (1, 2):
        w = matrix(24, 13, dtype=torch.float32)
        optimizer, _ = run(w, gradients(24, 13, 1, seed=seed, dtype=torch.float32), basis="srht")
        basis = optimizer.state[w]["basis_right"]
        assert torch.allclose(basis.mT @ basis, torch.eye(6), atol=1e-5)
        bases.append(basis)
    assert torch.equal(*bases)


# -- refreshes -----------------------------------------------------------------------------


def test_refreshes_come_at_the_first_step_and_at_multiples_of_the_interval():
    w = matrix(9, 8)
    optimizer = SNSM([{"params": [w], "rank": 3}], refresh_every=4)
    due = []
    for t, g in enumerate(gradients(9, 8, 13), start=1):
        w.grad = g
        before = int(optimizer.state[w]["refreshed"]) if optimizer.state[w] else None
        optimizer.step()
        if int(optimizer.state[w]["refreshed"]) != before:
            due.append(t)
    assert due == [1, 4, 8, 12]


def test_staggered_refreshes_spread_over_the_interval():
    params = [(f"w{i}", matrix(9, 8, seed=i)) for i in range(4)]
    optimizer = SNSM([{"params": params, "rank": 3}], refresh_every=8, stagger=True)
    counts = []
    for t in range(1, 25):
        for _, p in params:
            p.grad = gradients(9, 8, 1, seed=t)[0]
        optimizer.step()
        counts.append(sum(int(optimizer.state[p]["refreshed"]) == t - 1 for _, p in params))
    assert counts[0] == 4
    assert max(counts[1:]) == 1
    assert [sum(counts[k : k + 8]) for k in (1, 9)] == [4, 4]


@pytest.mark.parametrize("method", [GaLore, SNSM])
def test_offsets_of_staggered_refreshes_are_those_of_every_optimizer(method):
    group = {"params": [matrix(9, 8) for _ in range(4)], "rank": 3}
    found = []
    for stagger, every in ((True, 10), (False, 10), (True, None)):
        optimizer = method([group], stagger=stagger, refresh_every=every)
        held = optimizer.param_groups[0]
        found.append([optimizer.refresh_offset(m, held) for m in optimizer._group_members(0)])
    assert found == [[0, 2, 5, 7], [0] * 4, [0] * 4]


@pytest.mark.parametrize("basis", ["svd", "rows", "identity"])
def test_rotating_into_an_unchanged_basis_is_no_refresh(basis):
    # Row norms that differ by far and a constant gradient choose the same subspace each time.
    g = gradients(9, 8, 1)[0] * torch.linspace(1, 9, 9, dtype=F64)[:, None]
    grads = [g * c for c in (1.0, 0.7, 1.3, 0.9, 1.1, 0.8)]
    first, second = matrix(9, 8), matrix(9, 8)
    for w, every in ((first, 2), (second, NEVER)):
        run(w, grads, group={"rank": 3}, lr=1e-2, basis=basis, svd="exact", moments="rotate",
            refresh_every=every)  # fmt: skip
    assert torch.allclose(first, second, atol=1e-10, rtol=0)


def test_the_step_of_a_refresh_uses_its_own_gradient_and_nothing_older():
    # The released code lifts the old coordinates with the new basis on this step.
    w = matrix(12, 8)
    grads = gradients(12, 8, 4)
    optimizer, after = run(w, grads, group={"rank": 3}, lr=1.0, svd="exact", refresh_every=4,
                           second_moment="none", bias_correction=False)  # fmt: skip
    basis = optimizer.state[w]["basis_right"]
    step, g = after[2] - after[3], grads[3]
    assert torch.allclose(step @ basis, 0.1 * g @ basis, atol=1e-12)
    assert torch.allclose(optimizer.state[w]["exp_avg"], 0.1 * g @ basis, atol=1e-12)


def test_a_refresh_leaves_second_moments_alone():
    first, second = matrix(12, 8), matrix(12, 8)
    states = []
    for w, every in ((first, 3), (second, NEVER)):
        optimizer, _ = run(w, gradients(12, 8, 7), group={"rank": 3}, refresh_every=every)
        states.append(optimizer.state[w]["exp_avg_sq"])
    assert torch.equal(*states)


def test_nonfinite_gradient_at_a_refresh_is_skipped_and_the_next_step_refreshes():
    w = matrix(8, 6)
    optimizer, _ = run(w, gradients(8, 6, 3), group={"rank": 2}, refresh_every=4)
    before = {k: v.clone() for k, v in optimizer.state[w].items()}
    w.grad = torch.full((8, 6), float("nan"), dtype=F64)
    with pytest.warns(UserWarning, match="w at a basis refresh is not finite"):
        optimizer.step()
    assert all(torch.equal(v, before[k]) for k, v in optimizer.state[w].items())
    w.grad = gradients(8, 6, 1, seed=9)[0]
    optimizer.step()
    assert int(optimizer.state[w]["refreshed"]) == 3
    assert torch.isfinite(w).all()


# -- shapes, bytes, dtypes -----------------------------------------------------------------


def test_transposed_problem_gives_the_transposed_trajectory():
    grads = gradients(9, 6, 7)
    w, t = matrix(9, 6), nn.Parameter(matrix(9, 6).detach().mT.contiguous())
    run(w, grads, group={"rank": 3}, lr=1e-2, svd="exact", refresh_every=3)
    run(t, [g.mT for g in grads], group={"rank": 3}, lr=1e-2, svd="exact", refresh_every=3)
    assert torch.allclose(w.detach(), t.detach().mT, atol=1e-12, rtol=0)


@pytest.mark.parametrize("options", [{}, {"basis": "rows"}, {"subset_size": 7, "ragged": True}])
def test_stacked_experts_and_convolutions_follow_their_matrices(options):
    experts = nn.Parameter(torch.stack([matrix(9, 6, seed=i).detach() for i in range(3)]))
    conv = nn.Parameter(matrix(9, 8).detach().reshape(9, 2, 2, 2).clone())
    build = {"lr": 1e-2, "svd": "exact", "refresh_every": 2, "weight_decay": 0.1, **options}
    optimizer = SNSM([{"params": [("e", experts), ("c", conv)], "layouts": ["experts", "conv"],
                       "rank": 3}], **build)  # fmt: skip
    singles, flat = [matrix(9, 6, seed=i) for i in range(3)], matrix(9, 8)
    reference = SNSM([{"params": [*singles, flat], "rank": 3}], **build)
    for k in range(5):
        for i, p in enumerate(singles):
            p.grad = gradients(9, 6, 1, seed=10 * k + i)[0]
        flat.grad = gradients(9, 8, 1, seed=10 * k + 7)[0]
        experts.grad = torch.stack([p.grad for p in singles])
        conv.grad = flat.grad.reshape(conv.shape).clone()
        optimizer.step()
        reference.step()
    assert torch.allclose(experts, torch.stack(singles), atol=1e-12)
    assert torch.allclose(conv.reshape(9, 8), flat, atol=1e-12)


@pytest.mark.parametrize("subset_size", ["heuristics", 6])
@pytest.mark.parametrize("layout", ["columns", "slice"])
def test_gradients_and_weights_with_other_strides_are_updated_alike(subset_size, layout):
    # The released code takes a view of the gradient, which fails here.
    def strided(t):
        if layout == "columns":
            return t.mT.contiguous().mT
        wide = torch.zeros(t.shape[0], 2 * t.shape[1], dtype=t.dtype)
        wide[:, ::2] = t
        return wide[:, ::2]

    grads, w = gradients(9, 6, 5), matrix(9, 6)
    other = nn.Parameter(strided(w.detach()))
    run(w, grads, group={"rank": 3}, subset_size=subset_size, refresh_every=2)
    optimizer = SNSM([{"params": [other], "rank": 3}], subset_size=subset_size, refresh_every=2)
    for g in grads:
        other.grad = strided(g)
        optimizer.step()
    assert torch.allclose(w, other, atol=1e-12)


LLAMA = [(512, 512)] * 32 + [(1376, 512)] * 16 + [(512, 1376)] * 8


@pytest.mark.parametrize(
    ("method", "group", "options", "numbers", "megabytes"),
    [
        (SNSM, {"rank": 128}, {}, lambda m, n: 128 * (m + n) + max(m, n), 40.2),
        (AdamSN, {"subset_size": "heuristics"}, {}, lambda m, n: m * n + max(m, n), 101.4),
        (AdamSN, {"subset_size": "heuristics"}, {"betas": (0.0, 0.999)}, lambda m, n: max(m, n),
         0.2),
        (SNSM, {"rank": 128}, {"basis": "rows"},
         lambda m, n: 2 * 128 + 128 * min(m, n) + max(m, n), None),
        (SNSM, {"rank": 128}, {"second_moment": "ema"}, lambda m, n: 128 * (m + n) + m * n, None),
    ],
)  # fmt: skip
def test_bytes_of_the_60m_llama_are_the_papers(method, group, options, numbers, megabytes):
    params = [nn.Parameter(torch.empty(s, device="meta")) for s in LLAMA]
    report = method([{"params": params, **group}], **options).report()
    assert report.state_bytes == 4 * sum(numbers(*s) for s in LLAMA)
    assert megabytes is None or round(report.state_bytes / 1e6, 1) == megabytes
    assert round(report.adamw_bytes / 1e6, 1) == 202.4


@pytest.mark.parametrize("options", [{}, {"basis": "rows"}, {"subset_size": 6},
                                     {"second_moment": "ema"}, {"side": "full"}])  # fmt: skip
@pytest.mark.parametrize("shape", [(20, 10), (10, 20)])
def test_state_bytes_are_exactly_as_predicted(options, shape):
    w = matrix(*shape, dtype=torch.float32)
    optimizer = SNSM([{"params": [w], "rank": 5}], **options)
    predicted = optimizer.report().state_bytes
    w.grad = torch.randn(shape)
    optimizer.step()
    assert predicted == state_bytes(optimizer)


@pytest.mark.parametrize(
    ("method", "group", "options"),
    [
        (SNSM, {"rank": 4}, {}),
        (AdamSN, {"subset_size": "heuristics"}, {"betas": (0.0, 0.999)}),
        (SNSM, {"rank": 4}, {"second_moment": "none", "bias_correction": False}),
    ],
)
def test_plain_groups_are_counted_with_the_moments_that_they_keep(method, group, options):
    w, plain = matrix(12, 8, dtype=torch.float32), matrix(5, 7, dtype=torch.float32)
    optimizer = method([{"params": [w], **group}, {"params": [plain]}], **options)
    predicted = optimizer.report().state_bytes
    for p in (w, plain):
        p.grad = torch.randn_like(p)
    optimizer.step()
    assert predicted == state_bytes(optimizer)
    assert ("rank 4 right" in optimizer.report().table()) == (method is SNSM)


def test_a_dead_neuron_makes_no_nan_even_without_epsilon():
    for eps in (1e-6, 0.0):
        grads, w = gradients(9, 6, 4), matrix(9, 6)
        start = w.detach().clone()
        for g in grads:
            g[2] = 0
        run(w, grads, group={"rank": 3}, eps=eps, basis="identity")
        assert torch.isfinite(w).all()
        assert torch.equal(w[2], start[2])


def test_bfloat16_weights_keep_sums_of_squares_in_float32():
    # Sums of a thousand ones stop at 256 in bfloat16.
    w = nn.Parameter(torch.zeros(4, 1024, dtype=torch.bfloat16))
    optimizer = AdamSN([{"params": [w], "subset_size": 1024}], lr=1.0, normalize="sum", eps=0.0)
    w.grad = torch.ones_like(w)
    optimizer.step()
    v = optimizer.state[w]["exp_avg_sq"]
    assert v.dtype == torch.float32
    assert torch.allclose(v, torch.full((4,), 1.024), rtol=1e-5)
    assert torch.allclose(w.float(), torch.full((4, 1024), -1 / 32), rtol=1e-2)


def test_raising_on_nonfinite_refreshes_says_nothing_of_matrices_without_a_subspace():
    w = matrix(8, 6)
    optimizer = AdamSN([{"params": [w], "subset_size": "heuristics"}], on_nonfinite="raise")
    w.grad = torch.full((8, 6), torch.inf, dtype=F64)
    optimizer.step()  # as AdamW: there is no basis to poison
    assert int(optimizer.state[w]["step"]) == 1
    w = matrix(8, 6)
    optimizer = SNSM([{"params": [("w", w)], "rank": 3}], on_nonfinite="raise")
    start, w.grad = w.detach().clone(), torch.full((8, 6), torch.inf, dtype=F64)
    with pytest.raises(FloatingPointError, match="the gradient of w at a basis refresh"):
        optimizer.step()
    assert torch.equal(w, start)
    assert not optimizer.state[w]


def test_zero_gradients_decay_and_do_nothing_else():
    w = matrix(8, 6)
    start = w.detach().clone()
    run(w, [torch.zeros(8, 6, dtype=F64)] * 3, lr=0.1, weight_decay=0.5, group={"rank": 2})
    assert torch.allclose(w.detach(), start * 0.95**3, atol=1e-14, rtol=0)


# -- constraints ---------------------------------------------------------------------------


def test_second_moments_survive_a_rank_that_the_atlas_lowers():
    # Fresh sums under a large step count would divide by far too little: a jump of 30 rates.
    w = matrix(12, 8)
    optimizer, _ = run(w, gradients(12, 8, 40), group={"rank": 6}, lr=1e-2)
    before = optimizer.state[w]["exp_avg_sq"].clone()
    basis = random_basis(8, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    entry = Entry(name="w", side="input", subspace=Subspace(basis), layout="linear",
                  shape=(12, 8))  # fmt: skip
    with pytest.warns(UserWarning, match="fewer free directions than rank"):
        optimizer.set_constraints(avoid=Atlas([entry]))
    start = w.detach().clone()
    w.grad = gradients(12, 8, 1, seed=5)[0]
    optimizer.step()
    moved = w.detach() - start
    assert (moved @ basis).norm() < 1e-12 * moved.norm()
    assert moved.norm(dim=1).max() < 3e-2
    assert (optimizer.state[w]["exp_avg_sq"] >= 0.999 * before).all()
    assert optimizer.state[w]["exp_avg"].shape == (12, 4)


# -- groups and options --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"proj_type": "svd"}, {"basis": "svd", "svd": "exact"}),
        ({"proj_type": "svd", "approx_svd": True, "asvd_rank_scale": 2}, {"svd": "randomized"}),
        ({"proj_type": "rsvd"}, {"svd": "randomized"}),
        ({"proj_type": "uniform"}, {"basis": "rows", "select": "uniform_nr"}),
        ({"proj_type": "topk"}, {"basis": "rows", "select": "topr"}),
        ({"proj_type": "srht"}, {"basis": "srht"}),
        ({"overlap_state": True}, {"moments": "keep"}),
        ({"on_refresh": "rotate"}, {"moments": "rotate"}),
    ],
)
def test_the_released_codes_group_keys_mean_the_same_here(theirs, ours):
    grads = gradients(12, 8, 5)
    first, second = matrix(12, 8), matrix(12, 8)
    keys = {"rank": 3, "subset_size": "heuristics"}
    run(first, grads, group={**keys, "update_proj_gap": 2, **theirs})
    run(second, grads, group={**keys, "refresh_every": 2, **ours})
    assert torch.equal(first, second)


def test_param_groups_without_a_rank_suit_adam_sn():
    model = small_model()
    groups = param_groups(model, None, plain={"lr": 1e-3})
    assert "rank" not in groups[0]
    assert str(groups).startswith("2 projected tensors")
    optimizer = AdamSN(groups, lr=1e-2)
    train(model, optimizer)
    assert optimizer.state[model[0].weight]["exp_avg_sq"].shape == (16,)
    assert optimizer.state[model[2].weight]["exp_avg_sq"].shape == (16,)
    assert optimizer.state[model[0].bias]["exp_avg_sq"].shape == (16,)
    assert [row.kind for row in optimizer.report().rows] == ["projected"] * 2 + ["plain"] * 2


def test_a_group_with_only_a_subset_size_keeps_whole_momentum_beside_one_with_a_rank():
    first, second = matrix(12, 8), matrix(10, 8)
    optimizer = SNSM([{"params": [first], "rank": 3},
                      {"params": [second], "subset_size": "heuristics"}])  # fmt: skip
    for p in (first, second):
        p.grad = gradients(*p.shape, 1)[0]
    optimizer.step()
    assert optimizer.state[first]["exp_avg"].shape == (12, 3)
    assert optimizer.state[second]["exp_avg"].shape == (10, 8)


def test_a_group_may_ask_for_one_second_moment_per_entry():
    first, second = matrix(12, 8), matrix(12, 8)
    grads = gradients(12, 8, 4)
    run(first, grads, group={"rank": 3, "subset_size": None})
    run(second, grads, group={"rank": 3}, second_moment="ema")
    assert torch.equal(first, second)


def test_a_checkpoint_of_other_subsets_is_refused():
    w = matrix(12, 8)
    optimizer, _ = run(w, gradients(12, 8, 2))
    for key, options in [("subset_size", {"subset_size": 4}), ("normalize", {"normalize": "mean"}),
                         ("second_moment", {"second_moment": "none"})]:  # fmt: skip
        other = SNSM([{"params": [("w", w)], "rank": 6}], **options)
        with pytest.raises(ValueError, match=f"the checkpoint's group 0 has {key}|has subset_size"):
            other.load_state_dict(optimizer.state_dict())


def test_adam_snsm_is_the_default():
    grads = gradients(12, 8, 4)
    first, second = matrix(12, 8), matrix(12, 8)
    run(first, grads)
    run(second, grads, method=AdamSNSM)
    assert torch.equal(first, second)


def test_large_chunk_counts_agree_with_whole_models():
    model = small_model()
    optimizer = SNSM(param_groups(model, 4), lr=1e-2, subset_size=-2)
    train(model, optimizer)
    assert torch.isfinite(weights(model)).all()
    assert optimizer.state[model[0].weight]["exp_avg_sq"].numel() == 16 * 12 // 6


class TestBadInput:
    def groups(self, **keys):
        return [{"params": [("w", matrix(8, 6))], **keys}]

    def test_adagrad_with_bias_correction_would_never_move(self):
        with pytest.raises(ValueError, match="bias_correction=False"):
            SNSM(self.groups(rank=2), betas=(0.9, 1.0))

    @pytest.mark.bad_input
    @pytest.mark.parametrize("betas", [0.9, None, (0.9,), "ab"])
    def test_betas_that_are_no_pair(self, betas):
        with pytest.raises(ValueError, match=r"betas must be two numbers|betas\[0\] must be in"):
            SNSM(self.groups(rank=2), betas=betas)

    def test_betas_out_of_range(self):
        for betas in [(1.0, 0.9), (0.9, 1.1), (-0.1, 0.9)]:
            with pytest.raises(ValueError, match=r"betas\[.\] must be in \[0, 1\)"):
                SNSM(self.groups(rank=2), betas=betas)

    @pytest.mark.parametrize(
        ("option", "value"),
        [("momentum", "sn"), ("second_moment", "sm"), ("normalize", "max"), ("basis", "pca"),
         ("select", "uniform"), ("moments", "project_aware"), ("svd", "qr"), ("side", "top")],
    )  # fmt: skip
    def test_unknown_choices_name_the_known_ones(self, option, value):
        with pytest.raises(ValueError, match=f"{option} must be one of .*; got '{value}'"):
            SNSM(self.groups(rank=2), **{option: value})

    @pytest.mark.parametrize(
        ("group", "message"),
        [
            ({"basis": "rows", "side": "full"}, "selects from one side.*Choose another side"),
            ({"basis": "rows", "init": "svd"}, "init = 'svd' and basis = 'rows'.*init=None"),
            ({"basis": "svd", "init": "rows"}, "init = 'rows' and basis = 'svd'"),
        ],
    )
    @pytest.mark.parametrize("method", [SNSM, GaLore])
    def test_selections_have_one_side_and_do_not_turn_into_dense_bases(
        self, method, group, message
    ):
        with pytest.raises(ValueError, match=message):
            method(self.groups(rank=2, **group))

    def test_unknown_proj_type(self):
        with pytest.raises(ValueError, match=r"proj_type must be one of svd, rsvd, .*got 'std'"):
            SNSM(self.groups(rank=2, proj_type="std"))
        with pytest.raises(ValueError, match="both 'basis' and its alias 'proj_type'"):
            SNSM(self.groups(rank=2, proj_type="svd", basis="rows"))

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            ({"proj_type": "uniform", "select": "topr"}, "'select' and its alias 'proj_type'"),
            ({"proj_type": "svd", "svd": "warm"}, "'svd' and its alias 'proj_type'"),
            ({"approx_svd": True, "svd": "exact"}, "'svd' and its alias 'approx_svd'"),
            ({"overlap_state": True, "moments": "rotate"}, "'moments' and its alias 'overlap_st"),
            ({"overlap_state": True, "on_refresh": "rotate"}, "'moments' and its alias 'overlap"),
            ({"correct_bias": True, "bias_correction": True}, "'bias_correction' and its alias"),
        ],
    )
    def test_both_spellings_of_one_key(self, keys, message):
        with pytest.raises(ValueError, match=f"a parameter group has both {message}"):
            SNSM(self.groups(rank=2, **keys))

    def test_matrices_without_entries_have_no_subsets(self):
        empty = [{"params": [("w", nn.Parameter(torch.ones(0, 4)))], "subset_size": "heuristics"}]
        with pytest.raises(ValueError, match=r"w \(0 x 4\) has no entries.*a group without rank"):
            AdamSN(empty)

    @pytest.mark.parametrize(
        ("size", "message"),
        [(0, "must not be 0"), (49, "exceeds the 48 entries of w"), ("rows", "heuristics")],
    )
    def test_subset_sizes_that_do_not_fit(self, size, message):
        with pytest.raises(ValueError, match=message):
            AdamSN(self.groups(subset_size=size))

    def test_vectors_are_no_matrices(self):
        vector = [{"params": [("b", nn.Parameter(torch.ones(6)))], "subset_size": "heuristics"}]
        with pytest.raises(ValueError, match=r"b of shape \(6,\).*no matrix"):
            AdamSN(vector)

    def test_subset_size_without_subset_norms(self):
        with pytest.raises(ValueError, match="has no subsets"):
            SNSM(self.groups(rank=2, subset_size=4), second_moment="ema")

    def test_a_rank_that_nothing_uses_warns(self):
        with pytest.warns(UserWarning, match='rank = 2 has no effect with momentum = "ema"'):
            optimizer = AdamSN(self.groups(rank=2, subset_size="heuristics"))
        assert optimizer.report().rows[0].kind == "projected"

    def test_subspace_momentum_without_any_rank(self):
        with pytest.raises(ValueError, match=r"no group has a rank.*AdamSN"):
            SNSM(self.groups(subset_size="heuristics"))

    def test_nothing_to_treat(self):
        with pytest.raises(ValueError, match=r"no parameter group has a subset_size.*rank=None"):
            AdamSN(self.groups())

    def test_rank_above_the_shorter_side(self):
        with pytest.raises(ValueError, match=r"rank = 7 exceeds min\(m, n\) = 6 for parameter w"):
            SNSM(self.groups(rank=7))


def test_planned_bytes_are_those_of_the_optimizer():
    shapes = {"a": (24, 16), "b": (16, 24), "norm": (16,)}
    for method, rank in (("snsm", 4), ("adamsn", None)):
        params = {n: nn.Parameter(torch.randn(s)) for n, s in shapes.items()}
        build, keys = (SNSM, {"rank": 4}) if rank else (AdamSN, {"subset_size": "heuristics"})
        optimizer = build([{"params": [(n, params[n]) for n in "ab"], **keys},
                           {"params": [("norm", params["norm"])]}])  # fmt: skip
        for p in params.values():
            p.grad = torch.randn_like(p)
        optimizer.step()
        planned = plan_state_bytes(shapes, method, rank=rank, projected=["a", "b"])
        assert planned == state_bytes(optimizer)
