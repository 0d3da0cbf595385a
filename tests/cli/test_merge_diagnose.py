"""`spanwise merge diagnose` as a person meets it."""

import json

import pytest
import torch

from conformance.merging import models
from spanwise.cli import main
from spanwise.cli.merge_diagnose import short_names
from spanwise.io import save_tensors


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base, three fine-tunes and a copy of the base, without configuration or tokenizer."""
    root = tmp_path_factory.mktemp("models")
    base, tuned = models(3, dtype=torch.float32)
    for name, tensors in zip(
        ("base", "a", "b", "c", "copy"), (base, *tuned, base), strict=True
    ):  # fmt: skip
        (root / name).mkdir()
        save_tensors(root / name / "model.safetensors", tensors)
    return root


@pytest.fixture
def argv(folders):
    return ["merge", "diagnose", *(str(folders / name) for name in ("base", "a", "b", "c"))]


def test_it_ranks_pairs_by_their_folders_names(argv, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    assert main([*argv, "--out", str(out)]) == 0
    told = capsys.readouterr().out
    for part in ("tensor 7/7", "a + b", "score", "cosine", "by chance", "no accuracy", "wrote"):
        assert part in told
    assert "\x1b" not in told
    held = json.loads((out / "diagnosis.json").read_text())
    assert {(p["first"], p["second"]) for p in held["pairs"]} == {
        ("a", "b"), ("a", "c"), ("b", "c"),
    }  # fmt: skip
    assert len(held["layers"]) == 4
    assert (out / "diagnosis.svg").read_text().startswith("<?xml")
    assert main([*argv, "--out", str(out)]) == 1
    assert "diagnosis.json exists" in capsys.readouterr().err
    assert main([*argv, "--out", str(out), "--overwrite", "--quiet"]) == 0


def test_json_is_one_document(argv, capsys):
    assert main([*argv, "--json", "--rank", "2", "--layers", "layers.1"]) == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert told["settings"]["rank"] == 2
    assert [x["name"] for x in told["layers"]] == [
        "layers.1.down.weight", "layers.1.square.weight",
    ]  # fmt: skip
    assert "pairs" in captured.err


def test_a_copy_of_the_base_is_told(argv, folders, capsys):
    assert main([*argv[:3], str(folders / "a"), str(folders / "copy")]) == 0
    assert "note: copy equals the base" in capsys.readouterr().out


def test_one_model_is_refused(argv, capsys):
    assert main(argv[:4]) == 1
    assert "give the base and two models or more" in capsys.readouterr().err


def test_a_missing_folder_is_named(argv, capsys):
    assert main([*argv, "nowhere"]) == 1
    assert "nowhere" in capsys.readouterr().err


def test_other_shapes_and_bad_numbers_are_named(argv, tmp_path, capsys):
    base, tuned = models(1, dtype=torch.float32)
    del base
    tuned[0]["embed.weight"] = torch.zeros(12, 5)
    file = save_tensors(tmp_path / "odd.safetensors", tuned[0])
    assert main([*argv, str(file)]) == 1
    assert "'embed.weight' has shape (12, 6) in base and (12, 5) in odd" in capsys.readouterr().err
    tuned[0]["embed.weight"] = torch.full((12, 6), float("inf"))
    file = save_tensors(tmp_path / "odd.safetensors", tuned[0])
    assert main([*argv, str(file)]) == 1
    assert "'embed.weight' of odd.safetensors holds NaN or infinity" in capsys.readouterr().err


def test_names_are_as_short_as_tells_them_apart():
    assert short_names(["x/code/final", "x/math/final"]) == ["code/final", "math/final"]
    assert short_names(["x/a", "y/b"]) == ["a", "b"]
    with pytest.raises(ValueError, match="given twice"):
        short_names(["x/a", "x/a"])
