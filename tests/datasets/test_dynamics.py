"""Simulated dynamics against what is known of them."""

import numpy as np
import pytest
import torch

from spanwise.datasets import dynamics
from spanwise.datasets._wake import Wake


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: dynamics.koopman_invariant(3, 4, seed=seed),
        lambda seed: dynamics.duffing(3, 4, seed=seed),
        lambda seed: dynamics.kuramoto_sivashinsky(2, 3, n_points=32, burn_in=1.0, seed=seed),
    ],
)
def test_a_seed_repeats_bit_for_bit_and_another_one_does_not(make):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert np.array_equal(make(1), make(1))
    assert not np.array_equal(make(1), make(2))
    assert torch.equal(torch.get_rng_state(), state)


def test_duffing_follows_its_equation():
    x = dynamics.duffing(50, 2000, dt=1e-3)[:, ::100]
    fine = dynamics.duffing(50, 2000, dt=1e-3)
    slope = (fine[:, 2:] - fine[:, :-2]) / 2e-3
    a, b = fine[:, 1:-1].transpose(2, 0, 1)
    np.testing.assert_allclose(slope[..., 0], b, atol=1e-5)
    np.testing.assert_allclose(slope[..., 1], -0.5 * b - a * (a**2 - 1), atol=1e-4)
    coarse = dynamics.duffing(50, 20, dt=0.1)
    np.testing.assert_allclose(coarse, x, atol=1e-6)


def test_duffing_ends_where_its_attractor_says():
    x = dynamics.duffing(100, 240, dt=0.25)
    ends = dynamics.duffing_attractor(x[:, 0])
    np.testing.assert_allclose(x[:, -1, 0], ends, atol=1e-3)
    np.testing.assert_allclose(x[:, -1, 1], 0, atol=1e-3)
    assert 20 < (ends == 1).sum() < 80


def test_kuramoto_sivashinsky_is_bounded_keeps_its_mean_and_converges_in_the_step():
    u = dynamics.kuramoto_sivashinsky(2, 40, burn_in=50.0, step=0.1)
    assert 1 < np.abs(u).max() < 5
    np.testing.assert_allclose(u.mean(-1), 0, atol=1e-10)
    short = {"n_steps": 2, "burn_in": 0.0, "dt": 1.0, "seed": 3}
    steps = [
        dynamics.kuramoto_sivashinsky(1, step=step, **short)[0, -1] for step in (0.1, 0.05, 0.0125)
    ]
    errors = [np.abs(held - steps[-1]).max() for held in steps[:2]]
    assert errors[0] < 1e-4
    assert errors[1] < errors[0] / 5


def test_kuramoto_sivashinsky_s_long_waves_grow_at_their_linear_rate():
    length = 8 * np.pi
    u = dynamics.kuramoto_sivashinsky(1, 10, length=length, n_points=64, dt=0.1, burn_in=0.0)
    k = 2 * np.pi / length
    small = 1e-6 * np.sin(k * length * np.arange(64) / 64)
    # The linear part alone: exp((k^2 - k^4) t), by the equation's own slope at a small state.
    spectrum = np.fft.rfft(small)
    waves = 1j * 2 * np.pi / length * np.arange(33)
    slope = np.fft.irfft(-(waves**2 + waves**4) * spectrum, n=64)
    np.testing.assert_allclose(slope, (k**2 - k**4) * small, atol=1e-12)
    assert np.isfinite(u).all()


class TestWake:
    def test_a_uniform_stream_without_a_cylinder_stays(self):
        wake = Wake(reynolds=60, diameter=6)
        f = wake._stream.repeat(1, wake.rows * wake.columns)
        after = f.clone()
        # One collision changes nothing at equilibrium.
        u = wake._velocity @ after
        quadratic = torch.stack([u[0] * u[0], u[0] * u[1], u[1] * u[1]])
        collided = wake._linear @ after + wake._products @ quadratic
        torch.testing.assert_close(collided, f, atol=1e-6, rtol=0)

    def test_a_symmetric_flow_stays_symmetric(self):
        wake = Wake(reynolds=60, diameter=6)
        f = wake.run(wake._stream.repeat(1, wake.rows * wake.columns), 60)
        curl = wake.vorticity(f)
        full = (wake._velocity @ f).view(2, wake.rows, wake.columns)
        torch.testing.assert_close(full[0], full[0].flip(0), atol=1e-5, rtol=0)
        torch.testing.assert_close(full[1], -full[1].flip(0), atol=1e-5, rtol=0)
        assert curl.abs().max() > 0.5

    def test_mass_changes_at_inlet_and_outlet_only(self):
        wake = Wake(reynolds=60, diameter=6)
        f = wake._stream.repeat(1, wake.rows * wake.columns)
        field = f.view(9, wake.rows, wake.columns)
        noise = 0.01 * torch.rand(9, wake.rows, 40, generator=torch.Generator().manual_seed(0))
        field[:, :, 20:60] += noise * ~wake.solid()[:, 20:60]
        outside = ~wake.solid()
        before = (f.view(field.shape).sum(0) * outside)[:, 5:-5].sum()
        after = (wake.run(f, 1).view(field.shape).sum(0) * outside)[:, 5:-5].sum()
        assert float(after) == pytest.approx(float(before), rel=2e-5)

    def test_trajectories_share_the_settled_wake_and_part_by_their_disturbance(
        self, tmp_path, monkeypatch
    ):
        monkeypatch.setenv("SPANWISE_CACHE", str(tmp_path))
        options = {"diameter": 6, "reynolds": 60.0, "settle": 3.0}
        made = dynamics.cylinder_wake(2, 2, **options)
        assert made.shape == (2, 3, 10, 18)
        assert np.abs(made[0] - made[1]).max() > 1e-3
        assert len(list(tmp_path.rglob("*.safetensors"))) == 1
        np.testing.assert_array_equal(dynamics.cylinder_wake(2, 2, **options), made)
        np.testing.assert_array_equal(dynamics.cylinder_wake(2, 2, cache=False, **options), made)


class TestBadInput:
    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: dynamics.duffing(0), "n_trajectories must be at least 1, got 0"),
            (lambda: dynamics.koopman_invariant(1, 0), "n_steps must be at least 1, got 0"),
            (lambda: dynamics.kuramoto_sivashinsky(n_points=7), "n_points must be even"),
            (lambda: dynamics.kuramoto_sivashinsky(dt=0.25), "dt must be a multiple of step"),
            (lambda: dynamics.duffing(dt=-0.1), "dt must be finite and above 0, got -0.1"),
            (lambda: dynamics.kuramoto_sivashinsky(step=0.0), "step must be finite and above 0"),
            (lambda: dynamics.kuramoto_sivashinsky(burn_in=-1.0), "burn_in must be finite and not"),
            (
                lambda: dynamics.kuramoto_sivashinsky(n_steps=30, dt=5.0, step=5.0, burn_in=200),
                r"the integration blew up with step = 5.0\. Lower it",
            ),
            (lambda: dynamics.cylinder_wake(dt=0.0), "dt must be finite and above 0"),
            (lambda: dynamics.cylinder_wake(settle=-1.0), "settle must be finite and not negative"),
            (lambda: dynamics.cylinder_wake(reynolds=0.0), "reynolds must be finite and above 0"),
            (lambda: dynamics.cylinder_wake(diameter=3), "diameter must be at least 6 cells"),
            (lambda: dynamics.cylinder_wake(reynolds=1e4), "Raise diameter"),
        ],
    )
    def test_options_out_of_range(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()
