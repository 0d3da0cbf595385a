"""The optimizer family at a real model's size: memory, time and perplexity of 135M parameters."""

import functools
import hashlib
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.optim import Optimizer

from spanwise.datasets import load
from spanwise.layouts import linear_maps
from spanwise.optim import SNSM, GaLore, GrassJump, state_bytes
from spanwise.report import Check, Metric, Panel, Result, Row, arm_mean, run_cells
from spanwise.report._cells import cores
from spanwise.reproductions._byte_lm import sweep_and_judge
from spanwise.reproductions._byte_lm_figures import draw_against, draw_rates
from spanwise.reproductions._conclusion import conclude
from spanwise.reproductions._experiment import Run, experiment
from spanwise.reproductions._family import against_zero, excess
from spanwise.reproductions._keeping import anywhere, evenly, mean_loss
from spanwise.reproductions._settings import check_counts, check_rank, width_of
from spanwise.training.memory import PeakMemory
from spanwise.zoo import load as load_model

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "A 135M model fine-tuned: memory, time, perplexity"
CLAIM = (
    "On a real pretrained model, too, optimizers with a fraction of AdamW's state reach its "
    "held-out loss."
)
CRITERION = """\
SmolLM2-135M-Instruct, cut to its first layers, learns the interpreter's own Python sources, with
AdamW, GaLore, GrassJump and SNSM on the linear maps inside the layers (norms on AdamW, embeddings
and the tied head frozen in every arm). Each arm's rate is the best of one common grid on the tuning
seed, its edges extended. On at least three fresh seeds (batches and sketches), each arm at its own
rate, in nats per token of held-out files:
(1) GaLore's loss exceeds AdamW's by less than 3 percent;
(2) GrassJump's loss exceeds AdamW's by less than 3 percent;
(3) SNSM's loss exceeds AdamW's by less than 3 percent;
(4) each of the three keeps less than half of AdamW's bytes of state.
Reproduced: all four, with the whole 95 % paired intervals of (1), (2) and (3).
Direction only: all four by the means, but an interval reaches past its bound.
Not reproduced: otherwise. The peak memory of the whole model is measured, not judged.
"""

ARMS = {"adamw": "AdamW", "galore": "GaLore", "grassjump": "GrassJump", "snsm": "SNSM"}
OURS = ("galore", "grassjump", "snsm")
METRICS = {
    "loss": Metric(label="held-out loss", unit="nats/token", better="lower"),
    "perplexity": Metric(label="held-out perplexity", better="lower"),
    "matrix_state_bytes": Metric(label="optimizer state", unit="B", better="lower"),
    "step_ms": Metric(label="processor time of a step", unit="ms", better="lower"),
    "whole_model_peak": Metric(label="peak memory, all layers", unit="B", better="lower"),
}
EVERY, HELD_OUT = 10, 7
"""One document in ten is read, and of those one in seven is held out: enough for the lesson."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The experiment; the defaults are the committed run."""

    model: str = "smollm2-135m"
    """The packaged model."""
    layers: int = 8
    """Layers that are kept for the comparison of losses."""
    length: int = 128
    """Tokens in a sequence."""
    batch: int = 4
    """Sequences in a step."""
    steps: int = 100
    """Steps; the rate rises over the first tenth and falls to zero along half a cosine."""
    rank: int = 64
    """Rank r of the projected gradients, a ninth of the width."""
    refresh_every: int = 50
    """Steps between two bases."""
    plain_rate: float = 1e-3
    """Rate of AdamW on the norms, in every arm."""
    held_out: int = 32
    """Held-out sequences in an evaluation."""
    whole_steps: int = 50
    """Steps of the whole model, once an arm, for its peak memory."""
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    """Grid of rates, common to all arms."""
    extensions: int = 2
    """How many rates an arm's grid may grow by while its best lies on the edge."""
    tuning_seeds: tuple[int, ...] = (0,)
    """Seeds that choose the rates."""
    seeds: tuple[int, ...] = (100, 101, 102)
    """Seeds that judge."""

    def __post_init__(self) -> None:
        check_counts(self, "layers", "length", "batch", "steps", "held_out")
        check_rank(self, width_of(self.model))


PRESETS = {
    "quick": replace(
        Settings(), layers=1, length=16, batch=1, steps=2, rank=8, held_out=1, whole_steps=0,
        rates=(1e-3,), extensions=0, seeds=(100,),
    ),
    "default": Settings(),
    "full": replace(Settings(), layers=30, steps=400, tuning_seeds=(0, 1),
                    seeds=(100, 101, 102, 103, 104)),
}  # fmt: skip


@functools.lru_cache(maxsize=1)
def texts(model: str) -> tuple[Int64[Tensor, " n"], Int64[Tensor, " m"], str]:
    """Training and held-out tokens of the interpreter's sources, and their digest."""
    data = load("python-stdlib")
    tokenizer = load_tokenizer_of(model)
    parts: tuple[list[str], list[str]] = ([], [])
    for index, document in enumerate(data.documents[::EVERY]):
        parts[index % HELD_OUT == 0].append(document.text)
    train, held_out = (torch.tensor(tokenizer.encode("\n\n".join(part))) for part in parts)
    return train, held_out, hashlib.sha256(f"{data.digest} {model}".encode()).hexdigest()


def load_tokenizer_of(model: str) -> Any:
    """The tokenizer of a packaged model."""
    from spanwise.zoo.models import load_tokenizer

    return load_tokenizer(model)


def optimizer_of(arm: str, rate: float, settings: Settings, model: nn.Module) -> Optimizer:
    """The optimizer of an arm; embeddings and the tied head are frozen beforehand."""
    matrices = [(m.name, m.parameter) for m in linear_maps(model) if m.parameter.requires_grad]
    chosen = {id(p) for _, p in matrices}
    rest = [(n, p) for n, p in model.named_parameters() if p.requires_grad and id(p) not in chosen]
    plain = {"params": rest, "lr": settings.plain_rate, "weight_decay": 0.0, "eps": 1e-8}
    if arm == "adamw":
        groups = [{"params": matrices, "lr": rate}, plain]
        return torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
    keys = {"rank": settings.rank, "refresh_every": settings.refresh_every}
    method = {"galore": GaLore, "grassjump": GrassJump, "snsm": SNSM}[arm]
    return method([{"params": matrices, **keys}, plain], lr=rate)


def cell(cell: Mapping[str, Any]) -> dict[str, Any]:
    """One arm at one rate on one seed, in its own process."""
    torch.set_flush_denormal(True)
    settings = Settings(**cell["settings"])
    train, held_out, digest = texts(settings.model)
    if digest != cell["data"]:
        raise ValueError(f"the text has changed: {digest}, not {cell['data']}.")
    whole = bool(cell.get("whole"))
    meter = PeakMemory(torch.device("cpu"))
    model = load_model(settings.model, **({} if whole else {"layers": settings.layers})).model
    model.get_input_embeddings().weight.requires_grad_(False)
    optimizer = optimizer_of(cell["arm"], cell["rate"], settings, model)
    steps = settings.whole_steps if whole else settings.steps
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: rate_at(t, steps))
    generator = torch.Generator().manual_seed(cell["seed"])
    times = []
    model.train()
    for _ in range(steps):
        ids = anywhere(train, settings.batch, settings.length, generator)
        start = time.process_time()
        model(input_ids=ids, labels=ids).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        times.append(time.process_time() - start)
    peak = meter.read()
    loss = mean_loss(model, evenly(held_out, settings.held_out, settings.length), batch=8)
    finite = math.isfinite(loss)
    return {
        "loss": loss if finite else None,
        "perplexity": math.exp(min(loss, 50.0)) if finite else None,
        "matrix_state_bytes": state_bytes(optimizer),
        "step_ms": 1e3 * statistics.median(times),
        "run_peak": peak,
        **({} if finite else {"diverged": True}),
    }


def rate_at(step: int, steps: int) -> float:
    """Share of the peak rate at a step, counted from 0."""
    rise = min(1.0, (step + 1) / max(1, steps // 10))
    return rise * 0.5 * (1 + math.cos(math.pi * step / steps))


@experiment(PRESETS)
def run(this: Run[Settings]) -> Result:
    """Choose each arm's rate, judge on fresh seeds, measure the whole model once, and say so.

    Each process takes 2 GB of memory.
    """
    s = this.settings
    train, held_out, digest = texts(s.model)
    tuning, rows = sweep_and_judge(cell, list(ARMS), s, digest, **this.where)
    peaks = whole_model(s, digest, tuning.best, workers=this.workers, cache=this.cache)
    rows = tuple({**row, "whole_model_peak": peaks.get(row["arm"])} for row in rows)
    return conclude(
        this,
        slug="finetune-135m",
        title=TITLE,
        claim=CLAIM,
        criterion=CRITERION,
        file=__file__,
        data={
            "name": "python-stdlib",
            "digest": digest,
            "train_tokens": len(train),
            "held_out_tokens": len(held_out),
        },
        metrics=METRICS,
        arms=ARMS,
        rows=rows,
        checks=judge(rows),
        notes=notes(s),
        tuning=tuning,
    )


def whole_model(
    s: Settings,
    digest: str,
    best: Mapping[str, float],
    *,
    workers: int | None,
    cache: str | Path | None,
) -> dict[str, int]:
    """Arm -> peak bytes of some steps of the whole model, each in a fresh process."""
    if not s.whole_steps:
        return {}
    schedule = ("rates", "tuning_seeds", "seeds", "extensions")
    own = {k: v for k, v in asdict(s).items() if k not in schedule}
    common = {"seed": s.seeds[0], "settings": own, "data": digest, "whole": True}
    cells = [{"arm": arm, "rate": rate, **common} for arm, rate in best.items()]
    together = workers or cores()
    records: list[dict[str, Any]] = []
    for first in range(0, len(cells), together):
        # As many processes as cells: in each one no earlier model has left its memory.
        some = cells[first : first + together]
        records += run_cells(cell, some, workers=len(some), cache=cache)
    return {arm: record["run_peak"] for arm, record in zip(best, records, strict=True)}


def judge(rows: tuple[Row, ...]) -> list[Check]:
    """The four parts of the criterion on the fresh rows."""
    adamw = arm_mean(rows, "adamw", "matrix_state_bytes") or float("nan")
    shares = [(arm_mean(rows, arm, "matrix_state_bytes") or float("nan")) / adamw for arm in OURS]
    return [
        *(
            against_zero(
                f"{ARMS[arm]} exceeds AdamW's loss by less than 3 percent",
                excess(rows, arm, "adamw"), high=3.0, unit="%",
            )
            for arm in OURS
        ),
        Check.between("Each keeps less than half of AdamW's state", max(shares), high=0.5),
    ]  # fmt: skip


def notes(s: Settings) -> tuple[str, ...]:
    """What the numbers alone do not say."""
    return (
        f"The first {s.layers} of 30 layers, {s.steps} steps of {s.batch * s.length} tokens. A cut "
        "model starts far from what it knew, so that this is closer to pre-training than to "
        "ordinary fine-tuning.",
        f"The peak of the whole model was measured once an arm over {s.whole_steps} steps, "
        "resident memory above an empty process; it holds activations and weights too.",
        "Embeddings and the tied head are frozen in every arm; their AdamW state would add the "
        "same 226 MB to each.",
    )


def draw_bytes(ax: "Axes", result: Result) -> None:
    """Loss against bytes of state."""
    draw_against(
        ax, result, "matrix_state_bytes", ours=OURS, scale=1e-6, label="optimizer state (MB)"
    )


PANELS = (
    Panel(
        draw_rates,
        alt="Held-out loss against learning rate for AdamW, GaLore, GrassJump and SNSM.",
        caption="Loss against the rate; a dot marks the rate that each arm was judged at.",
    ),
    Panel(
        draw_bytes,
        alt="Held-out loss against bytes of optimizer state.",
        caption="Lower and further left is better. Orange: this library. Grey: AdamW.",
    ),
)


def figure(result: Result, axes: Sequence["Axes"]) -> None:
    """Draw both panels on two axes of your own."""
    for ax, panel in zip(axes, PANELS, strict=True):
        panel.draw(ax, result)
