"""Statistics in several passes: the same numbers, in a file, under a ceiling."""

import shutil
import weakref

import pytest
import torch
from tests.merging.test_collect import Tagger, model, tokens

from conformance.merging import same_bits
from spanwise.atlas._moments import Moments
from spanwise.merging import Stats, collect_stats, collect_stats_to_file, plan_stats
from spanwise.merging._chosen import Chosen


def equal(a, b):
    assert set(a) == set(b)
    for name in a:
        assert a[name].entry == b[name].entry
        assert all(same_bits(a[name][kind], b[name][kind]) for kind in a[name])
    return a.options == b.options


def in_one_pass(net, data, path, *args, **options):
    return Stats.load(collect_stats(net, data, *args, **options).save(path))


@pytest.mark.parametrize("others", [True, False])
@pytest.mark.parametrize("fisher", ["empirical", "true"])
def test_passes_give_the_bits_of_one(tmp_path, others, fisher):
    net, data = model(), [tokens(3, 4, seed=s) for s in range(3)]
    options = {"others": others, "fisher": fisher, "max_examples": 8}
    whole = in_one_pass(net, data, tmp_path / "one.safetensors", **options)
    passes = []
    parts = collect_stats_to_file(
        net, data, tmp_path / "many.safetensors", memory=1,
        watch=lambda *at: passes.append(at), **options,
    )  # fmt: skip
    assert equal(whole, parts)
    assert passes[-1] == (8 if others else 3, 8 if others else 3, 8)
    assert parts.skipped == whole.skipped
    assert sorted(p.name for p in tmp_path.iterdir()) == ["many.safetensors", "one.safetensors"]


@pytest.mark.parametrize("kinds", [("gram",), ("kfac",), ("diag_fisher",)])
def test_a_ceiling_above_everything_is_one_pass(tmp_path, kinds):
    net, data = model(), [tokens(3, 4)]
    whole = in_one_pass(net, data, tmp_path / "one.safetensors", kinds)
    one = collect_stats_to_file(net, iter(data), tmp_path / "same.safetensors", kinds)
    assert equal(whole, one)


def test_a_plan_tells_the_bytes_of_the_file_and_every_tensor_once(tmp_path):
    net, data = model(), [tokens(3, 4)]
    with torch.device("meta"):
        empty = Tagger()
    for kinds in (("gram",), ("gram", "kfac", "diag_fisher")):
        for others in (True, False):
            plan = plan_stats(empty, kinds, others=others, memory=3000)
            path = tmp_path / f"{len(kinds)}{others}.safetensors"
            stats = collect_stats_to_file(net, data, path, kinds, others=others)
            held = {}
            for name, entry in stats.entries.items():
                for kind in entry.counts:
                    held[kind] = held.get(kind, 0) + 4 * stats.total(name, kind).numel()
            assert plan.file == held
            assert plan.nbytes == sum(held.values()) < path.stat().st_size
            names = [name for units in plan.passes for name in units]
            assert len(names) == len(set(names))


def test_no_pass_exceeds_the_ceiling_unless_one_tensor_does():
    chosen = Chosen.of(model(), ("gram", "kfac"))
    sizes = {unit: chosen.held(unit) for unit in chosen.units}
    for memory in (1, 2500, 1e9):
        plan = plan_stats(model(), ("gram", "kfac"), memory=memory)
        for units in plan.passes:
            assert len(units) == 1 or sum(sizes[u] for u in units) <= memory
        assert plan.memory == max(sum(sizes[u] for u in units) for units in plan.passes)
    assert len(plan_stats(model(), ("gram", "kfac"), memory=1).passes) == 3
    assert len(plan.passes) == 1


@pytest.mark.parametrize("kinds", [("gram",), ("kfac",)])
def test_the_sums_in_memory_stay_below_what_the_plan_says(monkeypatch, tmp_path, kinds):
    net, data = model(), [tokens(4, 3, seed=s) for s in range(2)]
    live, peaks = weakref.WeakSet(), []
    zeros = Moments.zeros.__func__

    def counted(cls, *args, **options):
        made = zeros(cls, *args, **options)
        live.add(made)
        peaks.append(sum(moments.total.nbytes for moments in live))
        return made

    monkeypatch.setattr(Moments, "zeros", classmethod(counted))
    collect_stats_to_file(net, data, tmp_path / "s.safetensors", kinds)
    assert max(peaks) <= plan_stats(net, kinds).memory


def test_an_interrupted_call_goes_on_with_the_pass_that_is_missing(tmp_path):
    net, data, path = model(), [tokens(3, 4)], tmp_path / "s.safetensors"
    job = {"model": "m", "data": "d"}
    seen = []

    def stop(index, count, done):
        seen.append(index)
        if index == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect_stats_to_file(net, data, path, memory=1, job=job, watch=stop)
    assert not path.exists()
    seen.clear()
    stats = collect_stats_to_file(
        net, data, path, memory=1, job=job, watch=lambda index, *_: seen.append(index)
    )
    assert seen[0] == 3
    assert equal(in_one_pass(net, data, tmp_path / "one.safetensors"), stats)


@pytest.mark.parametrize("job", [None, {"model": "m", "data": "other"}])
def test_passes_of_another_job_are_not_gone_on_with(tmp_path, job):
    net, data, path = model(), [tokens(3, 4)], tmp_path / "s.safetensors"

    def stop(index, count, done):
        if index == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect_stats_to_file(
            net, data, path, memory=1, job={"model": "m", "data": "d"}, watch=stop
        )
    other = [tokens(3, 4, seed=5)]
    stats = collect_stats_to_file(net, other, path, memory=1, job=job)
    assert equal(in_one_pass(net, other, tmp_path / "one.safetensors"), stats)


def test_what_cannot_be_done_is_told_before_the_model_runs(tmp_path, monkeypatch):
    net, data, path = model(), [tokens(3, 4)], tmp_path / "s.safetensors"
    monkeypatch.setattr(type(net), "forward", None)
    with pytest.raises(ValueError, match=r"take 8 passes .* an iterator, which can be read once"):
        collect_stats_to_file(net, iter(data), path, memory=1)
    with pytest.raises(ValueError, match="memory must be positive"):
        collect_stats_to_file(net, data, path, memory=0)
    path.write_text("mine")
    with pytest.raises(FileExistsError):
        collect_stats_to_file(net, data, path)
    full = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(OSError, match="the disk has"):
        collect_stats_to_file(net, data, path, overwrite=True)
    assert path.read_text() == "mine"


@pytest.mark.bad_input  # a checker of types reads the mapping, and meets an error first
def test_zero_gradients_leave_no_file(tmp_path):
    net, batch, path = model(), tokens(3, 4), tmp_path / "s.safetensors"
    flat = {**batch, "labels": torch.full((3, 4), -100)}
    with pytest.raises(ValueError, match="every gradient is zero"):
        collect_stats_to_file(net, [flat], path, memory=1)
    assert list(tmp_path.iterdir()) == []


def test_a_module_that_is_never_called_costs_its_own_statistics_only(tmp_path):
    net = model()
    net.unused = torch.nn.Linear(3, 3).double()
    stats = collect_stats_to_file(net, [tokens(3, 4)], tmp_path / "s.safetensors", memory=1)
    assert "unused.weight" not in stats
    assert stats.skipped["unused.weight"]
    assert "up.weight" in stats


def test_files_of_one_model_add_up_one_tensor_at_a_time(tmp_path):
    net = model()
    paths = [
        collect_stats(net, [tokens(3, 4, seed=s)]).save(tmp_path / f"{s}.safetensors", dtype=None)
        for s in range(3)
    ]
    a, b, c = map(Stats.load, paths)
    total = (a + b + c).save(tmp_path / "sum.safetensors", dtype=None)
    whole = collect_stats(net, [tokens(3, 4, seed=s) for s in range(3)])
    found = Stats.load(total)
    for name in whole:
        assert found[name].entry.counts == whole[name].entry.counts
        for kind in whole[name]:
            assert torch.allclose(found[name][kind], whole[name][kind], atol=1e-12, rtol=0)
    assert found.options == whole.options
