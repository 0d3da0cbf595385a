"""KnOTS: coordinates in the basis of all updates, and what merges them."""

import pytest
import torch

from conformance.merging import MergeSuite, models, same_bits
from spanwise.lora import Adapter
from spanwise.merging import merge
from spanwise.merging._methods import _shared as module

F64 = torch.float64


class TestKnotsTies(MergeSuite):
    method = "knots"


class TestKnotsMean(MergeSuite):
    method = "knots"
    options = {"inner": "mean"}  # noqa: RUF012


class TestKnotsDareTies(MergeSuite):
    method = "knots"
    options = {"inner": "dare_ties"}  # noqa: RUF012
    permutes = False


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def layers(tasks=3, seed=0, size=1.0):
    base = {"a.weight": draw(9, 7), "b.weight": draw(6, 20), "c.weight": draw(30, 4)}
    tuned = [
        {
            n: t + size * draw(*t.shape, seed=seed + 10 * i + j)
            for j, (n, t) in enumerate(base.items())
        }
        for i in range(1, tasks + 1)
    ]
    return base, tuned


def naive(base, tuned, density):
    """TIES on the coordinates of all layers together, K-th smallest magnitude and all."""
    bases, parts = {}, [[] for _ in tuned]
    for name, theta in base.items():
        stacked = torch.cat([t[name] - theta for t in tuned], dim=1)
        u, s, vh = torch.linalg.svd(stacked, full_matrices=False)
        kept = s > 1e-5
        bases[name] = u[:, kept]
        for i, q in enumerate((s[kept, None] * vh[kept]).split(theta.shape[1], dim=1)):
            parts[i].append(q.flatten())
    flat = torch.stack([torch.cat(p) for p in parts])
    d = flat.shape[1]
    k = d - int(d * density)
    cut = flat.abs().kthvalue(k, dim=1, keepdim=True).values if k else 0
    flat = flat * (flat.abs() >= cut)
    sign = flat.sum(0).sign()
    sign[sign == 0] = sign.sum().sign()
    agree = torch.where(sign > 0, flat > 0, flat < 0)
    mixed = (flat * agree).sum(0) / agree.sum(0).clamp(min=1)
    found, start = {}, 0
    for name, theta in base.items():
        size = bases[name].shape[1] * theta.shape[1]
        q = mixed[start : start + size].view(-1, theta.shape[1])
        found[name], start = bases[name] @ q, start + size
    return found


def far(a, b):
    return float((a - b).abs().max())


@pytest.mark.parametrize("density", [0.1, 0.2, 0.5, 1.0])
def test_ties_ranks_the_coordinates_of_all_layers_together(density):
    base, tuned = layers()
    found = merge(base, tuned, "knots", density=density, work_dtype=F64).delta
    expected = naive(base, tuned, density)
    assert all(far(found[n], expected[n]) < 1e-10 for n in base)


def test_a_mean_is_not_changed_by_a_change_of_basis():
    base, tuned = models(4)
    there = merge(base, tuned, "knots", inner="mean", work_dtype=F64)
    mean = merge(base, tuned, "task_arithmetic", alpha=0.25, work_dtype=F64)
    assert all(far(there[n].double(), mean[n].double()) < 1e-12 for n in base)


def test_weights_count_in_coordinates_as_they_do_outside():
    base, tuned = layers()
    weights = [0.5, 1.0, 2.0]
    there = merge(base, tuned, "knots", inner="mean", weight=weights, work_dtype=F64)
    mean = merge(base, tuned, "task_arithmetic", weight=weights, normalize=True, work_dtype=F64)
    assert all(far(there[n], mean[n]) < 1e-12 for n in base)


@pytest.mark.slow
def test_dare_keeps_the_mean_over_draws():
    base, tuned = layers(tasks=1, size=1.0)
    name = "a.weight"
    draws = [
        merge(base, tuned, "knots", inner="dare_ties", density=0.5, seed=s, work_dtype=F64).delta[
            name
        ]
        for s in range(400)
    ]
    delta = tuned[0][name] - base[name]
    sample = torch.stack(draws)
    error = (sample.mean(0) - delta) / (sample.std(0) / 20 + 1e-12)
    assert float(error.abs().max()) < 4.5  # 63 entries, 400 draws


def test_a_basis_from_gram_matrices_is_that_of_the_svd(monkeypatch):
    base, tuned = layers()
    there = merge(base, tuned, "knots", work_dtype=F64).delta
    monkeypatch.setattr(module, "_leading", lambda gram, work: None)
    back = merge(base, tuned, "knots", work_dtype=F64).delta
    assert all(far(there[n], back[n]) < 1e-10 for n in base)


def counted(monkeypatch):
    """Names of the matrices that are decomposed, as often as they are."""
    seen, decompose = [], module.decompose

    def noted(work):
        seen.append(work.name)
        return decompose(work)

    monkeypatch.setattr(module, "decompose", noted)
    return seen


def test_every_matrix_is_decomposed_once(monkeypatch):
    base, tuned = layers()
    seen = counted(monkeypatch)
    merge(base, tuned, "knots")
    assert sorted(seen) == sorted(base)
    seen.clear()
    merge(base, tuned, "knots", inner="mean")
    assert seen == []


def test_what_memory_cannot_hold_is_decomposed_anew_with_the_same_bits(monkeypatch):
    base, tuned = layers()
    there = merge(base, tuned, "knots")
    seen = counted(monkeypatch)
    monkeypatch.setattr(module, "HELD", 100)
    back = merge(base, tuned, "knots")
    assert len(seen) > len(base)
    assert all(same_bits(there[n], back[n]) for n in base)


def test_a_tall_matrix_is_lifted_some_rows_at_a_time(monkeypatch):
    base, tuned = layers()
    there = merge(base, tuned, "knots", work_dtype=F64)
    monkeypatch.setattr("spanwise.merging._work.BLOCK", 20)
    back = merge(base, tuned, "knots", work_dtype=F64)
    assert all(far(there[n], back[n]) < 1e-13 for n in base)


def test_directions_are_told_from_rounding_at_any_scale_of_the_updates():
    base = {"a.weight": torch.zeros(9, 7, dtype=F64)}
    tuned = [{"a.weight": 1e-9 * draw(9, 7, seed=t)} for t in range(3)]
    found = merge(base, tuned, "knots", inner="mean", work_dtype=F64).delta["a.weight"]
    mean = sum(t["a.weight"] for t in tuned) / 3
    assert far(found, mean) < 1e-20  # where s > 1e-5 would leave nothing


def test_adapters_are_merged_by_their_factors():
    base = {"w.weight": draw(20, 15), "v.weight": draw(8, 15)}
    low = [
        Adapter(
            {
                "w.lora_A.weight": draw(2, 15, seed=2 * t),
                "w.lora_B.weight": draw(20, 2, seed=2 * t + 1),
            }
        )
        for t in range(3)
    ]
    dense = [{**base, "w.weight": base["w.weight"] + a.update("w.weight", F64)} for a in low]
    for options in ({"inner": "mean"}, {"inner": "ties"}, {"inner": "ties", "density": 1.0}):
        found = merge(base, low, "knots", work_dtype=F64, **options)
        expected = merge(base, dense, "knots", work_dtype=F64, **options)
        assert far(found["w.weight"], expected["w.weight"]) < 1e-9
        assert same_bits(found["v.weight"], base["v.weight"])


def test_what_is_no_matrix_is_averaged():
    base, tuned = models(3)
    found = merge(base, tuned, "knots", work_dtype=F64, exclude=("embed",)).delta
    for name in ("embed.weight", "layers.0.up.bias", "conv.weight"):
        assert far(found[name], sum(t[name] - base[name] for t in tuned) / 3) < 1e-12


def test_parameters_out_of_range_are_refused():
    base, tuned = models(2)
    with pytest.raises(ValueError, match="a mean keeps everything"):
        merge(base, tuned, "knots", inner="mean", density=0.5)
    with pytest.raises(ValueError, match=r"density must be in \(0, 1\]"):
        merge(base, tuned, "knots", density=0.0)


@pytest.mark.bad_input
def test_an_unknown_inner_method_is_named():
    base, tuned = models(2)
    with pytest.raises(ValueError, match="inner must be one of mean, ties, dare_ties"):
        merge(base, tuned, "knots", inner="slerp")
