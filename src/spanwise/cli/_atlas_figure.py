"""The picture of `spanwise atlas compare`."""

from collections.abc import Sequence
from pathlib import Path

from spanwise import plots
from spanwise.atlas._compare import AtlasComparison, Comparison, layer_grid


def angle_map(comparison: AtlasComparison, path: str | Path) -> list[Path]:
    """Mean principal angles by layer, beside random subspaces of the same rank.

    Dark cells are small angles: directions in common. Where both maps look alike, the two
    atlases share no more than chance.

    Args:
        comparison: What `Atlas.compare` returned.
        path: `.svg` or `.png`; without a suffix, both.

    Returns:
        The files written.
    """
    measured = _grid(comparison, [row.mean_angle for row in comparison.rows])
    random = _grid(comparison, [row.random_mean_angle for row in comparison.rows])
    rows, columns, _ = measured
    width = max(7.0, 2 * (1.2 + 0.55 * len(columns)))
    height = max(3.0, 1.6 + 0.24 * len(rows))
    fig, axes = plots.figure(1, 2, width=width, height=height, sharey=True)
    for ax, (_, _, cells), title in zip(
        axes, (measured, random), ("A and B", "A and random subspaces"), strict=True
    ):
        plots.heatmap(
            ax,
            cells,
            rows,
            columns,
            limits=(0.0, 90.0),
            form="{:.0f}",
            label="mean principal angle, degrees",
            bar=ax is axes[-1],
        )
        ax.set_title(title)
        ax.set_xlabel("")
    return plots.save(fig, path)


def _grid(
    comparison: AtlasComparison, values: Sequence[float]
) -> tuple[list[str], list[str], list[list[float]]]:
    both = len({row.side for row in comparison.rows}) > 1

    def name(row: Comparison) -> str:
        return f"{row.name.removesuffix('.weight')}{f' ({row.side})' if both else ''}"

    return layer_grid(
        {name(row): value for row, value in zip(comparison.rows, values, strict=True)}
    )
