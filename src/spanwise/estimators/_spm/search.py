"""Finding components: power steps from many starts at once, Gauss-Newton, and taking out."""

import warnings
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from spanwise.estimators._spm.ascent import Log, ascend, climb, finish
from spanwise.estimators._spm.objective import Objective, normalized
from spanwise.estimators._spm.spectrum import Spectrum
from spanwise.linalg._arrays import gaussian

EXACT = 1e-12
"""1 - f below which x^n lies in the subspace but for rounding. More would let errors in: those
of a component are divided by the smallest eigenvalue when it is taken out."""

SAME = 1e-9
"""1 - |cos| of two points that are one component."""


def search(
    spectrum: Spectrum,
    *,
    generator: torch.Generator,
    max_iter: int,
    n_tries: int,
    tol: float,
    log: Log,
    found_so_far: Callable[[int], None] | None = None,
) -> Float[Tensor, "d r"]:
    """Unit vectors a_i with a_i^n in the range of V, one for each of its dimensions.

    Every round starts from many points, keeps the distinct ones that arrive, and takes all of
    them out of the subspace at once. A round with fewer starts than components left wastes few
    on components that another start also finds.

    Args:
        spectrum: Range and values of the flattening.
        generator: Of the starts.
        max_iter: Power steps of a start at most.
        n_tries: Rounds without a component until the best point is taken with a warning.
        tol: 1 - f up to which a point counts, where none is exact.
        log: Is written to.
        found_so_far: Is told how many components there are after every round that found some.
    """
    left = Remaining(spectrum)
    whole = left.coarse(), left.objective()
    found: list[Tensor] = []
    tries = 0
    best: tuple[float, Tensor] | None = None
    while left.count > 0:
        starts = _starts(left, generator)
        log.rounds, log.starts = log.rounds + 1, log.starts + starts.shape[1]
        # float32 finds the maxima and tells which are the same.
        coarse = left.coarse()
        near = climb(coarse, starts.float(), max_iter, log)
        X, defect, _ = ascend(coarse, near, log, until=0.1, wait=2)
        X = normalized(_distinct(X[:, defect.argsort()], 1e-4).double())
        # Without noise, maxima of what is left are some of the whole, where no error is behind.
        sharp, sharp_defect = finish(*whole, X, log)
        taken = left.take_out(_accepted(sharp, sharp_defect, EXACT, left.count), least=1e-7)
        if not taken.shape[1]:
            log.exact = False
            X, defect, settled = ascend(left.objective(), X, log, until=1e-8)
            chosen = _accepted(X[:, settled], defect[settled], tol, left.count)
            if not chosen.shape[1]:
                at = int(defect.argmin())
                if best is None or float(defect[at]) < best[0]:
                    best = float(defect[at]), X[:, at : at + 1]
                tries += 1
                if tries < n_tries:
                    continue
                log.failed.append(1 - best[0])
                chosen = best[1]
            taken = left.take_out(chosen)
        tries, best = 0, None
        found.append(taken)
        if found_so_far is not None:
            found_so_far(spectrum.rank - left.count)
    d = spectrum.rows.d
    return torch.cat(found, dim=1) if found else spectrum.V.new_zeros(d, 0)


class Remaining:
    """The part of the range that is left after the components found so far."""

    def __init__(self, spectrum: Spectrum) -> None:
        self.spectrum = spectrum
        self.V = spectrum.V
        self.rest = spectrum.rest
        rows = spectrum.rows
        self._single = rows.to(torch.float32)
        # Columns of V in coordinates of the original V: duals are taken with the original D.
        self.inside = torch.eye(spectrum.rank, dtype=self.V.dtype, device=self.V.device)

    @property
    def count(self) -> int:
        """Components left."""
        return self.V.shape[1]

    def objective(self) -> Objective:
        """The objective on what is left."""
        return Objective(self.spectrum.rows, self.V, self.rest)

    def coarse(self) -> Objective:
        """The same in float32, for power steps: they only have to come near."""
        rest = None if self.rest is None else self.rest.float()
        return Objective(self._single, self.V.float(), rest)

    def take_out(self, A: Float[Tensor, "d s"], least: float = 0.0) -> Float[Tensor, "d s"]:
        """Remove components, those that depend on the ones before excepted; returns the removed.

        Args:
            A: Unit columns.
            least: Share of a dual that must not be taken out already, or its column is left.

        Householder QR of their duals is a block of reflections at once: its last columns are what
        is left of the subspace, orthonormal to rounding after any number of rounds.
        """
        whole = self.spectrum.duals(A)
        duals = self.inside.mT @ whole
        size = torch.linalg.vector_norm(duals, dim=0)
        new = size > least * torch.linalg.vector_norm(whole, dim=0)
        A, duals = A[:, new], duals[:, new] / size[new]
        kept = _independent(duals)
        A, duals = A[:, kept], duals[:, kept]
        self._remove(duals)
        return A

    def take_out_block(self, S: Float[Tensor, "C L"]) -> bool:
        """Remove the tensors that the orthonormal S spans; False if they were removed before."""
        duals = (self.spectrum.V.mT @ S) / self.spectrum.values.unsqueeze(-1)
        whole = torch.linalg.matrix_norm(duals, 2)
        duals = self.inside.mT @ duals
        if float(torch.linalg.matrix_norm(duals, 2)) < 1e-7 * float(whole):
            return False
        self._remove(duals)
        return True

    def _remove(self, duals: Float[Tensor, "k s"]) -> None:
        """Go on with the complement of the duals, given in coordinates of what is left."""
        Q, _ = torch.linalg.qr(duals, mode="complete")
        s = min(duals.shape[1], self.count)
        if self.rest is not None and self.rest.shape[1] + s < self.count - s:
            self.rest = torch.cat([self.rest, self.V @ Q[:, :s]], dim=1)
        else:
            self.rest = None
        self.V = self.V @ Q[:, s:]
        self.inside = self.inside @ Q[:, s:]


def _starts(left: Remaining, generator: torch.Generator) -> Float[Tensor, "d b"]:
    """Random points, and guesses by algebra once no more components are left than dimensions."""
    V, space = left.V, left.spectrum.rows
    # Half as many as are left waste a fifth; below a hundred or so a round costs its operations.
    count = min(max(left.count // 2, min(left.count, 128), 8), 512)
    X = gaussian((space.d, count), generator=generator, dtype=V.dtype, device=V.device)
    if left.count > space.d:
        return normalized(X)
    guesses = _by_pencil(left, generator)
    return torch.cat([guesses, normalized(X[:, : max(4, left.count // 4)])], dim=1)


def _by_pencil(left: Remaining, generator: torch.Generator) -> Float[Tensor, "d k"]:
    """Components as the eigenvectors of a pencil: exact for independent ones without noise.

    A random element of the subspace, contracted to a matrix, is A diag A^T; of two of these
    the ratio of diagonals tells the columns of A apart.
    """
    V, space = left.V, left.spectrum.rows
    k, d = left.count, space.d
    mix = gaussian((k, 2), generator=generator, dtype=V.dtype, device=V.device)
    y = gaussian((d, 1), generator=generator, dtype=V.dtype, device=V.device)
    first, second = space.contract_to_matrices(
        (V @ mix) / space.scale.unsqueeze(-1), y.expand(-1, 2)
    )
    values, vectors = torch.linalg.eigh(first)
    size, top = values.abs().sort(descending=True)
    # Components that span fewer dimensions than they are leave zeros, and nothing is over those.
    top = top[:k][size[:k] > d * torch.finfo(V.dtype).eps * size[0]]
    basis, scaled = vectors[:, top], values[top]
    small = (basis.mT @ second @ basis) / scaled
    try:
        _, found = torch.linalg.eig(small)
    except torch.linalg.LinAlgError:
        return V.new_zeros(d, 0)
    # `small` is B diag B^-1 with columns of B the coordinates of the components.
    guesses = basis @ found.real
    return normalized(guesses[:, torch.linalg.vector_norm(guesses, dim=0) > 1e-8])


def _accepted(
    X: Float[Tensor, "d b"], defect: Float[Tensor, " b"], tol: float, limit: int
) -> Float[Tensor, "d s"]:
    """Distinct points, best first: the exact ones, or else those about as good as the best."""
    good = defect < EXACT
    if len(defect) and not bool(good.any()):
        good = (defect < tol) & (defect < 30 * defect.min())
    order = defect.argsort()
    return _distinct(X[:, order[good[order]]], SAME)[:, :limit]


def _distinct(X: Float[Tensor, "d b"], same: float) -> Float[Tensor, "d s"]:
    """Unit columns without those that equal, up to sign, one before them."""
    repeated = ((X.mT @ X).abs() > 1 - same).triu(1).any(dim=0)
    return X[:, ~repeated]


def _independent(duals: Float[Tensor, "k s"]) -> Tensor:
    """Which unit columns are not, to half the digits, combinations of those before them."""
    _, R = torch.linalg.qr(duals)
    return R.diagonal().abs() > 1e-7


def warn_unreached(log: Log, tol: float, rank: int) -> None:
    """Say that components are no components."""
    if not log.failed:
        return
    worst = min(log.failed)
    kind = convergence_warning()
    warnings.warn(
        f"{len(log.failed)} of {rank} components have f = {worst:.4g} at worst, below 1 - "
        f"component_tol = {1 - tol:.4g}: the flattening's range holds no power of a vector there. "
        "The rank may be too high, the tensor too noisy, or n_tries too low; look at eigenvalues.",
        kind,
        stacklevel=4,
    )


def convergence_warning() -> type[Warning]:
    """scikit-learn's, where it is installed."""
    try:
        from sklearn.exceptions import ConvergenceWarning
    except ModuleNotFoundError:
        return UserWarning
    return ConvergenceWarning
