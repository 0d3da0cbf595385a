"""Spectra and principal angles."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from spanwise._lazy import require
from spanwise.plots._style import PALETTE, SOFT, style
from spanwise.plots._values import numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def spectrum(ax: "Axes", values: Any, *, rank: int | None = None) -> None:
    """Singular values relative to the largest, both axes logarithmic.

    Args:
        ax: Where to draw.
        values: Singular values, `(k,)`, or several spectra by name.
        rank: A rank to mark; the labels then tell the energy (sum of squares) that it holds.

    Raises:
        ValueError: If there are no values, some are negative or not finite, all are zero, or
            `rank` is not in `[1, k]`.
        TypeError: If `values` are no numbers.
    """
    named = values if isinstance(values, Mapping) else {"": values}
    if not named:
        raise ValueError("values is empty: there is nothing to draw.")
    curves = {name: _spectrum(name, held, rank) for name, held in named.items()}
    with style():
        for index, (name, held) in enumerate(curves.items()):
            share = f"{(held[:rank] ** 2).sum() / (held**2).sum():.0%}" if rank else ""
            label = f"{name} ({share})" if name and rank else name
            positive = held > 0  # a logarithmic axis has no zero
            ax.plot(
                np.arange(1, len(held) + 1)[positive], held[positive] / held[0],
                color=PALETTE[index % len(PALETTE)], label=label or None,
            )  # fmt: skip
            if rank and not name:
                _mark(ax, rank, f"rank {rank} holds {share}")
        if rank and isinstance(values, Mapping):
            _mark(ax, rank, f"rank {rank}")
        ax.set(xscale="log", yscale="log", xlabel="index", ylabel="singular value / largest")
        ax.margins(y=0.12)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter("{x:g}")
        if isinstance(values, Mapping):
            ax.legend(title="energy within the rank" if rank else None, loc="lower left")


def angles(ax: "Axes", angles: Any, random_angles: Any = None, *, label: str = "") -> None:
    """Principal angles in degrees, beside those of random subspaces.

    Args:
        ax: Where to draw.
        angles: Radians in `[0, pi/2]`, smallest first, `(*batch, k)`; several are drawn as their
            mean within the band of all.
        random_angles: The same for random subspaces of equal ranks, `(draws, *batch, k)`.
        label: What the angles are between.

    Raises:
        ValueError: If angles are not finite or out of range, or the two have different k.
        TypeError: If they are no numbers.
    """
    ours = _angles("angles", angles)
    chance = None if random_angles is None else _angles("random_angles", random_angles)
    if chance is not None and chance.shape[-1] != ours.shape[-1]:
        raise ValueError(
            f"angles and random_angles must be as many, got {ours.shape[-1]} and "
            f"{chance.shape[-1]}."
        )
    with style():
        _band(ax, ours, PALETTE[0], label)
        if chance is not None:
            _band(ax, chance, SOFT, "random subspaces")
        ax.set(ylim=(-2, 92), yticks=range(0, 91, 15), xlabel="principal angle, smallest first")
        k = ours.shape[-1]
        ax.set_xlim(1 - 0.03 * k, 1.03 * k)
        ax.yaxis.set_major_formatter("{x:.0f}°")
        ax.xaxis.set_major_locator(require("matplotlib.ticker").MaxNLocator(integer=True))
        if label or chance is not None:
            ax.legend(loc="best")


def _mark(ax: "Axes", rank: int, words: str) -> None:
    ax.axvline(rank, color=SOFT, linewidth=1, linestyle=(0, (4, 3)), zorder=1.5)
    ax.annotate(
        words, (rank, 1), xycoords=("data", "axes fraction"), xytext=(4, -2),
        textcoords="offset points", ha="left", va="top", rotation=90, color=SOFT, size=8.5,
    )  # fmt: skip


def _band(ax: "Axes", held: np.ndarray, colour: str, label: str) -> None:
    k = np.arange(1, held.shape[-1] + 1)
    ax.plot(k, held.mean(axis=0), ".-" if len(k) < 40 else "-", color=colour, label=label or None)
    if len(held) > 1:
        ax.fill_between(
            k, held.min(axis=0), held.max(axis=0), color=colour, alpha=0.18, linewidth=0
        )


def _spectrum(name: str, held: Any, rank: int | None) -> np.ndarray:
    where = f"values[{name!r}]" if name else "values"
    found = np.sort(numbers(where, held, ndim=1))[::-1]
    if not np.isfinite(found).all() or found[-1] < 0 or found[0] == 0:
        raise ValueError(
            f"{where} must be finite, none negative and not all zero, got {found.min()} to "
            f"{found.max()}."
        )
    if rank is not None and not 1 <= rank <= len(found):
        raise ValueError(f"rank must be from 1 to the {len(found)} of {where}, got {rank}.")
    return found


def _angles(name: str, held: Any) -> np.ndarray:
    """In degrees, `(draws, k)`."""
    found = numbers(name, held)
    if not ((found >= 0) & (found <= np.pi / 2 + 1e-6)).all():  # NaN fails, too
        raise ValueError(
            f"{name} must be radians in [0, pi/2], got {found.min():.4g} to {found.max():.4g}."
        )
    return np.rad2deg(found).reshape(-1, found.shape[-1] if found.ndim else 1)
