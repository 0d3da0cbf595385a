"""Model Stock."""

from itertools import combinations

import pytest
import torch
from tests.conformance.merging import MergeSuite, models

from spanwise.merging import merge


class TestModelStock(MergeSuite):
    method = "model_stock"


class TestModelStockFilterWise(MergeSuite):
    method = "model_stock"
    options = {"filter_wise": True}  # noqa: RUF012


def ratio(updates):
    """N c / (1 + (N - 1) c) from flat updates."""
    n = len(updates)
    pairs = [a @ b / (a.norm() * b.norm()) for a, b in combinations(updates, 2)]
    c = max(0.0, float(sum(pairs)) / len(pairs))
    return n * c / (1 + (n - 1) * c)


def related(count, seed=0):
    """Fine-tunes whose updates have a part in common."""
    base, tuned = models(count, seed=seed)
    _, (common,) = models(1, seed=99)
    for t in tuned:
        for name, tensor in t.items():
            if tensor.is_floating_point():
                t[name] = tensor + 0.5 * (common[name] - models(1, seed=99)[0][name])
    return base, tuned


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("block", [2**20, 7])
@pytest.mark.parametrize("filter_wise", [False, True])
def test_the_ratio_follows_from_the_mean_cosine(count, block, filter_wise, monkeypatch):
    for module in ("_job", "_work"):
        monkeypatch.setattr(f"spanwise.merging.{module}.BLOCK", block)
    base, tuned = related(count)
    merged = merge(base, tuned, "model_stock", filter_wise=filter_wise, work_dtype=torch.float64)
    for name, update in merged.delta.items():
        d = torch.stack([t[name] - base[name] for t in tuned])
        if filter_wise and base[name].dim() > 1:
            rows = [ratio(list(d[:, i].reshape(count, -1))) for i in range(d.shape[1])]
            t = torch.tensor(rows, dtype=torch.float64).view(-1, *[1] * (update.dim() - 1))
        else:
            t = ratio(list(d.reshape(count, -1)))
        assert torch.allclose(update, t * d.mean(0), atol=1e-10, rtol=0)


def test_two_models_have_the_closed_form():
    base, tuned = related(2)
    merged = merge(base, tuned, "model_stock", work_dtype=torch.float64)
    a, b = ((t["embed.weight"] - base["embed.weight"]).flatten() for t in tuned)
    c = float(a @ b / (a.norm() * b.norm()))
    expected = 2 * c / (1 + c) * (a + b) / 2
    assert torch.allclose(merged.delta["embed.weight"].flatten(), expected, atol=1e-10, rtol=0)


def test_equal_models_give_themselves():
    base, tuned = models(1)
    merged = merge(base, tuned * 3, "model_stock", work_dtype=torch.float64)
    assert all(torch.allclose(merged[n], tuned[0][n], atol=1e-12, rtol=0) for n in base)


def test_orthogonal_updates_give_the_base():
    base = {"w": torch.randn(4, 6, dtype=torch.float64)}
    tuned = []
    for row in range(3):
        w = base["w"].clone()
        w[row] += 1.5
        tuned.append({"w": w})
    merged = merge(base, tuned, "model_stock", work_dtype=torch.float64)
    assert torch.allclose(merged["w"], base["w"], atol=1e-14, rtol=0)


def test_opposite_updates_give_the_base():
    base, tuned = models(1)
    back = {n: 2 * base[n] - t if t.is_floating_point() else t for n, t in tuned[0].items()}
    merged = merge(base, [tuned[0], back], "model_stock", work_dtype=torch.float64)
    assert all(torch.allclose(merged[n], base[n], atol=1e-14, rtol=0) for n in base)


def test_tiny_updates_have_the_same_angles():
    base, tuned = related(3)
    small = [
        {n: base[n] + 1e-6 * (t - base[n]) if t.is_floating_point() else t for n, t in d.items()}
        for d in tuned
    ]
    whole = merge(base, tuned, "model_stock", work_dtype=torch.float64)
    tiny = merge(base, small, "model_stock", work_dtype=torch.float64)
    for name in whole.delta:  # base + 1e-6 update is rounded at 1e-16
        assert torch.allclose(1e6 * tiny.delta[name], whole.delta[name], atol=1e-8, rtol=0)


def test_one_model_has_no_angle():
    base, tuned = models(1)
    with pytest.raises(ValueError, match="model_stock merges at least 2 models, got 1"):
        merge(base, tuned, "model_stock")
