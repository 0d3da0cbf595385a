"""`spanwise merge diagnose`: what it costs, and whether its ranking foretells anything.

    python benchmarks/diagnose.py [--folder DIR] [--models 4] [--size 135m]

times one run, whole process, on random models of SmolLM2-135M's shapes, and writes
results/benchmarks/diagnose.json.

    python benchmarks/diagnose.py --digits [--seeds 100 101 102 103 104]

merges every pair of the eight fine-tunes of the digits experiment and holds the ranking beside what
the merges lost. It writes results/merge-diagnose.json, and the first seed's picture beside it.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from _timing import environment, rounded, write_results

from merging import PEAK, SHAPES, make_models
from spanwise.io import write_json
from spanwise.merging import merge
from spanwise.merging._diagnose import diagnose

RESULTS = Path(__file__).parents[1] / "results"
COLUMNS = ("score", "cosine", "shared_energy", "alignment")
ALPHAS = tuple(i / 10 for i in range(1, 16))


def cost(options: argparse.Namespace) -> None:
    root = options.folder / options.size
    root.mkdir(parents=True, exist_ok=True)
    make_models(root, SHAPES[options.size], options.models)
    paths = [str(root / name) for name in ("base", *(f"model{i}" for i in range(options.models)))]
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "out"
        argv = ["merge", "diagnose", *paths, "--out", str(out), "--quiet"]
        # PEAK reads where to write from the fourth argument.
        code = f"from spanwise.cli import main\nassert main({argv!r}) == 0\n" + PEAK
        single = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        start = time.perf_counter()
        child = subprocess.Popen(
            [sys.executable, "-c", code, "", "", "", f"{place}/memory"],
            env={**os.environ, **single},
        )
        _, status, used = os.wait4(child.pid, 0)
        if os.waitstatus_to_exitcode(status):
            raise RuntimeError("the run failed")
        row = {
            "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
            "wall_seconds": round(time.perf_counter() - start, 1),
            "peak_mb": round(int(Path(f"{place}/memory.peak").read_text()) / 1024),
            "matrices": len(json.loads((out / "diagnosis.json").read_text())["layers"]),
        }
    print(row)
    held = {"environment": environment(), "size": options.size, "models": options.models, **row}
    write_results("diagnose", held)


def digits(options: argparse.Namespace) -> None:
    from spanwise.reproductions._digits_tasks import Setup, Tasks

    seeds = {}
    for seed in options.seeds:
        tasks = Tasks(Setup(tasks=8), seed)
        named = dict(zip(NAMES, tasks.tuned, strict=True))
        found = diagnose(tasks.base, named)
        if seed == options.seeds[0]:
            found.figure(RESULTS / "merge-diagnose.svg")
            table = str(found)
            print(table)
        rows = []
        for i, j in itertools.combinations(range(8), 2):
            row = found.pair(NAMES[i], NAMES[j])
            rows.append(
                {"first": row.first, "second": row.second,
                 **{key: getattr(row, key) for key in COLUMNS}, **lost(tasks, i, j)}
            )  # fmt: skip
        seeds[seed] = rows
    agreement = {
        key: {
            drop: [
                spearman([r[key] for r in rows], [-r[drop] for r in rows])
                for rows in seeds.values()
            ]
            for drop in ("lost", "lost_at_half")
        }
        for key in COLUMNS
    }
    for key, held in agreement.items():
        print(key, {drop: round(statistics.fmean(values), 3) for drop, values in held.items()})
    held = {"environment": environment(), "spearman": agreement, "table": table, "pairs": seeds}
    write_json(RESULTS / "merge-diagnose.json", rounded(held))


NAMES = tuple(f"{90 * (t % 4)}°{' mirrored' * (t // 4)}" for t in range(8))


def lost(tasks, i: int, j: int) -> dict[str, float]:
    """Points of test accuracy below the two fine-tunes, mean of both tasks."""
    merged = merge(tasks.base, [tasks.tuned[i], tasks.tuned[j]], "task_arithmetic")

    def mean(weights, part: str) -> float:
        held = {name: weights[name] for name in tasks.base}
        return statistics.fmean(tasks.accuracy(held, task, part) for task in (i, j))

    best = max(ALPHAS, key=lambda alpha: mean(merged.at(alpha), "validation"))
    single = (tasks.single[i] + tasks.single[j]) / 2
    return {
        "alpha": best,
        "lost": single - mean(merged.at(best), "test"),
        "lost_at_half": single - mean(merged.at(0.5), "test"),
    }


def spearman(a: list[float], b: list[float]) -> float:
    """Rank correlation; equal values share their mean rank."""

    def ranks(values: list[float]) -> torch.Tensor:
        x = torch.tensor(values, dtype=torch.float64)
        return (x.unsqueeze(1) > x).sum(1) + ((x.unsqueeze(1) == x).sum(1) + 1) / 2

    return float(torch.corrcoef(torch.stack([ranks(a), ranks(b)]).double())[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/merging-benchmark"))
    parser.add_argument("--models", type=int, default=4)
    parser.add_argument("--size", choices=SHAPES, default="135m")
    parser.add_argument("--digits", action="store_true", help="the ranking, not the cost")
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101, 102, 103, 104])
    options = parser.parse_args()
    digits(options) if options.digits else cost(options)


if __name__ == "__main__":
    main()
