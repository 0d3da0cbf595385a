"""SLERP of weights and of updates."""

import math

import pytest
import torch
from tests.conformance.merging import MergeSuite, models, same_bits

from spanwise.merging import merge


class TestSlerp(MergeSuite):
    method = "slerp"
    count = 2


class TestNuSlerp(MergeSuite):
    method = "nuslerp"
    count = 2


class TestNuSlerpByRow(MergeSuite):
    method = "nuslerp"
    count = 2
    options = {"scope": "row"}  # noqa: RUF012


def arc(a, b, t):
    cosine = float((a * b).sum() / (a.norm() * b.norm()))
    angle = math.acos(cosine)
    return (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)


@pytest.mark.parametrize("t", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("block", [2**20, 7])
def test_weights_go_along_the_arc(t, block, monkeypatch):
    monkeypatch.setattr("spanwise.merging._work.BLOCK", block)
    _, tuned = models(2, size=1.0)
    merged = merge(None, tuned, "slerp", t=t, work_dtype=torch.float64)
    for name in ("embed.weight", "conv.weight", "layers.0.up.bias"):
        a, b = (x[name] for x in tuned)
        assert torch.allclose(merged[name], arc(a, b, t), atol=1e-10, rtol=0)


def test_near_models_are_interpolated_on_a_line():
    _, tuned = models(2, size=1e-3)
    merged = merge(None, tuned, "slerp", t=0.3, work_dtype=torch.float64)
    for name in ("embed.weight", "scale"):
        line = 0.7 * tuned[0][name] + 0.3 * tuned[1][name]
        assert torch.allclose(merged[name], line, atol=1e-12, rtol=0)


@pytest.mark.parametrize("size", [1.0, 1e-3])
@pytest.mark.parametrize("t", [0, 1])
def test_the_ends_are_the_models_bit_for_bit(size, t):
    _, tuned = models(2, size=size, dtype=torch.float32)
    merged = merge(None, tuned, "slerp", t=t)
    assert all(torch.equal(merged[n], tuned[t][n]) for n in tuned[0])
    assert same_bits(merged["embed.weight"], tuned[t]["embed.weight"])


def test_between_equal_norms_the_norm_is_kept():
    _, tuned = models(2, size=1.0)
    for t in tuned:
        t["embed.weight"] = t["embed.weight"] / t["embed.weight"].norm()
    for t in (0.1, 0.5, 0.7):
        merged = merge(None, tuned, "slerp", t=t, work_dtype=torch.float64)
        assert float(merged["embed.weight"].norm()) == pytest.approx(1, abs=1e-12)


def test_t_may_vary_over_layers_and_names():
    _, tuned = models(2, size=1.0)
    by_name = [{"filter": "layers", "value": [0.0, 1.0]}, {"value": 0.5}]
    merged = merge(None, tuned, "slerp", t=by_name, work_dtype=torch.float64)
    assert torch.equal(merged["layers.0.up.weight"], tuned[0]["layers.0.up.weight"])
    assert torch.equal(merged["layers.1.down.weight"], tuned[1]["layers.1.down.weight"])
    half = arc(tuned[0]["conv.weight"], tuned[1]["conv.weight"], 0.5)
    assert torch.allclose(merged["conv.weight"], half, atol=1e-10, rtol=0)


@pytest.mark.parametrize("block", [2**20, 7])
def test_updates_go_along_their_own_arc(block, monkeypatch):
    monkeypatch.setattr("spanwise.merging._work.BLOCK", block)
    base, tuned = models(2)
    merged = merge(base, tuned, "nuslerp", weight=[3, 1], work_dtype=torch.float64)
    for name in ("embed.weight", "conv.weight", "layers.0.up.bias"):
        a, b = (x[name] - base[name] for x in tuned)
        assert torch.allclose(merged.delta[name], arc(a, b, 0.25), atol=1e-10, rtol=0)


@pytest.mark.parametrize("block", [2**20, 7])
def test_every_row_has_an_arc_of_its_own(block, monkeypatch):
    for module in ("_job", "_work"):
        monkeypatch.setattr(f"spanwise.merging.{module}.BLOCK", block)
    base, tuned = models(2)
    merged = merge(base, tuned, "nuslerp", scope="row", work_dtype=torch.float64)
    a, b = (x["conv.weight"] - base["conv.weight"] for x in tuned)
    expected = torch.stack([arc(x, y, 0.5) for x, y in zip(a, b, strict=True)])
    assert torch.allclose(merged.delta["conv.weight"], expected, atol=1e-10, rtol=0)


def test_without_a_base_nuslerp_is_slerp_of_weights():
    _, tuned = models(2, size=1.0)
    nu = merge(None, tuned, "nuslerp", weight=[0.6, 0.4], work_dtype=torch.float64)
    slerp = merge(None, tuned, "slerp", t=0.4, work_dtype=torch.float64)
    assert torch.allclose(nu["embed.weight"], slerp["embed.weight"], atol=1e-12, rtol=0)


@pytest.mark.parametrize("scope", ["tensor", "row"])
def test_opposite_or_missing_updates_are_interpolated_on_a_line(scope):
    base, tuned = models(2)
    tuned[1]["embed.weight"] = 2 * base["embed.weight"] - tuned[0]["embed.weight"]
    tuned[1]["conv.weight"] = base["conv.weight"].clone()
    merged = merge(base, tuned, "nuslerp", scope=scope, weight=[3, 1], work_dtype=torch.float64)
    for name, factor in (("embed.weight", 0.5), ("conv.weight", 0.75)):
        expected = factor * (tuned[0][name] - base[name])
        assert torch.allclose(merged.delta[name], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("method", ["slerp", "nuslerp"])
@pytest.mark.parametrize("count", [1, 3])
def test_two_models_are_needed(method, count):
    _, tuned = models(count)
    with pytest.raises(ValueError, match=f"{method} merges exactly 2 models, got {count}"):
        merge(None, tuned, method)


@pytest.mark.parametrize("t", [-0.1, 1.5, [0, 2], "half", True, None])
def test_t_outside_is_refused(t):
    _, tuned = models(2)
    with pytest.raises(ValueError, match=r"t must be from 0 \(the first model\) to 1"):
        merge(None, tuned, "slerp", t=t)


def test_weights_that_point_nowhere_are_refused():
    _, tuned = models(2)
    with pytest.raises(ValueError, match="weight must be >= 0"):
        merge(None, tuned, "nuslerp", weight=[1, -1])
    with pytest.raises(ValueError, match="sum to 0"):
        merge(None, tuned, "nuslerp", weight=0)
