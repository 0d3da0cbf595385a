"""What is written appears whole or not at all."""

import errno
import hashlib
import json
import os

import pytest

from spanwise.io import (
    atomic_file,
    atomic_folder,
    check_place,
    file_digest,
    write_bytes,
    write_json,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_bytes_read_back_and_missing_parents_are_made(tmp_path):
    path = write_bytes(tmp_path / "a" / "b" / "file", b"abc")
    assert path.read_bytes() == b"abc"
    assert names(path.parent) == ["file"]


def test_json_reads_back_with_text_as_it_is(tmp_path):
    value = {"name": "Björck", "ranks": [1, 2], "none": None}
    path = write_json(tmp_path / "x.json", value)
    assert json.loads(path.read_text(encoding="utf-8")) == value
    assert "Björck" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("value", "error"), [(float("nan"), ValueError), ({"a": {1, 2}}, TypeError)]
)
def test_what_json_cannot_hold_leaves_the_old_file(tmp_path, value, error):
    path = write_json(tmp_path / "x.json", {"kept": True})
    with pytest.raises(error):
        write_json(path, value)
    assert json.loads(path.read_text()) == {"kept": True}
    assert names(tmp_path) == ["x.json"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_in_the_body_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = write_bytes(tmp_path / "file", b"old")

    def fail():
        with atomic_file(path) as stream:
            stream.write(b"new")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_readers_see_the_old_content_until_the_body_ends(tmp_path):
    path = write_bytes(tmp_path / "file", b"old")
    with atomic_file(path) as stream:
        stream.write(b"new")
        stream.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_a_failed_write_says_which_file(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(OSError, match="file") as caught, atomic_file(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(path)
    assert names(tmp_path) == []


def test_a_link_stays_a_link(tmp_path):
    target = write_bytes(tmp_path / "target", b"old")
    link = tmp_path / "link"
    link.symlink_to(target)
    write_bytes(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_files_keep_the_permissions_of_the_umask(tmp_path):
    old = os.umask(0o022)
    try:
        path = write_bytes(tmp_path / "file", b"")
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o644


def test_the_digest_is_sha256(tmp_path):
    data = b"x" * 3_000_000
    assert file_digest(write_bytes(tmp_path / "file", data)) == hashlib.sha256(data).hexdigest()


def test_a_folder_appears_when_its_body_ends(tmp_path):
    target = tmp_path / "a" / "folder"
    with atomic_folder(target) as staged:
        (staged / "sub").mkdir()
        (staged / "sub" / "file").write_text("x")
        assert not target.exists()
        assert staged.parent == target.parent
    assert (target / "sub" / "file").read_text() == "x"
    assert names(target.parent) == ["folder"]


def fill(target, name="file", error=None, **options):
    with atomic_folder(target, **options) as staged:
        (staged / name).write_text("x")
        if error:
            raise error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_no_folder(tmp_path, error):
    with pytest.raises(error):
        fill(tmp_path / "folder", error=error)
    assert names(tmp_path) == []


def test_a_full_folder_is_refused_before_the_body_runs(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("x")
    # The body would raise something else.
    with pytest.raises(FileExistsError, match="already exists"):
        fill(tmp_path / "folder", error=RuntimeError)
    assert names(tmp_path) == ["folder"]
    assert names(tmp_path / "folder") == ["mine"]


def test_an_empty_folder_is_no_obstacle(tmp_path):
    (tmp_path / "folder").mkdir()
    fill(tmp_path / "folder")
    assert names(tmp_path / "folder") == ["file"]


def test_overwriting_replaces_the_whole_folder(tmp_path):
    target = tmp_path / "folder"
    for name in ("old", "new"):
        fill(target, name, overwrite=True)
    assert names(target) == ["new"]
    assert names(tmp_path) == ["folder"]


def test_an_error_while_overwriting_keeps_the_old_folder(tmp_path):
    target = tmp_path / "folder"
    fill(target, "old")
    with pytest.raises(RuntimeError):
        fill(target, "new", overwrite=True, error=RuntimeError)
    assert names(target) == ["old"]
    assert names(tmp_path) == ["folder"]


def test_a_rename_that_fails_brings_the_old_folder_back(tmp_path, monkeypatch):
    target = tmp_path / "folder"
    fill(target, "old")
    rename = type(tmp_path).rename

    def failing(self, other):
        if self.name.endswith(".tmp") and (self / "new").exists():
            raise OSError(errno.EIO, "no")
        return rename(self, other)

    monkeypatch.setattr(type(tmp_path), "rename", failing)
    with pytest.raises(OSError, match="no"):
        fill(target, "new", overwrite=True)
    assert names(target) == ["old"]
    assert names(tmp_path) == ["folder"]


def test_a_place_below_a_file_is_refused_and_nothing_is_made(tmp_path):
    (tmp_path / "file").write_text("x")
    for place in ("file", "file/a/b"):
        with pytest.raises(ValueError, match=r"file is a file\. Name another place"):
            check_place(tmp_path / place)
    check_place(tmp_path / "a" / "b")
    check_place(tmp_path)
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_that_may_not_be_written_to_is_refused(tmp_path):
    (tmp_path / "shut").mkdir(mode=0o500)
    with pytest.raises(PermissionError, match="may not be written to"):
        check_place(tmp_path / "shut" / "a")


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs Linux")
def test_a_place_where_not_even_root_can_write_is_refused():
    with pytest.raises(PermissionError, match="may not be written to"):
        check_place("/proc/out")
