"""Order statistics of models that are not held: exact, whatever the guess."""

import numpy as np
import pytest
import torch

from spanwise.merging._merge import prepare
from spanwise.merging._methods import _order
from spanwise.merging._methods._order import Top, ascending, cuts, largest, magnitudes


def works_of(updates, monkeypatch, *, block=1000):
    """Two models' tensors, cut into blocks of so many elements."""
    monkeypatch.setattr("spanwise.merging._work.BLOCK", block)
    monkeypatch.setattr("spanwise.merging._methods._order.BLOCK", block)
    base = {name: torch.zeros_like(u) for name, u in updates[0].items()}
    job = prepare(base, updates, "task_arithmetic", work_dtype=updates[0]["a"].dtype)
    return [job.work(name) for name in base]


def draw(dtype, *, step=None):
    g = torch.Generator().manual_seed(3)
    shapes = {"a": (300, 11), "b": (40, 7, 3), "c": (2500,), "d": ()}
    scales = {"a": 1.0, "b": 30.0, "c": 1e-3, "d": 1.0}

    def one(name):
        x = torch.randn(shapes[name], generator=g, dtype=torch.float64) * scales[name]
        return (x if step is None else (x / step).round() * step).to(dtype)

    return [{name: one(name) for name in shapes} for _ in range(2)]


def by_sorting(updates, works, index, count):
    flat = torch.cat([updates[index][w.name].abs().flatten() for w in works])
    value = float(flat.sort(descending=True).values[count - 1])
    return value, int((flat > value).sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("step", [None, 0.5])
@pytest.mark.parametrize("fewest", [1, 10**9], ids=["guessed", "blind"])
def test_a_cut_is_the_one_that_sorting_finds(dtype, step, fewest, monkeypatch):
    updates = draw(dtype, step=step)
    monkeypatch.setattr(_order, "_SAMPLE", 20)
    monkeypatch.setattr(_order, "_FEWEST", fewest)
    works = works_of(updates, monkeypatch)
    total = sum(u.numel() for u in updates[0].values())
    wanted = [(i, k) for k in (1, 7, total // 5, total // 2, total) for i in (0, 1)]
    for (index, count), cut in zip(wanted, cuts(works, wanted), strict=True):
        assert (cut.value, cut.above) == by_sorting(updates, works, index, count)
        assert cut.count == count


@pytest.mark.parametrize("where", [0.0, 1e-6, 50.0])
def test_a_wrong_guess_costs_a_pass_and_no_exactness(where, monkeypatch):
    updates = draw(torch.float32)
    works = works_of(updates, monkeypatch)
    wrong = magnitudes(torch.full((5000,), where))
    monkeypatch.setattr(_order, "_samples", lambda works, indices: [wrong for _ in indices])
    (cut,) = cuts(works, [(1, 900)])
    assert (cut.value, cut.above) == by_sorting(updates, works, 1, 900)


def test_a_tensor_in_one_part_is_cut_at_once(monkeypatch):
    updates = draw(torch.float32)
    works = works_of(updates, monkeypatch, block=10**6)[:1]
    for count in (1, 33, 3300):
        (cut,) = cuts(works, [(0, count)])
        assert (cut.value, cut.above) == by_sorting(updates, works, 0, count)


@pytest.mark.parametrize("exact", [False, True])
def test_what_is_kept_are_the_largest_and_of_equal_ones_the_first(exact, monkeypatch):
    updates = draw(torch.float64, step=0.5)
    (work, *_) = works_of(updates, monkeypatch, block=110)
    x = updates[0]["a"]
    (cut,) = cuts([work], [(0, 500)])
    top = Top(cut, exact=exact)
    kept = torch.cat([top(part, part.update(0)) for part in work.parts()])
    order = x.abs().flatten().sort(descending=True, stable=True)
    expected = torch.zeros_like(x).flatten()
    many = 500 if exact else int((order.values >= order.values[499]).sum())
    expected[order.indices[:many]] = x.flatten()[order.indices[:many]]
    assert torch.equal(kept.flatten(), expected)


@pytest.mark.parametrize("count", [0, 1, 3, 8, 9])
def test_the_largest_of_each_row(count):
    rows = np.random.default_rng(0).integers(0, 4, (50, 8)).astype(np.uint32)
    expected = np.zeros(rows.shape, bool)
    order = np.argsort(-rows.astype(np.int64), axis=1, kind="stable")
    np.put_along_axis(expected, order[:, :count], True, axis=1)
    assert np.array_equal(largest(rows, count), expected)


@pytest.mark.parametrize("kind", [np.uint32, np.uint64])
def test_ascending_is_a_stable_argsort(kind):
    rows = np.random.default_rng(1).integers(0, 5, (20, 30)).astype(kind)
    rows[0, :3] = np.iinfo(np.int32).max
    assert np.array_equal(ascending(rows), np.argsort(rows, axis=1, kind="stable"))
