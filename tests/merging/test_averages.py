"""Linear merging and task arithmetic."""

import pytest
import torch

from conformance.merging import MergeSuite, models, same_bits
from spanwise.merging import merge


class TestLinear(MergeSuite):
    method = "linear"


class TestTaskArithmetic(MergeSuite):
    method = "task_arithmetic"


def test_the_average_is_task_arithmetic_at_one_over_t():
    base, tuned = models(4)
    average = merge(None, tuned, "linear", work_dtype=torch.float64)
    sums = merge(base, tuned, "task_arithmetic", alpha=0.25, work_dtype=torch.float64)
    for name in base:
        assert torch.allclose(average[name], sums[name], atol=1e-14, rtol=0)


def test_weights_choose_a_model():
    _, tuned = models(3)
    merged = merge(None, tuned, "linear", weight=[0, 1, 0], work_dtype=torch.float64)
    assert all(torch.equal(merged[n], tuned[1][n]) for n in tuned[1])


def test_one_model_at_alpha_one_is_that_model():
    base, tuned = models(1)
    merged = merge(base, tuned, "task_arithmetic", work_dtype=torch.float64)
    assert all(torch.allclose(merged[n], tuned[0][n], atol=1e-15, rtol=0) for n in base)


def test_weights_that_cancel_cannot_be_normalised():
    _, tuned = models(2)
    with pytest.raises(ValueError, match=r"sum to 0.*turn normalize off"):
        merge(None, tuned, "linear", weight=[1, -1])


def test_rows_in_blocks_give_the_same_bits(monkeypatch):
    base, tuned = models(3)
    whole = merge(base, tuned, "task_arithmetic", weight=[0.3, 0.5, 0.9])
    monkeypatch.setattr("spanwise.merging._job.BLOCK", 7)
    blocks = merge(base, tuned, "task_arithmetic", weight=[0.3, 0.5, 0.9])
    assert all(same_bits(whole[n], blocks[n]) for n in base)
