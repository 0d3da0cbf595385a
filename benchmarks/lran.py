"""LRAN's training step beside a naive loop over time, and kernel DMD beside its peers.

    python benchmarks/lran.py

The naive loop encodes every state and decodes every forecast by itself, one step after another,
with torch's default AdamW: the same loss and gradient. Peers (pydmd, deeptime) that are not
installed are left out. Seconds are the processor's.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _timing import environment, interleave, set_threads, summarize, write_results

from spanwise.datasets.dynamics import kuramoto_sivashinsky
from spanwise.estimators import DMD, KernelDMD
from spanwise.estimators._lran.module import LRANModule, make_module
from spanwise.estimators._lran.training import Plan, Windows, make_optimizer, stepping

CASES = [
    {"n": 2, "d": 3, "hidden": (32, 32), "horizon": 11, "batch": 64},
    {"n": 2, "d": 8, "hidden": (64, 64), "horizon": 10, "batch": 64},
    {"n": 64, "d": 16, "hidden": (128, 64), "horizon": 8, "batch": 64},
]


def made(case: dict[str, Any]) -> tuple[LRANModule, Windows, Plan]:
    generator = torch.Generator().manual_seed(0)
    net = make_module(case["n"], case["d"], case["hidden"], "elu", False, generator)
    states = torch.randn(4000, case["n"], generator=generator)
    rows = torch.arange(4000 - case["horizon"])
    plan = Plan(
        horizon=case["horizon"], delta=0.9, beta=1.0, eps=1e-2, lr=1e-3, one_cycle=False,
        steps=1, batch_size=case["batch"], weight_decay=1e-6, clip=1.0, patience=1,
    )  # fmt: skip
    return net, Windows(states, None, rows, rows[:0]), plan


def draw(windows: Windows, plan: Plan, generator: torch.Generator) -> torch.Tensor:
    return windows.train[torch.randint(len(windows.train), (plan.batch_size,), generator=generator)]


def ours(case: dict[str, Any]) -> Callable[[], torch.Tensor]:
    net, windows, plan = made(case)
    generator = torch.Generator().manual_seed(1)
    eps = plan.eps * float(windows.states.square().sum(1).mean())
    advance, _ = stepping(net, windows, plan, make_optimizer(net, plan), eps)
    return lambda: advance(draw(windows, plan, generator), plan.lr)


def naive(case: dict[str, Any]) -> Callable[[], torch.Tensor]:
    """The formula as one would write it down."""
    net, windows, plan = made(case)
    encoder, decoder = torch.nn.Sequential(*net.encoder), torch.nn.Sequential(*net.decoder)
    optimizer = torch.optim.AdamW(net.parameters(), lr=plan.lr, weight_decay=plan.weight_decay)
    generator = torch.Generator().manual_seed(1)
    eps = plan.eps * float(windows.states.square().sum(1).mean())
    steps = plan.horizon

    def step() -> torch.Tensor:
        rows = draw(windows, plan, generator)
        window = [windows.states[rows + t] for t in range(steps)]
        z = [encoder(x) for x in window]
        latent_eps = plan.eps * torch.stack([held.square().sum(-1).mean() for held in z]).mean()
        rolled, total = z[0], torch.zeros(())
        n1 = sum(plan.delta**t for t in range(steps))
        n2 = sum(plan.delta ** (t - 1) for t in range(1, steps))
        for t, x in enumerate(window):
            off = (decoder(rolled) - x).square().sum(-1) / (x.square().sum(-1) + eps)
            total = total + plan.delta**t / n1 * off.mean() / (1 + plan.beta)
            if t:
                off = (rolled - z[t]).square().sum(-1) / (z[t].square().sum(-1) + latent_eps)
                weight = plan.beta * plan.delta ** (t - 1) / n2
                total = total + weight * off.mean() / (1 + plan.beta)
            rolled = rolled @ net.step
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), plan.clip)
        optimizer.step()
        return total.detach()

    return step


def training(rounds: int) -> list[dict[str, Any]]:
    rows = []
    for case in CASES:
        first = [float(make(case)()) for make in (ours, naive)]
        contenders = {"spanwise": ours(case), "naive loop": naive(case)}
        times = interleave(contenders, rounds=rounds, warmup=20, clock=time.process_time)
        row = {
            **case, "first_loss_difference": abs(first[0] - first[1]),
            **summarize(times, "naive loop"),
        }  # fmt: skip
        print(row, flush=True)
        rows.append(row)
    return rows


def kernel_dmd(rounds: int) -> list[dict[str, Any]]:
    """Fits on Kuramoto-Sivashinsky runs joined end to end: pairs are given as the peers want."""
    rows = []
    for count in (500, 1000):
        run = kuramoto_sivashinsky(1, count, n_points=128, seed=0)[0]
        gamma = 0.5 / (128 * run.var())
        contenders: dict[str, Callable[[], Any]] = {
            "spanwise KernelDMD": lambda run=run, gamma=gamma: KernelDMD(
                gamma=gamma, rank_tol=1e-8
            ).fit(run),
            "spanwise DMD, rank 32": lambda run=run: DMD(32).fit(run),
        }
        try:
            from deeptime.decomposition import KernelEDMD
            from deeptime.kernels import GaussianKernel
        except ModuleNotFoundError:
            pass
        else:
            kernel = GaussianKernel(float(np.sqrt(1 / (2 * gamma))))
            contenders["deeptime KernelEDMD"] = lambda run=run, kernel=kernel: KernelEDMD(
                kernel, epsilon=1e-6, n_eigs=200
            ).fit((run[:-1], run[1:]))
        try:
            from pydmd import DMD as Peer
        except ModuleNotFoundError:
            pass
        else:
            contenders["PyDMD DMD, rank 32"] = lambda run=run: Peer(svd_rank=32).fit(run.T)
        times = interleave(contenders, rounds=rounds, clock=time.process_time)
        row: dict[str, Any] = {"states": count + 1, "n": 128}
        for name, own in times.items():
            row[name] = {"min_ms": 1e3 * min(own)}
        if "deeptime KernelEDMD" in times:
            row["kernel_speedup"] = (
                row["deeptime KernelEDMD"]["min_ms"] / row["spanwise KernelDMD"]["min_ms"]
            )
        if "PyDMD DMD, rank 32" in times:
            row["dmd_speedup"] = (
                row["PyDMD DMD, rank 32"]["min_ms"] / row["spanwise DMD, rank 32"]["min_ms"]
            )
        print(row, flush=True)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--fits", type=int, default=3)
    options = parser.parse_args()
    set_threads(1)
    found = {
        "environment": environment(),
        "training": training(options.rounds),
        "fits": kernel_dmd(options.fits),
    }
    write_results("lran", found)


if __name__ == "__main__":
    main()
