"""Observables for EDMD: monomials and thin-plate splines."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

Observables = Literal["identity", "polynomial", "thin_plate"] | Callable[[Any], Any]


def monomials(x: Float[Tensor, "N n"], degree: int) -> Float[Tensor, "N D"]:
    """All monomials up to a degree, 1 first, then by degree: binom(n + degree, degree) of them."""
    columns = [torch.ones_like(x[:, :1])]
    last = [(columns[0], 0)]
    for _ in range(degree):
        # Each monomial is the one without its last factor times that factor.
        fresh = [
            (held * x[:, i : i + 1], i) for held, first in last for i in range(first, x.shape[1])
        ]
        columns += [held for held, _ in fresh]
        last = fresh
    return torch.cat(columns, dim=1)


def monomial_count(n: int, degree: int) -> int:
    """Columns of `monomials`."""
    return math.comb(n + degree, degree)


def thin_plate(x: Float[Tensor, "N n"], centers: Float[Tensor, "k n"]) -> Float[Tensor, "N D"]:
    """1, the state, and r^2 log r for the distance r to every center: `(N, 1 + n + k)`."""
    squared = torch.cdist(x, centers, compute_mode="donot_use_mm_for_euclid_dist").square_()
    # r^2 log r = r^2 log(r^2) / 2, and 0 at 0.
    return torch.cat([torch.ones_like(x[:, :1]), x, torch.xlogy(squared, squared) / 2], dim=1)
