"""A run's folder says what ran, on what, and what happened."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from spanwise.errors import CorruptFileError
from spanwise.io.runs import RunFolder, digest


@dataclass(frozen=True, kw_only=True)
class Options:
    data: tuple[Path, ...] = ()
    lr: float = 1e-3
    out: Path | None = None


def test_the_config_reads_back(tmp_path):
    run = RunFolder(tmp_path / "runs" / "a")
    run.write_config(Options(data=(Path("a.txt"),)))
    assert run.read_config() == {"data": ["a.txt"], "lr": 1e-3, "out": None}


def test_the_manifest_names_inputs_by_digest_and_versions(tmp_path):
    file = tmp_path / "text"
    file.write_bytes(b"abc")
    run = RunFolder(tmp_path / "a")
    run.write_manifest(inputs={"data": file}, seed=3, device="cpu")
    manifest = run.read_manifest()
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # SHA-256 of "abc"
    assert manifest["inputs"]["data"]["sha256"] == known
    assert manifest["seed"] == 3
    assert {"command", "python", "threads", "versions"} <= set(manifest)
    assert {"spanwise", "torch"} <= set(manifest["versions"])


def test_events_append_and_a_torn_last_line_is_left_out(tmp_path):
    run = RunFolder(tmp_path / "a")
    run.event({"event": "step", "loss": 2.0})
    run.event({"event": "note"}, text="a\nb")
    with run.events_path.open("a") as file:
        file.write('{"event": "st')
    assert [e["event"] for e in run.events()] == ["step", "note"]
    assert run.events("step")[0]["loss"] == 2.0
    assert len(run.events_path.read_text().splitlines()) == 3


def test_an_event_after_a_torn_line_is_not_lost(tmp_path):
    run = RunFolder(tmp_path / "a")
    run.events_path.write_text('{"event": "st')
    run.event({"event": "step"})
    assert [e["event"] for e in run.events()] == ["step"]


def test_the_outcome_is_the_last_event(tmp_path):
    run = RunFolder(tmp_path / "a")
    with run:
        pass
    assert run.events()[-1]["event"] == "done"
    with pytest.raises(KeyboardInterrupt), run:
        raise KeyboardInterrupt
    assert run.events()[-1]["event"] == "interrupted"


def test_a_finished_run_is_not_overwritten_by_accident(tmp_path):
    RunFolder(tmp_path / "a").write_config({})
    with pytest.raises(ValueError, match="already holds a run"):
        RunFolder(tmp_path / "a")
    assert RunFolder(tmp_path / "a", resume=True).read_config() == {}


def test_a_file_is_no_run_folder(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        RunFolder(tmp_path / "a")


def test_a_folders_digest_sees_names_and_contents(tmp_path):
    (tmp_path / "x").write_text("1")
    first = digest(tmp_path)
    (tmp_path / "x").rename(tmp_path / "y")
    second = digest(tmp_path)
    (tmp_path / "y").write_text("2")
    assert len({first, second, digest(tmp_path)}) == 3
    with pytest.raises(FileNotFoundError):
        digest(tmp_path / "no")


def test_a_non_finite_loss_stays_readable(tmp_path):
    run = RunFolder(tmp_path / "a")
    run.event({"event": "step", "loss": float("nan")})
    assert json.loads(run.events_path.read_text())["event"] == "step"


def test_a_damaged_manifest_is_named(tmp_path):
    run = RunFolder(tmp_path / "a")
    run.write_manifest(seed=3)
    run.manifest_path.write_text(run.manifest_path.read_text()[:20])
    with pytest.raises(CorruptFileError, match=r"manifest\.json is damaged"):
        run.read_manifest()
