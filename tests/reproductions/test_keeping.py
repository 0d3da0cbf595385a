"""Learned against forgotten: the curves, the loop, and the verdict that they lead to."""

import math

import pytest
import torch
from torch import nn

from spanwise.reproductions._keeping import (
    Curve,
    Losses,
    anywhere,
    evenly,
    forgot_at,
    freeze_all_but_linear_maps,
    mean_loss,
    teach,
)
from spanwise.reproductions._keeping_verdict import best_controls, judge, tune_and_run

LINE = Curve(((1.0, 0.5, 0.1), (2.0, 1.0, 0.4)))


@pytest.mark.parametrize(("level", "cost"), [(0.25, 0.05), (0.5, 0.1), (0.75, 0.25), (1.0, 0.4)])
def test_forgetting_at_a_level_is_read_off_the_segments(level, cost):
    assert LINE.forgot_at(level) == pytest.approx(cost, abs=1e-12)


def test_a_curve_that_never_learns_that_much_gives_nothing():
    assert LINE.forgot_at(1.1) is None
    assert forgot_at(1.1, LINE, LINE) is None
    assert LINE.at_level(1.1) is None


def test_of_several_crossings_and_curves_the_cheapest_counts():
    back = Curve(((1.0, 1.0, 1.0), (2.0, 0.5, 0.2), (3.0, 1.0, 0.3)))
    assert back.forgot_at(0.75) == pytest.approx(0.25)
    assert forgot_at(0.75, back, LINE) == pytest.approx(0.25)
    assert forgot_at(0.5, back, LINE) == pytest.approx(0.1)


def test_the_alpha_of_a_level_lies_between_its_neighbours():
    assert LINE.at_level(0.75) == pytest.approx(1.5)
    assert LINE.at_level(0.25) == pytest.approx(0.5)


def test_learned_and_forgot_are_differences_from_the_base():
    curve = Curve.of(Losses(new=3.0, old=1.0), [(5.0, Losses(new=2.0, old=1.25))])
    assert curve.points == ((5.0, 1.0, 0.25),)


class Tiny(nn.Module):
    """Bigram model with the pieces of a language model: table, linear map, head, loss."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.inner = nn.Linear(6, 6)
        self.lm_head = nn.Linear(6, 7, bias=False)

    def forward(self, input_ids, labels):
        logits = self.lm_head(self.inner(self.embed(input_ids)))
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return type("Output", (), {"loss": loss, "logits": logits})


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return Tiny().double()


def lesson(model, steps=(1, 3), **options):
    ids = torch.arange(7).repeat(2, 2)
    count = iter(range(100))

    def evaluate():
        return Losses(mean_loss(model, ids), float(next(count)))

    return teach(
        model,
        lambda m: torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=0.5),
        iter(lambda: {"input_ids": ids, "labels": ids}, None),
        evaluate,
        base=Losses(mean_loss(model, ids), 0.0),
        checkpoints=steps,
        **options,
    )


def test_only_linear_maps_move(tiny):
    before = {name: p.detach().clone() for name, p in tiny.named_parameters()}
    lesson(tiny)
    moved = {name for name, p in tiny.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"inner.weight"}
    assert freeze_all_but_linear_maps(tiny) == ["inner.weight"]


def test_alpha_of_one_is_the_end_of_the_training(tiny):
    taught = lesson(tiny, alphas=(0.5,))
    assert [at for at, _, _ in taught.path.points] == [1.0, 3.0]
    assert [at for at, _, _ in taught.shrink.points] == [0.5, 1.0]
    assert taught.shrink.points[-1][1] == taught.path.points[-1][1] == taught.learned
    assert 0 < taught.shrink.points[0][1] < taught.learned


def test_the_model_keeps_its_whole_update_after_the_sweep(tiny):
    taught = lesson(tiny)
    again = mean_loss(tiny, torch.arange(7).repeat(2, 2))
    torch.manual_seed(0)
    base = mean_loss(Tiny().double(), torch.arange(7).repeat(2, 2))
    assert base - again == pytest.approx(taught.learned, abs=1e-12)


def test_mean_loss_weighs_sequences_alike_whatever_the_batch(tiny):
    ids = torch.randint(7, (5, 9), generator=torch.Generator().manual_seed(1))
    assert mean_loss(tiny, ids, batch=2) == pytest.approx(mean_loss(tiny, ids), abs=1e-12)


def test_even_sequences_reach_from_the_first_token_to_the_last():
    found = evenly(torch.arange(100), 4, 10)
    assert found[0, 0] == 0
    assert found[-1, -1] == 99
    assert (found[:, 1:] - found[:, :-1] == 1).all()


def test_a_text_shorter_than_a_sequence_is_refused():
    with pytest.raises(ValueError, match="5 tokens holds no sequence of 10"):
        evenly(torch.arange(5), 1, 10)


def test_random_sequences_depend_on_the_generator_alone():
    tokens = torch.arange(1000)
    a, b = (anywhere(tokens, 3, 10, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(a, b)


def rows(**values):
    """One row for each arm and seed."""
    return [
        {"arm": arm, "seed": 100 + i, "forgot_at_level": value, "inside": 0.0}
        for arm, found in values.items()
        for i, value in enumerate(found)
    ]


def test_the_best_control_is_chosen_on_each_seed():
    found = best_controls(rows(a=[0.3, 0.1, None], b=[0.2, 0.5, 0.4], ours=[0, 0, 0]), ["a", "b"])
    assert found == {100: (0.2, "b"), 101: (0.1, "a"), 102: (0.4, "b")}


def test_avoiding_a_quarter_everywhere_holds():
    checks = judge(rows(a=[0.4, 0.41, 0.39], ours=[0.1, 0.1, 0.1]), "ours", ["a"])
    assert [c.holds for c in checks] == [True, True, True]
    assert checks[1].value == pytest.approx(-2.0, abs=0.05)


def test_less_but_not_half_as_much_fails_the_second_part_alone():
    checks = judge(rows(a=[0.4, 0.41, 0.39], ours=[0.3, 0.3, 0.3]), "ours", ["a"])
    assert [c.holds for c in checks] == [True, False, True]


def test_a_level_that_our_arm_misses_fails():
    checks = judge(rows(a=[0.4, 0.41, 0.39], ours=[0.1, None, 0.1]), "ours", ["a"])
    assert [c.holds for c in checks] == [False, False, True]


def test_improving_the_old_text_counts_as_the_floor():
    checks = judge(rows(a=[0.008] * 3, ours=[-0.2] * 3), "ours", ["a"])
    assert checks[1].value == pytest.approx(-3.0)


def test_an_update_inside_the_atlas_fails():
    found = rows(a=[0.4, 0.41, 0.39], ours=[0.1, 0.1, 0.1])
    found[-1]["inside"] = 1e-5
    assert not judge(found, "ours", ["a"])[2].holds


def synthetic(cell):
    """Forgets least at a rate of 1e-2."""
    curve = [[1.0, 1.0, abs(math.log10(cell["rate"]) + 2)]]
    return {"path": curve, "shrink": curve, "peak_bytes": None}


@pytest.mark.slow
def test_derived_arms_follow_the_rate_of_their_source():
    settings = type(
        "Settings", (), {"rates": (1e-3, 1e-2, 1e-1), "tuning_seeds": (0,), "seeds": (100,),
                         "extensions": 0, "level": 1.0},
    )  # fmt: skip
    tuning, fresh = tune_and_run(
        synthetic, ["a", "low"], settings, {}, derived={"low": ("a", 0.5)}, workers=1
    )
    assert tuning.best == {"a": 1e-2, "low": 5e-3}
    assert {row["arm"]: row["rate"] for row in fresh} == tuning.best
    assert {row["arm"] for row in tuning.rows} == {"a"}
