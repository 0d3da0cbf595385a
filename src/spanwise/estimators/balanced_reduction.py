"""`BalancedReduction`: an over-specified EDMD or kernel DMD model on a few coordinates."""

import copy
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from sklearn.base import MetaEstimatorMixin, clone
from sklearn.utils.validation import check_is_fitted
from torch import Tensor
from typing_extensions import override

from spanwise.estimators._base import Estimator
from spanwise.estimators._dynamics import Dynamics, check_count
from spanwise.estimators._koopman.linear import LinearDynamics, like
from spanwise.estimators._trajectories import Trajectories
from spanwise.estimators.koopman import DMD, EDMD, KernelDMD
from spanwise.estimators.multi_kernel import MultiKernelRegressor
from spanwise.linalg.balancing import balance, finite_gramian, gramian_root
from spanwise.linalg.thin import thin_svd


class BalancedReduction(MetaEstimatorMixin, Dynamics):
    """The d coordinates of a linear model that data excites and forecasts show, both alike.

    A fitted model psi_{t+1} = psi_t K, x = psi B has the input Gramian Wc = mean psi^T psi and the
    output Gramian Wo = sum_{t < horizon} decay^t K^t B B^T (K^T)^t; finite, for K is often
    unstable. With roots Wc = Lc Lc^T, Wo = Lo Lo^T and Lo^T Lc = U S V^T, z = psi R and
    psi ~ z L^T, R = Lo U_d S_d^-1/2, L = Lc V_d S_d^-1/2: both Gramians of z are S_d.

    Args:
        estimator: A `DMD`, `EDMD` or `KernelDMD`; cloned and fitted, unless `prefit`.
        n_components: d, at most the number of Hankel singular values that are not rounding.
        horizon: Steps of forecasts that count, the present state included.
        decay: Factor of their weights, in (0, 1].
        reconstructor: None: x = z L^T B. Or a regressor such as `MultiKernelRegressor`, cloned and
            fitted from coordinates to states.
        rolled_steps: Coordinates that the reconstructor is fitted on: encoded ones (0), or also
            those that the model forecasts 1, ..., rolled_steps steps ahead.
        prefit: Use `estimator` as it is; X then only says what is excited.

    Attributes:
        estimator_: The fitted model.
        koopman_matrix_: L^T K R, `(d, d)`, with z_{t+1} = z_t K.
        decoder_: L^T B, `(d, n)`.
        encoder_: R, `(r, d)`, from the model's features.
        lift_: L, `(r, d)`, back to them.
        hankel_singular_values_: All of S.
        reconstructor_: Fitted, where there is one.
        eigenvalues_, continuous_eigenvalues_, modes_: Of K; see the methods of the same names.
        mean_: Mean state.
        spectral_radius_: Largest |lambda|.
        n_features_in_: n.

    Raises:
        ValueError: From `fit`, if a parameter or X is out of range.
        TypeError: From `fit`, if the estimator has no linear decoder.

    Sources:
        Otto and Rowley, "Linearly-Recurrent Autoencoder Networks for learning dynamics", 2019;
        Moore, "Principal component analysis in linear systems", 1981.
    """

    koopman_matrix_: Any
    decoder_: Any
    encoder_: Any
    _left_out = ("estimator", "reconstructor")

    def __init__(
        self,
        estimator: Any,
        n_components: int = 8,
        *,
        horizon: int = 12,
        decay: float = 1.0,
        reconstructor: Any = None,
        rolled_steps: int = 0,
        prefit: bool = False,
    ) -> None:
        self.estimator = estimator
        self.n_components = n_components
        self.horizon = horizon
        self.decay = decay
        self.reconstructor = reconstructor
        self.rolled_steps = rolled_steps
        self.prefit = prefit

    @torch.no_grad()
    def fit(self, X: Any, y: Any = None) -> "BalancedReduction":
        """Fit the model, balance and cut it.

        Args:
            X: One trajectory `(T, n)`, a list of them, or `(trajectories, T, n)`.
            y: Ignored.
        """
        with self._all_or_nothing():
            self._check()
            self.estimator_ = self.estimator if self.prefit else clone(self.estimator).fit(X)
            check_is_fitted(self.estimator_)
            held = self._read(X, reset=True)
            expected = self.estimator_.n_features_in_
            if held.states.shape[1] != expected:
                raise ValueError(
                    f"X has {held.states.shape[1]} features, but the prefit estimator is expecting "
                    f"{expected} features as input."
                )
            x = held.states.double()
            self.mean_ = held.back(x.mean(dim=0))
            psi, matrix = self.estimator_._encode(x), self.estimator_._matrix().to(x)
            decoder = like(self.estimator_.decoder_, x)
            _, s, v = thin_svd(psi / len(psi) ** 0.5)
            excited = v[:, s > 0] * s[s > 0]
            seen = gramian_root(finite_gramian(matrix, decoder, self.horizon, self.decay))
            found = balance(excited, seen, self.n_components)
            self.hankel_singular_values_ = held.back(found.values)
            self.encoder_ = held.back(found.encode.contiguous())
            self.lift_ = held.back(found.lift.contiguous())
            reduced = found.lift.mT @ matrix @ found.encode
            self.koopman_matrix_ = held.back(reduced)
            self.decoder_ = held.back(found.lift.mT @ decoder)
            self._settle()
            if self.reconstructor is not None:
                z, states = self._pairs(held, psi @ found.encode, reduced)
                self.reconstructor_ = clone(self.reconstructor).fit(held.back(z), held.back(states))
        return self

    @override
    def save(self, path: str | Path) -> Path:
        """Write parameters and fitted attributes, the model's too, as `Estimator.save` does."""
        check_is_fitted(self)
        flat = copy.copy(self)
        for name in ("estimator_", "reconstructor_"):
            if hasattr(self, name):
                setattr(flat, name, _described(getattr(self, name)))
        return Estimator.save(flat, path)

    @classmethod
    @override
    def load(cls, path: str | Path, **parameters: Any) -> "BalancedReduction":
        """Read what `save` wrote; `estimator` and `reconstructor` come back without their fits."""
        found = super().load(path, **{"estimator": None, "reconstructor": None, **parameters})
        for name in ("estimator_", "reconstructor_"):
            if hasattr(found, name):
                model = _restored(getattr(found, name))
                setattr(found, name, model)
                setattr(found, name.removesuffix("_"), clone(model))
        return found

    def _check(self) -> None:
        if not isinstance(self.estimator, LinearDynamics):
            raise TypeError(
                "estimator must be a DMD, EDMD or KernelDMD, got "
                f"{type(self.estimator).__name__}: a reduction needs features and a linear decoder."
            )
        for name, least in (("n_components", 1), ("horizon", 1), ("rolled_steps", 0)):
            check_count(name, getattr(self, name), least)
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay must be in (0, 1], got {self.decay}.")

    def _pairs(self, held: Trajectories, z: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates, encoded and forecast, beside the states that they should give."""
        x = held.states.double()
        coordinates, states = [z], [x]
        for step in range(1, self.rolled_steps + 1):
            rows = held.windows(step + 1)
            coordinates.append(z[rows] @ torch.linalg.matrix_power(matrix, step))
            states.append(x[rows + step])
        return torch.cat(coordinates), torch.cat(states)

    @property
    @override
    def _dt(self) -> float:
        return self.estimator._dt

    @property
    @override
    def _axis(self) -> int:
        return self.estimator._axis

    @override
    def _encode(self, x: Float[Tensor, "N n"]) -> Float[Tensor, "N d"]:
        psi = self.estimator_._encode(x)
        return psi @ like(self.encoder_, psi)

    @override
    def _decode(self, z: Float[Tensor, "N d"]) -> Float[Tensor, "N n"]:
        z = z.double()
        if self.reconstructor is not None:
            given = z if isinstance(self.mean_, Tensor) else z.cpu().numpy()
            return torch.as_tensor(self.reconstructor_.predict(given)).to(z).reshape(len(z), -1)
        found = z @ like(self.decoder_, z)
        return found + like(self.estimator_.mean_, z) if self.estimator_.center else found

    @override
    def _matrix(self) -> Float[Tensor, "d d"]:
        return torch.as_tensor(self.koopman_matrix_)

    @override
    def _jacobian(self, z: Float[Tensor, " d"]) -> Float[Tensor, "d n"]:
        # Of the linear reconstruction, also where another one decodes.
        return like(self.decoder_, z.double())


def _described(model: Any) -> dict[str, Any]:
    """A fitted estimator of ours as a dict of arrays and JSON.

    Raises:
        TypeError: If it is another library's.
    """
    if type(model).__name__ not in KNOWN:
        raise TypeError(f"{type(model).__name__} cannot be saved: only {', '.join(KNOWN)} can.")
    fitted = {k: v for k, v in vars(model).items() if k.endswith("_") and not k.startswith("_")}
    return {
        "class": type(model).__name__,
        "parameters": model.get_params(deep=False),
        "attributes": fitted,
    }


def _restored(held: dict[str, Any]) -> Any:
    """The inverse of `_described`."""
    model = KNOWN[held["class"]](**held["parameters"])
    vars(model).update(held["attributes"])
    return model


KNOWN: dict[str, Any] = {
    kind.__name__: kind for kind in (DMD, EDMD, KernelDMD, MultiKernelRegressor)
}
"""What a file may hold inside of a reduction."""
