"""GODS: a pair of orthonormal frames that holds normal data between its hyperplanes."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import OutlierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from spanwise.estimators._arrays import Back, column_scales, make_generator
from spanwise.estimators._base import Estimator
from spanwise.estimators._gods.features import Scaling, scale_rows, whitener
from spanwise.estimators._gods.objective import Objective, mirrored
from spanwise.estimators._gods.options import PRESETS, Preset, check_options, directions
from spanwise.estimators._gods.pyod import PyodAdapter
from spanwise.estimators._gods.starts import PAIR, Start, begin
from spanwise.estimators._kernels import Kernel, gram, kernel_map
from spanwise.estimators._progress import ProgressLine
from spanwise.linalg import riemannian_cg

_STILL_FALLING = 0.01
"""A share by which the objective may fall in the last tenth of the steps without a warning."""
_LEARNED = (
    "mean_", "scale_", "middle_", "whitener_", "gamma_", "landmarks_", "projector_", "origin_",
)  # fmt: skip
"""What `fit` learns for some parameters only."""
_WIDTH = 0.2
"""Of the rbf kernel, on which 16 sets agreed; see the reproduction."""


class GODS(OutlierMixin, Estimator):
    """One-class learning with two frames W1, W2 of k orthonormal directions each.

    Normal data lies on the positive side of every hyperplane of the first frame and on the
    negative side of every one of the second, and near both:

        F = sum_i [eta - min_j (W1^T x_i + b1)_j]_+^2 + sum_i [eta + max_j (W2^T x_i + b2)_j]_+^2
            + lam sum_i (|W1^T x_i + b1|^2 + |W2^T x_i + b2|^2)

    A sample's score is its smallest margin, min(min_j (W1^T x + b1)_j, min_j -(W2^T x + b2)_j):
    the distance, in units of the (scaled) data, by which it is inside. k = 1 is BODS. With a
    kernel the frames act on kernel principal coordinates (KODS), exactly.

    Args:
        n_directions: k, at most the number of features; more are clipped with a warning. A float
            in `(0, 1]` is a share of them, 64 at most.
        eta: Margin to reach, above 0, in units of the (scaled) data.
        lam: Weight of the squared distances, at least 0. Sums over samples, as the hinges.
        coupling: Weight, at least 0, of n (|W1 - W2|^2 + |b1 - b2|^2) for n samples, which makes
            the two frames the sides of one slab, as in the papers' BODS; 0 is the released code,
            whose lowest F has both frames in one place.
        scaling: `"standard"`: columns to mean 0 and deviation 1. `"whiten"`: these uncorrelated
            and of variance near 1, with Ledoit and Wolf's shrinkage; of a kernel, so are its
            coordinates. `"rows"`: samples to length 1, as in the released code unless told
            otherwise. None: as they are.
        kernel: None, `"linear"`, `"rbf"`, or a function of two arrays `(n, d)`, `(m, d)` that
            returns `(n, m)`; it has to be positive semi-definite.
        gamma: Of the rbf kernel exp(-gamma |x - y|^2); None: 0.2 / (d times the variance of the
            scaled X).
        n_components: Kernel coordinates at most; a float below 1: as few as hold this share of
            the kernel's trace; None: all of numerical rank.
        max_landmarks: With more samples than this, the kernel's coordinates come from so many of
            them, drawn at random (Nystrom).
        contamination: In `(0, 0.5]`: this share of the training data is left outside. None: a
            sample is normal if its score is at least 0, the paper's rule, which asks for an eta
            and lam that fit the data.
        start: Where the descent begins: `"one_sided"`, each classifier from a random frame by
            itself; `"slab"`, on the k smallest principal directions, one frame on each side of
            the data; `"random"`; `"official"`, the released code's, whose one-sided solutions are
            swapped and lose their biases.
        max_iter: Steps of Riemannian conjugate gradient at most.
        tol: The descent is done once the gradient's norm, over the number of samples, is below.
            With kinks it need not come so far: a warning tells only of an objective that fell by
            more than 1 % in the last tenth of the steps.
        retries: Searches that may fail in a row; see `spanwise.linalg.riemannian_cg`.
        n_init: Starts, run as one batch; the lowest F wins.
        random_state: Seed or generator of the starts and landmarks; None is seed 0.
        verbose: Whether the descent tells its progress, one line on stderr.

    Attributes:
        frames_: W1 and W2, `(2, d, k)`, on scaled features or kernel coordinates.
        biases_: b1 and b2, `(2, k)`.
        offset_: What `decision_function` subtracts from the score.
        objective_: F at the end.
        n_iter_: Accepted steps of the start that won.
        center_: Mean of what the frames see: scaled features, or kernel coordinates.
        origin_: Mean of the scaled features, where `explain` is zero; but for kernels that are not
            linear.
        n_features_in_: Features of X; with `feature_names_in_` where X has them.

    Raises:
        ValueError: From `fit`, if a parameter or X is out of range.
        TypeError: If X is sparse.

    Sources:
        Wang and Cherian, "GODS: Generalized One-class Discriminative Subspaces for Anomaly
        Detection", 2019; Cherian and Wang, "Generalized One-Class Learning Using Pairs of
        Complementary Classifiers", 2022.
    """

    frames_: Any
    biases_: Any
    center_: Any
    offset_: float
    objective_: float
    n_iter_: int
    n_features_in_: int
    feature_names_in_: Any

    def __init__(
        self,
        n_directions: float = 0.5,
        *,
        eta: float = 1.0,
        lam: float = 0.1,
        coupling: float = 1.0,
        scaling: Scaling | None = "whiten",
        kernel: Kernel | None = None,
        gamma: float | None = None,
        n_components: float | None = None,
        max_landmarks: int = 5000,
        contamination: float | None = 0.05,
        start: Start = "slab",
        max_iter: int = 50,
        tol: float = 1e-3,
        retries: int = 3,
        n_init: int = 1,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        self.n_directions = n_directions
        self.eta = eta
        self.lam = lam
        self.coupling = coupling
        self.scaling = scaling
        self.kernel = kernel
        self.gamma = gamma
        self.n_components = n_components
        self.max_landmarks = max_landmarks
        self.contamination = contamination
        self.start = start
        self.max_iter = max_iter
        self.tol = tol
        self.retries = retries
        self.n_init = n_init
        self.random_state = random_state
        self.verbose = verbose

    @classmethod
    def preset(cls, name: Preset, **changes: Any) -> "GODS":
        """A detector with settings that have a name.

        Args:
            name: `"paper"`: those of the released code, which scale samples to length 1, couple
                nothing, start on the wrong side and stop at the first failed search. `"tuned"`:
                the defaults of this class. `"kernel"`: an rbf kernel with what the same sets chose
                for it; it ranks samples better, and explains nothing.
            **changes: Parameters to set otherwise.

        Raises:
            ValueError: If the name is unknown.
        """
        if name not in PRESETS:
            raise ValueError(f'preset must be "paper", "tuned" or "kernel", got {name!r}.')
        return cls(**{**PRESETS[name], **changes})

    @torch.no_grad()
    def fit(self, X: Any, y: Any = None) -> "GODS":
        """Find the frames.

        Args:
            X: Normal samples, `(n, d)`.
            y: Ignored.
        """
        check_options(self.get_params(deep=False))
        generator = make_generator(self.random_state)
        x, back = self._samples(X, reset=True)
        z = self._fit_features(x, back, generator)
        k = directions(self.n_directions, z.shape[1])
        objective = Objective(z, self.eta, self.lam, self.coupling * len(z))
        start = begin(z, k, self.eta, self.start, self.n_init, generator)
        costs = [objective.cost(start)[0]]
        with ProgressLine(self.verbose, "GODS step", self.max_iter) as line:

            def tell(step: int, cost: Tensor) -> None:
                costs.append(cost.clone())
                line(step, f"objective {float(cost.min()):.4g}")

            found = riemannian_cg(
                objective.cost,
                objective.gradient,
                start,
                PAIR,
                iterations=self.max_iter,
                gradient_tolerance=self.tol * len(z),
                retries=self.retries,
                callback=tell,
            )
        best = int(found.cost.argmin())
        frames, biases = mirrored(found.point[0][best], found.point[1][best])
        self.frames_, self.biases_ = back(frames), back(biases)
        self.center_ = back(z.mean(dim=0))
        self.objective_ = float(found.cost[best])
        self.n_iter_ = max(1, int(found.iterations[best]))
        fell = _last_fall([float(cost[best]) for cost in costs])
        if not bool(found.converged[best]) and fell > _STILL_FALLING:
            warnings.warn(
                f"GODS did not converge in max_iter = {self.max_iter} steps: the objective fell by "
                f"{fell:.1%} in the last tenth of them. Raise max_iter, or scale the data with "
                "scaling='whiten'.",
                ConvergenceWarning,
                stacklevel=3,  # `no_grad` is a frame of its own
            )
        self.offset_ = 0.0
        if self.contamination is not None:
            scores = self._margins(z).flatten(1).amin(dim=1)
            self.offset_ = float(torch.quantile(scores.double(), self.contamination))
        return self

    @torch.no_grad()
    def margins(self, X: Any) -> Any:
        """How far inside each hyperplane a sample is, `(n, 2, k)`; negative outside.

        Those of W1 are W1^T x + b1, those of W2 are -(W2^T x + b2).
        """
        z, back = self._features(X)
        return back(self._margins(z))

    @torch.no_grad()
    def score_samples(self, X: Any) -> Any:
        """The smallest margin of each sample, `(n,)`; higher is more normal."""
        z, back = self._features(X)
        return back(self._margins(z).flatten(1).amin(dim=1))

    def decision_function(self, X: Any) -> Any:
        """`score_samples(X) - offset_`; negative for outliers."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> Any:
        """1 for inliers, -1 for outliers."""
        inside = self.decision_function(X) >= 0
        return 2 * (inside.long() if isinstance(inside, Tensor) else inside.astype(int)) - 1

    @torch.no_grad()
    def explain(self, X: Any) -> Any:
        """What each feature adds to a sample's score, `(n, d)`.

        The score is one direction's margin, linear in the (scaled) features: a row sums to that
        margin minus its value at the training mean. The most negative entries say why a sample
        is an outlier.

        Raises:
            ValueError: With a kernel that is not linear, whose coordinates are no features.
        """
        check_is_fitted(self)
        if self.kernel not in (None, "linear"):
            raise ValueError(
                "explain needs kernel=None or 'linear': coordinates of other kernels are no "
                "features. Use margins(X) to see which hyperplane a sample crosses."
            )
        x, back = self._samples(X, reset=False)
        x = self._scaled(x)
        z = self._coordinates(x)
        frames, _ = mirrored(_like(self.frames_, z), _like(self.biases_, z))
        active = self._margins(z).flatten(1).argmin(dim=1)
        turn = frames.mT.reshape(-1, z.shape[1])  # and back to the features, map by map
        if self.scaling == "whiten":
            turn = turn @ _like(self.whitener_, z).mT
        if self.kernel is not None:
            turn = turn @ _like(self.projector_, z).mT @ _like(self.landmarks_, z)
        return back(turn[active] * (x - _like(self.origin_, x)))

    def as_pyod(self, contamination: float = 0.1) -> PyodAdapter:
        """A detector with PyOD's habits around this one: `fit` it, then ask for outliers.

        Args:
            contamination: Share of the training data that is labelled outlier.
        """
        return PyodAdapter(self, contamination)

    def _fit_features(self, x: Tensor, back: Back, generator: torch.Generator) -> Tensor:
        """Learn the scaling and the kernel's coordinates, and return those of `x`."""
        for name in _LEARNED:  # of an earlier fit with other parameters
            vars(self).pop(name, None)
        if self.scaling in ("standard", "whiten"):
            self.mean_, self.scale_ = back(x.mean(dim=0)), back(column_scales(x))
        x = self._scaled(x)
        if self.kernel in (None, "linear"):
            self.origin_ = back(x.mean(dim=0))
        if self.kernel is not None:
            x = self._fit_kernel(x, back, generator)
        if self.scaling == "whiten":
            middle = x.mean(dim=0)
            turn = whitener(x - middle)
            self.middle_, self.whitener_ = back(middle), back(turn)
            x = (x - middle) @ turn
        return x

    def _fit_kernel(self, x: Tensor, back: Back, generator: torch.Generator) -> Tensor:
        if self.gamma is not None:
            self.gamma_ = float(self.gamma)
        else:
            spread = float(x.var(correction=0))
            self.gamma_ = _WIDTH / (x.shape[1] * spread) if spread > 0 else 1.0
        landmarks = x
        if len(x) > self.max_landmarks:
            rows = torch.randperm(len(x), generator=generator, device=generator.device)
            rows = rows[: self.max_landmarks]
            landmarks = x[rows.to(x.device)]
        own = gram(self.kernel, self.gamma_, landmarks, landmarks)
        projector = kernel_map(own, self.n_components)
        self.landmarks_, self.projector_ = back(landmarks), back(projector)
        return (own if landmarks is x else gram(self.kernel, self.gamma_, x, landmarks)) @ projector

    def _scaled(self, x: Tensor) -> Tensor:
        if self.scaling == "rows":
            return scale_rows(x)
        if self.scaling is None:
            return x
        return (x - _like(self.mean_, x)) / _like(self.scale_, x)

    def _features(self, X: Any) -> tuple[Tensor, Back]:
        check_is_fitted(self)
        x, back = self._samples(X, reset=False)
        return self._coordinates(self._scaled(x)), back

    def _coordinates(self, x: Tensor) -> Tensor:
        """What the frames act on, of scaled samples."""
        if self.kernel is not None:
            k = gram(self.kernel, self.gamma_, x, _like(self.landmarks_, x))
            x = k @ _like(self.projector_, x)
        if self.scaling == "whiten":
            x = (x - _like(self.middle_, x)) @ _like(self.whitener_, x)
        return x

    def _margins(self, z: Tensor) -> Tensor:
        frames, biases = mirrored(_like(self.frames_, z), _like(self.biases_, z))
        flat = z @ frames.mT.reshape(-1, z.shape[1]).mT
        return flat.view(len(z), *biases.shape) + biases


def _last_fall(costs: Sequence[float]) -> float:
    """By what share the objective fell in the last tenth of the steps."""
    steps = len(costs) - 1  # the first is the start's
    before = costs[-1 - -(-steps // 10)]
    return (before - costs[-1]) / max(before, 1e-300)


def _like(held: Any, x: Tensor) -> Tensor:
    """A fitted array as a tensor beside `x`."""
    if isinstance(held, np.ndarray) and not held.flags.writeable:  # mapped from a file, by joblib
        held = held.copy()
    return torch.as_tensor(held).to(x)
