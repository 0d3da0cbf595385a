"""Weights spread over processes by fully_shard: two processes do what one does."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from optim.sharded_worker import (
    CASES,
    CHECKPOINTS,
    GUARDS,
    MATRICES,
    REFUSALS,
    TENSORS,
    WORLD,
    Holder,
    full,
    largest,
    make,
    put,
    train,
)
from spanwise.optim import state_bytes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no distributed"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def found(folder):
    """What both processes found, in the order of their ranks."""
    worker = Path(__file__).with_name("sharded_worker.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    processes, deadline = [], time.monotonic() + 600
    try:
        for rank in range(WORLD):
            with open(folder / f"log-{rank}", "wb") as log:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, worker, str(rank), folder],
                        env=environment, stdout=log, stderr=log,
                    )
                )  # fmt: skip
        # One that fails leaves the other waiting for it.
        while any(p.poll() is None for p in processes) and time.monotonic() < deadline:
            if any(p.poll() for p in processes):
                break
            time.sleep(0.05)
    finally:
        failed = [rank for rank, p in enumerate(processes) if p.poll() != 0]
        for process in processes:
            process.kill()
            process.wait()
    logs = "\n".join((folder / f"log-{rank}").read_text()[-3000:] for rank in failed)
    assert not failed, logs
    return [torch.load(folder / f"found-{r}.pt", weights_only=False) for r in range(WORLD)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_take_the_steps_of_one(found, name):
    for of_rank in found:
        case = of_rank["cases"][name]
        assert case["way"] > 1e-2
        # Full bases make R diagonal at a refresh, and Adam divides the rounding that is left off
        # the diagonal by its epsilon, 1e-6.
        tolerance = 1e-5 if "float32" in name else 1e-9 if "full" in name else 1e-12
        assert case["difference"] < tolerance


def test_state_that_processes_share_is_equal_bit_by_bit(found):
    first, second = (of_rank["state"]["values"] for of_rank in found)
    shared = [key for key in first if first[key].shape == second[key].shape]
    assert {("tall", "basis_right"), ("wide", "exp_avg"), ("single", "exp_avg_sq")} <= set(shared)
    assert all(torch.equal(first[key], second[key]) for key in shared)


@pytest.mark.parametrize("side", ["short", "long"])
def test_fully_shard_on_halves_of_a_batch_equals_one_process_on_all_of_it(found, side):
    assert all(of_rank["fsdp"][side] < 1e-12 for of_rank in found)


@pytest.mark.parametrize("name", GUARDS)
def test_updates_obey_their_constraint_across_shards(found, name):
    for of_rank in found:
        seen = {key: value for key, value in of_rank["guards"].items() if key[0] == name}
        assert {word for _, word, _ in seen} == {"avoid", "within"}
        for figures in seen.values():
            assert figures["leak"] < 1e-12
            assert figures["difference"] < 1e-9


def test_a_constraint_between_steps_and_a_checkpoint_from_before_it(found):
    assert all(of_rank["late"] < 1e-12 for of_rank in found)


def test_each_process_keeps_its_share_of_the_state(found):
    first, second = (of_rank["state"]["held"] for of_rank in found)
    for name, (left, right) in {"tall": (14, 13), "conv": (8, 7)}.items():
        for key in ("exp_avg", "exp_avg_sq"):
            assert (first[name, key], second[name, key]) == ((left, 2), (right, 2))
    for name, (left, right) in {"wide": (7, 6), "transposed": (6, 5), "single": (1, 0)}.items():
        assert first[name, "basis_left"][0] == left
        assert second[name, "basis_left"][0] == right
    assert first["tall_bias", "exp_avg"] == (14,)
    assert second["single_bias", "exp_avg"] == (0,)
    # All that is not shared is there once in all processes together.
    shared = {key for key in first if first[key] == second[key]}
    both = sum(map(_numel, first.values())) + sum(map(_numel, second.values()))
    alone = Holder()
    optimizer = make(alone)
    train(alone, optimizer, steps=1)
    assert both == state_bytes(optimizer) // 8 + sum(_numel(first[key]) for key in shared)


def _numel(shape):
    return torch.Size(shape).numel()


def test_what_is_spread_is_saved_as_a_dtensor_and_what_is_shared_as_it_is(found):
    for of_rank in found:
        saved = of_rank["state"]["saved"]
        assert saved["tall", "exp_avg"] == ((27, 2), True)
        assert saved["tall", "basis_right"] == ((20, 2), False)
        assert saved["wide", "exp_avg"] == ((2, 27), False)
        assert saved["wide", "basis_left"] == ((13, 2), True)
        assert saved["single", "basis_left"] == ((1, 1), True)
        assert saved["tall_bias", "exp_avg_sq"] == ((27,), True)


def test_the_atlas_of_a_sharded_optimizer_has_whole_bases(found):
    assert all(of_rank["state"]["atlas"] < 1e-10 for of_rank in found)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_distributed_checkpoint_goes_on_bit_by_bit_at_the_same_size(found, name):
    for of_rank in found:
        figures = of_rank["checkpoints"][name]
        # torch makes the state that it loads into with a step on zero gradients at rate 0.
        assert figures["start"] == 0
        assert figures["again"] == 0
        assert figures["refreshed"] == -1


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_distributed_checkpoint_goes_on_with_one_process(found, folder, name):
    figures = found[0]["checkpoints"][name]
    model = Holder()
    optimizer = make(model, **CHECKPOINTS[name])
    state = {"state": get_optimizer_state_dict(model, optimizer)}
    dcp.load(state, checkpoint_id=folder / f"saved-{name}", no_dist=True)
    set_optimizer_state_dict(model, optimizer, state["state"])
    put(model, figures["middle"])
    train(model, optimizer, steps=2, first=1)
    assert largest(full(model), figures["end"]) < 1e-12


def test_the_state_dict_of_one_process_goes_on_across_shards(found):
    assert all(of_rank["unsharded"] < 1e-12 for of_rank in found)


def test_a_gradient_that_is_bad_on_one_process_is_refused_on_all(found):
    for of_rank in found:
        kept = of_rank["nonfinite"]["keep"]
        assert "tall at a basis refresh is not finite" in kept["told"]
        assert kept["kept"] == ["tall"]
        assert kept["finite"]
        raised = of_rank["nonfinite"]["raise"]
        assert "tall at a basis refresh is not finite" in raised["told"]
        assert raised["kept"] == list(TENSORS)


def test_whole_copies_plain_columns_and_copies_of_shards_work_too(found):
    for of_rank in found:
        for difference, way in of_rank["placements"]:
            assert difference < 1e-6 < way


REASONS = {
    "columns": r"sharded as \(Shard\(dim=1\),\); only Shard\(0\)",
    "experts": "stacked experts",
    "grass-left": 'select columns with side="local"',
    "snsm-chunks": 'subset_size="heuristics"',
    "snsm-ema": "second moments are no whole rows or columns",
    "osd-retract": 'retract = .qr. needs a basis in one place: side="local"',
    "osd-adafactor": 'base = "adafactor" needs coordinates in one place: side="left"',
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_not_supported_is_refused_by_name(found, name):
    for of_rank in found:
        message = of_rank["refused"][name]
        assert message.startswith("parameter w is sharded over processes (DTensor), and ")
        assert re.search(REASONS[name], message)


def test_layers_of_chosen_rows_are_refused_under_fully_shard(found):
    for of_rank in found:
        assert "model is sharded over processes" in of_rank["refused"]["grass_linear_"]


def test_shards_of_the_cases_are_uneven_and_one_is_empty():
    rows = [TENSORS[name][0][0] for name in MATRICES]
    assert all(m % WORLD for m in rows)
    assert 1 in rows
