"""`SubspacePowerMethod`: symmetric decompositions and moments, the scikit-learn way."""

from typing import Any

import torch
from torch import Tensor

from spanwise.estimators._arrays import Back, make_generator, to_numpy, to_torch
from spanwise.estimators._base import Estimator
from spanwise.estimators._moments import check_terms, moment_flattening
from spanwise.estimators._spm.moments import Method, solve_moments
from spanwise.estimators._spm.solve import Options, SymmetricCPInfo
from spanwise.estimators._spm.spectrum import spaces
from spanwise.estimators._symmetric_cp import (
    check_found,
    check_rank,
    checked_tensor,
    converted,
    symmetric_cp,
)
from spanwise.linalg.symmetric import flatten_symmetric


class SubspacePowerMethod(Estimator):
    """Components of a symmetric tensor, or of a moment of data: T = sum of w_i a_i^m.

    `fit(T)` takes a tensor, `fit_moments(X)` samples. For anything else that `symmetric_cp`
    takes, see there.

    Args:
        order: m of `fit_moments`, at least 3. `fit` takes it from the tensor.
        rank: Number of components, or None to count eigenvalues.
        rank_tol: Eigenvalues count above `rank_tol` mean(D^2) / mean(|D|).
        component_tol: In noise, 1 - f up to which a maximum is a component.
        max_iter: Power steps of a start at most.
        n_tries: Batches of starts without a component, before the best point is taken.
        refine: Steps of least squares on the whole tensor afterwards, at most; for noise.
        symmetrize: Whether `fit` decomposes the nearest symmetric tensor.
        force: Warn about a rank above the bound, instead of refusing it.
        random_state: None is seed 0; an integer, or a generator of torch or numpy.
        verbose: Whether to tell the number of components found so far, on stderr.

    Attributes:
        weights_: `(r,)`, largest magnitude first.
        components_: `(r, d)`, unit rows whose largest entry is positive.
        rank_: r.
        order_: m.
        eigenvalues_: Of the flattening, largest magnitude first: a scree plot for the rank.
        fit_: f of each component, 1 where it is exact.
        residual_: ||T - sum w a^m|| / ||T||.
        n_iter_: Power, Gauss-Newton and Newton steps over all starts.
        noise_variance_: What `fit_moments` took out.
        n_features_in_: d.
    """

    def __init__(
        self,
        order: int = 4,
        rank: int | None = None,
        *,
        rank_tol: float = 1e-4,
        component_tol: float = 1e-2,
        max_iter: int = 200,
        n_tries: int = 3,
        refine: int = 0,
        symmetrize: bool = False,
        force: bool = False,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.order = order
        self.rank = rank
        self.rank_tol = rank_tol
        self.component_tol = component_tol
        self.max_iter = max_iter
        self.n_tries = n_tries
        self.refine = refine
        self.symmetrize = symmetrize
        self.force = force
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, T: Any, y: Any = None) -> "SubspacePowerMethod":
        """Decompose the tensor `T`, m axes of length d; `y` is ignored.

        Raises:
            ValueError: As `symmetric_cp` does.
        """
        weights, factor, info = symmetric_cp(
            T,
            self.rank,
            rank_tol=self.rank_tol,
            component_tol=self.component_tol,
            max_iter=self.max_iter,
            n_tries=self.n_tries,
            refine=self.refine,
            symmetrize=self.symmetrize,
            force=self.force,
            random_state=self.random_state,
            verbose=self.verbose,
        )
        order = T.ndim if hasattr(T, "ndim") else len(_shape(T))
        return self._keep(weights, factor, info, order, 0.0)

    def fit_moments(
        self,
        X: Any,
        y: Any = None,
        *,
        cumulant: bool = False,
        noise_variance: float | str | None = None,
        method: Method = "auto",
    ) -> "SubspacePowerMethod":
        """Decompose the moment of order m of samples, without forming d^m entries.

        With C = binom(d + n - 1, n), n = m / 2, `method` says what is held:
        `"explicit"`: the flattening between distinct entries, C x C, whose eigenvalues are all
        found. `"few_samples"`: powers of the samples, C x N; plain moments of even order.
        `"few_components"`: C x a few times `rank`, by products with the samples; even orders;
        `eigenvalues_` then are the leading ones, and `residual_` is estimated from random
        products. `"auto"` takes the second for N < C / 2, the third for C > 1500 with a `rank`
        below C / 10, where they can be had.

        Args:
            X: Samples in rows, `(N, d)`.
            y: Ignored.
            cumulant: The cumulant of order 3 or 4 instead, as independent sources ask for:
                x = A s has the cumulant sum kurt(s_i) a_i^4.
            noise_variance: Variance of isotropic Gaussian noise to take out of the moment;
                `"auto"` estimates it where the rank leaves room (order 4), by the eigenvalues
                beyond `rank` if that is given.
            method: What is held; see above.

        Raises:
            ValueError: If the options do not fit the order or each other, or the rank is above
                the bound.

        Warns:
            ConvergenceWarning: If the leading eigenvalues are not found to rounding.
        """
        if self.order < 3:
            raise ValueError(
                f"order must be at least 3, got {self.order}: an order of 2 has no unique "
                "decomposition."
            )
        check_terms(self.order, cumulant, noise_variance)
        options = Options(
            component_tol=self.component_tol, max_iter=self.max_iter, n_tries=self.n_tries,
            refine=self.refine, verbose=self.verbose,
        )  # fmt: skip
        samples, back = self._samples(X, reset=True)
        d, order, dtype = samples.shape[1], self.order, samples.dtype
        check_rank(self.rank, self.rank_tol, d, order, self.force)
        weights, factor, info, variance = solve_moments(
            samples.double(), order, self.rank, self.rank_tol, options,
            make_generator(self.random_state),
            lambda found: check_found(found, self.rank, d, order, self.force),
            cumulant=cumulant, noise_variance=noise_variance, method=method,
        )  # fmt: skip
        to = _typed(back, dtype)
        return self._keep(to(weights), to(factor), converted(info, to), order, variance)

    @property
    def cp_tensor_(self) -> tuple[Any, list[Any]]:
        """As tensorly has it: `(weights, [factor] * m)`, factor `(d, r)`."""
        return self.weights_, [self.components_.T] * self.order_

    def _keep(
        self, weights: Any, factor: Any, info: SymmetricCPInfo, order: int, variance: float
    ) -> "SubspacePowerMethod":
        self.weights_ = weights
        self.components_ = factor.T
        self.rank_ = len(weights)
        self.order_ = order
        self.eigenvalues_ = info.eigenvalues
        self.fit_ = info.fit
        self.residual_ = info.residual
        self.n_iter_ = info.power_steps + info.newton_steps
        self.noise_variance_ = variance
        self.n_features_in_ = factor.shape[0]
        return self


def _typed(back: Back, dtype: torch.dtype) -> Back:
    def to(result: Tensor) -> Any:
        return back(result.to(dtype))

    return to


def _shape(T: Any) -> tuple[int, ...]:
    return to_numpy(torch.as_tensor(T)).shape


def flattening_values(
    data: Any,
    order: int | None = None,
    *,
    cumulant: bool = False,
    noise_variance: float | str | None = None,
    symmetrize: bool = False,
) -> Any:
    """Eigenvalues of a flattening, largest magnitude first: what `plots.scree` draws.

    Singular values for odd orders. Nothing is decomposed, so that noise and ranks above the bound
    are no error.

    Args:
        data: A symmetric tensor, or with `order` samples in rows, `(N, d)`.
        order: m of the moment of samples, at least 3; None for a tensor.
        cumulant: Of samples, the cumulant of order 3 or 4 instead.
        noise_variance: As in `fit_moments`.
        symmetrize: Take the symmetric tensor nearest to `data`.

    Raises:
        ValueError: If the tensor or the options are none that can be decomposed.
    """
    if order is None:
        tensor, dtype = checked_tensor(data, symmetrize)
        rows, columns = spaces(len(tensor), tensor.ndim, tensor.device)
        M = flatten_symmetric(tensor, rows, columns)
        back: Back = to_torch if isinstance(data, Tensor) else to_numpy
    else:
        if order < 3:
            raise ValueError(f"order must be at least 3, got {order}.")
        samples, back = SubspacePowerMethod()._samples(data, reset=True)
        rows, columns = spaces(samples.shape[1], order, samples.device)
        dtype = samples.dtype
        M, _ = moment_flattening(
            samples.double(), rows, columns, cumulant=cumulant, noise_variance=noise_variance
        )
    if rows is not columns:
        return back(torch.linalg.svdvals(M).to(dtype))
    values = torch.linalg.eigvalsh(M)
    return back(values[values.abs().argsort(descending=True)].to(dtype))
