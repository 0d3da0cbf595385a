"""Two processes, against one that accumulates as much."""

import json
import os
import subprocess
import sys

import pytest

from spanwise.io.runs import RunFolder
from spanwise.training import TrainConfig, train


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one_with_twice_the_batch(options, texts, tmp_path):
    shared = {**options, "steps": 4, "watch": ()}
    alone = train(TrainConfig.flat(**{**shared, "accumulate": 2}))
    argv = [
        "train", options["model"], "--data", options["data"], "--out", str(tmp_path / "two"),
        "--rank", "4", "--steps", "4", "--batch", "2", "--sequence", "32", "--lr", "1e-2",
        "--refresh-every", "4", "--eval-sequences", "4", "--save-every", "3", "--device", "cpu",
    ]  # fmt: skip
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            "--nproc_per_node", "2", "-m", "spanwise", *argv,
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "on 2 processes" in done.stdout
    together = json.loads((tmp_path / "two" / "result.json").read_text())
    first, second = (
        [e["loss"] for e in RunFolder(out, resume=True).events("step")]
        for out in (alone.out, tmp_path / "two")
    )
    # Dropout draws its own numbers in each process: equal to its noise, not to rounding.
    assert len(second) == 4
    assert second == pytest.approx(first, abs=0.02)
    assert together["after"]["held_out"] == pytest.approx(alone.after["held_out"], abs=0.02)
