"""Where the energy of real gradients lies, and how flat the choice of a subspace is."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from spanwise.layouts import linear_maps
from spanwise.linalg import captured_energy, grassmann
from spanwise.report import Check, Metric, Panel, Result, Row, run_cells
from spanwise.reproductions._byte_lm import ByteLM, Parts, build, load_text, shared, train
from spanwise.reproductions._conclusion import conclude
from spanwise.reproductions._experiment import Run, experiment
from spanwise.reproductions._subspace_figures import (
    WALK,
    draw_depth,
    draw_landscape,
    draw_time,
    mean_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Gradient subspaces: how much the core holds, and how flat the choice is"
CLAIM = (
    "A small core subspace holds most of a gradient's energy, but its share falls with depth and "
    "over training, a sizeable part stays outside, and the landscape of subspaces is nearly flat, "
    "so that a random move costs little."
)
CRITERION = """\
A byte-level LLaMA trains under AdamW. At equal intervals every weight matrix's gradient is
decomposed on its shorter side, of size s. The core is its leading r-dimensional subspace; shares
are parts of the gradient's squared norm, averaged over matrices. On at least three fresh seeds:
(1) the core's share in the last quarter of the measurements is below that in the first quarter;
(2) the core's share in the deepest layer is below that in the first;
(3) the core holds more than half of the energy over all, and
(4) less than nine tenths of it;
(5) flatness: at the core the second derivative of the captured energy along each pair of a core
    and an outer singular direction is 2 (l_j - l_i) of their energies; the median of its size
    over the pairs is below a tenth of the largest;
(6) a random move by 0.3 radians of the core of one measurement before costs less than 0.05 of the
    energy at the present gradient.
Reproduced: all six, with the whole 95 % intervals over seeds.
Direction only: all six by the means, but an interval reaches past its bound.
Not reproduced: otherwise.
"""

ARMS = {
    "core": "core of this gradient",
    "stale": "core of the last measurement",
    "walked": "the same, moved at random",
    "random": "random subspace",
}
METRICS = {
    "share": Metric(label="share of the energy", unit="%"),
    "early": Metric(label="first quarter", unit="%"),
    "late": Metric(label="last quarter", unit="%"),
    "first_layer": Metric(label="first layer", unit="%"),
    "last_layer": Metric(label="deepest layer", unit="%"),
}


@dataclass(frozen=True, kw_only=True)
class Settings(ByteLM):
    """The experiment; the defaults are the committed run."""

    depth: int = 6
    """Transformer layers: enough for a trend."""
    rank: int = 24
    """Dimension r of the subspaces, a quarter of s."""
    every: int = 25
    """Steps between two measurements."""
    rate: float = 1.5e-3
    """AdamW's rate for the matrices."""
    directions: int = 6
    """Random geodesics from each basis of the last measurement."""
    points: int = 13
    """Angles at which the landscape is measured along a geodesic, 0 to pi/2."""
    seeds: tuple[int, ...] = (100, 101, 102)
    """Seeds that judge; nothing is tuned."""


PRESETS = {
    "quick": Settings(
        depth=2, steps=16, every=2, directions=1, points=5, validation_windows=64, seeds=(100,)
    ),
    "default": Settings(),
    "full": Settings(width=192, hidden=512, rank=48, steps=1200, every=50,
                     seeds=(100, 101, 102, 103, 104)),
}  # fmt: skip


class Watch:
    """Measures every matrix's gradient in its subspaces, at equal intervals."""

    def __init__(self, settings: Settings, names: Sequence[str], seed: int) -> None:
        self.settings, self.names = settings, names
        self.generator = torch.Generator().manual_seed(seed)
        self.old: list[Tensor] | None = None
        self.shares: list[dict[str, Any]] = []
        self.landscapes: list[dict[str, list[float]]] = []
        self.curvatures: list[list[float]] = []

    @torch.no_grad()
    def __call__(self, step: int, optimizer: Optimizer, parts: Parts) -> None:
        """Look before the step, while the gradients are there."""
        if step % self.settings.every:
            return
        gradients = [_short_side_first(p) for p in parts[0]]
        decomposed = [torch.linalg.svd(x, full_matrices=False) for x in gradients]
        if self.old is not None:
            last = step + self.settings.every >= self.settings.steps
            for name, x, (u, values, _), old in zip(
                self.names, gradients, decomposed, self.old, strict=True
            ):
                core = u[:, : self.settings.rank]
                place = {"step": step, "layer": _layer(name), "kind": _kind(name)}
                shares = self._compare(x, core, old)
                self.shares.append({**place, "needed": needed(values), **shares})
                self.curvatures.append(curvatures(values, self.settings.rank))
                if last:
                    self.landscapes.append(self._landscape(x, core, old))
        self.old = [u[:, : self.settings.rank] for u, _, _ in decomposed]

    def _compare(self, x: Tensor, core: Tensor, old: Tensor) -> dict[str, float]:
        bases = {
            "core": core,
            "stale": old,
            "walked": grassmann.move(old, self._drawn(old), WALK),
            "random": grassmann.random_point(*old.shape, generator=self.generator),
        }
        return {arm: 100 * float(captured_energy(x, basis)) for arm, basis in bases.items()}

    def _landscape(self, x: Tensor, core: Tensor, old: Tensor) -> dict[str, list[float]]:
        """Energy along geodesics from the old core: to the present one, and anywhere."""
        angles = torch.linspace(0, math.pi / 2, self.settings.points).tolist()
        home = grassmann.log(old, core)
        ways = [self._drawn(old) for _ in range(self.settings.directions)]

        def along(direction: Tensor) -> list[float]:
            return [
                100 * float(captured_energy(x, grassmann.move(old, direction, a))) for a in angles
            ]

        return {"core": along(home), "random": mean_of([along(way) for way in ways])}

    def _drawn(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator)


def needed(values: Tensor) -> int:
    """How many of the leading directions hold 99 % of the energy.

    Args:
        values: Singular values of the gradient, largest first.
    """
    energy = values.double().square()
    return int((energy.cumsum(0) < 0.99 * energy.sum()).sum()) + 1


def curvatures(values: Tensor, rank: int) -> list[float]:
    """Second derivatives of the captured energy at the core, relative to the largest.

    Turning a core direction i towards an outer one j by t radians leaves cos^2 t of its energy
    and takes up sin^2 t of the other's: a second derivative of 2 (l_j - l_i).

    Args:
        values: Singular values of the gradient, largest first.
        rank: r, how many of them belong to the core.

    Returns:
        Sizes in `[0, 1]` at the deciles 0, 10, ..., 100 of all r (s - r) pairs.
    """
    energy = values.double().square()
    found = (energy[:rank].unsqueeze(1) - energy[rank:]).flatten()
    return (found / found.max()).quantile(torch.linspace(0, 1, 11, dtype=torch.float64)).tolist()


def _short_side_first(p: nn.Parameter) -> Tensor:
    assert p.grad is not None
    return p.grad.mT if p.shape[0] >= p.shape[1] else p.grad


def _layer(name: str) -> int:
    return int(name.split("layers.")[1].split(".")[0])


def _kind(name: str) -> str:
    return name.split(".")[-2].removesuffix("_proj")


def cell(cell: Mapping[str, Any]) -> dict[str, Any]:
    """One seed's training with all its measurements, in its own process."""
    text = load_text()
    if text.digest != cell["data"]:
        raise ValueError(f"the text has changed: digest {text.digest}, expected {cell['data']}.")
    s, seed = Settings(**cell["settings"]), cell["seed"]
    model = ByteLM(**shared(s))
    names = [m.name for m in linear_maps(build(model, seed)) if "lm_head" not in m.name]
    watch = Watch(s, names, seed)

    def adamw(parts: Parts) -> Optimizer:
        matrices, rest = ({"params": part} for part in parts)
        return torch.optim.AdamW(
            [{**matrices, "lr": s.rate}, {**rest, "lr": s.plain_rate}], weight_decay=0.0, fused=True
        )

    trained = train(model, seed, adamw, text, watch=watch)
    return {
        "loss": trained["loss"],
        "shares": watch.shares,
        "landscape": {
            way: mean_of([each[way] for each in watch.landscapes]) for way in ("core", "random")
        },
        "curvature": mean_of(watch.curvatures),
    }


def summary(arm: str, seed: int, record: Mapping[str, Any]) -> dict[str, Any]:
    """One row: an arm's shares over all, and along time, depth and kind of layer."""
    points = record["shares"]
    steps = sorted({point["step"] for point in points})
    quarter = max(1, len(steps) // 4)
    layers = sorted({point["layer"] for point in points})
    kinds = list(dict.fromkeys(point["kind"] for point in points))

    def mean(kept: Iterable[Mapping[str, Any]]) -> float:
        return statistics.fmean(point[arm] for point in kept)

    row = {
        "arm": arm,
        "seed": seed,
        "share": mean(points),
        "early": mean(p for p in points if p["step"] in steps[:quarter]),
        "late": mean(p for p in points if p["step"] in steps[-quarter:]),
        "first_layer": mean(p for p in points if p["layer"] == layers[0]),
        "last_layer": mean(p for p in points if p["layer"] == layers[-1]),
        "steps": steps,
        "by_step": [mean(p for p in points if p["step"] == t) for t in steps],
    }
    if arm == "core":
        row |= {
            "landscape": record["landscape"],
            "curvature": record["curvature"],
            "needed_by_step": [
                statistics.fmean(p["needed"] for p in points if p["step"] == t) for t in steps
            ],
            "needed_by_kind": {
                kind: [
                    statistics.fmean(
                        p["needed"] for p in points if (p["kind"], p["layer"]) == (kind, i)
                    )
                    for i in layers
                ]
                for kind in kinds
            },
        }
    return row


def judge(rows: Sequence[Row]) -> list[Check]:
    """The six parts of the criterion."""

    def of(arm: str, metric: str) -> dict[int, float | None]:
        return {row["seed"]: row[metric] for row in rows if row["arm"] == arm}

    zero = dict.fromkeys(of("core", "share"), 0.0)
    median = {row["seed"]: row["curvature"][5] for row in rows if row["arm"] == "core"}
    return [
        Check.paired(
            "The core's share is lower late than early",
            of("core", "late"), of("core", "early"), high=0.0, unit="points",
        ),
        Check.paired(
            "The core's share is lower in the deepest layer than in the first",
            of("core", "last_layer"), of("core", "first_layer"), high=0.0, unit="points",
        ),
        Check.paired(
            "The core holds more than half", of("core", "share"), zero, low=50.0, unit="%",
        ),
        Check.paired(
            "The core leaves more than a tenth", of("core", "share"), zero, high=90.0, unit="%",
        ),
        Check.paired(
            "Half of the directions are ten times flatter than the steepest",
            median, zero, high=0.1,
        ),
        Check.paired(
            "A random move by 0.3 radians costs less than 5 points",
            of("stale", "share"), of("walked", "share"), high=5.0, unit="points",
        ),
    ]  # fmt: skip


@experiment(PRESETS)
def run(this: Run[Settings]) -> Result:
    """Train on each seed, measure on the way, and say what follows."""
    s = this.settings
    text = load_text()
    own = {key: value for key, value in asdict(s).items() if key != "seeds"}
    cells = [{"seed": seed, "settings": own, "data": text.digest} for seed in s.seeds]
    records = run_cells(cell, cells, **this.where)
    rows = tuple(
        summary(arm, seed, record)
        for seed, record in zip(s.seeds, records, strict=True)
        for arm in ARMS
    )
    return conclude(
        this,
        slug="gradient-subspaces",
        title=TITLE,
        claim=CLAIM,
        criterion=CRITERION,
        file=__file__,
        data=text.describe(),
        metrics=METRICS,
        arms=ARMS,
        rows=rows,
        checks=judge(rows),
        notes=(
            f"A random subspace of rank {s.rank} in {s.width} dimensions holds "
            f"{s.rank / s.width:.0%} of any gradient on average.",
            f"The gradients are those of batches of {s.batch} windows under AdamW at {s.rate:g}: "
            "their noise is part of what the subspaces hold.",
            needed_note(rows),
        ),
        processes=records,
    )


def needed_note(rows: Sequence[Row]) -> str:
    """How many directions hold 99 % of the energy, early and late."""
    curve = mean_of([row["needed_by_step"] for row in rows if row["arm"] == "core"])
    quarter = max(1, len(curve) // 4)
    early, late = statistics.fmean(curve[:quarter]), statistics.fmean(curve[-quarter:])
    return (
        f"On average {early:.1f} directions hold 99 % of a gradient's energy in the first quarter "
        f"of the measurements and {late:.1f} in the last."
    )


# -- pictures ------------------------------------------------------------------------------


PANELS = (
    Panel(
        draw_time,
        alt="Share of the gradient's energy in the core, the last core, that core moved at random "
        "and a random subspace, over training.",
        caption="Mean over all matrices and seeds. The gap between core and last core is what a "
        "basis loses between two refreshes.",
    ),
    Panel(
        draw_depth,
        alt="Number of directions that hold 99 % of the gradient's energy, for each kind of weight "
        "matrix and layer.",
        caption="Mean over training and seeds: along a row for depth, down a column for kinds.",
    ),
    Panel(
        draw_landscape,
        alt="Captured energy along geodesics from the last core, towards the present core and in "
        "random directions.",
        caption="At the last measurement, from the core of the one before; the vertical line is "
        "one step of GrassWalk.",
    ),
)


def figure(result: Result, axes: "Sequence[Axes]") -> None:
    """Draw the panels on axes of your own."""
    for ax, panel in zip(axes, PANELS, strict=True):
        panel.draw(ax, result)
