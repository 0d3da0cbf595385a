"""Merging some rows at a time, in memory that is used again: what no block may change."""

import pytest
import torch

from conformance.merging import models, same_bits
from spanwise.io import save_tensors
from spanwise.merging import merge
from spanwise.merging._merge import prepare
from spanwise.merging._scratch import LENT, Scratch

F64 = torch.float64
ELEMENTWISE = ["linear", "task_arithmetic", "ties", "dare_linear"]
CPU = torch.device("cpu")


@pytest.fixture
def small_blocks(monkeypatch):
    for module in ("_job", "_work", "_methods._order"):
        monkeypatch.setattr(f"spanwise.merging.{module}.BLOCK", 7)


def saved(folder, models):
    """Files, so that blocks are read and not views of what is in memory."""
    return [save_tensors(folder / f"{i}.safetensors", m) for i, m in enumerate(models)]


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_blocks_from_files_give_the_bits_of_whole_tensors(
    method, dtype, tmp_path, monkeypatch, request
):
    base, tuned = models(3, dtype=dtype)
    options = {"weight": [0.3, 1.1, 0.6]}
    whole = dict(merge(base, tuned, method, **options))
    request.getfixturevalue("small_blocks")  # rows of 6 and 10: every block has a tail
    first, *others = saved(tmp_path, (base, *tuned))
    blocks = merge(first, others, method, **options)
    assert all(same_bits(whole[n], blocks[n]) for n in base)


@pytest.mark.parametrize("method", ELEMENTWISE)
@pytest.mark.parametrize("where", [0, 1, 2])
def test_a_number_that_is_not_finite_is_named_in_whichever_block_it_lies(
    method, where, tmp_path, small_blocks
):
    base, tuned = models(2, dtype=torch.bfloat16)
    (base, *tuned)[where]["embed.weight"][11, 5] = float("nan")
    base, *tuned = saved(tmp_path, (base, *tuned))
    named = r"'embed\.weight' of " + ("base", "model 1", "model 2")[where]
    with pytest.raises(ValueError, match=named):
        merge(base, tuned, method)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_without_a_base_it_is_named_too(bad, tmp_path, small_blocks):
    _, tuned = models(3, dtype=torch.bfloat16)
    tuned[2]["embed.weight"][11, 5] = bad
    with pytest.raises(ValueError, match=r"'embed\.weight' of model 3 holds NaN"):
        merge(None, saved(tmp_path, tuned), "linear")


def test_infinities_that_cancel_are_found(small_blocks):
    base, tuned = models(2)
    tuned[0]["embed.weight"][3, 3] = float("inf")
    tuned[1]["embed.weight"][3, 3] = float("-inf")
    with pytest.raises(ValueError, match=r"'embed\.weight' of model 1 holds NaN or infinity"):
        merge(base, tuned, "task_arithmetic")


def test_finite_numbers_whose_sum_overflows_are_no_error():
    base = {"x": torch.zeros(4)}
    tuned = {"x": torch.full((4,), 3e38)}
    assert torch.equal(merge(base, [tuned], "task_arithmetic")["x"], tuned["x"])


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
@pytest.mark.parametrize("based", [True, False])
def test_models_of_several_dtypes_are_summed_in_the_work_dtype(
    method, based, tmp_path, small_blocks
):
    if method == "task_arithmetic" and not based:
        pytest.skip("it needs a base")
    base, tuned = models(3)
    dtypes = (torch.bfloat16, torch.float32, torch.float16, F64)
    held = [
        {n: t.to(d) if t.is_floating_point() else t for n, t in m.items()}
        for m, d in zip((base, *tuned), dtypes, strict=True)
    ]
    weights = [0.5, 0.2, 1.4]
    first, *others = saved(tmp_path, held)
    found = merge(
        first if based else None, others, method, weight=weights, work_dtype=F64, out_dtype=F64
    )
    for name, own in held[0].items():
        if not own.is_floating_point():
            continue
        terms = [w * m[name].double() for w, m in zip(weights, held[1:], strict=True)]
        expected = sum(terms) / sum(weights)
        if method == "task_arithmetic":
            expected = own.double() * (1 - sum(weights)) + sum(terms)
        assert torch.allclose(found[name], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("normalize", [True, False])
def test_an_average_is_the_same_with_a_base_and_without(normalize):
    base, tuned = models(3)
    options = {"weight": [0.5, 0.2, 1.4], "normalize": normalize, "work_dtype": F64}
    alone, beside = (merge(b, tuned, "linear", **options) for b in (None, base))
    assert all(torch.allclose(alone[n], beside[n], atol=1e-14, rtol=0) for n in base)


def test_a_block_of_the_base_is_read_once(tmp_path, monkeypatch):
    base, tuned = models(2, dtype=torch.bfloat16)
    first, *others = saved(tmp_path, (base, *tuned))
    monkeypatch.setattr("spanwise.merging._job.BLOCK", 7)
    job = prepare(first, others, "task_arithmetic")
    reads = []
    rows = job.inputs.base.tensors.rows
    monkeypatch.setattr(
        job.inputs.base.tensors, "rows", lambda *args: reads.append(args[:3]) or rows(*args)
    )
    job.tensor("embed.weight")
    assert reads == [("embed.weight", i, i + 1) for i in range(12)]


def test_lent_memory_is_the_same_each_time_and_each_purpose_has_its_own():
    scratch = Scratch()
    a = scratch("update", (3, 4), torch.float32, CPU)
    b = scratch("update", (5,), F64, CPU)
    c = scratch("base", (5,), F64, CPU)
    assert a.data_ptr() == b.data_ptr() != c.data_ptr()
    assert (a.shape, b.dtype) == ((3, 4), F64)


def test_what_is_larger_than_a_cache_is_not_kept():
    scratch = Scratch()
    shape = (LENT // 4 + 1,)
    a, b = (scratch("update", shape, torch.float32, CPU) for _ in range(2))
    assert a.data_ptr() != b.data_ptr()
