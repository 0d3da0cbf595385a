"""Both stages of MLC: features that spread samples, then features and memberships together."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spanwise.estimators._mlc.loss import MLCLoss, tcr_loss
from spanwise.estimators._mlc.network import Network
from spanwise.estimators._mlc.rates import coding_rate
from spanwise.estimators._mlc.sinkhorn import Affinity, SinkhornProjection, affinity
from spanwise.estimators._mlc.views import Augment
from spanwise.estimators._progress import ProgressLine

State = dict[str, Tensor]


@dataclass(kw_only=True)
class Training:
    """A network, its samples, and how it is trained; `first` and `second` run the stages."""

    network: Network
    x: Float[Tensor, "n p"]
    generator: torch.Generator
    augment: Augment | None
    views: int
    batch_size: int
    loss: MLCLoss
    projection: SinkhornProjection
    affinity: Affinity
    optimizer: Literal["adam", "sgd"]
    weight_decay: float
    cluster_weight_decay: float
    verbose: object = False
    history: list[tuple[int, float, float]] = field(default_factory=list)
    """Stage, R and R_c (NaN in the first stage) of every step."""

    def first(self, epochs: int, lr: float, eps: float, weight: float) -> None:
        """Spread samples while views of one stay together; then copy the feature head."""
        network = self.network
        optimizer = self._optimizer(lr, [network.trunk, network.feature], [])
        with ProgressLine(self.verbose, "MLC, first stage, epoch", epochs) as line:
            for epoch in range(epochs):
                network.train()
                for rows in self._batches():
                    if self.augment is None:
                        Z = finite(network.features(self.x[rows]))
                        loss = -coding_rate(Z, eps)
                    else:
                        Z, other = (finite(network.features(self._view(rows))) for _ in range(2))
                        loss = tcr_loss(Z, other, eps, weight)
                    self._step(optimizer, loss)
                    with torch.no_grad():
                        rate = float(coding_rate(Z, self.loss.eps))
                    self.history.append((1, rate, math.nan))
                line(epoch + 1, note=f"R {self.history[-1][1]:.2f}")
        network.copy_heads()

    def second(
        self,
        epochs: int,
        lr: float,
        judge: Callable[[], float] | None,
        patience: int,
        tol: float,
    ) -> "Chosen":
        """Train on MLC's loss, and end in the state that `judge` likes best.

        Args:
            epochs: At most.
            lr: Rate.
            judge: A number of the state as it is, the higher the better; None takes the last.
            patience: Epochs without a better one after which training ends.
            tol: What counts as better, as a share of the best.
        """
        network = self.network
        optimizer = self._optimizer(lr, [network.trunk, network.feature], [network.cluster])
        values = [] if judge is None else [judge()]
        best, kept = 0, self._state()
        epoch = 0
        with ProgressLine(self.verbose, "MLC epoch", epochs) as line:
            for epoch in range(1, epochs + 1):
                network.train()
                for rows in self._batches():
                    self._step(optimizer, self._loss(rows))
                _, rate, part = self.history[-1]
                line(epoch, note=f"R {rate:.2f}, R - R_c {rate - part:.2f}")
                if judge is None:
                    continue
                values.append(judge())
                if values[-1] > values[best] + tol * abs(values[best]):
                    best, kept = epoch, self._state()
                elif epoch - best >= patience:
                    break
        if judge is not None:
            network.load_state_dict(kept)
        network.eval()
        return Chosen(epoch, epoch if judge is None else best, values)

    def _loss(self, rows: Int[Tensor, " b"]) -> Tensor:
        seen = [
            self.network(self.x[rows] if self.augment is None else self._view(rows))
            for _ in range(1 if self.augment is None else self.views)
        ]
        # A mean of doubly stochastic matrices is one.
        memberships = [self.projection(affinity(finite(C), self.affinity)) for _, C in seen]
        G = torch.stack(memberships).mean(0) if len(seen) > 1 else memberships[0]
        Z = finite(seen[0][0])
        if len(seen) > 1:
            Z = torch.nn.functional.normalize(torch.stack([z for z, _ in seen]).mean(0), dim=1)
        found = self.loss.terms(Z, G, generator=self.generator)
        self.history.append((2, float(found.rate.detach()), float(found.cluster_rate.detach())))
        return found.loss

    def _view(self, rows: Int[Tensor, " b"]) -> Tensor:
        assert self.augment is not None
        x = self.x[rows]
        view = self.augment(x, self.generator)
        if not isinstance(view, Tensor) or view.shape != x.shape:
            got = tuple(view.shape) if isinstance(view, Tensor) else type(view).__name__
            raise ValueError(
                f"augment(x, generator) must return a tensor of the shape of x, {tuple(x.shape)}, "
                f"got {got}."
            )
        return view

    def _batches(self) -> Iterator[Int[Tensor, " b"]]:
        """All samples in random batches about equally large; never one of a single sample."""
        n, count = len(self.x), batches(len(self.x), self.batch_size)
        order = torch.randperm(n, generator=self.generator).to(self.x.device)
        edges = [n * i // count for i in range(count + 1)]
        for low, high in itertools.pairwise(edges):
            yield order[low:high]

    def _optimizer(
        self, lr: float, trunk: list[torch.nn.Module], cluster: list[torch.nn.Module]
    ) -> torch.optim.Optimizer:
        decays = ((trunk, self.weight_decay), (cluster, self.cluster_weight_decay))
        groups = [
            {
                "params": [p for part in parts for p in part.parameters() if p.requires_grad],
                "weight_decay": decay,
            }
            for parts, decay in decays
            if parts
        ]
        if self.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=lr, momentum=0.9)
        return torch.optim.AdamW(groups, lr=lr)

    def _step(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad()
        finite(loss).backward()
        optimizer.step()

    def _state(self) -> State:
        return {key: value.detach().clone() for key, value in self.network.state_dict().items()}


def batches(n: int, size: int) -> int:
    """How many batches of at most so many samples, each of two or three at least."""
    return max(1, min(-(-n // size), n // 2))


def finite(value: Tensor) -> Tensor:
    """The same, or an error that says what to do about training that diverged."""
    if not bool(torch.isfinite(value.detach()).all()):
        raise ValueError(
            "training diverged: features or loss became NaN or infinite. Lower lr or ssl_lr, or "
            'set scaling = "standard".'
        )
    return value


@dataclass(frozen=True)
class Chosen:
    """Which state the second stage ended in."""

    epochs: int
    """That were run."""
    best: int
    """Of the state that was kept; 0 is the one right after the copy of the head."""
    values: list[float]
    """Of `judge`, from that one on."""
