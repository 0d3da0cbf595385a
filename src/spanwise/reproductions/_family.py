"""The optimizer family's shared experiment: every arm of every paper, tuned and judged alike.

One cell function for all: an arm that two experiments share is trained once, since finished
cells are kept by what they are and not by who asked.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from spanwise.linalg import orthonormalize
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
from spanwise.report import Check, Metric, Panel, Result, Row
from spanwise.reproductions import _peers
from spanwise.reproductions._byte_lm import (
    ByteLM,
    Parts,
    load_text,
    shared,
    sweep_and_judge,
    train,
)
from spanwise.reproductions._byte_lm_figures import draw_memory, draw_rates
from spanwise.reproductions._conclusion import conclude
from spanwise.reproductions._experiment import Run, Runner, experiment

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METRICS = {
    "loss": Metric(label="validation loss", unit="nats/byte", better="lower"),
    "matrix_state_bytes": Metric(label="state of the matrices", unit="B", better="lower"),
    "state_bytes": Metric(label="state of the model", unit="B", better="lower"),
    "step_ms": Metric(label="processor time of a step", unit="ms", better="lower"),
}


@dataclass(frozen=True, kw_only=True)
class Settings(ByteLM):
    """The experiment; the defaults are the committed runs."""

    rank: int = 24
    """Rank r of the projected gradients, d / 4."""
    refresh_every: int = 50
    """Steps between two bases, T in the papers."""
    scale: float = 0.25
    """Factor of the lifted update, alpha in the GaLore papers; subset norms use none."""
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
        steps=16,
        refresh_every=8,
        validation_windows=32,
        rates=(1.5e-3, 1.2e-2),
        extensions=0,
        seeds=(100,),
    ),
    "default": Settings(),
    "full": Settings(tuning_seeds=(0, 1), seeds=(100, 101, 102, 103, 104)),
}


# -- the arms ------------------------------------------------------------------------------


Group = dict[str, Any]
Make = Callable[[list[nn.Parameter], Group, float, Settings], Optimizer]
"""(matrices, group of the rest, rate of the matrices, settings) -> optimizer of both."""


def _projected(method: Callable[..., Optimizer], **options: Any) -> Make:
    def make(matrices: list[nn.Parameter], rest: Group, rate: float, s: Settings) -> Optimizer:
        base = {"rank": s.rank, "refresh_every": s.refresh_every, "scale": s.scale}
        group = {"params": matrices, "lr": rate, **base, **options}
        return method([group, rest], lr=rate)

    return make


def _snsm(**options: Any) -> Make:
    def make(matrices: list[nn.Parameter], rest: Group, rate: float, s: Settings) -> Optimizer:
        group = {"params": matrices, "rank": s.rank, "refresh_every": s.refresh_every}
        return SNSM([{**group, **options}, rest], lr=rate)

    return make


def _adam_sn(matrices: list[nn.Parameter], rest: Group, rate: float, s: Settings) -> Optimizer:
    return AdamSN([{"params": matrices, "subset_size": "heuristics"}, rest], lr=rate)


def _osd(**options: Any) -> Make:
    def make(matrices: list[nn.Parameter], rest: Group, rate: float, s: Settings) -> Optimizer:
        group = {"params": matrices, "lr": rate, "rank": s.rank, "scale": s.scale, **options}
        return OnlineSubspaceDescent([group, rest], lr=rate)

    return make


def _adamw(matrices: list[nn.Parameter], rest: Group, rate: float, s: Settings) -> Optimizer:
    return torch.optim.AdamW([{"params": matrices, "lr": rate}, rest], weight_decay=0.0, fused=True)


def _muon(matrices: list[nn.Parameter], rest: Group, rate: float, s: Settings) -> Optimizer:
    return MuonWithAdamW([{"params": matrices, "lr": rate, "rank": 1}, rest], lr=rate)


def _apollo(matrices: list[nn.Parameter], rest: Group, rate: float, s: Settings) -> Optimizer:
    keys = {"rank": s.rank, "update_proj_gap": s.refresh_every, "scale": 1.0, "proj": "random",
            "proj_type": "std", "scale_type": "channel"}  # fmt: skip
    made = _peers.load("apollo_torch", "apollo").AdamW
    return made([{"params": matrices, **keys}, rest], lr=rate)


def _fira(matrices: list[nn.Parameter], rest: Group, rate: float, s: Settings) -> Optimizer:
    keys = {"rank": s.rank, "update_proj_gap": s.refresh_every, "alpha": s.scale,
            "proj_type": "std"}  # fmt: skip
    made = _peers.load("fira", "fira_adamw").AdamW
    return made([{"params": matrices, **keys}, rest], lr=rate, no_deprecation_warning=True)


MAKE: dict[str, tuple[str, Make]] = {
    "adamw": ("AdamW", _adamw),
    "muon": ("Muon", _muon),
    "apollo": ("APOLLO", _apollo),
    "fira": ("Fira", _fira),
    "galore_exact": ("GaLore, exact SVD", _projected(GaLore, svd="exact")),
    "galore_randomized": ("GaLore", _projected(GaLore)),
    "grass_topr": ("Grass, largest rows", _projected(Grass)),
    "grass_sampled": ("Grass, sampled rows", _projected(Grass, select="multinomial_norm_nr")),
    "grasswalk": ("GrassWalk", _projected(GrassWalk)),
    "grassjump": ("GrassJump", _projected(GrassJump)),
    "jump_no_recovery": ("GrassJump, no recovery", _projected(GrassJump, residual="drop")),
    "jump_no_transfer": ("GrassJump, no transfer", _projected(GrassJump, moments="keep")),
    "svd_full": (
        "SVD, transfer and recovery",
        _projected(GaLore, moments="project_aware", residual="scaled"),
    ),
    "osd": ("Online Subspace Descent", _osd()),
    "osd_paper": ("Online Subspace Descent, alpha 5", _osd(alpha=5.0)),
    "snsm": ("SNSM", _snsm()),
    "snsm_rows": ("SNSM, rows", _snsm(proj_type="topk")),
    "adamsn": ("AdamSN", _adam_sn),
}
"""Arm -> its name for people, and how its optimizer is made."""


def optimizer_of(arm: str, rate: float, settings: Settings, parts: Parts) -> Optimizer:
    """The optimizer of one arm: `rate` moves the matrices, `plain_rate` everything else."""
    matrices, rest = parts
    # AdamW's own epsilon wherever plain AdamW runs, so that the arms share that part exactly.
    plain = {"params": rest, "lr": settings.plain_rate, "weight_decay": 0.0, "eps": 1e-8}
    return MAKE[arm][1](matrices, plain, rate, settings)


# -- one run -------------------------------------------------------------------------------


class Captured:
    """How much of each gradient the bases hold, beside the most that any of their rank could.

    Measured midway between two refreshes, on the next gradient after the basis was last set.
    """

    def __init__(self, settings: Settings) -> None:
        self.due = range(settings.refresh_every // 2, settings.steps, settings.refresh_every)
        self.points: list[dict[str, float]] = []

    @torch.no_grad()
    def __call__(self, step: int, optimizer: Optimizer, parts: Parts) -> None:
        """Look before the step, while the gradients are there."""
        if step not in self.due:
            return
        shares: list[float] = []
        best: list[float] = []
        for p in parts[0]:
            state, g = optimizer.state[p], p.grad
            basis, turned = state.get("basis_left"), False
            if basis is None:
                basis, turned = state.get("basis_right"), True
            if basis is None or g is None:
                return
            x = g.mT if turned else g
            q = orthonormalize(basis)
            whole = float(x.square().sum())
            if whole == 0:
                continue
            values = torch.linalg.svdvals(x).square()
            shares.append(float((q.mT @ x).square().sum()) / whole)
            best.append(float(values[: q.shape[-1]].sum()) / whole)
        self.points.append(
            {"step": step, "share": statistics.fmean(shares), "best": statistics.fmean(best)}
        )


def cell(cell: Mapping[str, Any]) -> dict[str, Any]:
    """One training run, in its own process."""
    text = load_text()
    if text.digest != cell["data"]:
        raise ValueError(f"the text has changed: digest {text.digest}, expected {cell['data']}.")
    settings = Settings(**cell["settings"])
    watch = Captured(settings)
    row = train(
        ByteLM(**shared(settings)),
        cell["seed"],
        lambda parts: optimizer_of(cell["arm"], cell["rate"], settings, parts),
        text,
        watch=watch,
    )
    return {**row, **({"captured": watch.points} if watch.points else {})}


# -- one experiment ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One paper's question to the family: its arms, what must be true of them, its pictures."""

    slug: str
    """Its name, and the result's."""
    title: str
    """A headline."""
    claim: str
    """The paper's claim."""
    criterion: str
    """What had to be true, written before the run."""
    file: str
    """The module's file, whose history dates the criterion."""
    arms: Mapping[str, str]
    """Names in `MAKE`, and what people read."""
    judge: Callable[[tuple[Row, ...], tuple[Row, ...]], list[Check]]
    """The parts of the criterion, from the fresh rows; the sweep may choose whom they judge."""
    notes: Callable[[tuple[Row, ...], Mapping[str, float]], Sequence[str]] = lambda sweep, best: ()
    """What the numbers alone do not say, from the sweep and the chosen rates."""
    panels: tuple[Panel, ...]
    """Its pictures."""

    @property
    def run(self) -> Runner[Settings]:
        """Sweep, judge on fresh seeds, and say what follows."""
        return experiment(PRESETS)(self._run)

    def _run(self, this: Run[Settings]) -> Result:
        s = this.settings
        text = load_text()
        tuning, rows = sweep_and_judge(cell, list(self.arms), s, text.digest, **this.where)
        seeds = " and ".join(map(str, s.tuning_seeds))
        notes = (
            f"The swept rate moves the matrices. Embeddings, norms and the head run on AdamW at "
            f"{s.plain_rate:g} in every arm; its epsilon there is AdamW's 1e-8.",
            f"Rates were chosen on seed {seeds}, which judges nothing. The cosine starts "
            + (f"after {s.warmup} steps of warm-up." if s.warmup else "without warm-up."),
            *self.notes(tuning.rows, tuning.best),
        )
        return conclude(
            this,
            slug=self.slug,
            title=self.title,
            claim=self.claim,
            criterion=self.criterion,
            file=self.file,
            data=text.describe(),
            metrics=METRICS,
            arms=dict(self.arms),
            rows=rows,
            checks=self.judge(rows, tuning.rows),
            notes=notes,
            tuning=tuning,
        )

    def figure(self, result: Result, axes: "Sequence[Axes]") -> None:
        """Draw the panels on axes of your own."""
        for ax, panel in zip(axes, self.panels, strict=True):
            panel.draw(ax, result)


def usual_panels(who: str) -> tuple[Panel, Panel]:
    """The two pictures that every paper has: loss against the rate, and against bytes."""
    return (
        Panel(
            draw_rates,
            alt=f"Validation loss against learning rate for {who}.",
            caption="Loss against the rate; a dot marks the rate that each arm was judged at.",
        ),
        Panel(
            draw_memory,
            alt="Validation loss of every fresh seed against bytes of optimizer state.",
            caption="Every fresh seed (dots) and the mean (bar) against the bytes of state. Arms "
            "of equal state stand side by side.",
        ),
    )


def best_of(sweep: Sequence[Row], arms: Sequence[str]) -> str:
    """The arm with the lowest loss on the tuning seeds; the first where there was no sweep."""
    lowest = {
        arm: min(
            (r["loss"] for r in sweep if r["arm"] == arm and r["loss"] is not None),
            default=math.inf,
        )
        for arm in arms
    }
    return min(arms, key=lambda arm: lowest[arm])


def labels(*arms: str) -> dict[str, str]:
    """Arms and their usual names."""
    return {arm: MAKE[arm][0] for arm in arms}


def losses(rows: Sequence[Row], arm: str) -> dict[int, float | None]:
    """Seed -> loss of an arm; None where it diverged."""
    return {row["seed"]: row["loss"] for row in rows if row["arm"] == arm}


def excess(rows: Sequence[Row], arm: str, rival: str) -> dict[int, float | None]:
    """Seed -> by how many per cent an arm's loss exceeds a rival's; None where one diverged."""
    mine, other = losses(rows, arm), losses(rows, rival)
    return {
        seed: 100 * (a / b - 1) if (a := mine[seed]) and (b := other[seed]) else None
        for seed in mine
    }


def difference(rows: Sequence[Row], arm: str, rival: str) -> dict[int, float | None]:
    """Seed -> an arm's loss minus a rival's; None where one diverged."""
    mine, other = losses(rows, arm), losses(rows, rival)
    return {
        seed: a - b if (a := mine[seed]) is not None and (b := other[seed]) is not None else None
        for seed in mine
    }


def against_zero(
    statement: str, values: Mapping[int, float | None], *, unit: str, **bounds: float
) -> Check:
    """A check on differences that are already made, one a seed."""
    return Check.paired(statement, values, dict.fromkeys(values, 0.0), unit=unit, **bounds)
