"""Finding components: power steps from many starts at once, Gauss-Newton, and taking out."""

import warnings
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from spanwise.estimators._spm.objective import (
    Objective,
    normalized,
    power_step,
    tangent_step,
)
from spanwise.estimators._spm.spectrum import Spectrum
from spanwise.linalg._arrays import gaussian
from spanwise.linalg.symmetric import SymmetricSpace

NEAR = 0.9
"""f from which Gauss-Newton takes over: it then needs a handful of steps, power steps dozens."""

EXACT = 1e-12
"""1 - f below which x^n lies in the subspace but for rounding. More would let errors in: those
of a component are divided by the smallest eigenvalue when it is taken out."""

SAME = 1e-9
"""1 - |cos| of two points that are one component."""


@dataclass
class Log:
    """What a search did."""

    rounds: int = 0
    """Batches of starts."""
    starts: int = 0
    """Points that were started."""
    power_steps: int = 0
    """Power steps, over all points."""
    newton_steps: int = 0
    """Gauss-Newton and Newton steps, over all points."""
    failed: list[float] = field(default_factory=list)
    """f of the components that no start reached well enough."""


def search(
    spectrum: Spectrum,
    *,
    generator: torch.Generator,
    max_iter: int,
    n_tries: int,
    tol: float,
    log: Log,
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
    """
    left = Remaining(spectrum)
    found: list[Tensor] = []
    tries = 0
    best: tuple[float, Tensor] | None = None
    while left.count > 0:
        objective = left.objective()
        starts = _starts(left, generator)
        log.rounds, log.starts = log.rounds + 1, log.starts + starts.shape[1]
        # float32 finds the maxima and tells which are the same; float64 needs a step or two more.
        coarse = left.coarse()
        near = climb(coarse, starts.float(), max_iter, log)
        X, defect, _ = ascend(coarse, near, log, until=1e-3)
        X = _distinct(X[:, defect.argsort()], 1e-5).double()
        X, defect, settled = ascend(objective, normalized(X), log, until=1e-8)
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
        tries, best = 0, None
        found.append(left.take_out(chosen))
    d = spectrum.rows.d
    return torch.cat(found, dim=1) if found else spectrum.V.new_zeros(d, 0)


class Remaining:
    """The part of the range that is left after the components found so far."""

    def __init__(self, spectrum: Spectrum) -> None:
        self.spectrum = spectrum
        self.V = spectrum.V
        self.rest = spectrum.rest
        rows = spectrum.rows
        self._single = SymmetricSpace(rows.d, rows.order, torch.float32, rows.device)
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

    def take_out(self, A: Float[Tensor, "d s"]) -> Float[Tensor, "d s"]:
        """Remove components, those that depend on the ones before excepted; returns the removed.

        Householder QR of their duals is a block of reflections at once: its last columns are what
        is left of the subspace, orthonormal to rounding after any number of rounds.
        """
        duals = self.inside.mT @ self.spectrum.duals(A)
        duals = duals / duals.norm(dim=0)
        kept = _independent(duals)
        A, duals = A[:, kept], duals[:, kept]
        Q, _ = torch.linalg.qr(duals, mode="complete")
        s = A.shape[1]
        if self.rest is not None:
            rest = torch.cat([self.rest, self.V @ Q[:, :s]], dim=1)
            self.rest = rest if rest.shape[1] < self.count - s else None
        self.V = self.V @ Q[:, s:]
        self.inside = self.inside @ Q[:, s:]
        return A


def climb(
    objective: Objective, X: Float[Tensor, "d b"], max_iter: int, log: Log
) -> Float[Tensor, "d b"]:
    """Points from which Gauss-Newton goes on, by power steps from the columns of X."""
    near: list[Tensor] = []
    f, _, g = objective.value(X)
    for step in range(max_iter):
        X = power_step(X, f, g, objective.space.order)
        log.power_steps += X.shape[1]
        f, _, g = objective.value(X)
        # Points are sorted out now and then only: a smaller product is no faster for a few less.
        if step % 4 == 3:
            arrived = f > NEAR
            if bool(arrived.all()):
                break
            if int(arrived.sum()) > X.shape[1] // 4:
                near.append(X[:, arrived])
                X, f, g = X[:, ~arrived], f[~arrived], g[:, ~arrived]
    return torch.cat([*near, X], dim=1)


def ascend(
    objective: Objective, X: Float[Tensor, "d b"], log: Log, *, until: float, steps: int = 30
) -> tuple[Float[Tensor, "d b"], Float[Tensor, " b"], Tensor]:
    """Gauss-Newton from points with f near 1, which is quadratic where f reaches 1.

    A step is cut to 1/2; where it would lower f, a power step, which never does, takes its place.

    Args:
        objective: Its dtype is the one to work in.
        X: Unit columns.
        log: Is written to.
        until: Length of a point's last step.
        steps: At most; the last few points are given up after a third of them.

    Returns:
        Points, in another order, 1 - f, and which took their last step.
    """
    n, total = objective.space.order, X.shape[1]
    rounding = 50 * torch.finfo(X.dtype).eps
    done_X: list[Tensor] = []
    done_defect: list[Tensor] = []
    f, defect, g = objective.value(X)
    for turn in range(steps):
        step, _ = tangent_step(objective.normal_matrix(X), X, g - f * X)
        length = step.norm(dim=0)
        log.newton_steps += X.shape[1]
        safe = power_step(X, f, g, n)
        X = normalized(X + step * (0.5 / length).clamp(max=1))
        new_f, new_defect, new_g = objective.value(X)
        worse = new_defect > defect + rounding
        if bool(worse.any()):
            X[:, worse] = safe[:, worse]
            again = objective.value(X[:, worse])
            new_f[worse], new_defect[worse], new_g[:, worse] = again
        f, defect, g = new_f, new_defect, new_g
        still = (length > until) | worse
        if not bool(still.all()):
            done_X.append(X[:, ~still])
            done_defect.append(defect[~still])
            X, f, defect, g = X[:, still], f[still], defect[still], g[:, still]
        if not X.shape[1] or (3 * turn > steps and 8 * X.shape[1] < total):
            break
    settled = torch.arange(total, device=X.device) < total - X.shape[1]
    return torch.cat([*done_X, X], dim=1), torch.cat([*done_defect, defect]), settled


def polish(
    objective: Objective, X: Float[Tensor, "d b"], log: Log, steps: int = 4
) -> Float[Tensor, "d b"]:
    """Newton steps on the original subspace: what earlier components left behind is gone.

    With noise Gauss-Newton converges slowly, Newton does not. Points that would leave for another
    maximum, or where the Hessian is not definite, stay as they are.
    """
    n = objective.space.order
    start = X
    f, defect, g = objective.value(X)
    for _ in range(steps):
        # Along x the first is 1 + along, the second 1: the sum stays definite there.
        matrix = objective.normal_matrix(X, n) - (n - 1) * objective.second(X)
        matrix.diagonal(dim1=-2, dim2=-1).sub_(defect.unsqueeze(-1))
        step, failed = tangent_step(matrix, X, g - f * X)
        length = step.norm(dim=0)
        log.newton_steps += X.shape[1]
        moved = normalized(X + step)
        new_f, new_defect, new_g = objective.value(moved)
        bad = failed | (length > 0.1) | (new_defect > defect + 1e-14)
        bad |= (moved * start).sum(0) < 0.99
        X = torch.where(bad, X, moved)
        f, defect = torch.where(bad, f, new_f), torch.where(bad, defect, new_defect)
        g = torch.where(bad, g, new_g)
        if float(torch.where(bad, 0, length).max()) < 1e-9:
            break
    return X


def _starts(left: Remaining, generator: torch.Generator) -> Float[Tensor, "d b"]:
    """Random points, and guesses by algebra once no more components are left than dimensions."""
    V, space = left.V, left.spectrum.rows
    # Half as many as are left waste a fifth; below a hundred or so a round costs its operations.
    count = min(max(left.count // 2, min(left.count, 64), 8), 512)
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
    top = values.abs().argsort(descending=True)[:k]
    basis, scaled = vectors[:, top], values[top]
    small = (basis.mT @ second @ basis) / scaled
    try:
        _, found = torch.linalg.eig(small)
    except torch.linalg.LinAlgError:
        return V.new_zeros(d, 0)
    # `small` is B diag B^-1 with columns of B the coordinates of the components.
    guesses = basis @ found.real
    return normalized(guesses[:, guesses.norm(dim=0) > 1e-8])


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
    kind = _convergence_warning()
    warnings.warn(
        f"{len(log.failed)} of {rank} components have f = {worst:.4g} at worst, below 1 - "
        f"component_tol = {1 - tol:.4g}: the flattening's range holds no power of a vector there. "
        "The rank may be too high, the tensor too noisy, or n_tries too low; look at eigenvalues.",
        kind,
        stacklevel=4,
    )


def _convergence_warning() -> type[Warning]:
    """scikit-learn's, where it is installed."""
    try:
        from sklearn.exceptions import ConvergenceWarning
    except ModuleNotFoundError:
        return UserWarning
    return ConvergenceWarning
