"""Every optimizer of the library beside its rivals on the LLaMA-60M shapes.

    python benchmarks/optimizers.py                      # one thread, about ten minutes
    python benchmarks/optimizers.py --fork CHECKOUT      # with Online Subspace Descent's own code

Every contender steps in turn within each round, so that a machine whose speed drifts slows all of
them alike; the figures to read are the ratios. For each:

- an ordinary step, and what a step with a refresh of every matrix costs more;
- both together, amortised over T = 200 steps;
- bytes of state for the linear matrices, a peer's bases included;
- the peak memory of a whole training step (forward, backward, step) of a 60M LLaMA, in a process
  of its own, above what the process takes before the model is there.
"""

import argparse
import json
import statistics
import subprocess
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path

import torch
from _llama60m import LINEAR, LR, RANK, SCALE, fill_gradients, held_bytes, make_weights, seconds
from _timing import environment, write_results

from spanwise.optim import (
    SNSM,
    AdamSN,
    GaLore,
    Grass,
    GrassJump,
    GrassWalk,
    OnlineSubspaceDescent,
)
from spanwise.optim._zoo import MuonWithAdamW
from spanwise.reproductions import _peers

REFRESH_EVERY, NEVER = 200, 10**9


def ours(method, **options):
    def make(linear, rest, every):
        group = {"params": linear, "rank": RANK, "refresh_every": every, **options}
        return method([group, {"params": rest}], lr=LR)

    return make


def galore_torch(linear, rest, every):
    keys = {"rank": RANK, "update_proj_gap": every, "scale": SCALE, "proj_type": "std"}
    made = _peers.load("galore_torch", "adamw").AdamW
    return made([{"params": linear, **keys}, {"params": rest}], lr=LR, no_deprecation_warning=True)


def apollo(linear, rest, every):
    keys = {"rank": RANK, "update_proj_gap": every, "scale": 1.0, "proj": "random",
            "proj_type": "std", "scale_type": "channel"}  # fmt: skip
    made = _peers.load("apollo_torch", "apollo").AdamW
    return made([{"params": linear, **keys}, {"params": rest}], lr=LR)


def fira(linear, rest, every):
    keys = {"rank": RANK, "update_proj_gap": every, "alpha": SCALE, "proj_type": "std"}
    made = _peers.load("fira", "fira_adamw").AdamW
    return made([{"params": linear, **keys}, {"params": rest}], lr=LR, no_deprecation_warning=True)


def pytorch_optimizer(name, **options):
    def make(linear, rest, every):
        import pytorch_optimizer

        keys = {"params": linear, **options}
        if "rank" in options:
            keys["update_proj_gap"] = every
        return getattr(pytorch_optimizer, name)([keys, {"params": rest}], lr=LR)

    return make


def adamw(**options):
    return lambda linear, rest, every: torch.optim.AdamW([*linear, *rest], lr=LR, **options)


def muon(linear, rest, every):
    return MuonWithAdamW([{"params": linear, "rank": 1}, {"params": rest}], lr=LR)


def fork(checkout: Path):
    """Online Subspace Descent as released, from a checkout; its tracker is stubbed."""
    for name in ("wandb", "bitsandbytes", "bitsandbytes.optim", "bitsandbytes.optim.optimizer"):
        stub = sys.modules.setdefault(name, types.ModuleType(name))
        stub.__spec__ = ModuleSpec(name, None)  # others ask whether it is installed
    package = types.ModuleType("osd_fork")
    package.__path__ = [str(checkout / "galore_torch")]
    sys.modules["osd_fork"] = package
    from importlib import import_module

    def make(linear, rest, every):
        keys = {"rank": RANK, "update_proj_gap": 200, "scale": SCALE,
                "proj_type": "continuous", "names": [None] * len(linear)}  # fmt: skip
        made = import_module("osd_fork.adamw").AdamW
        groups = [{"params": linear, **keys}, {"params": rest}]
        return made(groups, lr=LR, no_deprecation_warning=True)

    return make


JOB = {
    "adamw_fused": ("torch AdamW, fused", adamw(fused=True)),
    "adamw_foreach": ("torch AdamW, foreach", adamw(foreach=True)),
    "muon": ("torch Muon + AdamW", muon),
    "galore": ("spanwise GaLore", ours(GaLore)),
    "grass": ("spanwise Grass", ours(Grass)),
    "grasswalk": ("spanwise GrassWalk", ours(GrassWalk)),
    "grassjump": ("spanwise GrassJump", ours(GrassJump)),
    "osd": ("spanwise OnlineSubspaceDescent", ours(OnlineSubspaceDescent)),
    "osd_4": ("spanwise OnlineSubspaceDescent, proj_every=4",
              ours(OnlineSubspaceDescent, proj_every=4)),
    "adamsn": ("spanwise AdamSN", lambda linear, rest, every: AdamSN(
        [{"params": linear, "subset_size": "heuristics"}, {"params": rest}], lr=LR)),
    "snsm": ("spanwise SNSM, svd", ours(SNSM)),
    "snsm_rows": ("spanwise SNSM, rows", ours(SNSM, proj_type="topk")),
    "galore_torch": ("galore_torch", galore_torch),
    "apollo": ("apollo_torch", apollo),
    "fira": ("fira", fira),
    "po_galore": ("pytorch_optimizer GaLore",
                  pytorch_optimizer("GaLore", rank=RANK, scale=SCALE, projection_type="std")),
    "po_fira": ("pytorch_optimizer Fira",
                pytorch_optimizer("Fira", rank=RANK, scale=SCALE, projection_type="std")),
    "po_adamwsn": ("pytorch_optimizer AdamWSN", pytorch_optimizer("AdamWSN")),
}  # fmt: skip
NEEDS = {"galore_torch": "galore_torch", "apollo": "apollo_torch", "fira": "fira",
         "po_galore": "pytorch_optimizer", "po_fira": "pytorch_optimizer",
         "po_adamwsn": "pytorch_optimizer"}  # fmt: skip
STEADY = (
    "adamw_fused",
    "adamw_foreach",
    "muon",
    "adamsn",
    "osd",
    "osd_4",
    "osd_fork",
    "po_adamwsn",
)
"""Contenders that never refresh: every step costs the same."""


SLOW = ("muon",)
"""Contenders whose bfloat16 products take a CPU without them a minute a step: timed once."""


def ordinary_steps(names: list[str], rounds: int) -> dict[str, dict[str, float]]:
    made = {}
    for name in names:
        linear, rest = make_weights()
        optimizer = JOB[name][1](linear, rest, NEVER)
        optimizer.step()  # first step: bases, states
        for _ in range(0 if name in SLOW else 4):  # a lazy basis may then be anywhere
            optimizer.step()
        made[name] = (optimizer, linear)
    times: dict[str, list[float]] = {name: [] for name in names}
    quick = [name for name in names if name not in SLOW]
    for turn in range(rounds):
        shift = turn % len(quick)
        for name in quick[shift:] + quick[:shift]:
            # Four steps: a basis that learns at every fourth pays its share.
            times[name].append(sum(seconds(made[name][0].step) for _ in range(4)) / 4)
    for name in names:
        if name in SLOW:
            times[name] = [seconds(made[name][0].step)] * rounds
    rows = {}
    for name, (optimizer, linear) in made.items():
        rows[name] = {
            "label": JOB[name][0],
            "step_ms": 1e3 * min(times[name]),
            "median_ms": 1e3 * statistics.median(times[name]),
            **{
                f"over_{base}": statistics.median(
                    a / b for a, b in zip(times[name], times[base], strict=True)
                )
                for base in ("adamw_fused", "galore")
                if base in names
            },
            "state_bytes_linear": held_bytes(optimizer, linear),
        }
    return rows


def refresh_steps(names: list[str]) -> dict[str, float]:
    """Milliseconds that a refresh of every matrix adds to a step."""
    found: dict[str, list[float]] = {}
    for name in names:
        linear, rest = make_weights()
        optimizer = JOB[name][1](linear, rest, 2)
        optimizer.step()
        for turn in range(1 if name in NEEDS else 3):  # their exact decompositions take long
            plain = seconds(optimizer.step)
            fill_gradients(linear, rest, 100 + turn)
            # Some count steps from 1 and refresh on the other of the two.
            found.setdefault(name, []).append(abs(seconds(optimizer.step) - plain))
    return {name: 1e3 * statistics.median(values) for name, values in found.items()}


def peak(name: str) -> dict[str, int]:
    """Peak memory of two whole training steps, measured in this process."""
    from spanwise.training.memory import PeakMemory
    from spanwise.zoo import load

    torch.set_num_threads(1)
    meter = PeakMemory(torch.device("cpu"))
    model = load("llama-60m").model.train()
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    optimizer = JOB[name][1](matrices, rest, NEVER)
    ids = torch.arange(256)[None] % model.config.vocab_size
    for _ in range(2):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"peak_bytes": meter.read(), "parameters": sum(p.numel() for p in model.parameters())}


def peaks(names: list[str], checkout: Path | None) -> dict[str, int]:
    found = {}
    for name in names:
        command = [sys.executable, __file__, "--peak", name]
        if checkout is not None:
            command += ["--fork", str(checkout)]
        # Freed blocks go back at once, so that the peak is what the step needs.
        run = subprocess.run(
            command, capture_output=True, text=True, env=_env(), check=True
        )  # fmt: skip
        found[name] = json.loads(run.stdout.splitlines()[-1])["peak_bytes"]
    return found


def _env() -> dict[str, str]:
    import os

    return {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1048576", "OMP_NUM_THREADS": "1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="contenders, by their short names")
    parser.add_argument("--fork", type=Path, help="checkout of Online Subspace Descent's code")
    parser.add_argument("--no-peaks", action="store_true")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fork:
        JOB["osd_fork"] = ("Online Subspace Descent's own code", fork(options.fork))
    if options.peak:
        print(json.dumps(peak(options.peak)))
        return
    torch.set_num_threads(options.threads)
    names = [n for n in JOB if n not in NEEDS or _peers.available(NEEDS[n])]
    if options.only:
        names = [n for n in names if n in options.only]
    rows = ordinary_steps(names, options.rounds)
    refreshing = [n for n in names if n not in STEADY]
    added = refresh_steps(refreshing)
    high = {} if options.no_peaks else peaks([n for n in names if n not in SLOW], options.fork)
    for name, row in rows.items():
        row["refresh_ms"] = added.get(name, 0.0)
        row["refresh_over_step"] = row["refresh_ms"] / row["step_ms"]
        row["amortised_ms"] = row["step_ms"] + row["refresh_ms"] / REFRESH_EVERY
        row["peak_bytes"] = high.get(name)
    if not options.only:
        write_results(
            "optimizers",
            {
                "environment": environment(),
                "setting": f"LLaMA-60M, {len(LINEAR)} matrices, rank {RANK}, float32; the peak: "
                "batch 1 of 256 tokens",
                "rows": rows,
            },
        )
    for row in rows.values():
        ratios = f"x{row.get('over_adamw_fused', 0):5.2f} AdamW x{row.get('over_galore', 0):5.2f}"
        held, most = row["state_bytes_linear"] / 1e6, (row["peak_bytes"] or 0) / 1e6
        print(
            f"{row['label']:<46} {row['step_ms']:7.1f} ms  {ratios} GaLore  "
            f"refresh {row['refresh_ms']:7.0f} ms  state {held:6.1f} MB  peak {most:6.0f} MB"
        )


if __name__ == "__main__":
    main()
