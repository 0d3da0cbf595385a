"""Fractions of an update, against the formula."""

import pytest
import torch
from torch import nn

from spanwise.training import alpha as alphas


@pytest.fixture
def models():
    torch.manual_seed(0)
    make = lambda: nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)).double()  # noqa: E731
    return make(), make()


def test_a_fraction_is_the_point_between(models):
    before, after = models
    start, end = alphas.weights(before), alphas.weights(after)
    alphas.keep_fraction(after, start, end, 0.3)
    for name, p in after.named_parameters():
        torch.testing.assert_close(
            p.detach(), start[name] + 0.3 * (end[name] - start[name]), rtol=0, atol=1e-15
        )


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_ends_are_exact(models, alpha, dtype):
    before, after = (m.to(dtype) for m in models)
    start, end = alphas.weights(before), alphas.weights(after)
    alphas.keep_fraction(after, start, end, alpha)
    expected = end if alpha else start
    assert all(torch.equal(p, expected[n]) for n, p in after.named_parameters())


def test_a_sweep_evaluates_each_fraction_and_restores_the_weights(models):
    before, after = models
    start, end = alphas.weights(before), alphas.weights(after)
    total = lambda: {"held_out": sum(p.sum().item() for p in after.parameters())}  # noqa: E731
    points = alphas.sweep(after, start, total, (0.0, 0.25, 1.0))
    assert [p.alpha for p in points] == [0.0, 0.25, 1.0]
    a, b, c = (p.losses["held_out"] for p in points)
    assert b == pytest.approx(a + 0.25 * (c - a), abs=1e-12)
    assert all(torch.equal(p, end[n]) for n, p in after.named_parameters())


def test_the_weights_are_restored_when_an_evaluation_fails(models):
    before, after = models
    end = alphas.weights(after)

    def fail():
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        alphas.sweep(after, alphas.weights(before), fail, (0.0, 1.0))
    assert all(torch.equal(p, end[n]) for n, p in after.named_parameters())


def test_a_fraction_out_of_range_and_a_missing_name_are_errors(models):
    before, after = models
    start, end = alphas.weights(before), alphas.weights(after)
    with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\]"):
        alphas.keep_fraction(after, start, end, -0.1)
    with pytest.raises(ValueError, match=r"0\.weight is missing"):
        alphas.keep_fraction(after, {}, end, 0.5)
