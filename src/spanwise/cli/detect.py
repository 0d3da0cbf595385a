"""`spanwise detect`: samples that lie outside of normal data, and the features that say so."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from spanwise.cli._shared import Terminal, run_verb
from spanwise.cli._tables import (
    TableOptions,
    as_array,
    naming_flags,
    on_device,
    read,
    results,
    tell_files,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from spanwise.datasets.tables import Table
    from spanwise.estimators import GODS

FILES = {
    "scores.csv": "every sample: score, label, and the features that push it out",
    "scores.svg": "histogram of the scores beside the threshold",
    "outlier.svg": "the sample of lowest score, feature by feature",
    "detector.safetensors": "the fitted detector, for --model or GODS.load",
    "summary.json": "counts, threshold, and which features push outliers out",
}

_WITHOUT_REASONS = {
    "scores.csv": "every sample: score and label",
    "summary.json": "counts, threshold, and the lowest scores",
}
FLAGS = {
    "n_directions": "directions", "eta": "eta", "lam": "lam", "scaling": "scaling",
    "kernel": "kernel", "gamma": "gamma", "n_components": "components",
    "max_landmarks": "landmarks", "max_iter": "steps", "contamination": "contamination",
}  # fmt: skip
"""Parameter of the detector -> the flag that sets it."""
FEW = 4
"""Samples a feature, or a coordinate of a kernel, below which they say little about new ones."""
LARGE = 10**6
"""Numbers in a table from which on learning takes long enough to tell its progress."""


@dataclass(frozen=True, kw_only=True)
class DetectOptions(TableOptions):
    """Find the samples of a table that lie outside of what is normal, and say why.

    Learns from --train, which should be normal, or else from FILE itself:

      spanwise detect new.csv --train normal.csv --keep id --out found

    A score is how far inside the nearest hyperplane a sample lies, in standard deviations;
    below the threshold its label is "out". The column "why" names the features that push it out,
    most first, each with its value and what it adds to the score.

    --kernel rbf ranks samples better on most tables, but then no feature explains a score.
    """

    train: Path | None = None
    """Normal samples, with the columns of FILE; without it FILE is learned from as well."""
    model: Path | None = None
    """A detector.safetensors of an earlier run, instead of learning."""
    contamination: float | None = None
    """Share of the learned samples to leave outside, in (0, 0.5]; 0.01 with --train, else 0.1."""
    why: int = 3
    """How many features the column "why" names."""
    directions: float | None = None
    """Hyperplanes of either side: a count from 1 up, or a share of the features below 1."""
    eta: float | None = None
    """Margin that learned samples should keep."""
    lam: float | None = None
    """How strongly hyperplanes are pulled towards the samples."""
    scaling: Literal["whiten", "standard", "rows"] | None = None
    """How features are made comparable."""
    kernel: Literal["linear", "rbf"] | None = None
    """Judge by a kernel. With rbf there is no column "why": no feature explains a score then."""
    gamma: float | None = None
    """Of the rbf kernel exp(-gamma |x - y|^2) of scaled features; 0.2 over their number."""
    components: float | None = None
    """Coordinates of the kernel: a count, or below 1 a share of its trace; 100 for rbf."""
    landmarks: int | None = None
    """Learned samples at most that the kernel compares with (5000)."""
    steps: int | None = None
    """Steps of the descent at most (50)."""

    def __post_init__(self) -> None:
        if self.contamination is not None and not 0 < self.contamination <= 0.5:
            raise ValueError(f"--contamination must be in (0, 0.5], got {self.contamination}.")
        if self.why < 1:
            raise ValueError(f"--why must be at least 1, got {self.why}.")
        if self.model is not None and self.train is not None:
            raise ValueError("give --train or --model, not both: a model has learned already.")
        asked = self._asked()
        flags = ", ".join(f"--{FLAGS[name]}" for name in asked)
        if self.model is not None and asked:
            raise ValueError(
                f"{flags} cannot be set with --model: it has learned already. Leave --model out "
                "to learn anew."
            )
        for name in ("gamma", "components", "landmarks"):
            if self.kernel is None and getattr(self, name) is not None:
                raise ValueError(f"--{name} is of kernels: give --kernel rbf as well.")
        if self.gamma is not None and self.kernel == "linear":
            raise ValueError("--gamma is of --kernel rbf; a linear kernel has none.")

    def _asked(self) -> dict[str, Any]:
        """Parameters of the detector that were given."""
        given = {name: getattr(self, flag) for name, flag in FLAGS.items()}
        for name in ("n_directions", "n_components"):  # a count, or a share
            value = given[name]
            if value is not None and value >= 1 and float(value).is_integer():
                given[name] = int(value)
        return {name: value for name, value in given.items() if value is not None}


def main(argv: list[str]) -> int:
    """Run `spanwise detect`."""
    return run_verb(DetectOptions, argv, run, prog="spanwise detect")


def run(options: DetectOptions, terminal: Terminal) -> None:
    """Read, learn, judge, tell, write."""
    import numpy as np

    begun = time.perf_counter()
    table = read(options, terminal, lenient=options.train is not None)
    detector, table, learned = _detector(options, table, terminal)
    X = on_device(table.values, options.device)
    scores = as_array(detector.score_samples(X)).astype(float)
    threshold = float(detector.offset_)
    outside = scores < threshold
    parts, reasons = None, None
    if detector.kernel in (None, "linear"):
        parts = as_array(detector.explain(X)).astype(float)
        reasons = [
            reason(table.columns, x, part, options.why)
            for x, part in zip(table.values, parts, strict=True)
        ]
    else:
        terminal.say('note: no feature explains the scores of this kernel: no column "why"')
    order = np.argsort(scores, kind="stable")
    summary = {
        "samples": len(scores),
        "features": len(table.columns),
        "learned_from": learned,
        "threshold": threshold,
        "outside": int(outside.sum()),
        "share_outside": float(outside.mean()),
        "features_that_push_out": None if parts is None else _blame(table.columns, parts[outside]),
        "lowest": [_low(int(row), scores, reasons) for row in order[:10]],
        "detector": {**detector.get_params(), "directions": int(detector.biases_.shape[1])},
    }
    _tell(summary, terminal)
    if options.out is not None:
        inputs = {"data": table.path}
        inputs.update({k: v for k in ("train", "model") if (v := getattr(options, k))})
        with results(options, inputs) as folder:
            _write(folder, table, detector, scores, outside, reasons, summary)
            if options.pictures:
                _draw_scores(folder, scores, threshold)
                if parts is not None:
                    _draw_lowest(folder, table.columns, scores, parts, int(order[0]))
        meanings = FILES if reasons is not None else {**FILES, **_WITHOUT_REASONS}
        tell_files(options.out, terminal, meanings)
    terminal.say(f"done in {time.perf_counter() - begun:.1f} s")
    terminal.result(summary)


def reason(columns: "Sequence[str]", x: "np.ndarray", parts: "np.ndarray", most: int) -> str:
    """The features that push a sample out, most first: `name = value (adds)`; "" if none does.

    Example:
        >>> import numpy as np
        >>> reason(["a", "b"], np.array([7.0, 1.0]), np.array([-2.5, 0.25]), 3)
        'a = 7 (-2.5)'
    """
    first = sorted(range(len(parts)), key=lambda i: (parts[i], i))[:most]
    return ", ".join(f"{columns[i]} = {x[i]:.4g} ({parts[i]:.2g})" for i in first if parts[i] < 0)


def _detector(
    options: DetectOptions, table: "Table", terminal: Terminal
) -> "tuple[GODS, Table, dict[str, Any]]":
    """The fitted detector, the table with its columns in its order, and what it learned from."""
    from spanwise.estimators import GODS

    if options.model is not None:
        detector = GODS.load(options.model)
        # By name here; the detector itself is given arrays, which have none.
        names = vars(detector).pop("feature_names_in_", [])
        way = (
            "Leave columns out with --drop, or keep them beside the result with --keep; the model "
            "needs all of its own."
        )
        table = _ordered(table, tuple(names), options.model, way)
        return detector, table, {"model": str(options.model)}
    normal = table
    if options.train is not None:
        normal = _training(options, options.train, table)
        terminal.say(f"{options.train}: {len(normal)} samples to learn from")
    d = len(table.columns)
    if len(normal) < 2:
        raise ValueError(
            f"{normal.path} holds one sample, which says nothing of how much samples differ. Give "
            f"at least 2, better {FEW * d} or more for {d} feature{'s' if d > 1 else ''}."
        )
    asked = options._asked()
    asked.setdefault("contamination", 0.1 if options.train is None else 0.01)
    asked["verbose"] = normal.values.size > LARGE and not terminal.quiet
    with naming_flags(FLAGS):
        detector = GODS.preset(
            "kernel" if options.kernel == "rbf" else "tuned", **asked, random_state=options.seed
        )
        detector.fit(on_device(normal.values, options.device))
    r = d if detector.kernel is None else len(detector.center_)
    if len(normal) < FEW * r:
        what = f"{d} features" if detector.kernel is None else f"{r} coordinates of the kernel"
        fewer = "" if detector.kernel is None else ", or lower --components"
        terminal.say(
            f"note: {len(normal)} samples are few for {what}: samples that were learned score "
            "better than new ones, so that too many new ones may be out. Look at the order of the "
            f"scores, or raise the number of samples{fewer}."
        )
    return detector, table, {"file": str(normal.path), "samples": len(normal)}


def _training(options: DetectOptions, train: Path, table: "Table") -> "Table":
    """The samples of --train, with the columns of `table` in their order.

    Raises:
        ValueError: If the features differ, or --drop names a column that neither file has.
    """
    from spanwise.datasets.resolve import nearest
    from spanwise.datasets.tables import load_table

    found = load_table(train, apart=options.keep, drop=options.drop, key=options.key, lenient=True)
    for name in options.drop:
        if name not in (*table.dropped, *found.dropped):
            known = [*table.columns, *found.columns]
            raise ValueError(
                f"neither {table.path} nor {train} has a column {name!r}. {nearest(name, known)}"
            )
    way = "Leave a column out with --drop, which may be in one file only."
    return _ordered(found, table.columns, table.path, way)


def _ordered(table: "Table", names: "tuple[str, ...]", other: Path, way: str) -> "Table":
    """The table with its columns in the order of `names`; `way` is what to do where they differ.

    Raises:
        ValueError: If it lacks one, or has more.
    """
    missing = [name for name in names if name not in table.columns]
    more = [name for name in table.columns if name not in names]
    if missing or more:
        only = ((missing, other), (more, table.path))
        raise ValueError(
            f"{table.path} and {other} must have the same features: "
            + "; ".join(
                f"{', '.join(found[:5])}{' ...' if len(found) > 5 else ''} only in {path}"
                for found, path in only
                if found
            )
            + f". {way}"
        )
    order = [table.columns.index(name) for name in names]
    return replace(table, values=table.values[:, order], columns=names)


def _low(row: int, scores: "np.ndarray", reasons: list[str] | None) -> dict[str, Any]:
    found: dict[str, Any] = {"row": row + 1, "score": float(scores[row])}
    if reasons is not None:
        found["why"] = reasons[row]
    return found


def _blame(columns: "Sequence[str]", parts: "np.ndarray") -> dict[str, int]:
    """Feature -> how many outliers it pushes out most, the most frequent first."""
    counts: dict[str, int] = {}
    for part in parts:
        name = columns[int(part.argmin())]
        counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def _tell(summary: dict[str, Any], terminal: Terminal) -> None:
    terminal.say(
        f"{summary['outside']} of {summary['samples']} samples are outside "
        f"({summary['share_outside']:.1%}; scores below {summary['threshold']:.3g})"
    )
    terminal.say()
    why = ["why"] if "why" in summary["lowest"][0] else []
    rows = [
        [low["row"], f"{low['score']:.3g}", *(low[name] for name in why)]
        for low in summary["lowest"]
    ]
    terminal.table(["row", "score", *why], rows, left=why, title="Lowest scores:")


def _write(
    folder: Path, table: "Table", detector: "GODS", scores: "np.ndarray", outside: "np.ndarray",
    reasons: list[str] | None, summary: dict[str, Any],
) -> None:  # fmt: skip
    import numpy as np

    from spanwise.datasets.tables import write_table
    from spanwise.io import write_json

    columns: dict[str, Any] = {"row": list(range(1, len(scores) + 1)), **table.apart}
    columns["score"] = scores
    columns["label"] = ["out" if out else "in" for out in outside]
    if reasons is not None:
        columns["why"] = reasons
    write_table(folder / "scores.csv", columns)
    detector.feature_names_in_ = np.array(table.columns, dtype=object)
    detector.save(folder / "detector.safetensors")
    write_json(folder / "summary.json", summary)


def _draw_scores(folder: Path, scores: "np.ndarray", threshold: float) -> None:
    from spanwise import plots

    fig, ax = plots.figure()
    plots.anomaly_scores(ax, scores, threshold=threshold)
    plots.save(fig, folder / "scores.svg")


def _draw_lowest(
    folder: Path, columns: "Sequence[str]", scores: "np.ndarray", parts: "np.ndarray", row: int
) -> None:
    from spanwise import plots

    fig, ax = plots.figure()
    plots.contributions(ax, parts[row], columns)
    ax.set_title(f"Row {row + 1}, score {scores[row]:.3g}")
    plots.save(fig, folder / "outlier.svg")
