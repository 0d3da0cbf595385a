"""Which models to merge: does what two updates share predict what merging them costs?"""

import hashlib
import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from spanwise.merging import diagnose, merge
from spanwise.report import Check, Metric, Panel, Result, Row, run_cells
from spanwise.reproductions import _encoder as encoder
from spanwise.reproductions._conclusion import conclude
from spanwise.reproductions._encoder_tasks import TASKS
from spanwise.reproductions._experiment import Run, experiment

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "Which two fine-tunes merge well"
CLAIM = (
    "The score by which `diagnose` ranks pairs of models tells beforehand which two lose least by "
    "being merged, and tells it better than the cosine of their updates."
)
CRITERION = """\
The last layers of all-MiniLM-L6-v2 are fine-tuned on six text tasks, as in `merging-encoder`. Every
two, fifteen pairs, are merged by task arithmetic and by Iso-C, each at alpha = 1 and at the one of
five values that does best on 200 validation texts of either task. What a merge keeps is the mean
over its two tasks of the share of the fine-tune's own accuracy, on test texts; its drop is 100 %
less that. A predictor's rank correlation (Spearman) with what is kept is taken over the pairs of a
seed and averaged over at least three fresh seeds; its 95 % interval is a bootstrap over pairs and
seeds. For task arithmetic and for Iso-C, each at the fixed and at the chosen scale:
(1-4) the correlation of `diagnose`'s score is above 0: the ranking predicts;
(5-8) it is above that of the cosine of the task vectors: the ranking is worth its cost.
Reproduced: all eight, with their whole intervals.
Direction only: all eight by the estimates, but an interval reaches past 0.
Not reproduced: otherwise; then the ranking describes, and does not predict.
"""

METHODS = {"task_arithmetic": "task arithmetic", "iso_c": "Iso-C"}
SCALES = {"fixed": "alpha = 1", "chosen": "chosen alpha"}
ARMS = {
    f"{method}_{scale}": f"{label}, {words}"
    for scale, words in SCALES.items()
    for method, label in METHODS.items()
}
PREDICTORS = {
    "score": "score of diagnose",
    "cosine": "cosine of the updates",
    "shared_energy": "shared energy",
    "alignment": "subspace alignment",
    "gain": "how little the two fine-tunes gained",
}
"""The last needs test accuracies, so that nobody has it beforehand: what an obvious cause gives."""
METRICS = {
    "score": Metric(label="rank correlation of the score", better="higher"),
    "cosine": Metric(label="... of the cosine", better="higher"),
    "shared_energy": Metric(label="... of the shared energy"),
    "alignment": Metric(label="... of the alignment"),
    "gain": Metric(label="... of how little was gained"),
    "kept": Metric(label="kept", unit="%", better="higher"),
}
DRAWS = 2000
"""Of the bootstrap."""


@dataclass(frozen=True, kw_only=True)
class Settings(encoder.Settings):
    """The experiment; the defaults are the committed run."""

    alphas: tuple[float, ...] = (0.35, 0.6, 1.0, 1.8, 3.0)
    """Scales, of which validation texts choose one for each pair and method."""
    rank: int = 16
    """Leading directions that `diagnose` compares."""


PRESETS = {
    "quick": replace(
        Settings(),
        tasks=("money", "travel", "banking"), layers=1, max_tokens=12, pool=60, train=30,
        validation=10, test=20, epochs=1, alphas=(0.3, 1.0), seeds=(100,),
    ),
    "default": Settings(),
    "full": replace(Settings(), pool=2200, train=1200, test=800, max_tokens=64,
                    seeds=(100, 101, 102, 103, 104)),
}  # fmt: skip


def cell(cell: Mapping[str, Any]) -> dict[str, Any]:
    """Two fine-tunes of one seed, merged in every way; or what all of them have in common."""
    settings = Settings(**cell["settings"])
    at = encoder.Seed(settings, cell["seed"])
    if cell["pair"] is None:
        found = diagnose(at.base, at.every_tuned(), rank=settings.rank)
        names = ("score", "cosine", "shared_energy", "alignment", "random", "conflict")
        return {
            "pairs": {
                f"{row.first}+{row.second}": {name: getattr(row, name) for name in names}
                for row in found.pairs
            }
        }
    pair: list[str] = cell["pair"]
    models = [at.tuned(task) for task in pair]

    def validated(merged: Mapping[str, Any]) -> float:
        return encoder.normalised(at.accuracies(merged, "validation", pair), cell["single"])

    kept: dict[str, Any] = {}
    for method in METHODS:
        merged = merge(at.base, models, method)
        alpha, _ = encoder.best_scale(merged, settings.alphas, validated, refine=False)
        for scale, value in (("fixed", 1.0), ("chosen", alpha)):
            test = at.accuracies(merged.at(value), "test", pair)
            kept[f"{method}_{scale}"] = {"alpha": value, "test": test}
    return {"arms": kept}


@experiment(PRESETS)
def run(this: Run[Settings]) -> Result:
    """Fine-tune, merge every two, test, and say what would have told it beforehand.

    Each process takes 1 GB of memory. tunes lie in the user's cache.
    """
    s = this.settings
    tuned = encoder.tune_all(s, **this.where)
    data = encoder.digests(s)
    own = {key: value for key, value in asdict(s).items() if key != "seeds"}
    pairs = [list(pair) for pair in itertools.combinations(s.tasks, 2)]
    cells = [
        {
            "pair": pair, "seed": seed, "settings": own, "data": data,
            "single": encoder.single(tuned, seed, "validation", pair or ()),
        }
        for seed in s.seeds
        for pair in (None, *pairs)
    ]  # fmt: skip
    records = run_cells(cell, cells, **this.where)
    found = {
        (c["seed"], "+".join(c["pair"] or ())): record
        for c, record in zip(cells, records, strict=True)
    }
    rows = tuple(
        row_of(arm, seed, {"+".join(p): table(found, tuned, arm, seed, p) for p in pairs})
        for seed in s.seeds
        for arm in ARMS
    )
    return conclude(
        this,
        slug="merging-pairs",
        title=TITLE,
        claim=CLAIM,
        criterion=CRITERION,
        file=__file__,
        data={
            "name": ", ".join(TASKS[task].label for task in s.tasks),
            "digest": hashlib.sha256(" ".join(data.values()).encode()).hexdigest(),
            "tasks": data,
        },
        metrics=METRICS,
        arms=ARMS,
        rows=rows,
        checks=judge(rows),
        notes=notes(rows),
        processes=[*tuned.values(), *records],
    )


def table(
    found: Mapping[tuple[int, str], Mapping[str, Any]],
    tuned: encoder.Tuned,
    arm: str,
    seed: int,
    pair: Sequence[str],
) -> dict[str, float]:
    """One pair: what its merge kept, and everything that may have told it."""
    name = "+".join(pair)
    merged, alone = found[seed, name]["arms"][arm], encoder.single(tuned, seed, "test", pair)
    base = {task: tuned[seed, task]["base"]["test"] for task in pair}
    return {
        **found[seed, ""]["pairs"][name],
        # Where fine-tuning gained much there is much to lose.
        "gain": encoder.normalised(base, alone),
        "kept": encoder.normalised(merged["test"], alone),
        "alpha": merged["alpha"],
    }


def row_of(arm: str, seed: int, pairs: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """An arm on one seed: every predictor's rank correlation with what merges kept."""
    table = list(pairs.values())
    kept = column(table, "kept")
    return {
        "arm": arm,
        "seed": seed,
        **{key: float(spearman(column(table, key), kept)) for key in PREDICTORS},
        "kept": float(kept.mean()),
        "pairs": dict(pairs),
    }


def judge(rows: Sequence[Row]) -> list[Check]:
    """The eight parts of the criterion on the fresh rows."""
    predicts: list[Check] = []
    beats: list[Check] = []
    for arm, label in ARMS.items():
        found = correlations(rows, arm, ("score", "cosine"))
        predicts.append(
            above_zero(f"{label}: the score predicts what a merge keeps", found["score"])
        )
        more = found["score"] - found["cosine"]
        beats.append(above_zero(f"{label}: the score predicts better than the cosine", more))
    return [*predicts, *beats]


def above_zero(statement: str, drawn: Float[Tensor, " draws"]) -> Check:
    """A part that holds if an estimate and its bootstrap interval are above 0.

    Args:
        statement: What must be true.
        drawn: The estimate, then its bootstrap draws.
    """
    estimate = float(drawn[0])
    low, high = drawn[1:].quantile(drawn.new_tensor([0.025, 0.975])).tolist()
    return Check(
        statement=statement, value=estimate, low=low, high=high,
        holds=estimate > 0 and low > 0, direction=estimate > 0,
    )  # fmt: skip


def correlations(
    rows: Sequence[Row], arm: str, predictors: Sequence[str], draws: int = DRAWS
) -> dict[str, Float[Tensor, " draws"]]:
    """Mean rank correlation over seeds, and the same of resampled seeds and pairs.

    All predictors see the same draws, so that their differences can be taken. Pairs share tasks
    and are not independent, which makes the intervals too narrow rather than too wide.

    Returns:
        Predictor -> the estimate, then the bootstrap's draws.
    """
    tables = [list(row["pairs"].values()) for row in rows if row["arm"] == arm]
    generator = torch.Generator().manual_seed(0)
    picks = [
        torch.cat([torch.arange(n)[None], torch.randint(n, (draws, n), generator=generator)])
        for n in (len(tables), len(tables[0]))
    ]
    seeds, pairs = picks
    found: dict[str, Tensor] = {}
    for key in predictors:
        # (seeds, draws): every seed's correlation over the pairs that were drawn.
        each = torch.stack(
            [
                spearman(*(column(pair_table, name)[pairs] for name in (key, "kept")))
                for pair_table in tables
            ]
        )
        found[key] = each.mT.gather(1, seeds).mean(1)
    return found


def column(pairs: Sequence[Mapping[str, float]], key: str) -> Float[Tensor, " n"]:
    """One number of every pair."""
    return torch.tensor([pair[key] for pair in pairs], dtype=torch.float64)


def spearman(x: Float[Tensor, "*batch n"], y: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """Rank correlation, equal numbers sharing their mean rank.

    0 where either is constant: nothing is predicted.

    Sources:
        Spearman, "The proof and measurement of association between two things", 1904.
    """
    a, b = ranks(x), ranks(y)
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    size = (a.square().sum(-1) * b.square().sum(-1)).sqrt()
    return torch.where(size > 0, (a * b).sum(-1) / size.clamp(min=1e-300), 0.0)


def ranks(values: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
    """Ranks from 0, equal values sharing their mean."""
    ours, others = values[..., :, None], values[..., None, :]
    below, equal = ours > others, ours == others
    return below.sum(-1, dtype=values.dtype) + (equal.sum(-1, dtype=values.dtype) - 1) / 2


def notes(rows: Sequence[Row]) -> tuple[str, ...]:
    """What the numbers alone do not say."""
    text = [
        "Fifteen pairs of six models share models: they are not fifteen independent cases.",
    ]
    for arm, label in ARMS.items():
        found = [p["kept"] for row in rows if row["arm"] == arm for p in row["pairs"].values()]
        text.append(f"{label}: pairs keep from {min(found):.1f} to {max(found):.1f} %.")
    return tuple(text)


def panel(predictor: str) -> "Callable[[Axes, Result], None]":
    """What merges kept at alpha = 1 against a predictor, one dot a pair and seed."""

    def draw(ax: "Axes", result: Result) -> None:
        from matplotlib import rcParams

        colours = {"task_arithmetic_fixed": rcParams["xtick.labelcolor"], "iso_c_fixed": "#e8710a"}
        for arm, colour in colours.items():
            rows = [row for row in result.rows if row["arm"] == arm]
            found = [p for row in rows for p in row["pairs"].values()]
            mean = statistics.fmean(row[predictor] for row in rows)
            ax.scatter(
                [p[predictor] for p in found], [p["kept"] for p in found],
                s=14, color=colour, alpha=0.7, linewidths=0,
                label=f"{METHODS[arm.removesuffix('_fixed')]}: {mean:+.2f}",
            )  # fmt: skip
        ax.set_xlabel(PREDICTORS[predictor])
        ax.set_ylabel("kept by merging two (%)")
        ax.set_title("Rank correlation, alpha = 1")
        ax.legend(loc="best", fontsize=8)

    return draw


PANELS = (
    Panel(
        panel("score"),
        alt="What merging two models keeps against the score that diagnose gives them.",
        caption="One dot a pair and seed.",
    ),
    Panel(
        panel("cosine"),
        alt="The same against the cosine of the two updates.",
        caption="The same pairs by the cosine of their updates.",
    ),
)


def figure(result: Result, axes: Sequence["Axes"]) -> None:
    """Draw both panels on two axes of your own."""
    for ax, drawn in zip(axes, PANELS, strict=True):
        drawn.draw(ax, result)
