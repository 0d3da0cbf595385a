"""`spanwise detect` from files to files."""

import csv
import json
import warnings

import numpy as np
import pytest

from spanwise.cli import main
from spanwise.cli.detect import FILES

NAMES = ("height", "weight", "age")


@pytest.fixture
def files(tmp_path):
    """Normal samples, and new ones of which the third is 9 heights off."""
    generator = np.random.default_rng(0)
    normal, new = generator.normal(size=(60, 3)), generator.normal(size=(8, 3)) / 2
    new[2] = (9, 0, 0)

    def write(name, rows, first):
        with (tmp_path / name).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("id", *NAMES))
            writer.writerows((f"{first}{i}", *row) for i, row in enumerate(rows))
        return str(tmp_path / name)

    return write("new.csv", new, "n"), write("normal.csv", normal, "t")


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_odd_sample_is_out_and_its_feature_is_named(files, tmp_path, capsys):
    new, normal = files
    out = tmp_path / "found"
    assert main(["detect", new, "--train", normal, "--keep", "id", "--out", str(out)]) == 0
    rows = read(out / "scores.csv")
    assert list(rows[0]) == ["row", "id", "score", "label", "why"]
    assert [row["id"] for row in rows] == [f"n{i}" for i in range(8)]
    assert rows[2]["label"] == "out"
    assert rows[2]["why"].startswith("height = 9 (-")
    assert min(rows, key=lambda row: float(row["score"]))["row"] == "3"
    assert {name for name in FILES if (out / name).exists()} == set(FILES)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["outside"] == sum(row["label"] == "out" for row in rows)
    assert next(iter(summary["features_that_push_out"])) == "height"
    assert "of 8 samples are outside" in capsys.readouterr().out
    # Digests of both files.
    assert set(json.loads((out / "manifest.json").read_text())["inputs"]) == {"data", "train"}


def test_a_saved_detector_judges_as_before_whatever_the_order_of_columns(files, tmp_path):
    new, normal = files
    out, again = tmp_path / "found", tmp_path / "again"
    main(["detect", new, "--train", normal, "--keep", "id", "--out", str(out), "--no-pictures"])
    rows = read(out / "scores.csv")
    turned = tmp_path / "turned.csv"
    held = [dict(row) for row in read(tmp_path / "new.csv")]
    with turned.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["age", "id", "height", "weight"])
        writer.writeheader()
        writer.writerows(held)
    model = str(out / "detector.safetensors")
    args = ["detect", str(turned), "--keep", "id", "--model", model, "--out", str(again)]
    assert main([*args, "--no-pictures"]) == 0
    assert read(again / "scores.csv") == rows


def test_one_file_is_learned_from_and_judged(files, capsys):
    assert main(["detect", files[1], "--drop", "id", "--contamination", "0.2", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["outside"] == 12
    assert summary["learned_from"]["samples"] == 60
    assert len(summary["lowest"]) == 10


def test_few_samples_for_their_features_are_told(tmp_path, capsys):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(9, 3)))
    assert main(["detect", str(tmp_path / "a.npy")]) == 0
    assert "9 samples are few for 3 features" in capsys.readouterr().out
    assert main(["detect", str(tmp_path / "a.npy"), "--kernel", "rbf"]) == 0
    told = capsys.readouterr().out
    assert "9 samples are few for 9 coordinates of the kernel" in told
    assert "or lower --components" in told


def test_parameters_are_the_detectors(files, capsys):
    args = ["detect", files[1], "--drop", "id", "--json", "--lam", "0.5", "--scaling", "standard"]
    for asked, k in (("2", 2), ("0.67", 2), ("1", 1)):
        assert main([*args, "--directions", asked]) == 0
        detector = json.loads(capsys.readouterr().out)["detector"]
        assert (detector["directions"], detector["lam"]) == (k, 0.5)
        assert detector["scaling"] == "standard"


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--lamm", "3"], "unrecognized options: --lamm, 3; did you mean --lam?"),
        (["--lam"], "missing value for argument '--lam'. Expected one value."),
    ],
)
def test_wrong_usage_is_one_line(capsys, flags, line):
    with pytest.raises(SystemExit, match="2"):
        main(["detect", *flags])
    found = f"spanwise detect: error: {line} spanwise detect --help explains every flag.\n"
    assert capsys.readouterr().err == found


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--contamination", "0.7"], "--contamination must be in (0, 0.5], got 0.7"),
        (["--why", "0"], "--why must be at least 1, got 0"),
        (["--model", "a", "--train", "b"], "give --train or --model, not both"),
        (["--model", "a", "--lam", "1"], "--lam cannot be set with --model"),
        (["--model", "a", "--contamination", "0.2"], "--contamination cannot be set with --model"),
        (["--directions", "inf"], "--directions must be at least 1, or a share"),
        (["--lam", "-1"], "--lam must be finite and at least 0, got -1.0"),
        (["--steps", "-1"], "--steps must be a whole number, at least 0, got -1"),
        (["--components", "3"], "--components is of kernels: give --kernel rbf as well"),
        (["--kernel", "linear", "--gamma", "1"], "--gamma is of --kernel rbf"),
        (["--kernel", "rbf", "--gamma", "-1"], "--gamma must be None or above 0, got -1.0"),
        (["--train", "none.csv"], "none.csv: No such file"),
        (["--keep", "idd"], "has no column 'idd'"),
    ],
)
def test_what_cannot_work_is_refused(files, capsys, flags, message):
    keep = [] if "--keep" in flags else ["--keep", "id"]
    assert main(["detect", files[0], *keep, *flags]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.bad_input
def test_other_features_are_named(files, tmp_path, capsys):
    other = tmp_path / "other.csv"
    other.write_text("id,height,size\na,1,2\nb,2,3\n")
    assert main(["detect", files[0], "--keep", "id", "--train", str(other)]) == 1
    told = capsys.readouterr().err
    assert "size only in" in told
    assert "Leave a column out with --drop, which may be in one file only" in told


def test_a_column_of_one_file_alone_may_be_dropped(files, tmp_path, capsys):
    new, normal = files
    rows = read(tmp_path / "normal.csv")
    labelled = tmp_path / "labelled.csv"
    with labelled.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "kind"])
        writer.writeheader()
        writer.writerows({**row, "kind": 1} for row in rows)
    args = ["detect", new, "--json", "--keep", "id"]
    assert main([*args, "--train", normal]) == 0
    plain = json.loads(capsys.readouterr().out)["lowest"]
    assert main([*args, "--train", str(labelled), "--drop", "kind"]) == 0
    assert json.loads(capsys.readouterr().out)["lowest"] == plain
    assert main([*args, "--train", str(labelled), "--drop", "kin"]) == 1
    assert "neither" in capsys.readouterr().err
    assert main(["detect", new, "--keep", "kind", "--drop", "id", "--train", str(labelled)]) == 1
    assert "no column 'kind' to keep" in capsys.readouterr().err


def test_a_kernel_judges_without_reasons_and_says_so(files, tmp_path, capsys):
    new, normal = files
    out, again = tmp_path / "found", tmp_path / "again"
    args = ["--keep", "id", "--no-pictures"]
    kernel = ["--kernel", "rbf", "--components", "12", "--landmarks", "50", "--gamma", "0.1"]
    assert main(["detect", new, "--train", normal, *args, *kernel, "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "no feature explains the scores of this kernel" in told
    assert "every sample: score and label\n" in told
    assert "are few for" not in told
    rows = read(out / "scores.csv")
    assert list(rows[0]) == ["row", "id", "score", "label"]
    assert min(rows, key=lambda row: float(row["score"]))["row"] == "3"
    model = str(out / "detector.safetensors")
    assert main(["detect", new, *args, "--model", model, "--out", str(again)]) == 0
    assert read(again / "scores.csv") == rows


def test_a_linear_kernel_has_reasons(files, capsys):
    args = ["detect", files[0], "--train", files[1], "--drop", "id", "--kernel", "linear", "--json"]
    assert main(args) == 0
    lowest = json.loads(capsys.readouterr().out)["lowest"][0]
    assert (lowest["row"], lowest["why"][:10]) == (3, "height = 9")


def test_one_sample_is_nothing_to_learn_from(tmp_path, capsys):
    np.save(tmp_path / "one.npy", np.ones((1, 3)))
    assert main(["detect", str(tmp_path / "one.npy")]) == 1
    assert "holds one sample" in capsys.readouterr().err


def test_what_the_detector_says_names_flags(files, capsys):
    args = ["detect", files[1], "--drop", "id"]
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # as outside of tests
        assert main([*args, "--steps", "1", "--directions", "9"]) == 0
    told = capsys.readouterr().err
    assert "--directions = 9 exceeds the 3 features" in told
    assert "did not converge in --steps = 1 steps" in told
    assert "Raise --steps, or scale the data with --scaling whiten" in told


def test_columns_that_a_model_does_not_know_may_be_dropped(files, tmp_path, capsys):
    out, more = tmp_path / "found", tmp_path / "more.csv"
    main(["detect", files[1], "--drop", "id", "--out", str(out), "--no-pictures"])
    more.write_text("height,weight,age,size\n1,2,3,4\n2,3,4,5\n")
    asked = ["detect", str(more), "--model", str(out / "detector.safetensors")]
    assert main(asked) == 1
    assert "Leave columns out with --drop" in capsys.readouterr().err
    assert main([*asked, "--drop", "size"]) == 0
