"""DARE: dropping at random."""

import pytest
import torch
from tests.conformance.merging import MergeSuite, models, same_bits

from spanwise.merging import merge


class TestDare(MergeSuite):
    method = "dare"
    options = {"density": 0.5}  # noqa: RUF012
    permutes = False


class TestDareLinear(MergeSuite):
    method = "dare_linear"
    options = {"density": 0.5, "rescale": "l1"}  # noqa: RUF012
    permutes = False


class TestDareTies(MergeSuite):
    method = "dare_ties"
    options = {"density": 0.5}  # noqa: RUF012
    permutes = False


def masks(base, tuned, density, **more):
    """What each model keeps, seen one model at a time."""
    named = {f"model {i}": t for i, t in enumerate(tuned, 1)}
    return [
        {
            n: u != 0
            for n, u in merge(
                base, {label: t}, "dare", density=density, rescale=False, **more
            ).delta.items()
        }
        for label, t in named.items()
    ]


@pytest.mark.slow
def test_the_mean_over_seeds_is_the_update():
    base = {"w": torch.zeros(4, 5, dtype=torch.float64)}
    tuned = {"w": torch.linspace(-2, 3, 20, dtype=torch.float64).view(4, 5)}
    density, seeds = 0.3, 2000
    total = torch.zeros(4, 5, dtype=torch.float64)
    for seed in range(seeds):
        merged = merge(base, [tuned], "dare", density=density, seed=seed, work_dtype=torch.float64)
        total += merged["w"]
    sigma = tuned["w"].abs() * ((1 - density) / density / seeds) ** 0.5
    assert ((total / seeds - tuned["w"]).abs() <= 4 * sigma).all()


def test_what_is_kept_is_divided_by_the_density():
    base, tuned = models(1)
    merged = merge(base, tuned, "dare", density=0.25, work_dtype=torch.float64)
    (kept,) = masks(base, tuned, 0.25)
    for name, update in merged.delta.items():
        expected = 4 * (tuned[0][name] - base[name]) * kept[name]
        assert torch.allclose(update, expected, atol=1e-10, rtol=0)


def test_l1_restores_each_tensor_s_sum_of_magnitudes():
    base, tuned = models(1)
    merged = merge(base, tuned, "dare", density=0.5, rescale="l1", work_dtype=torch.float64)
    for name, update in merged.delta.items():
        if update.any():
            before = (tuned[0][name] - base[name]).abs().sum()
            assert float(update.abs().sum()) == pytest.approx(float(before), rel=1e-12)


@pytest.mark.parametrize("normalize", [True, False])
def test_linear_sums_and_ties_elects_among_what_is_kept(normalize):
    base, tuned = models(3)
    weight = [1.0, 0.5, 2.0]
    kept = masks(base, tuned, 0.6)
    options = dict(density=0.6, rescale=False, weight=weight, normalize=normalize)
    linear = merge(base, tuned, "dare_linear", work_dtype=torch.float64, **options)
    elected = merge(base, tuned, "dare_ties", work_dtype=torch.float64, **options)
    for name in linear.delta:
        x = torch.stack(
            [w * (t[name] - base[name]) * k[name]
             for w, t, k in zip(weight, tuned, kept, strict=True)]
        )  # fmt: skip
        w = torch.tensor(weight, dtype=torch.float64).view(-1, *[1] * (x.ndim - 1))
        by = 3.5 if normalize else 1.0
        assert torch.allclose(linear.delta[name], x.sum(0) / by, atol=1e-10, rtol=0)
        agree = (x.sign() == torch.where(x.sum(0) >= 0, 1.0, -1.0)) & (x != 0)
        mass = (w * agree).sum(0) if normalize else torch.ones(())
        expected = (x * agree).sum(0) / torch.where(mass == 0, 1.0, mass)
        assert torch.allclose(elected.delta[name], expected, atol=1e-10, rtol=0)


def test_without_dropping_it_is_task_arithmetic():
    base, tuned = models(3)
    dare = merge(base, tuned, "dare", density=1.0)
    sums = merge(base, tuned, "task_arithmetic")
    assert all(same_bits(dare[n], sums[n]) for n in base)


def test_masks_depend_on_seed_model_and_tensor():
    base = {"a": torch.zeros(50, 40), "b": torch.zeros(50, 40)}
    tuned = [{n: torch.ones(50, 40) for n in base}] * 2
    one, two = masks(base, tuned, 0.5)
    (other,) = masks(base, tuned[:1], 0.5, seed=1)
    for x, y in [(one["a"], two["a"]), (one["a"], one["b"]), (one["a"], other["a"])]:
        assert abs(float((x == y).float().mean()) - 0.5) < 0.05


@pytest.mark.parametrize("method", ["dare", "dare_ties"])
@pytest.mark.parametrize("rescale", ["expectation", "l1"])
def test_rows_in_blocks_draw_the_same_masks(method, rescale, monkeypatch):
    base, tuned = models(3)
    monkeypatch.setattr("spanwise.merging._methods._draws.STRETCH", 10)
    options = dict(density=0.5, rescale=rescale, work_dtype=torch.float64)
    whole = merge(base, tuned, method, **options)
    for module in ("_job", "_work"):
        monkeypatch.setattr(f"spanwise.merging.{module}.BLOCK", 7)
    blocks = merge(base, tuned, method, **options)
    for name in whole.delta:  # sums of magnitudes are added up in another order
        assert torch.allclose(whole.delta[name], blocks.delta[name], atol=1e-14, rtol=1e-14)


def test_the_order_of_models_moves_no_mask():
    base, tuned = models(2)
    there = merge(base, {"x": tuned[0], "y": tuned[1]}, "dare", density=0.5)
    back = merge(base, {"y": tuned[1], "x": tuned[0]}, "dare", density=0.5)
    assert all(torch.allclose(there[n].double(), back[n].double(), atol=1e-5) for n in base)


@pytest.mark.parametrize("density", [0, 0.0, 1.1])
def test_dropping_everything_is_refused(density):
    base, tuned = models(1)
    with pytest.raises(ValueError, match=r"density must be in \(0, 1\]"):
        merge(base, tuned, "dare", density=density)


@pytest.mark.parametrize("rescale", [True, 0, "l2"])
@pytest.mark.bad_input
def test_another_rescaling_is_refused(rescale):
    base, tuned = models(1)
    with pytest.raises(ValueError, match="rescale must be one of 'expectation', 'l1', False"):
        merge(base, tuned, "dare", rescale=rescale)
