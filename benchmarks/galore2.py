"""GaLore beside torch AdamW, galore_torch and pytorch_optimizer on the LLaMA-60M shapes.

    python benchmarks/galore2.py            # one thread, a few minutes

Every contender steps in turn within each round, so that a machine whose speed drifts slows all
of them alike; the figures to read are the ratios. What is compared:

- an ordinary step (no refresh) of each optimizer, and the floor: the projection products, a
  fused Adam on the projected states and a fused AdamW on everything else;
- a step on which every matrix refreshes, by method;
- with staggered refresh, the slowest steps against the median.

On a CPU the dense projection costs more time than fused AdamW: what GaLore saves is bytes.
"""

import argparse
import statistics

import torch
from _llama60m import LINEAR, LR, RANK, SCALE, fill_gradients, held_bytes, make_weights, seconds
from _timing import environment, write_results
from torch import nn

from spanwise.optim import GaLore
from spanwise.reproductions import _peers


class Floor:
    """What any exact implementation must do, and nothing else."""

    def __init__(self, linear: list[nn.Parameter], rest: list[nn.Parameter]) -> None:
        self.linear = linear
        self.plain = torch.optim.AdamW(rest, lr=LR, fused=True)
        self.right = [p.shape[0] >= p.shape[1] for p in linear]
        self.bases = [torch.linalg.qr(torch.randn(min(p.shape), RANK)).Q for p in linear]
        low = [torch.zeros(max(p.shape), RANK) for p in linear]
        self.x = [
            nn.Parameter(t if r else t.mT.contiguous())
            for t, r in zip(low, self.right, strict=True)
        ]
        self.adam = torch.optim.AdamW(self.x, lr=LR, weight_decay=0.0, fused=True)

    @torch.no_grad()
    def step(self) -> None:
        for p, basis, right, x in zip(self.linear, self.bases, self.right, self.x, strict=True):
            x.grad = p.grad @ basis if right else basis.mT @ p.grad
            x.zero_()
        self.adam.step()
        for p, basis, right, x in zip(self.linear, self.bases, self.right, self.x, strict=True):
            a, b = (x, basis.mT) if right else (basis, x)
            p.addmm_(a, b, alpha=SCALE)
        self.plain.step()


def contenders() -> dict[str, tuple[object, list[nn.Parameter], list[nn.Parameter]]]:
    made = {}

    def add(name: str, make) -> None:
        linear, rest = make_weights()
        made[name] = (make(linear, rest), linear, rest)

    def theirs(linear, rest):
        keys = {"rank": RANK, "update_proj_gap": 10**9, "scale": SCALE, "proj_type": "std"}
        groups = [{"params": linear, **keys}, {"params": rest}]
        return _peers.load("galore_torch", "adamw").AdamW(
            groups, lr=LR, no_deprecation_warning=True
        )

    def other(linear, rest):
        import pytorch_optimizer

        keys = {"rank": RANK, "update_proj_gap": 10**9, "scale": SCALE, "projection_type": "std"}
        return pytorch_optimizer.GaLore([{"params": linear, **keys}, {"params": rest}], lr=LR)

    def ours(linear, rest, **options):
        groups = [{"params": linear, "rank": RANK}, {"params": rest}]
        return GaLore(groups, lr=LR, scale=SCALE, **options)

    def everything(linear, rest, **options):
        return torch.optim.AdamW([*linear, *rest], lr=LR, **options)

    add("floor", Floor)
    add("spanwise GaLore", lambda a, b: ours(a, b, refresh_every=10**9))
    add("galore_torch", theirs)
    add("pytorch_optimizer GaLore", other)
    add("torch AdamW fused", lambda a, b: everything(a, b, fused=True))
    add("torch AdamW foreach", lambda a, b: everything(a, b, foreach=True))
    return made


def ordinary_steps(rounds: int) -> dict[str, dict[str, float]]:
    made = contenders()
    for optimizer, *_ in made.values():
        optimizer.step()  # first step: bases, states
        optimizer.step()
    times: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(rounds):
        for name, (optimizer, *_) in made.items():
            times[name].append(seconds(optimizer.step))
    floor = min(times["floor"])
    rows = {}
    for name, (optimizer, linear, _) in made.items():
        state = None
        if isinstance(optimizer, torch.optim.Optimizer):
            state = held_bytes(optimizer, linear)
        rows[name] = {
            "min_ms": 1e3 * min(times[name]),
            "median_ms": 1e3 * statistics.median(times[name]),
            "over_floor": min(times[name]) / floor,
            "median_round_over_floor": statistics.median(
                a / b for a, b in zip(times[name], times["floor"], strict=True)
            ),
            "state_bytes_linear": state,
        }
    return rows


def refresh_steps(rounds: int) -> dict[str, dict[str, float]]:
    """Time of the refresh alone: a step with refresh of every matrix less one without."""
    rows: dict[str, list[float]] = {}
    steady: list[float] = []
    optimizers = {}
    for svd in ("exact", "gram", "randomized", "warm"):
        linear, rest = make_weights()
        groups = [{"params": linear, "rank": RANK}]
        optimizers[svd] = (GaLore(groups, lr=LR, svd=svd, refresh_every=2), linear, rest)
        optimizers[svd][0].step()
    for r in range(rounds):
        for svd, (optimizer, linear, rest) in optimizers.items():
            steady.append(seconds(optimizer.step))
            fill_gradients(linear, rest, 100 + r)
            rows.setdefault(svd, []).append(seconds(optimizer.step) - statistics.median(steady))
    exact = min(rows["exact"])
    return {
        svd: {"min_ms": 1e3 * min(t), "median_ms": 1e3 * statistics.median(t),
              "cheaper_than_exact": exact / min(t)}
        for svd, t in rows.items()
    }  # fmt: skip


def staggered_steps(count: int) -> dict[str, float]:
    linear, rest = make_weights()
    groups = [{"params": linear, "rank": RANK}, {"params": rest}]
    optimizer = GaLore(groups, lr=LR, refresh_every=count, stagger=True)
    optimizer.step()
    times = sorted(seconds(optimizer.step) for _ in range(count))
    median, p95 = statistics.median(times), times[int(0.95 * len(times))]
    return {
        "steps": count, "median_ms": 1e3 * median, "p95_ms": 1e3 * p95,
        "max_ms": 1e3 * times[-1], "p95_over_median": p95 / median,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--stagger-steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = {
        "environment": environment(),
        "setting": f"LLaMA-60M, {len(LINEAR)} matrices, rank {RANK}, float32",
        "ordinary_step": ordinary_steps(options.rounds),
        "refresh": refresh_steps(max(3, options.rounds // 2)),
        "stagger": staggered_steps(options.stagger_steps),
    }
    write_results("galore2", results)
    for part in ("ordinary_step", "refresh"):
        print(part)
        for name, row in results[part].items():
            print(f"  {name:<26}", *(f"{k} {v:.3g}" for k, v in row.items() if v is not None))
    print("stagger", {k: round(v, 3) for k, v in results["stagger"].items()})


if __name__ == "__main__":
    main()
