"""Sharded folders that several processes fill."""

import json
import os
import threading

import pytest
import torch

from spanwise.io import Shard, ShardFile, SharedFolder, open_tensors, plan_shards

TENSORS = {f"layer.{i}": torch.arange(10.0) + i for i in range(7)}
ENTRIES = {name: (t.dtype, tuple(t.shape)) for name, t in TENSORS.items()}


def fill(folder, watch=lambda name: None, **options):
    shared = SharedFolder(folder, plan_shards(ENTRIES, 80), job={"what": "a test"}, **options)
    for file in shared.pending():
        for name in file.shard.entries:
            watch(name)
            file.add(name, TENSORS[name])
        file.close()
    shared.finish(lambda staging: (staging / "config.json").write_text("{}"))
    return shared


def test_the_plan_keeps_the_order_and_the_limit():
    shards = plan_shards(ENTRIES, 80)
    assert [list(s.entries) for s in shards] == [
        ["layer.0", "layer.1"], ["layer.2", "layer.3"], ["layer.4", "layer.5"], ["layer.6"],
    ]  # fmt: skip
    assert all(s.nbytes <= 80 for s in shards)
    assert [s.file for s in plan_shards(ENTRIES, 1e9)] == ["model.safetensors"]
    assert len(plan_shards(ENTRIES, 1)) == 7


def test_a_filled_folder_reads_back_and_holds_nothing_else(tmp_path):
    fill(tmp_path / "out")
    found = open_tensors(tmp_path / "out")
    assert all(torch.equal(found[name], t) for name, t in TENSORS.items())
    assert len(list((tmp_path / "out").iterdir())) == 6  # four shards, the index, the config
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_tensors_may_come_in_any_order_and_dtypes_are_aligned(tmp_path):
    tensors = {"half": torch.ones(3, dtype=torch.bfloat16), "wide": torch.ones(2).double()}
    shard = Shard("x.safetensors", {n: (t.dtype, tuple(t.shape)) for n, t in tensors.items()})
    file = ShardFile(tmp_path, shard, {})
    for name in reversed(tensors):
        file.add(name, tensors[name])
    file.close()
    assert torch.equal(open_tensors(tmp_path / "x.safetensors")["wide"], tensors["wide"])


def test_a_shard_takes_each_tensor_once_and_as_planned(tmp_path):
    file = ShardFile(tmp_path, plan_shards(ENTRIES, 1e9)[0], {})
    file.add("layer.0", TENSORS["layer.0"])
    with pytest.raises(ValueError, match=r"expects 'layer\.0' once"):
        file.add("layer.0", TENSORS["layer.0"])
    with pytest.raises(ValueError, match=r"expects 'layer\.1' once, as"):
        file.add("layer.1", torch.ones(3))
    with pytest.raises(ValueError, match=r"still lacks 'layer\.1'"):
        file.close()
    file.discard()
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_finished_shards_and_the_next_run_goes_on(tmp_path):
    def fail(name):
        if name == "layer.3":
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fill(tmp_path / "out", fail)
    assert not (tmp_path / "out").exists()
    seen = []
    assert fill(tmp_path / "out", seen.append).reused == 1
    assert seen == [f"layer.{i}" for i in range(2, 7)]


def test_twenty_kills_leave_nothing_that_looks_whole(tmp_path):
    out = tmp_path / "out"
    for kill in range(20):
        child = os.fork()
        if not child:
            count = 0

            def die(name, kill=kill):
                nonlocal count
                count += 1
                if count > kill % 3:
                    os.kill(os.getpid(), 9)

            fill(out, die)
            os._exit(0)
        os.waitpid(child, 0)
        if out.exists():
            break
        for shard in plan_shards(ENTRIES, 80):
            part = tmp_path / ".out.partial" / shard.file
            if part.is_file():
                found = open_tensors(part)
                assert all(torch.equal(found[n], TENSORS[n]) for n in shard.entries)
    if not out.exists():
        fill(out)
    found = open_tensors(out)
    assert all(torch.equal(found[name], t) for name, t in TENSORS.items())


def test_two_workers_divide_the_shards_and_one_finishes(tmp_path):
    seen = {1: [], 2: []}
    both = threading.Barrier(2)

    def work(index):
        waited = []

        def watch(name):
            if not waited:
                waited.append(both.wait(10))
            seen[index].append(name)

        fill(tmp_path / "out", watch)

    threads = [threading.Thread(target=work, args=(i,)) for i in seen]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(seen[1] + seen[2]) == sorted(TENSORS)
    assert seen[1]
    assert seen[2]
    assert len(list((tmp_path / "out").iterdir())) == 6


def test_another_job_s_rest_is_refused(tmp_path):
    def fail(name):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        fill(tmp_path / "out", fail)
    with pytest.raises(ValueError, match=r"unfinished result of another job \(what differ\)"):
        SharedFolder(tmp_path / "out", plan_shards(ENTRIES, 80), job={"what": "other"})


def test_a_folder_that_is_there_is_refused_or_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep me")
    with pytest.raises(FileExistsError):
        fill(tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").is_file()
    fill(tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / "mine.txt").exists()


def test_a_claim_without_signs_of_life_is_taken_over(tmp_path, monkeypatch):
    shared = SharedFolder(tmp_path / "out", plan_shards(ENTRIES, 1e9), job={})
    claim = shared.staging / ".model.safetensors.claim"
    claim.write_text(json.dumps({"host": "another", "pid": 1}))
    os.utime(claim, (1, 1))
    pending = shared.pending()
    file = next(pending)
    assert json.loads(claim.read_text())["pid"] == os.getpid()
    file.discard()
