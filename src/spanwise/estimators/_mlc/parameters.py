"""What `MLC.fit` accepts."""

import math
import numbers
from collections.abc import Sequence
from typing import Any, Literal, get_args

from spanwise.estimators._mlc.sinkhorn import Affinity
from spanwise.estimators._mlc.spectral import check_clusters

Select = Literal["coding_bits", "rate_reduction"]


def check_counts(counts: Sequence[int], n: int) -> None:
    """Refuse numbers of clusters that the samples cannot have.

    Args:
        counts: Those that would be tried.
        n: Samples of one membership matrix.

    Raises:
        ValueError: If there are none, or one is out of range.
        TypeError: If one is not whole.
    """
    if not counts:
        raise ValueError(
            f"candidates must hold numbers up to n = {n}, the samples of one membership."
        )
    for count in counts:
        check_clusters(count, n)


def check_parameters(given: Any) -> None:
    """Refuse what is out of range whatever the samples are, before anything is changed.

    Args:
        given: The estimator.

    Raises:
        ValueError: If a parameter is out of range.
        TypeError: If `augment` is none of what it may be.
    """
    if isinstance(given.n_clusters, str) and given.n_clusters != "auto":
        raise ValueError(f"n_clusters must be a number or 'auto', got {given.n_clusters!r}.")
    for name, least in (
        ("views", 1), ("epochs", 0), ("batch_size", 2), ("patience", 1),
        ("max_samples", 2), ("n_init", 1),
    ):  # fmt: skip
        if getattr(given, name) < least:
            raise ValueError(f"{name} must be at least {least}, got {getattr(given, name)}.")
    for name in ("eps", "eta", "ssl_eps"):
        if not 0 < getattr(given, name) < math.inf:
            raise ValueError(f"{name} must be finite and above 0, got {getattr(given, name)}.")
    for name in (
        "gamma", "penalty", "lr", "ssl_lr", "ssl_weight", "weight_decay",
        "cluster_weight_decay", "tol",
    ):  # fmt: skip
        if not 0 <= getattr(given, name) < math.inf:
            raise ValueError(f"{name} must be finite and at least 0, got {getattr(given, name)}.")
    if given.n_features is not None and given.n_features < 1:
        raise ValueError(f"n_features must be None or at least 1, got {given.n_features}.")
    if not 0 < given.subspace_energy <= 1:
        raise ValueError(f"subspace_energy must lie in (0, 1], got {given.subspace_energy}.")
    if given.hidden is not None and any(width < 1 for width in given.hidden):
        raise ValueError(f"hidden must hold widths of at least 1, got {given.hidden}.")
    if given.ssl_epochs is not None and given.ssl_epochs < 0:
        raise ValueError(f"ssl_epochs must be None or at least 0, got {given.ssl_epochs}.")
    number = isinstance(given.augment, numbers.Real)
    if not (given.augment is None or number or callable(given.augment)):
        raise TypeError(
            "augment must be None, a number or a function of samples and a torch.Generator, "
            f"got {type(given.augment).__name__}."
        )
    if number and not 0 <= given.augment < math.inf:
        raise ValueError(f"augment must be finite and at least 0, got {given.augment}.")
    for name, known in (
        ("affinity", get_args(Affinity)),
        ("optimizer", ("adam", "sgd")),
        ("scaling", (None, "standard")),
        ("select", (None, *get_args(Select))),
    ):
        if (value := getattr(given, name)) not in known:
            words = ", ".join(map(repr, known))
            raise ValueError(f"{name} must be one of {words}, got {value!r}.")
