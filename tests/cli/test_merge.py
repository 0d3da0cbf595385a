"""`spanwise merge` as a person meets it."""

import json

import pytest
import torch
import yaml

from conformance.merging import models
from spanwise.atlas import Atlas
from spanwise.cli import main
from spanwise.io import open_tensors, save_tensors
from spanwise.merging import METHODS, MergeConfig, merge


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base and two fine-tunes, without configuration or tokenizer."""
    root = tmp_path_factory.mktemp("models")
    base, tuned = models(2, dtype=torch.float32)
    for name, tensors in (("base", base), ("a", tuned[0]), ("b", tuned[1])):
        (root / name).mkdir()
        save_tensors(root / name / "model.safetensors", tensors)
    return root


@pytest.fixture
def argv(folders, tmp_path):
    paths = [str(folders / name) for name in ("base", "a", "b")]
    return ["merge", *paths, "--method", "task_arithmetic", "--out", str(tmp_path / "out")]


def test_a_merge_tells_what_it_did_and_writes_it(argv, folders, tmp_path, capsys):
    assert main([*argv, "--alpha", "0.5", "--weight", "1", "0.5"]) == 0
    out = capsys.readouterr().out
    for part in ("tensor 8/8", "task_arithmetic of 2 models", "1 copied", "wrote", "peak memory"):
        assert part in out
    assert "\x1b" not in out
    held = [dict(open_tensors(folders / n)) for n in ("base", "a", "b")]
    expected = merge(held[0], held[1:], "task_arithmetic", alpha=0.5, weight=[1, 0.5])
    found = open_tensors(tmp_path / "out")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_json_is_one_document_and_quiet_is_silent(argv, capsys):
    assert main([*argv, "--json"]) == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert (told["merged"], told["copy"], told["reused"]) == (7, 1, 0)
    assert "wrote" in captured.err
    assert main([*argv, "--quiet", "--overwrite"]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_plan_writes_nothing(argv, tmp_path, capsys):
    assert main([*argv, "--plan", "--json"]) == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    kinds = {row["tensors"]: row["kind"] for row in told["treatments"]}
    assert kinds["embed.weight"] == "matrix"
    assert kinds["steps"] == "copy"
    assert "Nothing was written" in captured.err
    assert list(tmp_path.iterdir()) == []


def test_an_atlas_s_energy_is_shown_by_layer(argv, folders, tmp_path, capsys):
    held = [dict(open_tensors(folders / n)) for n in ("base", "a")]
    Atlas.from_delta(held[0], held[1], rank=2).save(tmp_path / "know.atlas.safetensors")
    assert main([*argv, "--avoid", str(tmp_path / "know.atlas.safetensors"), "--json"]) == 0
    captured = capsys.readouterr()
    assert "energy removed" in captured.err
    removed = json.loads(captured.out)["removed"]
    assert {"0", "1"} <= set(removed)
    assert all(0 <= share <= 1 for share in removed.values())


def test_the_methods_are_those_of_the_registry(capsys):
    assert main(["merge", "methods"]) == 0
    page = capsys.readouterr().out
    assert all(f"\n{name} " in page for name in METHODS)
    assert main(["merge", "methods", "--json"]) == 0
    assert [row["method"] for row in json.loads(capsys.readouterr().out)] == list(METHODS)


def test_a_mergekit_file_is_merged(folders, tmp_path, capsys):
    recipe = tmp_path / "recipe.yml"
    held = {
        "merge_method": "ties", "base_model": str(folders / "base"),
        "models": [{"model": str(folders / n)} for n in "ab"],
        "parameters": {"weight": 0.5, "density": 0.5, "int8_mask": True},
    }  # fmt: skip
    recipe.write_text(yaml.safe_dump(held))
    assert main(["merge", str(recipe), "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "note: int8_mask" in out
    assert "ties of 2 models" in out
    assert main(["merge", str(recipe), "--out", str(tmp_path / "x"), "--alpha", "2"]) == 1
    assert "--alpha is said by" in capsys.readouterr().err


def test_ctrl_c_leaves_whole_files_and_the_same_command_goes_on(
    argv, tmp_path, capsys, monkeypatch
):
    argv = [*argv, "--max-shard-bytes", "100"]
    with monkeypatch.context() as patch:

        def stop(self, done, total):
            if done == 3:
                raise KeyboardInterrupt

        patch.setattr("spanwise.cli._progress.Progress.__call__", stop)
        assert main(argv) == 130
    assert "Resume: the same command goes on" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "going on: 2 of" in out
    assert "2 files were there already" in out
    assert main(argv) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_print_config_repeats_the_merge(argv, tmp_path, capsys):
    assert main([*argv, "--option", "normalize=true", "--print-config"]) == 0
    text = capsys.readouterr().out
    (tmp_path / "run.yaml").write_text(text)
    assert yaml.safe_load(text)["option"] == ["normalize=true"]
    assert main(["merge", "--config", str(tmp_path / "run.yaml"), "--quiet"]) == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--method", "iso_d"], "unknown method 'iso_d': did you mean 'iso_c'?"),
        (["--weight", "1", "2", "3"], "weight must be one value for all models or one for each"),
        (["--density", "0.5"], "task_arithmetic has no parameter 'density'"),
        (["--option", "normalize"], "option must read NAME=VALUE"),
        (["--option", "weight=1", "--weight", "2"], "weight is given twice"),
        (["--workers", "0"], "workers must be positive"),
        (["--device", "abacus"], "device = abacus cannot be used here"),
        (["--avoid", "none.safetensors"], "none.safetensors"),
    ],
)
def test_a_wrong_option_is_one_line(argv, more, message, capsys):
    assert main([*argv, *more]) == 1
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1


def test_what_is_missing_is_named(folders, tmp_path, capsys):
    assert main(["merge", str(folders / "base"), "--out", str(tmp_path / "out")]) == 1
    assert "alone cannot be merged" in capsys.readouterr().err
    assert main(["merge", str(folders / "base"), str(folders / "a")]) == 1
    assert "out is missing" in capsys.readouterr().err
    with pytest.raises(ValueError, match="name the base and the models"):
        MergeConfig(out=tmp_path)
    none = ["none", str(folders / "a"), str(folders / "b"), "--method", "linear"]
    assert main(["merge", *none, "--out", str(tmp_path / "out"), "--quiet"]) == 0


def test_something_else_in_the_way_is_not_replaced(argv, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert main(argv) == 1
    assert "already exists" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["notes.txt"]
