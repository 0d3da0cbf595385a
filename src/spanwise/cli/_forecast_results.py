"""What `spanwise forecast` tells and writes."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from spanwise.cli._shared import Terminal

if TYPE_CHECKING:
    import numpy as np

    from spanwise.cli.forecast import ForecastOptions, History


def tell(
    summary: dict[str, Any], values: "np.ndarray", rates: "np.ndarray", terminal: Terminal
) -> None:
    """Errors, the spectrum, and what is wrong."""
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


def write(
    folder: Path,
    options: "ForecastOptions",
    history: "History",
    model: Any,
    found: "list[np.ndarray]",
    values: "np.ndarray",
    rates: "np.ndarray",
    errors: "np.ndarray | None",
    summary: dict[str, Any],
) -> None:
    """The tables, the model, the summary and the pictures of a forecast."""
    import numpy as np

    from spanwise.datasets.tables import write_table
    from spanwise.io import write_json

    steps = np.tile(np.arange(1, options.steps + 1), len(found))
    held = {name: np.repeat(last, options.steps) for name, last in history.kept.items()}
    label = {} if options.trajectory is None and len(found) == 1 else {
        options.trajectory or "trajectory": np.repeat(history.names, options.steps)
    }  # fmt: skip
    joined = np.concatenate(found)
    write_table(
        folder / "forecast.csv",
        {
            **label,
            **held,
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
    options: "ForecastOptions",
    history: "History",
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
