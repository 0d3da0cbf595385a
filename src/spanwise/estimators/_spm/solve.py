"""From a spectrum to weights and components, in a canonical order and sign."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from spanwise.estimators._progress import ProgressLine
from spanwise.estimators._spm.ascent import Log
from spanwise.estimators._spm.refine import Times, best_weights, refine
from spanwise.estimators._spm.search import convergence_warning, search, warn_unreached
from spanwise.estimators._spm.spectrum import Spectrum, decompose
from spanwise.linalg.symmetric import SymmetricSpace

Residual = Callable[[Tensor, Tensor, Tensor], float]
"""||T - sum w_i v_i u_i^T|| / ||T|| from w, the v_i and the u_i in columns."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to search."""

    component_tol: float = 1e-2
    """1 - f up to which a maximum counts as a component, where none is exact; in (0, 1)."""
    max_iter: int = 200
    """Power steps of a start at most."""
    n_tries: int = 3
    """Batches of starts without a component, after which the best point is taken."""
    refine: int = 0
    """Steps of least squares on the whole tensor afterwards, at most."""
    verbose: bool = False
    """Whether the number of components found is told on stderr."""

    def __post_init__(self) -> None:
        if not 0 < self.component_tol < 1:
            raise ValueError(f"component_tol must be in (0, 1), got {self.component_tol}.")
        for name in ("max_iter", "n_tries"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.refine < 0:
            raise ValueError(f"refine must be at least 0, got {self.refine}.")


@dataclass(frozen=True, kw_only=True)
class SymmetricCPInfo:
    """How a decomposition went."""

    eigenvalues: Any
    """Of the flattening, largest magnitude first; singular values for odd orders."""
    fit: Any
    """f of each component: the squared cosine between a^n and the flattening's range."""
    residual: float
    """||T - sum w a^m|| / ||T||, Frobenius; 0 for the zero tensor."""
    rounds: int
    """Batches of starts."""
    starts: int
    """Starts, over all batches."""
    power_steps: int
    """Power steps, over all starts."""
    newton_steps: int
    """Gauss-Newton and Newton steps, over all starts."""
    n_unreached: int
    """Components that no start reached within the tolerance."""


def solve_flattening(
    M: Float[Tensor, "C c"],
    rows: SymmetricSpace,
    columns: SymmetricSpace,
    rank: int | None,
    rank_tol: float,
    options: Options,
    generator: torch.Generator,
    check: Callable[[int], None],
) -> tuple[Float[Tensor, " r"], Float[Tensor, "d r"], SymmetricCPInfo]:
    """Weights, components and what to tell, of a flattening in coordinates.

    Args:
        M: The flattening.
        rows: Its left space.
        columns: Its right space.
        rank: Number of components, or None.
        rank_tol: Share of the eigenvalues' size that counts.
        options: Of the search.
        generator: Of the starts.
        check: Is called with the rank, and may raise.
    """
    peak = float(M.abs().max())
    if peak == 0:
        none = M.new_zeros(0)
        info = SymmetricCPInfo(
            eigenvalues=none, fit=none, residual=0.0, rounds=0, starts=0, power_steps=0,
            newton_steps=0, n_unreached=0,
        )  # fmt: skip
        return none, M.new_zeros(rows.d, 0), info
    # Squares of entries near the ends of the exponent's range would leave it.
    M = M / peak
    spectrum = decompose(M, rows, columns, rank, rank_tol)
    check(spectrum.rank)

    def residual(w: Tensor, left: Tensor, right: Tensor) -> float:
        return float(torch.addmm(M, left * w, right.mT, alpha=-1).norm() / M.norm())

    w, A, info = solve_spectrum(spectrum, options, generator, residual, M.matmul, peak)
    size = spectrum.eigenvalues
    cut = float(size[spectrum.rank :].norm() / size.norm())
    if float(info.fit.min()) > 1 - 1e-10 and info.residual > 1e-6 + 2 * cut:
        warnings.warn(
            f"all {spectrum.rank} components lie in the flattening's range, but their sum is off "
            f"by {info.residual:.2g} of T: those of T are not unique, as where several lie in one "
            "plane. symmetric_btd finds the subspaces that they share.",
            convergence_warning(),
            stacklevel=3,
        )
    return w, A, info


def solve_spectrum(
    spectrum: Spectrum,
    options: Options,
    generator: torch.Generator,
    residual: Residual,
    times: Times,
    scale: float = 1.0,
) -> tuple[Float[Tensor, " r"], Float[Tensor, "d r"], SymmetricCPInfo]:
    """Weights, components and what to tell, of a spectrum.

    Args:
        spectrum: Of the flattening over `scale`.
        options: Of the search.
        generator: Of the starts.
        residual: Of weights and left and right powers of the components.
        times: The flattening times a matrix.
        scale: What weights and eigenvalues are multiplied with.
    """
    w, A, log = _solve(spectrum, options, generator)
    rows, columns = spectrum.rows, spectrum.columns
    if options.refine and A.shape[1]:
        w, A, steps = refine(times, rows, columns, A, options.refine)
        log.newton_steps += steps
    elif A.shape[1] and not log.exact:
        w = best_weights(times, rows, columns, A)
    w, A = _canonical(w, A, columns.order + rows.order)
    left = rows.power(A)
    right = left if rows is columns else columns.power(A)
    info = SymmetricCPInfo(
        eigenvalues=spectrum.eigenvalues * scale,
        fit=(spectrum.V.mT @ left).square().sum(0),
        residual=residual(w, left, right),
        rounds=log.rounds,
        starts=log.starts,
        power_steps=log.power_steps,
        newton_steps=log.newton_steps,
        n_unreached=len(log.failed),
    )
    return w * scale, A, info


def _solve(
    spectrum: Spectrum, options: Options, generator: torch.Generator
) -> tuple[Float[Tensor, " r"], Float[Tensor, "d r"], Log]:
    """Weights and unit components, and what was done."""
    log = Log()
    with ProgressLine(options.verbose, "component", spectrum.rank) as line:
        A = search(
            spectrum,
            generator=generator,
            max_iter=options.max_iter,
            n_tries=options.n_tries,
            tol=options.component_tol,
            log=log,
            found_so_far=line,
        )
    if not A.shape[1]:
        return A.new_zeros(0), A, log
    warn_unreached(log, options.component_tol, A.shape[1])
    return spectrum.weights(A), A, log


def _canonical(
    w: Float[Tensor, " r"], A: Float[Tensor, "d r"], order: int
) -> tuple[Float[Tensor, " r"], Float[Tensor, "d r"]]:
    """The largest weight first, the largest entry of each component positive."""
    if not A.shape[1]:
        return w, A
    peak = A.gather(0, A.abs().argmax(0, keepdim=True)).sign()
    A = A * peak
    w = w * peak[0] if order % 2 else w
    heaviest = w.abs().argsort(descending=True, stable=True)
    return w[heaviest], A[:, heaviest]
