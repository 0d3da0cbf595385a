"""Krylov methods: everything they know of a matrix is what it does to vectors."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spanwise.errors import ConvergenceError
from spanwise.linalg._arrays import at_least_float32

Operator = Callable[[Tensor], Tensor]
"""A linear map that keeps shape and dtype; it may overwrite nothing."""

SHORTEST = 2.0**-20
"""Smallest piece of the whole time that `expm_multiply` tries."""


class CG(NamedTuple):
    """What conjugate gradient found."""

    x: Tensor
    """The last iterate, in the shape of the right side."""
    iterations: Int[Tensor, "*batch"]
    """Steps taken for each problem."""
    residuals: Tensor
    """`||b - A x||` before the first step and after each, `(k + 1, *batch)`, by the recursion."""


@torch.no_grad()
def conjugate_gradient(
    operator: Operator,
    b: Tensor,
    x0: Tensor | None = None,
    *,
    axes: int = 1,
    iterations: int = 100,
    rtol: float = 1e-5,
    atol: float | Tensor = 0.0,
    precond: Operator | None = None,
) -> CG:
    """Solve `A x = b` for a Hermitian positive semi-definite A by conjugate gradient.

    The last `axes` axes of `b` make one problem, with one step length for all its entries; axes
    before them are a batch of problems that stop one by one. Where A is singular and `b` in its
    range, the limit is `x0 + A^+ (b - A x0)`: what `x0` has in the null space stays.

    Args:
        operator: `A`, from the shape of `b` to the same shape, problem by problem.
        b: Right side, `(*batch, *problem)`, real or complex; half precision runs in float32.
        x0: Where to start, in the shape of `b`; zeros by default. Stopping early regularises
            towards it.
        axes: How many trailing axes make one problem: 1 for vectors, 2 for matrices.
        iterations: Steps at most.
        rtol: A problem is done once `||b - A x|| <= max(rtol ||b||, atol)`.
        atol: See `rtol`; a tensor `(*batch)` gives each problem its own.
        precond: An approximate inverse of A, Hermitian positive definite. The limit stays, the
            iterates change.

    Returns:
        The solution, the number of steps, and the residual's history. A problem whose `b` is zero
        has no scale to measure a residual by: without an `atol`, its `x0` comes back.

    Raises:
        ValueError: If shapes or options do not fit, `b` or `x0` is not finite, or the operator
            shows that it is not positive semi-definite, or not finite.

    Sources:
        Hestenes and Stiefel, "Methods of conjugate gradients for solving linear systems", 1952.
    """
    _check(b, x0, axes, iterations, rtol, atol)
    dtype = at_least_float32(b.dtype)
    b = b.to(dtype)
    # The caller's own tensors are never written to.
    x = torch.zeros_like(b) if x0 is None else x0.to(b, copy=True)
    r = b.clone() if x0 is None else b - operator(x)
    size, limit = _norm(r, axes), rtol * _norm(b, axes)
    limit = torch.maximum(limit, torch.as_tensor(atol).to(limit))
    active = (size > limit) & (limit > 0) if rtol else size > limit
    # Residuals of unit size: squares of tiny ones would vanish in float32.
    unit = torch.where(size > 0, size, 1)
    r.div_(_spread(unit, axes, b))
    z = r if precond is None else precond(r)
    p = z.clone()
    rho = _dot(r, z, axes)
    norms = [size]
    count = torch.zeros(size.shape, dtype=torch.int64, device=b.device)
    for _ in range(iterations):
        if not bool(active.any()):
            break
        q = operator(p)
        curvature = _dot(p, q, axes)
        _check_curvature(curvature, p, q, axes, active)
        # No curvature along p: nothing that is left of the residual can be reduced.
        active = active & (curvature > 0)
        alpha = torch.where(active, rho / torch.where(active, curvature, 1), 0)
        x.addcmul_(_spread(alpha * unit, axes, b), p)
        r.addcmul_(_spread(-alpha, axes, b), q)
        count += active
        z = r if precond is None else precond(r)
        new = _dot(r, z, axes)
        norms.append(unit * (new if precond is None else _dot(r, r, axes)).sqrt())
        beta = torch.where(active, new / torch.where(rho > 0, rho, 1), 0)
        rho = torch.where(active, new, rho)
        active = active & (norms[-1] > limit)
        p.mul_(_spread(beta, axes, b)).add_(z)
    return CG(x, count, torch.stack(norms))


class Lanczos(NamedTuple):
    """A Hermitian operator on a Krylov space, `A Q = Q T` but for the last column."""

    basis: Tensor
    """Q, orthonormal columns, `(*batch, n, k)`; zero from where the space ends."""
    diagonal: Float[Tensor, "*batch k"]
    off: Float[Tensor, "*batch k"]
    """Below the diagonal of T; the last entry leads out of the space and bounds the error."""

    def tridiagonal(self) -> Float[Tensor, "*batch k k"]:
        """T as a dense matrix."""
        t = torch.diag_embed(self.diagonal)
        side = torch.diag_embed(self.off[..., :-1], offset=-1)
        return t + side + side.mT


@torch.no_grad()
def lanczos(operator: Operator, start: Tensor, steps: int) -> Lanczos:
    """An orthonormal basis of `span(v, A v, A^2 v, ...)` and A in its coordinates.

    Every vector is made orthogonal to all earlier ones, twice: T then has no ghosts.

    Args:
        operator: Hermitian A on vectors `(*batch, n)`.
        start: v, `(*batch, n)`, real or complex, not zero.
        steps: k, at most n.

    Raises:
        ValueError: If `steps` is out of range, or `start` is zero or not finite.

    Sources:
        Golub and Van Loan, "Matrix Computations", 4th edition, section 10.1 and 10.3.5.
    """
    n = start.shape[-1] if start.ndim else 0
    if not 1 <= steps <= n:
        raise ValueError(f"steps must be between 1 and n = {n}, got {steps}.")
    start = start.to(at_least_float32(start.dtype))
    norm = _norm(start, 1)
    if not bool((torch.isfinite(norm) & (norm > 0)).all()):
        raise ValueError("start must be finite and not zero: Lanczos grows a space from it.")
    q = start / norm.unsqueeze(-1).to(start.dtype)
    basis = start.new_zeros(*start.shape, steps)
    diagonal, off = norm.new_zeros(*norm.shape, steps), norm.new_zeros(*norm.shape, steps)
    for k in range(steps):
        basis[..., k] = q
        w = operator(q)
        diagonal[..., k] = _dot(q, w, 1)
        size = _norm(w, 1)
        seen = basis[..., : k + 1]
        for _ in range(2):
            w = w - (seen @ (seen.mH @ w.unsqueeze(-1))).squeeze(-1)
        left = _norm(w, 1)
        # Rounding alone is no direction: the space is invariant and ends here.
        ends = left <= 10 * n**0.5 * torch.finfo(start.dtype).eps * size
        off[..., k] = torch.where(ends, 0, left)
        scale = torch.where(ends, 0, 1 / torch.where(ends, 1, left))
        q = w * scale.unsqueeze(-1).to(w.dtype)
    return Lanczos(basis, diagonal, off)


@torch.no_grad()
def expm_multiply(
    operator: Operator,
    v: Tensor,
    t: complex = 1.0,
    *,
    steps: int = 30,
    tol: float = 1e-10,
) -> Tensor:
    """`exp(t A) v` for a Hermitian A, which is only ever applied.

    The time is cut into pieces on each of which the Krylov space holds the answer to `tol`.

    Args:
        operator: Hermitian A on vectors `(*batch, n)`.
        v: `(*batch, n)`; zero vectors stay zero.
        t: Time; imaginary for unitary evolution, which makes the result complex.
        steps: Largest Krylov space, k vectors of memory.
        tol: Estimated error of the whole, relative to `||exp(t A) v||`.

    Raises:
        ValueError: If an option is out of range or `v` is not finite.
        ConvergenceError: If the pieces become too short.

    Sources:
        Hochbruck and Lubich, "On Krylov subspace approximations to the matrix exponential
        operator", 1997; Saad, "Analysis of some Krylov subspace approximations", 1992.
    """
    if steps < 2 or not tol > 0:
        raise ValueError(f"steps must be at least 2 and tol positive, got {steps} and {tol}.")
    v = v.to(at_least_float32(v.dtype))
    time = complex(t)
    if time.imag:
        v = v.to(torch.promote_types(v.dtype, torch.complex64))
    # What rounding allows is the best there is.
    tol = max(tol, 10 * torch.finfo(v.dtype).eps)
    steps, left = min(steps, v.shape[-1]), 1.0
    while left > 0:
        norm = _norm(v, 1)
        if not bool(torch.isfinite(norm).all()):
            raise ValueError("exp(t A) v is not finite: v is not, or it overflows its dtype.")
        zero = norm == 0
        start = torch.where(zero.unsqueeze(-1), torch.ones_like(v), v)
        found = lanczos(operator, start, steps)
        values, vectors = torch.linalg.eigh(found.tridiagonal())
        piece = left
        while True:
            weights = torch.exp(_scaled(values, time * piece))
            first = vectors[..., :1, :].mT.to(weights.dtype)
            inner = vectors.to(weights.dtype) @ (weights.unsqueeze(-1) * first)
            size, reach = _norm(inner[..., 0], 1), abs(time) * found.off[..., -1]
            # What leaves the space, per time; the last coordinate itself is known to rounding.
            error = reach * inner[..., -1, 0].abs()
            good = error <= (tol + 10 * torch.finfo(v.dtype).eps * reach) * size
            if bool((good & torch.isfinite(size)).all()):
                break
            piece /= 2
            if piece < SHORTEST:
                raise ConvergenceError(
                    f"exp(t A) v needs more than {1 / SHORTEST:.0f} pieces of {steps} steps: give "
                    "more steps, a larger tol, or a wider dtype",
                    steps=steps,
                    residual=float(error.max()),
                )
        v = (found.basis @ (inner * norm[..., None, None]).to(found.basis.dtype)).squeeze(-1)
        v = torch.where(zero.unsqueeze(-1), 0, v)
        left -= piece
    return v


def kronecker_sum(left: Float[Tensor, "t n n"], right: Float[Tensor, "t m m"]) -> Operator:
    """`X -> sum_t left_t X right_t^T`, which is `sum_t left_t (x) right_t` on the rows of X.

    Two large products for the whole sum: the t matrices stand on top of each other in the first
    and side by side in the second.

    Args:
        left: `(t, n, n)`.
        right: `(t, m, m)`.

    Returns:
        An operator on `(n, m)`. It allocates t n m numbers a call.

    Raises:
        ValueError: If there is not one `right` for each `left`.
    """
    t, n, m = left.shape[0], left.shape[-1], right.shape[-1]
    if left.shape != (t, n, n) or right.shape != (t, m, m):
        raise ValueError(
            "left and right must be (t, n, n) and (t, m, m), one pair a term, got "
            f"{tuple(left.shape)} and {tuple(right.shape)}."
        )
    # Rows of one i lie together, term after term: the product is then (n, t m) without a copy.
    first = left.transpose(0, 1).reshape(n * t, n)
    second = right.mT.reshape(t * m, m)

    def apply(x: Tensor) -> Tensor:
        return (first @ x).view(n, t * m) @ second

    return apply


def _check(
    b: Any, x0: Tensor | None, axes: int, iterations: int, rtol: float, atol: float | Tensor
) -> None:
    if not isinstance(b, Tensor) or not (b.is_floating_point() or b.is_complex()):
        raise TypeError(f"b must be a real or complex tensor, got {getattr(b, 'dtype', type(b))}.")
    if not 1 <= axes <= b.ndim:
        raise ValueError(f"axes must be between 1 and the {b.ndim} axes of b, got {axes}.")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}.")
    least = float(torch.as_tensor(atol).min()) if torch.as_tensor(atol).numel() else 0.0
    if rtol < 0 or least < 0:
        raise ValueError(f"rtol and atol must not be negative, got {rtol} and {least}.")
    if x0 is not None and x0.shape != b.shape:
        raise ValueError(
            f"x0 must have the shape of b, got {tuple(x0.shape)} and {tuple(b.shape)}."
        )
    for name, held in (("b", b), ("x0", x0)):
        if held is not None and not bool(torch.isfinite(held).all()):
            raise ValueError(f"{name} holds NaN or infinity: no iteration recovers from that.")


def _check_curvature(curvature: Tensor, p: Tensor, q: Tensor, axes: int, active: Tensor) -> None:
    """Raise if `<p, A p>` is negative beyond rounding, or not finite."""
    if bool((active & ~torch.isfinite(curvature)).any()):
        raise ValueError("the operator gave NaN or infinity for a finite vector.")
    if bool((active & (curvature < 0)).any()):
        # Generous: sums of many terms, and products of matrices that were themselves rounded.
        floor = -1e4 * torch.finfo(p.dtype).eps * _norm(p, axes) * _norm(q, axes)
        if bool((active & (curvature < floor)).any()):
            raise ValueError(
                "the operator is not positive semi-definite: <p, A p> = "
                f"{float(curvature.min()):.3g}. Conjugate gradient minimises and would diverge."
            )


def _dot(a: Tensor, b: Tensor, axes: int) -> Tensor:
    """The real part of `<a, b>` for each problem.

    Summed pairwise: dot products of the BLAS lose five of float32's seven digits on a matrix.
    """
    product = (a.conj() * b).real if a.is_complex() else a * b
    return product.sum(dim=tuple(range(-axes, 0)), dtype=_wide(product))


def _norm(a: Tensor, axes: int) -> Tensor:
    wide = _wide(a)
    dtype = wide.to_complex() if a.is_complex() else wide
    return torch.linalg.vector_norm(a, dim=tuple(range(-axes, 0)), dtype=dtype)


def _wide(a: Tensor) -> torch.dtype:
    return torch.float32 if a.device.type == "mps" else torch.float64


def _spread(scalars: Tensor, axes: int, like: Tensor) -> Tensor:
    """One number a problem, broadcast over its entries."""
    return scalars.reshape(*scalars.shape, *(1,) * axes).to(like.dtype)


def _scaled(values: Tensor, time: complex) -> Tensor:
    if not time.imag:
        return values * time.real
    return values.to(torch.promote_types(values.dtype, torch.complex64)) * time
