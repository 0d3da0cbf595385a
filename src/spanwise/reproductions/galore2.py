"""GaLore 2: AdamW's loss at a third of its state, and a randomized SVD that costs no loss."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from spanwise.optim import GaLore
from spanwise.report import (
    Check,
    Metric,
    Panel,
    Progress,
    Result,
    Row,
    Verdict,
    arm_mean,
    provenance,
)
from spanwise.reproductions._byte_lm import (
    ByteLM,
    Parts,
    load_text,
    shared,
    sweep_and_judge,
    train,
)
from spanwise.reproductions._byte_lm_figures import draw_memory, draw_rates, rate_mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "GaLore 2: gradient low-rank projection"
CLAIM = (
    "Training with gradients projected to a low rank matches AdamW's loss with a fraction of "
    "its state, and a randomized SVD finds bases as good as the exact one's."
)
CRITERION = """\
AdamW, GaLore with the exact SVD and GaLore with the randomized SVD train the same byte-level
LLaMA on the same batches. Each arm's rate for the matrices is the best of one common grid on
the tuning seeds. Then, on at least three fresh seeds, each arm at its own rate, in nats per
byte of held-out text:
(1) loss of randomized minus loss of exact lies between -0.02 and 0.02;
(2) the loss of GaLore (randomized) exceeds AdamW's by less than 6 percent;
(3) GaLore keeps at most one third of AdamW's bytes of state for the projected matrices.
Reproduced: all three, with the whole 95 % paired intervals of (1) and (2).
Direction only: all three by the means, but an interval reaches past its bound.
Not reproduced: otherwise.
"""

ARMS = {
    "adamw": "AdamW",
    "galore_exact": "GaLore, exact SVD",
    "galore_randomized": "GaLore, randomized SVD",
}
METRICS = {
    "loss": Metric(label="validation loss", unit="nats/byte", better="lower"),
    "matrix_state_bytes": Metric(label="state of the matrices", unit="B", better="lower"),
    "state_bytes": Metric(label="state of the model", unit="B", better="lower"),
    "step_ms": Metric(label="processor time of a step", unit="ms", better="lower"),
}


@dataclass(frozen=True, kw_only=True)
class Settings(ByteLM):
    """The experiment; the defaults are the committed run."""

    rank: int = 24
    """Rank r of the projected gradients, d / 4."""
    refresh_every: int = 50
    """Steps between two bases, T in the paper."""
    scale: float = 0.25
    """Factor of the lifted update, alpha in the paper."""
    rates: tuple[float, ...] = (7.5e-4, 1.5e-3, 3e-3, 6e-3, 1.2e-2, 2.4e-2)
    """Grid of rates for the matrices, common to all arms."""
    extensions: int = 3
    """How many rates an arm's grid may grow by while its best lies on the edge."""
    tuning_seeds: tuple[int, ...] = (0,)
    """Seeds that choose the rates."""
    seeds: tuple[int, ...] = (100, 101, 102)
    """Seeds that judge."""


PRESETS = {
    "quick": Settings(
        steps=24,
        refresh_every=8,
        validation_windows=64,
        rates=(1.5e-3, 1.2e-2),
        extensions=0,
        seeds=(100,),
    ),
    "default": Settings(),
    "full": Settings(tuning_seeds=(0, 1), seeds=(100, 101, 102, 103, 104)),
}


def optimizer_of(arm: str, rate: float, settings: Settings, parts: Parts) -> Optimizer:
    """The optimizer of one arm: `rate` moves the matrices, `plain_rate` everything else."""
    matrices, rest = parts
    # AdamW's own epsilon wherever plain AdamW runs, so that the arms share that part exactly.
    plain = {"params": rest, "lr": settings.plain_rate, "weight_decay": 0.0, "eps": 1e-8}
    if arm == "adamw":
        groups = [{"params": matrices, "lr": rate}, plain]
        return torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
    projected = {
        "params": matrices,
        "lr": rate,
        "rank": settings.rank,
        "refresh_every": settings.refresh_every,
        "scale": settings.scale,
        "svd": arm.removeprefix("galore_"),
    }
    return GaLore([projected, plain], lr=rate)


def cell(cell: Mapping[str, Any]) -> dict[str, Any]:
    """One training run, in its own process."""
    text = load_text()
    if text.digest != cell["data"]:
        raise ValueError(f"the text has changed: digest {text.digest}, expected {cell['data']}.")
    settings = Settings(**cell["settings"])
    return train(
        ByteLM(**shared(settings)),
        cell["seed"],
        lambda parts: optimizer_of(cell["arm"], cell["rate"], settings, parts),
        text,
    )


def run(
    settings: Settings | None = None,
    *,
    preset: str = "default",
    workers: int | None = None,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> Result:
    """Sweep, judge on fresh seeds, and say what follows.

    Args:
        settings: The experiment; by default that of `preset`.
        preset: The name that the result carries.
        workers: Processes at once; by default one for each core.
        cache: Folder of finished cells.
        progress: Told how far it is.
    """
    start = time.perf_counter()
    settings = settings or PRESETS[preset]
    text = load_text()
    tuning, rows = sweep_and_judge(
        cell, list(ARMS), settings, text.digest, workers=workers, cache=cache, progress=progress
    )
    checks = judge(rows)
    return Result(
        slug="galore2",
        title=TITLE,
        claim=CLAIM,
        criterion=CRITERION,
        preset=preset,
        settings=asdict(settings),
        data=text.describe(),
        metrics=METRICS,
        arms=ARMS,
        rows=rows,
        sweep=tuning.rows,
        chosen=tuning.best,
        verdict=Verdict.of(
            checks,
            fresh_seeds=settings.seeds,
            tuning_seeds=settings.tuning_seeds,
            untuned=[ARMS[arm] for arm in tuning.untuned],
        ),
        notes=notes(settings, tuning.rows, tuning.best),
        wall_seconds=time.perf_counter() - start,
        peak_bytes=max(r["peak_bytes"] or 0 for r in [*tuning.rows, *rows]) or None,
        **provenance(__file__, CRITERION),
    )


def judge(rows: tuple[Row, ...]) -> list[Check]:
    """The three parts of the criterion on the fresh rows.

    A run that diverged gives no interval: its part of the criterion fails.
    """
    loss = {arm: {r["seed"]: r["loss"] for r in rows if r["arm"] == arm} for arm in ARMS}
    state = {arm: arm_mean(rows, arm, "matrix_state_bytes") or 0.0 for arm in ARMS}
    randomized, exact, adamw = (loss[a] for a in ("galore_randomized", "galore_exact", "adamw"))
    excess = {
        seed: 100 * (value / adamw[seed] - 1) if value and adamw[seed] else None
        for seed, value in randomized.items()
    }
    return [
        Check.paired(
            "Randomized minus exact SVD lies between -0.02 and 0.02",
            randomized, exact, -0.02, 0.02, "nats/byte",
        ),
        Check.paired(
            "GaLore (randomized) exceeds AdamW's loss by less than 6 percent",
            excess, dict.fromkeys(excess, 0.0), high=6.0, unit="%",
        ),
        Check.between(
            "GaLore keeps at most a third of AdamW's state of the matrices",
            state["galore_randomized"] / state["adamw"], high=1 / 3 + 1e-12,
        ),
    ]  # fmt: skip


def notes(settings: Settings, sweep: tuple[Row, ...], best: Mapping[str, float]) -> tuple[str, ...]:
    """What the numbers alone do not say."""
    seeds = " and ".join(map(str, settings.tuning_seeds))
    found = [
        f"The swept rate moves the matrices. Embeddings, norms and the head run on AdamW at "
        f"{settings.plain_rate:g} in every arm; its epsilon there is AdamW's 1e-8.",
        f"Rates were chosen on seed {seeds}, which judges nothing. The cosine starts "
        + (f"after {settings.warmup} steps of warm-up." if settings.warmup else "without warm-up."),
    ]
    lowest = {arm: rate_mean(sweep, arm, rate) for arm, rate in best.items()}
    rates = sorted({row["rate"] for row in sweep if row["arm"] == "adamw"})
    here = rates.index(best["adamw"])
    beside = [rate_mean(sweep, "adamw", r) for r in rates[max(0, here - 1) : here + 2]]
    rival, own = lowest["galore_randomized"], lowest["adamw"]
    losses = [loss - own for loss in beside if loss is not None and own is not None and loss > own]
    if rival is not None and own is not None and losses and min(losses) > abs(rival - own):
        found.append(
            f"The rate matters more than the method: one step of the grid beside its best rate "
            f"costs AdamW at least {min(losses):.3f} nats/byte on the tuning seeds, where the "
            f"tuned arms are {abs(rival - own):.3f} apart."
        )
    return tuple(found)


PANELS = (
    Panel(
        draw_rates,
        alt="Validation loss against learning rate for AdamW and both kinds of GaLore.",
        caption="Loss against the rate; a dot marks the rate that each arm was judged at.",
    ),
    Panel(
        draw_memory,
        alt="Validation loss of every fresh seed against bytes of optimizer state.",
        caption="Every fresh seed (dots) and the mean (bar) against the bytes of state. "
        "The dashed line is the criterion's bound.",
    ),
)


def figure(result: Result, axes: Sequence["Axes"]) -> None:
    """Draw both panels on two axes of your own."""
    for ax, panel in zip(axes, PANELS, strict=True):
        panel.draw(ax, result)
