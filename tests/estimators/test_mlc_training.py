"""How MLC trains: what the traps of its recipe would do, and what happens when it diverges."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from spanwise.estimators import (
    MLC,
    MLCLoss,
    SinkhornProjection,
    coding_rate,
    rate_reduction,
    spectral_labels,
)
from spanwise.estimators._mlc.network import Network, build
from spanwise.estimators._mlc.sinkhorn import affinity
from spanwise.estimators._mlc.training import Training, batches

F64 = torch.float64


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def training(x, hidden=(8,), augment=None, batch_size=64, **options):
    generator = torch.Generator().manual_seed(0)
    return Training(
        network=build(None, x, hidden, 4, generator), x=x, generator=generator, augment=augment,
        views=2, batch_size=batch_size, loss=MLCLoss(0.3), projection=SinkhornProjection(0.2),
        affinity="abs", optimizer="adam", weight_decay=0.0, cluster_weight_decay=0.0, **options,
    )  # fmt: skip


def test_the_head_is_copied_once_and_only_after_the_first_stage(monkeypatch):
    steps, copy = [], Network.copy_heads
    this = training(draw(24, 5), augment=lambda x, g: x + 0.1, batch_size=8)
    before = this.network.cluster.weight.clone()

    def spy(network):
        assert torch.equal(network.cluster.weight, before)  # nothing trained it
        steps.append(len(this.history))
        copy(network)

    monkeypatch.setattr(Network, "copy_heads", spy)
    this.first(2, 1e-2, 0.4, 20.0)
    assert steps == [6] == [len(this.history)]
    assert torch.equal(this.network.cluster.weight, this.network.feature.weight)
    this.second(2, 1e-2, None, 5, 0.0)
    assert steps == [6]
    assert not torch.equal(this.network.cluster.weight, this.network.feature.weight)


def test_rows_of_a_trained_membership_sum_to_one_not_to_one_nth():
    # Divided by n once more every cluster would hold 1/n of a sample, and R_c be far too large.
    x = draw(20, 5)
    this = training(x, hidden=())
    this.first(0, 1e-3, 0.4, 20.0)
    Z = normalize(this.network.feature(x), dim=1).detach()
    G = SinkhornProjection(0.2)(affinity(Z, "abs"))
    this.second(1, 1e-3, None, 5, 0.0)
    stage, rate, part = this.history[0]
    assert stage == 2
    assert rate == pytest.approx(float(coding_rate(Z, 0.3)), rel=1e-9)
    assert rate - part == pytest.approx(float(rate_reduction(Z, G, 0.3)), rel=1e-6)
    assert (G.sum(0) - 1).abs().max() < 1e-5
    wrong = rate - float(rate_reduction(Z, G / 20, 0.3))
    assert abs(wrong - part) > 0.5 * part


def test_autocast_does_not_reach_determinants_nor_the_membership():
    # Its products in bfloat16 are off by a thousandth, and sums of the membership with them.
    Z = normalize(draw(24, 5).float(), dim=1)
    K = (Z @ Z.mT).abs()

    def all_parts():
        z, k = Z.clone().requires_grad_(), K.clone().requires_grad_()
        G = SinkhornProjection(0.2)(k)
        loss = MLCLoss(0.3)(z, G)
        loss.backward()
        return loss.detach(), G.detach(), k.grad, rate_reduction(Z, G.detach(), 0.3)

    plain = all_parts()
    with torch.autocast("cpu", torch.bfloat16):
        found = all_parts()
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))


def test_a_bad_start_is_sharpened_not_mended():
    # Two lines; a start whose features see only what both share.
    sides = torch.arange(2).repeat_interleave(20)
    x = draw(40, 6)
    x[:, 0] += 8.0 * sides
    this = training(x, hidden=())
    with torch.no_grad():
        this.network.feature.weight[:, 0] = 0  # blind to what tells the lines apart
        this.network.feature.bias.zero_()
    this.first(0, 1e-3, 0.4, 20.0)

    def membership():
        with torch.no_grad():
            return SinkhornProjection(0.2)(affinity(this.network(x)[1], "abs"))

    start = membership()
    found = spectral_labels(start, 2, n_init=2)
    this.second(15, 3e-3, None, 5, 0.0)
    own, true = (g[:, None] == g for g in (found, sides))
    after = membership()
    assert (after * own).sum() > (start * own).sum() + 1
    assert (after * true).sum() / 40 < 0.7


def test_samples_that_judge_are_drawn_not_the_first_ones():
    # Samples class by class: the first 1024 of 1500 would be one class only.
    X = np.random.default_rng(0).normal(size=(1500, 3)).astype(np.float32)
    X[1100:] += 50
    seen = []

    class Spy(torch.nn.Identity):
        def forward(self, x):
            if not self.training and len(x) == 1024:
                seen.append(float((x[:, 0] > 25).float().mean()))
            return x

    MLC(2, encoder=Spy(), epochs=0, batch_size=64, n_features=2, n_init=1, max_samples=1200).fit(X)
    assert len(seen) == 1
    assert seen[0] == pytest.approx(400 / 1500, abs=0.05)


def test_training_that_diverges_says_what_to_lower():
    X = np.random.default_rng(0).normal(size=(20, 3))
    for options in ({"lr": 1e200}, {"augment": 0.1, "ssl_epochs": 3, "ssl_lr": 1e200}):
        model = MLC(2, epochs=3, n_features=2, hidden=(4,), select=None, **options)
        with pytest.raises(ValueError, match=r"training diverged: .* Lower lr or ssl_lr"):
            model.fit(X)
        assert not hasattr(model, "labels_")


@pytest.mark.parametrize(("n", "size", "count"), [(41, 20, 3), (3, 2, 1), (2, 512, 1), (8, 2, 4)])
def test_batches_hold_two_at_least(n, size, count):
    assert batches(n, size) == count


@pytest.mark.bad_input
def test_more_clusters_than_one_membership_holds_are_refused_before_training():
    X = np.random.default_rng(0).normal(size=(30, 3))
    with pytest.raises(ValueError, match=r"n_clusters must lie in \[2, 10\]"):
        MLC(12, max_samples=10).fit(X)
    with pytest.raises(ValueError, match="candidates must hold numbers up to n = 10"):
        MLC("auto", candidates=(12,), max_samples=10).fit(X)


@pytest.mark.bad_input
def test_parameters_are_refused_before_a_fit_is_touched():
    X = np.random.default_rng(0).normal(size=(20, 3))
    model = MLC(2, epochs=0, n_features=2, n_init=1).fit(X)
    with pytest.raises(ValueError, match="eta must be finite and above 0"):
        model.set_params(eta=-1.0).fit(X[:, :2])
    assert model.n_features_in_ == 3
    np.testing.assert_array_equal(model.predict(X), model.set_params(eta=0.175).predict(X))


def test_a_whole_number_is_an_amount_of_noise():
    X = np.random.default_rng(0).normal(size=(20, 3))
    options = {"hidden": (4,), "ssl_epochs": 1, "epochs": 1, "n_features": 2, "n_init": 1}
    one, other = (MLC(2, augment=a, **options).fit(X) for a in (1, 1.0))
    np.testing.assert_array_equal(one.transform(X), other.transform(X))
