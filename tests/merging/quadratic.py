"""Models with statistics, and the systems that they make, written out as dense matrices."""

import numpy as np
import torch
from tests.conformance.merging import models

from spanwise.merging import Stats

F64 = torch.float64
UP, DOWN, SQUARE = "layers.0.up.weight", "layers.1.down.weight", "layers.1.square.weight"
LINEAR = (UP, DOWN, SQUARE)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def gram(n, seed, rank=None):
    """A mean of outer products; of full rank unless told otherwise."""
    x = draw(rank or 3 * n, n, seed=seed)
    return x.mT @ x / len(x)


def means_of(base, seed, *, rank=None):
    """Every kind of statistics for the linear maps, the Fisher diagonal for every tensor."""
    found = {}
    for k, (name, tensor) in enumerate(base.items()):
        if not tensor.is_floating_point():
            continue
        found[name] = {"diag_fisher": draw(*tensor.shape, seed=100 * seed + k).square() + 0.1}
        if name in LINEAR:
            m, n = tensor.shape
            found[name]["gram"] = gram(n, 1000 * seed + k, rank)
            found[name]["gradient_gram"] = gram(m, 2000 * seed + k, rank)
    return found


def stats_of(base, count=3, **options):
    return [Stats.from_means(means_of(base, seed, **options)) for seed in range(1, count + 1)]


def case(count=3, **options):
    base, tuned = models(count)
    return base, tuned, stats_of(base, count, **options)


def shrink(matrix, lam):
    return lam * matrix + (1 - lam) * torch.diag(matrix.diagonal())


def dense(objective, held, name, shape, lam=1.0):
    """A_t on the rows of X = W^T, as a matrix of (n m, n m)."""
    m, n = shape
    if objective == "identity":
        return torch.eye(n * m, dtype=F64)
    if objective == "diag_fisher":
        return torch.diag(held[name]["diag_fisher"].mT.flatten())
    c = shrink(held[name]["gram"], lam)
    b = torch.eye(m, dtype=F64)
    if objective == "kfac":
        b = shrink(held[name]["gradient_gram"], lam)
    return torch.kron(c.contiguous(), b.contiguous())


def system(objective, tuned, stats, name, *, lam=1.0, weights=None):
    """sum A_t and sum A_t theta_t, in vectors of X's rows."""
    weights = weights or [1.0] * len(tuned)
    terms = [
        w * dense(objective, s, name, tuned[0][name].shape, lam)
        for s, w in zip(stats, weights, strict=True)
    ]
    right = sum(a @ t[name].mT.flatten() for a, t in zip(terms, tuned, strict=True))
    return sum(terms), right


def naive_cg(a, b, x0, steps, rtol=1e-5):
    """The textbook's iteration, one step length for the whole tensor."""
    a, b, x = a.numpy(), b.numpy(), x0.numpy().copy()
    r = b - a @ x
    p = r.copy()
    for _ in range(steps):
        if np.linalg.norm(r) <= rtol * np.linalg.norm(b):
            break
        alpha = r @ r / (p @ (a @ p))
        x, new = x + alpha * p, r - alpha * (a @ p)
        p, r = new + new @ new / (r @ r) * p, new
    return torch.as_tensor(x)


def rows(weight):
    """The rows of X = W^T, one after the other."""
    return weight.mT.flatten()
