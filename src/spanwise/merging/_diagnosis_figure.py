"""The picture of a diagnosis: what pairs share beyond chance, and how many directions count."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spanwise import plots
from spanwise.merging._diagnosis import Diagnosis, Layer, SpectrumRow
from spanwise.merging._schedule import layer_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEAST = 5.0
"""Percentage points at the ends of the colours, at least."""


def draw(diagnosis: Diagnosis, path: str | Path) -> list[Path]:
    """Draw both panels.

    Args:
        diagnosis: What `diagnose` found.
        path: `.svg` or `.png`; without a suffix, both.

    Returns:
        The files written.
    """
    labels = [row.model for row in diagnosis.models]
    side = max(3.4, 1.6 + 0.42 * len(labels))
    fig, (left, right) = plots.figure(1, 2, width=2 * side + 2.4, height=side)
    draw_pairs(left, diagnosis, labels)
    draw_ranks(right, diagnosis, labels)
    return plots.save(fig, path)


def draw_pairs(ax: "Axes", diagnosis: Diagnosis, labels: Sequence[str]) -> None:
    """Shared energy of every pair minus that of random subspaces, in points."""
    cells = [[float("nan")] * len(labels) for _ in labels]
    for i, j in itertools.combinations(range(len(labels)), 2):
        row = diagnosis.pair(labels[i], labels[j])
        cells[i][j] = cells[j][i] = 100 * (row.shared_energy - row.random)
    # Differences of a point or less must not look like more.
    reach = max(LEAST, *(abs(cell) for row in cells for cell in row if cell == cell))
    plots.heatmap(
        ax, cells, labels, labels, center=0.0, limits=(-reach, reach), form="{:.1f}",
        label="percentage points",
    )  # fmt: skip
    ax.set_title("shared energy beyond chance")


def draw_ranks(ax: "Axes", diagnosis: Diagnosis, labels: Sequence[str]) -> None:
    """Effective rank of every model's update by layer, and of the sum of all updates."""
    names, groups = _grouped(diagnosis.layers)
    places = range(len(names))
    marker = "o" if len(names) < 20 else None
    curves = {
        label: [_mean([layer.updates[index] for layer in group]) for group in groups]
        for index, label in enumerate(labels)
    }
    for index, (label, curve) in enumerate(curves.items()):
        colour = plots.PALETTE[index % len(plots.PALETTE)]
        dashes = ("-", "--", ":")[index // len(plots.PALETTE) % 3]
        ax.plot(places, curve, dashes, marker=marker, color=colour, label=label)
    total = [_mean([layer.total for layer in group]) for group in groups]
    ax.plot(places, total, color="black", linewidth=2.4, label="sum of all")
    every = max(1, len(names) // 8)
    ax.set_xticks(places[::every], names[::every])
    top = max(itertools.chain(total, *curves.values()), default=0.0)
    ax.set(xlabel="layer", ylabel="effective rank", ylim=(0, 1.08 * top or 1.0))
    ax.set_title("directions that count")
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), borderaxespad=0)


def _grouped(layers: Sequence[Layer]) -> tuple[list[str], list[list[Layer]]]:
    """Matrices by the number of their layer; by name where there are no such numbers."""
    numbers = [layer_of(layer.name) for layer in layers]
    if len({number for number in numbers if number is not None}) < 2:
        return [layer.name.removesuffix(".weight") for layer in layers], [[x] for x in layers]
    groups: dict[int, list[Layer]] = {}
    for number, layer in zip(numbers, layers, strict=True):
        if number is not None:
            groups.setdefault(number, []).append(layer)
    return [str(number) for number in sorted(groups)], [groups[n] for n in sorted(groups)]


def _mean(rows: Sequence[SpectrumRow]) -> float:
    """Mean effective rank of some matrices, weighted by energy as everywhere."""
    whole = sum(row.norm**2 for row in rows) or 1.0
    return sum(row.norm**2 * row.effective_rank for row in rows) / whole
