"""Online Subspace Descent: what the paper proves or promises, and what must not go wrong."""

import copy
import functools
import io
import itertools
import math

import pytest
import torch
from torch import nn

from conformance.optimizers import OptimizerSuite, small_model
from spanwise.linalg.bases import principal_angles, random_basis
from spanwise.optim import GaLore, param_groups, state_bytes
from spanwise.optim._bases.projector import DenseProjector
from spanwise.optim._osd.online_pca import pca_gradient, retract, step_bases_
from spanwise.optim.osd import OnlineSubspaceDescent

RULES = ["adamw", "sgd", "lion", "adafactor"]
SHAPES = [(9, 14), (14, 9), (10, 10)]


class TestOSDSuite(OptimizerSuite):
    def make(self, groups, **options):
        return OnlineSubspaceDescent(groups, **options)


class TestOSDSuiteRetractedSparselyLearning(OptimizerSuite):
    def make(self, groups, **options):
        return OnlineSubspaceDescent(
            groups, proj_every=2, proj_optimizer="sgd", retract="polar", retract_every=2,
            ortho_penalty=0.1, base="adafactor", **options,
        )  # fmt: skip


class TestOSDSuiteLion(OptimizerSuite):
    def make(self, groups, **options):
        return OnlineSubspaceDescent(
            groups, proj_optimizer="lion", base="lion", retract="qr", retract_every=3, alpha=0.5,
            **options,
        )  # fmt: skip


class TestOSDSuiteAdafactorBasis(OptimizerSuite):
    def make(self, groups, **options):
        return OnlineSubspaceDescent(groups, proj_optimizer="adafactor", side="long", **options)


def randn(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def gradients(rows, cols, count, seed=1):
    """Matrices with a decaying spectrum, as gradients have."""
    k = min(rows, cols)
    values = torch.arange(1, k + 1, dtype=torch.float64) ** -0.6
    return [
        (randn(rows, k, seed=seed * 1000 + t) * values) @ randn(k, cols, seed=seed * 1000 + t + 500)
        for t in range(count)
    ]


def make(w, *, rank=4, lr=1e-2, **options):
    return OnlineSubspaceDescent([{"params": [("w", w)], "rank": rank}], lr=lr, **options)


def run(w, grads, rates=None, **options):
    optimizer = make(w, **options)
    for t, g in enumerate(grads):
        w.grad = g.clone()
        if rates is not None:
            optimizer.param_groups[0]["lr"] = rates[t]
        optimizer.step()
    return optimizer


def basis_of(optimizer, w):
    state = optimizer.state[w]
    return state["basis_left"] if "basis_left" in state else state["basis_right"]


# -- parity with a naive dense reference -----------------------------------------------------


class Dense:
    """The method from its definition, for one matrix: P P^T in full, autograd for P."""

    def __init__(self, w, rank, *, scale=0.25, proj_lr=1 / 200, proj_optimizer="adamw",
                 proj_weight_decay=None, ortho_penalty=0.0, base="adamw", eps=1e-6,
                 weight_decay=0.0, proj_every=1, released=False):  # fmt: skip
        self.w, self.rank, self.scale, self.eps = w.clone(), rank, scale, eps
        self.proj_lr, self.rule, self.penalty = proj_lr, proj_optimizer, ortho_penalty
        default = 0.01 if proj_optimizer == "adamw" else 0.0
        self.proj_decay = default if proj_weight_decay is None else proj_weight_decay
        self.base, self.decay, self.every = base, weight_decay, proj_every
        self.released = released
        self.p, self.t, self.learned = None, 0, 0
        self.memory, self.basis_memory = {}, {}

    def step(self, g, lr, ratio=1.0):
        left = g.shape[0] < g.shape[1]
        x = g if left else g.mT
        if self.p is None:
            self.p = torch.linalg.svd(x, full_matrices=False).U[:, : self.rank].clone()
        n = self.direction(self.p.mT @ x, self.t + 1)
        n = n if left else n.mT
        if self.released:
            self.w = (self.w - lr * n) * (1 - lr * self.decay)
        else:
            self.w = self.w * (1 - lr * self.decay) - lr * n
        if self.t >= 1 and self.t % self.every == 0:
            self.learn(x, self.every * self.proj_lr * ratio)
        self.t += 1

    def direction(self, r, t):
        if self.base == "adamw" and self.released:
            m = self.memory["m"] = 0.9 * self.memory.get("m", 0) + 0.1 * r
            v = self.memory["v"] = 0.999 * self.memory.get("v", 0) + 0.001 * r * r
            correction = (1 - 0.999**t) ** 0.5 / (1 - 0.9**t)
            return self.scale * correction * self.p @ (m / (v.sqrt() + self.eps))
        if self.base == "lion" and self.released:
            m = self.memory.get("m", torch.zeros_like(r))
            self.memory["m"] = 0.99 * m + 0.01 * r
            return (self.p @ (0.9 * m + 0.1 * r)).sign()
        return self.scale * self.p @ rule(self.base, r, self.memory, t, self.eps)

    def learn(self, x, lr):
        p = self.p.clone().requires_grad_()
        xh = x / x.norm()
        excess = p.mT @ p - torch.eye(self.rank, dtype=p.dtype)
        loss = (p @ p.mT @ xh - xh).square().sum() + self.penalty * excess.square().sum()
        (slope,) = torch.autograd.grad(loss, p)
        self.learned += 1
        d = rule(self.rule, slope, self.basis_memory, self.learned, 1e-8)
        self.p = self.p - lr * (d + self.proj_decay * self.p)


def rule(name, g, memory, t, eps):
    """The direction that each rule subtracts, from its definition."""
    if name == "sgd":
        return g
    if name == "adamw":
        m = memory["m"] = 0.9 * memory.get("m", 0) + 0.1 * g
        v = memory["v"] = 0.999 * memory.get("v", 0) + 0.001 * g * g
        return (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + eps)
    if name == "lion":
        m = memory.get("m", torch.zeros_like(g))
        memory["m"] = 0.99 * m + 0.01 * g
        return (0.9 * m + 0.1 * g).sign()
    past = 1 - t**-0.8
    rows = memory["rows"] = past * memory.get("rows", 0) + (1 - past) * (g**2 + 1e-30).mean(1)
    cols = memory["cols"] = past * memory.get("cols", 0) + (1 - past) * (g**2 + 1e-30).mean(0)
    u = g / (torch.outer(rows, cols) / rows.mean()).sqrt()
    return u / max(1.0, float(u.square().mean().sqrt()))


def schedule(kind, steps, lr=1e-2):
    if kind == "constant":
        return [lr] * steps
    return [lr * 0.5 * (1 + math.cos(math.pi * t / steps)) for t in range(steps)]


def assert_follows(shape, rates, *, compat=None, **options):
    grads, w = gradients(*shape, len(rates)), nn.Parameter(randn(*shape))
    reference = Dense(w.detach(), 4, released=compat is not None, **options)
    for g, lr in zip(grads, rates, strict=True):
        reference.step(g, lr, lr / rates[0])
    optimizer = run(w, grads, rates, svd="exact", stagger=False, compat=compat, **options)
    assert torch.allclose(w.detach(), reference.w, atol=1e-10, rtol=0)
    basis = basis_of(optimizer, w)
    signs = (basis * reference.p).sum(0).sign()
    assert torch.allclose(basis * signs, reference.p, atol=1e-10, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["constant", "decaying"])
@pytest.mark.parametrize("proj_optimizer", RULES)
def test_trajectory_equals_a_naive_dense_reference(shape, kind, proj_optimizer):
    rates = schedule(kind, 25)
    assert_follows(shape, rates, proj_optimizer=proj_optimizer, weight_decay=0.1)


@pytest.mark.parametrize("base", ["adamw", "lion", "adafactor"])
@pytest.mark.parametrize("shape", SHAPES)
def test_base_rules_act_on_the_coordinates(base, shape):
    assert_follows(shape, schedule("decaying", 20), base=base)


def test_penalty_interval_and_decay_of_the_basis_equal_the_reference():
    rates = schedule("decaying", 24)
    assert_follows((9, 14), rates, proj_every=3, ortho_penalty=0.1, proj_weight_decay=0.2)
    assert_follows((14, 9), rates, proj_every=2, proj_optimizer="sgd", proj_weight_decay=0.2)


@pytest.mark.parametrize("base", ["adamw", "lion"])
def test_compat_follows_the_released_step(base):
    # In float32 its first basis is the float32 SVD's, which our float64 run shares.
    shape, rates = (9, 14), schedule("decaying", 20)
    grads, w = gradients(*shape, 20), nn.Parameter(randn(*shape))
    reference = Dense(w.detach(), 4, released=True, base=base, weight_decay=0.1)
    reference.p = torch.linalg.svd(grads[0].float(), full_matrices=False).U[:, :4].double()
    for g, lr in zip(grads, rates, strict=True):
        reference.step(g, lr, lr / rates[0])
    run(w, grads, rates, compat="galore_torch", base=base, weight_decay=0.1)
    assert torch.allclose(w.detach(), reference.w, atol=1e-10, rtol=0)


# -- the loss of the basis -------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("penalty", [0.0, 0.3])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("orthonormal", [True, False])
def test_closed_form_gradient_equals_autograd(dtype, atol, penalty, side, batch, orthonormal):
    g = randn(*batch, 9, 14, dtype=dtype)
    p = randn(*batch, 9 if side == "left" else 14, 4, seed=1, dtype=dtype) / 3
    p = (torch.linalg.qr(p).Q if orthonormal else p).requires_grad_()
    x = g if side == "left" else g.mT
    xh = x / torch.linalg.matrix_norm(x)[..., None, None]
    excess = p.mT @ p - torch.eye(4, dtype=dtype)
    loss = (p @ p.mT @ xh - xh).square().sum((-2, -1)) + penalty * excess.square().sum((-2, -1))
    (expected,) = torch.autograd.grad(loss.sum(), p)
    slope = pca_gradient(g, p.detach(), side, ortho_penalty=penalty)
    assert torch.allclose(slope, expected, atol=atol, rtol=0)


@pytest.mark.parametrize("c", [1e-30, 1e30])
def test_gradient_of_the_basis_does_not_see_the_size_of_the_gradient(c):
    # The squares of these entries leave float32.
    g, p = randn(9, 14, dtype=torch.float32), randn(9, 4, seed=1, dtype=torch.float32)
    assert torch.allclose(pca_gradient(c * g, p, "left"), pca_gradient(g, p, "left"), rtol=1e-4)


def test_at_an_orthonormal_basis_the_gradient_is_the_oja_direction():
    g, p = randn(9, 14), torch.linalg.qr(randn(9, 4, seed=1)).Q
    xh = g / g.norm()
    tangent = xh @ xh.mT @ p
    tangent = tangent - p @ (p.mT @ tangent)
    assert torch.allclose(pca_gradient(g, p, "left"), -2 * tangent, atol=1e-12, rtol=0)


def test_invariant_subspaces_and_those_that_contain_the_gradient_are_stationary():
    g = randn(9, 14)
    u = torch.linalg.svd(g).U
    for columns in (slice(0, 4), slice(2, 6), [0, 3, 8]):
        assert pca_gradient(g, u[:, columns], "left").abs().max() < 1e-12
    low = randn(9, 3) @ randn(3, 14, seed=1)
    p = torch.linalg.qr(torch.cat([randn(9, 1, seed=2), low[:, :3]], 1)).Q
    assert pca_gradient(low, p, "left").abs().max() < 1e-12


@pytest.mark.parametrize("how", ["qr", "polar"])
def test_retraction_keeps_the_span_and_is_orthonormal(how):
    for far in (0.05, 3.0):
        p = torch.linalg.qr(randn(9, 4)).Q + far * randn(9, 4, seed=1)
        q = retract(p, how)
        assert torch.allclose(q.mT @ q, torch.eye(4, dtype=q.dtype), atol=1e-12, rtol=0)
        assert torch.linalg.svdvals(torch.cat([p, q], 1))[4] < 1e-12
        u, _, vh = torch.linalg.svd(p, full_matrices=False)
        if how == "polar":
            assert torch.allclose(q, u @ vh, atol=1e-12, rtol=0)


# -- limiting cases and equivariance ---------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("still", [{"proj_lr": 0.0}, {"alpha": 0.0}])
def test_a_basis_that_does_not_learn_is_galore_without_refresh(shape, still):
    w, twin = nn.Parameter(randn(*shape)), nn.Parameter(randn(*shape))
    grads = gradients(*shape, 8)
    run(w, grads, weight_decay=0.1, **still)
    galore = GaLore([{"params": [("w", twin)], "rank": 4}], lr=1e-2, weight_decay=0.1,
                    refresh_every=None)  # fmt: skip
    for g in grads:
        twin.grad = g.clone()
        galore.step()
    # Not bitwise: our basis is stored by rows, in one order with its slopes.
    assert torch.allclose(w, twin, atol=1e-13, rtol=0)


@pytest.mark.parametrize("proj_optimizer", RULES)
def test_flipping_and_permuting_the_basis_with_its_moments_changes_nothing(proj_optimizer):
    grads = gradients(14, 9, 12)
    w, twin = nn.Parameter(randn(14, 9)), nn.Parameter(randn(14, 9))
    options = {"proj_optimizer": proj_optimizer, "retract": "polar", "retract_every": 4}
    first, second = run(w, grads[:5], **options), run(twin, grads[:5], **options)
    order = torch.tensor([2, 0, 3, 1])
    signs = torch.tensor([1.0, -1, -1, 1], dtype=torch.float64)
    state = second.state[twin]
    for key in ("basis_right", "exp_avg", "proj_exp_avg"):
        if key in state:
            state[key] = (state[key][..., order] * signs).contiguous()
    for key in ("exp_avg_sq", "proj_exp_avg_sq", "proj_col_means"):
        if key in state:
            state[key] = state[key][..., order].contiguous()
    for g in grads[5:]:
        w.grad, twin.grad = g.clone(), g.clone()
        first.step()
        second.step()
    assert torch.allclose(w, twin, atol=1e-11, rtol=0)


@pytest.mark.parametrize("proj_optimizer", RULES)
def test_scaling_every_gradient_changes_neither_basis_nor_weight(proj_optimizer):
    grads, runs = gradients(9, 14, 10), []
    for c in (1.0, 1e-5, 1e5):
        w = nn.Parameter(randn(9, 14))
        optimizer = run(w, [c * g for g in grads], proj_optimizer=proj_optimizer, eps=1e-30)
        runs.append((w.detach(), basis_of(optimizer, w)))
    for other in runs[1:]:
        assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(runs[0], other, strict=True))


@pytest.mark.parametrize("proj_optimizer", RULES)
def test_transposed_problem_gives_the_transposed_trajectory(proj_optimizer):
    grads = gradients(9, 14, 10)
    w, t = nn.Parameter(randn(9, 14)), nn.Parameter(randn(9, 14).mT.contiguous())
    options = {"proj_optimizer": proj_optimizer, "svd": "exact"}
    run(w, grads, side="left", **options)
    run(t, [g.mT for g in grads], side="right", **options)
    assert torch.allclose(w.detach(), t.detach().mT, atol=1e-10, rtol=0)


def test_stacked_experts_and_convolutions_follow_their_matrices():
    experts = nn.Parameter(torch.stack([randn(9, 6, seed=i) for i in range(3)]))
    conv = nn.Parameter(randn(9, 8).reshape(9, 2, 2, 2).clone())
    singles = [nn.Parameter(randn(9, 6, seed=i)) for i in range(3)]
    flat = nn.Parameter(randn(9, 8))
    options = {"lr": 1e-2, "svd": "exact", "ortho_penalty": 0.1}
    optimizer = OnlineSubspaceDescent(
        [{"params": [("e", experts), ("c", conv)], "layouts": ["experts", "conv"], "rank": 3}],
        **options,
    )
    reference = OnlineSubspaceDescent([{"params": [*singles, flat], "rank": 3}], **options)
    for k in range(6):
        for i, p in enumerate([*singles, flat]):
            p.grad = gradients(*p.shape, 1, seed=10 * k + i)[0]
        experts.grad = torch.stack([p.grad for p in singles])
        conv.grad = flat.grad.reshape(conv.shape).clone()
        optimizer.step()
        reference.step()
    assert torch.allclose(experts, torch.stack(list(singles)), atol=1e-12, rtol=0)
    assert torch.allclose(conv.flatten(1), flat, atol=1e-12, rtol=0)


# -- what the basis does over time -----------------------------------------------------------


def planted(d, r, count, seed=0, noise=0.1):
    """Gradients whose columns lie in one r-dimensional subspace, but for noise."""
    u = random_basis(d, r, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    grads = [
        u @ randn(r, 40, seed=seed + 1 + t) + noise * randn(d, 40, seed=seed + 9001 + t)
        for t in range(count)
    ]
    return u, grads


def follow(proj_optimizer, proj_lr, *, decaying, steps=500):
    u, grads = planted(16, 3, steps)
    w = nn.Parameter(randn(16, 40))
    optimizer = make(w, rank=3, proj_optimizer=proj_optimizer, proj_lr=proj_lr,
                     proj_weight_decay=0.0)  # fmt: skip
    angles = []
    for t, g in enumerate(grads):
        w.grad = g
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - t / steps if decaying else 1.0)
        optimizer.step()
        basis = basis_of(optimizer, w)
        if t == 0:
            basis.copy_(torch.linalg.qr(randn(16, 3, seed=77)).Q)
        angles.append(float(principal_angles(retract(basis, "polar"), u).max()))
    return angles


@pytest.mark.parametrize(("proj_optimizer", "proj_lr"), [("sgd", 0.5), ("adamw", 0.05)])
def test_with_a_decaying_rate_the_basis_finds_a_planted_subspace(proj_optimizer, proj_lr):
    angles = follow(proj_optimizer, proj_lr, decaying=True)
    assert angles[0] > 0.5
    assert angles[-1] < 0.05


def test_at_a_constant_rate_adamw_hovers_in_a_band_around_the_subspace():
    # Every entry of P moves by about the rate, whatever the gradient: O(rate sqrt(d)), not zero.
    rate = 0.02
    late = follow("adamw", rate, decaying=False)[-100:]
    assert 0.02 * rate * 4 < sum(late) / 100 < 4 * rate * 4


@functools.cache
def descend(alpha, penalty=0.0, steps=150):
    """Loss left, share of the best energy captured, and drift, on ||W - target||^2 with noise.

    `alpha`: of the basis's rate, "redrawn" for GaLore with a basis every 50 steps, or "frozen".
    """
    u, v = (torch.linalg.qr(randn(n, 16, seed=n)).Q for n in (16, 24))
    target = u @ torch.diag(0.8 * 0.8 ** torch.arange(16, dtype=torch.float64)) @ v.mT
    w = nn.Parameter(torch.zeros_like(target))
    if alpha in ("redrawn", "frozen"):
        every = 50 if alpha == "redrawn" else None
        optimizer = GaLore([{"params": [w], "rank": 4}], refresh_every=every)
    else:
        optimizer = make(w, alpha=alpha, ortho_penalty=penalty)
    shares, drift = [], 0.0
    for t in range(steps):
        optimizer.param_groups[0]["lr"] = 0.005 * (1 + math.cos(math.pi * t / steps))
        w.grad = g = w.detach() - target + 0.002 * randn(16, 24, seed=t)
        optimizer.step()
        p = basis_of(optimizer, w)
        best = torch.linalg.svdvals(g)[:4].square().sum()
        shares.append(float((torch.linalg.qr(p).Q.mT @ g).square().sum() / best))
        drift = max(drift, float((p.mT @ p - torch.eye(4)).norm()))
    loss = float((w.detach() - target).square().sum() / target.square().sum())
    return loss, sum(shares) / steps, drift


@pytest.mark.parametrize("penalty", [0.0, 0.01])
def test_at_the_papers_alpha_of_five_it_learns_as_galore_and_captures_more(penalty):
    loss, share, _ = descend(5.0, penalty)
    assert loss < 1.03 * descend("redrawn")[0]
    assert share > descend("redrawn")[1] > 0.85


@pytest.mark.parametrize("penalty", [0.0, 0.01])
def test_a_larger_alpha_follows_the_gradient_more_closely_and_learns_more(penalty):
    slow, middle, fast = (descend(alpha, penalty) for alpha in (0.1, 1.0, 5.0))
    assert slow[1] < middle[1] < fast[1]
    assert descend("frozen")[0] > slow[0] > middle[0] > fast[0]


@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_a_small_penalty_keeps_columns_nearer_to_orthonormal_at_no_cost_of_loss(alpha):
    free, held = descend(alpha), descend(alpha, 0.01)
    assert held[2] < 0.95 * free[2]
    assert held[0] == pytest.approx(free[0], rel=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize("retraction", [None, "qr", "polar"])
def test_columns_stay_near_orthonormal_and_retraction_makes_them_so(retraction):
    w = nn.Parameter(torch.zeros(12, 20))
    options = {} if retraction is None else {"retract": retraction, "retract_every": 1}
    optimizer, worst = make(w, **options), 0.0
    for t in range(2000):
        w.grad = randn(12, 20, seed=t, dtype=torch.float32)
        optimizer.step()
        basis = basis_of(optimizer, w)
        worst = max(worst, float((basis.mT @ basis - torch.eye(4)).norm()))
    assert worst < (0.2 if retraction is None else 1e-5)
    assert (worst > 1e-3) == (retraction is None)


def test_recovery_scaling_needs_the_orthonormal_basis_that_a_learning_one_is_not():
    w = nn.Parameter(randn(9, 14))
    with pytest.raises(ValueError, match="residual must be one of drop"):
        make(w).add_param_group({"params": [("v", nn.Parameter(randn(9, 9)))], "rank": 2,
                                 "residual": "scaled"})  # fmt: skip


@pytest.mark.parametrize("path", ["redrawn", "walking", "learning"])
def test_energy_of_heavy_ball_falls_for_any_path_of_the_basis(path):
    # W' = -P S, S' = P^T grad f - gamma S:  d/dt (f + |S|^2 / 2) = -gamma |S|^2 for every P_t.
    generator = torch.Generator().manual_seed(0)
    scales = torch.linspace(0.2, 1.0, 10, dtype=torch.float64)[:, None]
    w, s = randn(10, 6) / 10, torch.zeros(3, 6, dtype=torch.float64)
    p = random_basis(10, 3, generator=generator, dtype=torch.float64)
    memory = [[torch.zeros_like(p), torch.zeros_like(p)]]
    dt, gamma, energies, dissipated = 1e-3, 1.0, [], 0.0
    for t in range(3000):
        g = scales * w  # f = sum(scales w^2) / 2
        energies.append(float((scales * w * w).sum() / 2 + s.square().sum() / 2))
        projector = DenseProjector(p, None)
        dissipated += dt * gamma * float(s.square().sum())
        w, s = w - dt * projector.lift(s), s + dt * (projector.project(g) - gamma * s)
        if path == "redrawn":
            p = random_basis(10, 3, generator=generator, dtype=torch.float64)
        elif path == "walking":
            p = torch.linalg.qr(p + 0.02 * randn(10, 3, seed=t)).Q
        else:
            step_bases_("adamw", [p], [pca_gradient(g, p, "left")], memory, step=t + 1, lr=0.05,
                        weight_decay=0.0)  # fmt: skip
    assert all(b - a < 1e-6 for a, b in itertools.pairwise(energies))
    assert energies[0] - energies[-1] == pytest.approx(dissipated, rel=0.05, abs=1e-3)
    if path != "redrawn":  # a basis that never stays shows no direction often enough
        assert energies[-1] < 0.9 * energies[0]


# -- schedules and resuming ------------------------------------------------------------------


def test_the_rate_of_the_basis_follows_a_scheduler_that_starts_at_zero():
    w = nn.Parameter(randn(9, 14))
    optimizer = make(w, lr=2e-2, proj_lr=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min(1.0, t / 4))
    assert optimizer.param_groups[0]["lr"] == 0
    rates, bases = [], []
    for g in gradients(9, 14, 6):
        w.grad = g
        rates.append(optimizer.basis_rate(optimizer.param_groups[0]))
        optimizer.step()
        scheduler.step()
        bases.append(basis_of(optimizer, w).clone())
    assert rates == pytest.approx([0.0, 0.0025, 0.005, 0.0075, 0.01, 0.01])
    assert not torch.equal(bases[0], bases[1])
    assert torch.isfinite(w).all()


def test_alpha_ties_the_basis_to_the_rate_of_the_weights():
    w = nn.Parameter(randn(9, 14))
    optimizer = make(w, lr=1e-2, alpha=5, proj_every=2)
    group = optimizer.param_groups[0]
    assert optimizer.basis_rate(group) == pytest.approx(5 * 1e-2 * 2)
    group["lr"] = 1e-3
    assert optimizer.basis_rate(group) == pytest.approx(5 * 1e-3 * 2)


def test_resuming_amid_a_schedule_goes_on_bitwise():
    grads = gradients(14, 9, 12)

    def build(w, lr):
        optimizer = make(w, lr=lr, proj_every=2, retract="qr", retract_every=2)
        return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)

    def go(w, optimizer, scheduler, some):
        for g in some:
            w.grad = g.clone()
            optimizer.step()
            scheduler.step()

    whole = nn.Parameter(randn(14, 9))
    go(whole, *build(whole, 1e-2), grads)
    half = nn.Parameter(randn(14, 9))
    first = build(half, 1e-2)
    go(half, *first, grads[:7])
    buffer = io.BytesIO()
    torch.save([x.state_dict() for x in first], buffer)
    buffer.seek(0)
    # A resumed script may build its optimizer with any rate: the checkpoint's counts.
    second = build(half, 3e-3)
    for x, saved in zip(second, torch.load(buffer, weights_only=True), strict=True):
        x.load_state_dict(saved)
    go(half, *second, grads[7:])
    assert torch.equal(half, whole)


def test_an_initial_rate_that_a_scheduler_left_is_the_reference():
    group = {"params": [("w", nn.Parameter(randn(9, 14)))], "rank": 4, "lr": 0.0,
             "initial_lr": 2e-2}  # fmt: skip
    optimizer = OnlineSubspaceDescent([group])
    assert optimizer.param_groups[0]["reference_lr"] == 2e-2


def test_bases_take_turns_when_they_learn_on_every_kth_step():
    params = [(f"w{i}", nn.Parameter(randn(6, 5, seed=i))) for i in range(8)]
    optimizer = OnlineSubspaceDescent([{"params": params, "rank": 2}], proj_every=4)
    learned = []
    for k in range(9):
        before = [int(optimizer.state[p].get("proj_step", 0)) for _, p in params]
        for _, p in params:
            p.grad = randn(6, 5, seed=k)
        optimizer.step()
        after = [int(optimizer.state[p]["proj_step"]) for _, p in params]
        learned.append(sum(a - b for a, b in zip(after, before, strict=True)))
    assert learned == [0] + [2] * 8


# -- what must not go wrong ------------------------------------------------------------------


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
@pytest.mark.parametrize("proj_optimizer", RULES)
def test_a_gradient_without_a_direction_leaves_the_basis_as_it_is(bad, proj_optimizer):
    w = nn.Parameter(randn(9, 14))
    optimizer = run(w, gradients(9, 14, 4), proj_optimizer=proj_optimizer, retract="qr",
                    retract_every=1)  # fmt: skip
    before = {k: v.clone() for k, v in optimizer.state[w].items()}
    w.grad = torch.full((9, 14), bad, dtype=torch.float64)
    optimizer.step()
    state = optimizer.state[w]
    for key in before:
        if key.startswith(("basis", "proj")):
            assert torch.equal(state[key], before[key])
    if bad == 0:
        assert torch.isfinite(w).all()


def test_an_expert_without_tokens_keeps_its_basis_while_others_learn():
    experts = nn.Parameter(torch.stack([randn(9, 6, seed=i) for i in range(3)]))
    optimizer = OnlineSubspaceDescent(
        [{"params": [("e", experts)], "layouts": ["experts"], "rank": 3}], lr=1e-2
    )
    for k in range(4):
        experts.grad = torch.stack([randn(9, 6, seed=10 * k + i) for i in range(3)])
        optimizer.step()
    before = {k: v.clone() for k, v in optimizer.state[experts].items()}
    experts.grad[1] = 0
    optimizer.step()
    state = optimizer.state[experts]
    for key in ("basis_right", "proj_exp_avg", "proj_exp_avg_sq", "proj_step"):
        assert torch.equal(state[key][1], before[key][1])
        assert not torch.equal(state[key][0], before[key][0])
    assert all(torch.isfinite(v).all() for v in state.values())


def test_a_zero_first_gradient_leaves_the_basis_to_the_next():
    w = nn.Parameter(randn(9, 14))
    optimizer = run(w, [torch.zeros(9, 14, dtype=torch.float64)])
    assert int(optimizer.state[w]["refreshed"]) == -1
    for k in range(2):
        w.grad = randn(9, 14, seed=k)
        optimizer.step()
    assert int(optimizer.state[w]["proj_step"]) == 1
    assert torch.isfinite(w).all()


def test_the_basis_stays_out_of_autograd():
    model = small_model()
    optimizer = OnlineSubspaceDescent(param_groups(model, rank=4), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 12)).square().mean().backward()
        optimizer.step()
    for state in optimizer.state.values():
        assert not any(v.requires_grad or v.grad_fn for v in state.values())


def test_half_precision_weights_learn_the_basis_of_their_float32_gradient():
    bases = []
    for dtype in (torch.bfloat16, torch.float32):
        w = nn.Parameter(randn(9, 14, dtype=dtype))
        grads = [g.bfloat16().to(dtype) for g in gradients(9, 14, 20)]
        bases.append(basis_of(run(w, grads), w).clone())
    # Rounding P itself would lose steps of 5e-3 here.
    assert bases[0].dtype == torch.float32
    assert torch.allclose(*bases, atol=1e-6)


def test_a_redrawn_basis_starts_its_own_moments_afresh():
    w = nn.Parameter(randn(9, 14))
    optimizer = run(w, gradients(9, 14, 5), refresh_every=4)
    assert int(optimizer.state[w]["refreshed"]) == 4
    assert not optimizer.state[w]["proj_exp_avg"].any()
    assert int(optimizer.state[w]["proj_step"]) == 0
    w.grad = randn(9, 14)
    optimizer.step()
    assert int(optimizer.state[w]["proj_step"]) == 1


def test_the_steps_after_the_first_decompose_nothing(monkeypatch):
    w = nn.Parameter(randn(9, 14))
    optimizer = run(w, gradients(9, 14, 1))
    for name in ("svd", "qr", "eigh"):
        monkeypatch.setattr(torch.linalg, name, None)
    for g in gradients(9, 14, 5):
        w.grad = g
        optimizer.step()


LLAMA_60M = [(512, 512)] * 32 + [(1376, 512)] * 16 + [(512, 1376)] * 8


@pytest.mark.parametrize(
    ("proj_optimizer", "base", "megabytes"),
    [
        ("adamw", "adamw", 94.6),
        ("sgd", "adamw", 65.3),
        ("lion", "adamw", 80.0),
        ("adafactor", "adamw", 65.4),
        ("sgd", "lion", 40.0),
    ],
)
def test_bytes_of_the_60m_llama(proj_optimizer, base, megabytes):
    params = [nn.Parameter(torch.empty(s, device="meta")) for s in LLAMA_60M]
    options = {"proj_optimizer": proj_optimizer, "base": base}
    report = OnlineSubspaceDescent([{"params": params, "rank": 128}], **options).report()
    bases = {"adamw": 3, "sgd": 1, "lion": 2}.get(proj_optimizer)
    moments = {"adamw": 2, "lion": 1}[base]
    if bases is not None:
        numbers = sum(128 * (bases * min(s) + moments * max(s)) for s in LLAMA_60M)
        assert report.state_bytes == 4 * numbers
    assert round(report.state_bytes / 1e6, 1) == megabytes
    assert round(report.adamw_bytes / 1e6, 1) == 202.4


@pytest.mark.parametrize("proj_optimizer", RULES)
@pytest.mark.parametrize("base", ["adamw", "lion", "adafactor"])
@pytest.mark.parametrize("side", ["short", "long"])
def test_state_bytes_are_exactly_as_predicted(proj_optimizer, base, side):
    w = nn.Parameter(torch.zeros(20, 10))
    e = nn.Parameter(torch.zeros(2, 6, 9))
    optimizer = OnlineSubspaceDescent(
        [{"params": [("w", w), ("e", e)], "layouts": ["linear", "experts"], "rank": 5}],
        proj_optimizer=proj_optimizer, base=base, side=side,
    )  # fmt: skip
    predicted = optimizer.report().state_bytes
    w.grad, e.grad = torch.randn(20, 10), torch.randn(2, 6, 9)
    optimizer.step()
    assert predicted == state_bytes(optimizer) == optimizer.report().state_bytes


# -- options ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("continuous", "adamw"),
        ("continuous_sgd", "sgd"),
        ("continuous_lion", "lion"),
        ("continuous_adafactor", "adafactor"),
    ],
)
def test_keys_of_the_released_code_are_accepted(kind, expected):
    group = {"params": [nn.Parameter(randn(9, 14))], "rank": 4, "update_proj_gap": 50,
             "scale": 0.5, "proj_type": kind, "names": [None]}  # fmt: skip
    group = OnlineSubspaceDescent([group], lr=1e-2).param_groups[0]
    assert group["proj_lr"] == 1 / 50
    assert group["proj_optimizer"] == expected
    assert "names" not in group


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"proj_lr": -1.0}, "proj_lr must be finite and at least 0"),
        ({"proj_lr": float("nan")}, "proj_lr must be finite"),
        ({"alpha": -1.0}, "alpha must be finite and at least 0"),
        ({"alpha": 1.0, "proj_lr": 0.1}, "alpha = 1.0 and proj_lr = 0.1 both set"),
        ({"ortho_penalty": -0.1}, "ortho_penalty must be finite and at least 0"),
        ({"proj_weight_decay": -0.1}, "proj_weight_decay must be finite and at least 0"),
        ({"proj_every": 0}, "proj_every must be an int of at least 1"),
        ({"proj_optimizer": "adam8bit"}, "proj_optimizer must be one of adamw, lion, adafactor"),
        ({"base": "sgd"}, "base must be one of adamw, lion, adafactor"),
        ({"base": "lion", "moments": "project_aware"}, "needs the two moments of Adam.*rotate"),
        ({"base": "adafactor", "moments": "reset"}, "needs the two moments of Adam.*keep"),
        ({"retract": "qr"}, "go together: give both"),
        ({"retract_every": 5}, "go together: give both"),
        ({"retract": "cayley", "retract_every": 5}, "retract must be one of None, qr, polar"),
        ({"retract": "qr", "retract_every": 0}, "retract_every must be an int of at least 1"),
        ({"lr": 0.0}, "lr = 0 leaves proj_lr no rate to refer to"),
        ({"lr": 0.1, "initial_lr": 0.0}, "lr = 0 leaves proj_lr no rate to refer to"),
        ({"side": "full"}, "side must be one of short, long, left, right, local"),
        ({"svd": "warm"}, "svd must be one of randomized, exact, gram"),
        ({"refresh_every": 0}, "refresh_every must be an int of at least 1"),
        ({"update_proj_gap": 0}, "update_proj_gap must be finite and above 0"),
        ({"update_proj_gap": 5, "proj_lr": 0.1}, "both 'proj_lr' and 'update_proj_gap'"),
        ({"proj_type": "continuous", "proj_optimizer": "sgd"}, "both 'proj_optimizer' and"),
        ({"proj_type": "std"}, "proj_type must be continuous.*use spanwise.optim.GaLore"),
        ({"proj_type": "continuous_adam8bit"}, "8-bit states are not supported"),
        ({"rank": 10}, r"rank = 10 exceeds min\(m, n\) = 9 for parameter w"),
        ({"rank": None}, "nothing to project"),
        ({"scale": 0}, "scale must be finite and above 0"),
    ],
)
def test_bad_options_are_refused_by_name(group, message):
    group = {"params": [("w", nn.Parameter(randn(9, 14)))], "rank": 4, **group}
    with pytest.raises(ValueError, match=message):
        OnlineSubspaceDescent([group])


@pytest.mark.parametrize("key", [{"proj_optimizer": "sgd"}, {"base": "lion"}])
def test_a_checkpoint_with_other_rules_is_refused(key):
    w = nn.Parameter(randn(9, 14))
    saved = run(w, gradients(9, 14, 2)).state_dict()
    name, value = next(iter(key.items()))
    with pytest.raises(ValueError, match=f"{name} = 'adamw', this optimizer {value!r}"):
        make(w, **key).load_state_dict(saved)


def test_plain_groups_are_adamw_whatever_the_base():
    model, twin = small_model(), small_model()
    optimizer = OnlineSubspaceDescent(param_groups(model, rank=4), lr=1e-2, base="lion", eps=1e-8)
    adamw = torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=0.0, fused=True)
    for k in range(3):
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            a.grad = randn(*a.shape, seed=k, dtype=torch.float32)
            b.grad = a.grad.clone()
        optimizer.step()
        adamw.step()
    assert torch.equal(model[0].bias, twin[0].bias)
    assert not torch.equal(model[0].weight, twin[0].weight)


def test_a_copied_optimizer_goes_on_like_the_original_amid_a_schedule():
    w = nn.Parameter(randn(9, 14))
    optimizer = run(w, gradients(9, 14, 3), lr=1e-2)
    optimizer.param_groups[0]["lr"] = 5e-3
    twin, copied = copy.deepcopy((w, optimizer))
    for g in gradients(9, 14, 3, seed=4):
        w.grad, twin.grad = g.clone(), g.clone()
        optimizer.step()
        copied.step()
    assert torch.equal(w, twin)
