"""A long job goes on where it stopped."""

import json

import pytest

from spanwise.errors import CorruptFileError
from spanwise.io import Manifest


def test_steps_survive_the_process(tmp_path):
    path = tmp_path / "out" / "progress.json"
    first = Manifest(path, job={"rank": 8})
    first.done("layer.0", rank=3)
    first.done("layer.1")
    again = Manifest(path, job={"rank": 8})
    assert list(again) == ["layer.0", "layer.1"]
    assert len(again) == 2
    assert "layer.0" in again
    assert "layer.2" not in again
    assert again["layer.0"] == {"rank": 3}
    again.done("layer.2")
    assert list(Manifest(path, job={"rank": 8})) == ["layer.0", "layer.1", "layer.2"]


def test_a_step_done_again_keeps_its_last_facts(tmp_path):
    manifest = Manifest(tmp_path / "m.json", job={})
    manifest.done("a", loss=1)
    manifest.done("a", loss=2)
    assert len(manifest) == 1
    assert Manifest(manifest.path, job={})["a"] == {"loss": 2}


def test_no_file_appears_before_a_step_is_done(tmp_path):
    manifest = Manifest(tmp_path / "m.json", job={})
    assert not manifest.path.exists()
    manifest.remove()
    manifest.done("a")
    manifest.remove()
    assert not manifest.path.exists()
    assert len(manifest) == 0


def test_a_manifest_of_another_job_is_refused(tmp_path):
    Manifest(tmp_path / "m.json", job={"rank": 8, "base": "abc"}).done("a")
    with pytest.raises(ValueError, match="another job: extra, rank differ"):
        Manifest(tmp_path / "m.json", job={"rank": 4, "base": "abc", "extra": 1})


def test_jobs_compare_as_the_json_they_are_stored_as(tmp_path):
    Manifest(tmp_path / "m.json", job={"shape": (2, 3)}).done("a")
    assert "a" in Manifest(tmp_path / "m.json", job={"shape": (2, 3)})


def test_facts_that_json_cannot_hold_change_nothing(tmp_path):
    manifest = Manifest(tmp_path / "m.json", job={})
    manifest.done("a")
    with pytest.raises(TypeError):
        manifest.done("b", value={1, 2})
    assert list(manifest) == ["a"]
    assert list(Manifest(tmp_path / "m.json", job={})) == ["a"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"job": {}, "steps": 3}', "\x00"])
def test_what_is_no_manifest_is_named(tmp_path, text):
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(CorruptFileError, match=r"m.json is no manifest.*Delete it"):
        Manifest(tmp_path / "m.json", job={})


def test_every_prefix_of_a_manifest_is_named_or_whole(tmp_path):
    manifest = Manifest(tmp_path / "m.json", job={"rank": 2})
    manifest.done("a", loss=1)
    whole = manifest.path.read_bytes()
    json.loads(whole)
    for length in range(len(whole) - 2):
        manifest.path.write_bytes(whole[:length])
        with pytest.raises(CorruptFileError, match="no manifest"):
            Manifest(manifest.path, job={"rank": 2})
