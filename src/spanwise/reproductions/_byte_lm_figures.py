"""The two pictures of the optimizer family: loss against the rate, and against bytes of state."""

from typing import TYPE_CHECKING

from spanwise.report import PALETTE, Result, Row, arm_mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def rate_mean(rows: tuple[Row, ...], arm: str, rate: float) -> float | None:
    """Mean loss of an arm at one rate of the sweep; None where it diverged or was not run."""
    return arm_mean([row for row in rows if row["rate"] == rate], arm, "loss")


def draw_rates(ax: "Axes", result: Result) -> None:
    """Validation loss against the rate, one curve an arm, the chosen rate marked."""
    rates = sorted({row["rate"] for row in result.sweep})
    for index, (arm, label) in enumerate(result.arms.items()):
        points = [(r, v) for r in rates if (v := rate_mean(result.sweep, arm, r)) is not None]
        # Curves may lie on each other: the wide pale one shows below the thin one.
        width, alpha = (6.0, 0.45) if index == 1 else (2.0, 1.0)
        x, y = zip(*points, strict=True)
        ax.plot(x, y, color=PALETTE[index], label=label, linewidth=width, alpha=alpha)
        best = result.chosen[arm]
        ax.plot(best, dict(points)[best], "o", color=PALETTE[index], markersize=8, zorder=5)
    ax.set_xscale("log")
    ax.set_xticks(rates, [f"{1e3 * rate:g}" for rate in rates])
    ax.minorticks_off()
    ax.set_xlabel("learning rate of the matrices (thousandths)")
    ax.set_title("Loss (nats/byte) on the tuning seeds")
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.32 * (high - low))  # room for the legend
    ax.legend(loc="upper left")


def draw_memory(ax: "Axes", result: Result) -> None:
    """Validation loss of every fresh seed against the bytes of matrix state."""
    for index, (arm, label) in enumerate(result.arms.items()):
        rows = [row for row in result.rows if row["arm"] == arm and row["loss"] is not None]
        if not rows:
            continue
        # The two GaLore arms keep equal bytes; side by side, both can be seen.
        shift = {"galore_exact": -0.035, "galore_randomized": 0.035}.get(arm, 0.0)
        size = rows[0]["matrix_state_bytes"] / 1e6 + shift
        losses = [row["loss"] for row in rows]
        mean = sum(losses) / len(losses)
        colour = PALETTE[index]
        ax.plot([size] * len(rows), losses, "o", color=colour, alpha=0.65, markeredgewidth=0)
        ax.plot([size - 0.03, size + 0.03], [mean, mean], color=colour, linewidth=2.5)
        right = arm != "galore_exact"
        ax.annotate(
            label.replace("GaLore, ", "GaLore,\n"),
            (size, mean),
            xytext=(12 if right else -12, 0),
            textcoords="offset points",
            ha="left" if right else "right",
            va="center",
            color=colour,
        )
        if arm == "adamw":
            ax.axhline(1.06 * mean, color=colour, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
            ax.annotate(
                "AdamW + 6 %", (1.0, 1.06 * mean), xycoords=("axes fraction", "data"),
                xytext=(0, 3), textcoords="offset points", ha="right", color=colour, fontsize=9,
            )  # fmt: skip
    ax.set_xlim(0, 3.6)
    ax.set_xlabel("optimizer state of the matrices (MB)")
    ax.set_title("Loss (nats/byte) on fresh seeds")
