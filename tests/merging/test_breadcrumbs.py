"""Model Breadcrumbs."""

import pytest
import torch
from tests.conformance.merging import MergeSuite, models

from spanwise.merging import merge


class TestBreadcrumbs(MergeSuite):
    method = "breadcrumbs"
    options = {"density": 0.5, "gamma": 0.2}  # noqa: RUF012


class TestBreadcrumbsTies(MergeSuite):
    method = "breadcrumbs_ties"
    options = {"density": 0.5, "gamma": 0.2, "scope": "tensor"}  # noqa: RUF012


def crumbs(rows, density, gamma):
    """The naive form, on `(rows, n)`."""
    n = rows.shape[1]
    top, kept = int(n * gamma), int(n * density)
    order = rows.abs().sort(dim=1, descending=True, stable=True).indices[:, top : top + kept]
    return torch.zeros_like(rows).scatter(1, order, rows.gather(1, order))


def rounded(base, tuned, step):
    """Updates with many ties."""
    if step:
        for t in tuned:
            for name, tensor in t.items():
                if tensor.is_floating_point():
                    t[name] = base[name] + ((tensor - base[name]) / step).round() * step
    return base, tuned


@pytest.mark.parametrize("step", [None, 2**-4])
@pytest.mark.parametrize(("density", "gamma"), [(0.5, 0.2), (0.3, 0.0), (0.7, 0.3), (1.0, 0.0)])
@pytest.mark.parametrize("scope", ["row", "tensor"])
@pytest.mark.parametrize("block", [2**20, 12])
def test_it_is_the_naive_form(step, density, gamma, scope, block, monkeypatch):
    base, tuned = rounded(*models(2, size=0.3), step)
    for module in ("_job", "_work"):
        monkeypatch.setattr(f"spanwise.merging.{module}.BLOCK", block)
    merged = merge(
        base, tuned, "breadcrumbs", density=density, gamma=gamma, scope=scope, weight=[1.0, 0.5],
        work_dtype=torch.float64,
    )  # fmt: skip
    for name, update in merged.delta.items():
        expected = torch.zeros_like(update)
        for t, weight in zip(tuned, (1.0, 0.5), strict=True):
            x = t[name] - base[name]
            flat = x.dim() < 2 or scope == "tensor"
            rows = x.reshape(1, -1) if flat else x.reshape(len(x), -1)
            expected += weight * crumbs(rows, density, gamma).view_as(x)
        assert torch.allclose(update, expected, atol=1e-10, rtol=0)


def test_ties_elects_among_what_is_left():
    base, tuned = models(3)
    options = dict(density=0.6, gamma=0.1, work_dtype=torch.float64)
    kept = [merge(base, [t], "breadcrumbs", **options).delta for t in tuned]
    for normalize in (True, False):
        merged = merge(base, tuned, "breadcrumbs_ties", normalize=normalize, **options)
        for name, update in merged.delta.items():
            x = torch.stack([k[name] for k in kept])
            agree = (x.sign() == torch.where(x.sum(0) >= 0, 1.0, -1.0)) & (x != 0)
            by = agree.sum(0).clamp(min=1) if normalize else 1
            assert torch.allclose(update, (x * agree).sum(0) / by, atol=1e-10, rtol=0)


def test_a_gamma_of_less_than_an_entry_drops_none():
    base, tuned = models(1)
    merged = merge(base, tuned, "breadcrumbs", density=0.5, gamma=0.01, scope="tensor")
    assert int(merged.delta["embed.weight"].count_nonzero()) == 36


@pytest.mark.parametrize(("density", "gamma"), [(0.95, 0.1), (0.5, -0.1), (0.1, 1.0)])
def test_shares_that_do_not_add_up_are_refused(density, gamma):
    base, tuned = models(1)
    with pytest.raises(ValueError, match=r"density \+ gamma at most 1"):
        merge(base, tuned, "breadcrumbs", density=density, gamma=gamma)


def test_shares_are_compared_model_by_model():
    base, tuned = models(2)
    merge(base, tuned, "breadcrumbs", density=[0.9, 0.4], gamma=[0.1, 0.5])


@pytest.mark.bad_input
def test_another_scope_is_refused():
    base, tuned = models(1)
    with pytest.raises(ValueError, match="scope must be one of 'row', 'tensor'"):
        merge(base, tuned, "breadcrumbs", scope="model")
