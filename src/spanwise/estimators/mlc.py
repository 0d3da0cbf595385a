"""MLC: labels, and features in which each cluster is a subspace of its own."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.base import ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from spanwise.estimators._arrays import Back, column_scales, make_generator
from spanwise.estimators._base import Estimator
from spanwise.estimators._mlc.cluster_rate import cluster_rate
from spanwise.estimators._mlc.loss import MLCLoss
from spanwise.estimators._mlc.metrics import cluster_bases
from spanwise.estimators._mlc.network import Network, build
from spanwise.estimators._mlc.parameters import Select, check_counts, check_parameters
from spanwise.estimators._mlc.rates import coding_bits, coding_rate
from spanwise.estimators._mlc.sinkhorn import Affinity, SinkhornProjection, affinity
from spanwise.estimators._mlc.spectral import embedding, kmeans
from spanwise.estimators._mlc.training import Training, batches
from spanwise.estimators._mlc.views import Augment, noise

CHUNK = 4096
"""Samples that the network sees at once outside of training."""


class MLC(ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin, Estimator):
    """Manifold linearizing and clustering: features and clusters learned together, without labels.

    A network maps samples to unit vectors Z, and through a second head to codes C. The membership
    of sample j in the cluster of sample i is Gamma_ij, the doubly stochastic matrix nearest to
    |C C'|. What is maximised is the rate reduction

        R(Z) - gamma R_c(Z, Gamma):

    all samples together take much room, each cluster little. A first stage spreads the samples
    (views of one stay together, where `augment` makes any); then the second head becomes a copy
    of the first, and both train. Labels are spectral clusters of Gamma; new samples belong to the
    nearest cluster's subspace.

    Args:
        n_clusters: At least 2; or `"auto"`: of `candidates`, the number of fewest coding bits.
        n_features: d, the length of Z. None: a quarter of a batch, at most 64, and no more than X
            has where heads act on it.
        hidden: Widths of the trunk's layers, where there is no encoder. `()`: heads on the samples
            themselves, which begin as their principal axes. None: `(256, 256)` where `augment`
            makes views, else `()`.
        encoder: None: a trunk of linear layers. A module from rows of X to `(n, width)`: copied,
            and trained but for parameters that need no gradient.
        augment: None: samples as they are, such as embeddings of a frozen model. A number: Gaussian
            noise of so many of each feature's standard deviations. A function of samples and a
            `torch.Generator` (on the CPU) that returns a view of the same shape.
        scaling: `"standard"`: columns of X to mean 0 and deviation 1; None: as they are.
        views: Views of a sample in a step of the second stage, at least 1.
        eps: Precision of the rates, above 0; not its square, which released code calls eps.
        eta: Temperature of the membership, above 0.
        gamma: Weight of R_c, at least 0.
        penalty: Weight of the membership's size, at least 0.
        affinity: `"abs"`: of |C C'|, as released; `"linear"`: of C C', as in the paper.
        ssl_epochs: Of the first stage, at least 0. None: 40 where `augment` makes views, else 0.
        ssl_lr: Its rate.
        ssl_eps: Its precision.
        ssl_weight: Of the agreement of two views.
        epochs: Of the second stage at most, at least 0.
        lr: Its rate. Too high a rate destroys clusters within some epochs.
        optimizer: `"adam"` (with decoupled decay) or `"sgd"` (momentum 0.9, as released).
        weight_decay: Of trunk and feature head.
        cluster_weight_decay: Of the cluster head.
        batch_size: Samples in a step, at least 2; the cost of one grows with its square.
        columns: Only so many of the membership's columns in a step, drawn anew; None: all.
        select: What chooses the epoch, without labels, among all from the copy of the head on:
            `"coding_bits"`: the code of features and labels is shortest; `"rate_reduction"`:
            R - gamma R_c is largest; None: the last. Both on 1024 samples or a batch, if more.
        patience: Epochs that are not better, after which training ends.
        tol: What counts as better, as a share.
        candidates: Numbers of clusters for `"auto"`; None: 2 to 20.
        max_samples: Samples of one membership matrix: of more, so many random ones make the
            clusters, and all others join by their subspaces.
        n_init: Starts of k-means.
        subspace_energy: Share of a cluster's sum of squares that its subspace holds, in `(0, 1]`.
        random_state: Seed or generator; None is seed 0.
        verbose: Whether to tell the progress on stderr.

    Attributes:
        labels_: Cluster of each training sample, from 0.
        n_clusters_: How many there are.
        bases_: An orthonormal basis `(d, r)` of each cluster's subspace.
        candidates_: Numbers of clusters that were tried.
        coding_bits_: Nats of the code of features and labels for each.
        coding_rates_: `stage`, `R`, `R_c` and `delta` of every step, as arrays.
        selection_: What `select` measured after each epoch, the higher the better.
        best_epoch_: The epoch that was taken; 0 is the state right after the first stage.
        n_iter_: Epochs of the second stage.
        network_state_: The network's tensors.
        hidden_: Widths of the trunk; None for an encoder, which has to be given to `load` again.
        n_features_in_: Features of X; with `feature_names_in_` where X has them.

    Raises:
        ValueError: From `fit`, if a parameter or X is out of range.
        TypeError: If `encoder` is no module, `augment` no function, or `n_clusters` not whole.

    Sources:
        Ding, Tong, Chan, Dai, Ma and Haeffele, "Unsupervised manifold linearizing and clustering",
        2023, algorithm 1; Chu et al., "Image clustering via the principle of rate reduction in the
        age of pretrained models", 2024 (network, number of clusters).
    """

    _left_out = ("encoder", "augment")

    labels_: Any
    bases_: Any
    candidates_: Any
    coding_bits_: Any
    coding_rates_: dict[str, Any]
    selection_: Any
    network_state_: dict[str, Tensor]
    n_clusters_: int
    hidden_: list[int] | None
    best_epoch_: int
    n_iter_: int
    n_features_in_: int
    feature_names_in_: Any

    def __init__(
        self,
        n_clusters: int | Literal["auto"] = 10,
        *,
        n_features: int | None = None,
        hidden: Sequence[int] | None = None,
        encoder: nn.Module | None = None,
        augment: Augment | float | None = None,
        scaling: Literal["standard"] | None = None,
        views: int = 2,
        eps: float = 0.1**0.5,
        eta: float = 0.175,
        gamma: float = 1.0,
        penalty: float = 0.0,
        affinity: Affinity = "abs",
        ssl_epochs: int | None = None,
        ssl_lr: float = 1e-3,
        ssl_eps: float = 0.2**0.5,
        ssl_weight: float = 20.0,
        epochs: int = 20,
        lr: float = 1e-3,
        optimizer: Literal["adam", "sgd"] = "adam",
        weight_decay: float = 1e-4,
        cluster_weight_decay: float = 5e-3,
        batch_size: int = 512,
        columns: int | None = None,
        select: Select | None = "rate_reduction",
        patience: int = 5,
        tol: float = 1e-4,
        candidates: Sequence[int] | None = None,
        max_samples: int = 3000,
        n_init: int = 10,
        subspace_energy: float = 0.95,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.n_clusters = n_clusters
        self.n_features = n_features
        self.hidden = hidden
        self.encoder = encoder
        self.augment = augment
        self.scaling = scaling
        self.views = views
        self.eps = eps
        self.eta = eta
        self.gamma = gamma
        self.penalty = penalty
        self.affinity = affinity
        self.ssl_epochs = ssl_epochs
        self.ssl_lr = ssl_lr
        self.ssl_eps = ssl_eps
        self.ssl_weight = ssl_weight
        self.epochs = epochs
        self.lr = lr
        self.optimizer = optimizer
        self.weight_decay = weight_decay
        self.cluster_weight_decay = cluster_weight_decay
        self.batch_size = batch_size
        self.columns = columns
        self.select = select
        self.patience = patience
        self.tol = tol
        self.candidates = candidates
        self.max_samples = max_samples
        self.n_init = n_init
        self.subspace_energy = subspace_energy
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> "MLC":
        """Learn features and clusters.

        Args:
            X: Samples, `(n, p)`; pictures as rows that the encoder unflattens.
            y: Ignored.
        """
        check_parameters(self)
        x, back = self._samples(X, reset=True, min_samples=2)
        together = min(len(x), self.max_samples)
        counts = self._counts(together)
        check_counts(counts, together)
        for name in ("mean_", "scale_"):  # of an earlier fit
            vars(self).pop(name, None)
        if self.scaling == "standard":
            self.mean_, self.scale_ = back(x.mean(0)), back(column_scales(x))
        x = self._scaled(x)
        generator = make_generator(self.random_state)
        batch = min(self.batch_size, len(x))
        widest = x.shape[1] if self.encoder is None and not self._hidden() else 64
        d = self.n_features or min(64, widest, max(2, batch // 4))
        least = len(x) // batches(len(x), self.batch_size)
        if d >= least:
            warnings.warn(
                f"n_features = {d} is not below the {least} samples of a batch: features of rank "
                "d cannot be filled. Lower n_features or raise batch_size.",
                stacklevel=2,
            )
        network = build(self.encoder, x, self._hidden(), d, generator)
        training = Training(
            network=network,
            x=x,
            generator=generator,
            augment=self._augment(),
            views=self.views,
            batch_size=self.batch_size,
            loss=MLCLoss(self.eps, gamma=self.gamma, penalty=self.penalty, columns=self.columns),
            projection=SinkhornProjection(self.eta),
            affinity=self.affinity,
            optimizer=self.optimizer,
            weight_decay=self.weight_decay,
            cluster_weight_decay=self.cluster_weight_decay,
            verbose=self.verbose,
        )
        drawn = torch.randperm(len(x), generator=generator)[:together]
        rows = drawn.sort().values.to(x.device)
        # Of the draw, not of the sorted rows: samples often come class by class.
        judged = drawn[: max(batch, 1024, *counts)].sort().values.to(x.device)
        seed = int(torch.randint(2**31 - 1, (), generator=generator))
        devices = [x.device] if x.is_cuda else []
        # An encoder's dropout draws from the global generators: they are lent a seed.
        with torch.random.fork_rng(devices), torch.enable_grad():
            torch.default_generator.manual_seed(seed)  # torch's own would reach every device
            if x.is_cuda:
                with torch.cuda.device(x.device):
                    torch.cuda.manual_seed(seed)
            training.first(self._ssl_epochs(), self.ssl_lr, self.ssl_eps, self.ssl_weight)
            judge = self._judge(network, x[judged], seed)
            chosen = training.second(self.epochs, self.lr, judge, self.patience, self.tol)
        self._keep(network, training, back)
        self.n_iter_, self.best_epoch_ = max(1, chosen.epochs), chosen.best
        self.selection_ = back(x.new_tensor(chosen.values))
        self._cluster(network, x, rows, seed, back)
        self._warn(chosen.values)
        return self

    @torch.no_grad()
    def transform(self, X: Any) -> Any:
        """Features Z, unit rows, `(n, d)`."""
        x, back, network = self._open(X)
        return back(_passed(network, x)[0].to(x.dtype))

    @torch.no_grad()
    def predict(self, X: Any) -> Any:
        """The cluster whose subspace holds most of each sample's features, `(n,)`."""
        x, back, network = self._open(X)
        return back(_nearest(_passed(network, x)[0], self._bases(x)))

    @torch.no_grad()
    def membership(self, X: Any) -> Any:
        """The doubly stochastic membership among these samples, `(n, n)`."""
        x, back, network = self._open(X)
        if len(x) < 2:
            raise ValueError("membership needs at least 2 samples, got 1.")
        return back(self._membership(_passed(network, x)[1]).to(x.dtype))

    @property
    def _n_features_out(self) -> int:
        return self.network_state_["feature.weight"].shape[0]

    def _membership(self, C: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
        return SinkhornProjection(self.eta)(affinity(C, self.affinity))

    def _scaled(self, x: Float[Tensor, "n p"]) -> Float[Tensor, "n p"]:
        if self.scaling is None:
            return x
        return (x - torch.as_tensor(self.mean_).to(x)) / torch.as_tensor(self.scale_).to(x)

    def _hidden(self) -> Sequence[int]:
        if self.hidden is None:
            return () if self.augment is None else (256, 256)
        return self.hidden

    def _augment(self) -> Augment | None:
        given = self.augment
        return given if given is None or callable(given) else noise(given)

    def _ssl_epochs(self) -> int:
        if self.ssl_epochs is None:
            return 0 if self.augment is None else 40
        return self.ssl_epochs

    def _judge(
        self, network: Network, sample: Float[Tensor, "m p"], seed: int
    ) -> Callable[[], float] | None:
        """What `select` measures, on some samples."""
        if self.select is None:
            return None

        def reduction() -> float:
            Z, C = _passed(network, sample)
            part = cluster_rate(Z, self._membership(C), self.eps)
            return float(coding_rate(Z, self.eps) - self.gamma * part)

        def bits() -> float:
            Z, C = _passed(network, sample)
            _, found = self._labels(Z, self._membership(C), seed)
            return -min(found) / len(sample)

        def judge() -> float:
            network.eval()
            with torch.no_grad():
                return bits() if self.select == "coding_bits" else reduction()

        return judge

    def _counts(self, n: int) -> list[int]:
        """The numbers of clusters to try."""
        if not isinstance(self.n_clusters, str):
            return [self.n_clusters]
        counts = range(2, 21) if self.candidates is None else self.candidates
        return [count for count in counts if count <= n]

    def _labels(
        self, Z: Float[Tensor, "n d"], membership: Float[Tensor, "n n"], seed: int
    ) -> tuple[list[Int[Tensor, " n"]], list[float]]:
        """Labels for each number of clusters, and the length of their codes."""
        counts = self._counts(len(Z))
        vectors = embedding(membership, max(counts))
        labels = [kmeans(vectors, count, self.n_init, seed) for count in counts]
        return labels, [coding_bits(Z, found, self.eps) for found in labels]

    @torch.no_grad()
    def _cluster(
        self,
        network: Network,
        x: Float[Tensor, "n p"],
        rows: Int[Tensor, " m"],
        seed: int,
        back: Back,
    ) -> None:
        """Labels, number of clusters and subspaces of the network as it is."""
        Z, C = _passed(network, x)
        counts = self._counts(len(rows))
        labels, bits = self._labels(Z[rows], self._membership(C[rows]), seed)
        best = int(np.argmin(bits))
        some = labels[best]
        bases = cluster_bases(Z[rows], some, self.subspace_energy)
        found = _nearest(Z, bases)
        found[rows] = some
        self.labels_ = back(found)
        self.bases_ = [back(basis) for basis in bases]
        self.n_clusters_ = len(bases)
        self.candidates_ = back(torch.tensor(counts, device=x.device))
        self.coding_bits_ = back(x.new_tensor(bits))

    def _keep(self, network: Network, training: Training, back: Back) -> None:
        network.eval()
        self._network = network
        self.hidden_ = None if self.encoder is not None else list(self._hidden())
        # Clones: the file, and a copy of the estimator, hold every tensor for itself.
        self.network_state_ = {k: v.detach().clone() for k, v in network.state_dict().items()}
        steps = torch.tensor(training.history, dtype=torch.float64, device=training.x.device)
        steps = steps.reshape(-1, 3)
        self.coding_rates_ = {
            "stage": back(steps[:, 0].long()),
            "R": back(steps[:, 1]),
            "R_c": back(steps[:, 2]),
            "delta": back(steps[:, 1] - steps[:, 2]),
        }

    def _warn(self, values: Sequence[float]) -> None:
        """Say so if the last epochs were still worth it."""
        if len(values) <= self.epochs or len(values) < 3:
            return  # stopped by itself, or there is nothing to compare
        gained = (values[-1] - values[-2]) / max(abs(values[-1]), 1e-30)
        if self.best_epoch_ == self.epochs and gained > 0.01:
            warnings.warn(
                f"MLC did not converge in epochs = {self.epochs}: the last one still improved "
                f"{self.select} by {gained:.1%}. Raise epochs or lr.",
                ConvergenceWarning,
                stacklevel=3,
            )

    def _open(self, X: Any) -> tuple[Tensor, Back, Network]:
        """Samples, the way back, and the network beside them."""
        check_is_fitted(self)
        x, back = self._samples(X, reset=False)
        network = self.__dict__.get("_network")
        if network is None:
            network = self._rebuilt(x)
            self._network = network
        return self._scaled(x), back, network.to(x.device)

    def _rebuilt(self, x: Float[Tensor, "n p"]) -> Network:
        state = self.network_state_
        if self.encoder is None and self.hidden_ is None:
            raise ValueError(
                "encoder is missing: no file holds a module's code. Give it to load, "
                "MLC.load(path, encoder=module)."
            )
        d = len(state["feature.weight"])
        sample = x[:1].to(state["feature.weight"].dtype)
        network = build(self.encoder, sample, self.hidden_ or (), d, torch.Generator())
        network.load_state_dict(state)
        return network.eval()

    def _bases(self, x: Tensor) -> list[Tensor]:
        dtype = self.network_state_["feature.weight"].dtype
        return [torch.as_tensor(basis).to(x.device, dtype) for basis in self.bases_]


def _passed(
    network: Network, x: Float[Tensor, "n p"]
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
    """Features and codes of all samples, some at a time."""
    dtype = network.feature.weight.dtype
    found = [network(part.to(dtype)) for part in x.split(CHUNK)]
    return torch.cat([Z for Z, _ in found]), torch.cat([C for _, C in found])


def _nearest(Z: Float[Tensor, "n d"], bases: Sequence[Tensor]) -> Int[Tensor, " n"]:
    """The subspace that holds most of each row."""
    held = torch.stack([torch.linalg.vector_norm(Z @ basis, dim=1) for basis in bases])
    return held.argmax(0)
