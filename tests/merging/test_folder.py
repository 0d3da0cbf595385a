"""Merges that stream from folder to folder."""

import json
import os
import shutil

import pytest
import torch

from conformance.merging import models, same_bits
from spanwise.atlas import Atlas
from spanwise.io import ShardedWriter, open_tensors, save_tensors
from spanwise.lora import Adapter
from spanwise.merging import merge
from spanwise.merging._folder import RECORD, merge_to_folder
from spanwise.merging._merge import prepare
from spanwise.merging._methods.mats import Mats


@pytest.fixture
def folders(tmp_path):
    """A base in one shard and two models in several, with what lies beside weights."""
    base, tuned = models(2, dtype=torch.bfloat16)
    paths = []
    for name, size, tensors in (("base", 1e9, base), ("a", 200, tuned[0]), ("b", 120, tuned[1])):
        with ShardedWriter(tmp_path / name, size) as out:
            for key, tensor in tensors.items():
                out.add(key, tensor)
        paths.append(tmp_path / name)
    (paths[0] / "config.json").write_text(json.dumps({"dtype": "bfloat16", "vocab_size": 12}))
    (paths[0] / "tokenizer.json").write_text("{}")
    (paths[0] / "pytorch_model.bin").write_text("old")
    return paths, base, tuned


def job(paths, **options):
    return prepare(paths[0], paths[1:], "task_arithmetic", alpha=0.5, **options)


@pytest.mark.parametrize("size", [1, 150, 1e9])
@pytest.mark.parametrize("workers", [1, 3])
def test_streaming_gives_the_bits_of_memory_in_any_layout(folders, tmp_path, size, workers):
    paths, base, tuned = folders
    merge_to_folder(job(paths), tmp_path / "out", max_shard_bytes=size, workers=workers)
    found, expected = (
        open_tensors(tmp_path / "out"),
        merge(base, tuned, "task_arithmetic", alpha=0.5),
    )
    assert list(expected) == list(base)
    assert all(same_bits(found[name], expected[name]) for name in base)


def test_config_and_tokenizer_come_along_and_weights_do_not(folders, tmp_path):
    merge_to_folder(job(folders[0], out_dtype=torch.float32), tmp_path / "out")
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"model.safetensors", "config.json", "tokenizer.json", RECORD}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == {"dtype": "float32", "vocab_size": 12}
    assert open_tensors(tmp_path / "out").dtype("conv.weight") == torch.float32


def test_the_same_merge_again_does_nothing_and_another_is_refused(folders, tmp_path):
    out = tmp_path / "out"
    assert merge_to_folder(job(folders[0]), out).tensors == 8
    assert merge_to_folder(job(folders[0]), out).tensors == 0
    with pytest.raises(FileExistsError):
        merge_to_folder(job(folders[0], seed=1), out)


def test_other_weights_and_another_atlas_are_another_merge(folders, tmp_path):
    paths, base, tuned = folders
    out = tmp_path / "out"
    merge_to_folder(prepare(base, tuned, "task_arithmetic"), out)
    assert merge_to_folder(prepare(base, tuned, "task_arithmetic"), out).tensors == 0
    with pytest.raises(FileExistsError):  # same names and shapes, in memory
        merge_to_folder(prepare(base, tuned[::-1], "task_arithmetic"), out)
    atlas = Atlas.from_delta(base, tuned[0], rank=1)
    merge_to_folder(job(paths, avoid=atlas), tmp_path / "avoid")
    for other in (Atlas.from_delta(base, tuned[1], rank=1), None):
        with pytest.raises(FileExistsError):
            merge_to_folder(job(paths, avoid=other), tmp_path / "avoid")
    factors = {
        "layers.0.up.lora_A.weight": torch.ones(1, 6),
        "layers.0.up.lora_B.weight": torch.ones(10, 1),
    }
    low = [Adapter(factors), Adapter(factors, {"lora_alpha": 2})]
    merge_to_folder(prepare(base, low[:1], "task_arithmetic"), tmp_path / "low")
    with pytest.raises(FileExistsError):
        merge_to_folder(prepare(base, low[1:], "task_arithmetic"), tmp_path / "low")


def test_another_start_under_the_same_name_is_another_merge(folders, tmp_path):
    paths, base, tuned = folders
    start, out = tmp_path / "start.safetensors", tmp_path / "out"

    def again():
        method = Mats(objective="identity", init=str(start), iterations=1)
        return merge_to_folder(prepare(paths[0], paths[1:], method), out)

    save_tensors(start, base)
    assert again().tensors == 8
    assert again().tensors == 0
    save_tensors(start, tuned[0])
    with pytest.raises(FileExistsError):
        again()


def test_twenty_kills_lose_no_finished_shard(folders, tmp_path):
    paths, base, tuned = folders
    out = tmp_path / "out"
    for kill in range(20):
        child = os.fork()
        if not child:

            def watch(done, total, kill=kill):
                if done > kill % 3:
                    os.kill(os.getpid(), 9)

            merge_to_folder(job(paths), out, max_shard_bytes=100, watch=watch)
            os._exit(0)
        os.waitpid(child, 0)
    merge_to_folder(job(paths), out, max_shard_bytes=100)
    expected = merge(base, tuned, "task_arithmetic", alpha=0.5)
    found = open_tensors(out)
    assert all(same_bits(found[name], expected[name]) for name in base)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_an_input_that_changed_meanwhile_is_another_job(folders, tmp_path):
    paths, _, _ = folders

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_to_folder(job(paths), tmp_path / "out", max_shard_bytes=100, watch=stop)
    os.utime(paths[1] / "model-00001-of-00004.safetensors", (1, 1))
    with pytest.raises(ValueError, match=r"another job \(inputs differ\)"):
        merge_to_folder(job(paths), tmp_path / "out", max_shard_bytes=100)


def test_a_full_disk_is_told_before_the_first_byte(folders, tmp_path, monkeypatch):
    full = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(OSError, match="the disk has"):
        merge_to_folder(job(folders[0]), tmp_path / "out")
    assert not (tmp_path / ".out.partial").exists()
