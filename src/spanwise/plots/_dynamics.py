"""Models of dynamics: eigenvalues, forecasts, and how far they hold."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from spanwise._lazy import require
from spanwise.plots._style import LINE, MARKERS, PALETTE, SOFT, style
from spanwise.plots._values import numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def eigenvalues(ax: "Axes", values: Any) -> None:
    """Eigenvalues of a step in the complex plane, beside the unit circle.

    Inside decays, outside grows, on the circle lasts; the angle is the frequency.

    Args:
        ax: Where to draw.
        values: Complex `(d,)`, or several spectra by name.

    Raises:
        ValueError: If there are none, or some are not finite.
        TypeError: If they are no numbers.
    """
    named = values if isinstance(values, Mapping) else {"": values}
    if not named:
        raise ValueError("values is empty: there is nothing to draw.")
    spectra = {name: _complex(name, held) for name, held in named.items()}
    angle = np.linspace(0, 2 * np.pi, 361)
    with style():
        ax.plot(np.cos(angle), np.sin(angle), color=SOFT, linewidth=1, zorder=1.5)
        ax.axhline(0, color=LINE, linewidth=0.8, zorder=1)
        ax.axvline(0, color=LINE, linewidth=0.8, zorder=1)
        for index, (name, held) in enumerate(spectra.items()):
            ax.plot(
                held.real, held.imag, MARKERS[index % len(MARKERS)],
                color=PALETTE[index % len(PALETTE)], alpha=0.85, markersize=5, mew=0,
                label=name or None,
            )  # fmt: skip
        reach = 1.1 * max(1.0, *(float(np.abs(held).max()) for held in spectra.values()))
        ax.set(
            xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xlabel="real part",
            ylabel="imaginary part",
        )  # fmt: skip
        if isinstance(values, Mapping):
            ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), borderaxespad=0)


def forecast(
    ax: "Axes",
    truth: Any,
    forecasts: Any,
    *,
    start: int = 0,
    dt: float = 1.0,
    names: Sequence[str] | None = None,
) -> None:
    """A few state variables in time, with what was forecast of them.

    Args:
        ax: Where to draw.
        truth: `(T, n)`, or `(T,)` for one variable; NaN where nothing is known.
        forecasts: `(steps, n)`, or several by name.
        start: Row of `truth` that the forecasts' first row belongs to.
        dt: Time between two rows.
        names: Of the variables.

    Raises:
        ValueError: If shapes do not fit.
        TypeError: If they are no numbers.
    """
    seen = _columns("truth", truth)
    named = forecasts if isinstance(forecasts, Mapping) else {"forecast": forecasts}
    drawn = {name: _columns(f"forecasts[{name!r}]", held) for name, held in named.items()}
    for name, held in drawn.items():
        if held.shape[1] != seen.shape[1]:
            raise ValueError(
                f"forecasts[{name!r}] must have the {seen.shape[1]} variables of truth, got "
                f"{held.shape[1]}."
            )
    if names is not None and len(names) != seen.shape[1]:
        raise ValueError(f"names must be {seen.shape[1]}, one a variable, got {len(names)}.")
    marks = ("-", "--", "-.", ":")
    with style():
        for column in range(seen.shape[1]):
            label = names[column] if names is not None else ("truth" if column == 0 else None)
            ax.plot(
                dt * np.arange(len(seen)), seen[:, column], color=SOFT,
                linestyle=marks[column % len(marks)], linewidth=1.4, label=label,
            )  # fmt: skip
        for index, (name, held) in enumerate(drawn.items()):
            for column in range(held.shape[1]):
                ax.plot(
                    dt * (start + np.arange(len(held))), held[:, column],
                    color=PALETTE[index % len(PALETTE)], linestyle=marks[column % len(marks)],
                    label=name if column == 0 else None,
                )  # fmt: skip
        if start:
            ax.axvline(dt * start, color=SOFT, linewidth=1, linestyle=(0, (4, 3)), zorder=1.5)
        ax.set(xlabel="time", ylabel="state")
        ax.legend(loc="best")


def errors_by_horizon(ax: "Axes", errors: Any, *, dt: float = 1.0) -> None:
    """Relative error against how far ahead was forecast; 1 is always forecasting the mean.

    Args:
        ax: Where to draw.
        errors: `(horizon + 1,)` from 0 steps on, or several by name; `(seeds, horizon + 1)` is
            drawn as the mean with each seed faintly.
        dt: Time between two steps; 1 counts steps.

    Raises:
        ValueError: If there are none, or some are negative.
        TypeError: If they are no numbers.
    """
    named = errors if isinstance(errors, Mapping) else {"": errors}
    if not named:
        raise ValueError("errors is empty: there is nothing to draw.")
    curves = {}
    for name, held in named.items():
        found = np.atleast_2d(numbers(f"errors[{name!r}]" if name else "errors", held))
        if found.ndim != 2 or (found < 0).any():
            raise ValueError(
                f"errors must be (horizon + 1,) or (seeds, horizon + 1) and not negative, got "
                f"shape {found.shape}."
            )
        curves[name] = found
    with style():
        for index, (name, found) in enumerate(curves.items()):
            colour, at = PALETTE[index % len(PALETTE)], dt * np.arange(found.shape[1])
            if len(found) > 1:
                ax.plot(at, found.T, color=colour, alpha=0.3, linewidth=0.8)
            ax.plot(at, found.mean(axis=0), color=colour, label=name or None)
        ax.axhline(1, color=SOFT, linewidth=1, linestyle=(0, (4, 3)), zorder=1.5)
        ax.set(
            yscale="log", xlabel="steps ahead" if dt == 1 else "time ahead",
            ylabel="relative error",
        )  # fmt: skip
        ax.yaxis.set_major_formatter("{x:g}")
        if dt == 1:
            ax.xaxis.set_major_locator(require("matplotlib.ticker").MaxNLocator(integer=True))
        if isinstance(errors, Mapping):
            ax.legend(loc="best")


def _complex(name: str, held: Any) -> np.ndarray:
    where = f"values[{name!r}]" if name else "values"
    given = held.detach().cpu().numpy() if hasattr(held, "detach") else held
    try:
        found = np.asarray(given, dtype=np.complex128).reshape(-1)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{where} must be complex numbers: {error}.") from error
    if not found.size or not np.isfinite(found).all():
        raise ValueError(f"{where} must be finite and at least one, got {found.size}.")
    return found


def _columns(name: str, held: Any) -> np.ndarray:
    found = numbers(name, held)
    if found.ndim not in (1, 2):
        raise ValueError(f"{name} must be (T,) or (T, n), got shape {found.shape}.")
    return found.reshape(len(found), -1)
