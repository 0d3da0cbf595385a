"""From samples to the components of their moment, by whichever way holds least."""

import warnings
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from spanwise.estimators._moment_spectrum import (
    MomentOperator,
    estimated_residual,
    few_components,
    few_samples,
    residual_of_samples,
)
from spanwise.estimators._moments import centred, check_terms, moment_flattening
from spanwise.estimators._spm.search import convergence_warning
from spanwise.estimators._spm.solve import (
    Options,
    SymmetricCPInfo,
    solve_flattening,
    solve_spectrum,
)
from spanwise.estimators._spm.spectrum import Spectrum, spaces

Method = Literal["auto", "explicit", "few_samples", "few_components"]
"""What of a moment is held."""

_LARGE = 1500
"""Coordinates from which a few components are sought by themselves: seconds for all eigenvalues."""

Solution = tuple[Tensor, Tensor, SymmetricCPInfo, float]


def solve_moments(
    X: Float[Tensor, "n d"],
    order: int,
    rank: int | None,
    rank_tol: float,
    options: Options,
    generator: torch.Generator,
    check: Callable[[int], None],
    *,
    cumulant: bool,
    noise_variance: float | str | None,
    method: Method,
) -> Solution:
    """Weights, components, what to tell, and the noise variance that was taken out.

    Args:
        X: Samples in rows, float64.
        order: m.
        rank: Number of components, or None.
        rank_tol: Share of the eigenvalues' size that counts.
        options: Of the search.
        generator: Of the starts.
        check: Is called with the rank, and may raise.
        cumulant: Whether to decompose the cumulant.
        noise_variance: To take out, `"auto"`, or None.
        method: What to hold.
    """
    rows, columns = spaces(X.shape[1], order, X.device)
    check_terms(order, cumulant, noise_variance)
    plain = not cumulant and noise_variance is None
    method = _chosen(method, len(X), rows.dim, order, rank, plain, noise_variance)
    if method == "explicit":
        M, variance = moment_flattening(
            X, rows, columns, cumulant=cumulant, noise_variance=noise_variance, rank=rank
        )
        args = rows, columns, rank, rank_tol, options, generator, check
        return *solve_flattening(M, *args), variance
    if cumulant:
        X = centred(X)
    peak = float(X.abs().max())
    if peak == 0:
        M = X.new_zeros(rows.dim, columns.dim)
        args = rows, columns, rank, rank_tol, options, generator, check
        return *solve_flattening(M, *args), 0.0
    X = X / peak
    if method == "few_samples":
        spectrum: Spectrum = few_samples(X, rows, rank, rank_tol)
        check(spectrum.rank)

        def residual(w: Tensor, left: Tensor, right: Tensor) -> float:
            return residual_of_samples(X, w, left, rows)

        powers = rows.power(X.mT)

        def through(B: Tensor) -> Tensor:
            return powers @ (powers.mT @ B) / len(X)

        return *solve_spectrum(
            spectrum, options, generator, residual, through, peak**order
        ), 0.0  # fmt: skip
    assert rank is not None
    assert not isinstance(noise_variance, str)
    variance = float(noise_variance or 0.0)
    moment = MomentOperator(X, rows, cumulant=cumulant, noise_variance=variance / peak**2)
    spectrum, settled = few_components(moment, rank)
    check(rank)
    if not settled:
        warnings.warn(
            f"the {rank} leading eigenvalues of the moment were not found to rounding: the next "
            'one is close. Look at eigenvalues for another rank, or take method="explicit".',
            convergence_warning(),
            stacklevel=3,
        )

    def estimate(w: Tensor, left: Tensor, right: Tensor) -> float:
        return estimated_residual(moment, w, left)

    scale = peak**order
    return *solve_spectrum(
        spectrum, options, generator, estimate, moment.__matmul__, scale
    ), variance  # fmt: skip


def _chosen(
    method: Method,
    n: int,
    C: int,
    order: int,
    rank: int | None,
    plain: bool,
    noise_variance: float | str | None,
) -> Method:
    """The method that `"auto"` means; or an error where the one asked for cannot serve."""
    even = order % 2 == 0
    samples = even and plain and n < C
    components = even and rank is not None and noise_variance != "auto"
    components = components and (order == 4 or not noise_variance)
    if method == "auto":
        if samples and 2 * n < C:
            return "few_samples"
        if components and C > _LARGE and 10 * (rank or 0) < C:
            return "few_components"
        return "explicit"
    if method == "few_samples" and not samples:
        raise ValueError(
            f'method="few_samples" needs a plain moment of even order and fewer than {C} samples, '
            f"got order {order}, {n} samples{'' if plain else ', and terms to take out'}. Take "
            '"auto".'
        )
    if method == "few_components" and not components:
        raise ValueError(
            f'method="few_components" needs an even order, a rank, and noise_variance as a number '
            f"at order 4 or None, got order {order}, rank = {rank}, noise_variance = "
            f'{noise_variance!r}. Take "auto".'
        )
    if method not in ("explicit", "few_samples", "few_components"):
        raise ValueError(
            f'method must be "auto", "explicit", "few_samples" or "few_components", got {method!r}.'
        )
    return method
