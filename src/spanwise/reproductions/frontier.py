"""The frontier: every optimizer of the library beside its rivals, loss against bytes and time."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from spanwise.report import Check, Panel, Result, Row, arm_mean
from spanwise.reproductions import _family as family
from spanwise.reproductions._byte_lm_figures import draw_against
from spanwise.reproductions._family import PRESETS, Settings, against_zero, excess, labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["CLAIM", "CRITERION", "PANELS", "PRESETS", "TITLE", "Settings", "figure", "run"]

TITLE = "The frontier of memory-saving optimizers"
CLAIM = (
    "With a third of AdamW's state or less, some optimizer of this library reaches AdamW's loss "
    "at equal tokens, when both are tuned alike."
)
CRITERION = """\
Every optimizer of the library and four rivals (AdamW, Muon, APOLLO, Fira) train the same
byte-level LLaMA on the same batches. Each arm's rate for the matrices is the best of one common
grid on the tuning seeds, its edges extended. Of the arms of this library that keep at most a third
of AdamW's state for the matrices, the one with the lowest loss on the tuning seeds is judged. On at
least three fresh seeds, in nats per byte of held-out text:
(1) its loss exceeds AdamW's by less than 1 percent;
(2) its loss exceeds that of Fira or APOLLO, whichever was lower on the tuning seeds, by less than 1
    percent.
Reproduced: both, with their whole 95 % paired intervals.
Direction only: both by the means, but an interval reaches past its bound.
Not reproduced: otherwise.
"""

OURS = ("galore_randomized", "grass_topr", "grass_sampled", "grasswalk", "grassjump", "osd",
        "snsm", "snsm_rows", "adamsn")  # fmt: skip
RIVALS = ("adamw", "muon", "apollo", "fira")
ARMS = labels(*RIVALS, *OURS)


def small(rows: tuple[Row, ...]) -> tuple[str, ...]:
    """Arms of ours that keep at most a third of AdamW's state for the matrices."""
    bound = (arm_mean(rows, "adamw", "matrix_state_bytes") or 0.0) / 3
    held = {arm: arm_mean(rows, arm, "matrix_state_bytes") for arm in OURS}
    return tuple(arm for arm, size in held.items() if size is not None and size <= bound + 1)


def judge(rows: tuple[Row, ...], sweep: tuple[Row, ...] = ()) -> list[Check]:
    """The two parts of the criterion for the small arm that the tuning seeds preferred."""
    arm = family.best_of(sweep, small(sweep or rows))
    rival = family.best_of(sweep, ("fira", "apollo"))
    return [
        against_zero(
            f"{ARMS[arm]} exceeds AdamW's loss by less than 1 percent",
            excess(rows, arm, "adamw"), high=1.0, unit="%",
        ),
        against_zero(
            f"{ARMS[arm]} exceeds {ARMS[rival]}'s loss by less than 1 percent",
            excess(rows, arm, rival), high=1.0, unit="%",
        ),
    ]  # fmt: skip


def notes(sweep: tuple[Row, ...], best: Mapping[str, float]) -> tuple[str, ...]:
    """What the numbers alone do not say."""
    return (
        "Equal tokens: every arm sees the same batches for the same number of steps. State is "
        "what each optimizer holds for the matrices between steps, a peer's bases included.",
        "Time is the processor time of a whole training step of this small model, where "
        "interpreter overhead weighs more than arithmetic; benchmarks/optimizers.py has LLaMA-60M.",
    )


def draw_bytes(ax: "Axes", result: Result) -> None:
    """Loss against bytes of state."""
    draw_against(
        ax, result, "matrix_state_bytes", ours=OURS, scale=1e-6,
        label="optimizer state of the matrices (MB)",
    )  # fmt: skip


def draw_time(ax: "Axes", result: Result) -> None:
    """Loss against the time of a step."""
    draw_against(
        ax, result, "step_ms", ours=OURS, scale=1.0,
        label="processor time of a training step (ms)",
    )  # fmt: skip


PANELS = (
    Panel(
        draw_bytes,
        alt="Loss of every tuned optimizer against the bytes of its state.",
        caption="Lower and further left is better. Orange: this library. Grey: rivals.",
    ),
    Panel(
        draw_time,
        alt="Loss of every tuned optimizer against the time of a training step.",
        caption="The same losses against the processor time of a step of this small model.",
    ),
)
EXPERIMENT = family.Experiment(
    slug="frontier",
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


PAGES = {
    "galore_randomized": ("galore", "methods/galore2.md"),
    "grass_topr": ("grass", "methods/grass.md"),
    "grass_sampled": ("grass-sampled", "methods/grass.md"),
    "grasswalk": ("grasswalk", "methods/grasswalk-grassjump.md"),
    "grassjump": ("grassjump", "methods/grasswalk-grassjump.md"),
    "osd": ("osd", "methods/online-subspace-descent.md"),
    "snsm": ("snsm", "methods/subset-norm-subspace-momentum.md"),
    "snsm_rows": ("snsm-rows", "methods/subset-norm-subspace-momentum.md"),
    "adamsn": ("adamsn", "methods/subset-norm-subspace-momentum.md"),
    "adamw": ("adamw", None),
    "muon": ("muon", None),
    "apollo": ("apollo", None),
    "fira": ("fira", None),
}
"""Arm -> its anchor on the page that compares them, and its own page."""

TIMED = {"galore_randomized": "galore", "grass_topr": "grass", "grass_sampled": "grass",
         "adamw": "adamw_fused"}  # fmt: skip
"""Arm -> its row in results/benchmarks/optimizers.json, where that has another name."""


def table(result: Result, timings: Mapping[str, Mapping[str, Any]]) -> str:
    """The comparison as Markdown, best loss first, with an anchor for every row.

    Args:
        result: The committed run.
        timings: Rows of `results/benchmarks/optimizers.json`.
    """
    lines = [
        "| optimizer | rate | loss, nats/byte | against AdamW, 95 % | state | step, LLaMA-60M |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    whole = arm_mean(result.rows, "adamw", "matrix_state_bytes") or 1.0
    order = sorted(result.arms, key=lambda arm: arm_mean(result.rows, arm, "loss") or 9e9)
    for arm in order:
        anchor, page = PAGES[arm]
        name = result.arms[arm]
        label = f"[{name}]({page})" if page else name
        against = "—"
        if arm != "adamw":
            found = against_zero("", excess(result.rows, arm, "adamw"), unit="%")
            against = "diverged"
            if found.value is not None:
                against = f"{found.value:+.1f} % [{found.low:+.1f}, {found.high:+.1f}]"
        loss, state = (arm_mean(result.rows, arm, k) for k in ("loss", "matrix_state_bytes"))
        time = timings.get(TIMED.get(arm, arm), {}).get("over_adamw_fused")
        lines.append(
            f'| <a id="{anchor}"></a>{label} | {result.chosen[arm]:g} | '
            f"{'diverged' if loss is None else f'{loss:.3f}'} | {against} | "
            f"{100 * (state or 0.0) / whole:.0f} % | "
            f"{'—' if time is None else f'{time:,.1f} x'} |"
        )
    return "\n".join(lines)


def timing_table(timings: Mapping[str, Mapping[str, Any]]) -> str:
    """The committed timings as Markdown, fastest first; the arguments are those of `table`."""
    lines = [
        "| optimizer | step | over AdamW | over GaLore | refresh | at T = 200 | state | peak |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in sorted(timings.values(), key=lambda row: row["over_adamw_fused"]):
        refresh = f"{row['refresh_ms']:.0f} ms" if row["refresh_ms"] else "—"
        peak = f"{row['peak_bytes'] / 1e6:.0f} MB" if row["peak_bytes"] else "—"
        amortised = f"{row['amortised_ms']:,.0f} ms" if row["amortised_ms"] else "—"
        lines.append(
            f"| {row['label']} | {row['step_ms']:,.0f} ms | {row['over_adamw_fused']:,.2f} x | "
            f"{row['over_galore']:.2f} x | {refresh} | {amortised} | "
            f"{row['state_bytes_linear'] / 1e6:.1f} MB | {peak} |"
        )
    return "\n".join(lines)
