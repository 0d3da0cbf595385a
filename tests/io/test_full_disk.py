"""A limit on file sizes, which acts as a full disk does, leaves no broken file."""

import json
import subprocess
import sys

import pytest

resource = pytest.importorskip("resource")

SETUP = """
import json, os, resource, signal, sys, traceback
from pathlib import Path
import torch
from spanwise.io import ShardedWriter, Manifest, atomic_folder, open_tensors, save_tensors
from spanwise.io import write_bytes, write_json

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
large = {"x": torch.ones(100_000), "y": torch.ones(2)}

def limit(size=100_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

def fails(work):
    try:
        work()
    except OSError as error:
        assert error.errno == 27, error
        return str(error)
    raise SystemExit("no error")
"""

CASES = {
    "file": """
save_tensors(here / "a.safetensors", {"old": torch.ones(1)})
limit()
assert "a.safetensors" in fails(lambda: save_tensors(here / "a.safetensors", large))
assert "b.safetensors" in fails(lambda: save_tensors(here / "b.safetensors", large))
assert set(open_tensors(here / "a.safetensors")) == {"old"}
""",
    "json": """
write_json(here / "a.safetensors", [1])
limit(10_000)
assert "a.safetensors" in fails(lambda: write_json(here / "a.safetensors", [0] * 10_000))
assert (here / "a.safetensors").read_text() == "[\\n  1\\n]\\n"
""",
    "shards": """
def write(overwrite):
    with ShardedWriter(here / "a.safetensors", 1000, overwrite=overwrite) as out:
        for name, tensor in large.items():
            out.add(name, tensor)
limit()
fails(lambda: write(False))
assert not list(here.iterdir()), list(here.iterdir())
limit(resource.RLIM_INFINITY)
write(False)
limit()
fails(lambda: write(True))
assert set(open_tensors(here / "a.safetensors")) == {"x", "y"}
""",
    "folder": """
def write():
    with atomic_folder(here / "folder") as staged:
        (staged / "small").write_bytes(b"x")
        (staged / "large").write_bytes(b"x" * 200_000)
limit()
fails(write)
write_bytes(here / "a.safetensors", b"there is room for this one")
""",
    "manifest": """
manifest = Manifest(here / "a.safetensors", job={})
manifest.done("one")
limit(2000)
fails(lambda: manifest.done("two", text="x" * 5000))
assert list(manifest) == ["one"] == list(Manifest(manifest.path, job={}))
manifest.done("three")
""",
}


# One process imports torch; a fork of it per case has a limit of its own.
RUN = """
outcomes = {}
for case, code in json.loads(sys.argv[2]).items():
    here = Path(sys.argv[1]) / case
    here.mkdir()
    read, write = os.pipe()
    if os.fork() == 0:
        try:
            exec(code)
        except BaseException:
            os.write(write, traceback.format_exc().encode())
        os._exit(0)
    os.close(write)
    with open(read) as stream:
        outcomes[case] = stream.read()
    os.wait()
print(json.dumps(outcomes))
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("limits")
    command = [sys.executable, "-c", SETUP + RUN, str(folder), json.dumps(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {
        case: (error, [path.name for path in (folder / case).iterdir()])
        for case, error in json.loads(done.stdout).items()
    }


@pytest.mark.parametrize("case", CASES)
def test_a_limit_hit_while_saving_leaves_no_broken_file(outcomes, case):
    error, names = outcomes[case]
    assert not error, error
    assert names == ["a.safetensors"]
