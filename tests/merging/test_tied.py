"""Heads that are tied to embeddings, saved once by one program and twice by another."""

import pytest
import torch
from tests.merging.llamas import llama, loaded, transformers

from conformance.merging import same_bits
from spanwise.io import open_tensors, save_tensors
from spanwise.merging import merge, merge_folders

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """A tied base, two fine-tunes, and the second with its head saved twice."""
    root = tmp_path_factory.mktemp("tied")
    base = llama(root / "base", 0, tied=True)
    for seed, name in enumerate("abc", start=1):
        llama(root / name, min(seed, 2), base=base, tied=True)
    twice(root / "c")
    return root


def twice(folder, change=0.0):
    """Write the head beside the embeddings."""
    held = dict(open_tensors(folder))
    head = held[EMBEDDING].clone()
    head[3, 2] += change
    save_tensors(folder / "model.safetensors", {**held, HEAD: head}, {"format": "pt"})


def read(folder):
    return dict(open_tensors(folder))


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "iso_c", "linear"])
def test_a_head_that_is_saved_twice_is_merged_once(zoo, tmp_path, method):
    plain, twin = (
        merge_folders(zoo / "base", [zoo / "a", zoo / last], method, tmp_path / last).folder
        for last in "bc"
    )
    assert HEAD not in read(twin)
    assert all(same_bits(t, read(plain)[n]) for n, t in read(twin).items())
    assert loaded(twin)[1] == set()


def test_a_base_that_has_it_twice_keeps_both_alike(zoo, tmp_path):
    base = llama(tmp_path / "base", 0, tied=True)
    twice(base)
    out = merge_folders(base, [zoo / "a", zoo / "c"], "task_arithmetic", tmp_path / "out").folder
    found = read(out)
    assert same_bits(found[HEAD], found[EMBEDDING])
    expected = merge(zoo / "base", [zoo / "a", zoo / "b"], "task_arithmetic")
    assert all(same_bits(found[n], expected[n]) for n in expected)
    model = loaded(out)[0]
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_head_that_was_untied_is_named(zoo, tmp_path):
    other = llama(tmp_path / "other", 1, base=zoo / "base", tied=True)
    twice(other, change=1e-3)
    message = r"model 2 holds a 'lm_head\.weight' that differs from its 'model\.embed_tokens\.weigh"
    with pytest.raises(ValueError, match=message):
        merge_folders(zoo / "base", [zoo / "a", other], "linear", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_base_whose_head_is_its_own_is_no_tied_model(zoo, tmp_path):
    base = llama(tmp_path / "base", 0)
    assert not torch.equal(read(base)[HEAD], read(base)[EMBEDDING])
    with pytest.raises(ValueError, match=r"lacks 'lm_head\.weight'"):
        merge(base, [zoo / "a"], "linear")


def test_modules_that_transformers_ties_merge_as_their_files_do(zoo):
    modules = [
        transformers.AutoModelForCausalLM.from_pretrained(zoo / n) for n in ("base", "a", "c")
    ]
    merged = merge(modules[0], modules[1:], "task_arithmetic")
    files = merge(zoo / "base", [zoo / "a", zoo / "c"], "task_arithmetic")
    assert same_bits(merged[HEAD], merged[EMBEDDING])
    assert all(same_bits(merged[n], files[n]) for n in files)
