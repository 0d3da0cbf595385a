"""TIES."""

import pytest
import torch
from tests.conformance.merging import MergeSuite, models, same_bits

from spanwise.merging import merge
from spanwise.merging._methods import _order


class TestTies(MergeSuite):
    method = "ties"


class TestTiesByTensor(MergeSuite):
    method = "ties"
    options = {"trim_scope": "tensor"}  # noqa: RUF012


class TestTiesLikeMergekit(MergeSuite):
    method = "ties"
    options = {  # noqa: RUF012
        "trim_scope": "tensor", "keep": "count", "undecided": "plus", "density": 0.5,
    }  # fmt: skip


def deltas(base, tuned):
    names = [n for n in base if base[n].is_floating_point()]
    return names, {n: torch.stack([t[n].double() - base[n].double() for t in tuned]) for n in names}


def elect(trimmed, weights, tie, *, average=True):
    """The naive merge of trimmed updates `(T, ...)`."""
    x = trimmed * weights.view(-1, *[1] * (trimmed.ndim - 1))
    sign = x.sum(0).sign()
    sign[sign == 0] = tie
    agrees = (x.sign() == sign) & (x != 0)
    mass = (agrees * weights.view(-1, *[1] * (trimmed.ndim - 1))).sum(0)
    mass[mass == 0] = 1
    total = (x * agrees).sum(0)
    return total / mass if average else total


def naive(base, tuned, density, weights=None, *, average=True):
    """As the authors do it: on flat models."""
    names, found = deltas(base, tuned)
    flat = torch.cat([found[n].reshape(len(tuned), -1) for n in names], 1)
    weights = torch.ones(len(tuned), dtype=torch.float64) if weights is None else weights
    d = flat.shape[1]
    for row in flat:
        k = d - int(d * density)
        if k:
            row[row.abs() < row.abs().kthvalue(k).values] = 0
    total = (flat * weights[:, None]).sum(0).sign().sum()
    merged = elect(flat, weights, 1.0 if total > 0 else -1.0, average=average)
    parts = merged.split([base[n].numel() for n in names])
    return {n: p.view(base[n].shape) for n, p in zip(names, parts, strict=True)}


def quantised(count, step=0.05):
    """Fine-tunes whose updates are multiples of `step`, exactly."""
    base, tuned = models(count)
    for name in base:
        if base[name].is_floating_point():
            base[name] = (base[name] / step).round()
            for t in tuned:
                t[name] = base[name] + (10 * (t[name] - base[name] * step)).round()
    return base, tuned


def close(merged, expected):
    return all(torch.allclose(merged.delta[n], expected[n], atol=1e-10, rtol=0) for n in expected)


@pytest.mark.parametrize("density", [0.05, 0.2, 0.9, 1.0])
@pytest.mark.parametrize("make", [models, quantised], ids=["distinct", "with ties"])
def test_it_is_the_authors_formula_on_flat_models(density, make):
    base, tuned = make(4)
    merged = merge(base, tuned, "ties", density=density, work_dtype=torch.float64)
    assert close(merged, naive(base, tuned, density))


@pytest.mark.parametrize("normalize", [True, False])
def test_weights_elect_and_average(normalize):
    base, tuned = models(4)
    weights = [0.3, 1.2, 0.0, 0.9]
    merged = merge(
        base, tuned, "ties", weight=weights, normalize=normalize, work_dtype=torch.float64
    )
    expected = naive(
        base, tuned, 0.2, torch.tensor(weights, dtype=torch.float64), average=normalize
    )
    assert close(merged, expected)


def test_a_negative_weight_turns_an_update_round():
    base, tuned = models(3)
    weights = [1.0, -0.5, 2.0]
    merged = merge(base, tuned, "ties", weight=weights, density=0.6, work_dtype=torch.float64)
    assert close(merged, naive(base, tuned, 0.6, torch.tensor(weights, dtype=torch.float64)))


@pytest.mark.parametrize("density", [0.3, 1.0])
def test_by_tensor_with_a_count_it_is_mergekit_s_formula(density):
    base, tuned = models(3)
    names, found = deltas(base, tuned)
    merged = merge(
        base, tuned, "ties", density=density, weight=[1.0, 0.5, 2.0], trim_scope="tensor",
        keep="count", undecided="plus", work_dtype=torch.float64,
    )  # fmt: skip
    for name in names:
        flat = found[name].reshape(len(tuned), -1)
        for row in flat:
            count = max(1, int(density * len(row)))
            row[row.abs().argsort(descending=True)[count:]] = 0
        expected = elect(flat, torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64), 1.0)
        assert torch.allclose(merged.delta[name].flatten(), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_small_blocks_and_a_guess_give_the_same_bits(scope, monkeypatch):
    base, tuned = quantised(3)
    run = lambda: merge(base, tuned, "ties", trim_scope=scope)  # noqa: E731
    whole = run()
    for module in ("_job", "_work", "_methods._order"):
        monkeypatch.setattr(f"spanwise.merging.{module}.BLOCK", 7)
    monkeypatch.setattr(_order, "_SAMPLE", 4)
    monkeypatch.setattr(_order, "_FEWEST", 5)
    blocks = run()
    assert all(same_bits(whole[n], blocks[n]) for n in base)


def test_a_count_keeps_as_many_in_small_blocks(monkeypatch):
    base, tuned = quantised(1)
    monkeypatch.setattr("spanwise.merging._work.BLOCK", 7)
    for name, tensor in tuned[0].items():
        if tensor.is_floating_point():
            tensor.sub_(base[name]).abs_().clamp_(min=0.5).add_(base[name])  # no zeros
    merged = merge(base, tuned, "ties", trim_scope="tensor", keep="count", density=0.4)
    for name, update in merged.delta.items():
        assert int(update.count_nonzero()) == max(1, int(0.4 * base[name].numel()))


def test_the_threshold_keeps_one_more_than_the_share():
    base, tuned = models(1)
    merged = merge(base, tuned, "ties", density=0.25, work_dtype=torch.float64)
    total = sum(u.numel() for u in merged.delta.values())
    assert sum(int(u.count_nonzero()) for u in merged.delta.values()) == int(0.25 * total) + 1


def test_the_scopes_trim_different_entries():
    base, tuned = models(1)
    tuned[0]["scale"] = base["scale"] + 1e-6
    by_model = merge(base, tuned, "ties", work_dtype=torch.float64)
    by_tensor = merge(base, tuned, "ties", trim_scope="tensor", work_dtype=torch.float64)
    assert by_model.delta["scale"] == 0
    assert by_tensor.delta["scale"] != 0


def test_without_trimming_one_model_comes_back():
    base, tuned = models(1)
    merged = merge(base, tuned, "ties", density=1.0, work_dtype=torch.float64)
    assert all(torch.allclose(merged[n], tuned[0][n], atol=1e-15, rtol=0) for n in base)


def test_without_trimming_or_conflict_it_is_the_mean_of_those_that_changed():
    base, tuned = models(3)
    g = torch.Generator().manual_seed(5)
    for name in base:
        if base[name].is_floating_point():
            for t in tuned:
                t[name] = base[name] + torch.rand(base[name].shape, generator=g).double()
    tuned[2]["embed.weight"] = base["embed.weight"].clone()  # zeros agree with no sign
    merged = merge(base, tuned, "ties", density=1.0, work_dtype=torch.float64)
    for name, update in merged.delta.items():
        voters = tuned[:2] if name == "embed.weight" else tuned
        mean = torch.stack([t[name] - base[name] for t in voters]).mean(0)
        assert torch.allclose(update, mean, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("undecided", "sign"), [("majority", -1.0), ("plus", 1.0)])
@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_entries_that_cancel_take_the_sign_of_the_majority_or_plus(undecided, sign, scope):
    base = {"w": torch.zeros(2, 3)}
    first = {"w": torch.tensor([[1.0, -2.0, -1.0], [0.0, 3.0, -1.0]])}
    second = {"w": torch.tensor([[-1.0, 0.0, -1.0], [0.0, 3.0, -5.0]])}
    merged = merge(
        base, [first, second], "ties", density=1.0, undecided=undecided, trim_scope=scope
    )
    expected = torch.tensor([[sign, -2.0, -1.0], [0.0, 3.0, -3.0]])
    assert torch.equal(merged["w"], expected)


def test_bfloat16_updates_are_taken_in_float32():
    base, tuned = models(3, dtype=torch.bfloat16)
    half = merge(base, tuned, "ties", work_dtype=torch.float64)
    wide = [{n: t.double() if t.is_floating_point() else t for n, t in d.items()}
            for d in (base, *tuned)]  # fmt: skip
    full = merge(wide[0], wide[1:], "ties", work_dtype=torch.float64)
    assert all(torch.equal(half.delta[n], full.delta[n]) for n in full.delta)


def test_each_model_has_its_own_density():
    base, tuned = models(2)
    merged = merge(base, tuned, "ties", density=[1.0, 0.01], weight=[1, 0])
    whole = merge(base, tuned[:1], "ties", density=1.0)
    assert all(torch.equal(merged[n], whole[n]) for n in base)


def test_an_empty_tensor_stays_empty():
    base, tuned = models(2)
    for held in (base, *tuned):
        held["none"] = torch.empty(0, 4)
    for scope in ("model", "tensor"):
        assert merge(base, tuned, "ties", trim_scope=scope)["none"].shape == (0, 4)


@pytest.mark.parametrize("density", [0, -0.1, 1.5])
def test_a_density_outside_is_refused(density):
    base, tuned = models(2)
    with pytest.raises(ValueError, match=r"density must be in \(0, 1\]"):
        merge(base, tuned, "ties", density=density)


def test_densities_by_tensor_do_not_fit_a_model_wide_threshold():
    base, tuned = models(2)
    by_name = [[{"filter": "embed", "value": 0.5}, {"value": 0.1}]] * 2
    with pytest.raises(ValueError, match=r'density differs .*use trim_scope="tensor"'):
        merge(base, tuned, "ties", density=by_name)
    merge(base, tuned, "ties", density=by_name, trim_scope="tensor")


def test_a_filter_that_fits_no_name_is_named():
    base, tuned = models(2)
    by_name = [[{"filter": "embed", "value": 0.5}]] * 2
    with pytest.raises(ValueError, match="no filter of density fits"):
        merge(base, tuned, "ties", density=by_name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trim_scope": "row"}, "trim_scope must be one of 'model', 'tensor', got 'row'"),
        ({"keep": "all"}, "keep must be one of"),
        ({"undecided": "minus"}, "undecided must be one of"),
        ({"keep": "count"}, 'use it with trim_scope="tensor"'),
    ],
)
@pytest.mark.bad_input
def test_unknown_choices_are_refused(options, message):
    base, tuned = models(2)
    with pytest.raises(ValueError, match=message):
        merge(base, tuned, "ties", **options)


def test_weights_that_cancel_cannot_be_normalised():
    base, tuned = models(2)
    with pytest.raises(ValueError, match="turn normalize off"):
        merge(base, tuned, "ties", weight=[1, -1])


def test_a_base_is_needed():
    _, tuned = models(2)
    with pytest.raises(ValueError, match="ties merges what training added to a base"):
        merge(None, tuned, "ties")
