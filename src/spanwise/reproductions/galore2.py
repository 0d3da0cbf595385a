"""GaLore 2: AdamW's loss at a third of its state, and a randomized SVD that costs no loss."""

from collections.abc import Mapping

from spanwise.report import Check, Panel, Row, arm_mean
from spanwise.reproductions import _family as family
from spanwise.reproductions._byte_lm_figures import draw_memory, draw_rates, rate_mean
from spanwise.reproductions._family import PRESETS, Settings, against_zero, excess, losses

__all__ = ["CLAIM", "CRITERION", "PANELS", "PRESETS", "TITLE", "Settings", "figure", "run"]

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


def judge(rows: tuple[Row, ...], sweep: tuple[Row, ...] = ()) -> list[Check]:
    """The three parts of the criterion on the fresh rows.

    A run that diverged gives no interval: its part of the criterion fails.
    """
    state = {arm: arm_mean(rows, arm, "matrix_state_bytes") or 0.0 for arm in ARMS}
    return [
        Check.paired(
            "Randomized minus exact SVD lies between -0.02 and 0.02",
            losses(rows, "galore_randomized"), losses(rows, "galore_exact"), -0.02, 0.02,
            "nats/byte",
        ),
        against_zero(
            "GaLore (randomized) exceeds AdamW's loss by less than 6 percent",
            excess(rows, "galore_randomized", "adamw"), high=6.0, unit="%",
        ),
        Check.between(
            "GaLore keeps at most a third of AdamW's state of the matrices",
            state["galore_randomized"] / state["adamw"], high=1 / 3 + 1e-12,
        ),
    ]  # fmt: skip


def notes(sweep: tuple[Row, ...], best: Mapping[str, float]) -> tuple[str, ...]:
    """What the numbers alone do not say."""
    found: list[str] = []
    lowest = {arm: rate_mean(sweep, arm, rate) for arm, rate in best.items()}
    rates = sorted({row["rate"] for row in sweep if row["arm"] == "adamw"})
    here = rates.index(best["adamw"])
    beside = [rate_mean(sweep, "adamw", r) for r in rates[max(0, here - 1) : here + 2]]
    rival, own = lowest["galore_randomized"], lowest["adamw"]
    costs = [loss - own for loss in beside if loss is not None and own is not None and loss > own]
    if rival is not None and own is not None and costs and min(costs) > abs(rival - own):
        found.append(
            f"The rate matters more than the method: one step of the grid beside its best rate "
            f"costs AdamW at least {min(costs):.3f} nats/byte on the tuning seeds, where the "
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


EXPERIMENT = family.Experiment(
    slug="galore2",
    title=TITLE,
    claim=CLAIM,
    criterion=CRITERION,
    file=__file__,
    arms=ARMS,
    judge=judge,
    notes=notes,
    panels=PANELS,
)
run, figure = EXPERIMENT.run, EXPERIMENT.figure
