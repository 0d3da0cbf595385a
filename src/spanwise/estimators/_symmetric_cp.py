"""Symmetric tensor decomposition: T = sum of w_i a_i^m, without knowing the rank."""

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spanwise.estimators._arrays import Back, make_generator, to_numpy, to_torch
from spanwise.estimators._spm.solve import Options, SymmetricCPInfo, solve_flattening
from spanwise.estimators._spm.spectrum import rank_bound, spaces
from spanwise.linalg.symmetric import asymmetry, flatten_symmetric
from spanwise.linalg.symmetric import symmetrize as nearest_symmetric


def symmetric_cp(
    T: Any,
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
) -> tuple[Any, Any, SymmetricCPInfo]:
    """Decompose a symmetric tensor, T = sum_i w_i a_i x ... x a_i with unit a_i.

    The subspace power method: the range of T's flattening is spanned by the powers of the a_i,
    and those are the only unit vectors x whose power lies in it, maxima of
    f(x) = ||V^T x^n||^2. All is done in float64, on T's device.

    Args:
        T: Symmetric, m >= 3 axes of length d, an array or a tensor. Its rank may exceed d:
            generically up to binom(d + n - 1, n) - d, n = ceil(m / 2), and for odd m up to
            binom(d + n - 2, n - 1).
        rank: Number of components; None counts the eigenvalues of the flattening that matter.
        rank_tol: They matter above `rank_tol` mean(D^2) / mean(|D|). Raise it for noisy tensors,
            after a look at `info.eigenvalues`.
        component_tol: In noise, 1 - f up to which a maximum is a component.
        max_iter: Power steps of a start at most.
        n_tries: Batches of starts without a component, after which the best point is taken with
            a warning.
        refine: Steps of least squares on ||T - sum w a^m|| afterwards, at most: with noise
            components come closer, and a wrong one may be set right. 50 are plenty; none are
            needed without noise.
        symmetrize: Decompose the nearest symmetric tensor, instead of refusing others.
        force: Warn about a rank above the bound, instead of refusing it.
        random_state: Seed of the starts, see `make_generator`; None is 0.
        verbose: Whether to tell the number of components found so far, on stderr.

    Returns:
        `(weights, factor, info)`: `(r,)`, largest magnitude first and of either sign for even m
        as for odd; `(d, r)`, unit columns whose largest entry is positive; what was done.
        tensorly's convention is `(weights, [factor] * m)`.

    Raises:
        ValueError: If T is not cubical, symmetric or finite, has fewer than three axes, or the
            rank is above the bound.
        NotImplementedError: If T is complex.

    Warns:
        ConvergenceWarning: If a component is none, with its f, or those of T are not unique.

    Sources:
        Kileel and Pereira, "Subspace power method for symmetric tensor decomposition", 2019,
        arXiv 1912.04007; Kileel, Klock and Pereira, "Landscape analysis of an improved power
        method for tensor decomposition", 2021.
    """
    options = Options(
        component_tol=component_tol,
        max_iter=max_iter,
        n_tries=n_tries,
        refine=refine,
        verbose=verbose,
    )
    tensor, dtype = checked_tensor(T, symmetrize)
    generator = make_generator(random_state)
    rows, columns = spaces(len(tensor), tensor.ndim, tensor.device)
    check_rank(rank, rank_tol, len(tensor), tensor.ndim, force)
    back = to_torch if isinstance(T, Tensor) else to_numpy
    # A tenth of the time of small problems is what autograd would keep of a thousand operations.
    with torch.inference_mode():
        M = flatten_symmetric(tensor, rows, columns)
        w, A, info = solve_flattening(
            M, rows, columns, rank, rank_tol, options, generator,
            lambda found: check_found(found, rank, len(tensor), tensor.ndim, force),
        )  # fmt: skip
    to = as_given(back, dtype)
    return to(w), to(A), converted(info, to)


def as_given(back: Back, dtype: torch.dtype) -> Back:
    """The way back for what was made in inference mode: in the dtype of the input, a copy."""

    def to(result: Tensor) -> Any:
        return back(result.clone().to(dtype))

    return to


def converted(info: SymmetricCPInfo, to: Back) -> SymmetricCPInfo:
    """`info` with its tensors as the caller wants them."""
    return replace(info, eigenvalues=to(info.eigenvalues), fit=to(info.fit))


def checked_tensor(T: Any, symmetrize: bool) -> tuple[Tensor, torch.dtype]:
    """T in float64, and the dtype of results; or an error that says what is wrong."""
    given = T.detach() if isinstance(T, Tensor) else np.asarray(T)
    if isinstance(given, np.ndarray):
        if given.dtype.kind not in "biufc":
            raise ValueError(f"T must hold numbers, got dtype {given.dtype}.")
        given = torch.as_tensor(given if given.flags.writeable else given.copy())
    if given.is_complex():
        raise NotImplementedError(
            "T is complex. Only real tensors are decomposed: give T.real and T.imag by themselves."
        )
    if given.ndim < 3 or len(set(given.shape)) != 1:
        order = "An order of 2 has no unique decomposition: use eigh. " if given.ndim == 2 else ""
        raise ValueError(
            f"T must have at least three axes, all of one length, got shape {tuple(given.shape)}. "
            f"{order}Flattened tensors want T.reshape([d] * m)."
        )
    dtype = given.dtype if given.is_floating_point() else torch.float64
    tensor = given.to(torch.float64)
    peak = tensor.abs().max() if tensor.numel() else tensor.sum()
    if not tensor.numel():
        raise ValueError(f"T is empty: its axes have length {len(tensor)}.")
    if not bool(torch.isfinite(peak)):
        raise ValueError("T holds NaN or infinity. Find where it comes from.")
    if symmetrize:
        return nearest_symmetric(tensor), dtype
    allowed = 100 * torch.finfo(dtype).eps ** 0.75 * float(peak)
    found = asymmetry(tensor)
    if found > allowed:
        raise ValueError(
            f"T is not symmetric: entries differ by up to {found:.3g} when axes are exchanged, "
            f"beside a largest entry of {float(peak):.3g}. symmetrize=True takes the nearest "
            "symmetric tensor."
        )
    return tensor, dtype


def check_rank(rank: int | None, rank_tol: float, d: int, order: int, force: bool) -> None:
    """Raise, or warn, where components of the rank that is asked for are not unique."""
    if not rank_tol > 0:
        raise ValueError(f"rank_tol must be positive, got {rank_tol}.")
    if rank is None:
        return
    if rank < 1:
        raise ValueError(f"rank must be at least 1, or None, got {rank}.")
    _check_unique(rank, f"rank = {rank}", "Lower rank", d, order, force)


def check_found(found: int, rank: int | None, d: int, order: int, force: bool) -> None:
    """The same of the rank that was found, where none was asked for."""
    if rank is None:
        way = "Noise has full rank: give rank, or raise rank_tol"
        _check_unique(found, f"the flattening has rank {found}", way, d, order, force)


def _check_unique(rank: int, source: str, way: str, d: int, order: int, force: bool) -> None:
    bound = rank_bound(d, order)
    if rank <= bound:
        return
    text = (
        f"{source}, but of a tensor of order {order} over R^{d} at most {bound} generic "
        f"components can be told apart. {way}; force=True tries all the same."
    )
    if not force:
        raise ValueError(text)
    warnings.warn(text, UserWarning, stacklevel=4)
