"""An outlier detector with PyOD's habits: high scores are outliers, labels are 0 and 1."""

import math
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from spanwise.estimators._base import Estimator


class PyodAdapter:
    """What PyOD's users expect, around an estimator that follows scikit-learn.

    Needs no PyOD. Scores have the opposite sign of `score_samples`.

    Args:
        estimator: Any outlier detector with `fit` and `score_samples`.
        contamination: Share of the training data above the threshold, in `(0, 0.5]`.

    Attributes:
        decision_scores_: Scores of the training data, higher for outliers.
        threshold_: Their quantile at `1 - contamination`.
        labels_: 1 for training data above the threshold, else 0.

    Raises:
        ValueError: If `contamination` is out of range.
    """

    decision_scores_: np.ndarray
    threshold_: float
    labels_: np.ndarray

    def __init__(self, estimator: Estimator, contamination: float = 0.1) -> None:
        if not 0 < contamination <= 0.5:
            raise ValueError(f"contamination must be in (0, 0.5], got {contamination}.")
        self.estimator = estimator
        self.contamination = contamination

    def fit(self, X: Any, y: Any = None) -> "PyodAdapter":
        """Fit the estimator to `X`, and find the threshold."""
        self.estimator.fit(X)  # pyrefly: ignore[missing-attribute]
        self.decision_scores_ = self.decision_function(X)
        self.threshold_ = float(np.quantile(self.decision_scores_, 1 - self.contamination))
        self.labels_ = (self.decision_scores_ > self.threshold_).astype(int)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores, higher for outliers."""
        scores = self.estimator.score_samples(X)  # pyrefly: ignore[missing-attribute]
        return -(scores.cpu().numpy() if isinstance(scores, Tensor) else np.asarray(scores))

    def predict(self, X: Any) -> np.ndarray:
        """1 for outliers, else 0."""
        return (self.decision_function(X) > self.threshold_).astype(int)

    def predict_proba(self, X: Any, method: Literal["linear", "unify"] = "linear") -> np.ndarray:
        """Columns: the probability to be an inlier, and an outlier.

        Args:
            X: Samples.
            method: `"linear"`: where the score lies between the least and the largest of the
                training data. `"unify"`: the error function of the standardised score.

        Raises:
            ValueError: If the method is unknown.
        """
        train, scores = self.decision_scores_, self.decision_function(X)
        if method == "linear":
            span = float(train.max() - train.min())
            outlier = (scores - train.min()) / (span or 1.0)
        elif method == "unify":
            z = (scores - train.mean()) / ((float(train.std()) or 1.0) * math.sqrt(2))
            outlier = torch.erf(torch.from_numpy(np.asarray(z, dtype=float))).numpy()
        else:
            raise ValueError(f'method must be "linear" or "unify", got {method!r}.')
        outlier = outlier.clip(0, 1)
        return np.stack([1 - outlier, outlier], axis=1)
