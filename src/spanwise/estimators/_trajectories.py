"""States in time: one trajectory or many, as rows, with the windows that stay inside of one."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from spanwise.estimators._arrays import Back

Form = Literal["one", "stack", "list"]
"""One `(T, n)`, `(trajectories, T, n)`, or a list of `(T, n)`."""


@dataclass(frozen=True)
class Trajectories:
    """Trajectories laid end to end; nothing below ever reaches from one into the next."""

    states: Float[Tensor, "N n"]
    """All states, oldest first within a trajectory."""
    lengths: tuple[int, ...]
    """States of each."""
    form: Form
    """What the caller gave."""
    back: Back
    """Turns a result into what the caller uses."""

    @property
    def starts(self) -> list[int]:
        """Row of the first state of each."""
        return [0, *itertools.accumulate(self.lengths[:-1])]

    @property
    def lasts(self) -> Int[Tensor, " trajectories"]:
        """Row of the last state of each."""
        ends = torch.tensor(self.lengths).cumsum(0) - 1
        return ends.to(self.states.device)

    def windows(self, length: int) -> Int[Tensor, " windows"]:
        """First rows of all windows of `length` states; states `row ... row + length - 1`."""
        sizes = torch.tensor(self.lengths)
        ends = sizes.cumsum(0).repeat_interleave(sizes)
        rows = torch.arange(int(sizes.sum()))
        return rows[rows + length <= ends].to(self.states.device)

    def split(self, share: float, length: int) -> tuple[Int[Tensor, " a"], Int[Tensor, " b"]]:
        """Windows to learn from and windows held out, which share no state.

        The last trajectories are held out, whole; where that is none, or none that holds a window,
        the end of the longest one.

        Args:
            share: Of trajectories, or of all states; 0 holds out nothing.
            length: States of a window.
        """
        rows = self.windows(length)
        if share == 0:
            return rows, rows[:0]
        count = min(round(share * len(self.lengths)), len(self.lengths) - 1)
        border, end = sum(self.lengths[: len(self.lengths) - count]), sum(self.lengths)
        if not bool((rows >= border).any()):
            longest = max(range(len(self.lengths)), key=self.lengths.__getitem__)
            end = self.starts[longest] + self.lengths[longest]
            size = max(length, round(share * sum(self.lengths)))
            border = max(self.starts[longest], end - size)
        learned = (rows + length <= border) | (rows >= end)
        return rows[learned], rows[(rows >= border) & (rows < end)]

    def arrange(self, rows: Tensor, time_axis: int) -> Any:
        """Results by state, `(N, k)`, in the caller's own form and orientation."""
        parts = [self.back(oriented(part, time_axis)) for part in rows.split(list(self.lengths))]
        if self.form == "one":
            return parts[0]
        if self.form == "list":
            return parts
        stacked = rows.view(len(self.lengths), self.lengths[0], -1)
        return self.back(oriented(stacked, time_axis))


def oriented(states: Tensor, time_axis: int) -> Tensor:
    """`(*batch, T, n)` with states in rows, or in columns where the caller has them so."""
    return states.mT if time_axis == 1 else states


def read(
    X: Any, time_axis: int, samples: Callable[[Any, bool], tuple[Tensor, Back]]
) -> Trajectories:
    """Trajectories from whatever the caller has.

    Args:
        X: One array `(T, n)`, a list of such arrays, or one of `(trajectories, T, n)`.
        time_axis: Axis of time within one trajectory: 0, states in rows, or 1, in columns.
        samples: Checks rows: `(rows, is this the first call?)` -> a tensor and the way back.

    Raises:
        ValueError: If the shapes are others.
        TypeError: If some trajectories are tensors and some are not.
    """
    if time_axis not in (0, 1):
        raise ValueError(
            f"time_axis must be 0 (states in rows) or 1 (states in columns), got {time_axis!r}."
        )
    if isinstance(X, (list, tuple)) and len(X) and np.ndim(X[0]) == 2:
        return _several(X, time_axis, samples)
    if hasattr(X, "columns"):  # a frame keeps its names
        x, back = samples(X.T if time_axis == 1 else X, True)
        return Trajectories(x, (len(x),), "one", back)
    held = X if isinstance(X, Tensor) or hasattr(X, "tocsr") else np.asarray(X)
    if held.ndim == 3:
        turned = held if time_axis == 0 else _turned(held)
        count, length, n = turned.shape
        if count == 0 or length == 0:
            raise ValueError(f"X holds no states: its shape is {tuple(held.shape)}.")
        x, back = samples(turned.reshape(count * length, n), True)
        return Trajectories(x, (length,) * count, "stack", back)
    if held.ndim > 3:
        raise ValueError(
            "X must be (T, n), (trajectories, T, n) or a list of (T, n), got shape "
            f"{tuple(held.shape)}. Flatten the axes of space: X.reshape(T, -1)."
        )
    if time_axis == 1 and held.ndim == 2:
        held = _turned(held)
    x, back = samples(held if isinstance(X, Tensor) or time_axis == 1 else X, True)
    return Trajectories(x, (len(x),), "one", back)


def read_times(times: Any, held: Trajectories) -> Float[Tensor, " N"]:
    """When each state was seen, end to end as the states are.

    Args:
        times: `(T,)` for one trajectory or for all of equal lengths, a list of those, or
            `(trajectories, T)`.
        held: The trajectories.

    Raises:
        ValueError: If a state has no time or several, or times do not increase.
    """
    if isinstance(times, (list, tuple)) and len(times) and np.ndim(times[0]) == 1:
        parts = [np.asarray(part, dtype=np.float64) for part in times]
    else:
        given = times.detach().cpu().numpy() if isinstance(times, Tensor) else times
        whole = np.asarray(given, dtype=np.float64)
        parts = list(whole) if whole.ndim == 2 else [whole] * len(held.lengths)
    lengths = tuple(len(part) for part in parts)
    if lengths != held.lengths:
        raise ValueError(
            f"times must have one number a state, lengths {held.lengths[:5]}, got {lengths[:5]}."
        )
    for index, part in enumerate(parts):
        if not np.isfinite(part).all() or (np.diff(part) <= 0).any():
            raise ValueError(f"times must be finite and increase; those of X[{index}] do not.")
    return torch.from_numpy(np.concatenate(parts))


def _several(
    X: Sequence[Any], time_axis: int, samples: Callable[[Any, bool], tuple[Tensor, Back]]
) -> Trajectories:
    tensors = [isinstance(part, Tensor) for part in X]
    if any(tensors) and not all(tensors):
        raise TypeError("X mixes tensors and other arrays. Make all trajectories one kind.")
    for index, part in enumerate(X):
        if np.ndim(part) != 2:
            raise ValueError(
                f"every trajectory must have two axes, got shape {np.shape(part)} at X[{index}]."
            )
    parts = [_turned(part) if time_axis == 1 else part for part in X]
    widths = sorted({int(part.shape[1]) for part in map(_shaped, parts)})
    if len(widths) > 1:
        raise ValueError(
            f"all trajectories need as many state variables, got {widths}. time_axis = {time_axis} "
            "says which axis of each is time."
        )
    lengths = tuple(len(part) for part in parts)
    if 0 in lengths:
        raise ValueError(f"X[{lengths.index(0)}] holds no states.")
    if all(tensors):
        x, back = samples(torch.cat(list(parts)), True)
    elif hasattr(parts[0], "columns"):
        read_parts = [samples(part, index == 0) for index, part in enumerate(parts)]
        x, back = torch.cat([part for part, _ in read_parts]), read_parts[0][1]
    else:
        x, back = samples(np.concatenate([np.asarray(part) for part in parts]), True)
    return Trajectories(x, lengths, "list", back)


def _shaped(part: Any) -> Any:
    return part if hasattr(part, "shape") else np.asarray(part)


def _turned(part: Any) -> Any:
    if isinstance(part, Tensor):
        return part.mT
    return part.T if hasattr(part, "columns") else np.swapaxes(np.asarray(part), -1, -2)
