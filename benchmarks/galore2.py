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
import importlib
import importlib.util
import statistics
import sys
import time
import types

import torch
from _timing import environment, write_results
from torch import nn

from spanwise.optim import GaLore

RANK, SCALE, LR = 128, 0.25, 1e-2
LINEAR = [(512, 512)] * 32 + [(1376, 512)] * 16 + [(512, 1376)] * 8
REST = [(32000, 512)] * 2 + [(512,)] * 17


def make_weights() -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    generator = torch.Generator().manual_seed(0)

    def draw(shape: tuple[int, ...]) -> nn.Parameter:
        p = nn.Parameter(0.02 * torch.randn(shape, generator=generator))
        p.grad = torch.empty_like(p)
        return p

    linear, rest = [draw(s) for s in LINEAR], [draw(s) for s in REST]
    fill_gradients(linear, rest, 0)
    return linear, rest


def fill_gradients(linear: list[nn.Parameter], rest: list[nn.Parameter], seed: int) -> None:
    """Gradients with a k^-0.6 spectrum for the matrices, as real ones have; noise elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    for p in linear:
        m, n = p.shape
        k = min(m, n)
        values = torch.arange(1, k + 1) ** -0.6
        a = torch.randn(m, k, generator=generator) / m**0.5
        b = torch.randn(k, n, generator=generator) / n**0.5
        p.grad.copy_((a * values) @ b)  # type: ignore[union-attr]
    for p in rest:
        p.grad.normal_(generator=generator)  # type: ignore[union-attr]


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


def load_galore_torch() -> type:
    """Its AdamW without its package import, which wants a CUDA library."""
    spec = importlib.util.find_spec("galore_torch")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("pip install --no-deps galore-torch==1.0")
    package = types.ModuleType("galore_official")
    package.__path__ = [spec.submodule_search_locations[0]]
    sys.modules["galore_official"] = package
    return importlib.import_module("galore_official.adamw").AdamW


def contenders() -> dict[str, tuple[object, list[nn.Parameter], list[nn.Parameter]]]:
    made = {}

    def add(name: str, make) -> None:
        linear, rest = make_weights()
        made[name] = (make(linear, rest), linear, rest)

    def theirs(linear, rest):
        keys = {"rank": RANK, "update_proj_gap": 10**9, "scale": SCALE, "proj_type": "std"}
        groups = [{"params": linear, **keys}, {"params": rest}]
        return load_galore_torch()(groups, lr=LR, no_deprecation_warning=True)

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


def seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


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
            state = linear_state_bytes(optimizer, linear)
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


def linear_state_bytes(optimizer: torch.optim.Optimizer, linear: list[nn.Parameter]) -> int:
    total = 0
    for p in linear:
        for value in optimizer.state[p].values():
            if torch.is_tensor(value) and value.ndim:
                total += value.numel() * value.element_size()
            elif hasattr(value, "ortho_matrix"):
                basis = value.ortho_matrix
                total += basis.numel() * basis.element_size()
    return total


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
