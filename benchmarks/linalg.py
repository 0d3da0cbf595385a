"""Leading singular subspaces beside torch.linalg.svd and torch.svd_lowrank, one thread.

The matrices are U diag(k^-0.6) V^T with Haar-distributed U and V, k = 1 ... min(m, n), float32:
about as flat as gradients of language models. The warm start is a basis of the previous gradient,
the same matrix plus an independent one of the same spectrum at 0.3 (or 1.0) of its norm. Energy is
what a basis captures, divided by what the best basis of that rank captures. Times are CPU time,
which on one thread is elapsed time less what other programs took.

    OMP_NUM_THREADS=1 python benchmarks/linalg.py
"""

import argparse
import time
from collections.abc import Callable

import torch
from _timing import environment, interleave, set_threads, summarize, write_results
from torch import Tensor

from spanwise.linalg import captured_energy, random_basis, top_subspace

SHAPES = [(512, 512), (512, 1376), (1376, 512)]
RANK, OVERSAMPLE, POWER, DECAY = 128, 8, 2, 0.6
TARGETS = {"randomized": (3.5, 0.99), "warm": (10.0, 0.97)}
"""Method -> times faster than torch.linalg.svd, share of the optimal energy."""


def gradient(m: int, n: int, generator: torch.Generator) -> Tensor:
    k = min(m, n)
    values = torch.arange(1, k + 1) ** -DECAY
    u = random_basis(m, k, generator=generator)
    v = random_basis(n, k, generator=generator)
    return (u * values) @ v.mT


def reference(M: Tensor, side: str) -> Tensor:
    u, _, vh = torch.linalg.svd(M, full_matrices=False)
    return u[:, :RANK] if side == "left" else vh[:RANK].mT


def lowrank(M: Tensor, side: str) -> Tensor:
    u, _, v = torch.svd_lowrank(M, q=RANK + OVERSAMPLE, niter=POWER)
    return (u if side == "left" else v)[:, :RANK]


def measure(m: int, n: int, rounds: int) -> list[dict[str, object]]:
    generator = torch.Generator().manual_seed(0)
    M, noise = gradient(m, n, generator), gradient(m, n, generator)
    energies = torch.linalg.svdvals(M.double()).square()
    optimal = float(energies[:RANK].sum() / energies.sum())

    calls: dict[tuple[str, str], Callable[[], Tensor]] = {}
    for side in ("left", "right"):
        calls["torch.linalg.svd", side] = lambda side=side: reference(M, side)
        calls["torch.svd_lowrank", side] = lambda side=side: lowrank(M, side)
        for method in ("exact", "gram", "randomized"):
            calls[method, side] = lambda side=side, method=method: top_subspace(
                M, RANK, side, method
            )
        calls["randomized, power 1", side] = lambda side=side: top_subspace(
            M, RANK, side, "randomized", power=1
        )
        for share in (0.3, 1.0):
            old = top_subspace(M + share * noise, RANK, side, "exact")
            name = "warm" if share == 0.3 else f"warm, noise {share}"
            calls[name, side] = lambda side=side, old=old: top_subspace(
                M, RANK, side, "warm", basis=old
            )

    rows = []
    for side in ("left", "right"):
        own = {name: call for (name, s), call in calls.items() if s == side}
        times = interleave(own, rounds=rounds, clock=time.process_time)
        figures = summarize(times, "torch.linalg.svd")
        for name, call in own.items():
            basis = call()
            error = (basis.mT @ basis - torch.eye(RANK)).abs().max()
            rows.append(
                {
                    "shape": [m, n],
                    "side": side,
                    "method": name,
                    **figures[name],
                    "energy_of_optimal": float(captured_energy(M, basis, side)) / optimal,
                    "orthonormality_error": float(error),
                }
            )
    return rows


def verdicts(rows: list[dict]) -> dict[str, dict[str, object]]:
    found = {}
    for method, (speed, energy) in TARGETS.items():
        own = [row for row in rows if row["method"] == method]
        slowest = min(own, key=lambda row: row["median_round_speedup"])
        found[method] = {
            "target_speedup": speed,
            "target_energy": energy,
            "least_median_round_speedup": slowest["median_round_speedup"],
            "least_speedup_of_minima": min(row["speedup"] for row in own),
            "slowest_case": [*slowest["shape"], slowest["side"]],
            "least_energy": min(row["energy_of_optimal"] for row in own),
            "met": slowest["median_round_speedup"] >= speed
            and all(row["energy_of_optimal"] >= energy for row in own),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    set_threads(1)
    rows = [row for shape in SHAPES for row in measure(*shape, options.rounds)]
    results = {
        "environment": environment(),
        "setting": {
            "rank": RANK,
            "oversample": OVERSAMPLE,
            "power": POWER,
            "spectrum": f"k^-{DECAY}",
            "dtype": "float32",
            "clock": "CPU time",
            "rounds": options.rounds,
        },
        "verdicts": verdicts(rows),
        "rows": rows,
    }
    write_results("linalg", results)
    for row in rows:
        print(
            f"{row['shape'][0]:>5} x {row['shape'][1]:<5}{row['side']:<6} {row['method']:<20}"
            f"{row['min_ms']:8.2f} ms min {row['median_ms']:8.2f} median "
            f"{row['median_round_speedup']:6.1f}x  energy {row['energy_of_optimal']:.4f}"
        )
    for method, verdict in results["verdicts"].items():
        print(method, verdict)


if __name__ == "__main__":
    main()
