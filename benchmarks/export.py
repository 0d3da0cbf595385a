"""A LoRA of a fine-tune: ranks by energy beside one rank everywhere, at equal bytes.

    python benchmarks/export.py [--folder DIR] [--steps 30] [--layers 6] [--ranks 2 4 8 16 32]

writes results/benchmarks/export.json. SmolLM2-135M learns CLINC150's questions with AdamW, its
last layers or (`--layers 0`) all parameters; the difference is exported at the bytes of each
uniform rank in three ways:

uniform    the same rank for every matrix
energy     `budget_rank`: directions by energy per byte, over all matrices
own share  each matrix the same share of its own energy, as PEFT's `convert_to_lora` does by a
           threshold; the threshold is the highest that takes no more bytes

Told are the share of the difference's energy that is held and, on held-out questions, the
divergence KL(tuned || base + B A) in nats a token, with factors rounded to bfloat16. Norms stay the
base's. Where embeddings were trained they are one of the matrices; the rows `layers` leave them
behind (`--exclude embed_tokens`).
"""

import argparse
import gc
import time
from pathlib import Path

import torch
from _timing import environment, set_threads, write_results
from torch.nn import functional as F

from spanwise.datasets import cache_folder
from spanwise.merging import plan_lora
from spanwise.merging._export.difference import factors
from spanwise.merging._export.ranks import Budget, kept, uniform_ranks
from spanwise.reproductions._teach_135m import new_text
from spanwise.zoo import load, source_folder

MODEL, LENGTH = "smollm2-135m", 128


def sequences(tokens, count, generator=None):
    """Sequences at random places, or evenly spread ones."""
    room = len(tokens) - LENGTH
    if generator is None:
        starts = torch.linspace(0, room, count).long()
    else:
        starts = torch.randint(room, (count,), generator=generator)
    return torch.stack([tokens[s : s + LENGTH] for s in starts.tolist()])


def teach(folder: Path, steps: int, lr: float, layers: int) -> float:
    """Fine-tune and save, unless it is there; processor seconds."""
    if (folder / "model.safetensors").is_file():
        return 0.0
    begun = time.process_time()
    model = load(MODEL).model.train()
    if layers:
        model.requires_grad_(False)
        model.model.layers[-layers:].requires_grad_(True)
    tokens = new_text(MODEL).train
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0
    )
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        ids = sequences(tokens, 2, generator)
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 10, (steps - step) / 20)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if not (step + 1) % 10:
            print(f"step {step + 1}: {loss.item():.3f}", flush=True)
    model.save_pretrained(folder)
    return time.process_time() - begun


class Judge:
    """Compares models with the tuned one on held-out questions."""

    def __init__(self, model, ids):
        self.model, self.ids = model, ids
        self.reference = []

    def read(self):
        with torch.no_grad():
            for row in self.ids:
                yield row, F.log_softmax(self.model(row[None]).logits[0], dim=-1)

    def remember(self):
        self.reference = [found.clone() for _, found in self.read()]

    def __call__(self):
        """KL of the remembered model to this one, and this one's loss, nats a token."""
        divergence = loss = 0.0
        for (row, found), told in zip(self.read(), self.reference, strict=True):
            divergence += F.kl_div(found, told, log_target=True, reduction="sum").item()
            loss += F.nll_loss(found[:-1], row[1:], reduction="sum").item()
        count = self.ids.numel()
        return {"kl": divergence / count, "loss": loss / (count - len(self.ids))}


def own_share(spectra, share):
    """Each matrix the fewest directions that hold this share of its own energy."""
    ranks = []
    for spectrum in spectra:
        held = spectrum.cumsum(0)
        enough = int((held < share * held[-1] * (1 - 1e-12)).sum())
        ranks.append(min(enough + 1, int((spectrum > 0).sum())))
    return ranks


def largest_share(spectra, costs, parameters):
    """Ranks of the highest threshold that takes no more parameters."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        size = sum(c * r for c, r in zip(costs, own_share(spectra, middle), strict=True))
        low, high = (middle, high) if size <= parameters else (low, middle)
    return own_share(spectra, low)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=cache_folder() / "export-benchmark")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8, 16, 32])
    parser.add_argument("--sequences", type=int, default=4)
    options = parser.parse_args()
    set_threads(1)
    tuned = options.folder / f"clinc-{options.layers}-{options.steps}-{options.lr:g}"
    training = teach(tuned, options.steps, options.lr, options.layers)
    gc.collect()

    begun = time.process_time()
    plan = plan_lora(source_folder(MODEL), tuned, budget_rank=16)
    planning = time.process_time() - begun
    begun = time.process_time()
    written = plan.write(options.folder / "lora", overwrite=True)
    writing = time.process_time() - begun
    print(f"planned {planning:.1f} s, written {writing:.1f} s, {written.energy:.4f}", flush=True)

    whole = {}
    generator = torch.Generator().manual_seed(0)
    for found in plan.matrices:
        matrix = found.target.matrix(plan.difference.of(found.target.name))
        a, b = factors(matrix, min(matrix.shape), "exact", generator)
        whole[found.target.name] = (a.bfloat16(), b.bfloat16(), found.target.layout)

    model = load(MODEL).model.eval()
    base = {name: p.detach().clone() for name, p in model.named_parameters()}
    judge = Judge(model, sequences(new_text(MODEL).held_out, options.sequences))

    def put(ranks, rest=lambda name: False):
        """The base, the first directions of each matrix, and what `rest` leaves out entirely."""
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(base[name])
                if rest(name):
                    parameter.add_(plan.difference.of(name))
                elif ranks.get(name):
                    a, b, layout = whole[name]
                    r = ranks[name]
                    update = b[:, :r].float() @ a[:r].float()
                    parameter.add_(update.mT if layout == "transposed" else update)

    put({}, rest=lambda name: True)
    judge.remember()
    ends = {"tuned": judge()}
    put({})
    ends["base"] = judge()
    vectors = set(plan.left)
    put({}, rest=lambda name: name not in vectors)
    ends["all but vectors"] = judge()
    put({m.target.name: len(m.spectrum) for m in plan.matrices})
    ends["all but vectors, factors in bfloat16"] = judge()
    print(ends, flush=True)

    rows = []
    tied = any(m.target.head is not None for m in plan.matrices)
    for scope in ("all", "layers") if tied else ("layers",):
        chosen = [m for m in plan.matrices if scope == "all" or m.target.head is None]
        spectra, costs = [m.spectrum for m in chosen], [m.target.cost for m in chosen]
        energy = sum(m.energy for m in chosen)
        for rank in options.ranks:
            alike = uniform_ranks(spectra, rank)
            size = sum(c * r for c, r in zip(costs, alike, strict=True))
            ways = {
                "uniform": alike,
                "energy": Budget(budget_rank=rank).choose(spectra, costs, 2, energy),
                "own share": largest_share(spectra, costs, size),
            }
            for way, ranks in ways.items():
                put(dict(zip([m.target.name for m in chosen], ranks, strict=True)))
                used = sum(c * r for c, r in zip(costs, ranks, strict=True))
                rows.append(
                    {
                        "scope": scope, "rank": rank, "way": way, "megabytes": 2e-6 * used,
                        "least": min(ranks), "most": max(ranks),
                        "energy": kept(spectra, ranks) / plan.total, **judge(),
                    }
                )  # fmt: skip
                print(rows[-1], flush=True)
    write_results(
        "export",
        {
            "environment": environment(), "model": MODEL, "text": new_text(MODEL).name,
            "steps": options.steps, "layers": options.layers, "lr": options.lr,
            "sequences": options.sequences, "length": LENGTH, "training_seconds": training,
            "planning_seconds": planning, "writing_seconds": writing,
            "vectors_energy": sum(f.energy for f in plan.left.values()) / plan.total,
            "ends": ends, "rows": rows,
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
