"""`GPCA`: clusters that are linear subspaces, by the fourth or sixth moment of the data."""

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from sklearn.base import ClusterMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from spanwise.estimators._arrays import make_generator
from spanwise.estimators._base import Estimator
from spanwise.estimators._moments import moment_flattening
from spanwise.estimators._spm.solve import Options
from spanwise.estimators._spm.spectrum import rank_bound, spaces
from spanwise.estimators._symmetric_btd import solve_blocks
from spanwise.linalg._arrays import gaussian, peak_sign

_SEARCH = Options(component_tol=1 - 1e-9, max_iter=40, n_tries=1)
"""Of every start the best subspaces are taken as they are: `n_init` starts compete by inertia."""


class GPCA(ClusterMixin, TransformerMixin, Estimator):
    """Clusters points that lie near a union of linear subspaces through the origin.

    The moment of order 2n of such points is a sum of block terms, one for each subspace, whatever
    their distributions inside; the subspace power method reads the subspaces off it, without a
    first guess of labels. Points then go to the nearest subspace, and a few rounds of k-subspaces
    from there fit each to its own points.

    Args:
        n_clusters: Number K of subspaces.
        subspace_dim: Dimension l of each, from 1 to d - 1.
        order: Of the moment, 4 or 6. K binom(l + n - 1, n) may be at most
            binom(d + n - 1, n) - d, n = order / 2.
        noise_variance: Variance of isotropic Gaussian noise that is taken out of the moment; None
            leaves it in. `"auto"` estimates it by the moment of order 4, where the subspaces leave
            that null vectors, and else leaves it in.
        n_init: Decompositions from other starts; the one with the smallest inertia is kept.
        n_random: k-subspaces starts from so many random subspaces as well, and the smallest
            inertia wins: where clusters are only roughly subspaces, the moment may mislead.
        max_iter: Rounds of k-subspaces at most; 0 keeps the moment's subspaces.
        random_state: None is seed 0; an integer, or a generator of torch or numpy.

    Attributes:
        labels_: `(n,)`, the subspace of each sample.
        subspaces_: `(K, d, l)`, orthonormal bases.
        inertia_: Sum of squared distances to the nearest subspaces.
        moment_inertia_: The same for the moment's own subspaces, before k-subspaces.
        from_moment_: Whether the subspaces come from the moment, not from a random start.
        noise_variance_: What was taken out of the moment.
        eigenvalues_: Of the flattened moment: K binom(l + n - 1, n) of them stand out.
        n_iter_: Rounds of k-subspaces.
        n_features_in_: d.

    Sources:
        Vidal, Ma and Sastry, "Generalized principal component analysis (GPCA)", 2005; Kileel and
        Pereira, "Subspace power method for symmetric tensor decomposition and generalized PCA",
        arXiv 1912.04007v3, 2021, section 5.
    """

    def __init__(
        self,
        n_clusters: int = 2,
        subspace_dim: int = 1,
        *,
        order: int = 4,
        noise_variance: float | str | None = "auto",
        n_init: int = 5,
        n_random: int = 20,
        max_iter: int = 50,
        random_state: Any = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.subspace_dim = subspace_dim
        self.order = order
        self.noise_variance = noise_variance
        self.n_init = n_init
        self.n_random = n_random
        self.max_iter = max_iter
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> "GPCA":
        """Find the subspaces of the samples in the rows of `X`; `y` is ignored.

        Raises:
            ValueError: If an option is out of range, or the moment cannot tell so many subspaces
                apart.
        """
        self._check()
        samples, back = self._samples(X, reset=True, min_samples=self.n_clusters)
        d, dtype = samples.shape[1], samples.dtype
        rank = self._rank(d)
        points = samples.double()
        size = float(points.square().mean().sqrt()) or 1.0
        rows, _ = spaces(d, self.order, points.device)
        generator = make_generator(self.random_state)
        M, variance = moment_flattening(
            points / size, rows, rows, noise_variance=self._noise(points / size, size), rank=rank
        )
        self._check_moment(M, rank)
        best: tuple[float, Tensor, Tensor] | None = None
        for _ in range(self.n_init):
            _, bases, info = solve_blocks(
                M, rows, rank, 1e-4, self.subspace_dim, _SEARCH, generator, force=False
            )
            subspaces = torch.stack(bases[: self.n_clusters])
            inertia = float(_distances(points, subspaces).amin(0).square().sum())
            if best is None or inertia < best[0]:
                best = inertia, subspaces, info.eigenvalues
        assert best is not None
        self.moment_inertia_, subspaces, eigenvalues = best
        subspaces, labels, self.n_iter_ = k_subspaces(points, subspaces, self.max_iter)
        self.inertia_ = float(_distances(points, subspaces).amin(0).square().sum())
        self.from_moment_ = True
        for _ in range(self.n_random if self.max_iter else 0):
            start = self._random_start(d, points, generator)
            other, others, turns = k_subspaces(points, start, self.max_iter)
            inertia = float(_distances(points, other).amin(0).square().sum())
            if inertia < self.inertia_ * (1 - 1e-9):
                subspaces, labels, self.n_iter_ = other, others, turns
                self.inertia_, self.from_moment_ = inertia, False
        subspaces = subspaces * peak_sign(subspaces)
        self.noise_variance_ = variance * size**2
        self.subspaces_ = back(subspaces.to(dtype))
        self.eigenvalues_ = back((eigenvalues * size**self.order).to(dtype))
        self.labels_ = back(labels)
        return self

    def predict(self, X: Any) -> Any:
        """The nearest subspace of each sample, `(n,)`."""
        distances, back = self._measured(X)
        return back(distances.argmin(0))

    def transform(self, X: Any) -> Any:
        """Distances of samples to the subspaces, `(n, K)`."""
        distances, back = self._measured(X)
        return back(distances.mT.contiguous())

    def score(self, X: Any, y: Any = None) -> float:
        """Minus the sum of squared distances to the nearest subspaces; `y` is ignored."""
        distances, _ = self._measured(X)
        return -float(distances.amin(0).square().sum())

    def _random_start(self, d: int, points: Tensor, generator: torch.Generator) -> Tensor:
        shape = self.n_clusters, d, self.subspace_dim
        drawn = gaussian(shape, generator=generator, dtype=points.dtype, device=points.device)
        return torch.linalg.qr(drawn)[0]

    def _measured(self, X: Any) -> tuple[Tensor, Any]:
        check_is_fitted(self)
        samples, back = self._samples(X, reset=False)
        held = torch.as_tensor(self.subspaces_).to(samples)
        return _distances(samples, held), back

    def _noise(self, points: Tensor, size: float) -> float | str | None:
        """What the moment of samples over `size` is asked to take out."""
        if self.noise_variance is None:
            return None
        if self.noise_variance != "auto":
            return float(self.noise_variance) / size**2
        if self.order == 4:
            return "auto"
        rows, _ = spaces(points.shape[1], 4, points.device)
        rank = self.n_clusters * math.comb(self.subspace_dim + 1, 2)
        if rank >= rows.dim:
            return None
        return moment_flattening(points, rows, rows, noise_variance="auto", rank=rank)[1]

    def _check(self) -> None:
        if self.order not in (4, 6):
            raise ValueError(f"order must be 4 or 6, got {self.order}.")
        for name, least in (
            ("n_clusters", 1),
            ("subspace_dim", 1),
            ("n_init", 1),
            ("max_iter", 0),
            ("n_random", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        noise = self.noise_variance
        if isinstance(noise, str) and noise != "auto":
            raise ValueError(f'noise_variance must be a number, None or "auto", got {noise!r}.')
        if noise is not None and noise != "auto" and not 0 <= float(noise) < math.inf:
            raise ValueError(f"noise_variance must not be negative, got {noise}.")

    def _rank(self, d: int) -> int:
        n, one = self.order // 2, self.subspace_dim
        if not one < max(d, 2):
            raise ValueError(
                f"subspace_dim = {one} must be below the number of features, {d}: a subspace that "
                "is everything holds all points."
            )
        rank, bound = self.n_clusters * math.comb(one + n - 1, n), rank_bound(d, self.order)
        if rank > bound:
            raise ValueError(
                f"{self.n_clusters} subspaces of dimension {one} in {d} features make a moment of "
                f"rank {rank}; of order {self.order} it tells at most rank {bound} apart. "
                "Lower n_clusters or subspace_dim, give more features, or take order=6."
            )
        return rank

    def _check_moment(self, M: Tensor, rank: int) -> None:
        size = torch.linalg.eigvalsh(M).abs()
        found = int((size > len(size) * torch.finfo(size.dtype).eps * size.max()).sum())
        if rank > found:
            raise ValueError(
                f"{self.n_clusters} subspaces of dimension {self.subspace_dim} make a moment of "
                f"rank {rank}, that of X has rank {found}: its points lie on fewer, or smaller. "
                "Lower n_clusters or subspace_dim, or give more samples."
            )


def k_subspaces(
    X: Float[Tensor, "n d"], subspaces: Float[Tensor, "k d l"], max_iter: int
) -> tuple[Float[Tensor, "k d l"], Int[Tensor, " n"], int]:
    """Points to the nearest subspace, subspaces to their points, until no point moves.

    Args:
        X: Samples in rows.
        subspaces: Orthonormal bases to start from.
        max_iter: Rounds at most.

    Returns:
        Bases, labels, and the rounds taken. A subspace of fewer points than its dimension stays.
    """
    k, _, dim = subspaces.shape
    labels = _distances(X, subspaces).argmin(0)
    for turn in range(max_iter):
        moved = subspaces.clone()
        for index in range(k):
            own = X[labels == index]
            if len(own) >= dim:
                moved[index] = torch.linalg.eigh(own.mT @ own)[1][:, -dim:].flip(-1)
        new = _distances(X, moved).argmin(0)
        subspaces = moved
        if bool((new == labels).all()):
            return subspaces, labels, turn + 1
        labels = new
    return subspaces, labels, max_iter


def _distances(X: Float[Tensor, "n d"], subspaces: Float[Tensor, "k d l"]) -> Float[Tensor, "k n"]:
    """Of every point to every subspace."""
    residual = X - (X @ subspaces) @ subspaces.mT
    return torch.linalg.vector_norm(residual, dim=-1)
