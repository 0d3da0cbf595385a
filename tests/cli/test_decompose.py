"""`spanwise decompose` from files to files."""

import csv
import gzip
import json

import numpy as np
import pytest

from spanwise.cli import main
from spanwise.cli.decompose import FILES, _largest_gap
from spanwise.estimators import SubspacePowerMethod


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def factors():
    g = np.random.default_rng(0)
    A = g.standard_normal((4, 5))
    return A / np.linalg.norm(A, axis=0), np.array([3.0, 2.5, -2.0, 1.5, 1.0])


@pytest.fixture
def tensor(factors, tmp_path):
    A, w = factors
    np.save(tmp_path / "T.npy", np.einsum("r,ir,jr,kr,lr->ijkl", w, A, A, A, A))
    return tmp_path / "T.npy"


@pytest.fixture
def table(tmp_path):
    """Mixtures of three uniform sources at two sensors, and a column of names."""
    g = np.random.default_rng(0)
    X = g.uniform(-1, 1, (4000, 3)) @ np.array([[1.0, 0.1], [0.3, 1.0], [1.0, -1.0]])
    with (tmp_path / "signals.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("left", "right", "name"))
        writer.writerows((*row, f"n{i}") for i, row in enumerate(X))
    return tmp_path / "signals.csv"


def test_a_tensors_components_come_out_with_weights_picture_and_model(
    tensor, factors, tmp_path, capsys
):
    A, w = factors
    out = tmp_path / "found"
    assert main(["decompose", str(tensor), "--out", str(out)]) == 0
    rows = read(out / "components.csv")
    assert list(rows[0]) == ["component", "weight", "fit", "x0", "x1", "x2", "x3"]
    np.testing.assert_allclose([float(row["weight"]) for row in rows], w, atol=1e-10)
    found = np.array([[float(row[f"x{i}"]) for i in range(4)] for row in rows])
    np.testing.assert_allclose(np.abs((found * A.T).sum(1)), 1, atol=1e-10)
    assert {name for name in FILES if (out / name).exists()} == set(FILES)
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["rank"], summary["order"], summary["dimension"]) == (5, 4, 4)
    assert summary["residual"] < 1e-10
    model = SubspacePowerMethod.load(out / "model.safetensors")
    np.testing.assert_array_equal(model.components_, found)
    with np.load(out / "cp_tensor.npz") as held:
        rebuilt = np.einsum("r,ir,jr,kr,lr->ijkl", held["weights"], *held["factors"])
    np.testing.assert_allclose(rebuilt, np.load(tensor), atol=1e-10)
    assert "rank 5 in 4 dimensions" in capsys.readouterr().out


def test_a_table_is_decomposed_by_its_moment_or_cumulant(table, tmp_path):
    out = tmp_path / "found"
    asked = ["decompose", str(table), "--drop", "name", "--cumulant", "--rank", "1", "--json"]
    asked += ["--component-tol", "0.1", "--refine", "20"]
    assert main([*asked, "--out", str(out), "--no-pictures"]) == 0
    assert not (out / "scree.svg").exists()
    assert list(read(out / "components.csv")[0])[3:] == ["left", "right"]
    model = SubspacePowerMethod.load(out / "model.safetensors")
    data = np.array([[float(row["left"]), float(row["right"])] for row in read(table)])
    expected = SubspacePowerMethod(rank=1, component_tol=0.1, refine=20, random_state=0)
    expected.fit_moments(data, cumulant=True)
    np.testing.assert_allclose(model.components_, expected.components_, atol=1e-10)
    assert json.loads((out / "summary.json").read_text())["what"] == "cumulant of order 4"


def test_scree_shows_eigenvalues_and_decomposes_nothing(table, tmp_path, capsys):
    out = tmp_path / "found"
    asked = ["decompose", str(table), "--drop", "name", "--scree", "--out", str(out), "--json"]
    assert main(asked) == 0
    found = json.loads(capsys.readouterr().out)
    values = np.array(found["eigenvalues"])
    assert len(values) == 3
    assert (np.diff(np.abs(values)) <= 0).all()
    assert sorted(p.name for p in out.iterdir()) == [
        "config.yaml", "eigenvalues.csv", "manifest.json", "scree.svg", "summary.json",
    ]  # fmt: skip


def test_the_suggested_rank_is_the_largest_gap_above_rounding():
    assert _largest_gap(np.array([5.0, -4.0, 3.0, 1e-15, 1e-19]), 4) == 3
    assert _largest_gap(np.array([2.0]), 1) == 1


def test_no_rank_is_suggested_that_would_be_refused(tmp_path, capsys):
    X = np.random.default_rng(0).laplace(size=(400, 4))
    np.save(tmp_path / "X.npy", X)
    assert main(["decompose", str(tmp_path / "X.npy"), "--scree", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["suggested_rank"] <= 6
    assert "of the first 6, as many components as can be told apart" in shown.err


def test_a_tensor_may_be_compressed(tensor, capsys):
    packed = tensor.with_name("T.NPY.gz")
    packed.write_bytes(gzip.compress(tensor.read_bytes()))
    assert main(["decompose", str(packed)]) == 0
    assert "tensor of order 4: rank 5" in capsys.readouterr().out


def test_a_tensor_of_zeros_has_nothing_to_choose_or_decompose(tmp_path, capsys):
    np.save(tmp_path / "T.npy", np.zeros((3, 3, 3, 3)))
    assert (
        main(["decompose", str(tmp_path / "T.npy"), "--scree", "--out", str(tmp_path / "s")]) == 0
    )
    assert "all entries are zero" in capsys.readouterr().out
    assert main(["decompose", str(tmp_path / "T.npy"), "--out", str(tmp_path / "found")]) == 0
    assert read(tmp_path / "found" / "components.csv") == []


def test_a_square_table_may_be_samples_all_the_same(tmp_path, capsys):
    np.save(tmp_path / "X.npy", np.cov(np.arange(12.0).reshape(3, 4) ** 2))
    assert main(["decompose", str(tmp_path / "X.npy"), "--order", "4", "--rank", "2"]) == 0
    assert "3 samples, 3 features" in capsys.readouterr().out


def test_samples_that_are_all_alike_have_no_cumulant_and_that_is_said(tmp_path, capsys):
    np.save(tmp_path / "X.npy", np.full((1000, 3), [0.1, 1 / 3, 7e5]))
    for asked in ([], ["--scree"], ["--out", str(tmp_path / "found")]):
        assert main(["decompose", str(tmp_path / "X.npy"), "--cumulant", *asked]) == 0
        assert "all samples are alike" in capsys.readouterr().out
    assert read(tmp_path / "found" / "components.csv") == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["T.npy", "--order", "3"], "is a tensor of order 4.*leave --order out"),
        (["T.npy", "--cumulant"], "leave --cumulant out"),
        (["T.npy", "--noise-variance", "0"], "leave --noise-variance out"),
        (["T.npy", "--key", "foo"], "one array, which has no name: .*--key"),
        (["T.npy", "--rank", "9"], "--rank = 9, but .* at most 6 .* Lower --rank; --force tries"),
        (["T.npy", "--rank", "6"], "5. Give --rank 5 or less"),
        (["T.npy", "--rank", "5", "--scree"], "leave --rank out, or --scree"),
        (["skew.npy"], "not symmetric: .* --symmetrize takes the nearest"),
        (["flat.npy"], "order 2: that has no unique decomposition.*--order 4"),
        (["long.npy"], "all of one length"),
        (["signals.csv", "--drop", "name", "--symmetrize"], "leave --symmetrize out"),
        (["signals.csv", "--drop", "name", "--order", "2"], "order must be at least 3"),
        (["signals.csv", "--cumulant", "--noise-variance", "1"], "leave --noise-variance out"),
        ([], "name the file"),
    ],
)
def test_what_cannot_be_done_is_told_before_anything_is_written(
    options, message, tensor, table, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    np.save("skew.npy", np.arange(27.0).reshape(3, 3, 3))
    np.save("flat.npy", np.cov(np.arange(12.0).reshape(3, 4) ** 2))
    np.save("long.npy", np.zeros((3, 3, 4)))
    assert main(["decompose", *options, "--out", "found"]) == 1
    assert not (tmp_path / "found").exists()
    import re

    assert re.search(message, capsys.readouterr().err, re.DOTALL)
