"""LRAN against its formula, a naive loop, systems whose spectrum is known, and its contract."""

import copy
import math
import pickle
import warnings
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from torch import nn

from conformance.estimators import EstimatorSuite
from spanwise.datasets.dynamics import duffing, koopman_invariant
from spanwise.errors import ConvergenceError
from spanwise.estimators import DMD, LRAN, LRANModule, lran_loss
from spanwise.estimators._lran import training
from spanwise.estimators._lran.adam import FlatAdam
from spanwise.estimators._lran.fast import HandGradient, is_plain
from spanwise.estimators._lran.module import make_module
from spanwise.estimators._lran.training import Plan, Windows, batch_loss, one_cycle, train

F64 = torch.float64


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed), dtype=F64)


def tensors(B=3, T=5, n=4, d=2):
    return draw(B, T, n), draw(B, T, n, seed=1), draw(B, T, d, seed=2), draw(B, T, d, seed=3)


def formula(x, x_hat, z, z_hat, delta, beta, eps1, eps2):
    """Equation 25 with loops."""
    B, T = x.shape[:2]
    total = 0.0
    for b in range(B):
        n1 = sum(delta**t for t in range(T))
        n2 = sum(delta ** (t - 1) for t in range(1, T))
        for t in range(T):
            off = ((x_hat[b, t] - x[b, t]) ** 2).sum() / ((x[b, t] ** 2).sum() + eps1)
            total = total + delta**t / n1 * off / (1 + beta) / B
        for t in range(1, T):
            off = ((z_hat[b, t] - z[b, t]) ** 2).sum() / ((z[b, t] ** 2).sum() + eps2)
            total = total + beta * delta ** (t - 1) / n2 * off / (1 + beta) / B
    return total


def module(n=3, d=2, hidden=(5,), seed=0, continuous=False):
    return make_module(n, d, hidden, "elu", continuous, seeded(seed)).double()


def fitted(X, *, warn=False, **options):
    options = {"hidden": (16, 16), "max_steps": 300, "lr": 3e-3, "horizon": 5, **options}
    with warnings.catch_warnings():
        if not warn:
            warnings.simplefilter("ignore")
        return LRAN(**options).fit(X)


@pytest.fixture(scope="module")
def small():
    """Trained briefly in float64."""
    return fitted(koopman_invariant(40, 8), n_latent=3)


class TestLoss:
    @pytest.mark.parametrize("delta", [0.3, 0.9, 1.0])
    @pytest.mark.parametrize("beta", [0.0, 0.5, 2.0])
    def test_is_equation_25(self, delta, beta):
        found = lran_loss(*tensors(), delta=delta, beta=beta, state_eps=0.1, latent_eps=0.2)
        expected = formula(*tensors(), delta, beta, 0.1, 0.2)
        assert float(found.total) == pytest.approx(float(expected), rel=1e-10)

    def test_with_a_tiny_delta_keeps_the_first_step_of_each_part(self):
        x, x_hat, z, z_hat = tensors()
        found = lran_loss(x, x_hat, z, z_hat, delta=1e-14, beta=1.0)
        first = lran_loss(x[:, :1], x_hat[:, :1], z[:, :1], z_hat[:, :1], delta=1.0, beta=0.0)
        pair = lran_loss(x[:, :2], x_hat[:, :2], z[:, :2], z_hat[:, :2], delta=1.0, beta=1.0)
        assert float(found.reconstruction) == pytest.approx(float(first.total), rel=1e-10)
        assert float(found.latent) == pytest.approx(float(pair.latent), rel=1e-10)

    def test_with_beta_0_is_without_coordinates(self):
        x, x_hat, z, z_hat = tensors()
        one = lran_loss(x, x_hat, z, z_hat, beta=0.0)
        two = lran_loss(x, x_hat, 5 * z, z_hat, beta=0.0)
        assert torch.equal(one.total, two.total)
        assert torch.equal(one.total, one.reconstruction)

    def test_with_delta_1_weighs_all_steps_alike(self):
        x, x_hat, z, z_hat = tensors()
        found = lran_loss(x, x_hat, z, z_hat, delta=1.0, beta=0.0, state_eps=0.1)
        off = (x_hat - x).square().sum(-1) / (x.square().sum(-1) + 0.1)
        assert float(found.total) == pytest.approx(float(off.mean()), rel=1e-12)

    def test_has_the_gradient_of_finite_differences_in_both_z(self):
        inputs = tuple(held.requires_grad_() for held in tensors(B=2, T=3, n=2))

        def total(*given):
            return lran_loss(*given, delta=0.7, beta=0.5).total

        assert torch.autograd.gradcheck(total, inputs)

    def test_is_relative_to_every_state_s_own_size(self):
        """An absolute error would let large phases drown small ones."""
        x, x_hat, z, z_hat = tensors()
        grown = torch.ones(5, dtype=F64)
        grown[3] = 1e4
        options = {"delta": 1.0, "state_eps": 1e-12, "latent_eps": 1e-12}
        one = lran_loss(x, x_hat, z, z_hat, **options)
        two = lran_loss(x * grown[:, None], x_hat * grown[:, None], z, z_hat, **options)
        assert float(two.total) == pytest.approx(float(one.total), rel=1e-8)

    def test_has_a_gradient_after_inference_mode_too(self):
        x, x_hat, z, z_hat = tensors(T=6)
        with torch.inference_mode():
            lran_loss(x.clone(), x_hat.clone(), z.clone(), z_hat.clone(), delta=0.61)
        z_hat.requires_grad_()
        lran_loss(x, x_hat, z, z_hat, delta=0.61).total.backward()
        assert bool(z_hat.grad.any())

    def test_elapsed_times_generalise_the_steps(self):
        steps = torch.arange(5, dtype=F64)
        one = lran_loss(*tensors(), delta=0.7)
        for elapsed in (steps, steps.expand(3, 5)):
            two = lran_loss(*tensors(), delta=0.7, elapsed=elapsed)
            assert float(two.total) == pytest.approx(float(one.total), rel=1e-12)
        slow = lran_loss(*tensors(), delta=0.7, elapsed=steps / 2)
        root = lran_loss(*tensors(), delta=0.7**0.5)
        assert float(slow.total) == pytest.approx(float(root.total), rel=1e-12)

    def test_shrinking_the_coordinates_gains_nothing(self):
        """The collapse that a fixed latent_eps would reward."""
        net = module()
        plan = Plan(horizon=4, delta=0.9, beta=1.0, eps=0.1, lr=1e-3, one_cycle=False, steps=1,
                    batch_size=4, weight_decay=0.0, clip=1.0, patience=1)  # fmt: skip
        x = draw(4, 4, 3)
        before = batch_loss(net, x, None, plan, 0.1).latent
        with torch.no_grad():
            net.encoder[-1].weight.mul_(1e-3)
            net.encoder[-1].bias.mul_(1e-3)
        after = batch_loss(net, x, None, plan, 0.1).latent
        torch.testing.assert_close(after, before, rtol=1e-9, atol=0)


class TestModule:
    @pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 8, 11])
    def test_rolls_from_the_first_coordinates_only(self, steps):
        """Encoding every state anew would be a one-step loss in disguise."""
        net = module()
        x = draw(6, steps, 3)
        x_hat, z, z_hat = net(x)
        for b in range(6):
            rolled = net.encoder(x[b, :1])[0]
            for t in range(steps):
                torch.testing.assert_close(z_hat[b, t], rolled, atol=1e-12, rtol=0)
                torch.testing.assert_close(
                    x_hat[b, t], net.decoder(rolled[None])[0], atol=1e-12, rtol=0
                )
                torch.testing.assert_close(
                    z[b, t], net.encoder(x[b, t : t + 1])[0], atol=1e-12, rtol=0
                )
                rolled = rolled @ net.step
        changed = x.clone()
        changed[:, 1:] += 1
        torch.testing.assert_close(net(changed).x_hat, x_hat)

    @pytest.mark.parametrize("steps", [2, 3, 6])
    @pytest.mark.parametrize("beta", [0.0, 0.7])
    @pytest.mark.parametrize("hidden", [(), (5,), (4, 6)])
    def test_the_gradient_by_hand_is_autograd_s(self, steps, beta, hidden):
        net = module(hidden=hidden)
        plan = Plan(horizon=steps, delta=0.8, beta=beta, eps=0.1, lr=1e-3, one_cycle=False,
                    steps=1, batch_size=4, weight_decay=0.0, clip=1.0, patience=1)  # fmt: skip
        x = draw(4, steps, 3)
        expected = batch_loss(net, x, None, plan, 0.3).total
        slopes = torch.autograd.grad(expected, list(net.parameters()))
        assert is_plain(net)
        parts = list(net.parameters())
        own = [torch.empty_like(p) for p in parts]
        found = HandGradient(net, parts, own, plan, 0.3)(x.transpose(0, 1))
        torch.testing.assert_close(found, expected.detach(), atol=1e-12, rtol=0)
        for given, slope in zip(own, slopes, strict=True):
            torch.testing.assert_close(given, slope, atol=1e-12, rtol=0)

    @pytest.mark.parametrize("clip", [0.05, math.inf])
    def test_adam_on_one_vector_is_torch_s_on_many_tensors(self, clip):
        net = module()
        other = copy.deepcopy(net)
        decayed = [p for p in net.parameters() if p.ndim > 1 and p is not net.step]
        usual = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": 0.1},
                {"params": [p for p in net.parameters() if all(p is not q for q in decayed)]},
            ],
            lr=0.01, weight_decay=0.0,
        )  # fmt: skip
        ours = FlatAdam(decay=0.1, clip=clip)
        for round_ in range(2):  # the moments outlive a training
            ours.take(other, {id(p) for p in other.parameters() if p.ndim > 1} - {id(other.step)})
            for step in range(3):
                for index, (p, slope) in enumerate(zip(net.parameters(), ours.slopes, strict=True)):
                    p.grad = draw(*p.shape, seed=10 * step + index + round_)
                    slope.copy_(p.grad)
                norm = nn.utils.clip_grad_norm_(net.parameters(), clip)
                usual.step()
                torch.testing.assert_close(ours.step(0.01), norm, atol=0, rtol=1e-12)
            ours.give(other)
        for p, q in zip(net.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(q, p, atol=1e-12, rtol=0)

    @pytest.mark.parametrize("hidden", [(), (5,), (4, 6)])
    def test_its_layers_are_those_of_sequential_with_the_gradient_of_autograd(self, hidden):
        net = module(hidden=hidden).encoder
        plain = nn.Sequential(*net)
        x = draw(7, 3).requires_grad_()
        torch.testing.assert_close(net(x), plain(x), atol=1e-14, rtol=0)
        weights = draw(7, 2, seed=1)
        wanted = [x, *net.parameters()]
        for a, b in zip(
            torch.autograd.grad((net(x) * weights).sum(), wanted),
            torch.autograd.grad((plain(x) * weights).sum(), wanted),
            strict=True,
        ):
            torch.testing.assert_close(a, b, atol=1e-12, rtol=0)

    def test_a_change_of_coordinates_changes_no_forecast(self):
        class Mapped(nn.Module):
            def __init__(self, net, matrix, first):
                super().__init__()
                self.net, self.matrix, self.first = net, matrix, first

            def forward(self, x):
                return self.net(x @ self.matrix) if self.first else self.net(x) @ self.matrix

        net, s = module(), draw(2, 2, seed=5) + 2 * torch.eye(2, dtype=F64)
        inverse = torch.linalg.inv(s)
        turned = LRANModule(
            Mapped(net.encoder, s, False), Mapped(net.decoder, inverse, True), 2
        ).double()
        with torch.no_grad():
            turned.step.copy_(inverse @ net.step @ s)
        x = draw(6, 5, 3)
        one, two = net(x), turned(x)
        torch.testing.assert_close(two.x_hat, one.x_hat, atol=1e-10, rtol=0)
        losses = [lran_loss(x, *held).reconstruction for held in (one, two)]
        torch.testing.assert_close(*losses, atol=0, rtol=1e-10)

    def test_continuous_time_at_whole_steps_is_discrete_time(self):
        net = module(continuous=True)
        x = draw(4, 6, 3)
        steps = torch.arange(6, dtype=F64)
        z_hat = net(x).z_hat
        for elapsed in (steps, steps.expand(4, 6)):
            torch.testing.assert_close(net(x, elapsed).z_hat, z_hat, atol=1e-10, rtol=0)

    def test_a_flow_is_the_exponential_of_its_generator(self):
        net = module(continuous=True)
        z = draw(4, 2)
        times = torch.tensor([0.3, 1.7], dtype=F64)
        found = net.flow(z, times)
        for index, t in enumerate(times):
            expected = z @ torch.linalg.matrix_exp(t * net.step)
            torch.testing.assert_close(found[:, index], expected, atol=1e-12, rtol=0)

    def test_fresh_weights_touch_no_global_generator(self):
        torch.manual_seed(3)
        state = torch.get_rng_state()
        one, two = module(seed=4), module(seed=4)
        assert torch.equal(torch.get_rng_state(), state)
        for a, b in zip(one.parameters(), two.parameters(), strict=True):
            assert torch.equal(a, b)
        assert (one.step - torch.eye(2)).abs().max() < 0.1

    def test_a_batch_s_gradient_is_that_of_a_naive_loop(self):
        net = module()
        x = draw(4, 5, 3)
        fast = lran_loss(x, *net(x), delta=0.8, beta=0.7, state_eps=0.1, latent_eps=0.2).total
        gradients = torch.autograd.grad(fast, list(net.parameters()))
        z = torch.stack([net.encoder(x[:, t]) for t in range(5)], dim=1)
        rolled = [z[:, 0]]
        for _ in range(4):
            rolled.append(rolled[-1] @ net.step)
        x_hat = torch.stack([net.decoder(held) for held in rolled], dim=1)
        slow = formula(x, x_hat, z, torch.stack(rolled, dim=1), 0.8, 0.7, 0.1, 0.2)
        assert float(fast) == pytest.approx(float(slow), rel=1e-12)
        for a, b in zip(gradients, torch.autograd.grad(slow, list(net.parameters())), strict=True):
            torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


class TestTraining:
    @pytest.mark.slow
    def test_a_koopman_invariant_system_is_forecast_to_a_hundredth(self):
        X = koopman_invariant(200, 10).astype(np.float32)
        model = fitted(X, n_latent=3, hidden=(32, 32), horizon=8, max_steps=2500, lr=3e-2, eps=1e-3)
        test = koopman_invariant(50, 10, seed=1).astype(np.float32)
        assert -model.score(test, horizon=7) < 1e-2

    def test_linear_maps_of_a_linear_system_have_dmd_s_eigenvalues(self):
        rng = np.random.default_rng(0)
        angle = 0.5
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        matrix = np.zeros((3, 3))
        matrix[:2, :2], matrix[2, 2] = 0.95 * turn, 0.7
        X = [rng.standard_normal((60, 3))]
        for _ in range(8):
            X.append(X[-1] @ matrix)
        X = np.stack(X, axis=1)
        maps = [nn.utils.skip_init(nn.Linear, 3, 3, bias=False) for _ in range(2)]
        for held in maps:
            nn.init.eye_(held.weight)
        own = LRANModule(*maps, 3)
        model = fitted(
            X, module=own, center=False, horizon=6, max_steps=500, lr=3e-2, weight_decay=0.0,
            eps=1e-4,
        )  # fmt: skip
        expected = DMD().fit(X).eigenvalues_
        np.testing.assert_allclose(model.eigenvalues_, expected, atol=1e-3, rtol=0)

    def test_eigenfunctions_grow_by_their_eigenvalue_as_far_as_the_model_is_right(self, small):
        X = koopman_invariant(20, 6, seed=1)
        z = small.transform(X)
        values, phi = small.eigenvalues_, small.eigenfunctions(X)
        np.testing.assert_allclose(np.abs(phi), np.abs(z @ _vectors(small)), atol=1e-9)
        # Of the model itself exactly: z K v = lambda z v.
        stepped = z @ small.koopman_matrix_ @ _vectors(small)
        np.testing.assert_allclose(stepped, values * (z @ _vectors(small)), atol=1e-9)

    def test_modes_are_the_decoders_slope_along_the_eigenfunctions(self, small):
        x = koopman_invariant(1, 1)[0, 0]
        phi = small.eigenfunctions(x[None])[0]
        step = 1e-6
        z = small.transform(x[None])
        expected = []
        for k in range(3):
            w = np.linalg.inv(_vectors(small))[k]
            ends = [
                small.inverse_transform(z + sign * step * part)[0]
                for part in (w.real, w.imag)
                for sign in (1, -1)
            ]
            real, imag = (ends[0] - ends[1]) / (2 * step), (ends[2] - ends[3]) / (2 * step)
            expected.append(real + 1j * imag)
        np.testing.assert_allclose(small.modes(x), np.stack(expected, axis=1), atol=1e-6)
        assert small.modes_.shape == (2, 3)
        assert phi.shape == (3,)

    def test_the_same_seed_gives_the_same_bits_and_another_one_not(self):
        X = koopman_invariant(20, 8).astype(np.float32)
        one, two, other = (
            fitted(X, n_latent=2, max_steps=20, random_state=seed) for seed in (3, 3, 4)
        )
        for name, weight in one.weights_.items():
            assert torch.equal(weight, two.weights_[name])
        assert not torch.equal(one.weights_["step"], other.weights_["step"])

    def test_training_goes_on_where_it_stopped(self):
        X = koopman_invariant(40, 8)
        model = fitted(X, n_latent=2, max_steps=100)
        before = model.score(X)
        model.partial_fit(X, max_steps=200)
        assert model.n_iter_ == len(model.loss_history_) == 300
        assert model.score(X) > before

    def test_partial_fit_begins_by_itself(self):
        X = koopman_invariant(40, 8)
        model = LRAN(2, hidden=(8,), horizon=4, batch_size=50)
        model.partial_fit(X)
        assert model.n_iter_ == 5  # 240 windows of 4 states, one pass of 50 each
        assert model.mean_.shape == (2,)

    def test_partial_fit_takes_other_arrays_than_fit_and_new_options(self):
        X = koopman_invariant(5, 8)
        model = fitted(X.astype(np.float32), n_latent=2, max_steps=3)
        model.set_params(clip=0.5, weight_decay=0.1).partial_fit(X, max_steps=2)
        assert (model._optimizer.clip, model._optimizer.decay) == (0.5, 0.1)
        model.partial_fit(torch.from_numpy(X), max_steps=2)
        assert model.n_iter_ == len(model.loss_history_) == 7
        assert model.weights_["step"].dtype == torch.float32

    def test_held_out_trajectories_end_the_training(self):
        rng = np.random.default_rng(0)
        X = rng.standard_normal((6, 12, 4))  # nothing to learn: only to remember
        model = fitted(
            X, n_latent=4, hidden=(64,), max_steps=2000, lr=1e-2, patience=5,
            validation_fraction=0.3,
        )  # fmt: skip
        assert model.n_iter_ < 2000
        looks = model.validation_history_
        assert looks[:, 1].argmin() == len(looks) - 1 - 5

    def test_a_model_no_better_than_the_mean_state_warns(self):
        X = np.random.default_rng(0).standard_normal((6, 12, 8))
        with pytest.warns(ConvergenceWarning, match=r"learned next to nothing.*Raise max_steps"):
            fitted(X, warn=True, n_latent=1, max_steps=2)

    def test_the_best_weights_seen_are_kept(self):
        rng = np.random.default_rng(0)
        X = rng.standard_normal((6, 12, 4))
        model = fitted(X, n_latent=4, hidden=(64,), max_steps=500, lr=1e-2, patience=50)
        held = model._read(X)
        states = (held.states - torch.from_numpy(model.mean_)) / model.scale_
        rows = held.split(0.1, 5)[1]
        windows = Windows(states, None, rows, rows)
        plan = Plan(horizon=5, delta=0.9, beta=1.0, eps=1e-2, lr=1e-2, one_cycle=True, steps=1,
                    batch_size=64, weight_decay=1e-6, clip=1.0, patience=1)  # fmt: skip
        eps = 1e-2 * float(states.square().sum(1).mean())
        with torch.no_grad():
            found = batch_loss(model.module_, *windows.gather(rows, 5), plan, eps).total
        assert float(found) == pytest.approx(model.validation_history_[:, 1].min(), rel=1e-9)

    @pytest.mark.parametrize("activation", ["elu", "tanh"])
    def test_only_the_networks_weights_decay(self, activation):
        net = make_module(3, 2, (5,), activation, False, seeded(0)).double()
        before = copy.deepcopy(net.state_dict())
        plan = Plan(horizon=3, delta=1.0, beta=0.0, eps=1e30, lr=0.1, one_cycle=False, steps=1,
                    batch_size=4, weight_decay=0.5, clip=1e-30, patience=1)  # fmt: skip
        rows = torch.arange(4)
        windows = Windows(draw(9, 3), None, rows, rows[:0])
        train(net, windows, plan, seeded(0))  # with no gradient to speak of
        for name, held in net.state_dict().items():
            share = 0.95 if held.ndim == 2 and name != "step" else 1.0
            torch.testing.assert_close(held, share * before[name], atol=1e-9, rtol=0)

    def test_the_rate_climbs_and_anneals_to_0(self):
        rates = [one_cycle(step / 100) for step in range(100)]
        assert max(rates) == pytest.approx(1, abs=0.02)
        assert rates[0] < 0.2
        assert rates[-1] < 1e-3

    def test_a_loss_that_is_not_finite_is_an_error_or_goes_back(self):
        X = koopman_invariant(40, 8).astype(np.float32)
        with pytest.raises(ConvergenceError, match=r"training diverged.*Lower lr"):
            fitted(X, n_latent=2, lr=1e30, clip=1e30, validation_fraction=0.0)

    def test_training_that_fails_leaves_the_model_as_it_was(self):
        X = koopman_invariant(5, 8)
        model = fitted(X, n_latent=2, max_steps=5)
        before = model.predict(X[0, 0], 3)
        model.set_params(lr=1e200, max_steps=200)
        with pytest.raises(ConvergenceError, match="training diverged"):
            model.fit(X)
        with pytest.raises(ConvergenceError, match="training diverged"):
            model.partial_fit(X, max_steps=200)
        with pytest.raises(ValueError, match="horizon"):
            model.fit(np.ones((3, 2, 7)))
        np.testing.assert_array_equal(model.predict(X[0, 0], 3), before)
        model.set_params(lr=1e-3).partial_fit(X)
        assert np.isfinite(model.predict(X[0, 0], 3)).all()

    def test_a_loss_that_diverges_on_the_way_is_told(self, monkeypatch):
        judged, looks = training._judged, []

        def failing(*given):
            looks.append(given)
            found = judged(*given)
            return found._replace(total=torch.tensor(torch.nan)) if len(looks) == 5 else found

        monkeypatch.setattr(training, "_judged", failing)
        with pytest.warns(ConvergenceWarning, match="no longer finite after 5 steps.*Lower lr"):
            model = fitted(koopman_invariant(40, 8), warn=True, n_latent=2, max_steps=50, lr=0.1)
        assert model.n_iter_ == 5
        assert np.isfinite(model.score(koopman_invariant(4, 8)))

    def test_two_states_are_learned_at_once_and_told_to_be_few(self):
        with pytest.warns(UserWarning, match=r"X has 1 window\(s\) of horizon = 2 states"):
            model = LRAN(2, horizon=2, hidden=(8,), lr=1e-2).fit([[1.0, 2.0], [1.5, -1.0]])
        assert model.n_iter_ < 5000  # ends where the loss is rounding
        assert model.loss_history_[-1] < 1e-14

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:n_latent = 3 exceeds")
    def test_duffing_s_slow_rate_is_0_and_a_pair_decays_near_the_attractors_rate(self):
        model = LRAN(
            3, hidden=(32, 32), horizon=11, dt=0.25, lr=1.6e-2, max_steps=600, random_state=0
        ).fit(duffing(300, 10).astype(np.float32))
        rates = model.continuous_eigenvalues_
        assert np.abs(rates).min() < 0.05
        # 2.5 time units from starts far out tell the bulk's rate, not quite that at the attractors.
        assert np.abs(rates - (-0.25 + 1.3919j)).min() < 0.7

    def test_a_module_of_ones_own_is_copied_and_trained(self, tmp_path):
        X = koopman_invariant(40, 8)
        encoder = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3))
        own = LRANModule(encoder, nn.Linear(3, 2), 3)
        before = copy.deepcopy(own.state_dict())
        model = fitted(X, module=own)
        path = model.save(tmp_path / "lran.safetensors")
        with pytest.raises(ValueError, match=r"Give it again: LRAN.load\(path, module=yours\)"):
            LRAN.load(path).predict(X[0, 0])
        loaded = LRAN.load(path, module=own)
        np.testing.assert_array_equal(loaded.predict(X[0, 0]), model.predict(X[0, 0]))
        assert all(torch.equal(before[name], held) for name, held in own.state_dict().items())
        assert model.transform(X[0]).shape == (9, 3)
        assert model.score(X) > -0.8

    def test_a_module_with_a_step_of_its_own_keeps_it(self):
        class Contracting(LRANModule):
            def matrix(self):
                return 0.9 * super().matrix()

        held = module()
        assert is_plain(held)
        own = Contracting(held.encoder, held.decoder, 2)
        assert not is_plain(own)


class TestContinuousTime:
    def test_irregular_samples_of_a_rotation_give_its_rate(self):
        rng = np.random.default_rng(0)
        times = [np.cumsum(rng.uniform(0.05, 0.4, 15)) for _ in range(30)]
        phase = rng.uniform(0, 2 * np.pi, 30)
        X = [
            np.exp(-0.1 * t)[:, None] * np.stack([np.cos(2 * t + p), np.sin(2 * t + p)], axis=1)
            for t, p in zip(times, phase, strict=True)
        ]
        model = LRAN(
            2, hidden=(), horizon=6, continuous=True, dt=0.2, max_steps=800, lr=2e-2, eps=1e-3,
            center=False, validation_fraction=0.0,
        ).fit(X, times=times)  # fmt: skip
        np.testing.assert_allclose(
            np.sort_complex(model.continuous_eigenvalues_), [-0.1 - 2j, -0.1 + 2j], atol=2e-2
        )
        np.testing.assert_allclose(
            np.sort_complex(np.linalg.eigvals(model.generator_)),
            np.sort_complex(model.continuous_eigenvalues_), atol=1e-8,
        )  # fmt: skip
        start = np.array([1.0, 0.0])
        at = np.array([0.0, 0.33, 1.1])
        expected = np.exp(-0.1 * at)[:, None] * np.stack([np.cos(2 * at), np.sin(2 * at)], axis=1)
        np.testing.assert_allclose(model.simulate(start, at), expected, atol=0.05)

    def test_times_need_a_model_that_is_continuous(self):
        X = koopman_invariant(3, 8)
        with pytest.raises(ValueError, match=r"times need LRAN\(continuous=True\)"):
            LRAN(2).fit(X, times=np.arange(9))
        for times, message in (
            (np.arange(4), r"times must have one number a state, lengths \(9, 9, 9\)"),
            (np.zeros(9), r"finite and increase; those of X\[0\]"),
        ):
            with pytest.raises(ValueError, match=message):
                LRAN(2, continuous=True, horizon=4).fit(X, times=times)
        with pytest.raises(AttributeError, match="generator_ needs LRAN"):
            _ = fitted(X, n_latent=2, max_steps=2).generator_


class TestContract:
    def test_predict_is_deterministic_and_begins_with_the_reconstruction(self, small):
        x = koopman_invariant(1, 1, seed=5)[0, 0]
        five = small.predict(x, 5)
        np.testing.assert_array_equal(small.predict(x, 5), five)
        np.testing.assert_allclose(small.predict(x, 2), five[:3], atol=1e-12)
        z = small.transform(x[None])
        np.testing.assert_allclose(small.predict(x, 0), small.inverse_transform(z), atol=1e-12)

    def test_pickle_clone_and_a_file_forecast_alike(self, small, tmp_path):
        X = koopman_invariant(3, 8, seed=2)
        expected = small.predict(X[:, 0], 4)
        again = pickle.loads(pickle.dumps(small))
        np.testing.assert_array_equal(again.predict(X[:, 0], 4), expected)
        loaded = LRAN.load(small.save(tmp_path / "lran.safetensors"))
        np.testing.assert_array_equal(loaded.predict(X[:, 0], 4), expected)
        assert loaded.spectral_radius_ == small.spectral_radius_
        loaded.partial_fit(koopman_invariant(40, 8), max_steps=3)
        with pytest.raises(NotFittedError):
            clone(small).predict(X[0, 0], 1)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_tensors_come_back_as_tensors_of_their_dtype(self, dtype):
        X = torch.from_numpy(koopman_invariant(20, 8)).to(dtype)
        model = fitted(X, n_latent=2, max_steps=20)
        assert model.weights_["step"].dtype == dtype
        assert model.predict(X[0, 0], 2).dtype == model.transform(X).dtype == dtype
        assert isinstance(model.koopman_matrix_, torch.Tensor)

    def test_half_precision_is_trained_in_float32(self):
        X = torch.from_numpy(koopman_invariant(20, 8)).to(torch.bfloat16)
        assert fitted(X, n_latent=2, max_steps=5).weights_["step"].dtype == torch.float32

    def test_an_unstable_model_warns_with_its_spectral_radius(self, small):
        wild = copy.deepcopy(small)
        with torch.no_grad():
            wild.module_.step.mul_(2)
        wild._settle()
        with pytest.warns(UserWarning, match=r"unstable: its spectral radius is"):
            wild.predict(np.zeros(2), 200)

    def test_scores_are_those_of_its_own_horizon(self, small):
        X = koopman_invariant(10, 8, seed=2)
        assert small.score(X) == pytest.approx(-small.errors_by_horizon(X, 4)[1:].mean())

    def test_trajectories_of_mixed_lengths_are_windowed_each(self):
        X = koopman_invariant(6, 12)
        model = fitted([X[0], X[1, :3], X[2, :7], X[3]], n_latent=2, max_steps=5)
        assert model.transform([X[0], X[1, :3]])[1].shape == (3, 2)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
    def test_cuda_in_cuda_out(self):
        X = torch.from_numpy(koopman_invariant(20, 8)).float().cuda()
        model = fitted(X, n_latent=2, max_steps=20)
        assert model.predict(X[0, 0], 3).device.type == model.weights_["step"].device.type == "cuda"


class TestSuite(EstimatorSuite):
    estimator = LRAN
    exceptions: ClassVar[dict[str, str]] = {
        "check_fit2d_predict1d": "predict takes one initial state, (n,), without an axis"
    }
    options: ClassVar[dict[str, Any]] = {
        "n_latent": 2, "hidden": (6,), "horizon": 4, "max_steps": 6,
    }  # fmt: skip


class TestBadInput:
    @pytest.mark.bad_input
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"n_latent": 0}, "n_latent must be an integer of at least 1, got 0"),
            ({"horizon": 1}, "horizon must be an integer of at least 2, got 1"),
            ({"delta": 0.0}, r"delta must be in \(0, 1\], got 0.0"),
            ({"delta": 1.1}, r"delta must be in \(0, 1\], got 1.1"),
            ({"beta": -1.0}, "beta must be finite and at least 0, got -1.0"),
            ({"dt": 0.0}, "dt must be finite and above 0, got 0.0"),
            ({"eps": 0.0}, "eps must be finite and above 0, got 0.0"),
            ({"lr": 0.0}, "lr must be finite and above 0"),
            ({"clip": -1.0}, "clip must be above 0"),
            ({"max_steps": 0}, "max_steps must be an integer of at least 1"),
            ({"batch_size": 0}, "batch_size must be an integer of at least 1"),
            ({"patience": 0}, "patience must be an integer of at least 1"),
            ({"hidden": (8, 0)}, r"hidden must be widths of at least 1.*got \(8, 0\)"),
            ({"hidden": 64}, r"hidden must be widths of at least 1, such as \(64, 64\), got 64"),
            ({"lr": math.inf}, "lr must be finite and above 0, got inf"),
            ({"max_steps": 1e4}, "max_steps must be an integer of at least 1, got 10000.0"),
            ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
            ({"validation_fraction": 1.0}, r"validation_fraction must be in \[0, 1\), got 1.0"),
            ({"activation": "sine"}, "activation must be one of elu, gelu, relu, silu, tanh"),
            ({"time_axis": 3}, "time_axis must be 0 .* or 1 .*, got 3"),
        ],
    )
    def test_options_out_of_range(self, options, message):
        with pytest.raises(ValueError, match=message):
            LRAN(**options).fit(koopman_invariant(3, 12))

    def test_trajectories_shorter_than_the_horizon(self):
        with pytest.raises(ValueError, match=r"horizon = 10 needs.*the longest has n_samples = 9"):
            LRAN(2).fit(koopman_invariant(3, 8))

    @pytest.mark.parametrize("value", [0.0, 3.0])
    def test_states_that_never_change(self, value):
        with pytest.raises(ValueError, match="all states are alike"):
            LRAN(2).fit(np.full((20, 3), value))

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_what_is_not_finite(self, bad):
        X = koopman_invariant(3, 12)
        X[1, 2, 0] = bad
        with pytest.raises(ValueError, match=r"NaN|infinity"):
            LRAN(2).fit(X)

    def test_more_coordinates_than_state_variables_are_told(self):
        with pytest.warns(UserWarning, match="n_latent = 5 exceeds the 2 state variables"):
            LRAN(5, max_steps=300, lr=1e-2).fit(koopman_invariant(10, 12))

    @pytest.mark.bad_input
    def test_a_module_that_is_none(self):
        with pytest.raises(TypeError, match=r"module must be an LRANModule, got Linear\. Wrap"):
            LRAN(module=nn.Linear(2, 2)).fit(koopman_invariant(3, 12))
        with pytest.raises(ValueError, match="n_latent must be at least 1, got 0"):
            LRANModule(nn.Identity(), nn.Identity(), 0)
        with pytest.raises(ValueError, match=r"elapsed times need LRANModule\(continuous=True\)"):
            module()(draw(2, 3, 3), torch.arange(3, dtype=F64))

    @pytest.mark.bad_input
    def test_elapsed_times_of_another_shape(self):
        with pytest.raises(ValueError, match=r"elapsed must be \(T,\) or \(B, T\) = \(3, 5\)"):
            lran_loss(*tensors(), elapsed=torch.arange(4, dtype=F64))

    def test_losses_of_shapes_that_do_not_fit(self):
        x, x_hat, z, z_hat = tensors()
        with pytest.raises(ValueError, match="windows of at least 2 states, or beta = 0"):
            lran_loss(x[:, :1], x_hat[:, :1], z[:, :1], z_hat[:, :1])
        for name in ("state_eps", "latent_eps"):
            with pytest.raises(ValueError, match=f"{name} must be finite and above 0, got 0.0"):
                lran_loss(x, x_hat, z, z_hat, **{name: 0.0})


def _vectors(model):
    return model._spectrum()[1].numpy()
