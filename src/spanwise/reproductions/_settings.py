"""Checks of settings, before a folder is made or a cell runs."""

from typing import Any

from spanwise.zoo import SHAPES

_PACKAGED = {"smollm2-135m": 576}
"""Widths of packaged models."""


def check_counts(settings: Any, *names: str) -> None:
    """Raise `ValueError` unless these settings are at least 1."""
    for name in names:
        value = getattr(settings, name)
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")


def check_rank(settings: Any, width: int | None) -> None:
    """Raise `ValueError` unless the rank is one that leaves something to project.

    Args:
        settings: Has a `rank`.
        width: Of the model; None where it is not known beforehand.
    """
    check_counts(settings, "rank")
    if width is not None and settings.rank >= width:
        raise ValueError(
            f"rank = {settings.rank} is not below the width of the model, {width}: there is "
            f"nothing to project. Try --rank {max(1, width // 4)}."
        )


def width_of(model: str) -> int | None:
    """The width of a model by its name; None for a folder, which would have to be read."""
    shape = SHAPES.get(model.lower().removeprefix("llama-"))
    return _PACKAGED.get(model) if shape is None else shape.hidden
