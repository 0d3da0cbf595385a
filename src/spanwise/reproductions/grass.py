"""Grass: Adam on selected rows of the gradient, near GaLore's loss without its products."""

from spanwise.report import Check, Row, arm_mean
from spanwise.reproductions import _family as family
from spanwise.reproductions._family import (
    PRESETS,
    Settings,
    against_zero,
    difference,
    excess,
    labels,
)

__all__ = ["CLAIM", "CRITERION", "PANELS", "PRESETS", "TITLE", "Settings", "figure", "run"]

TITLE = "Grass: structured sparse gradients"
CLAIM = (
    "Selecting rows of the gradient instead of projecting it on singular vectors costs little "
    "loss, keeps less state and needs neither decompositions nor products."
)
CRITERION = """\
AdamW, GaLore and Grass with two choices of rows (the largest; sampled by norm without
replacement) train the same byte-level LLaMA on the same batches at one rank. Each arm's rate for
the matrices is the best of one common grid on the tuning seeds. Then, on at least three fresh
seeds, each arm at its own rate, in nats per byte of held-out text:
(1) the loss of Grass with the largest rows exceeds GaLore's by less than 6 percent;
(2) the loss of Grass with sampled rows exceeds GaLore's by less than 6 percent;
(3) sampled rows cost at most 0.02 more than the largest;
(4) Grass keeps at most 0.26 of AdamW's bytes of state for the matrices (2 r max(m, n) numbers of
    2 m n, and the indices).
Reproduced: all four, with the whole 95 % paired intervals of (1), (2) and (3).
Direction only: all four by the means, but an interval reaches past its bound.
Not reproduced: otherwise. Time is measured beside peers in benchmarks/optimizers.py, where a
model of this size would show only the interpreter's.
"""

ARMS = labels("adamw", "galore_randomized", "grass_topr", "grass_sampled")


def judge(rows: tuple[Row, ...], sweep: tuple[Row, ...] = ()) -> list[Check]:
    """The four parts of the criterion on the fresh rows."""
    state = {arm: arm_mean(rows, arm, "matrix_state_bytes") or 0.0 for arm in ARMS}
    return [
        against_zero(
            "Grass (largest rows) exceeds GaLore's loss by less than 6 percent",
            excess(rows, "grass_topr", "galore_randomized"), high=6.0, unit="%",
        ),
        against_zero(
            "Grass (sampled rows) exceeds GaLore's loss by less than 6 percent",
            excess(rows, "grass_sampled", "galore_randomized"), high=6.0, unit="%",
        ),
        against_zero(
            "Sampled rows cost at most 0.02 more than the largest",
            difference(rows, "grass_sampled", "grass_topr"), high=0.02, unit="nats/byte",
        ),
        Check.between(
            "Grass keeps at most 0.26 of AdamW's state of the matrices",
            state["grass_topr"] / state["adamw"], high=0.26,
        ),
    ]  # fmt: skip


PANELS = family.usual_panels("AdamW, GaLore and two kinds of Grass")
EXPERIMENT = family.Experiment(
    slug="grass",
    title=TITLE,
    claim=CLAIM,
    criterion=CRITERION,
    file=__file__,
    arms=ARMS,
    judge=judge,
    panels=PANELS,
)
run, figure = EXPERIMENT.run, EXPERIMENT.figure
