"""The Grassmann manifold against matrix exponentials, SVD formulas and identities."""

import math

import pytest
import scipy.linalg
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.bases import defect, gap
from spanwise.linalg import grassmann, orthonormalize, principal_angles

F64 = torch.float64


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def point(d=14, r=4, seed=0, dtype=F64, batch=()):
    return grassmann.random_point(d, r, generator=seeded(seed), dtype=dtype, batch=batch)


def tangent(x, angle=None, seed=1):
    return grassmann.random_tangent(x, angle=angle, generator=seeded(seed))


def rotation(x, h):
    """The rotation of R^d that carries X along the geodesic of H, by a dense exponential."""
    return torch.from_numpy(scipy.linalg.expm((h @ x.mT - x @ h.mT).numpy()))


@st.composite
def shapes(draw):
    d = draw(st.integers(2, 12))
    return d, draw(st.integers(1, d - 1)), draw(st.integers(0, 10**6))


class TestProjection:
    @given(shapes())
    @settings(max_examples=30, deadline=None)
    def test_is_horizontal_and_idempotent(self, shape):
        d, r, seed = shape
        x = point(d, r, seed)
        u = torch.randn(d, r, generator=seeded(seed + 1), dtype=F64)
        h = grassmann.projection(x, u)
        assert (x.mT @ h).abs().max() < 1e-14
        torch.testing.assert_close(grassmann.projection(x, h), h, atol=1e-14, rtol=0)
        # u - h lies inside X, so h is the nearest horizontal matrix.
        assert gap(torch.linalg.qr(x)[0], x) < 1e-12
        assert ((u - h) - x @ (x.mT @ (u - h))).norm() < 1e-12 * u.norm()

    def test_keeps_digits_where_almost_nothing_is_horizontal(self):
        x = point()
        h = tangent(x) * 1e-9
        got = grassmann.projection(x, x @ torch.randn(4, 4, dtype=F64) + h)
        assert (x.mT @ got).norm() < 1e-13 * got.norm()
        assert (got - h).norm() < 1e-5 * h.norm()


class TestExp:
    @pytest.mark.parametrize("angle", [1e-9, 1e-3, 0.3, 1.5, 4.0])
    @pytest.mark.parametrize(("d", "r"), [(14, 4), (6, 5), (5, 1), (30, 15)])
    def test_is_the_dense_rotation_applied_to_the_basis(self, d, r, angle):
        x = point(d, r)
        h = tangent(x, angle)
        torch.testing.assert_close(
            grassmann.exp(x, h), rotation(x, h) @ x, atol=1e-12 * max(1, angle), rtol=0
        )

    @given(shapes(), st.floats(0, 3))
    @settings(max_examples=30, deadline=None)
    def test_is_the_textbook_formula_with_an_svd(self, shape, angle):
        d, r, seed = shape
        x = point(d, r, seed)
        h = tangent(x, angle, seed + 1)
        u, s, vh = torch.linalg.svd(h, full_matrices=False)
        expected = x @ vh.mT @ s.cos().diag() @ vh + u @ s.sin().diag() @ vh
        torch.testing.assert_close(grassmann.exp(x, h), expected, atol=1e-12, rtol=0)

    @pytest.mark.parametrize("angle", [1e-6, 0.3, math.pi / 2])
    @pytest.mark.parametrize(("d", "r"), [(40, 6), (10, 8)])
    def test_angles_are_the_singular_values_scaled_to_the_largest(self, d, r, angle):
        x = point(d, r)
        h = tangent(x)
        moved = grassmann.exp(x, h, angle=angle)
        s = torch.linalg.svdvals(h)
        expected = (angle * s / s[0]).flip(0)
        torch.testing.assert_close(principal_angles(x, moved), expected, atol=1e-10, rtol=0)
        torch.testing.assert_close(moved, grassmann.exp(x, h * (angle / s[0])), atol=1e-13, rtol=0)

    def test_no_direction_and_no_angle_stay_where_they_are(self):
        x = point()
        zero = torch.zeros_like(x)
        for moved in (
            grassmann.exp(x, zero),
            grassmann.exp(x, zero, angle=0.3),
            grassmann.exp(x, tangent(x), angle=0.0),
        ):
            torch.testing.assert_close(moved, x, atol=1e-14, rtol=0)

    def test_two_halves_of_a_geodesic_are_the_whole(self):
        x = point()
        h = tangent(x, 1.2)
        half = grassmann.exp(x, h / 2)
        rest = grassmann.transport(x, h / 2, h / 2)
        torch.testing.assert_close(
            grassmann.exp(half, rest), grassmann.exp(x, h), atol=1e-12, rtol=0
        )

    @pytest.mark.slow
    def test_ten_thousand_moves_stay_orthonormal(self):
        x = point(24, 6, dtype=torch.float32)
        directions = torch.randn(100, 24, 6, generator=seeded(2))
        for i in range(10_000):
            h = directions[i % 100]
            x = grassmann.exp(x, h - x @ (x.mT @ h), angle=0.3)
        assert defect(x) < 1e-6

    @pytest.mark.parametrize("size", [1e-300, 1e-160, 1e160])
    def test_only_the_direction_matters_where_the_angle_is_given(self, size):
        x = point()
        h = tangent(x)
        torch.testing.assert_close(
            grassmann.exp(x, size * h, angle=0.3),
            grassmann.exp(x, h, angle=0.3),
            atol=1e-13,
            rtol=0,
        )

    def test_rotated_columns_give_the_same_rotated_end(self):
        x = point()
        h = tangent(x, 0.8)
        q = point(4, 4, seed=5)
        torch.testing.assert_close(
            grassmann.exp(x @ q, h @ q), grassmann.exp(x, h) @ q, atol=1e-12, rtol=0
        )


class TestMove:
    @pytest.mark.parametrize(("d", "r"), [(14, 4), (6, 5), (5, 1)])
    def test_is_exp_of_the_horizontal_part(self, d, r):
        x = point(d, r)
        u = torch.randn(d, r, generator=seeded(1), dtype=F64)
        expected = grassmann.exp(x, grassmann.projection(x, u), angle=0.4)
        torch.testing.assert_close(grassmann.move(x, u, 0.4), expected, atol=1e-13, rtol=0)

    @pytest.mark.parametrize("size", [1e-8, 1e-300, 1e300])
    def test_keeps_orthonormal_where_the_horizontal_part_is_small(self, size):
        x = point()
        h = tangent(x)
        moved = grassmann.move(x, size * h + (size * 1e6) * x, 0.4)
        # What u has inside X leaves 1e-10 of its size beside the direction.
        torch.testing.assert_close(moved, grassmann.exp(x, h, angle=0.4), atol=1e-8, rtol=0)
        assert defect(moved) < 1e-14

    @pytest.mark.parametrize("angle", [0.0, 1e-3, 0.3, math.pi / 2, 2.0])
    @pytest.mark.parametrize(("d", "r"), [(40, 12), (12, 4), (10, 7)])
    def test_is_the_textbook_formula_of_a_gaussian(self, d, r, angle):
        # Up to a right angle, and with enough of u outside X, by power series, else eigenvectors.
        x = point(d, r)
        u = torch.randn(d, r, generator=seeded(1), dtype=F64)
        left, s, vh = torch.linalg.svd(u - x @ (x.mT @ u), full_matrices=False)
        t = angle * s / s[0]
        expected = x @ vh.mT @ t.cos().diag() @ vh + left @ t.sin().diag() @ vh
        moved = grassmann.move(x, u, angle)
        torch.testing.assert_close(moved, expected, atol=1e-13, rtol=0)

    def test_both_ways_of_computing_it_agree_where_they_meet(self):
        x = point(40, 12)
        h, inside = tangent(x), x @ torch.randn(12, 12, generator=seeded(3), dtype=F64)
        scale = math.sqrt(3) * h.norm() / inside.norm()
        for share in (0.999, 1.001):  # of u's squared norm three quarters lie inside X
            moved = grassmann.move(x, h + share * scale * inside, 0.4)
            torch.testing.assert_close(moved, grassmann.exp(x, h, angle=0.4), atol=1e-13, rtol=0)

    @pytest.mark.parametrize("angle", [0.3, 1.5])
    @pytest.mark.parametrize(("d", "r"), [(40, 12), (10, 7)])
    def test_takes_the_drift_out_of_the_basis(self, d, r, angle):
        # Whatever rounding does in one move, the next undoes: a defect e becomes e^2.
        x = point(d, r)
        drifted = x + 1e-6 * torch.randn(d, r, generator=seeded(2), dtype=F64)
        u = torch.randn(d, r, generator=seeded(1), dtype=F64)
        assert defect(drifted) > 1e-7
        assert defect(grassmann.move(drifted, u, angle)) < 1e-10

    @pytest.mark.parametrize("size", [1e-300, 1e-150, 1e-30, 1e30, 1e160, 1e300])
    def test_only_the_direction_matters(self, size):
        x = point(12, 4)
        u = torch.randn(12, 4, generator=seeded(1), dtype=F64)
        moved = grassmann.move(x, size * u, 0.3)
        torch.testing.assert_close(moved, grassmann.move(x, u, 0.3), atol=1e-13, rtol=0)

    def test_of_a_stack_moves_each_as_it_would_alone(self):
        x = point(12, 4, batch=(3,))
        u = torch.randn(3, 12, 4, generator=seeded(1), dtype=F64)
        u[1] = x[1] @ torch.randn(4, 4, generator=seeded(2), dtype=F64) + 1e-3 * u[1]
        moved = grassmann.move(x, u, 0.3)
        for i in range(3):
            alone = grassmann.move(x[i], u[i], 0.3)
            # The horizontal part of the second is a thousandth: so much larger is its rounding.
            torch.testing.assert_close(moved[i], alone, atol=1e-12, rtol=0)


class TestLogAndDist:
    @pytest.mark.parametrize("angle", [1e-9, 1e-4, 0.5, 1.57])
    @pytest.mark.parametrize(("d", "r"), [(14, 4), (6, 5), (5, 1)])
    def test_undoes_exp_below_a_right_angle(self, d, r, angle):
        x = point(d, r)
        h = tangent(x, angle)
        moved = grassmann.exp(x, h)
        # The cosine of 1.57 is 8e-4: rounding of the overlap comes back 1e3 times larger.
        torch.testing.assert_close(grassmann.log(x, moved), h, atol=1e-12, rtol=0)
        assert float(grassmann.dist(x, moved)) == pytest.approx(float(h.norm()), abs=1e-12)

    @given(shapes())
    @settings(max_examples=30, deadline=None)
    def test_reaches_any_other_point_by_a_shortest_way(self, shape):
        d, r, seed = shape
        x, y = point(d, r, seed), point(d, r, seed + 1)
        h = grassmann.log(x, y)
        assert (x.mT @ h).abs().max() < 1e-13
        assert gap(grassmann.exp(x, h), y) < 1e-10
        assert float(h.norm()) == pytest.approx(float(grassmann.dist(x, y)), abs=1e-10)
        assert torch.linalg.svdvals(h)[0] <= math.pi / 2 + 1e-12

    def test_at_a_right_angle_finds_one_of_the_shortest(self):
        eye = torch.eye(6, dtype=F64)
        h = grassmann.log(eye[:, :2], eye[:, [0, 3]])
        assert float(h.norm()) == pytest.approx(math.pi / 2, abs=1e-14)
        assert gap(grassmann.exp(eye[:, :2], h), eye[:, [0, 3]]) < 1e-14

    def test_of_a_point_with_itself_is_zero_in_any_basis(self):
        x = point()
        y = x @ point(4, 4, seed=3)
        assert grassmann.log(x, y).norm() < 1e-14
        assert grassmann.dist(x, y) < 1e-14

    def test_distance_is_a_metric(self):
        x, y, z = (point(seed=i) for i in range(3))
        d = grassmann.dist
        torch.testing.assert_close(d(x, y), d(y, x), atol=1e-13, rtol=0)
        assert d(x, z) <= d(x, y) + d(y, z)
        q = point(14, 14, seed=9)
        torch.testing.assert_close(d(q @ x, q @ y), d(x, y), atol=1e-12, rtol=0)


class TestTransport:
    @pytest.mark.parametrize("angle", [1e-6, 0.7, 2.0])
    @pytest.mark.parametrize(("d", "r"), [(14, 4), (6, 5)])
    def test_is_the_dense_rotation_applied_to_the_vector(self, d, r, angle):
        x = point(d, r)
        h, v = tangent(x, angle), tangent(x, seed=2)
        got = grassmann.transport(x, h, v)
        torch.testing.assert_close(got, rotation(x, h) @ v, atol=1e-12, rtol=0)
        assert (grassmann.exp(x, h).mT @ got).abs().max() < 1e-12

    def test_keeps_inner_products(self):
        x = point()
        h, v, w = tangent(x, 1.0), tangent(x, seed=2), tangent(x, seed=3)
        a, b = grassmann.transport(x, h, v), grassmann.transport(x, h, w)
        torch.testing.assert_close((a * b).sum(), (v * w).sum(), atol=1e-12, rtol=0)

    def test_carries_the_direction_to_the_velocity_at_the_end(self):
        x = point()
        h = tangent(x, 1.0)
        y = grassmann.exp(x, h)
        torch.testing.assert_close(
            grassmann.transport(x, h, h), -grassmann.log(y, x), atol=1e-12, rtol=0
        )


class TestRetraction:
    def test_is_the_polar_factor_of_the_sum(self):
        x = point()
        h = tangent(x, 0.9)
        u, _, vh = torch.linalg.svd(x + h, full_matrices=False)
        torch.testing.assert_close(grassmann.retraction(x, h), u @ vh, atol=1e-13, rtol=0)

    def test_turns_by_arctangents(self):
        x = point()
        h = tangent(x, 1.4)
        expected = torch.linalg.svdvals(h).atan().flip(0)
        found = principal_angles(x, grassmann.retraction(x, h))
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)

    def test_leaves_the_geodesic_in_third_order_only(self):
        x = point()
        h = tangent(x, 1.0)
        off = [
            float((grassmann.retraction(x, t * h) - grassmann.exp(x, t * h)).norm())
            for t in (1e-1, 1e-2)
        ]
        assert off[0] / off[1] == pytest.approx(1e3, rel=0.05)


class TestRandomPoint:
    def test_is_uniform_by_its_first_two_moments(self):
        d, r, n = 16, 4, 4000
        x = point(d, r, batch=(n,))
        mean = (x @ x.mT).mean(dim=0)
        # Each entry of the mean has a standard deviation below sqrt(r / d / n) = 0.008.
        torch.testing.assert_close(mean, torch.eye(d, dtype=F64) * r / d, atol=0.04, rtol=0)
        overlap = (x[: n // 2].mT @ x[n // 2 :]).square().sum(dim=(-2, -1)).mean()
        assert float(overlap) == pytest.approx(r * r / d, rel=0.03)

    def test_looks_the_same_after_any_rotation(self):
        d, r, n = 10, 3, 3000
        probe = torch.linspace(1, 2, d, dtype=F64)
        q = point(d, d, seed=8)

        def statistic(x):
            return ((probe @ x).square().sum(-1) / probe.square().sum()).numpy()

        plain = statistic(point(d, r, seed=1, batch=(n,)))
        turned = statistic(q @ point(d, r, seed=2, batch=(n,)))
        assert scipy.stats.ks_2samp(plain, turned).pvalue > 0.01
        # The share of a fixed vector inside is beta distributed.
        assert scipy.stats.kstest(plain, scipy.stats.beta(r / 2, (d - r) / 2).cdf).pvalue > 0.01

    def test_same_seed_same_point_and_the_global_generator_is_left_alone(self):
        state = torch.get_rng_state()
        assert torch.equal(point(seed=4), point(seed=4))
        assert not torch.equal(point(seed=4), point(seed=5))
        assert torch.equal(torch.get_rng_state(), state)


class TestRandomTangent:
    def test_has_no_part_inside_and_the_given_largest_angle(self):
        x = point(20, 5)
        h = tangent(x, 0.3)
        assert (x.mT @ h).abs().max() < 1e-15
        assert float(torch.linalg.svdvals(h)[0]) == pytest.approx(0.3, abs=1e-12)

    def test_has_no_preferred_direction(self):
        d, r, n = 8, 2, 4000
        x = point(d, r)
        h = tangent(x.expand(n, d, r))
        mean = (h @ h.mT).mean(dim=0)
        expected = r * (torch.eye(d, dtype=F64) - x @ x.mT)
        torch.testing.assert_close(mean, expected, atol=0.2, rtol=0)

    def test_is_zero_where_the_subspace_is_everything(self):
        x = point(4, 4)
        assert not tangent(x, 0.3).any()

    def test_has_only_as_many_directions_as_are_left(self):
        s = torch.linalg.svdvals(tangent(point(7, 5), 1.0))
        assert (s > 1e-12).sum() == 2


VERBS = {
    "projection": lambda x, h, v: grassmann.projection(x, h + v),
    "exp": lambda x, h, v: grassmann.exp(x, h),
    "exp to an angle": lambda x, h, v: grassmann.exp(x, h, angle=0.7),
    "move": lambda x, h, v: grassmann.move(x, h, 0.7),
    "log": lambda x, h, v: grassmann.log(x, grassmann.exp(x, h)),
    "dist": lambda x, h, v: grassmann.dist(x, grassmann.exp(x, h)),
    "transport": grassmann.transport,
    "retraction": lambda x, h, v: grassmann.retraction(x, h),
}
verbs = pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)


@verbs
def test_batch_is_a_loop(verb):
    x = point(9, 3, batch=(2, 3))
    h, v = tangent(x, 0.8), tangent(x, seed=2)
    whole = verb(x, h, v)
    for i in range(2):
        for j in range(3):
            one = verb(x[i, j], h[i, j], v[i, j])
            torch.testing.assert_close(whole[i, j], one, atol=1e-12, rtol=0)


@verbs
def test_one_point_meets_a_batch_of_vectors(verb):
    x = point(9, 3)
    h, v = (grassmann.projection(x, torch.randn(5, 9, 3, dtype=F64) / 6) for _ in range(2))
    torch.testing.assert_close(verb(x, h, v)[2], verb(x, h[2], v[2]), atol=1e-12, rtol=0)


@verbs
def test_float32_is_float64_to_rounding(verb):
    x = point()
    h, v = tangent(x, 0.8), tangent(x, 1.0, seed=2)
    single = verb(x.float(), h.float(), v.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), verb(x, h, v), atol=5e-6, rtol=0)


@verbs
def test_input_is_not_changed(verb):
    x = point()
    h, v = tangent(x, 0.8), tangent(x, seed=2)
    before = [t.clone() for t in (x, h, v)]
    verb(x, h, v)
    assert all(torch.equal(a, b) for a, b in zip(before, (x, h, v), strict=True))


@verbs
def test_derivatives_are_right_at_distinct_angles(verb):
    x = point(7, 3)
    h, v = tangent(x, 0.8), tangent(x, seed=2)

    def on_the_manifold(x, h, v):
        # Perturbations leave the manifold and its tangent spaces: bring them back first.
        x = orthonormalize(x)
        return verb(x, grassmann.projection(x, h), grassmann.projection(x, v))

    inputs = [t.clone().requires_grad_() for t in (x, h, v)]
    assert torch.autograd.gradcheck(on_the_manifold, inputs)


def test_the_gradient_of_half_the_squared_distance_is_minus_the_log():
    x, y = point(), point(seed=1)
    moving = x.clone().requires_grad_()
    (0.5 * grassmann.dist(moving, y).square()).backward()
    riemannian = grassmann.projection(x, moving.grad)
    torch.testing.assert_close(riemannian, -grassmann.log(x, y), atol=1e-10, rtol=0)


class TestBadInput:
    @pytest.mark.bad_input
    def test_shapes_that_do_not_fit(self):
        x = point()
        with pytest.raises(ValueError, match="x has d = 14, y has d = 12"):
            grassmann.log(x, point(12, 4))
        with pytest.raises(ValueError, match="as many columns"):
            grassmann.dist(x, point(14, 3))
        with pytest.raises(ValueError, match="x must be tall"):
            grassmann.projection(x.mT, x.mT)

    @pytest.mark.parametrize("verb", [grassmann.exp, grassmann.retraction])
    def test_a_direction_that_is_not_horizontal(self, verb):
        x = point()
        with pytest.raises(ValueError, match=r"h must be horizontal.*grassmann\.projection"):
            verb(x, tangent(x) + 0.1 * x)

    def test_a_vector_to_carry_that_is_not_horizontal(self):
        x = point()
        with pytest.raises(ValueError, match="v must be horizontal"):
            grassmann.transport(x, tangent(x), x)

    def test_what_is_not_finite(self):
        x = point()
        h = tangent(x)
        h[0, 0] = math.nan
        with pytest.raises(ValueError, match="h holds 1 non-finite"):
            grassmann.exp(x, h)
        with pytest.raises(ValueError, match="u holds 1 non-finite"):
            grassmann.move(x, h, 0.3)
        with pytest.raises(ValueError, match="y holds 1 non-finite"):
            grassmann.log(x, h)

    @pytest.mark.parametrize("angle", [-0.1, math.inf, math.nan])
    def test_an_angle_out_of_range(self, angle):
        x = point()
        with pytest.raises(ValueError, match="angle must be finite and not negative"):
            grassmann.exp(x, tangent(x), angle=angle)
        with pytest.raises(ValueError, match="angle must be finite and not negative"):
            grassmann.move(x, tangent(x), angle)
        with pytest.raises(ValueError, match="angle must be finite and not negative"):
            grassmann.random_tangent(x, angle=angle)

    @pytest.mark.bad_input
    def test_what_is_no_tensor(self):
        with pytest.raises(TypeError, match=r"x must be a torch\.Tensor, got list"):
            grassmann.projection([1.0], point())
