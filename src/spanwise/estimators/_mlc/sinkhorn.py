"""The membership layer: entropic projection on doubly stochastic matrices, with its gradient."""

import math
import warnings
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from typing_extensions import override

from spanwise.linalg import conjugate_gradient, psd_solve, sinkhorn
from spanwise.linalg._arrays import full_precision, matrix

Gradient = Literal["implicit", "unrolled", "truncated"]
Affinity = Literal["abs", "linear"]


class SinkhornProjection(nn.Module):
    """The doubly stochastic matrix nearest to an affinity, `argmax <G, K> - eta sum G log G`.

    `G = diag(e^u) exp(K / eta) diag(e^v)`; rows and columns sum to 1, so that row i says which
    samples share a cluster with sample i.

    Args:
        eta: Temperature, above 0, in the units of K: large ones give 1/n everywhere, small ones
            the best permutation, the identity for `K = C C'` of distinct unit rows.
        n_iter: Half-steps at most: rows, columns, rows, ... The released code takes 5, after which
            columns are off by some percent.
        tol: Done once every row and column sums to 1 within this; at least 8 roundings.
        grad: `"implicit"`: of the limit, from one linear system; costs no memory for steps.
            `"unrolled"`: through every half-step. `"truncated"`: the released code's, which takes
            the column potentials as constants: not the gradient of anything.

    Raises:
        ValueError: If a parameter is out of range.

    Sources:
        Ding et al., "Unsupervised manifold linearizing and clustering", 2023, section 3.2;
        Eisenberger et al., "A unified framework for implicit Sinkhorn differentiation", 2022.
    """

    def __init__(
        self,
        eta: float = 0.175,
        *,
        n_iter: int = 1000,
        tol: float = 1e-6,
        grad: Gradient = "implicit",
    ) -> None:
        super().__init__()
        if not 0 < eta < math.inf:
            raise ValueError(f"eta must be finite and above 0, got {eta}.")
        if n_iter < 1:
            raise ValueError(f"n_iter must be at least 1, got {n_iter}.")
        if not tol >= 0:
            raise ValueError(f"tol must be at least 0, got {tol}.")
        if grad not in get_args(Gradient):
            known = ", ".join(map(repr, get_args(Gradient)))
            raise ValueError(f"grad must be one of {known}, got {grad!r}.")
        self.eta, self.n_iter, self.tol, self.grad = eta, n_iter, tol, grad

    @override
    def forward(self, K: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
        """The projection of an affinity.

        Raises:
            ValueError: If K is empty, not square or not finite.
        """
        K = matrix("K", K)
        if K.ndim != 2 or K.shape[0] != K.shape[1]:
            raise ValueError(f"K must be square, (n, n), got {tuple(K.shape)}.")
        if not len(K) or not bool(torch.isfinite(K.detach()).all()):
            held = "NaN or infinity" if len(K) else "no samples"
            raise ValueError(f"K must be finite numbers of at least one sample, it holds {held}.")
        if self.grad != "implicit":
            return self._by_steps(K / self.eta)
        with full_precision(K):
            plan, error, steps = _Implicit.apply(K, self)
        if error > 10 * max(self.tol, 8 * torch.finfo(K.dtype).eps):
            warnings.warn(
                f"the membership did not converge in n_iter = {steps} half-steps: a row or column "
                f"sums to 1 within {error:.1e} only. Raise n_iter or eta = {self.eta}.",
                RuntimeWarning,
                stacklevel=4,  # past the two calls of nn.Module
            )
        return plan

    def _by_steps(self, logits: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
        """Half-steps by logarithms, each of them differentiable."""
        u = v = logits.new_zeros(len(logits))
        for step in range(self.n_iter):
            if step % 2 == 0:
                old, u = u, -torch.logsumexp(logits + v, 1)
                moved = u - old
            else:
                old, v = v, -torch.logsumexp(logits + u[:, None], 0)
                moved = v - old
                if self.grad == "truncated":
                    v = v.detach()
            # A potential moves by the logarithm of the sum that it sets right.
            if step and float(moved.detach().abs().max()) <= self.tol:
                break
        return (logits + u[:, None] + v).exp()


def affinity(C: Float[Tensor, "n d"], kind: Affinity) -> Float[Tensor, "n n"]:
    """`|C C'|` (`"abs"`, the released code), or `C C'` (`"linear"`, the paper).

    Raises:
        ValueError: If `kind` is unknown.
    """
    if kind not in get_args(Affinity):
        known = ", ".join(map(repr, get_args(Affinity)))
        raise ValueError(f"affinity must be one of {known}, got {kind!r}.")
    product = C @ C.mT
    return product.abs() if kind == "abs" else product


class _Implicit(torch.autograd.Function):
    """The projection at convergence.

    Differentiating both marginals gives, for an upstream gradient W and `S = W * G / eta`, the
    system `lam + G mu = S 1`, `G' lam + mu = S' 1`, and `dL/dK = S - G * (lam 1' + 1 mu')`. Its
    null space, (1, -1), changes nothing in the result.
    """

    @staticmethod
    @override
    def forward(  # pyrefly: ignore[bad-override]
        ctx: Any, K: Tensor, options: SinkhornProjection
    ) -> tuple[Tensor, float, int]:
        gap, peak = float((K - K.mT).abs().max()), float(K.abs().max())
        # A product C C' is symmetric up to its rounding.
        symmetric = gap <= 16 * torch.finfo(K.dtype).eps * peak
        logits = (K + K.mT).mul_(0.5 / options.eta) if symmetric and gap else K / options.eta
        found = sinkhorn(logits, iterations=options.n_iter, tol=options.tol, symmetric=symmetric)
        ctx.save_for_backward(found.plan)
        ctx.symmetric, ctx.eta = symmetric, options.eta
        return found.plan, found.error, found.iterations

    @staticmethod
    @once_differentiable
    @override
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # pyrefly: ignore[bad-override]
        (plan,) = ctx.saved_tensors
        with full_precision(plan):
            S = (grad_outputs[0] * plan).div_(ctx.eta)
            if ctx.symmetric:
                # The derivative along symmetric changes, the only ones that keep K symmetric.
                S = (S + S.mT).mul_(0.5)
                lam = mu = _half(plan, S.sum(1))
            else:
                rows, columns = S.sum(1), S.sum(0)
                system = (plan.mT @ plan).neg_()
                system.diagonal().add_(1)
                mu = psd_solve((system + system.mT) / 2, (columns - plan.mT @ rows)[:, None]).x[
                    :, 0
                ]
                lam = rows - plan @ mu
            return S.addcmul_(plan, lam[:, None] + mu, value=-1), None


def _half(plan: Float[Tensor, "n n"], sums: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Solve `(I + G) x = sums`, whose condition is at most 2 where G is semi-definite."""
    rtol = 4 * torch.finfo(plan.dtype).eps
    return conjugate_gradient(lambda x: x + plan @ x, sums, iterations=200, rtol=rtol).x
