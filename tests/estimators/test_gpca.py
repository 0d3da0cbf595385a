"""Subspace clustering by moments: planes are found, noise is taken out, labels are right."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from conformance.estimators import EstimatorSuite
from spanwise.estimators import GPCA
from spanwise.estimators.gpca import k_subspaces
from spanwise.linalg import principal_angles


def planes(k=3, d=6, dim=2, n=150, noise=0.0, seed=0):
    """Points on k random subspaces, their labels and bases."""
    g = np.random.default_rng(seed)
    bases = [np.linalg.qr(g.standard_normal((d, dim)))[0] for _ in range(k)]
    X = np.concatenate([g.standard_normal((n, dim)) @ A.T for A in bases])
    return X + noise * g.standard_normal(X.shape), np.repeat(np.arange(k), n), bases


def worst_angle(bases, found):
    found = torch.as_tensor(found)
    return max(
        min(float(principal_angles(torch.from_numpy(A), B).max()) for B in found) for A in bases
    )


@pytest.mark.parametrize("order", [4, 6])
def test_two_planes_without_noise_are_found_exactly_from_the_moment_alone(order):
    X, y, bases = planes(k=2)
    model = GPCA(2, 2, order=order, max_iter=0).fit(X)
    assert worst_angle(bases, model.subspaces_) < 1e-8  # of variances of zero, the root
    assert adjusted_rand_score(y, model.labels_) == 1
    assert model.inertia_ < 1e-12
    assert model.noise_variance_ < 1e-10


def test_more_planes_than_their_dimensions_fill_the_space_are_told_apart():
    X, y, _ = planes(k=6, d=9, noise=0.1)  # 12 dimensions of planes in 9
    model = GPCA(6, 2, n_init=2, n_random=2).fit(X)
    assert adjusted_rand_score(y, model.labels_) > 0.9
    assert adjusted_rand_score(y, KMeans(6, n_init=5, random_state=0).fit_predict(X)) < 0.2


def test_the_noise_variance_is_estimated_and_taken_out():
    X, _, bases = planes(noise=0.2, n=1500)
    model = GPCA(3, 2, n_init=2, max_iter=0).fit(X)
    assert abs(model.noise_variance_ - 0.04) < 0.004
    left_in = GPCA(3, 2, n_init=2, max_iter=0, noise_variance=None).fit(X)
    assert left_in.noise_variance_ == 0
    assert worst_angle(bases, model.subspaces_) < 0.08
    given = GPCA(3, 2, n_init=2, max_iter=0, noise_variance=0.04).fit(X)
    assert given.noise_variance_ == pytest.approx(0.04)


def test_order_six_takes_out_the_noise_that_order_four_finds():
    X, _, bases = planes(k=2, d=5, noise=0.3, n=1500)
    model = GPCA(2, 2, order=6, n_init=1, max_iter=0).fit(X)
    assert abs(model.noise_variance_ - 0.09) < 0.009
    assert worst_angle(bases, model.subspaces_) < 0.08  # what so many samples know
    assert (
        GPCA(2, 2, order=6, n_init=1, max_iter=0, noise_variance=None).fit(X).noise_variance_ == 0
    )


def test_k_subspaces_never_raises_the_inertia():
    X, _, _ = planes(k=4, d=8, dim=3, noise=0.1)
    model = GPCA(4, 3, n_init=2, n_random=2).fit(X)
    assert model.inertia_ <= model.moment_inertia_
    kept = GPCA(4, 3, n_init=2, max_iter=0).fit(X)
    assert kept.inertia_ == pytest.approx(kept.moment_inertia_)
    assert kept.n_iter_ == 0


def test_k_subspaces_stop_where_no_point_moves_and_keep_empty_ones():
    X, y, bases = planes(k=2)
    start = torch.from_numpy(np.stack([*bases, planes(k=1, seed=9)[2][0]]))
    subspaces, labels, turns = k_subspaces(torch.from_numpy(X), start, 50)
    assert turns == 1
    assert adjusted_rand_score(y, labels) == 1
    torch.testing.assert_close(subspaces[2], start[2])


def test_a_random_start_wins_only_by_a_smaller_inertia():
    g = np.random.default_rng(1)
    X = g.standard_normal((60, 6))  # no subspaces at all: the moment knows nothing
    alone = GPCA(3, 2, n_random=0).fit(X)
    model = GPCA(3, 2, n_random=20).fit(X)
    assert alone.from_moment_
    assert model.inertia_ <= alone.inertia_
    assert model.from_moment_ == (model.inertia_ == alone.inertia_)
    clear = GPCA(2, 2).fit(planes(k=2)[0])
    assert clear.from_moment_


def test_points_go_to_the_nearest_subspace():
    X, _, _ = planes(noise=0.05)
    model = GPCA(3, 2, n_init=2, n_random=2).fit(X)
    np.testing.assert_array_equal(model.predict(X), model.labels_)
    distances = model.transform(X)
    A = model.subspaces_[1]
    np.testing.assert_allclose(distances[:, 1], np.linalg.norm(X - X @ A @ A.T, axis=1), atol=1e-12)
    assert model.score(X) == pytest.approx(-model.inertia_)
    np.testing.assert_array_equal(distances.argmin(1), model.labels_)


def test_scale_changes_nothing_but_the_units():
    X, _, _ = planes(noise=0.05)
    one, other = (
        GPCA(3, 2, n_init=2, n_random=2).fit(X),
        GPCA(3, 2, n_init=2, n_random=2).fit(1e4 * X),
    )
    np.testing.assert_array_equal(one.labels_, other.labels_)
    assert other.noise_variance_ == pytest.approx(1e8 * one.noise_variance_, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_clusters": 0}, "n_clusters must be at least 1"),
        ({"subspace_dim": 6}, "must be below the number of features"),
        ({"n_clusters": 9, "subspace_dim": 3}, "Lower n_clusters or subspace_dim.*order=6"),
        ({"order": 5}, "order must be 4 or 6"),
        ({"noise_variance": "some"}, "must be a number, None"),
        ({"noise_variance": -1.0}, "must not be negative"),
        ({"max_iter": -1}, "max_iter must be at least 0"),
        ({"n_init": 0}, "n_init must be at least 1"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GPCA(**options).fit(planes()[0])


def test_points_on_fewer_subspaces_than_asked_for_are_refused():
    X, _, _ = planes(k=2, n=40)
    with pytest.raises(ValueError, match=r"of rank 9, that of X has rank 6: .* Lower n_clusters"):
        GPCA(3, 2).fit(X)
    with pytest.raises(ValueError, match="has rank 0"):
        GPCA(2, 2).fit(np.zeros((9, 6)))


class TestContract(EstimatorSuite):
    estimator = GPCA
    options: ClassVar = {"n_clusters": 2, "subspace_dim": 2, "n_init": 1, "n_random": 1}
    exceptions: ClassVar = {}
    elsewhere: ClassVar = {"subspace_dim": 1}
    no_checks = (
        "scikit-learn's checks fit two clusters in two features, which no fourth moment tells"
    )
