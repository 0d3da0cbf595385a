"""Windows inside of trajectories, whatever form those come in."""

import numpy as np
import pytest
import torch

from spanwise.estimators._arrays import to_numpy
from spanwise.estimators._trajectories import read


def reader(rows, first):
    return torch.as_tensor(np.asarray(rows, dtype=float)), to_numpy


def numbered(*lengths):
    """Trajectories whose states are their own number and the time."""
    return [
        np.stack([np.full(length, i), np.arange(length)], axis=1)
        for i, length in enumerate(lengths)
    ]


@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_windows_never_cross_and_none_is_missing(length):
    held = read(numbered(5, 2, 7), 0, reader)
    rows = held.windows(length)
    assert len(rows) == sum(max(0, size - length + 1) for size in (5, 2, 7))
    for row in rows.tolist():
        window = held.states[row : row + length]
        assert len(window[:, 0].unique()) == 1
        assert (window[:, 1].diff() == 1).all()


@pytest.mark.parametrize("share", [0.1, 0.4, 0.9])
def test_a_split_shares_no_state(share):
    for lengths in ((9, 9, 9, 9), (30,), (4, 30, 2)):
        held = read(numbered(*lengths), 0, reader)
        train, judge = held.split(share, 3)
        used = [
            {row + step for row in rows.tolist() for step in range(3)} for rows in (train, judge)
        ]
        assert used[1]
        assert not used[0] & used[1]
        if lengths == (4, 30, 2) or share * len(lengths) < 0.5:
            # Of few trajectories, and where the last are too short, the end of the longest.
            assert set(held.states[judge][:, 0].tolist()) == {lengths.index(max(lengths))}
        elif len(lengths) > 1:  # whole trajectories are held out
            assert not set(held.states[train][:, 0].tolist()) & set(
                held.states[judge][:, 0].tolist()
            )


def test_nothing_is_held_out_when_nothing_is_asked():
    held = read(numbered(9, 9), 0, reader)
    train, judge = held.split(0, 3)
    assert len(train) == 14
    assert len(judge) == 0


def test_results_come_back_in_the_form_that_was_given():
    parts = numbered(4, 4, 4)
    for form in (parts, np.stack(parts), parts[0]):
        for axis in (0, 1):
            given = form
            if axis:
                turned = [part.T for part in parts]
                given = turned if isinstance(form, list) else np.swapaxes(form, -1, -2)
            held = read(given, axis, reader)
            found = held.arrange(held.states, axis)
            if isinstance(given, list):
                for a, b in zip(found, given, strict=True):
                    np.testing.assert_array_equal(a, b)
            else:
                np.testing.assert_array_equal(found, given)


def test_first_and_last_rows_are_those_of_each():
    held = read(numbered(4, 2, 3), 0, reader)
    assert held.starts == [0, 4, 6]
    assert held.lasts.tolist() == [3, 5, 8]


def test_nested_lists_of_numbers_are_one_trajectory():
    held = read([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], 0, reader)
    assert held.form == "one"
    assert held.lengths == (3,)
