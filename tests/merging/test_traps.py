"""What goes wrong in merging elsewhere, each said by one test."""

import warnings

import pytest
import torch
from tests.merging.quadratic import F64, LINEAR, UP, case, draw, gram, means_of
from torch import nn
from torch.nn import functional

from conformance.merging import models, same_bits
from spanwise.io import save_tensors
from spanwise.lora import Adapter
from spanwise.merging import Stats, collect_stats, merge


def close(a, b, atol=1e-10):
    return torch.allclose(a, b, atol=atol, rtol=0)


# -- spectral methods ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["iso_c", "iso_cts", "tsv", "knots"])
def test_tokens_that_nobody_saw_keep_their_rows_and_an_excluded_table_is_averaged(method):
    base, tuned = models(3)
    for held in tuned:
        held["embed.weight"][:5] = base["embed.weight"][:5]
    merged = merge(base, tuned, method, exclude=("embed",), work_dtype=F64)
    mean = sum(t["embed.weight"] for t in tuned) / 3
    assert close(merged["embed.weight"], mean)
    assert same_bits(merged["embed.weight"][:5], base["embed.weight"][:5])
    # As a matrix too: rows of zeros have no part in any left singular vector.
    spectral = merge(base, tuned, method, work_dtype=F64)["embed.weight"]
    assert close(spectral[:5], base["embed.weight"][:5])
    assert not close(spectral, mean, 1e-3)


@pytest.mark.parametrize("method", ["iso_c", "iso_cts", "tsv"])
def test_a_fused_qkv_is_one_matrix_and_is_not_split(method):
    name, apart = "attn.in_proj_weight", [f"attn.{x}.weight" for x in "qkv"]
    base = {name: draw(12, 4)}
    tuned = [{name: base[name] + 0.1 * draw(12, 4, seed=s)} for s in (1, 2)]
    fused = merge(base, tuned, method, work_dtype=F64).delta[name]
    split = merge(
        dict(zip(apart, base[name].split(4), strict=True)),
        [dict(zip(apart, t[name].split(4), strict=True)) for t in tuned],
        method, work_dtype=F64,
    ).delta  # fmt: skip
    assert not close(fused, torch.cat([split[n] for n in apart]), 1e-3)
    if method != "tsv":
        values = torch.linalg.svdvals(fused)
        assert close(values, values.mean().expand(4))


# -- dtypes ------------------------------------------------------------------------------------


def test_models_of_other_dtypes_than_the_base_are_taken_in_the_work_dtype():
    base, tuned = models(2)
    rounded = {n: t.bfloat16() if t.is_floating_point() else t for n, t in base.items()}
    mixed = [tuned[0], {n: t.float() if t.is_floating_point() else t for n, t in tuned[1].items()}]
    merged = merge(rounded, mixed, "task_arithmetic", alpha=0.5, work_dtype=F64)
    for name in LINEAR:
        start = rounded[name].double()
        exact = start + 0.5 * sum(m[name].double() - start for m in mixed)
        assert merged[name].dtype == torch.bfloat16
        assert same_bits(merged[name], exact.bfloat16())


def test_an_adapter_in_half_precision_is_multiplied_in_the_work_dtype():
    base = {"w.weight": draw(20, 15)}
    factors = {
        "w.lora_A.weight": draw(2, 15, seed=1).half(),
        "w.lora_B.weight": draw(20, 2, seed=2).half(),
    }
    merged = merge(base, [Adapter(factors)], "task_arithmetic", work_dtype=F64)
    a, b = (x.double() for x in factors.values())
    assert close(merged["w.weight"], base["w.weight"] + b @ a, 1e-12)


def test_weights_that_are_strided_in_memory_merge_like_others(tmp_path):
    base, tuned = models(2)
    turned = [{n: t.mT.contiguous().mT if t.ndim == 2 else t for n, t in m.items()} for m in tuned]
    path = save_tensors(tmp_path / "x.safetensors", turned[0])
    for method in ("task_arithmetic", "ties", "iso_c", "breadcrumbs", "dare"):
        plain = merge(base, tuned, method)
        assert all(same_bits(merge(base, turned, method)[n], plain[n]) for n in base)
        assert all(same_bits(merge(base, [path, turned[1]], method)[n], plain[n]) for n in base)


# -- statistics ------------------------------------------------------------------------------------


def one_gram(base, tuned, method, **options):
    """Every model with the same statistics."""
    stats = [Stats.from_means(means_of(base, 1)) for _ in tuned]
    return merge(base, tuned, method, stats=stats, include=LINEAR, work_dtype=F64, **options)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("regmean", {"lam": 1.0}),
        ("regmean", {"lam": 0.3}),
        ("fisher", {}),
        ("mats", {"objective": "regmean", "solver": "closed"}),
        ("mats", {"objective": "kfac", "iterations": 500, "rtol": 1e-13, "init": "zeros"}),
    ],
)
def test_equal_statistics_give_the_average(method, options):
    base, tuned = models(3)
    merged = one_gram(base, tuned, method, **options)
    for name in LINEAR:
        assert close(merged[name], sum(t[name] for t in tuned) / 3, 1e-8)


@pytest.mark.parametrize("method", ["regmean", "fisher", "mats"])
@pytest.mark.filterwarnings("ignore:.*lack statistics")
def test_a_task_with_more_tokens_weighs_no_more(method):
    base, tuned, _ = case()
    alike, more = (
        [Stats.from_means(means_of(base, s), count=c) for s, c in zip((1, 2, 3), n, strict=True)]
        for n in ((1, 1, 1), (1, 1000, 7))
    )
    a = merge(base, tuned, method, stats=alike, work_dtype=F64)
    b = merge(base, tuned, method, stats=more, work_dtype=F64)
    assert all(close(a[n].double(), b[n].double()) for n in base)


def test_half_precision_inputs_whose_products_overflow_are_summed_in_float32():
    net = nn.Linear(4, 3).half()
    x = torch.full((5, 4), 300.0, dtype=torch.float16)
    assert not torch.isfinite(x.mT @ x).all()
    held = collect_stats(net, [x], ("gram",))["weight"]["gram"]
    assert close(held, torch.full((4, 4), 9e4, dtype=held.dtype), 1e-3)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


def test_two_modules_that_share_a_weight_add_up_in_one_place():
    torch.manual_seed(0)
    net, x, y = Tied().double(), draw(5, 4), torch.arange(5) % 4
    stats = collect_stats(net, [(x, y)])
    assert list(stats) == ["a.weight"]
    h = torch.tanh(net.a(x)).detach()
    assert close(stats["a.weight"]["gram"], (x.mT @ x + h.mT @ h) / 10)
    squares = 0
    for k in range(5):
        loss = functional.cross_entropy(net(x[k : k + 1]), y[k : k + 1])
        squares = squares + torch.autograd.grad(loss, net.a.weight)[0] ** 2
    assert close(stats["a.weight"]["diag_fisher"], squares / 5)


@pytest.mark.parametrize("method", ["regmean", "mats"])
@pytest.mark.filterwarnings("ignore:.*lack statistics")
def test_a_negative_gram_is_refused_by_every_method_that_inverts_one(method):
    base, tuned, _ = case()
    means = means_of(base, 1)
    means[UP]["gram"] = gram(6, 3) - 5 * torch.ones(6, 6, dtype=F64) / 6
    means[UP]["gram"].diagonal().clamp_(min=0)
    with pytest.raises(ValueError, match="semi-definite"):
        merge(base, tuned, method, stats=[Stats.from_means(means)] * 3, lam=1.0, include=LINEAR)


# -- inputs --------------------------------------------------------------------------------------


def test_models_that_equal_the_base_are_named():
    base, tuned = models(2)
    with pytest.warns(UserWarning, match=r"french equals the base: it adds nothing"):
        merge(base, {"code": tuned[0], "french": dict(base)}, "task_arithmetic")
    still = Adapter(
        {
            "layers.0.up.lora_A.weight": torch.ones(1, 6),
            "layers.0.up.lora_B.weight": torch.zeros(10, 1),
        }
    )
    with pytest.warns(UserWarning, match=r"model 1 and model 2 equal the base: they add nothing"):
        merge(base, [still, dict(base)], "task_arithmetic")


def test_models_that_differ_in_one_entry_do_not_equal_the_base():
    base, _ = models(1)
    last = {n: t.clone() for n, t in base.items()}
    last["layers.1.square.weight"][-1, -1] += 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        merge(base, [last], "task_arithmetic")
