"""Riemannian conjugate gradient against a plain loop of its own, pymanopt, and eigenvectors."""

import math

import numpy as np
import pytest
import torch

from conformance.bases import defect, gap
from spanwise.linalg import stiefel
from spanwise.linalg.riemannian import Product, riemannian_cg

F64 = torch.float64
D, R = 8, 3
PAIR = Product(("stiefel", "euclidean"))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


MATRIX = torch.randn(D, D, generator=seeded(0), dtype=F64)
MATRIX = MATRIX @ MATRIX.mT / D
WEIGHTS = torch.arange(R, 0, -1, dtype=F64)
TARGET = torch.randn(D, generator=seeded(1), dtype=F64)


def cost(point):
    """Brockett's function of the frame, and a least-squares problem that leans on the frame."""
    x, b = point
    ax = MATRIX @ x
    rest = (x @ b.unsqueeze(-1)).squeeze(-1) - TARGET
    return (x * ax * WEIGHTS).sum((1, 2)) + rest.square().sum(1), (ax, rest)


def gradient(point, saved):
    x, b = point
    ax, rest = saved
    return (
        2 * ax * WEIGHTS + 2 * rest.unsqueeze(-1) * b.unsqueeze(-2),
        2 * (x.mT @ rest.unsqueeze(-1)).squeeze(-1),
    )


def starts(n=4):
    x = stiefel.random_point(D, R, batch=(n,), generator=seeded(2), dtype=F64)
    return x, torch.randn(n, R, generator=seeded(3), dtype=F64)


def naive(x, b, steps, cost=cost, gradient=gradient, stop=1e-6):
    """The same path for one problem, in numpy, as the textbook's algorithm box reads."""
    a, n, t = MATRIX.numpy(), WEIGHTS.numpy(), TARGET.numpy()

    def f(p):
        return np.sum(p[0] * (a @ p[0]) * n) + np.sum((p[0] @ p[1] - t) ** 2)

    def tangent(p, u):
        s = p[0].T @ u[0]
        return [u[0] - p[0] @ (s + s.T) / 2, u[1]]

    def grad(p):
        rest = p[0] @ p[1] - t
        return tangent(p, [2 * a @ p[0] * n + 2 * np.outer(rest, p[1]), 2 * p[0].T @ rest])

    def inner(u, v):
        return np.sum(u[0] * v[0]) + np.sum(u[1] * v[1])

    def move(p, d, alpha):
        q, r = np.linalg.qr(p[0] + alpha * d[0])
        return [q * np.sign(np.diag(r)), p[1] + alpha * d[1]]

    p = [x.numpy(), b.numpy()]
    costs, g = [f(p)], grad(p)
    d, alpha = [-u for u in g], None
    for _ in range(steps):
        if np.sqrt(inner(g, g)) < stop:
            break
        slope = inner(g, d)
        if slope >= 0:
            d, slope = [-u for u in g], -inner(g, g)
        alpha = 1 / np.sqrt(inner(d, d)) if alpha is None else alpha
        tried, q = 1, move(p, d, alpha)
        while f(q) > costs[-1] + 0.5 * alpha * slope and tried <= 10:
            alpha, tried = alpha / 2, tried + 1
            q = move(p, d, alpha)
        if f(q) > costs[-1]:
            break
        alpha = alpha if tried == 2 else 2 * alpha
        new = grad(q)
        y = [u - v for u, v in zip(new, tangent(q, g), strict=True)]
        d = tangent(q, d)
        beta = max(0, inner(new, y) / inner(y, d))
        d = [beta * u - v for u, v in zip(d, new, strict=True)]
        p, g = q, new
        costs.append(f(p))
    return p, costs


class TestPath:
    @pytest.mark.parametrize("steps", [1, 2, 3, 5, 10, 25])
    def test_is_that_of_a_plain_loop_for_every_problem(self, steps):
        found = riemannian_cg(cost, gradient, starts(), PAIR, iterations=steps)
        for i, (x, b) in enumerate(zip(*starts(), strict=True)):
            (frame, vector), costs = naive(x, b, steps)
            assert float(found.cost[i]) == pytest.approx(costs[-1], rel=1e-10)
            np.testing.assert_allclose(found.point[0][i].numpy(), frame, atol=1e-9)
            np.testing.assert_allclose(found.point[1][i].numpy(), vector, atol=1e-9)

    @pytest.mark.parametrize("steps", [1, 2, 3, 5, 10, 40])
    def test_is_that_of_pymanopt(self, steps):
        pymanopt = pytest.importorskip("pymanopt")
        manifolds = pymanopt.manifolds
        manifold = manifolds.Product([manifolds.Stiefel(D, R), manifolds.Euclidean(R)])

        @pymanopt.function.numpy(manifold)
        def value(x, b):
            point = torch.from_numpy(x)[None], torch.from_numpy(b)[None]
            return float(cost(point)[0])

        @pymanopt.function.numpy(manifold)
        def slope(x, b):
            point = torch.from_numpy(x)[None], torch.from_numpy(b)[None]
            return [u[0].numpy() for u in gradient(point, cost(point)[1])]

        problem = pymanopt.Problem(manifold, value, euclidean_gradient=slope)
        solver = pymanopt.optimizers.ConjugateGradient(max_iterations=steps + 1, verbosity=0)
        start = [t[0].numpy() for t in starts(1)]
        theirs = solver.run(problem, initial_point=start)
        ours = riemannian_cg(cost, gradient, starts(1), PAIR, iterations=steps)
        assert float(ours.cost[0]) == pytest.approx(theirs.cost, rel=1e-10)
        np.testing.assert_allclose(ours.point[0][0].numpy(), theirs.point[0], atol=1e-8)

    def test_of_a_batch_is_that_of_each_alone(self):
        whole = riemannian_cg(cost, gradient, starts(), PAIR, iterations=25)
        for i in range(4):
            alone = tuple(t[i : i + 1] for t in starts())
            one = riemannian_cg(cost, gradient, alone, PAIR, iterations=25)
            assert int(whole.iterations[i]) == int(one.iterations[0])
            torch.testing.assert_close(whole.cost[i], one.cost[0], rtol=1e-11, atol=0)

    def test_ends_for_each_problem_by_itself(self):
        found = riemannian_cg(cost, gradient, starts(), PAIR, iterations=500, retries=3)
        assert found.converged.all()
        assert len(set(found.iterations.tolist())) > 1

    def test_never_climbs_and_stays_on_the_manifold(self):
        history = []
        for steps in range(12):
            found = riemannian_cg(cost, gradient, starts(), PAIR, iterations=steps)
            history.append(found.cost)
            assert defect(found.point[0]) < 1e-12
        assert (torch.stack(history).diff(dim=0) <= 0).all()


class TestMinimum:
    @pytest.mark.parametrize("retraction", ["qr", "polar"])
    def test_of_brocketts_function_is_the_smallest_eigenvectors(self, retraction):
        found = riemannian_cg(
            lambda p: ((p[0] * (MATRIX @ p[0]) * WEIGHTS).sum((1, 2)), ()),
            lambda p, _: (2 * MATRIX @ p[0] * WEIGHTS,),
            starts()[:1],
            Product(("stiefel",), retraction),
            iterations=2000,
            retries=3,
        )
        values, vectors = torch.linalg.eigh(MATRIX)
        expected = (values[:R] * WEIGHTS).sum()
        assert found.converged.all()
        assert not found.stalled.any()
        torch.testing.assert_close(found.cost, expected.expand(4), atol=1e-10, rtol=0)
        # Gradients below 1e-6 leave vectors within 1e-6 over the gaps of the eigenvalues.
        assert gap(found.point[0], vectors[:, :R].expand(4, D, R)) < 1e-5

    def test_of_a_euclidean_problem_is_the_least_squares_solution(self):
        b = torch.randn(2, D, generator=seeded(5), dtype=F64)
        curved = MATRIX + torch.eye(D, dtype=F64)
        found = riemannian_cg(
            lambda p: (0.5 * (p[0] @ curved * p[0]).sum(1) - p[0] @ TARGET, ()),
            lambda p, _: (p[0] @ curved - TARGET,),
            (b,),
            Product(("euclidean",)),
            iterations=200,
        )
        expected = torch.linalg.solve(curved, TARGET)
        torch.testing.assert_close(found.point[0][0], expected, atol=1e-6, rtol=0)

    def test_is_the_start_after_no_iteration(self):
        found = riemannian_cg(cost, gradient, starts(), PAIR, iterations=0)
        assert all(torch.equal(a, b) for a, b in zip(found.point, starts(), strict=True))
        assert not found.converged.any()
        assert (found.iterations == 0).all()

    def test_at_a_stationary_point_is_left_at_once(self):
        vectors = torch.linalg.eigh(MATRIX)[1][:, :R]
        found = riemannian_cg(
            lambda p: ((p[0] * (MATRIX @ p[0])).sum((1, 2)), ()),
            lambda p, _: (2 * MATRIX @ p[0],),
            (vectors[None],),
            Product(("stiefel",)),
        )
        assert found.converged.all()
        assert int(found.iterations) == 0


class TestFailedSearches:
    """Halving ten times may not be enough, and at a kink no step is short enough."""

    @staticmethod
    def solve(**options):
        return riemannian_cg(
            lambda p: ((p[0] - 1).abs().sum(1) + p[0][:, :1].square().sum(1), ()),
            lambda p, _: ((p[0] - 1).sign() + 2 * p[0] * torch.tensor([1.0, 0.0]).double(),),
            (torch.tensor([[0.3, -1.7], [2.0, 0.1]], dtype=F64),),
            Product(("euclidean",)),
            iterations=500,
            **options,
        )

    def test_end_the_descent_and_say_so(self):
        found = self.solve()
        assert found.converged.all()
        assert found.stalled.all()
        assert (found.gradient_norm > 0.1).all()

    def test_are_made_again_with_retries(self):
        once, more = self.solve(), self.solve(retries=3)
        # The minimum, at (1/2, 1), is 3/4.
        assert (more.cost >= 0.75 - 1e-12).all()
        assert (more.cost <= once.cost).all()
        assert (more.iterations > once.iterations).any()

    def test_happen_on_smooth_costs_too(self):
        once = riemannian_cg(cost, gradient, starts(), PAIR, iterations=300)
        assert once.stalled.any()
        assert float(once.gradient_norm.max()) > 1e-2


class TestWhatItLeavesAlone:
    def test_the_start(self):
        point = starts()
        riemannian_cg(cost, gradient, point, PAIR, iterations=5)
        assert all(torch.equal(a, b) for a, b in zip(point, starts(), strict=True))

    def test_the_dtype(self):
        single = tuple(t.float() for t in starts())

        def cheap(point):
            value, saved = cost(tuple(t.double() for t in point))
            return value.float(), saved

        def steep(point, saved):
            return tuple(g.float() for g in gradient(tuple(t.double() for t in point), saved))

        found = riemannian_cg(cheap, steep, single, PAIR, iterations=50)
        assert found.cost.dtype == torch.float32
        assert defect(found.point[0]) < 1e-6
        exact = riemannian_cg(cost, gradient, starts(), PAIR, iterations=10)
        short = riemannian_cg(cheap, steep, single, PAIR, iterations=10)
        torch.testing.assert_close(short.cost.double(), exact.cost, rtol=1e-3, atol=0)

    def test_a_callback_sees_every_step(self):
        seen = []
        riemannian_cg(
            cost, gradient, starts(), PAIR, iterations=3, callback=lambda i, c: seen.append((i, c))
        )
        assert [i for i, _ in seen] == [1, 2, 3]
        assert all(c.shape == (4,) for _, c in seen)


class TestBadInput:
    def test_a_start_that_is_no_frame(self):
        x, b = starts()
        with pytest.raises(
            ValueError, match=r"start\[0\] must have orthonormal columns.*orthonorm"
        ):
            riemannian_cg(cost, gradient, (1.1 * x, b), PAIR)
        with pytest.raises(ValueError, match=r"start\[0\] must hold frames \(problems, d, r\)"):
            riemannian_cg(cost, gradient, (x.mT, b), PAIR)
        with pytest.raises(ValueError, match=r"start\[1\] must have as many problems"):
            riemannian_cg(cost, gradient, (x, b[:2]), PAIR)
        with pytest.raises(ValueError, match="is 2 tensors, got 1"):
            riemannian_cg(cost, gradient, (x,), PAIR)

    def test_what_is_not_finite(self):
        x, b = starts()
        b[0, 0] = math.nan
        with pytest.raises(ValueError, match=r"start\[1\] holds 1 non-finite"):
            riemannian_cg(cost, gradient, (x, b), PAIR)
        with pytest.raises(ValueError, match="cost must be finite at the start"):
            riemannian_cg(lambda p: (cost(p)[0] / 0, ()), gradient, starts(), PAIR)

    def test_options_out_of_range(self):
        for name in ("iterations", "retries", "gradient_tolerance", "step_tolerance"):
            with pytest.raises(ValueError, match=f"{name} must not be negative, got -1"):
                riemannian_cg(cost, gradient, starts(), PAIR, **{name: -1})

    @pytest.mark.bad_input
    def test_a_manifold_that_does_not_exist(self):
        with pytest.raises(ValueError, match='"stiefel" or "euclidean", got \'sphere\''):
            Product(("sphere",))
        with pytest.raises(ValueError, match='"qr" or "polar", got \'cayley\''):
            Product(("stiefel",), "cayley")
