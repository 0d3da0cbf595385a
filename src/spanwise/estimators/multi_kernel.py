"""`MultiKernelRegressor`: a linear map and a smooth correction, with a penalty each."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.base import MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import (
    check_is_fitted,
    validate_data,  # pyrefly: ignore[missing-module-attribute]
)
from torch import Tensor

from spanwise.estimators._arrays import Back, to_numpy
from spanwise.estimators._base import Estimator
from spanwise.estimators._koopman.kernels import (
    Kernel,
    KernelOptions,
    choose_landmarks,
    default_gamma,
    whitener,
)
from spanwise.estimators._koopman.linear import check_kernel, like
from spanwise.linalg.psd import psd_solve


class MultiKernelRegressor(MultiOutputMixin, RegressorMixin, Estimator):
    """y ~ C z + b + g(z): a linear map, and a correction g from the space of a kernel.

    Minimises mean |y_i - C z_i - b - g(z_i)|^2 + linear_penalty |C|^2 + kernel_penalty |g|^2,
    exactly: kernel ridge regression with the sum of both kernels, solved so that the linear
    part may also be without any penalty.

    Args:
        linear_penalty: Of C, at least 0.
        kernel_penalty: Of g, above 0; infinite: no g.
        kernel: `"rbf"`, `"polynomial"`, `"linear"`, or a function of two arrays.
        gamma: Of the kernel; None: 1 / (d times the variance of the inputs).
        degree: Of the polynomial.
        coef0: Of the polynomial.
        fit_intercept: Whether there is a b, without penalty.
        max_landmarks: With more samples than this, g is spanned by the kernels at so many of them
            that pivoted Cholesky picks.

    Attributes:
        coef_: C, `(p, d)`, or `(d,)` for one target.
        intercept_: b, `(p,)`, or a number.
        dual_coef_: Weights of the kernels at the landmarks, `(m, p)` or `(m,)`.
        landmarks_: `(m, d)`.
        gamma_: Of the kernel.
        n_features_in_: d.

    Raises:
        ValueError: From `fit`, if a parameter, X or y is out of range.

    Sources:
        Otto and Rowley 2019 propose a partially linear multi-kernel reconstruction; the solution
        here is that of a sum of two reproducing kernels, Aronszajn 1950.
    """

    def __init__(
        self,
        linear_penalty: float = 1e-8,
        kernel_penalty: float = 1e-4,
        *,
        kernel: Kernel = "rbf",
        gamma: float | None = None,
        degree: int = 2,
        coef0: float = 1.0,
        fit_intercept: bool = True,
        max_landmarks: int = 2000,
    ) -> None:
        self.linear_penalty = linear_penalty
        self.kernel_penalty = kernel_penalty
        self.kernel = kernel
        self.gamma = gamma
        self.degree = degree
        self.coef0 = coef0
        self.fit_intercept = fit_intercept
        self.max_landmarks = max_landmarks

    @torch.no_grad()
    def fit(self, X: Any, y: Any) -> "MultiKernelRegressor":
        """Fit both parts.

        Args:
            X: Inputs, `(M, d)`.
            y: Targets, `(M, p)` or `(M,)`.
        """
        self._check()
        x, targets, back = self._pair(X, y)
        z, t = x.double(), targets.double().reshape(len(x), -1)
        self.gamma_ = default_gamma(z) if self.gamma is None else float(self.gamma)
        kernel = self._options()
        landmarks = choose_landmarks(kernel, z, self.max_landmarks)
        correct = self._corrector(kernel, landmarks, z)
        design = torch.cat([z, torch.ones_like(z[:, :1])], dim=1) if self.fit_intercept else z
        penalties = torch.full_like(design[0], self.linear_penalty)
        if self.fit_intercept:
            penalties[-1] = 0.0
        inner, _ = correct(torch.cat([design, t], dim=1))
        d = design.shape[1]
        normal = design.mT @ inner[:, :d]
        normal = (normal + normal.mT) / 2 + torch.diag(penalties)
        # On a diagonal of ones, or what is rounding would hang on the inputs' units, and the
        # intercept vanish beside a large penalty.
        size = normal.diagonal().clamp(min=torch.finfo(z.dtype).tiny).rsqrt()[:, None]
        scaled = psd_solve(size * normal * size.mT, size * (design.mT @ inner[:, d:]))
        linear = size * scaled.x
        _, dual = correct(t - design @ linear)
        coefficients = linear[: z.shape[1]].mT
        intercept = linear[-1] if self.fit_intercept else torch.zeros_like(t[0])
        if targets.ndim == 1:
            coefficients, intercept, dual = coefficients[0], intercept[0], dual[:, 0]
        self.coef_, self.dual_coef_ = back(coefficients.contiguous()), back(dual.contiguous())
        self.intercept_ = float(intercept) if targets.ndim == 1 else back(intercept)
        self.landmarks_ = back(landmarks.clone())
        return self

    @torch.no_grad()
    def predict(self, X: Any) -> Any:
        """Targets, `(M, p)` or `(M,)`."""
        check_is_fitted(self)
        x, back = self._samples(X, reset=False)
        z = x.double()
        dual, coefficients = like(self.dual_coef_, z), like(self.coef_, z)
        found = z @ coefficients.mT if coefficients.ndim == 2 else z @ coefficients
        found = found + torch.as_tensor(self.intercept_, dtype=z.dtype, device=z.device)
        if self.kernel_penalty < math.inf:
            found = found + self._options()(z, like(self.landmarks_, z)) @ dual
        return back(found.to(x.dtype))

    def _options(self) -> KernelOptions:
        return KernelOptions(self.kernel, self.gamma_, self.degree, self.coef0)

    def _corrector(
        self, kernel: KernelOptions, landmarks: Tensor, z: Tensor
    ) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """R -> (A^-1 R, weights of the kernels that fit R), A = k(z, z) / gamma1 + M I."""
        m = len(z)
        if self.kernel_penalty == math.inf:
            return lambda r: (r / m, r.new_zeros(len(landmarks), r.shape[1]))
        whole = kernel(z, landmarks)
        if len(landmarks) == m:
            system = (whole + whole.mT) / 2
            system.diagonal().add_(m * self.kernel_penalty)

            def exact(r: Float[Tensor, "M p"]) -> tuple[Tensor, Tensor]:
                dual = psd_solve(system, r, rtol=0.0).x
                return dual * self.kernel_penalty, dual

            return exact
        projector = whitener(kernel(landmarks, landmarks), 1e-14, None)
        phi = whole @ projector
        small = phi.mT @ phi
        small.diagonal().add_(m * self.kernel_penalty)

        def few(r: Float[Tensor, "M p"]) -> tuple[Tensor, Tensor]:
            weights = psd_solve(small, phi.mT @ r, rtol=0.0).x
            return (r - phi @ weights) / m, projector @ weights

        return few

    def _pair(self, X: Any, y: Any) -> tuple[Tensor, Tensor, Back]:
        if isinstance(X, Tensor):
            x, back = self._samples(X, reset=True)
            targets = torch.as_tensor(y).to(x)
            if targets.ndim not in (1, 2) or len(targets) != len(x):
                raise ValueError(
                    f"y must be (M,) or (M, p) with M = {len(x)}, got {tuple(targets.shape)}."
                )
            if not bool(torch.isfinite(targets).all()):
                raise ValueError("y contains NaN or infinity. Drop or impute those samples.")
            return x, targets, back
        inputs, held = validate_data(
            self, X, y, multi_output=True, y_numeric=True, dtype=[np.float64, np.float32]
        )
        x = torch.from_numpy(np.require(inputs, requirements=["C", "W"]))
        targets = torch.from_numpy(np.require(held, dtype=np.float64, requirements=["C", "W"]))
        return x, targets, to_numpy

    def _check(self) -> None:
        check_kernel(self.kernel, self.gamma)
        if not 0 <= self.linear_penalty < math.inf:
            raise ValueError(
                f"linear_penalty must be finite and at least 0, got {self.linear_penalty}."
            )
        if not self.kernel_penalty > 0:
            raise ValueError(f"kernel_penalty must be above 0, got {self.kernel_penalty}.")
        if self.degree < 1 or self.coef0 < 0:
            raise ValueError(
                f"degree must be at least 1 and coef0 not negative, got {self.degree} and "
                f"{self.coef0}."
            )
        if self.max_landmarks < 1:
            raise ValueError(f"max_landmarks must be at least 1, got {self.max_landmarks}.")
