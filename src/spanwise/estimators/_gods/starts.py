"""Where the descent begins, in mirrored form (see `objective`)."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from spanwise.estimators._gods.objective import Objective
from spanwise.linalg import Product, riemannian_cg, stiefel

Start = Literal["one_sided", "slab", "random", "official"]
PAIR = Product(("stiefel", "euclidean"))
_ITERATIONS = 99
"""Steps of the one-sided problems; the released code's `maxiter=100` makes as many."""


def begin(
    x: Float[Tensor, "n d"],
    k: int,
    eta: float,
    how: Start,
    n_init: int,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "n_init 2 d k"], Float[Tensor, "n_init 2 k"]]:
    """Frames and biases to begin with.

    Args:
        x: The data.
        k: Directions of each classifier, at most d.
        eta: Margin.
        how: `"one_sided"`: each classifier from a random frame by itself, hinges and |b|^2 only.
            `"official"`: what the released code does instead: those solutions are swapped, so that
            each classifier begins on the wrong side, and their biases are dropped; for k = 1 the
            shortest and the longest sample. `"slab"`: both on the k smallest principal directions,
            one below all data and one above. `"random"`: random frames, no bias.
        n_init: How many starts; those of `"slab"`, and of `"official"` with k = 1, are all alike.
        generator: For the random frames.
    """
    if how == "slab":
        return _slab(x, k, eta, n_init)
    if how == "official" and k == 1:
        return _extreme_rows(x, n_init)
    # Drawn in float64 whatever the data, so that one seed is one start.
    frames = stiefel.random_point(
        x.shape[1], k, batch=(n_init * 2, 1), generator=generator, dtype=torch.float64
    ).to(x)
    biases = frames.new_zeros(n_init * 2, 1, k)
    if how != "random":
        alone = Objective(x, eta, lam=0.0, ridge=1.0)
        found = riemannian_cg(
            alone.cost, alone.gradient, (frames, biases), PAIR, iterations=_ITERATIONS
        )
        frames, biases = found.point
        if how == "official":
            frames, biases = -frames, torch.zeros_like(biases)
    return frames.view(n_init, 2, -1, k), biases.view(n_init, 2, k)


def _slab(x: Tensor, k: int, eta: float, n_init: int) -> tuple[Tensor, Tensor]:
    centred = x - x.mean(dim=0)
    v = torch.linalg.eigh(centred.mT @ centred)[1][:, :k]
    along = x @ v
    biases = torch.stack([eta - along.amin(dim=0), eta + along.amax(dim=0)])
    frames = torch.stack([v, -v])
    return frames.expand(n_init, -1, -1, -1).clone(), biases.expand(n_init, -1, -1).clone()


def _extreme_rows(x: Tensor, n_init: int) -> tuple[Tensor, Tensor]:
    """The code divides rows of the data in place; this does not, and survives a zero row."""
    lengths = torch.linalg.vector_norm(x, dim=1)
    rows = torch.stack([x[lengths.argmin()], -x[lengths.argmax()]])
    rows[:, 0] = torch.where((rows == 0).all(dim=1), 1, rows[:, 0])
    frames = (rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)).unsqueeze(-1)
    return frames.expand(n_init, -1, -1, -1).clone(), frames.new_zeros(n_init, 2, 1)
