"""How much of an update leaks into avoided directions, by optimizer and by what is projected.

    python benchmarks/guard.py        # half a minute; writes results/guard.{json,svg}

A two-layer network learns a regression while 8 random output and 8 random input directions of
each layer are to be avoided. Three arms for each optimizer: nothing projected, only the gradient
projected (what one would try first), and the guard. Measured: the share of ||W_t - W_0|| that
lies in the avoided directions, the largest over layers and sides.
"""

import copy

import torch
from _timing import environment, write_results
from torch import nn

from spanwise import Atlas, Subspace, plots
from spanwise.atlas import Entry
from spanwise.linalg import random_basis
from spanwise.optim import GaLore, guard

STEPS, RECORD = 200, (1, 2, 5, 10, 20, 50, 100, 200)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 96, bias=False), nn.Tanh(), nn.Linear(96, 64, bias=False))


def atlas(model: nn.Module) -> Atlas:
    generator = torch.Generator().manual_seed(1)
    entries = []
    for name, p in model.named_parameters():
        for side, d in (("output", p.shape[0]), ("input", p.shape[1])):
            basis = Subspace(random_basis(d, 8, generator=generator))
            shape = tuple(p.shape)
            entries.append(
                Entry(name=name, side=side, subspace=basis, layout="linear", shape=shape)
            )
    return Atlas(entries)


def galore(named, decay, **options):
    return GaLore([{"params": named, "rank": 16}], lr=1e-2, weight_decay=decay,
                  refresh_every=50, **options)  # fmt: skip


OPTIMIZERS = {
    "AdamW": lambda p, wd: torch.optim.AdamW(p, lr=1e-3, weight_decay=wd),
    "SGD + momentum": lambda p, wd: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=wd),
    "Muon": lambda p, wd: torch.optim.Muon(p, lr=1e-3, weight_decay=wd),
    "GaLore": galore,
}


def leak(know: Atlas, model: nn.Module, start: nn.Module) -> float:
    before = dict(start.named_parameters())
    worst = 0.0
    for entry in know:
        d = (dict(model.named_parameters())[entry.name] - before[entry.name]).detach()
        u = entry.subspace.basis
        inside = u.mT @ d if entry.side == "output" else d @ u
        worst = max(worst, float(inside.norm() / d.norm()))
    return worst


def run(name: str, arm: str, decay: float) -> list[float]:
    model = network()
    know, start = atlas(model), copy.deepcopy(model)
    named = list(model.named_parameters())
    if arm == "guard" and name == "GaLore":
        optimizer = galore(named, decay, avoid=know)
    else:
        optimizer = OPTIMIZERS[name](named, decay)
        if arm == "guard":
            guard(optimizer, avoid=know)
    generator = torch.Generator().manual_seed(2)
    target = torch.randn(64, 64, generator=generator) / 8
    rows = []
    for step in range(1, STEPS + 1):
        x = torch.randn(128, 64, generator=generator)
        optimizer.zero_grad()
        (model(x) - x @ target).square().mean().backward()
        if arm == "gradient only":
            for n, p in named:
                for side, entry in know.get(n).items():
                    u = entry.subspace.basis
                    g = p.grad
                    g -= u @ (u.mT @ g) if side == "output" else (g @ u) @ u.mT
        optimizer.step()
        if step in RECORD:
            rows.append(leak(know, model, start))
    return rows


def main() -> None:
    torch.set_num_threads(1)
    arms = ("nothing", "gradient only", "guard")
    rows = [
        {"optimizer": name, "weight_decay": decay, "projected": arm, "leak": run(name, arm, decay)}
        for name in OPTIMIZERS
        for decay in (0.0, 0.1)
        for arm in arms
    ]
    write_results("guard", {"environment": environment(), "steps": RECORD, "rows": rows})
    fig, axes = plots.figure(1, len(OPTIMIZERS), width=10, height=3.0, sharey=True)
    styles = {"nothing": ":", "gradient only": "--", "guard": "-"}
    for ax, name in zip(axes.flat, OPTIMIZERS, strict=True):
        for row in (r for r in rows if r["optimizer"] == name and r["weight_decay"] == 0.1):
            ax.loglog(RECORD, row["leak"], styles[row["projected"]], label=row["projected"])
        ax.set(title=name, xlabel="step", ylim=(1e-8, 2))
    axes.flat[0].set_ylabel("share of the update's norm\nin avoided directions")
    axes.flat[0].legend(frameon=False, loc="center left")
    plots.save(fig, "results/guard.svg")
    for row in rows:
        print(f"{row['optimizer']:<15} wd {row['weight_decay']} {row['projected']:<14}"
              f" leak after {STEPS} steps {row['leak'][-1]:.1e}")  # fmt: skip


if __name__ == "__main__":
    main()
