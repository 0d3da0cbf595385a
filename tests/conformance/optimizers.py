"""What every optimizer of spanwise must do; a method joins with a class of three lines."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn


def small_model(dtype=torch.float32, seed=0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 8)).to(dtype)


def train(model, optimizer, steps=5, seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(32, 12, generator=generator).to(dtype)
        y = torch.randn(32, 8, generator=generator).to(dtype)
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()


def weights(model) -> torch.Tensor:
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])


class OptimizerSuite:
    """Inherit and define `make(self, groups, **options)`; groups have `rank` 4 on matrices."""

    def make(self, groups, **options):
        raise NotImplementedError

    def groups(self, model, rank=4):
        matrices = [(n, p) for n, p in model.named_parameters() if p.ndim == 2]
        vectors = [(n, p) for n, p in model.named_parameters() if p.ndim != 2]
        return [{"params": matrices, "rank": rank}, {"params": vectors}]

    def build(self, dtype=torch.float32, **options):
        model = small_model(dtype)
        return model, self.make(self.groups(model), lr=1e-2, **options)

    def test_is_a_torch_optimizer_and_learns(self):
        model, optimizer = self.build()
        assert isinstance(optimizer, torch.optim.Optimizer)
        x, y = torch.randn(64, 12), torch.randn(64, 8)
        losses = []
        for _ in range(60):
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.9 * losses[0]

    def test_closure_runs_with_gradients_and_returns_the_loss(self):
        model, optimizer = self.build()
        x = torch.randn(8, 12)

        def closure():
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            return loss

        assert optimizer.step(closure).item() > 0

    def test_parameters_without_gradient_are_left_alone(self):
        model, optimizer = self.build()
        before = model[0].weight.detach().clone()
        model[2].weight.grad = torch.randn_like(model[2].weight)
        optimizer.step()
        assert torch.equal(model[0].weight, before)

    def test_sparse_gradient_is_refused_before_anything_changes(self):
        model, optimizer = self.build()
        before = weights(model)
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        model[2].weight.grad = torch.eye(8, 16).to_sparse()
        with pytest.raises(RuntimeError, match=r"2\.weight is sparse"):
            optimizer.step()
        assert torch.equal(weights(model), before)

    def test_resume_from_state_dict_gives_the_same_trajectory_bitwise(self):
        whole, optimizer = self.build()
        train(whole, optimizer, steps=7)
        train(whole, optimizer, steps=6, seed=2)
        half, first = self.build()
        train(half, first, steps=7)
        buffer = io.BytesIO()
        torch.save(first.state_dict(), buffer)
        buffer.seek(0)
        resumed = copy.deepcopy(half)
        second = self.make(self.groups(resumed), lr=1e-2)
        second.load_state_dict(torch.load(buffer, weights_only=True))
        train(resumed, second, steps=6, seed=2)
        assert torch.equal(weights(resumed), weights(whole))

    def test_same_seed_gives_the_same_run_and_leaves_the_global_generator_alone(self):
        runs = []
        for _ in range(2):
            model, optimizer = self.build()
            torch.manual_seed(5)
            state = torch.get_rng_state()
            train(model, optimizer)
            assert torch.equal(torch.get_rng_state(), state)
            runs.append(weights(model))
        assert torch.equal(*runs)

    def test_zero_gradient_makes_no_nan_and_no_move(self):
        model, optimizer = self.build()
        before = weights(model)
        for _ in range(3):
            for p in model.parameters():
                p.grad = torch.zeros_like(p)
            optimizer.step()
        assert torch.equal(weights(model), before)
        train(model, optimizer)
        assert torch.isfinite(weights(model)).all()
        assert not torch.equal(weights(model), before)

    def test_scheduler_drives_the_rate(self):
        model, optimizer = self.build()
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
        before = weights(model)
        train(model, optimizer)
        scheduler.step()
        assert torch.equal(weights(model), before)

    def test_half_precision_weights_keep_float32_state(self):
        model, optimizer = self.build(dtype=torch.bfloat16)
        train(model, optimizer, dtype=torch.bfloat16)
        state = optimizer.state[model[0].weight]
        dtypes = {v.dtype for v in state.values() if torch.is_tensor(v) and v.ndim == 2}
        assert dtypes == {torch.float32}
        second = self.make(self.groups(model), lr=1e-2)
        second.load_state_dict(optimizer.state_dict())
        state = second.state[model[0].weight]
        assert {v.dtype for v in state.values() if torch.is_tensor(v) and v.ndim == 2} == dtypes

    def test_float64_weights_keep_float64_state(self):
        model, optimizer = self.build(dtype=torch.float64)
        train(model, optimizer, dtype=torch.float64)
        state = optimizer.state[model[0].weight]
        assert {v.dtype for v in state.values() if v.ndim == 2} == {torch.float64}

    def test_a_copied_optimizer_steps_like_the_original(self):
        model, optimizer = self.build()
        train(model, optimizer)
        twin, copied = copy.deepcopy((model, optimizer))
        train(model, optimizer, seed=3)
        train(twin, copied, seed=3)
        assert torch.equal(weights(twin), weights(model))

    def test_a_copy_made_under_a_scheduler_steps_itself_and_can_be_pickled(self):
        # A scheduler replaces the optimizer's `step` by one that is bound to it.
        model, optimizer = self.build()
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        train(model, optimizer)
        twin, copied = copy.deepcopy((model, optimizer))
        loaded, unpickled = pickle.loads(pickle.dumps((model, optimizer)))
        before = weights(model)
        train(twin, copied, seed=3)
        train(loaded, unpickled, seed=3)
        assert torch.equal(weights(model), before)
        train(model, optimizer, seed=3)
        assert torch.equal(weights(twin), weights(model))
        assert torch.equal(weights(loaded), weights(model))

    def test_compiled_step_equals_the_eager_step(self):
        runs = []
        for compiled in (False, True):
            model, optimizer = self.build()
            step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
            generator = torch.Generator().manual_seed(1)
            for _ in range(4):
                for p in model.parameters():
                    p.grad = torch.randn(p.shape, generator=generator)
                step()
            runs.append(weights(model))
        assert torch.allclose(*runs, atol=1e-6, rtol=0)
