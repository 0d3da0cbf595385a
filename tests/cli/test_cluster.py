"""`spanwise cluster` from files to files."""

import csv
import json

import numpy as np
import pytest

from spanwise.cli import main
from spanwise.cli.cluster import FILES


@pytest.fixture
def table(tmp_path):
    """Three lines through the origin of six dimensions, with names and classes."""
    generator = np.random.default_rng(0)
    directions = np.linalg.qr(generator.normal(size=(6, 6)))[0][:3]
    rows = np.concatenate([generator.normal(size=(30, 1)) * d for d in directions])
    rows += 0.02 * generator.normal(size=rows.shape)
    path = tmp_path / "lines.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("name", "kind", *(f"f{i}" for i in range(6))))
        writer.writerows((f"s{i}", "abc"[i // 30], *row) for i, row in enumerate(rows))
    return str(path)


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


ARGS = ["--keep", "name", "--known", "kind", "--scaling", "none", "--eta", "0.05", "--quiet"]


def test_lines_are_found_and_everything_is_written(table, tmp_path):
    out = tmp_path / "found"
    assert main(["cluster", table, *ARGS, "--most", "5", "--out", str(out)]) == 0
    assert {name for name in FILES if (out / name).exists()} == set(FILES)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["clusters"] == 3
    assert summary["accuracy"] > 0.9
    assert set(summary["coding_bits"]) == {"2", "3", "4", "5"}
    rows = read(out / "labels.csv")
    assert list(rows[0]) == ["row", "name", "kind", "cluster", "held"]
    with np.load(out / "embedding.npz") as held:
        np.testing.assert_allclose(np.linalg.norm(held["Z"], axis=1), 1)
        assert [str(label) for label in held["labels"]] == [row["cluster"] for row in rows]
    assert "lines.csv" in (out / "manifest.json").read_text()


def test_a_saved_model_clusters_new_samples(table, tmp_path):
    out, again = tmp_path / "found", tmp_path / "again"
    assert main(["cluster", table, *ARGS, "--clusters", "3", "--out", str(out)]) == 0
    args = ["--keep", "name", "--known", "kind", "--quiet", "--no-pictures", "--out", str(again)]
    assert main(["cluster", table, "--model", str(out / "model.safetensors"), *args]) == 0
    first, second = ([row["cluster"] for row in read(o / "labels.csv")] for o in (out, again))
    assert sum(a == b for a, b in zip(first, second, strict=True)) >= 0.95 * len(first)
    assert not (again / "affinity.svg").exists()
    assert json.loads((again / "summary.json").read_text())["learned"] is False


def test_json_alone_on_stdout_and_progress_elsewhere(table, capsys):
    args = ["cluster", table, "--drop", "name", "kind", "--clusters", "3", "--json"]
    assert main(args) == 0
    told = capsys.readouterr()
    assert sum(json.loads(told.out)["sizes"]) == 90
    assert "MLC epoch" in told.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--clusters", "1"], "--clusters must be auto or at least 2"),
        (["--most", "1"], "--most must be at least 2"),
        (["--clusters", "5", "--most", "9"], "--most is for --clusters auto"),
        (["--model", "m.safetensors", "--eta", "0.2"], "--eta cannot be set with --model"),
        (["--model", "m.safetensors", "--scaling", "none"], "--scaling cannot be set with --model"),
        (["--drop", "name", "kind", "--eta", "-1"], "--eta must be"),
        (["--drop", "name", "kind", "--features", "0"], "--features must be"),
    ],
)
def test_what_does_not_go_together_is_named(table, args, message, capsys):
    assert main(["cluster", table, *args]) != 0
    assert message in capsys.readouterr().err


def test_samples_that_are_all_alike_are_refused(tmp_path, capsys):
    np.save(tmp_path / "same.npy", np.ones((40, 3)))
    out = tmp_path / "found"
    assert main(["cluster", str(tmp_path / "same.npy"), "--out", str(out)]) == 1
    assert "all samples are alike" in capsys.readouterr().err
    assert not out.exists()
