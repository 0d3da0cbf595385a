"""Whole or absent."""

import json
import os

import pytest

from spanwise.training import checkpoints as cp


@pytest.fixture
def run(tmp_path):
    def save(step, **files):
        staged = cp.staging_folder(tmp_path, step) / f"checkpoint-{step}"
        staged.mkdir(parents=True)
        for name, content in (files or {"weights.bin": b"w" * 100}).items():
            (staged / name).write_bytes(content)
        return cp.publish(staged, tmp_path, step)

    save.path = tmp_path
    return save


def test_a_published_checkpoint_is_whole_and_the_latest_is_found(run):
    run(3), run(12), run(9)
    found, notes = cp.last_complete(run.path)
    assert (found.name, notes) == ("checkpoint-12", [])
    assert cp.why_incomplete(found) is None
    assert cp.step_of(found) == 12


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda p: (p / cp.MARK).unlink(), "never marked"),
        (lambda p: (p / cp.MARK).write_text("{"), "mark is unreadable"),
        (lambda p: (p / "weights.bin").unlink(), "weights.bin is missing"),
        (lambda p: os.truncate(p / "weights.bin", 60), "60 bytes of 100"),
        (lambda p: (p / "weights.bin").write_bytes(b"w" * 99 + b"v"), "is damaged"),
    ],
)
def test_a_damaged_one_is_passed_over_with_its_reason(run, damage, reason):
    run(1)
    damage(run(2))
    found, notes = cp.last_complete(run.path)
    assert found.name == "checkpoint-1"
    assert len(notes) == 1
    assert notes[0].startswith("ignored checkpoint-2")
    assert reason in notes[0]


def test_a_folder_that_only_looks_like_a_checkpoint_does_not_count(run):
    (run.path / "checkpoint-7").mkdir()
    (run.path / "checkpoint-best").mkdir()
    assert cp.last_complete(run.path)[0] is None
    assert cp.last_complete(run.path / "nowhere") == (None, [])


def test_a_half_written_folder_of_the_same_step_gives_way(run):
    (run.path / "checkpoint-5").mkdir()
    (run.path / "checkpoint-5" / "half").write_text("x")
    assert sorted(p.name for p in run(5).iterdir()) == [cp.MARK, "weights.bin"]


def test_rotation_keeps_the_last_whole_ones_and_clears_leftovers(run):
    for step in (1, 2, 3, 10):
        run(step)
    cp.staging_folder(run.path, 11).mkdir(exist_ok=True)
    cp.rotate(run.path, 2)
    assert sorted(p.name for p in run.path.iterdir()) == ["checkpoint-10", "checkpoint-3"]


def test_the_mark_lists_every_file_with_its_size(run):
    mark = json.loads((run(4, a=b"12", b=b"345") / cp.MARK).read_text())
    assert {name: f["bytes"] for name, f in mark["files"].items()} == {"a": 2, "b": 3}
    assert mark["step"] == 4
