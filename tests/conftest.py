"""One thread, no network, the same seed before every test."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"
os.environ["NO_COLOR"] = "1"

import pytest
import torch

torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption(
        "--cases",
        type=int,
        help="run at most so many parameters of a test, spread evenly: the typed run's shapes and "
        "types are the same for all of them",
    )


def pytest_collection_modifyitems(config, items):
    most = config.getoption("--cases")
    if most is None:
        return
    tests = {}
    for item in items:
        tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    kept = {
        id(found[turn * (len(found) - 1) // max(1, most - 1)])
        for found in tests.values()
        for turn in range(most)
    }
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in kept])
    items[:] = [item for item in items if id(item) in kept]


@pytest.fixture(autouse=True)
def _same_seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _subnormal_numbers_stay():
    """Training flushes them for speed, in the whole process; other tests must not notice."""
    yield
    torch.set_flush_denormal(False)
