"""Block terms: T = sum (A_i, ..., A_i) . W_i, whole subspaces in the place of vectors."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from spanwise.estimators._spm.ascent import Log, climb
from spanwise.estimators._spm.objective import Objective, factored, normalized, tangent_step
from spanwise.estimators._spm.search import EXACT, Remaining
from spanwise.estimators._spm.solve import Options
from spanwise.estimators._spm.spectrum import Spectrum
from spanwise.linalg._arrays import gaussian, peak_sign
from spanwise.linalg.symmetric import SymmetricSpace, unflatten_symmetric

STARTS = 32
"""Points of a round."""

TRIED = 12
"""Maxima of a round, best first, through which subspaces are sought."""

RIDGE = 1e-3
"""Added to Gauss-Newton's matrix, which is singular along a subspace that lies inside."""

SAME = 0.99
"""Cosine between a point and a subspace above which the point is another of its points."""

ROUNDS = 12
"""Of a subspace's vectors together, at most."""

KERNEL = 1e-3
"""Eigenvalues up to which a direction belongs to a subspace whose dimension is to be found."""


@dataclass(frozen=True, kw_only=True)
class BlockTermInfo:
    """How a block term decomposition went."""

    eigenvalues: Any
    """Of the flattening, largest magnitude first."""
    fit: Any
    """For each subspace the share of its symmetric tensors that lies in the flattening's range."""
    residual: float
    """||T - sum of terms|| / ||T||, Frobenius."""
    rounds: int
    """Batches of starts."""
    n_unreached: int
    """Subspaces that no start reached within the tolerance."""


def search_blocks(
    spectrum: Spectrum,
    block: int | None,
    options: Options,
    generator: torch.Generator,
    log: Log,
) -> list[Tensor]:
    """Orthonormal bases of the subspaces whose symmetric tensors span the range of V.

    Args:
        spectrum: Range and values of the flattening, of an even order.
        block: Dimension of every subspace; None finds each by the kernel at a point of it.
        options: Of the search.
        generator: Of the starts.
        log: Is written to.
    """
    left = Remaining(spectrum)
    whole, d = left.objective(), spectrum.rows.d
    found: list[Tensor] = []
    tries = 0
    best: tuple[float, Tensor] | None = None
    while left.count > 0:
        X = gaussian((d, STARTS), generator=generator, dtype=torch.float64, device=left.V.device)
        log.rounds, log.starts = log.rounds + 1, log.starts + STARTS
        X = climb(left.coarse(), normalized(X).float(), options.max_iter, log)
        X, defect = _settle(left.objective(), normalized(X.double()), log)
        blocks = _candidates(whole, X[:, defect.argsort()[:TRIED]], block)
        missing = blocks[0][0]
        chosen = [A for miss, A in blocks if miss < min(options.component_tol, 4 * missing + EXACT)]
        if not chosen:
            best = min(best or blocks[0], blocks[0], key=lambda pair: pair[0])
            tries += 1
            if tries < options.n_tries:
                continue
            log.failed.append(1 - best[0])
            chosen = [best[1]]
        taken = _taken(left, chosen)
        if not taken:
            # In noise every candidate may be one that is out already: then those of what is left.
            blocks = _candidates(left.objective(), X[:, defect.argsort()[:TRIED]], block)
            log.failed.append(1 - blocks[0][0])
            taken = _taken(left, [A for _, A in blocks[:1]])
        if not taken:
            break
        tries, best = 0, None
        found += taken
    return found


def _taken(left: Remaining, bases: list[Tensor]) -> list[Tensor]:
    """Those whose symmetric tensors were still there, and now are out."""
    induced = left.spectrum.rows.induced
    return [A for A in bases if left.count and left.take_out_block(induced(A))]


def _candidates(
    objective: Objective, X: Float[Tensor, "d b"], block: int | None
) -> list[tuple[float, Tensor]]:
    """Subspaces through the columns of X, and how much of each misses the range; best first.

    A maximum need not lie on a subspace that is inside: with a large rank there are others, and
    only the whole subspace tells.
    """
    found: list[tuple[float, Tensor]] = []
    for x in X.unbind(1):
        if any(float((A.mT @ x).norm()) > SAME for _, A in found):
            continue
        A = _subspace_at(objective, x, block)
        if all(float((A.mT @ B).square().sum()) < 0.9 * min(A.shape[1], B.shape[1])
               for _, B in found):  # fmt: skip
            found.append((objective.missing(objective.space.induced(A)), A))
    return sorted(found, key=lambda pair: pair[0])


def _settle(
    objective: Objective, X: Float[Tensor, "d b"], log: Log, steps: int = 30
) -> tuple[Float[Tensor, "d b"], Float[Tensor, " b"]]:
    """Maxima near the columns of X, by damped Gauss-Newton; a step that lowers f is not taken."""
    f, defect, g = objective.value(X)
    damping = torch.full_like(f, RIDGE)
    for _ in range(steps):
        matrix = objective.normal_matrix(X)
        matrix.diagonal(dim1=-2, dim2=-1).add_(damping.unsqueeze(-1))
        step = tangent_step(factored(matrix)[0], X, g - f * X)
        length = step.norm(dim=0)
        log.newton_steps += X.shape[1]
        moved = normalized(X + step * (0.5 / length).clamp(max=1))
        new_f, new_defect, new_g = objective.value(moved)
        worse = new_defect > defect + 1e-14
        damping = torch.where(worse, (10 * damping).clamp(max=1e3), (damping / 10).clamp(min=RIDGE))
        X, g = torch.where(worse, X, moved), torch.where(worse, g, new_g)
        f, defect = torch.where(worse, f, new_f), torch.where(worse, defect, new_defect)
        if float(length.max()) < 1e-10:
            break
    return X, defect


def _subspace_at(objective: Objective, x: Float[Tensor, " d"], block: int | None) -> Tensor:
    """The subspace through x whose symmetric tensors lie in the range: the Hessian's kernel.

    I / n + (n - 1) / n x x^T - (V x^(n-1)) (V x^(n-1))^T vanishes on it. In noise its vectors
    at one point know less than those at all vectors of the basis together: a few rounds of that.
    """
    n = objective.space.order
    values, vectors = torch.linalg.eigh(objective.normal_matrix(x.unsqueeze(-1), 0.0)[0] / n)
    if block is None:
        block = max(1, int((values < KERNEL).sum()))
    A = vectors[:, :block]
    for _ in range(ROUNDS):
        kernels = objective.normal_matrix(A, 0.0).sum(0)
        _, vectors = torch.linalg.eigh(kernels - (n - 1) * A @ A.mT)
        before, A = A, vectors[:, :block]
        if float((A - before @ (before.mT @ A)).norm()) < 1e-13:
            break
    return A


def block_terms(
    M: Float[Tensor, "C C"], spectrum: Spectrum, bases: list[Tensor], log: Log
) -> tuple[list[Tensor], list[Tensor], BlockTermInfo]:
    """Cores, bases and what to tell; largest core first.

    A core is the inverse of S^T V D^-1 V^T S, S the symmetric tensors over its subspace. A basis
    is turned to the principal axes of its core, largest first.

    Args:
        M: The flattening.
        spectrum: Of it.
        bases: As found.
        log: Of the search.
    """
    rows = spectrum.rows
    error = M.clone()
    terms: list[tuple[float, Tensor, Tensor, float]] = []
    for basis in bases:
        small = SymmetricSpace(basis.shape[1], rows.order, rows.dtype, rows.device)
        A = basis
        for _ in range(2):  # the core, then the core in its own axes
            S = rows.induced(A)
            inside = spectrum.V.mT @ S
            core = torch.linalg.pinv(inside.mT @ (inside / spectrum.values.unsqueeze(-1)))
            full = unflatten_symmetric((core + core.mT) / 2, small, small)
            axes = torch.linalg.eigh(full.flatten(1) @ full.flatten(1).mT)[1].flip(-1)
            turned = A
            A = A @ axes
            A = A * peak_sign(A)
        error -= S @ core @ S.mT
        fit = float(inside.square().sum() / S.shape[1])
        terms.append((float(full.norm()), full, turned, fit))
    terms.sort(key=lambda term: -term[0])
    scale = float(M.norm())
    info = BlockTermInfo(
        eigenvalues=spectrum.eigenvalues,
        fit=M.new_tensor([term[3] for term in terms]),
        residual=float(error.norm()) / scale if scale else 0.0,
        rounds=log.rounds,
        n_unreached=len(log.failed),
    )
    return [term[1] for term in terms], [term[2] for term in terms], info
