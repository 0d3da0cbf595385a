"""Avoiding at a real model's size: 135M parameters learn one text and keep another."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from spanwise.report import Metric, Panel, Result
from spanwise.reproductions import _teach_135m as teaching
from spanwise.reproductions._conclusion import conclude
from spanwise.reproductions._experiment import Run, experiment
from spanwise.reproductions._keeping_figures import draw_equal_learning, draw_frontier
from spanwise.reproductions._keeping_verdict import SCHEDULE, judge, tune_and_run
from spanwise.reproductions._teach_135m import Lesson, Settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "A 135M model learns one text and keeps another"
CLAIM = (
    "At the size of a real language model, too, keeping updates out of the directions that old "
    "text's activations use costs less of the old, at equal learning, than a lower rate, "
    "stopping early, shrinking the update or avoiding random directions."
)
CRITERION = """\
SmolLM2-135M-Instruct, all 30 layers, learns CLINC150 (questions to an assistant, each with its
intent) while it should keep Python's manual. Every arm sees the same batches; only the linear
maps inside the layers move. Each arm's rate is the one of a common grid that forgets least at
the level of learning named in the settings, on the tuning seed. An arm's forgetting at that level
is the least rise of the manual's held-out loss on two curves where CLINC150's held-out loss has
fallen by exactly the level: along its training (early stop) and along W_s + alpha (W_t - W_s)
(keeping a fraction). The controls are AdamW at its rate and at half of it, and GaLore that avoids
a random atlas of equal rank. The best control is chosen with hindsight, on each fresh seed anew.
On at least three fresh seeds (batches, sketches, random atlases), GaLore that avoids the
activations' atlas of the manual
(1) forgets less than the best control: their difference is below 0;
(2) forgets less than half as much: log2(avoiding / best control) is below -1, where less than
    0.001 nats counts as 0.001;
(3) leaves less than 1e-9 of its squared update inside the atlas, read back from the file.
Reproduced: all three, with the whole 95 % paired intervals of (1) and (2).
Direction only: all three by the means, but an interval reaches past its bound.
Not reproduced: otherwise.
"""

ARMS = {
    "adamw": "AdamW",
    "adamw_low": "AdamW, half the rate",
    "galore_random": "GaLore avoiding a random atlas",
    "galore_avoid": "GaLore avoiding the old text",
}
OURS = "galore_avoid"
CONTROLS = [arm for arm in ARMS if arm != OURS]
METRICS = {
    "forgot_at_level": Metric(label="forgot at equal learning", unit="nats/token", better="lower"),
    "learned": Metric(label="learned in the end", unit="nats/token", better="higher"),
    "forgot": Metric(label="forgot in the end", unit="nats/token", better="lower"),
    "inside": Metric(label="update inside the atlas", unit="%", better="lower"),
    "state_bytes": Metric(label="optimizer state", unit="B", better="lower"),
    "step_ms": Metric(label="time of a step", unit="ms", better="lower"),
}

PRESETS = {
    "quick": replace(
        Settings(),
        steps=2, checkpoints=(1, 2), alphas=(0.5,), length=16, batch=1, held_out_old=1,
        held_out_new=1, atlas_sequences=4, rank=8, level=0.02, rates=(1e-3,), extensions=0,
        seeds=(100,),
    ),
    "default": Settings(),
    "full": replace(
        Settings(),
        steps=60, checkpoints=(3, 6, 10, 15, 20, 30, 40, 60), alphas=(0.15, 0.25, 0.4, 0.55, 0.7),
        held_out_old=40, held_out_new=20, tuning_seeds=(0, 1), seeds=(100, 101, 102, 103, 104),
    ),
}  # fmt: skip


def cell(cell: Mapping[str, Any]) -> dict[str, Any]:
    """One arm at one rate on one seed, in its own process."""
    torch.set_flush_denormal(True)
    settings = Settings(**cell["settings"])
    if (found := teaching.digest(settings)) != cell["data"]:
        raise ValueError(f"the texts have changed: {found}, not {cell['data']}.")
    lesson = Lesson(settings, cell["seed"])
    taught = lesson.teach(cell["arm"], cell["rate"])
    with tempfile.TemporaryDirectory() as folder:
        inside = lesson.inside(Path(folder) / "tuned.safetensors")
    base = {"base_old": lesson.base.old, "base_new": lesson.base.new}
    return {**taught.row(), "inside": 100 * inside, **base}


@experiment(PRESETS)
def run(this: Run[Settings]) -> Result:
    """Choose each arm's rate, judge on fresh seeds, and say what follows.

    Each process takes 4 GB of memory.
    """
    settings = this.settings
    own = {f.name: getattr(settings, f.name) for f in fields(Settings) if f.name not in SCHEDULE}
    texts = teaching.digest(settings)
    # Made here, so that no two cells make the atlas at once.
    atlas = Lesson(settings, 0).atlas
    tuning, rows = tune_and_run(
        cell,
        list(ARMS),
        settings,
        {"settings": own, "data": texts},
        derived={"adamw_low": ("adamw", 0.5)},
        **this.where,
    )
    old, new = teaching.old_text(settings.model), teaching.new_text(settings.model)
    return conclude(
        this,
        slug="avoid",
        title=TITLE,
        claim=CLAIM,
        criterion=CRITERION,
        file=__file__,
        data={
            "name": f"{old.name}, then {new.name}",
            "digest": texts,
            "old_digest": old.digest,
            "new_digest": new.digest,
            "old_train_tokens": len(old.train),
            "new_train_tokens": len(new.train),
            "atlas_base": atlas.metadata["base"],
        },
        metrics=METRICS,
        arms=ARMS,
        rows=rows,
        checks=judge(rows, OURS, CONTROLS),
        notes=notes(settings),
        tuning=tuning,
    )


def notes(settings: Settings) -> tuple[str, ...]:
    """What the numbers alone do not say."""
    old = settings.held_out_old * settings.length
    new = settings.held_out_new * settings.length
    return (
        f"A lesson is {settings.steps} steps of {settings.batch * settings.length} tokens; an "
        f"evaluation reads {old} held-out tokens of the old text and {new} of the new, the same "
        "for every arm, so that the intervals speak of seeds, not of other held-out text.",
        "Embeddings, norms and the head stay frozen in every arm.",
        "Early stop and alpha are curves of every arm, ours included; each arm counts with the "
        "better of the two.",
        "Energy, length of the lesson and level were chosen by hand on seed 0.",
    )


PANELS = (
    Panel(
        draw_frontier,
        alt="Learned against forgotten for the 135M model.",
        caption="Solid: keeping a fraction of the update. Dotted: stopping early. Grey: plain "
        "fine-tuning with AdamW. Up and to the left is better.",
    ),
    Panel(
        draw_equal_learning,
        alt="What each arm forgets at equal learning.",
        caption="The better of stopping early and keeping a fraction, for every arm. Dots are "
        "seeds.",
    ),
)


def figure(result: Result, axes: Sequence["Axes"]) -> None:
    """Draw both panels on two axes of your own."""
    for ax, panel in zip(axes, PANELS, strict=True):
        panel.draw(ax, result)
