"""Spectra of flattened moments without the flattening: few samples, or few components of many."""

import torch
from jaxtyping import Float
from torch import Tensor

from spanwise.estimators._spm.spectrum import Spectrum, choose_rank, decompose
from spanwise.linalg._arrays import gaussian
from spanwise.linalg.symmetric import SymmetricSpace

_ENTRIES = 2**21
"""Of the powers of one block of samples."""

_EXTRA = 8
"""Columns beyond the rank that the iteration carries."""

_DEPTH = 5
"""Blocks until the iteration starts again from the best."""

_PASSES = 60
"""Products with the moment at most."""

_PROBES = 32
"""Random vectors that estimate a residual, to an eighth or so of itself."""


class MomentOperator:
    """The flattened moment, or cumulant, of even order as a linear map on coordinates.

    Args:
        X: Samples in rows, float64; centred for a cumulant.
        space: Symmetric tensors of half the order.
        cumulant: Whether to take out what a Gaussian of the same covariance has; order 4.
        noise_variance: Of isotropic Gaussian noise to take out; order 4.
    """

    def __init__(
        self,
        X: Float[Tensor, "n d"],
        space: SymmetricSpace,
        *,
        cumulant: bool = False,
        noise_variance: float = 0.0,
    ) -> None:
        self.X = X
        self.space = space
        d = X.shape[1]
        second = X.mT @ X / len(X)
        identity = torch.eye(d, dtype=X.dtype, device=X.device)
        self.terms: list[tuple[float, Tensor, Tensor]] = []
        if cumulant:
            self.terms.append((-3.0, second, second))
        if noise_variance:
            self.terms.append((-6 * noise_variance, second, identity))
            self.terms.append((3 * noise_variance**2, identity, identity))

    def __matmul__(self, B: Float[Tensor, "C s"]) -> Float[Tensor, "C s"]:
        found = torch.zeros_like(B)
        step = max(1, _ENTRIES // self.space.dim)
        for block in self.X.split(step):
            powers = self.space.power(block.mT)
            found.addmm_(powers, powers.mT @ B, alpha=1 / len(self.X))
        for factor, P, Q in self.terms:
            found.add_(symmetric_product_times(P, Q, B, self.space), alpha=factor)
        return found


def symmetric_product_times(
    P: Float[Tensor, "d d"], Q: Float[Tensor, "d d"], B: Float[Tensor, "C s"], space: SymmetricSpace
) -> Float[Tensor, "C s"]:
    """`symmetric_product(P, Q, space) @ B` for symmetric P and Q, by products of d x d matrices.

    A column of B is a symmetric matrix B; its image is
    (P <Q, B> + Q <P, B> + 2 P B Q + 2 Q B P) / 6.
    """
    d = space.d
    matrices = (B / space.scale.unsqueeze(-1))[space.grown.reshape(-1)].view(d, d, -1)
    matrices = matrices.permute(2, 0, 1)
    both = P @ matrices @ Q
    found = 2 * (both + both.mT)
    for one, other in ((P, Q), (Q, P)):
        found += one * (other * matrices).sum((-2, -1), keepdim=True)
    i, j = space.index.unbind(-1)
    return found[:, i, j].mT * (space.scale.unsqueeze(-1) / 6)


def few_samples(
    X: Float[Tensor, "n d"], space: SymmetricSpace, rank: int | None, rank_tol: float
) -> Spectrum:
    """The spectrum of the plain moment of fewer samples than coordinates, by a thin QR.

    Args:
        X: Samples in rows.
        space: Symmetric tensors of half the order.
        rank: How many values count, or None to see.
        rank_tol: For `choose_rank`.
    """
    Q, R = torch.linalg.qr(space.power(X.mT))
    values, vectors = torch.linalg.eigh(R @ R.mT / len(X))
    values, vectors = values.flip(0), vectors.flip(1)
    r = choose_rank(values, rank, rank_tol)
    V = Q @ vectors[:, :r]
    return Spectrum(space, space, V, values[:r], V, None, values)


def few_components(moment: MomentOperator, rank: int) -> tuple[Spectrum, bool]:
    """The `rank` eigenvalues of largest magnitude, and whether they are found to rounding.

    A block Krylov iteration with full orthogonalisation, started again from its best vectors.

    Args:
        moment: The operator.
        rank: How many, at most the dimension.
    """
    C, X = moment.space.dim, moment.X
    width = rank + _EXTRA
    if 3 * width > C:
        M = moment @ torch.eye(C, dtype=X.dtype, device=X.device)
        return decompose(M, moment.space, moment.space, rank, 1.0), True
    start = gaussian((C, width), generator=None, dtype=X.dtype, device=X.device)
    block = torch.linalg.qr(start)[0]
    Q, image = block[:, :0], block[:, :0]
    for _ in range(_PASSES):
        Q, image = torch.cat([Q, block], dim=1), torch.cat([image, moment @ block], dim=1)
        inside = Q.mT @ image
        values, vectors = torch.linalg.eigh((inside + inside.mT) / 2)
        order = values.abs().argsort(descending=True)[:width]
        values, vectors = values[order], vectors[:, order]
        best, moved = Q @ vectors, image @ vectors
        residual = moved - best * values
        error = float(torch.linalg.vector_norm(residual[:, :rank], dim=0).max())
        settled = error <= 1e-13 * float(values.abs().max()) * C**0.5
        if settled:
            break
        if Q.shape[1] + width > min(_DEPTH * width, C):
            Q, image = best, moved
        block = _outside(residual, Q)
    else:
        settled = False
    V = best[:, :rank].contiguous()
    space = moment.space
    return Spectrum(space, space, V, values[:rank], V, None, values), settled


def residual_of_samples(
    X: Float[Tensor, "n d"],
    w: Float[Tensor, " r"],
    left: Float[Tensor, "C r"],
    space: SymmetricSpace,
) -> float:
    """||moment - sum w a^m|| / ||moment|| of few samples, exactly: both are sums of powers."""
    powers = space.power(X.mT)
    _, R = torch.linalg.qr(torch.cat([powers, left], dim=1))
    weights = torch.cat([w.new_full((len(X),), 1 / len(X)), -w])
    own = R[:, : len(X)]
    return float(((R * weights) @ R.mT).norm() / (own @ own.mT / len(X)).norm())


def estimated_residual(
    moment: MomentOperator,
    w: Float[Tensor, " r"],
    left: Float[Tensor, "C r"],
) -> float:
    """The same from products with random vectors, whose mean square it is."""
    shape = moment.space.dim, _PROBES
    probes = gaussian(shape, generator=None, dtype=w.dtype, device=w.device)
    image = moment @ probes
    error = torch.addmm(image, left * w, left.mT @ probes, alpha=-1)
    return float(error.norm() / image.norm())


def _outside(block: Float[Tensor, "C s"], Q: Float[Tensor, "C k"]) -> Float[Tensor, "C s"]:
    """An orthonormal basis of the block's part outside of the orthonormal Q; twice is enough."""
    for _ in range(3):
        block = torch.linalg.qr(block - Q @ (Q.mT @ block))[0]
    return block
