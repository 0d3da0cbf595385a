"""The structured backward of Grass beside ordinary linear layers, forward to step.

    python benchmarks/grass_linear.py       # one thread, a few minutes

A stack of LLaMA-60M's linear maps (no attention between them) takes whole training steps:

- ordinary layers with fused AdamW, and with Grass, which then reads dense gradients;
- layers converted by `grass_linear_`, on an ordinary step and on a step that chooses rows.

Every contender steps in turn within each round; the figures to read are the ratios of CPU time.
Of the three equal products of a layer the one for dW shrinks by r/m: at r = m/4 a quarter of the
arithmetic goes, so 1.33 is the bound for forward and backward together.
"""

import argparse
import statistics
import time

import torch
from _timing import environment, interleave, set_threads, write_results
from torch import nn
from torch.nn import functional as F

from spanwise.optim import GaLore, Grass, grass_linear_, param_groups

WIDTH, HIDDEN, RANK, LR = 512, 1376, 128, 1e-3
# One thread: leaves out the time in which other programs had the core.
clock = time.process_time
PHASES = ("forward", "backward", "step")


class Block(nn.Module):
    """The seven linear maps of a LLaMA-60M layer."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("q", "k", "v", "o"):
            setattr(self, name, nn.Linear(WIDTH, WIDTH, bias=False))
        self.gate = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.up = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)
        self.norms = nn.ModuleList(nn.RMSNorm(WIDTH) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norms[0](x)
        x = x + self.o(self.q(h) * self.k(h) + self.v(h))
        h = self.norms[1](x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Contender:
    """One model with its optimizer; every call is a training step, timed by phase."""

    def __init__(self, make, blocks: int, tokens: int, *, converted: bool = False) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(*(Block() for _ in range(blocks)))
        self.optimizer = make(self.model)
        self.handle = grass_linear_(self.model, self.optimizer) if converted else None
        self.x = torch.randn(4, tokens // 4, WIDTH)
        self.times: dict[str, list[float]] = {phase: [] for phase in PHASES}
        self.gradient_bytes = 0

    def __call__(self) -> None:
        marks = [clock()]
        loss = self.model(self.x).square().mean()
        marks.append(clock())
        loss.backward()
        marks.append(clock())
        self.gradient_bytes = self.held()
        start = clock()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.times["forward"].append(marks[1] - marks[0])
        self.times["backward"].append(marks[2] - marks[1])
        self.times["step"].append(clock() - start)

    def held(self) -> int:
        """Bytes of the matrices' gradients after the backward pass."""
        if self.handle is not None:
            return self.handle.gradient_bytes
        return sum(4 * p.grad.numel() for p in self.model.parameters() if p.ndim == 2)


def contenders(blocks: int, tokens: int) -> dict[str, Contender]:
    def adamw(model):
        return torch.optim.AdamW(model.parameters(), lr=LR, fused=True)

    def ours(method, every):
        return lambda model: method(param_groups(model, rank=RANK), lr=LR, refresh_every=every)

    never = 10**9
    return {
        "AdamW fused": Contender(adamw, blocks, tokens),
        "GaLore": Contender(ours(GaLore, never), blocks, tokens),
        "Grass, dense gradients": Contender(ours(Grass, never), blocks, tokens),
        "Grass, grass_linear_": Contender(ours(Grass, never), blocks, tokens, converted=True),
        "the same, choosing rows": Contender(ours(Grass, 1), blocks, tokens, converted=True),
    }


def measure(blocks: int, tokens: int, rounds: int) -> dict[str, dict[str, float]]:
    made = contenders(blocks, tokens)
    warmup = 2
    interleave(made, rounds=rounds, warmup=warmup)
    rows = {}
    for name, contender in made.items():
        times = {phase: t[warmup:] for phase, t in contender.times.items()}
        whole = [sum(parts) for parts in zip(*times.values(), strict=True)]
        rows[name] = {
            **{f"{phase}_ms": 1e3 * min(t) for phase, t in times.items()},
            "min_ms": 1e3 * min(whole),
            "median_ms": 1e3 * statistics.median(whole),
            "gradient_bytes": contender.gradient_bytes,
        }
    ordinary, choosing = (
        rows[n]["min_ms"] for n in ("Grass, grass_linear_", "the same, choosing rows")
    )
    for row in rows.values():
        row["over_adamw"] = row["min_ms"] / rows["AdamW fused"]["min_ms"]
        row["over_dense_grass"] = row["min_ms"] / rows["Grass, dense gradients"]["min_ms"]
    rows["Grass, grass_linear_"]["amortised_over_200_ms"] = ordinary + (choosing - ordinary) / 200
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    set_threads(1)
    results = {
        "environment": environment(),
        "setting": f"{options.blocks} layers of LLaMA-60M's linear maps, {options.tokens} tokens, "
        f"rank {RANK}, float32",
        "rows": measure(options.blocks, options.tokens, options.rounds),
    }
    write_results("grass_linear", results)
    for name, row in results["rows"].items():
        print(f"{name:<26}", *(f"{key} {value:.4g}" for key, value in row.items()))


if __name__ == "__main__":
    main()
