"""What all linear models of dynamics share: forecasts, spectra, modes and errors by horizon.

Row convention throughout: `z_{t+1} = z_t K`.
"""

import contextlib
import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Complex, Float
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from spanwise.estimators._arrays import Back, to_numpy, to_torch
from spanwise.estimators._base import Estimator
from spanwise.estimators._trajectories import Trajectories, oriented, read

GROWTH = 1e3
"""Factor by which a forecast may grow before it is warned of."""

BLOCK = 1 << 22
"""Coordinates that a forecast holds at once, 32 MB in double precision."""


class Dynamics(ClassNamePrefixFeaturesOutMixin, TransformerMixin, Estimator):
    """A linear model of dynamics in its own coordinates: encode, step by a matrix, decode.

    A subclass sets `mean_` and `spectral_radius_` in `fit`, and knows the hooks below, those that
    compute in its own dtype. `dt` and `time_axis` are parameters of its, unless it says otherwise.
    """

    mean_: Any
    spectral_radius_: float
    n_features_in_: int

    @property
    def _dt(self) -> float:
        """Time between two states."""
        return self.get_params(deep=False)["dt"]

    @property
    def _axis(self) -> int:
        """Axis of time within a trajectory."""
        return self.get_params(deep=False)["time_axis"]

    def _encode(self, x: Float[Tensor, "N n"]) -> Float[Tensor, "N d"]:
        raise NotImplementedError

    def _decode(self, z: Float[Tensor, "N d"]) -> Float[Tensor, "N n"]:
        raise NotImplementedError

    def _matrix(self) -> Float[Tensor, "d d"]:
        raise NotImplementedError

    def _jacobian(self, z: Float[Tensor, " d"]) -> Float[Tensor, "d n"]:
        """How the decoded state changes with each coordinate, at `z`."""
        raise NotImplementedError

    # -- coordinates ---------------------------------------------------------------------------

    @torch.no_grad()
    def transform(self, X: Any) -> Any:
        """The coordinates z of every state, in the form of X: `(T, d)`, or several of those."""
        check_is_fitted(self)
        held = self._read(X)
        return held.arrange(self._encode(held.states).to(held.states), self._axis)

    @torch.no_grad()
    def inverse_transform(self, Z: Any) -> Any:
        """The states of coordinates as `transform` gives them."""
        check_is_fitted(self)
        d = len(self._matrix())
        held = read(Z, self._axis, lambda rows, first: _rows("Z", rows, d))
        return held.arrange(self._decode(held.states).to(held.states), self._axis)

    # -- forecasts -----------------------------------------------------------------------------

    @torch.no_grad()
    def predict(self, X: Any, n_steps: int = 1) -> Any:
        """States from an initial one on: `(n_steps + 1, n)`, the first of them reconstructed.

        Args:
            X: An initial state `(n,)`, or several, `(m, n)`, which give `(m, n_steps + 1, n)`.
            n_steps: Steps of length `dt`, at least 0.

        Raises:
            ValueError: If `n_steps` is negative or X does not fit.

        Warns:
            UserWarning: If the model is unstable and the forecast may grow a thousandfold.
        """
        check_is_fitted(self)
        x, back, single = self._states(X)
        check_count("n_steps", n_steps, 0)
        self._warn_of_growth(n_steps)
        found = self._rolled(self._encode(x), n_steps).to(x)
        return back(oriented(found[0] if single else found, self._axis))

    @torch.no_grad()
    def forecast(self, X: Any, n_steps: int) -> Any:
        """The future of a history: the `n_steps` states after its last one.

        Args:
            X: One trajectory `(T, n)`, which gives `(n_steps, n)`, or several, in a form that
                `fit` takes; the last state of each is where its forecast begins.
            n_steps: At least 1.

        Raises:
            ValueError: If `n_steps` is below 1 or X does not fit.

        Warns:
            UserWarning: As `predict`.
        """
        check_is_fitted(self)
        held = self._read(X)
        check_count("n_steps", n_steps, 1)
        self._warn_of_growth(n_steps)
        x = held.states
        found = self._rolled(self._encode(x[held.lasts]), n_steps)[:, 1:].to(x)
        found = oriented(found, self._axis)
        if held.form == "list":
            return [held.back(part) for part in found]
        return held.back(found[0] if held.form == "one" else found)

    @torch.no_grad()
    def simulate(self, X: Any, times: Any) -> Any:
        """States at the given times after an initial one.

        Args:
            X: An initial state `(n,)`, or several `(m, n)`.
            times: In units of `dt`'s, `(k,)`, none negative. A model of discrete time knows
                multiples of `dt` only.

        Raises:
            ValueError: If a time is negative or between two steps, or X does not fit.
        """
        check_is_fitted(self)
        x, back, single = self._states(X)
        at = torch.as_tensor(np.asarray(times, dtype=np.float64)).reshape(-1)
        if not bool(torch.isfinite(at).all()) or bool((at < 0).any()):
            raise ValueError("times must be finite and not negative.")
        self._warn_of_growth(float(at.max()) / self._dt if len(at) else 0)
        z = self._at_times(self._encode(x), at)
        found = self._decode(z.flatten(0, 1)).view(*z.shape[:2], -1).to(x)
        return back(oriented(found[0] if single else found, self._axis))

    # -- spectrum ------------------------------------------------------------------------------

    @property
    def eigenvalues_(self) -> Any:
        """Eigenvalues of K, complex `(d,)`, largest magnitude first."""
        return self._give(self._spectrum()[0])

    @property
    def continuous_eigenvalues_(self) -> Any:
        """Rates log(lambda) / dt; beyond an angle of pi a step they are aliased."""
        return self._give(torch.log(self._spectrum()[0]) / self._dt)

    @torch.no_grad()
    def eigenfunctions(self, X: Any) -> Any:
        """Koopman eigenfunctions at every state, complex: phi(x_{t+1}) = lambda phi(x_t).

        phi_k(x) = z(x) v_k with the right eigenvectors K v_k = lambda_k v_k, of length one, in
        the order of `eigenvalues_`, in the form of X.
        """
        check_is_fitted(self)
        held = self._read(X)
        z = self._encode(held.states)
        vectors = self._spectrum()[1].to(z.device)
        return held.arrange(z.to(vectors.dtype) @ vectors, self._axis)

    @property
    def modes_(self) -> Any:
        """`modes()`: of a linear decoder those everywhere, else those at the mean state."""
        return self.modes()

    def modes(self, x: Any = None) -> Any:
        """What each eigenfunction adds to the state, complex `(n, d)`: x ~ sum_k phi_k modes_k.

        Of a centred model they add up to the state less `mean_`.

        Args:
            x: The state `(n,)` at which a nonlinear decoder is linearised; None: the mean state.
        """
        check_is_fitted(self)
        with torch.no_grad():
            state = torch.as_tensor(self.mean_)[None] if x is None else self._states(x)[0]
            if len(state) != 1:
                raise ValueError(f"x must be one state, (n,), got {len(state)} of them.")
            z = self._encode(state)[0]
        jacobian = self._jacobian(z)
        vectors = self._spectrum()[1].to(jacobian.device)
        # Least squares, for K may be defective.
        found = torch.linalg.lstsq(vectors, jacobian.to(vectors.dtype)).solution
        return self._give(found.mT)

    # -- errors --------------------------------------------------------------------------------

    @torch.no_grad()
    def errors_by_horizon(self, X: Any, horizon: int) -> Any:
        """Relative error of forecasts 0, 1, ..., horizon steps ahead, `(horizon + 1,)`.

        At each horizon ||forecast - truth|| / ||truth - training mean||, both over all starts that
        `horizon` steps follow in their trajectory; 1 is what always forecasting the mean does.
        States are `dt` apart.

        Raises:
            ValueError: If no trajectory has `horizon + 1` states.
        """
        check_is_fitted(self)
        held = self._read(X)
        check_count("horizon", horizon, 0)
        rows = held.windows(horizon + 1)
        if not len(rows):
            raise ValueError(
                f"horizon = {horizon} needs a trajectory of {horizon + 1} states, the longest has "
                f"{max(held.lengths)}."
            )
        x, mean = held.states, torch.as_tensor(self.mean_).to(held.states)
        z = self._encode(x[rows])
        matrix = self._matrix().to(z.device)
        found = []
        for step in range(horizon + 1):
            if step:
                z = z @ matrix
            truth = x[rows + step].to(z)
            off = (self._decode(z) - truth).square().sum()
            found.append((off / (truth - mean.to(z)).square().sum()).sqrt())
        return held.back(torch.stack(found).to(x))

    def score(self, X: Any, y: Any = None, *, horizon: int | None = None) -> float:
        """Minus the mean of `errors_by_horizon` from one step on; 0 is perfect.

        Args:
            X: Trajectories.
            y: Ignored.
            horizon: Steps; None: 10, or what the longest trajectory allows.
        """
        if horizon is None:
            longest = max(self._read(X).lengths)
            horizon = max(1, min(self._horizon(), longest - 1))
        errors = self.errors_by_horizon(X, horizon)
        return -float(errors[1:].mean())

    # -- for subclasses ------------------------------------------------------------------------

    def _horizon(self) -> int:
        return 10

    @contextlib.contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """A fit that is refused leaves the one before as it was."""
        before = dict(vars(self))
        try:
            yield
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

    def _read(self, X: Any, *, reset: bool = False) -> Trajectories:
        return read(X, self._axis, lambda rows, first: self._samples(rows, reset=reset and first))

    def _states(self, X: Any) -> tuple[Tensor, Back, bool]:
        """Initial states `(m, n)`, the way back, and whether there was one without an axis."""
        held = X if isinstance(X, Tensor) or hasattr(X, "columns") else np.asarray(X)
        single = held.ndim == 1
        if single:
            held = held.reshape(1, -1)
        x, back = self._samples(held, reset=False)
        return x, back, single

    def _rolled(self, z: Float[Tensor, "m d"], n_steps: int) -> Float[Tensor, "m steps n"]:
        """Decoded states 0, ..., n_steps; coordinates of some steps at a time are held."""
        matrix = self._matrix().to(z.device)
        found: list[Tensor] = []
        at_once = max(1, BLOCK // max(1, z.numel()))
        for begin in range(0, n_steps + 1, at_once):
            path = [z @ matrix if begin else z]
            for _ in range(min(at_once, n_steps + 1 - begin) - 1):
                path.append(path[-1] @ matrix)
            z = path[-1]
            found.append(self._decode(torch.cat(path)).view(len(path), len(z), -1))
        return torch.cat(found).transpose(0, 1)

    def _at_times(self, z: Float[Tensor, "m d"], times: Tensor) -> Float[Tensor, "m k d"]:
        steps = times / self._dt
        whole = steps.round()
        if bool(((steps - whole).abs() > 1e-6 * steps.clamp(min=1)).any()):
            raise ValueError(
                f"times must be multiples of dt = {self._dt} for a model of discrete time. "
                "LRAN(continuous=True) knows all."
            )
        path, matrix = [z], self._matrix().to(z.device)
        for _ in range(int(whole.max()) if len(whole) else 0):
            path.append(path[-1] @ matrix)
        return torch.stack([path[int(step)] for step in whole], dim=1)

    def _spectrum(self) -> tuple[Complex[Tensor, " d"], Complex[Tensor, "d d"]]:
        """Eigenvalues, largest magnitude first, and right eigenvectors in columns."""
        check_is_fitted(self)
        values, vectors = torch.linalg.eig(self._matrix().detach().double())
        # Equal magnitudes, as of pairs, are ordered by angle: results do not hang on LAPACK.
        order = np.lexsort(
            (-values.angle().cpu().numpy().round(9), -values.abs().cpu().numpy().round(9))
        )
        rows = torch.from_numpy(order).to(values.device)
        return values[rows], vectors[:, rows]

    def _settle(self) -> None:
        """What is known once the matrix is: call it at the end of `fit`."""
        values = torch.linalg.eigvals(self._matrix().detach().double())
        self.spectral_radius_ = float(values.abs().max()) if len(values) else 0.0

    def _give(self, found: Tensor) -> Any:
        return found.detach() if isinstance(self.mean_, Tensor) else found.detach().cpu().numpy()

    def _warn_of_growth(self, n_steps: float) -> None:
        radius = self.spectral_radius_
        if radius > 1 and n_steps * math.log(radius) > math.log(GROWTH):
            warnings.warn(
                f"the model is unstable: its spectral radius is {radius:.4g}, so that what it "
                f"forecasts may grow by {radius:.4g}^{n_steps:g}. Forecast fewer steps, or fit "
                "with a longer horizon or a lower rank.",
                UserWarning,
                stacklevel=4,  # torch.no_grad adds a frame
            )

    @property
    def _n_features_out(self) -> int:
        return len(self._matrix())


def _rows(name: str, rows: Any, width: int) -> tuple[Tensor, Back]:
    if isinstance(rows, Tensor):
        x, back = rows.detach(), to_torch
    else:
        x, back = torch.from_numpy(np.require(rows, requirements=["C", "W"])), to_numpy
    if not x.is_floating_point():
        x = x.double()
    if x.ndim != 2 or x.shape[1] != width:
        raise ValueError(f"{name} must have {width} coordinates a row, got {tuple(x.shape)}.")
    return x.to(torch.promote_types(x.dtype, torch.float32)), back


def check_count(name: str, value: int, least: int) -> None:
    """Refuse what is no integer, or too small."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}.")


def check_common(estimator: Dynamics) -> None:
    """The parameters that all have.

    Raises:
        ValueError: If `dt` is out of range; reading trajectories looks at `time_axis`.
    """
    if not 0 < estimator._dt < math.inf:
        raise ValueError(f"dt must be finite and above 0, got {estimator._dt}.")
