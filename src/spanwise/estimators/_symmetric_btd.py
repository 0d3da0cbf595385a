"""Symmetric block term decomposition: T = sum of (A_i, ..., A_i) . W_i, by the power method."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from spanwise.estimators._arrays import make_generator, to_numpy, to_torch
from spanwise.estimators._spm.ascent import Log
from spanwise.estimators._spm.blocks import BlockTermInfo, block_terms, search_blocks
from spanwise.estimators._spm.search import warn_unreached
from spanwise.estimators._spm.solve import Options
from spanwise.estimators._spm.spectrum import decompose, spaces
from spanwise.estimators._symmetric_cp import check_found, check_rank, checked_tensor
from spanwise.linalg.symmetric import SymmetricSpace, flatten_symmetric


def symmetric_btd(
    T: Any,
    n_blocks: int | None = None,
    block: int | None = None,
    *,
    rank_tol: float = 1e-4,
    component_tol: float = 1e-2,
    max_iter: int = 200,
    n_tries: int = 3,
    symmetrize: bool = False,
    force: bool = False,
    random_state: Any = None,
) -> tuple[list[Any], list[Any], BlockTermInfo]:
    """Decompose a symmetric tensor of even order into terms that live on subspaces.

    T = sum_i (A_i, ..., A_i) . W_i: each core W_i is a symmetric tensor over R^l_i, carried into
    R^d by an orthonormal d x l_i basis. With l_i = 1 this is `symmetric_cp`. Moments of points on
    a union of subspaces are such tensors: see `GPCA`. Unique for generic subspaces and cores of
    full rank within the bound of `symmetric_cp`, the rank being sum binom(l_i + n - 1, n).

    Args:
        T: Symmetric, an even number m = 2 n >= 4 of axes of length d.
        n_blocks: Number of terms; needs `block`. None counts eigenvalues.
        block: Dimension l of every subspace, from 1 to d - 1. None finds each by itself, which
            needs a tensor without noise.
        rank_tol: As in `symmetric_cp`.
        component_tol: In noise, 1 - f up to which a maximum lies in a subspace.
        max_iter: Power steps of a start at most.
        n_tries: Batches of starts without a subspace, before the best point is taken.
        symmetrize: Decompose the nearest symmetric tensor, instead of refusing others.
        force: Warn about a rank above the bound, instead of refusing it.
        random_state: Seed of the starts; None is 0.

    Returns:
        `(cores, bases, info)`: tensors of m axes of length l_i, largest norm first; `(d, l_i)`
        bases along the principal axes of their cores; what was done.

    Raises:
        ValueError: As in `symmetric_cp`, and if the order is odd, `block` is not in [1, d - 1],
            or `n_blocks` comes without it.

    Warns:
        ConvergenceWarning: If a subspace is none, with its f.

    Sources:
        Kileel and Pereira, "Subspace power method for symmetric tensor decomposition and
        generalized PCA", arXiv 1912.04007v3, 2021, section 5.
    """
    options = Options(component_tol=component_tol, max_iter=max_iter, n_tries=n_tries)
    tensor, dtype = checked_tensor(T, symmetrize)
    d, order = len(tensor), tensor.ndim
    if order % 2:
        raise ValueError(
            f"T must have an even number of axes, got {order}: of an odd order the flattening's "
            "range does not hold all symmetric tensors over a subspace."
        )
    rank = check_block(n_blocks, block, d, order // 2)
    generator = make_generator(random_state)
    rows, _ = spaces(d, order, tensor.device)
    check_rank(rank, rank_tol, d, order, force)
    back = to_torch if isinstance(T, Tensor) else to_numpy
    M = flatten_symmetric(tensor, rows, rows)
    peak = float(M.abs().max())
    if peak == 0:
        none = back(M.new_zeros(0).to(dtype))
        info = BlockTermInfo(eigenvalues=none, fit=none, residual=0.0, rounds=0, n_unreached=0)
        return [], [], info
    M = M / peak
    cores, bases, info = solve_blocks(M, rows, rank, rank_tol, block, options, generator, force)

    def to(x: Tensor) -> Any:
        return back(x.to(dtype))

    info = replace(info, eigenvalues=to(info.eigenvalues * peak), fit=to(info.fit))
    return [to(core * peak) for core in cores], [to(A) for A in bases], info


def check_block(n_blocks: int | None, block: int | None, d: int, n: int) -> int | None:
    """The flattening's rank for so many subspaces of one dimension, None where it is to be found.

    Raises:
        ValueError: If `block` is not in [1, d - 1], or `n_blocks` is below 1 or without `block`.
    """
    if block is not None and not 1 <= block < max(d, 2):
        raise ValueError(f"block must be from 1 to d - 1 = {d - 1}, or None, got {block}.")
    if n_blocks is None:
        return None
    if n_blocks < 1:
        raise ValueError(f"n_blocks must be at least 1, or None, got {n_blocks}.")
    if block is None:
        raise ValueError(f"n_blocks = {n_blocks} needs block, the dimension of every subspace.")
    return n_blocks * math.comb(block + n - 1, n)


def solve_blocks(
    M: Tensor,
    rows: SymmetricSpace,
    rank: int | None,
    rank_tol: float,
    block: int | None,
    options: Options,
    generator: torch.Generator,
    force: bool,
) -> tuple[list[Tensor], list[Tensor], BlockTermInfo]:
    """Cores, bases and what to tell, of a flattening in coordinates."""
    spectrum = decompose(M, rows, rows, rank, rank_tol)
    check_found(spectrum.rank, rank, rows.d, 2 * rows.order, force)
    log = Log()
    bases = search_blocks(spectrum, block, options, generator, log)
    warn_unreached(log, options.component_tol, len(bases))
    return block_terms(M, spectrum, bases, log)
