"""`spanwise forecast`: the future of trajectories in a table, and the rates of what moves them."""

import json
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from spanwise.cli._forecast_results import tell, write
from spanwise.cli._shared import Terminal, run_verb
from spanwise.cli._tables import TableOptions, as_array, check, on_device, results, tell_files

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

FILES = {
    "forecast.csv": "the states that were forecast, step by step",
    "eigenvalues.csv": "eigenvalues of the step, with rates and periods",
    "errors.csv": "relative error against the horizon on what was held out",
    "forecast.svg": "the last states and what was forecast of them",
    "eigenvalues.svg": "eigenvalues beside the unit circle",
    "errors.svg": "relative error against the horizon",
    "model.safetensors": "the fitted model, for --model or its class's load",
    "summary.json": "errors, spectral radius and parameters",
}
METHODS = {"lran": "LRAN", "dmd": "DMD", "edmd": "EDMD", "kdmd": "KernelDMD"}
USED_BY = {"components": ("lran", "dmd", "kdmd"), "degree": ("edmd",), "max_steps": ("lran",)}
"""Option -> the methods that have it."""
MOST_NUMBERS = 50_000_000
"""In forecast.csv, a gigabyte of text."""
BYTES_A_NUMBER = 200
"""Of memory until it is written: some copies in binary, one as a Python float, two as text."""


@dataclass(frozen=True, kw_only=True)
class ForecastOptions(TableOptions):
    """Learn the dynamics of one trajectory or many, and forecast what comes next.

    Rows are states in the order of time, columns are state variables:

      spanwise forecast sensors.csv --steps 50 --method dmd --out next
      spanwise forecast runs.csv --trajectory run --drop time --steps 20 --out next

    An array file may also hold (trajectories, time, variables). A part at the end of time (of many
    trajectories, whole ones) is held out first, to tell how well the method forecasts; the model
    that forecasts is then fitted on everything. Of columns to --keep, what the last state of a
    trajectory has is copied beside its forecast.
    """

    steps: int = 10
    """How many states to forecast after the last one of each trajectory."""
    method: Literal["lran", "dmd", "edmd", "kdmd"] = "dmd"
    """lran: coordinates that a network learns; dmd: linear; edmd: polynomials of the variables;
    kdmd: a Gaussian kernel."""
    trajectory: str | None = None
    """The column that says to which trajectory a row belongs; its rows need not be adjacent."""
    components: int | None = None
    """Coordinates of the model: d of lran, the rank of dmd and kdmd."""
    degree: int | None = None
    """Of edmd's polynomials (2)."""
    dt: float = 1.0
    """Time between two rows."""
    standardize: bool = True
    """Whether to scale every variable to deviation 1 first, so that units do not matter."""
    held_out: float = 0.2
    """Share that is held out to measure errors; 0 for none."""
    max_steps: int | None = None
    """Batches of lran's training (3000)."""
    model: Path | None = None
    """A model.safetensors of an earlier run of this --method, instead of learning; the scaling is
    read from the summary.json beside it, or is none with --no-standardize where that is lost."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}.")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out must be in [0, 1), got {self.held_out}.")
        if self.trajectory is not None and self.trajectory in self.drop:
            raise ValueError(f"trajectory = {self.trajectory!r} is among the columns to drop.")
        for name, methods in USED_BY.items():
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
            if value is not None and self.model is None and self.method not in methods:
                raise ValueError(
                    f"{name} is an option of {' and '.join(methods)}, and the method is "
                    f"{self.method}. Leave it out, or pass --method {methods[0]}."
                )
        learned = {**dict.fromkeys(USED_BY), "dt": 1.0, "held_out": 0.2}
        given = [name for name, usual in learned.items() if getattr(self, name) != usual]
        if self.model is not None and given:
            raise ValueError(
                f"{', '.join(given)} cannot be set with --model: it has learned already. Leave "
                "--model out to learn anew."
            )


@dataclass(frozen=True)
class History:
    """What was read."""

    paths: "list[np.ndarray]"
    """One trajectory each, `(T, n)`."""
    names: list[str]
    columns: "Sequence[str]"
    kept: "Mapping[str, Sequence[str]]" = field(default_factory=dict)
    """What columns that are no state variables hold at the last state of each."""


def main(argv: list[str]) -> int:
    """Run `spanwise forecast`."""
    return run_verb(ForecastOptions, argv, run, prog="spanwise forecast")


def run(options: ForecastOptions, terminal: Terminal) -> None:
    """Read, measure, learn, forecast, tell, write."""
    import numpy as np

    begun = time.perf_counter()
    path = check(options)
    history = read_history(options, path)
    lengths = [len(held) for held in history.paths]
    terminal.say(
        f"{path}: {len(lengths)} trajector{'y' if len(lengths) == 1 else 'ies'} of "
        f"{_span(lengths)} states, {len(history.columns)} variables"
    )
    check_size(options.steps, len(lengths), len(history.columns))
    shift, scale = scaling(options, history)
    scaled = [(held - shift) / scale for held in history.paths]
    errors = None
    if options.model is None:
        errors = held_out_errors(options, history.paths, terminal)
    model = fitted(options, scaled, verbose=not terminal.quiet)
    parts = [on_device(held, options.device) for held in scaled]
    found = [as_array(held) * scale + shift for held in model.forecast(parts, options.steps)]
    values, rates = (as_array(held) for held in (model.eigenvalues_, model.continuous_eigenvalues_))
    summary: dict[str, Any] = {
        "method": options.method,
        "trajectories": len(lengths),
        "states": int(sum(lengths)),
        "variables": list(history.columns),
        "steps": options.steps,
        "coordinates": len(values),
        "spectral_radius": model.spectral_radius_,
        "held_out_errors": None if errors is None else errors.tolist(),
        "forecast_is_finite": bool(np.isfinite(np.concatenate(found)).all()),
        "scaling": {"shift": shift.tolist(), "scale": scale.tolist()},
        "parameters": model.get_params(),
    }
    tell(summary, values, rates, terminal)
    if options.out is not None:
        inputs = {"data": path, **({"model": options.model} if options.model else {})}
        with results(options, inputs) as folder:
            write(folder, options, history, model, found, values, rates, errors, summary)
        tell_files(options.out, terminal, FILES)
    terminal.say(f"done in {time.perf_counter() - begun:.1f} s")
    terminal.result(summary)


def read_history(options: ForecastOptions, path: Path) -> History:
    """Trajectories from a table with or without a column that tells them apart, or an array.

    Raises:
        ValueError: If the file holds no numbers, or the column is unknown.
        FileNotFoundError: If there is no such file.
    """
    import numpy as np

    from spanwise.datasets.formats import suffix_of
    from spanwise.datasets.tables import ARRAYS, load_array, load_table

    if suffix_of(path) in ARRAYS and options.trajectory is None:
        array = load_array(path, key=options.key)
        if array.ndim == 3:
            if options.keep or options.drop:
                raise ValueError("keep and drop name columns; an array of three axes has none.")
            columns = [f"x{i}" for i in range(array.shape[2])]
            return History(list(array), [str(i) for i in range(len(array))], columns)
    own = () if options.trajectory is None else (options.trajectory,)
    apart = tuple(dict.fromkeys((*options.keep, *own)))
    table = load_table(path, apart=apart, drop=options.drop, key=options.key)
    taken = [name for name in (*table.columns, *apart) if name == "step"]
    if taken:
        raise ValueError(
            f"{path}: the column 'step' has the name of the result's own counter. Pass --drop "
            "step, or rename it."
        )
    if options.trajectory is None:
        rows = {"0": np.arange(len(table))}
    else:
        labels = np.asarray(table.apart[options.trajectory])
        rows = {name: np.flatnonzero(labels == name) for name in dict.fromkeys(labels.tolist())}
    kept = {
        name: [table.apart[name][held[-1]] for held in rows.values()]
        for name in apart
        if name != options.trajectory
    }
    paths = [table.values[held] for held in rows.values()]
    return History(paths, list(rows), table.columns, kept)


def check_size(steps: int, trajectories: int, variables: int) -> None:
    """Refuse a forecast that no table holds.

    Raises:
        ValueError: If it is larger than `MOST_NUMBERS`, or than the free memory.
    """
    import torch

    from spanwise.training.memory import available

    count = steps * trajectories * variables
    free = available(torch.device("cpu"))
    if count > MOST_NUMBERS or (free is not None and count * BYTES_A_NUMBER > free):
        most = MOST_NUMBERS if free is None else min(MOST_NUMBERS, free // BYTES_A_NUMBER)
        raise ValueError(
            f"steps = {steps} of {trajectories} trajector{'y' if trajectories == 1 else 'ies'} "
            f"with {variables} variables are {count:,} numbers, and {most:,} can be written here. "
            f"Lower steps to {max(1, most // (trajectories * variables))} or less."
        )


def fitted(
    options: ForecastOptions, paths: "Sequence[np.ndarray]", *, verbose: bool = False
) -> Any:
    """The model of an earlier run, or one learned from these."""
    import spanwise.estimators as room

    kind = getattr(room, METHODS[options.method])
    if options.model is not None:
        model = kind.load(options.model)
        if model.n_features_in_ != paths[0].shape[1]:
            raise ValueError(
                f"{options.model} forecasts {model.n_features_in_} variables, the data has "
                f"{paths[0].shape[1]}."
            )
        return model
    usual = statistics.median_low(len(held) for held in paths)
    n = paths[0].shape[1]
    if options.method == "dmd":
        model = kind(options.components, center=True, dt=options.dt)
    elif options.method == "edmd":
        model = kind(degree=options.degree or 2, rank_tol=1e-8, dt=options.dt)
    elif options.method == "kdmd":
        model = kind(n_components=options.components, rank_tol=1e-8, center=True, dt=options.dt)
    else:
        model = kind(
            options.components or min(8, n), horizon=max(2, min(10, usual // 2)),
            max_steps=options.max_steps or 3000, dt=options.dt, random_state=options.seed,
            verbose=verbose,
        )  # fmt: skip
    return model.fit([on_device(held, options.device) for held in paths])


def held_out_errors(
    options: ForecastOptions, paths: "list[np.ndarray]", terminal: Terminal
) -> "np.ndarray | None":
    """Errors by horizon of a model that did not see the end, or the last trajectories."""
    if options.held_out == 0:
        return None
    if len(paths) > 1:
        count = min(max(1, round(options.held_out * len(paths))), len(paths) - 1)
        seen, hidden = paths[:-count], paths[-count:]
    else:
        cut = len(paths[0]) - max(2, round(options.held_out * len(paths[0])))
        seen, hidden = [paths[0][:cut]], [paths[0][cut:]]
    horizon = min(options.steps, max(map(len, hidden)) - 1)
    if horizon < 1 or min(map(len, seen)) < 4:
        terminal.say("too few states to hold any out: no errors are measured")
        return None
    shift, scale = usual_scaling(options, seen)  # what is held out does not scale either
    seen, hidden = ([(held - shift) / scale for held in part] for part in (seen, hidden))
    model = fitted(options, seen, verbose=not terminal.quiet)
    parts = [on_device(held, options.device) for held in hidden]
    return as_array(model.errors_by_horizon(parts, horizon)).astype(float)


def scaling(options: ForecastOptions, history: History) -> "tuple[np.ndarray, np.ndarray]":
    """What is taken from the states and what they are divided by, `(n,)` each.

    Raises:
        ValueError: If a saved model's own is unknown, or the data has other variables.
    """
    usual = usual_scaling(options, history.paths)
    if options.model is None:
        return usual
    return _learned_scaling(options, history.columns) or usual


def usual_scaling(
    options: ForecastOptions, paths: "Sequence[np.ndarray]"
) -> "tuple[np.ndarray, np.ndarray]":
    """Mean and deviation of these states, or 0 and 1 where they are not standardized."""
    import numpy as np

    whole = np.concatenate(paths).astype(float)
    shift, scale = np.zeros(whole.shape[1]), np.ones(whole.shape[1])
    if options.standardize:
        shift, spread = whole.mean(axis=0), whole.std(axis=0)
        scale = np.where(spread > 1e-12 * np.abs(whole).max(axis=0), spread, 1.0)
    return shift, scale


def _learned_scaling(
    options: ForecastOptions, columns: "Sequence[str]"
) -> "tuple[np.ndarray, np.ndarray] | None":
    """That of the states which a saved model learned from; None where the user says it is none."""
    import numpy as np

    assert options.model is not None
    beside = options.model.parent / "summary.json"
    way_out = "or pass --no-standardize if FILE is scaled as what the model learned from."
    if not beside.is_file():
        if not options.standardize:
            return None
        raise ValueError(
            f"there is no summary.json beside {options.model}, which tells how its states were "
            f"scaled. Put it back, {way_out}"
        )
    try:
        told = json.loads(beside.read_text(encoding="utf-8"))
        method, variables = str(told["method"]), [str(name) for name in told["variables"]]
        shift, scale = (
            np.asarray(told["scaling"][name], dtype=float) for name in ("shift", "scale")
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{beside} is not what spanwise forecast wrote beside its model ({error!r}). Put that "
            f"back, or remove it {way_out}"
        ) from error
    if method != options.method:
        raise ValueError(f"{options.model} was learned by {method}: pass --method {method}.")
    if len(variables) != len(columns):
        raise ValueError(
            f"{options.model} forecasts {len(variables)} variables, the data has {len(columns)}."
        )
    if variables != list(columns):
        raise ValueError(
            f"{options.model} was learned from {', '.join(variables[:5])} ..., in this order; the "
            f"data has {', '.join(columns[:5])} ..."
        )
    if shift.shape != (len(columns),) or scale.shape != shift.shape or not (scale > 0).all():
        raise ValueError(
            f"{beside} has no scaling of {len(columns)} variables. Put back what was written "
            f"beside the model, or remove it {way_out}"
        )
    return shift, scale


def _span(lengths: "Sequence[int]") -> str:
    low, high = min(lengths), max(lengths)
    return str(low) if low == high else f"{low} to {high}"
