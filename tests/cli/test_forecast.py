"""`spanwise forecast` from files to files."""

import csv
import json

import numpy as np
import pytest

from spanwise.cli import main
from spanwise.cli.forecast import FILES
from spanwise.datasets.dynamics import koopman_invariant


def rotation(steps=80, angle=0.3):
    t = np.arange(steps)
    return np.stack([10 + np.cos(angle * t), 500 * np.sin(angle * t)], axis=1)


def write(path, columns, rows):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    return str(path)


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def table(tmp_path):
    rows = [(f"t{i}", *row) for i, row in enumerate(rotation(60))]
    return write(tmp_path / "rotation.csv", ("time", "east", "north"), rows)


def test_a_rotation_goes_on_and_its_period_is_told(table, tmp_path, capsys):
    out = tmp_path / "next"
    assert main(["forecast", table, "--drop", "time", "--steps", "20", "--out", str(out)]) == 0
    rows = read(out / "forecast.csv")
    assert list(rows[0]) == ["step", "east", "north"]
    found = np.array([[float(row["east"]), float(row["north"])] for row in rows])
    # The mean of a part of a period is not the center: the step's constant term makes up for it.
    np.testing.assert_allclose(found, rotation()[60:], rtol=1e-9, atol=1e-9)
    values = read(out / "eigenvalues.csv")
    assert float(values[0]["period"]) == pytest.approx(2 * np.pi / 0.3)
    assert {name for name in FILES if (out / name).exists()} == set(FILES)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["coordinates"] == 3  # the last is 1 throughout
    assert len(read(out / "errors.csv")) == len(summary["held_out_errors"])
    said = capsys.readouterr().out
    assert "1 trajectory of 60 states, 2 variables" in said
    assert "relative error, held out" in said


@pytest.mark.parametrize("method", ["dmd", "edmd", "kdmd", "lran"])
def test_trajectories_are_told_apart_by_a_column(method, tmp_path):
    X = koopman_invariant(8, 14)
    rows = [(f"run{i}", *X[i, t]) for t in range(11) for i in range(8)]  # interleaved
    path = write(tmp_path / "runs.csv", ("run", "a", "b"), rows)
    out = tmp_path / method
    options = ["--trajectory", "run", "--method", method, "--steps", "4"]
    options += ["--max-steps", "60"] if method == "lran" else []
    assert main(["forecast", path, *options, "--out", str(out), "--no-pictures"]) == 0
    rows = read(out / "forecast.csv")
    assert [row["run"] for row in rows[::4]] == [f"run{i}" for i in range(8)]
    found = np.array([[float(row["a"]), float(row["b"])] for row in rows]).reshape(8, 4, 2)
    if method == "edmd":
        np.testing.assert_allclose(found, X[:, 11:], atol=1e-6)
    else:
        assert np.isfinite(found).all()
    assert not list(out.glob("*.svg"))


def test_an_array_of_trajectories_needs_no_column(tmp_path, capsys):
    X = koopman_invariant(6, 10)
    np.save(tmp_path / "runs.npy", X)
    options = ["--method", "edmd", "--steps", "3", "--json"]
    assert main(["forecast", str(tmp_path / "runs.npy"), *options]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["trajectories"] == 6
    assert max(summary["held_out_errors"]) < 1e-6


def test_a_saved_model_forecasts_as_before(table, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    base = ["forecast", table, "--drop", "time", "--no-pictures", "--method", "kdmd"]
    main([*base, "--out", str(first)])
    main([*base, "--model", str(first / "model.safetensors"), "--out", str(second)])
    a, b = (read(folder / "forecast.csv") for folder in (first, second))
    for one, two in zip(a, b, strict=True):
        assert float(one["north"]) == pytest.approx(float(two["north"]), abs=1e-6)
    assert not (second / "errors.csv").exists()


def test_a_saved_model_keeps_its_own_step_and_knows_its_columns(tmp_path, capsys, monkeypatch):
    straight = write(tmp_path / "a.csv", ("east", "north"), rotation(60))
    turned = write(tmp_path / "b.csv", ("north", "east"), rotation(60)[:, ::-1])
    out = tmp_path / "next"
    assert main(["forecast", straight, "--dt", "0.5", "--no-pictures", "--out", str(out)]) == 0
    saved = ["--model", str(out / "model.safetensors")]
    drawn = []
    monkeypatch.setattr("spanwise.plots.forecast", lambda *_, **options: drawn.append(options))
    assert main(["forecast", straight, *saved, "--out", str(tmp_path / "again")]) == 0
    assert drawn[0]["dt"] == 0.5
    capsys.readouterr()
    assert main(["forecast", turned, *saved]) == 1
    assert "was learned from east, north ..., in this order" in capsys.readouterr().err
    learned = {"dt": 2, "components": 1, "degree": 3, "max-steps": 9, "held-out": 0.1}
    for name, value in learned.items():
        assert main(["forecast", straight, *saved, f"--{name}", str(value)]) == 1
        assert "cannot be set with --model" in capsys.readouterr().err


def test_a_saved_model_whose_scaling_is_lost_is_refused(table, tmp_path, capsys):
    out = tmp_path / "next"
    base = ["forecast", table, "--drop", "time", "--no-pictures"]
    assert main([*base, "--no-standardize", "--out", str(out)]) == 0
    saved = [*base, "--model", str(out / "model.safetensors")]
    expected = read(out / "forecast.csv")
    whole = json.loads((out / "summary.json").read_text())
    for changed in (
        {name: held for name, held in whole.items() if name != "scaling"},
        {**whole, "scaling": {"shift": [0, 0]}},
        [],
    ):
        (out / "summary.json").write_text(json.dumps(changed))
        assert main(saved) == 1
        assert "is not what spanwise forecast wrote beside its model" in capsys.readouterr().err
    (out / "summary.json").write_text(json.dumps({**whole, "scaling": {"shift": [], "scale": []}}))
    assert main(saved) == 1
    assert "has no scaling of 2 variables" in capsys.readouterr().err
    (out / "summary.json").unlink()
    assert main(saved) == 1
    assert "there is no summary.json beside" in capsys.readouterr().err
    again = tmp_path / "again"
    assert main([*saved, "--no-standardize", "--out", str(again)]) == 0
    assert read(again / "forecast.csv") == expected


def test_kept_columns_of_the_last_state_stand_beside_each_forecast(tmp_path):
    rows = [(f"run{i % 2}", i, "ab"[i % 2], *row) for i, row in enumerate(rotation(40))]
    path = write(tmp_path / "runs.csv", ("run", "day", "site", "east", "north"), rows)
    base = ["forecast", path, "--trajectory", "run", "--keep", "day", "site", "--steps", "2"]
    assert main([*base, "--out", str(tmp_path / "next"), "--no-pictures"]) == 0
    found = read(tmp_path / "next" / "forecast.csv")
    assert list(found[0]) == ["run", "day", "site", "step", "east", "north"]
    assert [(row["run"], row["day"], row["site"]) for row in found] == (
        [("run0", "38", "a")] * 2 + [("run1", "39", "b")] * 2
    )


@pytest.mark.filterwarnings("ignore:LRAN learned next to nothing")
def test_long_training_tells_its_progress_unless_quiet(table, capsys):
    args = ["forecast", table, "--drop", "time", "--method", "lran", "--max-steps", "20"]
    assert main(args) == 0
    assert "LRAN step" in capsys.readouterr().err
    assert main([*args, "--quiet"]) == 0
    assert "LRAN step" not in capsys.readouterr().err


def test_what_cannot_work_is_said_in_a_line(table, tmp_path, capsys):
    for options, message in (
        (["--steps", "0"], "steps must be at least 1, got 0"),
        (["--held-out", "1"], "held_out must be in [0, 1), got 1"),
        (["--components", "0"], "components must be at least 1"),
        (["--method", "edmd", "--components", "2"], "components is an option of lran and dmd and"),
        (["--degree", "3"], "degree is an option of edmd, and the method is dmd. Leave it out"),
        (["--max-steps", "9"], "max_steps is an option of lran, and the method is dmd"),
        (["--drop", "time", "--steps", "100000000"], "are 200,000,000 numbers, and"),
        (["--trajectory", "tmie"], "has no column 'tmie'"),
        ([], "column 'time' is 't0', which is no number"),
    ):
        assert main(["forecast", table, *options]) == 1
        assert message in capsys.readouterr().err
    steps = write(tmp_path / "steps.csv", ("step", "a"), [(i, i) for i in range(30)])
    assert main(["forecast", steps]) == 1
    assert "the column 'step' has the name of the result's own counter" in capsys.readouterr().err
    other = write(tmp_path / "one.csv", ("a",), [(i,) for i in range(30)])
    out = tmp_path / "next"
    assert main(["forecast", table, "--drop", "time", "--out", str(out), "--no-pictures"]) == 0
    assert main(["forecast", other, "--model", str(out / "model.safetensors")]) == 1
    assert "forecasts 2 variables, the data has 1" in capsys.readouterr().err


def test_the_flag_that_was_perhaps_meant_is_the_nearest(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["forecast", "x.csv", "--step", "10"])
    assert "did you mean --steps?" in capsys.readouterr().err
