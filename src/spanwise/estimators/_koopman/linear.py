"""What DMD, EDMD, kernel DMD and their reductions share."""

import math
import warnings
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from spanwise.estimators._dynamics import Dynamics, check_common
from spanwise.estimators._trajectories import Trajectories


class LinearDynamics(Dynamics):
    """What DMD, EDMD, kernel DMD and their reductions share: float64, and a linear decoder.

    A subclass knows `_features`, and fits `koopman_matrix_` and `decoder_`.
    """

    koopman_matrix_: Any
    decoder_: Any
    center: bool

    def _features(self, x: Float[Tensor, "N n"]) -> Float[Tensor, "N d"]:
        raise NotImplementedError

    @override
    def _encode(self, x: Float[Tensor, "N n"]) -> Float[Tensor, "N d"]:
        return self._features(self._shifted(x))

    @override
    def _decode(self, z: Float[Tensor, "N d"]) -> Float[Tensor, "N n"]:
        z = z.double()
        found = z @ like(self.decoder_, z)
        return found + like(self.mean_, z) if self.center else found

    @override
    def _matrix(self) -> Float[Tensor, "d d"]:
        return torch.as_tensor(self.koopman_matrix_)

    @override
    def _jacobian(self, z: Float[Tensor, " d"]) -> Float[Tensor, "d n"]:
        return like(self.decoder_, z)

    def _shifted(self, x: Float[Tensor, "N n"]) -> Float[Tensor, "N n"]:
        x = x.double()
        return x - like(self.mean_, x) if self.center else x

    def _begin(self, X: Any) -> tuple[Trajectories, Tensor, Tensor]:
        """Trajectories, their states in float64 as features see them, and rows with a successor."""
        check_common(self)
        held = self._read(X, reset=True)
        rows = held.windows(2)
        if not len(rows):
            raise ValueError(
                f"{type(self).__name__} needs a trajectory of at least 2 states, n_samples = 2 of "
                f"one; the longest has n_samples = {max(held.lengths)}."
            )
        self.mean_ = held.back(held.states.double().mean(dim=0))
        x = self._shifted(held.states)
        largest = float(held.states.abs().max())
        if largest == 0:
            raise ValueError("all states are zero: there is nothing to fit.")
        # A mean's rounding is no movement.
        if self.center and float(x[rows].abs().max()) <= 1e-12 * largest:
            raise ValueError(
                "all states are alike: nothing moves, and without their mean nothing is left."
            )
        return held, x, rows

    def _finish(
        self, held: Trajectories, pairs: int, matrix: Tensor, decoder: Tensor, way_out: str
    ) -> None:
        """What is known at the end of `fit`.

        Args:
            held: The trajectories.
            pairs: States with a successor.
            matrix: K.
            decoder: B.
            way_out: What to do where K has as many coordinates as there are pairs.
        """
        if pairs <= len(matrix):
            warnings.warn(
                f"{pairs} pair(s) of successive states determine a step between {len(matrix)} "
                "coordinates exactly, whatever moves them: errors on them say nothing. Give more "
                f"states, or {way_out}.",
                UserWarning,
                stacklevel=4,  # torch.no_grad adds a frame
            )
        # Contiguous, so that a saved and loaded model computes the same bits.
        self.koopman_matrix_ = held.back(matrix.contiguous())
        self.decoder_ = held.back(decoder.contiguous())
        self._settle()


def check_kernel(kernel: Any, gamma: float | None) -> None:
    """Refuse an unknown kernel, or a width that is none."""
    known = ("rbf", "polynomial", "linear")
    if kernel not in known and not callable(kernel):
        raise ValueError(
            f"kernel must be one of {', '.join(map(repr, known))} or a function, got {kernel!r}."
        )
    if gamma is not None and not 0 < gamma < math.inf:
        raise ValueError(f"gamma must be None or above 0, got {gamma}.")


def check_tolerance(value: float) -> None:
    """Refuse a share that is none."""
    if not 0 <= value < 1:
        raise ValueError(f"rank_tol must be at least 0 and below 1, got {value}.")


def like(held: Any, x: Tensor) -> Tensor:
    """A fitted array as a tensor beside `x`."""
    return torch.as_tensor(held).to(x)
