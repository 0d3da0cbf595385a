"""Predicted bytes against what real tensors take."""

import os
import subprocess
import sys

import pytest
import torch

from spanwise.optim import METHODS, state_bytes
from spanwise.training import TrainConfig, plan, train
from spanwise.training.inputs import Atlases, open_model, open_optimizer
from spanwise.training.memory import PeakMemory, available
from spanwise.training.planning import _trace, nbytes


def config_of(options, **more):
    return TrainConfig.flat(**{**options, "refresh_every": None, **more})


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_states_weights_and_gradients_are_exact(options, method, precision):
    config = config_of(options, method=method, precision=precision)
    row = plan(config)[method]
    model = open_model(config)
    optimizer = open_optimizer(config, model, Atlases.open(config, model))
    ids = torch.randint(3, 259, (2, 8))
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    assert row.weights == nbytes(model)
    assert row.gradients == sum(p.grad.nbytes for p in model.parameters())
    assert row.states == state_bytes(optimizer)


def test_the_trace_counts_what_real_tensors_take(options):
    config = config_of(options)
    row = plan(config)["adamw"]
    beside, together = _trace(open_model(config), batch=2, sequence=32, autocast=False)
    assert row.activations == beside
    assert row.peak == row.weights + row.states + max(together, row.gradients)


def test_activations_grow_with_the_batch_and_shrink_with_half_precision(options):
    small, large = (plan(config_of(options, batch=b))["galore"] for b in (2, 8))
    half = plan(config_of(options, batch=8, precision="bfloat16"))["galore"]
    assert 3 * small.activations < large.activations < 5 * small.activations
    assert half.activations < large.activations
    assert half.weights < large.weights


def test_mixed_precision_keeps_float32_weights(options):
    mixed = plan(config_of(options, precision="mixed"))["adamw"]
    assert mixed.weights == plan(config_of(options))["adamw"].weights


def test_a_model_of_seven_billion_is_planned_without_its_memory():
    memory = PeakMemory(torch.device("cpu"))
    memory.restart()
    found = plan(TrainConfig.flat("llama-7b", plan=True, rank=1024, batch=1))
    assert found.parameters == 6_738_415_616
    assert found["galore"].weights > 4 * found.parameters
    # r min + 2 r max on the projected matrices, two moments on the rest.
    assert 0.3 < found["galore"].states / found["adamw"].states < 0.4
    assert memory.read() < 1e9


def test_the_default_rank_is_a_quarter_of_the_width():
    assert plan(TrainConfig.flat("llama-1m", plan=True)).rank == 32


def test_an_atlas_that_is_missing_says_how_to_make_one():
    with pytest.raises(FileNotFoundError, match="spanwise atlas extract llama-1m"):
        plan(TrainConfig.flat("llama-1m", plan=True, avoid="no.atlas.safetensors"))


@pytest.mark.parametrize(
    ("method", "chosen"),
    [
        ("osd", ("proj_optimizer=sgd", "base=lion")),
        ("grasswalk", ("residual=drop", "refresh_every=None", "betas=[0.9, 0.95]", "eps=1e-8")),
    ],
)
def test_the_chosen_method_is_planned_with_its_own_options(options, method, chosen):
    config = config_of(options, method=method, option=chosen)
    model = open_model(config)
    optimizer = open_optimizer(config, model, Atlases.open(config, model))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert plan(config)[method].states == state_bytes(optimizer)
    assert plan(config_of(options))[method].states > state_bytes(optimizer)


@pytest.mark.parametrize(
    ("method", "option", "message"),
    [
        ("grasswalk", "walk_angel=0.5", "grasswalk has no option 'walk_angel'. Did you mean 'walk"),
        ("grasswalk", "walk_angle=2", "walk_angle must be at most pi/2"),
        pytest.param(
            "grasswalk", "walk_angle=wide", "walk_angle must be finite", marks=pytest.mark.bad_input
        ),
        ("grass", "svd=exact", "grass has no option 'svd'. It has select"),
        ("osd", "lr=0.1", "lr has a flag of its own: --lr"),
        ("osd", "weight_decay=0.1", "weight_decay has a flag of its own: --weight-decay"),
        pytest.param("snsm", "subset_size=[1]", "subset_size must be", marks=pytest.mark.bad_input),
    ],
)
def test_a_wrong_option_by_name_is_told_by_plan_and_run_alike(options, method, option, message):
    config = config_of(options, method=method, option=(option,))
    with pytest.raises(ValueError, match=message):
        plan(config)
    with pytest.raises(ValueError, match=message):
        train(config)
    assert not config.out.exists()


def test_methods_that_refuse_the_side_have_no_row_but_a_reason(options):
    found = plan(config_of(options, side="full"))
    shown = {row.method for row in found.rows}
    assert shown == {"galore", "snsm", "adamsn", "adamw", "muon", "sgd"}
    assert set(found.refused) == set(METHODS) - shown
    assert found.refused["grass"].startswith("side must be one of")
    with pytest.raises(KeyError, match="grass: side must be one of"):
        found["grass"]
    assert plan(config_of(options)).refused == {}


def test_methods_without_a_rank_are_planned_where_the_rank_leaves_nothing_to_project(options):
    for method in ("adamsn", "adamw"):
        found = plan(config_of(options, method=method, rank=4096))
        assert {row.method for row in found.rows} == {"adamsn", "adamw", "muon", "sgd"}
        assert found["adamsn"].states == plan(config_of(options))["adamsn"].states
    with pytest.raises(ValueError, match="no linear map of the model is left to project"):
        plan(config_of(options, method="galore", rank=4096))


def test_free_memory_is_known_on_linux():
    free = available(torch.device("cpu"))
    assert free is None or free > 1e6


_MEASURE = """
import torch
from spanwise.training import TrainConfig, plan, train
from spanwise.training.memory import PeakMemory
from spanwise.training.inputs import Atlases, open_model, open_optimizer
config = TrainConfig.flat("llama-10m", plan=True, method="adamw", batch=8, sequence=128)
row = plan(config)["adamw"]
memory = PeakMemory(torch.device("cpu"))
model = open_model(config)
optimizer = open_optimizer(config, model, Atlases.open(config, model))
memory.restart()
ids = torch.randint(3, 259, (8, 128))
for _ in range(2):
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
print(memory.read() / row.peak)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_resident_memory_agrees_when_the_allocator_gives_blocks_back():
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1048576"}
    out = subprocess.run(
        [sys.executable, "-c", _MEASURE],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    # The rest is code that loads on first use and what glibc keeps of small blocks.
    assert 0.95 < float(out.stdout) < 1.15
