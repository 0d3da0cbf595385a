"""Numbers from lists, arrays and tensors."""

from typing import Any

import numpy as np
from jaxtyping import Float


def numbers(name: str, values: Any, ndim: int | None = None) -> Float[np.ndarray, "..."]:
    """`values` as float64 in memory: tensors on any device and in any dtype, arrays, lists.

    Raises:
        TypeError: If they are no numbers.
        ValueError: If there are none, or they have another number of axes than `ndim`.
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu().double().numpy()
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name} must be numbers in a list, an array or a tensor, got "
            f"{type(values).__name__}: {error}."
        ) from error
    if ndim is not None and array.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} axes, got shape {array.shape}.")
    if array.size == 0:
        raise ValueError(f"{name} is empty (shape {array.shape}): there is nothing to draw.")
    return array
