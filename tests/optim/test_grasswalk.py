"""GrassWalk and GrassJump: what the method promises, and what must not go wrong."""

import itertools
import math

import pytest
import scipy.stats
import torch
from torch import nn

from conformance.optimizers import OptimizerSuite
from spanwise.linalg import captured_energy, grassmann, principal_angles
from spanwise.linalg.bases import random_basis
from spanwise.optim import GaLore, GrassJump, GrassWalk, param_groups, state_bytes
from spanwise.optim._bases.grassmann import jump, track, walk
from spanwise.optim._engine.transfer import change_of_basis, project_aware_
from spanwise.optim._guard.constraint import SideConstraint

F64 = torch.float64
SHAPES = [(9, 14), (14, 9), (10, 10)]
BOTH = pytest.mark.parametrize("method", [GrassWalk, GrassJump])


class TestGrassWalkSuite(OptimizerSuite):
    def make(self, groups, **options):
        return GrassWalk(groups, refresh_every=3, **options)


class TestGrassJumpSuite(OptimizerSuite):
    def make(self, groups, **options):
        return GrassJump(groups, refresh_every=3, **options)


class TestGrassJumpFromARandomStartSuite(OptimizerSuite):
    def make(self, groups, **options):
        return GrassJump(groups, refresh_every=3, init="jump", stagger=True, **options)


class TestTrackSuite(OptimizerSuite):
    def make(self, groups, **options):
        return GrassWalk(groups, refresh_every=3, basis="track", **options)


class TestFiraSuite(OptimizerSuite):
    def make(self, groups, **options):
        return GaLore(groups, refresh_every=3, residual="fira", **options)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def matrix(rows, cols, seed=0, dtype=F64):
    return nn.Parameter(torch.randn(rows, cols, generator=seeded(seed), dtype=F64).to(dtype))


def gradients(rows, cols, count, seed=1, dtype=F64):
    g = seeded(seed)
    return [torch.randn(rows, cols, generator=g, dtype=F64).to(dtype) for _ in range(count)]


def run(method, w, grads, *, rank=4, **options):
    optimizer = method([{"params": [("w", w)], "rank": rank}], **options)
    for g in grads:
        w.grad = g.clone()
        optimizer.step()
    return optimizer


def basis_of(optimizer, w):
    state = optimizer.state[w]
    return state["basis_left"] if "basis_left" in state else state["basis_right"]


class Naive:
    """The whole algorithm on one matrix, dense and in float64, from its definition.

    Works in the layout in which the shorter side comes first. Where the subspace goes is the
    caller's: `step` takes the new basis, or None to stay.
    """

    def __init__(self, w, *, lr, scale=0.25, zeta=1.01, decay=0.0, betas=(0.9, 0.999), eps=1e-6,
                 recover=True, transfer=True):  # fmt: skip
        self.flip = w.shape[0] >= w.shape[1]
        self.w = w.detach().clone().mT if self.flip else w.detach().clone()
        self.lr, self.scale, self.zeta, self.decay = lr, scale, zeta, decay
        self.betas, self.eps, self.recover, self.transfer = betas, eps, recover, transfer
        self.s = self.m = self.v = self.norm = None
        self.k = 0

    def step(self, g, new=None):
        x = g.mT if self.flip else g
        (b1, b2), k = self.betas, self.k
        if new is not None:
            if k and self.transfer:
                c1, c2 = 1 - b1**k, 1 - b2**k
                c = new.mT @ self.s
                rotated = c @ self.m
                spread = (c * c) @ (self.v / c2 - (self.m / c1) ** 2)
                self.v = c2 * (spread + (rotated / c1) ** 2).abs()
                self.m = rotated
            self.s = new
        r = self.s.mT @ x
        if k == 0:
            self.m, self.v = torch.zeros_like(r), torch.zeros_like(r)
        self.m = b1 * self.m + (1 - b1) * r
        self.v = b2 * self.v + (1 - b2) * r * r
        m_hat, v_hat = self.m / (1 - b1 ** (k + 1)), self.v / (1 - b2 ** (k + 1))
        o = m_hat / (v_hat.sqrt() + self.eps)
        update = self.s @ o
        if self.recover:
            phi = o.norm(dim=0) / (r.norm(dim=0) + 1e-8)
            rest = (x - self.s @ r) * phi
            if self.norm and rest.norm() > self.zeta * self.norm:
                rest = rest * (self.zeta * self.norm / rest.norm())
            self.norm = float(rest.norm())
            update = update + rest
        self.w = self.w * (1 - self.lr * self.decay) - self.lr * self.scale * update
        self.k += 1

    @property
    def weight(self):
        return self.w.mT if self.flip else self.w


@BOTH
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("recover", [True, False])
@pytest.mark.parametrize("transfer", [True, False])
def test_trajectory_equals_a_naive_dense_reference(method, shape, recover, transfer):
    w = matrix(*shape)
    naive = Naive(w, lr=1e-2, decay=0.1, recover=recover, transfer=transfer)
    optimizer = method(
        [{"params": [("w", w)], "rank": 4}], lr=1e-2, weight_decay=0.1, refresh_every=3,
        moments="project_aware" if transfer else "keep", residual="scaled" if recover else "drop",
    )  # fmt: skip
    for k, g in enumerate(gradients(*shape, 11)):
        w.grad = g.clone()
        optimizer.step()
        naive.step(g, basis_of(optimizer, w).clone() if k % 3 == 0 else None)
        torch.testing.assert_close(w.detach(), naive.weight, atol=1e-10, rtol=0)
    if recover:
        norm = float(optimizer.state[w]["residual_norm"])
        assert norm == pytest.approx(naive.norm, abs=1e-10)


class TestWalk:
    @pytest.mark.parametrize("angle", [1e-3, 0.3, 1.5])
    @pytest.mark.parametrize(("d", "r"), [(40, 6), (10, 7)])
    def test_moves_by_the_angle_and_stays_orthonormal(self, d, r, angle):
        old = random_basis(d, r, generator=seeded(0), dtype=F64)
        new = walk(old, angle, allowed=None, generator=seeded(1))
        h = grassmann.projection(old, torch.randn(d, r, generator=seeded(1), dtype=F64))
        values = torch.linalg.svdvals(h).flip(0)
        angles = principal_angles(old, new)
        torch.testing.assert_close(angles, angle * values / values[-1], atol=1e-10, rtol=0)
        torch.testing.assert_close(new.mT @ new, torch.eye(r, dtype=F64), atol=1e-12, rtol=0)

    def test_by_no_angle_leaves_the_basis_exactly_unchanged(self):
        w = matrix(8, 12)
        first = run(GrassWalk, w, gradients(8, 12, 1), walk_angle=0.0, refresh_every=2)
        start = basis_of(first, w).clone()
        for g in gradients(8, 12, 5):
            w.grad = g
            first.step()
        assert torch.equal(basis_of(first, w), start)

    def test_a_thousand_walks_stay_orthonormal_in_float32(self):
        basis, generator = random_basis(24, 6, generator=seeded(0)), seeded(1)
        for _ in range(1000):
            basis = walk(basis, 0.3, allowed=None, generator=generator)
        assert (basis.mT @ basis - torch.eye(6)).abs().max() < 1e-5

    @pytest.mark.slow
    def test_ten_thousand_walks_stay_orthonormal_in_float32(self):
        basis, generator = random_basis(12, 4, generator=seeded(0)), seeded(1)
        for _ in range(10_000):
            basis = walk(basis, 0.3, allowed=None, generator=generator)
        assert (basis.mT @ basis - torch.eye(4)).abs().max() < 1e-5

    @pytest.mark.parametrize("angle", [0.3, math.pi / 2])
    def test_is_its_formula_at_a_quarter_of_the_dimensions(self, angle):
        d, r = 64, 16
        old = random_basis(d, r, generator=seeded(0), dtype=F64)
        new = walk(old, angle, allowed=None, generator=seeded(1))
        omega = torch.randn(d, r, generator=seeded(1), dtype=F64)
        u, s, vh = torch.linalg.svd(omega - old @ (old.mT @ omega), full_matrices=False)
        t = angle * s / s[0]
        expected = old @ vh.mT @ t.cos().diag() @ vh + u @ t.sin().diag() @ vh
        torch.testing.assert_close(new, expected, atol=1e-10, rtol=0)

    def test_is_not_a_jump_in_disguise(self):
        # A Gaussian tangent taken at its own length has angles of many turns.
        old = random_basis(64, 8, generator=seeded(0), dtype=F64)
        new = walk(old, 0.3, allowed=None, generator=seeded(1))
        assert captured_energy(new @ new.mT, old) > 0.9
        fresh = jump((64, 8), allowed=None, generator=seeded(1), like=old)
        assert captured_energy(fresh @ fresh.mT, old) < 0.3

    def test_has_nowhere_to_go_where_the_basis_is_everything_allowed(self):
        generator = seeded(0)
        blocked = random_basis(9, 5, generator=generator, dtype=F64)
        side = SideConstraint(blocked=blocked)
        old = side.basis_inside(random_basis(9, 4, generator=generator, dtype=F64))
        new = walk(old, 0.3, allowed=side, generator=generator)
        torch.testing.assert_close(new, old, atol=1e-12, rtol=0)
        whole = random_basis(4, 4, generator=generator, dtype=F64)
        assert torch.equal(walk(whole, 0.3, allowed=None, generator=generator), whole)


class TestJump:
    def test_is_uniform(self):
        s, r, n = 24, 6, 4000
        bases = jump((n, s, r), allowed=None, generator=seeded(0), like=torch.empty(0, dtype=F64))
        mean = (bases @ bases.mT).mean(dim=0)
        torch.testing.assert_close(mean, torch.eye(s, dtype=F64) * r / s, atol=0.04, rtol=0)
        overlap = (bases[: n // 2].mT @ bases[n // 2 :]).square().sum(dim=(-2, -1)).mean()
        assert float(overlap) == pytest.approx(r * r / s, rel=0.03)

    def test_looks_the_same_after_a_fixed_rotation(self):
        s, r, n = 12, 3, 3000
        q = random_basis(s, s, generator=seeded(9), dtype=F64)
        like = torch.empty(0, dtype=F64)
        plain = jump((n, s, r), allowed=None, generator=seeded(0), like=like)
        turned = q @ jump((n, s, r), allowed=None, generator=seeded(1), like=like)
        shares = [b[:, 0].square().sum(-1).numpy() for b in (plain, turned)]
        assert scipy.stats.ks_2samp(*shares).pvalue > 0.01


class TestTrack:
    def test_ends_at_the_top_of_the_energy_along_its_circle(self):
        x = gradients(12, 30, 1)[0]
        old = random_basis(12, 4, generator=seeded(0), dtype=F64)
        new = track(x, old, 4, "left", 1.5, allowed=None, generator=seeded(1))
        turned = principal_angles(old, new)
        assert (turned[:-1] < 1e-7).all()  # one direction moves, the rest stay
        best = captured_energy(x, new)
        tangent = grassmann.projection(old, x @ (old.mT @ x).mT)
        u, _, vh = torch.linalg.svd(tangent, full_matrices=False)
        h = u[:, :1] @ vh[:1]
        for angle in torch.linspace(0, math.pi / 2, 50, dtype=F64):
            assert captured_energy(x, grassmann.exp(old, float(angle) * h)) <= best + 1e-12
        assert best > captured_energy(x, old) + 1e-3

    def test_turns_no_further_than_the_angle(self):
        x = gradients(12, 30, 1)[0]
        old = random_basis(12, 4, generator=seeded(0), dtype=F64)
        new = track(x, old, 4, "left", 0.05, allowed=None, generator=seeded(1))
        assert float(principal_angles(old, new)[-1]) == pytest.approx(0.05, abs=1e-10)
        assert captured_energy(x, new) > captured_energy(x, old)

    def test_finds_the_leading_subspace_in_the_end(self):
        x = gradients(12, 30, 1)[0] * torch.linspace(3, 0.1, 12, dtype=F64).unsqueeze(1)
        basis = random_basis(12, 4, generator=seeded(0), dtype=F64)
        for _ in range(300):
            basis = track(x, basis, 4, "left", 1.5, allowed=None, generator=seeded(1))
        best = torch.linalg.svdvals(x)[:4].square().sum() / x.square().sum()
        assert float(captured_energy(x, basis)) == pytest.approx(float(best), abs=1e-8)

    def test_stays_where_the_gradient_is_already_captured(self):
        old = random_basis(12, 4, generator=seeded(0), dtype=F64)
        x = old @ gradients(4, 30, 1)[0]
        for grad in (x, torch.zeros_like(x)):
            new = track(grad, old, 4, "left", 1.5, allowed=None, generator=seeded(1))
            assert grassmann.dist(old, new) < 1e-7


@pytest.mark.parametrize("basis", ["walk", "jump", "track", "svd"])
@pytest.mark.parametrize("shape", SHAPES, ids=["wide", "tall", "square"])
def test_the_basis_of_tall_and_square_matrices_moves_at_a_refresh(basis, shape):
    # SubTrack projects the tangent with I_r - S S^T = 0 there, and never moves.
    w = matrix(*shape)
    optimizer = run(GrassWalk, w, gradients(*shape, 2), basis=basis, refresh_every=2)
    before = basis_of(optimizer, w).clone()
    w.grad = gradients(*shape, 1, seed=5)[0]
    optimizer.step()
    assert grassmann.dist(before, basis_of(optimizer, w)) > 1e-2


@BOTH
def test_tall_is_the_transposed_wide(method):
    grads = gradients(9, 14, 8)
    w, t = matrix(9, 14), nn.Parameter(matrix(9, 14).detach().mT.contiguous())
    # One side has the second seed of its parameter: start both from one basis and stay there.
    options = {"lr": 1e-2, "init": "svd", "svd": "exact", "refresh_every": None}
    run(method, w, grads, **options)
    run(method, t, [g.mT for g in grads], **options)
    torch.testing.assert_close(t.detach().mT, w.detach(), atol=1e-10, rtol=0)


class TestMomentTransfer:
    """LDAdam's rule, in the coordinates of a left basis."""

    def moments(self):
        m = torch.randn(4, 9, generator=seeded(0), dtype=F64)
        return m, m.square() + torch.rand(4, 9, generator=seeded(1), dtype=F64)

    def transferred(self, m, v, c, step=7):
        m, v = m.clone(), v.clone()
        project_aware_(m, v, c, None, step=step, betas=(0.9, 0.999))
        return m, v

    def test_a_rotation_inside_the_subspace_rotates_the_mean(self):
        m, v = self.moments()
        q = random_basis(4, 4, generator=seeded(3), dtype=F64)
        torch.testing.assert_close(self.transferred(m, v, q)[0], q @ m, atol=1e-14, rtol=0)

    def test_a_signed_permutation_permutes_the_second_moment(self):
        m, v = self.moments()
        order = torch.tensor([2, 0, 3, 1])
        signs = torch.tensor([1.0, -1, -1, 1], dtype=F64).unsqueeze(1)
        c = torch.eye(4, dtype=F64)[order] * signs
        # v dominates m^2 at every step count that the moments can have: no absolute value acts.
        new_m, new_v = self.transferred(m * 0.01, v, c)
        torch.testing.assert_close(new_m, 0.01 * m[order] * signs, atol=1e-14, rtol=0)
        torch.testing.assert_close(new_v, v[order], atol=1e-12, rtol=0)

    def test_the_same_basis_changes_nothing(self):
        m, v = self.moments()
        new_m, new_v = self.transferred(m * 0.01, v, torch.eye(4, dtype=F64))
        torch.testing.assert_close(new_m, m * 0.01, atol=1e-14, rtol=0)
        torch.testing.assert_close(new_v, v, atol=1e-12, rtol=0)

    def test_the_second_moment_is_never_negative_and_never_exceeds_the_largest(self):
        s, r = 16, 4
        for seed in range(20):
            old, new = (random_basis(s, r, generator=seeded(seed + i), dtype=F64) for i in (0, 99))
            c = change_of_basis(old, new)
            assert (c.square().sum(dim=1) <= 1 + 1e-12).all()
            m, v = self.moments()
            assert (self.transferred(3 * m, v, c)[1] >= 0).all()
            zero, spread = self.transferred(0 * m, v, c)
            assert not zero.any()
            torch.testing.assert_close(spread, c.square() @ v, atol=1e-12, rtol=0)
            assert spread.max() <= v.max() + 1e-12

    def test_a_signed_permutation_of_the_basis_leaves_the_trajectory_alone(self):
        grads = gradients(9, 14, 8)
        w, twin = matrix(9, 14), matrix(9, 14)
        options = {"lr": 1e-2, "refresh_every": None}
        first = run(GrassWalk, w, grads[:4], **options)
        second = run(GrassWalk, twin, grads[:4], **options)
        order, signs = torch.tensor([2, 0, 3, 1]), torch.tensor([1.0, -1, -1, 1], dtype=F64)
        state = second.state[twin]
        old = state["basis_left"]
        new = old[:, order] * signs
        project_aware_(
            state["exp_avg"], state["exp_avg_sq"], new.mT @ old, None, step=4, betas=(0.9, 0.999)
        )
        state["basis_left"] = new
        for g in grads[4:]:
            w.grad, twin.grad = g.clone(), g.clone()
            first.step()
            second.step()
        torch.testing.assert_close(twin, w, atol=1e-10, rtol=0)


class TestRecovery:
    def updates(self, shape, count=12, **options):
        """Steps of W divided by the rate, with basis, gradient and residual norm of each."""
        w = matrix(*shape)
        optimizer = GrassWalk(
            [{"params": [("w", w)], "rank": 4}], lr=1e-2, scale=1.0, refresh_every=4, **options
        )
        for g in gradients(*shape, count):
            before = w.detach().clone()
            w.grad = g.clone()
            optimizer.step()
            state = optimizer.state[w]
            yield (before - w.detach()) / 1e-2, basis_of(optimizer, w).clone(), g, state

    @pytest.mark.parametrize("shape", SHAPES)
    def test_the_residual_is_orthogonal_and_scaled_like_the_step_inside(self, shape):
        right = shape[0] >= shape[1]
        for update, s, g, _ in self.updates(shape, growth_limit=None):
            d, x = (update.mT, g.mT) if right else (update, g)
            o, r = s.mT @ d, s.mT @ x
            rest = d - s @ o
            expected = (x - s @ r) * (o.norm(dim=0) / (r.norm(dim=0) + 1e-8))
            torch.testing.assert_close(rest, expected, atol=1e-10, rtol=0)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_its_norm_grows_by_at_most_the_limit(self, shape):
        norms = []
        for update, s, _, state in self.updates(shape, growth_limit=1.01):
            d = update.mT if shape[0] >= shape[1] else update
            norms.append(float((d - s @ (s.mT @ d)).norm()))
            assert norms[-1] == pytest.approx(float(state["residual_norm"]), abs=1e-9)
        ratios = [b / a for a, b in itertools.pairwise(norms)]
        assert max(ratios) == pytest.approx(1.01, abs=1e-9)  # it acts, and never more

    def test_the_limiter_lives_on_after_a_resume(self):
        w = matrix(9, 14)
        optimizer = run(GrassWalk, w, gradients(9, 14, 3), lr=1e-2)
        twin = nn.Parameter(w.detach().clone())
        resumed = GrassWalk([{"params": [("w", twin)], "rank": 4}], lr=1e-2)
        resumed.load_state_dict(optimizer.state_dict())
        assert torch.equal(
            resumed.state[twin]["residual_norm"], optimizer.state[w]["residual_norm"]
        )
        for p in (w, twin):
            p.grad = 50 * gradients(9, 14, 1, seed=7)[0]
        optimizer.step()
        resumed.step()
        assert torch.equal(twin, w)

    def test_a_zero_gradient_does_not_lock_it_at_zero(self):
        # The released limiter would let it grow from 1e-8 by 1 % a step: 1800 steps of nothing.
        w = matrix(9, 14)
        zero = torch.zeros(9, 14, dtype=F64)
        optimizer = run(GrassWalk, w, [*gradients(9, 14, 3), zero], lr=1e-2)
        assert float(optimizer.state[w]["residual_norm"]) == 0
        assert torch.isfinite(w).all()
        w.grad = gradients(9, 14, 1, seed=5)[0]
        optimizer.step()
        assert float(optimizer.state[w]["residual_norm"]) > 1

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_a_gradient_that_is_not_finite_poisons_neither_norm_nor_basis(self, bad):
        w = matrix(9, 14)
        optimizer = run(GrassWalk, w, gradients(9, 14, 3), lr=1e-2, refresh_every=3)
        state = {k: v.clone() for k, v in optimizer.state[w].items()}
        w.grad = torch.full((9, 14), bad, dtype=F64)
        with pytest.warns(UserWarning, match="not finite"):
            optimizer.step()  # at a refresh: skipped as a whole
        assert all(torch.equal(v, state[k]) for k, v in optimizer.state[w].items())
        w.grad = gradients(9, 14, 1)[0]
        optimizer.step()
        norm, basis = (optimizer.state[w][k].clone() for k in ("residual_norm", "basis_left"))
        w.grad = torch.full((9, 14), bad, dtype=F64)
        optimizer.step()  # between refreshes
        assert torch.equal(optimizer.state[w]["residual_norm"], norm)
        assert torch.equal(optimizer.state[w]["basis_left"], basis)

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("residual", ["scaled", "fira"])
    @pytest.mark.parametrize("limit", [1.01, None])
    def test_finite_gradients_whose_squares_overflow_move_nothing(self, shape, residual, limit):
        w = matrix(*shape, dtype=torch.float32)
        grads = gradients(*shape, 3, dtype=torch.float32)
        options = {"lr": 1e-2, "residual": residual, "growth_limit": limit, "refresh_every": None}
        optimizer = run(GrassWalk, w, grads, **options)
        before, norm = w.detach().clone(), optimizer.state[w]["residual_norm"].clone()
        w.grad = 1e30 * grads[0]
        optimizer.step()
        assert torch.equal(w, before)  # as AdamW, whose second moment is infinite now
        assert torch.equal(optimizer.state[w]["residual_norm"], norm)

    @pytest.mark.parametrize("shape", [(4, 14), (14, 4), (4, 4)])
    def test_is_inert_where_the_subspace_is_everything(self, shape):
        w, twin = matrix(*shape), matrix(*shape)
        options = {"lr": 1e-2, "refresh_every": None}
        with pytest.warns(UserWarning, match="no direction beyond rank"):
            run(GrassWalk, w, gradients(*shape, 6), **options)
        run(GaLore, twin, gradients(*shape, 6), **options)
        # The residual is the square root of a difference that cancels: 1e-8 of the gradient.
        torch.testing.assert_close(w, twin, atol=1e-10, rtol=0)

    def test_an_identity_basis_of_full_rank_is_adamw(self):
        w, plain = matrix(6, 5), matrix(6, 5)
        adamw = torch.optim.AdamW([plain], lr=1e-2, eps=1e-6, weight_decay=0.1)
        optimizer = GaLore(
            [{"params": [w], "rank": 5, "basis": "identity"}], lr=1e-2, scale=1.0,
            weight_decay=0.1, residual="scaled", moments="project_aware",
        )  # fmt: skip
        for g in gradients(6, 5, 6):
            w.grad, plain.grad = g.clone(), g.clone()
            optimizer.step()
            adamw.step()
        torch.testing.assert_close(w, plain, atol=1e-12, rtol=0)

    def test_needs_no_temporary_of_the_weights_size_without_a_guard(self):
        rows, cols = 256, 320
        optimizer = GrassJump([{"params": [matrix(rows, cols, dtype=torch.float32)], "rank": 4}])
        w = optimizer.param_groups[0]["params"][0]
        seen = []

        class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                result = func(*args, **(kwargs or {}))
                if isinstance(result, torch.Tensor) and result.numel() == rows * cols:
                    seen.append((func, result.data_ptr()))
                return result

        for g in gradients(rows, cols, 2, dtype=torch.float32):
            w.grad = g
            seen.clear()
            with Sizes():
                optimizer.step()
        held = {w.data_ptr(), w.grad.data_ptr()}
        assert seen
        assert {pointer for _, pointer in seen} <= held

    def test_half_precision_weights_are_rounded_once(self):
        w32, grads = matrix(9, 14, dtype=torch.float32), gradients(9, 14, 1, dtype=torch.bfloat16)
        w16 = nn.Parameter(w32.detach().bfloat16())
        w32.data = w16.detach().float()
        run(GrassWalk, w16, grads, lr=1e-2)
        run(GrassWalk, w32, [g.float() for g in grads], lr=1e-2)
        assert torch.equal(w16, w32.bfloat16())

    def test_stacked_experts_are_a_loop_over_matrices(self):
        stack = torch.randn(3, 9, 14, generator=seeded(0), dtype=F64)
        grads = [torch.randn(3, 9, 14, generator=seeded(i), dtype=F64) for i in range(1, 6)]
        w = nn.Parameter(stack.clone())
        optimizer = GrassWalk(
            [{"params": [("w", w)], "layouts": ["experts"], "rank": 4}], lr=1e-2, svd="exact",
            refresh_every=None,
        )  # fmt: skip
        for g in grads:
            w.grad = g.clone()
            optimizer.step()
        assert optimizer.state[w]["residual_norm"].shape == (3,)
        for i in range(3):
            one = nn.Parameter(stack[i].clone())
            run(GrassWalk, one, [g[i] for g in grads], lr=1e-2, svd="exact", refresh_every=None)
            torch.testing.assert_close(w[i].detach(), one.detach(), atol=1e-10, rtol=0)


class TestFira:
    """Golden values: `benchmarks`' comparison runs the released package; this is its formula."""

    @pytest.mark.parametrize("shape", SHAPES)
    def test_is_the_released_formula(self, shape):
        w = matrix(*shape)
        expected = w.detach().clone()
        lr, a, (b1, b2), eps = 1e-2, 0.25, (0.9, 0.999), 1e-12
        optimizer = GaLore(
            [{"params": [("w", w)], "rank": 4}], lr=lr, scale=a, eps=eps, residual="fira",
            svd="exact", refresh_every=None,
        )  # fmt: skip
        right = shape[0] >= shape[1]
        m = v = norm = None
        for k, g in enumerate(gradients(*shape, 10), start=1):
            w.grad = g.clone()
            optimizer.step()
            s = basis_of(optimizer, w)
            x = g.mT if right else g
            r = s.mT @ x
            m = (1 - b1) * r + (b1 * m if m is not None else 0)
            v = (1 - b2) * r * r + (b2 * v if v is not None else 0)
            o = m / (v.sqrt() + eps)
            rest = (x - a * s @ r) * (o.norm(dim=0) / (r.norm(dim=0) + 1e-8))
            if norm is not None:
                over = max(float(rest.norm()) / (norm + 1e-8), 1.01) / 1.01
                rest = rest / over
            norm = float(rest.norm())
            step = lr * math.sqrt(1 - b2**k) / (1 - b1**k)
            change = step * (a * s @ o + rest)
            expected = expected - (change.mT if right else change)
            # Its limiter adds 1e-8 to a norm of about 1, ours does not.
            torch.testing.assert_close(w.detach(), expected, atol=1e-8, rtol=0)


def test_frozen_and_without_extras_it_is_galore_that_never_refreshes():
    grads = gradients(9, 14, 8)
    for method in (GrassWalk, GrassJump):
        w, twin = matrix(9, 14), matrix(9, 14)
        run(method, w, grads, lr=1e-2, residual="drop", moments="keep", refresh_every=None)
        run(GaLore, twin, grads, lr=1e-2, refresh_every=1000)
        assert torch.equal(w, twin)


def test_svd_without_recovery_is_galore_with_project_aware_moments():
    grads = gradients(9, 14, 8)
    w, twin = matrix(9, 14), matrix(9, 14)
    options = {"lr": 1e-2, "svd": "exact", "refresh_every": 3}
    run(GrassWalk, w, grads, residual="drop", basis="svd", **options)
    run(GaLore, twin, grads, moments="project_aware", **options)
    assert torch.equal(w, twin)


@BOTH
def test_layers_of_one_shape_have_bases_of_their_own_and_processes_share_them(method):
    def build():
        ws = [matrix(9, 14), matrix(9, 14)]
        optimizer = method([{"params": ws, "rank": 4}], lr=1e-2, refresh_every=1)
        for g in gradients(9, 14, 3):
            for w in ws:
                w.grad = g.clone()
            optimizer.step()
        return [basis_of(optimizer, w) for w in ws]

    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = build()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again = build()
    assert all(map(torch.equal, first, again))
    assert grassmann.dist(*first) > 0.1


@BOTH
def test_another_seed_draws_other_bases(method):
    bases = []
    for seed in (0, 1):
        w = matrix(9, 14)
        bases.append(basis_of(run(method, w, gradients(9, 14, 4), refresh_every=2, seed=seed), w))
    assert grassmann.dist(*bases) > 1e-2


@BOTH
def test_tied_weights_have_one_basis_and_are_trained_once_with_the_gradient_of_both(method):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(10, 10, bias=False, dtype=F64)
            self.second = nn.Linear(10, 10, bias=False, dtype=F64)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(self.first(x).tanh())

    torch.manual_seed(0)
    model = Tied()
    lone = nn.Parameter(model.first.weight.detach().clone())
    options = {"lr": 1e-2, "refresh_every": 2}
    optimizer = method(param_groups(model, rank=4), **options)
    twin = method([{"params": [("first.weight", lone)], "rank": 4}], **options)
    for x in gradients(16, 10, 5):
        optimizer.zero_grad()
        twin.zero_grad()
        model(x).square().mean().backward()
        ((x @ lone.mT).tanh() @ lone.mT).square().mean().backward()
        optimizer.step()
        twin.step()
    assert len(optimizer.state) == 1
    torch.testing.assert_close(model.first.weight, lone, atol=1e-10, rtol=0)


@BOTH
def test_state_is_galores_and_one_number(method):
    w = matrix(20, 10, dtype=torch.float32)
    optimizer = method([{"params": [w], "rank": 5}])
    predicted = optimizer.report().state_bytes
    w.grad = torch.randn(20, 10)
    optimizer.step()
    expected = 4 * (5 * 10 + 2 * 5 * 20 + 1)
    assert predicted == state_bytes(optimizer) == expected
    plain = method([{"params": [matrix(20, 10)], "rank": 5}], residual="drop").report()
    assert plain.state_bytes == 8 * (5 * 10 + 2 * 5 * 20)


def test_bytes_of_the_60m_llama():
    shapes = [(512, 512)] * 32 + [(1376, 512)] * 16 + [(512, 1376)] * 8
    params = [nn.Parameter(torch.empty(s, device="meta")) for s in shapes]
    report = GrassWalk([{"params": params, "rank": 128}]).report()
    galore = GaLore([{"params": params, "rank": 128}]).report()
    assert report.state_bytes == galore.state_bytes + 4 * 56
    assert round(report.state_bytes / 1e6, 1) == 65.3


class TestGroups:
    def test_subtracks_keys_are_accepted(self):
        w = matrix(9, 14)
        optimizer = GrassWalk(
            [
                {
                    "params": [w], "rank": 4, "subspace_update_interval": 10, "proj_type": "std",
                    "adaptive_optimizer": False, "recovery_scaling": False,
                    "norm_growth_limit": 1.05,
                }
            ]
        )  # fmt: skip
        group = optimizer.param_groups[0]
        assert (group["refresh_every"], group["side"]) == (10, "short")
        assert (group["moments"], group["residual"]) == ("keep", "drop")
        assert group["growth_limit"] == 1.05

    def test_their_switches_turned_on_are_the_defaults(self):
        given = {"adaptive_optimizer": True, "recovery_scaling": True}
        optimizer = GrassJump([{"params": [matrix(9, 14)], "rank": 4, **given}], moments="keep")
        group = optimizer.param_groups[0]
        assert (group["moments"], group["residual"]) == ("project_aware", "scaled")

    def test_the_limiter_can_be_turned_off(self):
        group = {"params": [matrix(9, 14)], "rank": 4, "norm_growth_limiter_off": True}
        assert GrassWalk([group]).param_groups[0]["growth_limit"] is None

    def test_both_spellings_are_an_error(self):
        group = {"params": [matrix(9, 14)], "rank": 4}
        with pytest.raises(ValueError, match="both 'moments' and 'adaptive_optimizer'"):
            GrassWalk([{**group, "moments": "keep", "adaptive_optimizer": True}])
        with pytest.raises(ValueError, match="both 'refresh_every'"):
            GrassWalk([{**group, "update_proj_gap": 5, "subspace_update_interval": 5}])


class TestBadInput:
    def make(self, method=GrassWalk, shape=(9, 14), rank=4, **options):
        return method([{"params": [("w", matrix(*shape))], "rank": rank}], **options)

    @pytest.mark.parametrize("angle", [-0.1, 1.6, math.nan, math.inf])
    def test_walk_angle_out_of_range(self, angle):
        with pytest.raises(ValueError, match="walk_angle must be"):
            self.make(walk_angle=angle)

    @BOTH
    @pytest.mark.parametrize("limit", [0.99, math.inf, math.nan, True])
    def test_growth_limit_below_one(self, method, limit):
        with pytest.raises(ValueError, match="growth_limit must be finite and at least 1"):
            self.make(method, growth_limit=limit)

    @pytest.mark.bad_input
    @pytest.mark.parametrize("value", ["0.3", "abc", True])
    @pytest.mark.parametrize(
        "name", ["walk_angle", "growth_limit", "residual_scale", "lr", "scale", "eps"]
    )
    def test_a_number_that_is_none_is_refused_by_name(self, name, value):
        # "1e-3" from YAML is a string: it would be found out amid a step.
        with pytest.raises(ValueError, match=f"{name} must be finite"):
            self.make(**{name: value})

    @pytest.mark.parametrize("value", [0.0, -1.0, math.inf])
    def test_residual_scale(self, value):
        with pytest.raises(ValueError, match="residual_scale must be finite and above 0"):
            self.make(residual_scale=value)

    def test_unknown_choices_list_the_known_ones(self):
        with pytest.raises(ValueError, match=r"residual must be one of drop, scaled, fira"):
            self.make(residual="orthogonal")
        with pytest.raises(ValueError, match=r"basis must be one of .*walk"):
            self.make(basis="stroll")
        with pytest.raises(ValueError, match=r"init must be one of None, .*jump"):
            self.make(init="random")

    def test_recovery_without_a_free_side(self):
        with pytest.raises(ValueError, match='side="full" leaves none'):
            self.make(side="full")

    def test_recovery_from_selected_rows(self):
        with pytest.raises(ValueError, match="needs a dense orthonormal basis"):
            self.make(basis="rows", init=None)

    @pytest.mark.parametrize("method", [GaLore, GrassWalk])
    @pytest.mark.parametrize("moments", ["rotate", "project_aware"])
    def test_moments_between_selected_rows_cannot_be_rotated(self, method, moments):
        group = {"params": [matrix(9, 14)], "rank": 4, "basis": "rows", "init": None}
        with pytest.raises(ValueError, match="needs dense bases"):
            method([{**group, "moments": moments, "residual": "drop"}])

    def test_a_walk_with_nowhere_to_go_warns(self):
        with pytest.warns(UserWarning, match="no direction beyond rank = 9.*w"):
            self.make(rank=9)

    def test_rank_above_the_matrix(self):
        with pytest.raises(ValueError, match=r"rank = 12 exceeds min\(m, n\) = 9"):
            self.make(GrassJump, rank=12)

    @pytest.mark.bad_input
    def test_a_switch_that_is_no_switch(self):
        with pytest.raises(TypeError, match="recovery_scaling must be True or False"):
            GrassWalk([{"params": [matrix(9, 14)], "rank": 4, "recovery_scaling": 1.0}])

    def test_another_basis_than_the_checkpoints(self):
        w = matrix(9, 14)
        saved = run(GrassWalk, w, gradients(9, 14, 2)).state_dict()
        with pytest.raises(ValueError, match="basis = 'walk', this optimizer 'jump'"):
            self.make(GrassJump).load_state_dict(saved)
        with pytest.raises(ValueError, match="rank = 4, this optimizer 3"):
            self.make(rank=3).load_state_dict(saved)
