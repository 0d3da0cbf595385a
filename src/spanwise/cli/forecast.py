"""`spanwise forecast`: the future of trajectories in a table, and the rates of what moves them."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from spanwise.cli._shared import Terminal, run_verb
from spanwise.cli._tables import TableOptions, as_array, check, on_device, results, tell_files

if TYPE_CHECKING:
    from collections.abc import Sequence

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


@dataclass(frozen=True, kw_only=True)
class ForecastOptions(TableOptions):
    """Learn the dynamics of one trajectory or many, and forecast what comes next.

    Rows are states in the order of time, columns are state variables:

      spanwise forecast sensors.csv --steps 50 --method dmd --out next
      spanwise forecast runs.csv --trajectory run --drop time --steps 20 --out next

    An array file may also hold (trajectories, time, variables). A part at the end of time (of many
    trajectories, whole ones) is held out first, to tell how well the method forecasts; the model
    that forecasts is then fitted on everything.
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
    degree: int = 2
    """Of edmd's polynomials."""
    dt: float = 1.0
    """Time between two rows."""
    standardize: bool = True
    """Whether to scale every variable to deviation 1 first, so that units do not matter."""
    held_out: float = 0.2
    """Share that is held out to measure errors; 0 for none."""
    max_steps: int = 3000
    """Batches of lran's training."""
    model: Path | None = None
    """A model.safetensors of an earlier run of this --method, instead of learning; the scaling is
    read from the summary.json beside it."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}.")
        if self.components is not None and self.components < 1:
            raise ValueError(f"components must be at least 1, got {self.components}.")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out must be in [0, 1), got {self.held_out}.")
        if self.trajectory is not None and self.trajectory in self.drop:
            raise ValueError(f"trajectory = {self.trajectory!r} is among the columns to drop.")
        learned = {"components": None, "degree": 2, "dt": 1.0, "max_steps": 3000}
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
    shift, scale = _scaling(options, history)
    scaled = [(held - shift) / scale for held in history.paths]
    errors = None if options.model is not None else held_out_errors(options, scaled, terminal)
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
    _tell(summary, values, rates, terminal)
    if options.out is not None:
        inputs = {"data": path, **({"model": options.model} if options.model else {})}
        with results(options, inputs) as folder:
            _write(folder, options, history, model, found, values, rates, errors, summary)
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
    apart = (*options.keep, *([options.trajectory] if options.trajectory else []))
    table = load_table(path, apart=apart, drop=options.drop, key=options.key)
    if options.trajectory is None:
        return History([table.values], ["0"], table.columns)
    labels = np.asarray(table.apart[options.trajectory])
    names = list(dict.fromkeys(labels.tolist()))
    return History([table.values[labels == name] for name in names], names, table.columns)


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
    shortest = min(len(held) for held in paths)
    n = paths[0].shape[1]
    if options.method == "dmd":
        model = kind(options.components, center=True, dt=options.dt)
    elif options.method == "edmd":
        model = kind(degree=options.degree, rank_tol=1e-8, dt=options.dt)
    elif options.method == "kdmd":
        model = kind(n_components=options.components, rank_tol=1e-8, center=True, dt=options.dt)
    else:
        model = kind(
            options.components or min(8, n), horizon=max(2, min(10, shortest // 2)),
            max_steps=options.max_steps, dt=options.dt, random_state=options.seed, verbose=verbose,
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
    model = fitted(options, seen, verbose=not terminal.quiet)
    parts = [on_device(held, options.device) for held in hidden]
    return as_array(model.errors_by_horizon(parts, horizon)).astype(float)


def _scaling(options: ForecastOptions, history: History) -> "tuple[np.ndarray, np.ndarray]":
    import numpy as np

    whole = np.concatenate(history.paths).astype(float)
    shift, scale = np.zeros(whole.shape[1]), np.ones(whole.shape[1])
    if options.model is not None:
        # A model sees states as those that it learned from were scaled.
        beside = options.model.parent / "summary.json"
        if beside.is_file():
            told = json.loads(beside.read_text())
            held = told["scaling"]
            if len(held["shift"]) != len(shift):
                raise ValueError(
                    f"{options.model} forecasts {len(held['shift'])} variables, the data has "
                    f"{len(shift)}."
                )
            if told["variables"] != list(history.columns):
                raise ValueError(
                    f"{options.model} was learned from {', '.join(told['variables'][:5])} ..., in "
                    f"this order; the data has {', '.join(history.columns[:5])} ..."
                )
            return np.asarray(held["shift"]), np.asarray(held["scale"])
    elif options.standardize:
        shift, spread = whole.mean(axis=0), whole.std(axis=0)
        scale = np.where(spread > 1e-12 * np.abs(whole).max(axis=0), spread, 1.0)
    return shift, scale


def _tell(
    summary: dict[str, Any], values: "np.ndarray", rates: "np.ndarray", terminal: Terminal
) -> None:
    errors = summary["held_out_errors"]
    if errors is not None:
        chosen = sorted({1, 2, 5, 10, 20, 50, len(errors) - 1} & set(range(len(errors))))
        terminal.table(
            ("steps ahead", *(str(k) for k in chosen)),
            [("relative error, held out", *(f"{errors[k]:.3g}" for k in chosen))],
        )
    rows = [
        (str(i + 1), f"{abs(v):.4g}", f"{r.real:.4g}", _period(r)) for i, (v, r) in
        enumerate(zip(values, rates, strict=True)) if v.imag >= 0
    ][:8]  # fmt: skip
    terminal.table(("eigenvalue", "magnitude", "rate", "period"), rows)
    if not summary["forecast_is_finite"]:
        terminal.say("note: the forecast overflows: the model is unstable. Use fewer components.")


def _write(
    folder: Path,
    options: ForecastOptions,
    history: History,
    model: Any,
    found: "list[np.ndarray]",
    values: "np.ndarray",
    rates: "np.ndarray",
    errors: "np.ndarray | None",
    summary: dict[str, Any],
) -> None:
    import numpy as np

    from spanwise.datasets.tables import write_table
    from spanwise.io import write_json

    steps = np.tile(np.arange(1, options.steps + 1), len(found))
    label = {} if options.trajectory is None and len(found) == 1 else {
        options.trajectory or "trajectory": np.repeat(history.names, options.steps)
    }  # fmt: skip
    joined = np.concatenate(found)
    write_table(
        folder / "forecast.csv",
        {
            **label,
            "step": steps,
            **{name: joined[:, i] for i, name in enumerate(history.columns)},
        },
    )
    with np.errstate(divide="ignore"):
        period = np.where(rates.imag == 0, np.inf, 2 * np.pi / np.abs(rates.imag))
    write_table(
        folder / "eigenvalues.csv",
        {
            "real": values.real, "imaginary": values.imag, "magnitude": np.abs(values),
            "rate": rates.real, "period": period,
        },
    )  # fmt: skip
    if errors is not None:
        write_table(
            folder / "errors.csv", {"steps": np.arange(len(errors)), "relative_error": errors}
        )
    model.save(folder / "model.safetensors")
    write_json(folder / "summary.json", summary)
    if options.pictures:
        _draw(folder, options, history, found, values, errors, model.dt)


def _draw(
    folder: Path,
    options: ForecastOptions,
    history: History,
    found: "list[np.ndarray]",
    values: "np.ndarray",
    errors: "np.ndarray | None",
    dt: float,
) -> None:
    import numpy as np

    from spanwise import plots

    past, future = history.paths[0], found[0]
    shown = past[-max(20, 3 * options.steps) :]
    # The variables that vary most, at most three.
    widest = np.sort(np.argsort(-shown.std(axis=0), kind="stable")[:3])
    fig, ax = plots.figure(width=7)
    joined = np.concatenate([shown[-1:], future])
    plots.forecast(
        ax, shown[:, widest], joined[:, widest], start=len(shown) - 1, dt=dt,
        names=[history.columns[i] for i in widest],
    )  # fmt: skip
    plots.save(fig, folder / "forecast.svg")
    fig, ax = plots.figure(width=4.5, height=4.2)
    plots.eigenvalues(ax, values)
    plots.save(fig, folder / "eigenvalues.svg")
    if errors is not None and (errors > 0).any():
        fig, ax = plots.figure()
        plots.errors_by_horizon(ax, errors)
        plots.save(fig, folder / "errors.svg")


def _period(rate: complex) -> str:
    return "" if rate.imag == 0 else f"{2 * 3.141592653589793 / abs(rate.imag):.4g}"


def _span(lengths: "Sequence[int]") -> str:
    low, high = min(lengths), max(lengths)
    return str(low) if low == high else f"{low} to {high}"
