import subprocess

import pytest

from spanwise.report import provenance
from spanwise.report._provenance import code_commit, criterion_commit, repeated

CRITERION = "Ours is better.\nBy 6 percent.\n"


def git(folder, *arguments):
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def module(tmp_path):
    """A tracked module whose second commit wrote the criterion."""
    git(tmp_path, "init", "-q")
    path = tmp_path / "spanwise" / "experiment.py"
    path.parent.mkdir()
    for text, message in (
        ("x = 1\n", "start"),
        (f'CRITERION = """\\\n{CRITERION}"""\n', "criterion"),
        (f'CRITERION = """\\\n{CRITERION}"""\nx = 2\n', "later"),
    ):
        path.write_text(text)
        git(tmp_path, "add", ".")
        git(tmp_path, "commit", "-q", "-m", message)
    return path


def test_the_commit_that_wrote_the_criterion_is_found_behind_later_ones(module):
    assert criterion_commit(module, CRITERION) == git(module.parent, "rev-parse", "HEAD~1")
    assert code_commit(module) == git(module.parent, "rev-parse", "HEAD")


def test_a_criterion_that_was_changed_and_not_committed_has_no_commit(module):
    assert criterion_commit(module, CRITERION.replace("6", "9")) is None
    assert criterion_commit(module, "  \n") is None


def test_a_criterion_changed_and_committed_again_has_the_later_commit(module):
    softer = CRITERION.replace("6", "9")
    module.write_text(module.read_text().replace(CRITERION, softer))
    git(module.parent, "commit", "-q", "-a", "-m", "softer")
    assert criterion_commit(module, softer) == git(module.parent, "rev-parse", "HEAD")


def test_edits_of_the_package_are_marked(module):
    module.write_text("x = 3\n")
    assert code_commit(module) == git(module.parent, "rev-parse", "HEAD") + "+"


def test_a_shallow_clone_cannot_vouch_for_the_criterion(module, tmp_path):
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{tmp_path}", str(clone))
    assert criterion_commit(clone / "spanwise" / "experiment.py", CRITERION) is None


def test_outside_of_git_there_are_no_commits(tmp_path):
    path = tmp_path / "experiment.py"
    path.write_text(CRITERION)
    assert criterion_commit(path, CRITERION) is None
    assert code_commit(path) is None


def test_an_untracked_file_in_a_checkout_has_no_commit(module):
    other = module.with_name("other.py")
    other.write_text(CRITERION)
    assert criterion_commit(other, CRITERION) is None
    assert code_commit(other) is None


def test_provenance_fills_the_fields_of_a_result(module):
    found = provenance(module, CRITERION)
    assert set(found) == {"criterion_commit", "commit", "environment"}
    assert found["environment"]["threads"] == 1


@pytest.mark.parametrize(
    ("ran", "typed"),
    [
        ("spanwise reproduce mats", "spanwise reproduce mats"),
        ("spanwise reproduce mats --out /tmp/x/runs --workers=2", "spanwise reproduce mats"),
        ("spanwise reproduce --quiet mats --json --rank 3", "spanwise reproduce mats --rank 3"),
        ("spanwise reproduce mats --name 'a b'", "spanwise reproduce mats --name 'a b'"),
    ],
)
def test_the_command_is_what_a_reader_types_for_the_same_numbers(ran, typed):
    assert repeated(ran) == typed


def test_a_package_that_was_run_by_python_m_goes_by_its_name(module, monkeypatch):
    monkeypatch.setattr(
        "sys.argv", ["/lib/spanwise/__main__.py", "reproduce", "mats", "--out", "x"]
    )
    assert provenance(module, CRITERION)["environment"]["command"] == "spanwise reproduce mats"
