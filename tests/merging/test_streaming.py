"""Every method, from folders of shards by two processes at once, beside the merge in memory."""

import contextlib
import os
import warnings

import pytest
import torch
from tests.merging.quadratic import means_of

from conformance.merging import models, same_bits
from spanwise.io import ShardedWriter, open_tensors
from spanwise.merging import METHODS, Stats, merge
from spanwise.merging._folder import merge_to_folder
from spanwise.merging._merge import prepare

ALL = [
    *((name, {}) for name in METHODS),
    ("iso_c", {"null": "official"}),
    ("iso_cts", {"common_fraction": 0.2}),
    ("ties", {"trim_scope": "tensor"}),
    ("knots", {"inner": "dare_ties"}),
    ("mats", {"objective": "regmean", "solver": "closed"}),
    ("model_stock", {"filter_wise": True}),
    ("dare_ties", {"rescale": "l1"}),
]


def written(folder, tensors, size):
    with ShardedWriter(folder, size) as out:
        for name, tensor in tensors.items():
            out.add(name, tensor)
    return folder


def inputs(method, root, dtype):
    """A base in one file and models in many, with statistics where the method takes some."""
    base, tuned = models(METHODS[method].most or 3, dtype=dtype)
    paths = [written(root / "base", base, 1e9)]
    paths += [written(root / f"m{i}", t, 90 * i) for i, t in enumerate(tuned, start=1)]
    stats = {}
    if METHODS[method]().kinds():
        held = [Stats.from_means(means_of(base, seed)) for seed, _ in enumerate(tuned, start=1)]
        stats = {"stats": [s.save(root / f"{i}.safetensors") for i, s in enumerate(held)]}
    return base, tuned, paths, stats


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 400])
@pytest.mark.parametrize(("method", "options"), ALL, ids=[f"{m} {o or ''}" for m, o in ALL])
def test_two_processes_and_many_shards_give_the_bits_of_memory(method, options, size, tmp_path):
    dtype = torch.bfloat16 if size == 1 else torch.float32
    base, tuned, paths, stats = inputs(method, tmp_path, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # tensors without statistics are averaged
        expected = merge(base, tuned, method, alpha=0.7, seed=3, **stats, **options)
        job = prepare(paths[0], paths[1:], method, alpha=0.7, seed=3, **stats, **options)
        child = os.fork()
        if not child:
            with contextlib.suppress(BaseException):
                merge_to_folder(job, tmp_path / "out", max_shard_bytes=size)
                os._exit(0)
            os._exit(1)
        merge_to_folder(job, tmp_path / "out", max_shard_bytes=size)
    assert os.waitpid(child, 0)[1] == 0
    found = open_tensors(tmp_path / "out")
    assert set(found) == set(base)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 3
    assert all(same_bits(found[name], expected[name]) for name in base)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
