"""The Stiefel manifold against the geodesic equation, matrix exponentials and identities."""

import math

import pytest
import scipy.integrate
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.bases import defect
from spanwise.linalg import orthonormalize, stiefel

F64 = torch.float64


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def point(d=9, r=3, seed=0, batch=()):
    return stiefel.random_point(d, r, generator=seeded(seed), dtype=F64, batch=batch)


def tangent(x, seed=1):
    return stiefel.random_tangent(x, generator=seeded(seed))


def off_tangent(x, h):
    inside = x.mT @ h
    return float((inside + inside.mT).abs().max())


@st.composite
def shapes(draw):
    d = draw(st.integers(1, 10))
    return d, draw(st.integers(1, d)), draw(st.integers(0, 10**6))


class TestProjection:
    @given(shapes())
    @settings(max_examples=30, deadline=None)
    def test_is_the_nearest_tangent_vector(self, shape):
        d, r, seed = shape
        x = point(d, r, seed)
        u = torch.randn(d, r, generator=seeded(seed + 1), dtype=F64)
        h = stiefel.projection(x, u)
        assert off_tangent(x, h) < 1e-13
        torch.testing.assert_close(stiefel.projection(x, h), h, atol=1e-13, rtol=0)
        # What was taken away is orthogonal to every tangent vector.
        assert abs(float(((u - h) * tangent(x, seed + 2)).sum())) < 1e-12

    def test_of_a_sphere_takes_out_the_radial_part(self):
        x, u = point(6, 1), torch.randn(6, 1, dtype=F64)
        expected = u - x * (x * u).sum()
        torch.testing.assert_close(stiefel.projection(x, u), expected, atol=1e-14, rtol=0)

    @pytest.mark.parametrize(("d", "r"), [(7, 3), (5, 1), (4, 4)])
    def test_leaves_as_many_directions_as_the_manifold_has(self, d, r):
        x = point(d, r)
        rows = [stiefel.projection(x, e.view(d, r)).flatten() for e in torch.eye(d * r, dtype=F64)]
        assert torch.linalg.matrix_rank(torch.stack(rows)) == d * r - r * (r + 1) // 2


class TestExp:
    def test_solves_the_geodesic_equation(self):
        # In this metric a geodesic accelerates along the normal only: X'' = -X (X'^T X').
        x = point(6, 2)
        h = 0.8 * tangent(x)
        start = torch.cat([x, h]).flatten().numpy()

        def speed(_, state):
            y, v = torch.from_numpy(state).view(2, 6, 2)
            return torch.cat([v, -y @ (v.mT @ v)]).flatten().numpy()

        end = scipy.integrate.solve_ivp(speed, (0, 1), start, rtol=1e-12, atol=1e-13).y[:, -1]
        expected = torch.from_numpy(end).view(2, 6, 2)[0]
        torch.testing.assert_close(stiefel.exp(x, h), expected, atol=1e-10, rtol=0)

    def test_on_the_sphere_is_a_great_circle(self):
        x = point(5, 1)
        h = tangent(x)
        angle = float(h.norm())
        expected = math.cos(angle) * x + math.sin(angle) / angle * h
        torch.testing.assert_close(stiefel.exp(x, h), expected, atol=1e-13, rtol=0)

    def test_on_the_orthogonal_group_is_the_matrix_exponential(self):
        x = point(5, 5)
        h = tangent(x)
        expected = x @ torch.from_numpy(scipy.linalg.expm((x.mT @ h).numpy()))
        torch.testing.assert_close(stiefel.exp(x, h), expected, atol=1e-12, rtol=0)

    def test_of_two_halves_is_the_whole(self):
        x = point()
        h = tangent(x)
        half = stiefel.exp(x, 0.5 * h)
        step = 1e-5
        velocity = (stiefel.exp(x, (0.5 + step) * h) - stiefel.exp(x, (0.5 - step) * h)) / (
            2 * step
        )
        rest = stiefel.exp(half, 0.5 * stiefel.projection(half, velocity))
        # A central difference of step 1e-5 is good to its square.
        torch.testing.assert_close(rest, stiefel.exp(x, h), atol=1e-8, rtol=0)


class TestRetraction:
    @pytest.mark.parametrize("scale", [1e-12, 0.3, 30.0])
    @pytest.mark.parametrize(("d", "r"), [(9, 3), (5, 1), (4, 4)])
    @pytest.mark.parametrize("method", ["qr", "polar"])
    def test_is_orthonormal_after_any_step(self, method, d, r, scale):
        x = point(d, r)
        assert defect(stiefel.retraction(x, scale * tangent(x), method)) < 1e-12

    def test_by_qr_is_the_factor_with_a_positive_triangle(self):
        x = point()
        h = tangent(x)
        triangle = stiefel.retraction(x, h).mT @ (x + h)
        assert (torch.diagonal(triangle) > 0).all()
        assert triangle.tril(-1).abs().max() < 1e-13

    def test_by_qr_is_continuous_where_lapack_flips_signs(self):
        # Without the signs fixed, a tiny step lands on -X.
        x = point()
        assert (stiefel.retraction(x, 1e-9 * tangent(x)) - x).abs().max() < 1e-8

    def test_by_polar_is_the_nearest_frame(self):
        x = point()
        h = tangent(x)
        u, _, vh = torch.linalg.svd(x + h, full_matrices=False)
        torch.testing.assert_close(stiefel.retraction(x, h, "polar"), u @ vh, atol=1e-13, rtol=0)

    @pytest.mark.parametrize(("method", "order"), [("qr", 2), ("polar", 3)])
    def test_leaves_the_geodesic_in_its_order(self, method, order):
        x = point()
        h = tangent(x) / 4
        off = [
            float((stiefel.retraction(x, t * h, method) - stiefel.exp(x, t * h)).norm())
            for t in (1e-1, 1e-2)
        ]
        assert math.log10(off[0] / off[1]) == pytest.approx(order, abs=0.1)


class TestTransportAndDist:
    def test_carries_to_a_tangent_vector_and_shortens(self):
        x = point()
        h, v = 0.4 * tangent(x), tangent(x, seed=2)
        y = stiefel.retraction(x, h)
        carried = stiefel.transport(y, v)
        assert off_tangent(y, carried) < 1e-13
        assert carried.norm() <= v.norm()
        assert (stiefel.transport(stiefel.retraction(x, 1e-8 * h), v) - v).norm() < 1e-6

    def test_distance_is_a_chord_that_no_rotation_changes(self):
        x, y = point(), point(seed=1)
        expected = math.sqrt(2 * (3 - float((x * y).sum())))
        assert float(stiefel.dist(x, y)) == pytest.approx(expected, abs=1e-12)
        q, s = point(9, 9, seed=2), point(3, 3, seed=3)
        assert float(stiefel.dist(q @ x @ s, q @ y @ s)) == pytest.approx(expected, abs=1e-12)
        h = tangent(x)
        # The chord of a geodesic of length t is t, up to t^3 / 24 times its curvature squared.
        near = float(stiefel.dist(x, stiefel.exp(x, 1e-3 * h)))
        assert near == pytest.approx(1e-3 * float(h.norm()), rel=1e-4)


class TestRandom:
    def test_tangent_vectors_have_no_preferred_direction(self):
        x = point(5, 2)
        h = stiefel.random_tangent(x.expand(4000, 5, 2), generator=seeded(3))
        # The dimension of St(5, 2) is 7; the mean's standard deviation is sqrt(14 / 4000) = 0.06.
        assert float(h.square().sum(dim=(-2, -1)).mean()) == pytest.approx(7, abs=0.25)
        assert off_tangent(x, h) < 1e-13

    def test_same_seed_same_frame_and_the_global_generator_is_left_alone(self):
        state = torch.get_rng_state()
        assert torch.equal(point(seed=4), point(seed=4))
        assert not torch.equal(point(seed=4), point(seed=5))
        assert torch.equal(tangent(point()), tangent(point()))
        assert torch.equal(torch.get_rng_state(), state)


VERBS = {
    "projection": lambda x, h, v: stiefel.projection(x, h + v),
    "exp": lambda x, h, v: stiefel.exp(x, h),
    "qr": lambda x, h, v: stiefel.retraction(x, h),
    "polar": lambda x, h, v: stiefel.retraction(x, h, "polar"),
    "transport": lambda x, h, v: stiefel.transport(stiefel.retraction(x, h), v),
    "dist": lambda x, h, v: stiefel.dist(x, stiefel.exp(x, h)),
}
verbs = pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)


@verbs
def test_batch_is_a_loop(verb):
    x = point(batch=(2, 2))
    h, v = 0.3 * tangent(x), tangent(x, seed=2)
    whole = verb(x, h, v)
    for i in range(2):
        for j in range(2):
            one = verb(x[i, j], h[i, j], v[i, j])
            torch.testing.assert_close(whole[i, j], one, atol=1e-12, rtol=0)


@verbs
def test_float32_is_float64_to_rounding(verb):
    x = point()
    h, v = 0.3 * tangent(x), tangent(x, seed=2)
    single = verb(x.float(), h.float(), v.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), verb(x, h, v), atol=5e-6, rtol=0)


@verbs
def test_input_is_not_changed(verb):
    x = point()
    h, v = tangent(x), tangent(x, seed=2)
    before = [t.clone() for t in (x, h, v)]
    verb(x, h, v)
    assert all(torch.equal(a, b) for a, b in zip(before, (x, h, v), strict=True))


@verbs
def test_derivatives_are_right(verb):
    x = point(5, 2)
    h, v = 0.3 * tangent(x), tangent(x, seed=2)

    def on_the_manifold(x, h, v):
        # Perturbations leave the manifold and its tangent spaces: bring them back first.
        x = orthonormalize(x)
        return verb(x, stiefel.projection(x, h), stiefel.projection(x, v))

    inputs = [t.clone().requires_grad_() for t in (x, h, v)]
    assert torch.autograd.gradcheck(on_the_manifold, inputs)


class TestBadInput:
    @pytest.mark.bad_input
    def test_shapes_that_do_not_fit(self):
        x = point()
        with pytest.raises(ValueError, match="x has d = 9, h has d = 8"):
            stiefel.exp(x, point(8, 3))
        with pytest.raises(ValueError, match="as many columns"):
            stiefel.dist(x, point(9, 2))
        with pytest.raises(ValueError, match="x must be tall"):
            stiefel.projection(x.mT, x.mT)

    @pytest.mark.parametrize("verb", [stiefel.exp, stiefel.retraction])
    def test_a_direction_that_is_not_tangent(self, verb):
        x = point()
        with pytest.raises(ValueError, match=r"h must be tangent.*stiefel\.projection"):
            verb(x, tangent(x) + 0.1 * x)

    def test_what_is_not_finite(self):
        x = point()
        h = tangent(x)
        h[0, 0] = math.nan
        with pytest.raises(ValueError, match="h holds 1 non-finite"):
            stiefel.retraction(x, h)
        with pytest.raises(ValueError, match="y holds 1 non-finite"):
            stiefel.dist(x, h)

    @pytest.mark.bad_input
    def test_an_unknown_retraction(self):
        x = point()
        with pytest.raises(ValueError, match='method must be "qr" or "polar"'):
            stiefel.retraction(x, tangent(x), "cayley")
