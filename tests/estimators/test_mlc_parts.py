"""The parts of MLC against explicit determinants, unrolled gradients, symmetries and limits."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from spanwise.estimators import (
    MLCLoss,
    SinkhornProjection,
    clustering_accuracy,
    coding_bits,
    coding_rate,
    image_shifts,
    numerical_rank,
    rate_reduction,
    spectral_labels,
    subspace_affinity,
    tcr_loss,
)
from spanwise.estimators._mlc import cluster_rate as module
from spanwise.estimators._mlc.cluster_rate import _Dense, _Gram, cluster_rate
from spanwise.estimators._mlc.network import build
from spanwise.estimators._mlc.packed import Layout
from spanwise.estimators._mlc.sinkhorn import affinity
from spanwise.estimators._mlc.spectral import check_clusters

F64 = torch.float64
N, D, EPS = 14, 5, 0.3


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=F64)


def unit(n=N, d=D, seed=0):
    return normalize(draw(n, d, seed=seed), dim=1)


def positive(n=N, k=N, seed=1):
    return torch.rand(n, k, generator=seeded(seed), dtype=F64)


def slogdet_rate(Z, eps=EPS):
    n, d = Z.shape
    return torch.linalg.slogdet(torch.eye(d, dtype=F64) + d / (n * eps**2) * Z.mT @ Z)[1] / 2


def slogdet_cluster_rate(Z, G, eps=EPS):
    """As released, with exact column sums."""
    (n, d), t = Z.shape, G.sum(0)
    inside = Z.mT @ (G.mT[:, :, None] * Z)
    matrices = torch.eye(d, dtype=F64) + (d / (t * eps**2))[:, None, None] * inside
    return (t / (2 * n) * torch.linalg.slogdet(matrices)[1]).sum()


def subspaces(k=3, r=2, d=12, each=20, seed=0):
    """Points on random r-planes, and whose they are."""
    bases = torch.linalg.qr(draw(k, d, r, seed=seed))[0]
    points = normalize(draw(k, each, r, seed=seed + 1) @ bases.mT, dim=2)
    return points.flatten(0, 1), torch.arange(k).repeat_interleave(each)


def orthogonal_subspaces(k=3, r=2, d=12, each=20, seed=0):
    basis = torch.linalg.qr(draw(d, k * r, seed=seed))[0]
    points = draw(k, each, r, seed=seed + 1) @ basis.mT.reshape(k, r, d)
    return normalize(points, dim=2).flatten(0, 1), torch.arange(k).repeat_interleave(each)


def by_labels(labels):
    """Gamma_ij = 1 / m within a cluster of m."""
    same = (labels[:, None] == labels).to(F64)
    return same / same.sum(0)


class TestRates:
    def test_are_explicit_determinants(self):
        Z, G = unit(), positive()
        assert float(coding_rate(Z, EPS)) == pytest.approx(float(slogdet_rate(Z)), abs=1e-12)
        expected = slogdet_rate(Z) - slogdet_cluster_rate(Z, G)
        assert float(rate_reduction(Z, G, EPS)) == pytest.approx(float(expected), abs=1e-11)
        loss = MLCLoss(EPS, gamma=0.7, penalty=0.1)(Z, G)
        expected = 0.7 * slogdet_cluster_rate(Z, G) - slogdet_rate(Z) + 0.05 * (G**2).sum()
        assert float(loss) == pytest.approx(float(expected), abs=1e-11)

    def test_coding_rate_is_taken_on_the_smaller_side_and_by_batch(self):
        Z = draw(3, 4, 9)
        found = coding_rate(Z, EPS)
        assert found.shape == (3,)
        for held, value in zip(Z, found, strict=True):
            assert float(value) == pytest.approx(float(slogdet_rate(held)), abs=1e-12)

    @pytest.mark.parametrize("d", [5, 32, 33, 70])
    @pytest.mark.parametrize("function", [_Dense, _Gram])
    @pytest.mark.parametrize("block", [2**24, 3000])
    def test_closed_form_gradients_are_autograds(self, d, function, block, monkeypatch):
        monkeypatch.setattr(module, "BLOCK", block)
        monkeypatch.setattr(module, "CACHED", block)
        Z, G = unit(d=d).requires_grad_(), positive().requires_grad_()
        ours, theirs = function.apply(Z, G, EPS, N), slogdet_cluster_rate(Z, G)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
        found, expected = (torch.autograd.grad(loss, (Z, G)) for loss in (ours, theirs))
        for slope, truth in zip(found, expected, strict=True):
            torch.testing.assert_close(slope, truth, rtol=1e-9, atol=1e-11)

    @pytest.mark.parametrize("d", [5, 20])
    @pytest.mark.parametrize("options", [{}, {"columns": torch.tensor([1, 4, 5])}, {"top": 4}])
    def test_pass_gradcheck(self, d, options):
        Z, G = unit(6, d).requires_grad_(), positive(6, 6).requires_grad_()
        assert torch.autograd.gradcheck(
            lambda z, g: cluster_rate(z, g, EPS, **options), (Z, G), fast_mode=d > N
        )

    def test_only_what_is_wanted_is_differentiated(self):
        Z, G = unit(), positive().requires_grad_()
        cluster_rate(Z, G, EPS).backward()
        assert G.grad is not None
        Z, G = unit().requires_grad_(), positive()
        cluster_rate(Z, G, EPS).backward()
        assert Z.grad is not None

    def test_one_hot_columns_labels_and_hard_memberships_are_one_and_mcr2(self):
        Z, labels = subspaces()
        d, expected = Z.shape[1], 0.0
        for label in range(3):
            part = Z[labels == label]
            expected += len(part) / len(Z) * float(slogdet_rate(part))
        mcr2 = float(slogdet_rate(Z)) - expected
        hot = torch.nn.functional.one_hot(labels).to(F64)
        for membership in (labels, hot, by_labels(labels), labels + 7):
            assert float(rate_reduction(Z, membership, EPS)) == pytest.approx(mcr2, abs=1e-10)
        assert d == 12

    def test_an_empty_cluster_counts_nothing(self):
        Z, labels = subspaces()
        hot = torch.nn.functional.one_hot(labels, 5).to(F64).requires_grad_()
        found = cluster_rate(Z, hot, EPS)
        found.backward()
        assert torch.isfinite(hot.grad).all()
        expected = cluster_rate(Z, hot[:, :3], EPS)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)

    @pytest.mark.filterwarnings("ignore:the membership did not converge")
    @pytest.mark.parametrize("eta", [0.05, 0.2, 5.0])
    def test_reduction_is_not_negative_for_doubly_stochastic_memberships(self, eta):
        for seed in range(5):
            Z = unit(seed=seed)
            K = draw(N, N, seed=seed + 50)
            G = SinkhornProjection(eta, tol=1e-8)(K + K.mT)
            assert float(rate_reduction(Z, G, EPS)) >= -1e-6

    def test_stay_when_features_are_turned(self):
        Z, q = unit(), torch.linalg.qr(draw(D, D, seed=3))[0]
        G = SinkhornProjection(0.2, tol=1e-13)(affinity(Z, "abs"))
        turned = SinkhornProjection(0.2, tol=1e-13)(affinity(Z @ q, "abs"))
        torch.testing.assert_close(turned, G, rtol=0, atol=1e-10)
        for whole in (coding_rate, lambda z, eps: rate_reduction(z, G, eps)):
            assert float(whole(Z @ q, EPS)) == pytest.approx(float(whole(Z, EPS)), abs=1e-10)

    def test_rate_is_bounded_on_the_sphere_and_reaches_it_for_a_tight_frame(self):
        bound = D / 2 * math.log(1 + 1 / EPS**2)
        for seed in range(5):
            assert float(coding_rate(unit(seed=seed), EPS)) < bound
        frame = torch.eye(D, dtype=F64).repeat(4, 1)
        assert float(coding_rate(frame, EPS)) == pytest.approx(bound, abs=1e-12)

    def test_eps_is_not_its_square(self):
        Z = unit()
        expected = torch.logdet(torch.eye(D, dtype=F64) + D / (N * 0.09) * Z.mT @ Z) / 2
        assert float(coding_rate(Z, 0.3)) == pytest.approx(float(expected), abs=1e-12)

    def test_sampled_columns_are_right_on_average(self):
        Z, G = unit(), positive(k=6)
        pairs = [cluster_rate(Z, G, EPS, columns=torch.tensor([i, j]))
                 for i in range(6) for j in range(6) if i != j]  # fmt: skip
        mean = torch.stack(pairs).mean()
        torch.testing.assert_close(mean, cluster_rate(Z, G, EPS), rtol=1e-12, atol=0)
        drawn = MLCLoss(EPS, columns=2)
        first = drawn(Z, G, generator=seeded(4))
        assert float(first) == float(drawn(Z, G, generator=seeded(4)))
        assert float(first) != float(drawn(Z, G, generator=seeded(5)))
        # Without a generator too each call draws its own: a training sees all columns.
        assert len({float(drawn(Z, G)) for _ in range(4)}) > 1

    def test_the_largest_entries_suffice_where_the_others_are_zero(self):
        Z, labels = subspaces(each=5)
        G = by_labels(labels)
        for d in (3, 12):  # either side of the five entries
            whole, part = (cluster_rate(Z[:, :d], G, EPS, top=t) for t in (None, 5))
            torch.testing.assert_close(part, whole, rtol=1e-10, atol=0)

    def test_float32_is_near_float64_and_half_precision_is_lifted(self):
        Z, G = unit(64, 40), positive(64, 64)
        expected = float(rate_reduction(Z, G, EPS))
        assert float(rate_reduction(Z.float(), G.float(), EPS)) == pytest.approx(expected, rel=1e-4)
        assert coding_rate(Z.half(), EPS).dtype == torch.float32
        half = rate_reduction(Z.half(), G.half(), EPS)
        assert half.dtype == torch.float32
        assert float(half) == pytest.approx(expected, rel=1e-2)

    @pytest.mark.bad_input
    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: coding_rate(unit(), 0.0), "eps must be finite and above 0"),
            (lambda: coding_rate(unit() * float("nan"), EPS), "NaN or infinity"),
            (lambda: coding_rate(unit()[:0], EPS), "must have rows"),
            (lambda: rate_reduction(unit(), positive(3, 3), EPS), "n = 14"),
            (lambda: rate_reduction(unit(), -positive(), EPS), "must not be negative"),
            (lambda: rate_reduction(unit(), positive() / 0.0, EPS), "must be finite"),
            (lambda: rate_reduction(unit(), positive() * math.nan, EPS), "must be finite"),
            (lambda: rate_reduction(unit(), positive()[:, :0], EPS), "n = 14"),
            (lambda: coding_bits(unit(), torch.arange(3), EPS), r"labels must be \(14,\)"),
            (lambda: subspace_affinity(unit(), torch.arange(3)), r"labels must be \(14,\)"),
            (lambda: tcr_loss(unit(), unit(), EPS, -1.0), "weight must be at least 0"),
            (lambda: image_shifts(6, 5, -1), "pixels and scale at least 0"),
            (lambda: image_shifts(6, 5)(unit(), seeded()), "6 x 5 = 30 pixels, got 5"),
            (lambda: MLCLoss(-1.0), "eps must be above 0"),
            (lambda: MLCLoss(gamma=-1.0), "gamma must be at least 0"),
            (lambda: MLCLoss(columns=0), "columns must be None or at least 1"),
            (lambda: tcr_loss(unit(), unit(3), EPS), "one shape"),
        ],
    )
    def test_bad_input_is_named(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()


class TestPacked:
    @pytest.mark.parametrize("d", [1, 6, 32, 45, 100])
    def test_holds_half_a_matrix_and_its_inner_products(self, d):
        z, w = draw(4, d), draw(4, d, seed=1)
        layout = Layout(d, z)
        assert layout.length == d * (d + 1) // 2
        inner = (layout.outer(z) * layout.outer(w)).sum(1)
        torch.testing.assert_close(inner, (z * w).sum(1) ** 2)
        torch.testing.assert_close(layout.times(layout.outer(z), w), (z * w).sum(1)[:, None] * z)

    @pytest.mark.parametrize("d", [1, 33, 100])
    def test_inverts_one_plus_in_place(self, d):
        z = draw(3, d) / d**0.5
        layout = Layout(d, z)
        packed = layout.outer(z).add_(0.5 * layout.outer(draw(3, d, seed=1)))
        matrices = torch.stack([layout.times(packed, one.expand(3, -1)) for one in torch.eye(d, dtype=F64)], 2)  # fmt: skip  # noqa: E501
        whole = matrices + torch.eye(d, dtype=F64)
        logdet, trace = layout.invert_one_plus(packed, inverse=True)
        torch.testing.assert_close(logdet, torch.linalg.slogdet(whole)[1])
        inverse = torch.linalg.inv(whole)
        torch.testing.assert_close(trace, inverse.diagonal(dim1=-2, dim2=-1).sum(-1))
        torch.testing.assert_close(layout.times(packed, z), (inverse @ z[..., None])[..., 0])


class TestSinkhorn:
    @pytest.mark.parametrize("kind", ["abs", "linear"])
    def test_is_doubly_stochastic_symmetric_and_equivariant(self, kind):
        K = affinity(unit(), kind)
        G = SinkhornProjection(0.175)(K)
        assert (G >= 0).all()
        one = torch.ones(N, dtype=F64)
        torch.testing.assert_close(G.sum(0), one, rtol=0, atol=1e-5)
        torch.testing.assert_close(G.sum(1), one, rtol=0, atol=1e-5)
        torch.testing.assert_close(G, G.mT, rtol=0, atol=1e-5)
        order = torch.randperm(N, generator=seeded())
        moved = SinkhornProjection(0.175)(K[order][:, order])
        torch.testing.assert_close(moved, G[order][:, order], rtol=0, atol=1e-6)

    def test_is_uniform_when_hot_and_a_permutation_when_cold(self):
        K = affinity(unit(), "linear")
        hot, cold = SinkhornProjection(1e5)(K), SinkhornProjection(1e-3)(K)
        torch.testing.assert_close(hot, torch.full_like(hot, 1 / N), rtol=0, atol=1e-5)
        torch.testing.assert_close(cold, torch.eye(N, dtype=F64), rtol=0, atol=1e-6)

    def test_adding_to_rows_and_columns_changes_nothing(self):
        K, a, b = draw(N, N), draw(N, seed=1), draw(N, seed=2)
        layer = SinkhornProjection(0.5, tol=1e-12, n_iter=100_000)
        moved = layer(K + a[:, None] + b)
        torch.testing.assert_close(moved, layer(K), rtol=0, atol=1e-9)

    @pytest.mark.parametrize("symmetric", [True, False])
    def test_implicit_gradient_is_that_of_all_steps(self, symmetric):
        C, W = unit().requires_grad_(), draw(N, N, seed=5)
        K = C @ (C.mT if symmetric else draw(D, N, seed=6) / 3)
        slopes = {}
        for grad in ("implicit", "unrolled", "truncated"):
            G = SinkhornProjection(0.2, grad=grad, tol=1e-14, n_iter=20_000)(K)
            (slopes[grad],) = torch.autograd.grad((G * W).sum(), C, retain_graph=True)
        torch.testing.assert_close(slopes["implicit"], slopes["unrolled"], rtol=1e-6, atol=1e-9)
        # What the released code does is no approximation of it.
        gap = (slopes["truncated"] - slopes["unrolled"]).norm() / slopes["unrolled"].norm()
        assert gap > 0.3

    @pytest.mark.parametrize("symmetric", [True, False])
    def test_passes_gradcheck(self, symmetric):
        layer = SinkhornProjection(0.7, tol=1e-12, n_iter=10_000)

        def through(c):
            return layer(c @ (c.mT if symmetric else draw(3, 6, seed=9)))

        assert torch.autograd.gradcheck(through, (unit(6, 3).requires_grad_(),))

    def test_five_half_steps_leave_columns_off_by_percents(self):
        K = affinity(unit(200, 4), "abs")
        G = SinkhornProjection(0.05, n_iter=5, grad="truncated")(K)
        torch.testing.assert_close(G.sum(1), torch.ones(200, dtype=F64), rtol=0, atol=1e-12)
        assert float((G.sum(0) - 1).abs().max()) > 0.01
        exact = SinkhornProjection(0.05)(K)
        assert float((exact.sum(0) - 1).abs().max()) < 1e-5

    def test_truncated_steps_are_the_released_ones(self):
        K = affinity(unit(), "abs")
        u = v = torch.zeros(N, dtype=F64)
        for step in range(5):  # as released: marginals 1/n, potentials in units of K
            if step % 2 == 0:
                inner = (K + u[:, None] + v) / 0.175
                u = 0.175 * (-math.log(N) - torch.logsumexp(inner, 1)) + u
            else:
                inner = (K + u[:, None] + v) / 0.175
                v = 0.175 * (-math.log(N) - torch.logsumexp(inner, 0)) + v
        expected = N * ((K + u[:, None] + v) / 0.175).exp()
        found = SinkhornProjection(0.175, n_iter=5, grad="truncated")(K)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)

    def test_too_few_steps_are_told_with_the_marginal_error(self):
        K = draw(N, N)
        with pytest.warns(RuntimeWarning, match=r"in n_iter = 2 half-steps: .* within .*e"):
            SinkhornProjection(0.1, n_iter=2)(K)
        # Near is not there: ten times the tolerance is told.
        with pytest.warns(RuntimeWarning, match=r"within \d\.\de-05 only"):
            SinkhornProjection(1.0, n_iter=12)(K)

    def test_a_single_sample_is_its_own_cluster(self):
        assert SinkhornProjection()(torch.ones(1, 1)).tolist() == [[1.0]]

    @pytest.mark.bad_input
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"eta": 0.0}, "eta must be finite and above 0"),
            ({"n_iter": 0}, "n_iter must be at least 1"),
            ({"tol": -1.0}, "tol must be at least 0"),
            ({"grad": "exact"}, "grad must be one of 'implicit', 'unrolled', 'truncated'"),
        ],
    )
    def test_bad_options_are_named(self, options, message):
        with pytest.raises(ValueError, match=message):
            SinkhornProjection(**options)

    @pytest.mark.bad_input
    def test_bad_affinities_are_named(self):
        with pytest.raises(ValueError, match="must be square"):
            SinkhornProjection()(draw(3, 4))
        with pytest.raises(ValueError, match="affinity must be one of 'abs', 'linear'"):
            affinity(unit(), "cosine")
        for grad in ("implicit", "unrolled"):
            with pytest.raises(ValueError, match=r"K must be finite .* holds NaN or infinity"):
                SinkhornProjection(grad=grad)(draw(3, 3) * float("inf"))
            with pytest.raises(ValueError, match=r"K must be .* at least one sample"):
                SinkhornProjection(grad=grad)(draw(0, 0))


class TestLabels:
    def test_orthogonal_subspaces_are_found_and_preferred(self):
        Z, labels = orthogonal_subspaces()
        G = SinkhornProjection(0.05)(affinity(Z, "abs"))
        assert clustering_accuracy(labels, spectral_labels(G, 3, random_state=0)) == 1.0
        loss = MLCLoss(EPS)
        uniform = torch.full_like(G, 1 / len(Z))
        assert float(loss(Z, by_labels(labels))) < float(loss(Z, uniform))

    def test_coding_bits_are_fewest_at_the_true_number(self):
        Z, _ = orthogonal_subspaces(k=4, r=2, d=10, each=40)
        G = SinkhornProjection(0.05)(affinity(Z, "abs"))
        bits = {k: coding_bits(Z, spectral_labels(G, k), 0.1**0.5) for k in range(2, 9)}
        assert min(bits, key=bits.get) == 4

    def test_coding_bits_are_their_formula(self):
        Z, labels = subspaces()
        expected = 0.0
        for label in range(3):
            part = Z[labels == label]
            m, d = part.shape
            expected += (m + d) * float(slogdet_rate(part)) - m * math.log(m / len(Z))
        assert coding_bits(Z, labels, EPS) == pytest.approx(expected, rel=1e-12)

    def test_clusters_that_do_not_touch_are_all_found(self):
        # Their eigenvalues are equal: Krylov methods miss some.
        Z, labels = orthogonal_subspaces(k=5, d=12, each=40)
        found = spectral_labels(SinkhornProjection(0.02)(affinity(Z, "abs")), 5)
        assert clustering_accuracy(labels, found) == 1.0

    def test_labels_leave_no_number_out_where_samples_are_alike(self):
        G = by_labels(torch.arange(3).repeat_interleave(4))
        found = spectral_labels(G, 5, n_init=1)
        assert found.unique().tolist() == list(range(len(found.unique())))
        with pytest.raises(TypeError, match=r"n_clusters must be a whole number, got 2\.5"):
            check_clusters(2.5, 12)

    def test_accuracy_takes_the_best_match_not_a_greedy_one(self):
        # Greedy would give cluster 0 to class 0 (3 of 8) and be left with nothing better than 3+0.
        truth = [0, 0, 0, 1, 1, 0, 0, 0]
        found = [0, 0, 0, 0, 0, 1, 1, 2]
        assert clustering_accuracy(truth, found) == pytest.approx(4 / 8)
        assert clustering_accuracy(["a", "b", "b"], torch.tensor([5, 2, 2])) == 1.0

    def test_rank_holds_the_energy_asked_for(self):
        Z = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.0], dtype=F64))
        assert numerical_rank(Z, 9 / 14) == 1
        assert numerical_rank(Z, 0.9) == 2
        assert numerical_rank(Z, 1.0) == 3
        assert numerical_rank(torch.stack([Z, torch.eye(4, dtype=F64)]), 1.0).tolist() == [3, 4]
        assert numerical_rank(0 * Z) == numerical_rank(Z[:0]) == 0

    def test_subspace_affinity_is_zero_for_orthogonal_and_one_for_equal_ones(self):
        Z, labels = orthogonal_subspaces()
        torch.testing.assert_close(
            subspace_affinity(Z, labels), torch.eye(3, dtype=F64), rtol=0, atol=1e-12
        )
        merged = torch.where(labels == 2, 1, labels)
        split = torch.where(torch.arange(60) % 2 == 0, 0, 1)
        assert float(subspace_affinity(Z, merged)[0, 1]) < 1e-12
        assert float(subspace_affinity(Z, split, 1.0)[0, 1]) == pytest.approx(1.0)

    @pytest.mark.bad_input
    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: spectral_labels(torch.eye(4), 1), r"must lie in \[2, 4\]"),
            (lambda: spectral_labels(torch.eye(4), 5), r"must lie in \[2, 4\]"),
            (lambda: spectral_labels(-torch.eye(4), 2), "not negative"),
            (lambda: numerical_rank(torch.eye(3), 0.0), "energy must lie in"),
            (lambda: clustering_accuracy([0, 1], [0]), "one equal axis"),
        ],
    )
    def test_bad_input_is_named(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()


class TestNetwork:
    def test_after_the_heads_copy_both_affinities_are_equal_bit_for_bit(self):
        network = build(None, draw(20, 7).float(), (16, 16), 5, seeded())
        with torch.no_grad():
            Z, C = network(draw(20, 7).float())
            assert not torch.equal(Z, C)
            network.copy_heads()
            Z, C = network(draw(20, 7).float())
        assert torch.equal(affinity(C, "abs"), affinity(Z, "abs"))

    def test_heads_are_of_one_shape_and_copied_not_shared(self):
        network = build(None, draw(20, 7).float(), (16,), 5, seeded())
        network.copy_heads()
        assert network.feature.weight.shape == network.cluster.weight.shape == (5, 16)
        with torch.no_grad():
            network.cluster.weight.zero_()
        assert bool(network.feature.weight.any())

    def test_a_seed_gives_the_same_network_in_every_precision(self):
        single, double = (
            build(None, draw(20, 7).to(dtype), (16,), 5, seeded(3))
            for dtype in (torch.float32, F64)
        )
        torch.testing.assert_close(single.feature.weight.double(), double.feature.weight)

    def test_tcr_spreads_samples_and_keeps_views_together(self):
        Z = unit()
        assert float(tcr_loss(Z, Z, EPS, 2.0)) == pytest.approx(float(-slogdet_rate(Z) - 2.0))
        other = normalize(Z + 0.3 * unit(seed=4), dim=1)
        assert float(tcr_loss(Z, other, EPS, 20.0)) > float(tcr_loss(Z, Z, EPS, 20.0))


def test_shifted_pictures_move_by_a_pixel_and_keep_their_ink_inside():
    image = torch.zeros(1, 6, 5)
    image[0, 2, 2] = 1
    rows = image.view(1, 30).expand(200, 30)
    moved = image_shifts(6, 5)(rows, seeded())
    places = moved.view(200, 6, 5).nonzero()[:, 1:]
    assert moved.sum() == 200
    assert {tuple(p.tolist()) for p in places} == {(i, j) for i in (1, 2, 3) for j in (1, 2, 3)}
    noisy = image_shifts(6, 5, 0, 0.5)(rows, seeded())
    assert np.isclose(float((noisy - rows).std()), 0.5 * float(rows.std()), rtol=0.1)
