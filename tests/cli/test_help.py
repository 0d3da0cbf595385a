"""Every verb's `--help` teaches, and loads nothing heavy."""

import json
import subprocess
import sys

import pytest

from spanwise import cli

HELPS = {
    "train": ("MODEL", "spanwise atlas extract", "--avoid", "--plan", "--alpha", "--resume"),
    "merge": ("BASE MODEL", "recipe.yml", "--avoid", "--plan", "--option", "merge methods"),
    "merge diagnose": ("BASE MODEL", "--energy", "--layers", "score", "conflict", "no promise"),
    "merge stats": (
        "MODEL", "--data", "--kind", "--merge", "--method regmean", "--plan", "--memory",
    ),
    "export": ("--as {merged,lora}", "--budget-rank", "--energy", "--plan", "llama-code", "vLLM"),
    "detect": ("FILE", "--train", "--contamination", "most first", "standard deviations"),
    "decompose": ("FILE", "--rank", "--cumulant", "--scree"),
    "cluster": ("FILE", "--clusters", "--model", "k-means"),
    "forecast": ("FILE", "--trajectory", "--steps", "--method", "held out"),
}  # fmt: skip

# One process for all: it takes seconds to start.
CODE = """
import contextlib, io, json, sys
from spanwise.cli import main
found = {}
for line in json.loads(sys.argv[1]):
    page = io.StringIO()
    with contextlib.redirect_stdout(page):
        try:
            code = main([*line.split(), "--help"])
        except SystemExit as end:
            code = end.code
    heavy = sorted({"torch", "transformers", "sklearn", "matplotlib"} & set(sys.modules))
    found[line] = {"code": code or 0, "page": page.getvalue(), "heavy": heavy}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def helped():
    lines = [*HELPS, *(verb for verb in cli.VERBS if verb not in HELPS)]
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(lines)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_verb_has_a_page_and_loads_nothing_heavy_for_it(helped):
    for line, found in helped.items():
        assert (found["code"], found["heavy"]) == (0, []), line
        assert len(found["page"].splitlines()) > 5, line


@pytest.mark.parametrize("line", HELPS)
def test_the_page_names_what_a_reader_needs(helped, line):
    missing = [word for word in HELPS[line] if word not in helped[line]["page"]]
    assert missing == []
