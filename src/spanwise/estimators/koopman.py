"""DMD, EDMD and kernel DMD: the linear step that fits features of successive states best."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from spanwise.estimators._arrays import make_generator
from spanwise.estimators._koopman.dictionaries import (
    Observables,
    monomial_count,
    monomials,
    thin_plate,
)
from spanwise.estimators._koopman.fits import least_squares, step_matrix
from spanwise.estimators._koopman.kernels import (
    Kernel,
    KernelOptions,
    choose_landmarks,
    default_gamma,
    whitener,
)
from spanwise.estimators._koopman.linear import (
    LinearDynamics,
    check_kernel,
    check_tolerance,
    like,
)
from spanwise.linalg.thin import thin_svd


class DMD(LinearDynamics):
    """Dynamic mode decomposition: the best linear step between states, in their leading directions.

    With states in rows, X = W S U^T: z = x U, and K = U^T X^+ Y U.

    Args:
        n_components: Directions: an integer; a share of the energy in (0, 1); None: all of
            numerical rank.
        center: Whether states are measured from their mean, and the step has a constant term: the
            last coordinate is then 1 throughout, and so is an eigenvalue. Without the term, what
            is linear away from 0 would be so no more.
        rank_tol: Singular values up to this share of the largest count as zero.
        dt: Time between two states.
        time_axis: 0: states in rows; 1: in columns, as PyDMD has them. It also orients results.

    Attributes:
        koopman_matrix_: K, `(d, d)`, with z_{t+1} = z_t K; d is one more than directions where
            `center`.
        decoder_: U^T, `(d, n)`, and for the constant what the directions miss of the mean.
        eigenvalues_, continuous_eigenvalues_, modes_: Of K; see the methods of the same names.
        singular_values_: S, of all directions.
        mean_: Mean state.
        spectral_radius_: Largest |lambda|.
        n_features_in_: n.

    Raises:
        ValueError: From `fit`, if a parameter or X is out of range.

    Sources:
        Schmid, "Dynamic mode decomposition of numerical and experimental data", 2010; Tu et al.,
        "On dynamic mode decomposition: theory and applications", 2014, algorithm 1; Hirsh et al.,
        "Centering data improves the dynamic mode decomposition", 2020.
    """

    def __init__(
        self,
        n_components: int | float | None = None,
        *,
        center: bool = False,
        rank_tol: float = 1e-12,
        dt: float = 1.0,
        time_axis: int = 0,
    ) -> None:
        self.n_components = n_components
        self.center = center
        self.rank_tol = rank_tol
        self.dt = dt
        self.time_axis = time_axis

    @torch.no_grad()
    def fit(self, X: Any, y: Any = None) -> "DMD":
        """Fit the step.

        Args:
            X: One trajectory `(T, n)`, a list of them, or `(trajectories, T, n)`.
            y: Ignored.
        """
        with self._all_or_nothing():
            check_tolerance(self.rank_tol)
            held, x, rows = self._begin(X)
            before, after = x[rows], x[rows + 1]
            # Least squares with a constant term: both sides lose a mean of their own.
            start = before.mean(dim=0) if self.center else x.new_zeros(x.shape[1])
            moving = before - start
            # A mean's rounding is no movement.
            if self.center and float(moving.abs().max()) <= 1e-12 * float(held.states.abs().max()):
                raise ValueError(
                    "all states with a successor are alike: beside a constant term nothing is left "
                    "to fit. Give more states."
                )
            u, s, v = thin_svd(moving)
            kept = _rank(self.n_components, s, self.rank_tol)
            basis = v[:, :kept]
            self.singular_values_ = held.back(s)
            moved = after @ basis
            matrix = (u[:, :kept].mT @ moved) / s[:kept, None]
            decoder = basis.mT
            if self.center:
                inside = start @ basis
                constant = moved.mean(dim=0) - inside @ matrix
                matrix = torch.nn.functional.pad(matrix, (0, 1, 0, 1))
                matrix[-1, :-1], matrix[-1, -1] = constant, 1.0
                decoder = torch.cat([decoder, (start - inside @ basis.mT)[None]])
            self._finish(held, len(rows), matrix, decoder, "lower n_components")
        return self

    @override
    def _features(self, x: Float[Tensor, "N n"]) -> Float[Tensor, "N d"]:
        decoder = like(self.decoder_, x)
        if not self.center:
            return x @ decoder.mT
        return torch.nn.functional.pad(x @ decoder[:-1].mT, (0, 1), value=1.0)


class EDMD(LinearDynamics):
    """Extended DMD: the best linear step between observables psi of successive states.

    psi(y) ~ psi(x) K and x ~ psi(x) B, both by least squares on the feature matrix.

    Args:
        observables: `"polynomial"`: monomials up to `degree`, 1 included; `"thin_plate"`: 1, the
            state and r^2 log r around `n_centers` training states; `"identity"`; or a function
            of states in rows, `(N, n)` -> `(N, D)`, arrays where X is one and tensors where X is
            one. A fitted scikit-learn transformer's `transform` is such a function.
        degree: Of the polynomials.
        n_centers: Of the splines, drawn at random from the states.
        center: Whether the mean state is taken out first, and added to forecasts.
        rank_tol: Singular values of the features up to this share of the largest count as zero.
            Raise it where many observables meet few states: K then fits noise.
        dt: Time between two states.
        time_axis: 0: states in rows; 1: in columns.
        random_state: Of the centers; None is seed 0.

    Attributes:
        koopman_matrix_: K, `(D, D)`, with psi_{t+1} = psi_t K.
        decoder_: B, `(D, n)`.
        eigenvalues_, continuous_eigenvalues_, modes_: Of K; see the methods of the same names.
        centers_: Of the splines.
        mean_: Mean state.
        spectral_radius_: Largest |lambda|.
        n_features_in_: n.

    Raises:
        ValueError: From `fit`, if a parameter or X is out of range.

    Sources:
        Williams, Kevrekidis and Rowley, "A data-driven approximation of the Koopman operator:
        extending dynamic mode decomposition", 2015, section 2.
    """

    def __init__(
        self,
        observables: Observables = "polynomial",
        *,
        degree: int = 2,
        n_centers: int = 100,
        center: bool = False,
        rank_tol: float = 1e-12,
        dt: float = 1.0,
        time_axis: int = 0,
        random_state: Any = None,
    ) -> None:
        self.observables = observables
        self.degree = degree
        self.n_centers = n_centers
        self.center = center
        self.rank_tol = rank_tol
        self.dt = dt
        self.time_axis = time_axis
        self.random_state = random_state

    @torch.no_grad()
    def fit(self, X: Any, y: Any = None) -> "EDMD":
        """Fit step and decoder.

        Args:
            X: One trajectory `(T, n)`, a list of them, or `(trajectories, T, n)`.
            y: Ignored.
        """
        with self._all_or_nothing():
            check_tolerance(self.rank_tol)
            known = ("identity", "polynomial", "thin_plate")
            if self.observables not in known and not callable(self.observables):
                raise ValueError(
                    f"observables must be one of {', '.join(map(repr, known))} or a function, got "
                    f"{self.observables!r}."
                )
            for name in ("degree", "n_centers"):
                if getattr(self, name) < 1:
                    raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
            held, x, rows = self._begin(X)
            if self.observables == "polynomial":
                count = monomial_count(x.shape[1], self.degree)
                if count > MOST_OBSERVABLES:
                    raise ValueError(
                        f"degree = {self.degree} in {x.shape[1]} variables has {count} monomials. "
                        "Lower degree, reduce the state, or use KernelDMD with a polynomial kernel."
                    )
            if self.observables == "thin_plate":
                chosen = torch.randperm(len(x), generator=make_generator(self.random_state))
                self.centers_ = held.back(x[chosen[: self.n_centers].to(x.device)])
            psi = self._features(x)
            matrix = step_matrix(psi[rows], psi[rows + 1], self.rank_tol)
            decoder = least_squares(psi, x, self.rank_tol)
            self._finish(held, len(rows), matrix, decoder, "take fewer observables")
        return self

    @override
    def _features(self, x: Float[Tensor, "N n"]) -> Float[Tensor, "N D"]:
        if self.observables == "identity":
            return x
        if self.observables == "polynomial":
            return monomials(x, self.degree)
        if self.observables == "thin_plate":
            return thin_plate(x, like(self.centers_, x))
        assert callable(self.observables)
        given = x if isinstance(self.mean_, Tensor) else x.cpu().numpy()
        found = torch.as_tensor(self.observables(given)).to(x)
        if found.ndim != 2 or len(found) != len(x):
            raise ValueError(
                f"observables must return (N, D) for (N, n) = {tuple(x.shape)}, got "
                f"{tuple(found.shape)}."
            )
        if not bool(torch.isfinite(found).all()):
            raise ValueError("observables gave NaN or infinity for finite states.")
        return found


class KernelDMD(LinearDynamics):
    """Extended DMD with the features of a kernel, of which only its Gram matrix is formed.

    With k(X, X) = Q Sigma^2 Q^T the coordinates are psi(x) = k(x, X) Q Sigma^-1, K is the least
    squares step between them, x ~ psi(x) B. Beyond `max_landmarks` states the coordinates come
    from those that pivoted Cholesky picks (Nystrom).

    Args:
        kernel: `"rbf"`, exp(-gamma |x - y|^2); `"polynomial"`, (gamma x.y + coef0)^degree;
            `"linear"`; or a function of two arrays `(N, n)`, `(m, n)` that returns `(N, m)`.
        gamma: None: 1 / (n times the variance of X) for rbf, 1 for polynomials.
        degree: Of the polynomial.
        coef0: Of the polynomial.
        n_components: Coordinates at most; None: all of numerical rank.
        rank_tol: Sigma^2 counts above this share of the largest. Raise it where K fits noise: a
            small residual does not tell.
        max_landmarks: States whose Gram matrix is decomposed at most, M^3 work.
        center: Whether the mean state is taken out first, and added to forecasts.
        dt: Time between two states.
        time_axis: 0: states in rows; 1: in columns.

    Attributes:
        koopman_matrix_: K, `(r, r)`, with psi_{t+1} = psi_t K.
        decoder_: B, `(r, n)`.
        eigenvalues_, continuous_eigenvalues_, modes_: Of K; see the methods of the same names.
        landmarks_: `(m, n)`.
        projector_: Q Sigma^-1, `(m, r)`.
        gamma_: Of the kernel.
        mean_: Mean state.
        spectral_radius_: Largest |lambda|.
        n_features_in_: n.

    Raises:
        ValueError: From `fit`, if a parameter or X is out of range or the Gram matrix has rank 0.

    Sources:
        Williams, Rowley and Kevrekidis, "A kernel-based method for data-driven Koopman spectral
        analysis", 2015; Otto and Rowley 2019, section 2.
    """

    def __init__(
        self,
        kernel: Kernel = "rbf",
        *,
        gamma: float | None = None,
        degree: int = 2,
        coef0: float = 1.0,
        n_components: int | None = None,
        rank_tol: float = 1e-10,
        max_landmarks: int = 3000,
        center: bool = False,
        dt: float = 1.0,
        time_axis: int = 0,
    ) -> None:
        self.kernel = kernel
        self.gamma = gamma
        self.degree = degree
        self.coef0 = coef0
        self.n_components = n_components
        self.rank_tol = rank_tol
        self.max_landmarks = max_landmarks
        self.center = center
        self.dt = dt
        self.time_axis = time_axis

    @torch.no_grad()
    def fit(self, X: Any, y: Any = None) -> "KernelDMD":
        """Fit step and decoder.

        Args:
            X: One trajectory `(T, n)`, a list of them, or `(trajectories, T, n)`.
            y: Ignored.
        """
        with self._all_or_nothing():
            self._check()
            held, x, rows = self._begin(X)
            if self.gamma is not None:
                self.gamma_ = float(self.gamma)
            else:
                self.gamma_ = default_gamma(x) if self.kernel == "rbf" else 1.0
            kernel = self._kernel()
            landmarks = choose_landmarks(kernel, x[rows], self.max_landmarks)
            whole = kernel(x, landmarks)  # once for x and y: most states are both
            own = whole[rows] if len(landmarks) == len(rows) else kernel(landmarks, landmarks)
            projector = whitener(own, self.rank_tol, self.n_components)
            self.landmarks_ = held.back(landmarks.contiguous())
            self.projector_ = held.back(projector.contiguous())
            psi = whole @ projector
            matrix = step_matrix(psi[rows], psi[rows + 1], self.rank_tol**0.5)
            decoder = least_squares(psi[rows], x[rows], self.rank_tol**0.5)
            self._finish(held, len(rows), matrix, decoder, "lower n_components, or raise rank_tol")
        return self

    def _kernel(self) -> KernelOptions:
        return KernelOptions(self.kernel, self.gamma_, self.degree, self.coef0)

    @override
    def _features(self, x: Float[Tensor, "N n"]) -> Float[Tensor, "N r"]:
        return self._kernel()(x, like(self.landmarks_, x)) @ like(self.projector_, x)

    def _check(self) -> None:
        check_tolerance(self.rank_tol)
        check_kernel(self.kernel, self.gamma)
        if self.degree < 1 or self.coef0 < 0:
            raise ValueError(
                f"degree must be at least 1 and coef0 not negative, got {self.degree} and "
                f"{self.coef0}."
            )
        if self.n_components is not None and self.n_components < 1:
            raise ValueError(f"n_components must be None or at least 1, got {self.n_components}.")
        if self.max_landmarks < 1:
            raise ValueError(f"max_landmarks must be at least 1, got {self.max_landmarks}.")


MOST_OBSERVABLES = 20000
"""Monomials that are still worth forming."""


def _rank(wanted: int | float | None, s: Tensor, rank_tol: float) -> int:
    """How many leading directions are kept."""
    kept = int((s > rank_tol * s[:1]).sum())
    if not kept:
        raise ValueError("all states with a successor are zero: there is nothing to fit.")
    if wanted is None:
        return kept
    if isinstance(wanted, float):
        if not 0 < wanted < 1:
            raise ValueError(
                f"n_components must be None, an integer or a share of the energy in (0, 1), got "
                f"{wanted}."
            )
        energy = s.square().cumsum(0) / s.square().sum()
        return min(kept, int((energy < wanted).sum()) + 1)
    if wanted < 1:
        raise ValueError(f"n_components must be at least 1, got {wanted}.")
    return min(kept, wanted)
