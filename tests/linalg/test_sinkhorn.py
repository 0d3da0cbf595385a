"""Scaling to doubly stochastic matrices against its definition, at any size of the logits."""

import pytest
import torch

from spanwise.linalg import sinkhorn

F64 = torch.float64


def draw(n=12, seed=0, symmetric=True, dtype=F64):
    held = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return (held + held.mT) / 2 if symmetric else held


def naive(logits, steps=5000):
    u = v = logits.new_zeros(len(logits))
    for _ in range(steps):
        u = -torch.logsumexp(logits + v, 1)
        old, v = v, -torch.logsumexp(logits + u[:, None], 0)
        if float((v - old).abs().max()) < 1e-15:
            break
    return (logits + u[:, None] + v).exp()


@pytest.mark.parametrize("symmetric", [True, False])
def test_is_the_limit_of_the_textbooks_steps(symmetric):
    logits = draw(symmetric=symmetric)
    found = sinkhorn(logits, symmetric=symmetric, tol=1e-13, iterations=100_000)
    torch.testing.assert_close(found.plan, naive(logits), rtol=0, atol=1e-12)
    rebuilt = (logits + found.u[:, None] + found.v).exp()
    torch.testing.assert_close(rebuilt, found.plan, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_rows_and_columns_sum_to_one_whatever_the_logits_size(dtype, size, symmetric):
    # A gap between clusters slows the alternation down, not the symmetric steps.
    rows = torch.nn.functional.normalize(draw(dtype=dtype)[:, :3], dim=1)
    logits = size * rows @ rows.mT
    found = sinkhorn((logits + logits.mT) / 2, symmetric=symmetric, iterations=20_000, tol=1e-5)
    assert found.error < 2e-5
    assert (found.plan >= 0).all()
    assert torch.isfinite(found.plan).all()


def test_symmetric_logits_give_a_symmetric_matrix_bit_for_bit():
    found = sinkhorn(draw(), symmetric=True)
    assert torch.equal(found.u, found.v)
    torch.testing.assert_close(found.plan, found.plan.mT, rtol=1e-15, atol=0)


def test_symmetric_steps_do_not_slow_down_between_far_clusters():
    block = torch.full((6, 6), 1.0, dtype=F64)
    logits = 14 * torch.block_diag(block, block) + 0.3 * draw()
    quick = sinkhorn(logits, symmetric=True, tol=1e-9)
    slow = sinkhorn(logits, symmetric=False, tol=1e-9, iterations=3000)
    assert quick.iterations < 60
    assert quick.error < 1e-9
    assert slow.iterations == 3000


def test_the_error_told_is_the_worst_row_or_column():
    found = sinkhorn(draw(symmetric=False), iterations=2)
    sums = torch.cat([found.plan.sum(0), found.plan.sum(1)])
    assert found.error == pytest.approx(float((sums - 1).abs().max()), rel=1e-12)
    assert found.error > 1e-6
    assert found.iterations == 2


def test_adding_to_rows_and_columns_changes_nothing():
    logits, a, b = draw(symmetric=False), draw(seed=1)[0], draw(seed=2)[0]
    plain = sinkhorn(logits, tol=1e-13, iterations=100_000).plan
    moved = sinkhorn(logits + a[:, None] + b, tol=1e-13, iterations=100_000).plan
    torch.testing.assert_close(moved, plain, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("logits", "options", "message"),
    [
        (draw() * float("nan"), {}, "logits hold NaN or infinity"),
        (draw()[:0, :0], {}, "must have rows"),
        (draw(), {"iterations": 0}, "iterations must be at least 1"),
        (draw()[:4], {}, "must be square"),
    ],
)
@pytest.mark.bad_input
def test_bad_input_is_refused(logits, options, message):
    with pytest.raises(ValueError, match=message):
        sinkhorn(logits, **options)
