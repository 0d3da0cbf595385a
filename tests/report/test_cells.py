import importlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from spanwise.report import CellError, Workers, run_cells

MODULE = """
    import os, sys, time

    def square(cell):
        print("a cell may print")
        threads = os.environ["OMP_NUM_THREADS"]
        ids = {"pid": os.getpid(), "group": os.getpgid(0), "session": os.getsid(0)}
        return {"square": cell["x"] ** 2, "threads": threads, **ids}

    def fail_on_two(cell):
        if cell["x"] == 2:
            raise ValueError("two is too much")
        return {"x": cell["x"]}

    def die(cell):
        print("last words", file=sys.stderr, flush=True)
        os._exit(7)

    def not_a_number(cell):
        return {"x": float("nan")}

    def slow(cell):
        time.sleep(cell["x"])
        return {}
"""


@pytest.fixture
def sample(tmp_path, monkeypatch):
    """A module of cell functions that other processes can import, and its file."""
    path = tmp_path / "cell_sample.py"
    path.write_text(textwrap.dedent(MODULE))
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("cell_sample")
    yield module
    sys.modules.pop("cell_sample")


def test_results_come_in_the_order_of_the_cells_from_processes_of_one_thread(sample):
    found = run_cells(sample.square, [{"x": x} for x in (3, 1, 2)], workers=2)
    assert [r["square"] for r in found] == [9, 1, 4]
    assert {r["threads"] for r in found} == {"1"}
    assert os.getpid() not in {r["pid"] for r in found}
    # Ctrl-C reaches the parent alone; the parent's low priority reaches its children.
    assert os.getpgid(0) not in {r["group"] for r in found}
    assert {r["session"] for r in found} == {os.getsid(0)}
    assert all(r["processor_seconds"] >= 0 for r in found)
    assert all(r["seconds"] >= 0 for r in found)
    assert all(r["peak_bytes"] is None or r["peak_bytes"] > 1e6 for r in found)


def test_equal_cells_run_once_and_workers_stay_for_the_next_round(sample):
    with Workers(sample.square, 1) as pool:
        first = pool.map([{"x": 1}, {"x": 1}])
        second = pool.map([{"x": 2}])
        assert first[0] == first[1]
        assert second[0]["pid"] == first[0]["pid"]
        assert pool.done == 2


def test_finished_cells_are_used_again_until_their_code_changes(sample, tmp_path):
    cells = [{"x": 1}, {"x": 2}]
    cache = tmp_path / "cells"
    run_cells(sample.square, cells[:1], 1, cache=cache)
    seen = []
    progress = lambda **news: seen.append((news["done"], news["total"], news["reused"]))  # noqa: E731
    again = run_cells(sample.square, cells, 1, cache=cache, progress=progress)
    assert [r["square"] for r in again] == [1, 4]
    assert seen[0] == (1, 2, 1)
    assert seen[-1] == (2, 2, 1)
    assert len(list(cache.iterdir())) == 2

    source = tmp_path / "cell_sample.py"
    source.write_text(source.read_text().replace("** 2", "** 3"))
    assert [r["square"] for r in run_cells(sample.square, cells, 1, cache=cache)] == [1, 8]


def test_a_damaged_cached_cell_is_run_again(sample, tmp_path):
    cache = tmp_path / "cells"
    run_cells(sample.square, [{"x": 3}], 1, cache=cache)
    (file,) = cache.iterdir()
    file.write_text(file.read_text()[:20])
    assert run_cells(sample.square, [{"x": 3}], 1, cache=cache)[0]["square"] == 9
    assert json.loads(file.read_text())["cell"] == {"x": 3}


def test_a_failing_cell_is_named_and_the_finished_ones_are_kept(sample, tmp_path):
    cells = [{"x": x} for x in (1, 2, 3)]
    with pytest.raises(CellError, match=r"(?s)cell \{'x': 2\} failed:.*two is too much"):
        run_cells(sample.fail_on_two, cells, 1, cache=tmp_path / "cells")
    assert len(list((tmp_path / "cells").iterdir())) == 1


def test_wrong_input_of_a_cell_is_kept_apart_from_defects(sample):
    with pytest.raises(CellError) as wrong:
        run_cells(sample.fail_on_two, [{"x": 2}], 1)
    assert wrong.value.reason == "two is too much"
    with pytest.raises(CellError) as defect:
        run_cells(sample.square, [{"y": 2}], 1)
    assert defect.value.reason is None


def test_a_process_that_dies_leaves_its_last_words(sample):
    with pytest.raises(CellError, match=r"(?s)ended with code 7.*last words"):
        run_cells(sample.die, [{"x": 1}], 1)


def test_a_cell_that_is_not_json_is_an_error(sample):
    with pytest.raises(CellError, match="not JSON compliant"):
        run_cells(sample.not_a_number, [{"x": 1}], 1)


def test_functions_that_no_other_process_can_find_are_refused():
    def inner(cell):
        return {}

    for function in (inner, lambda cell: {}):
        with pytest.raises(ValueError, match="top level of an importable module"):
            run_cells(function, [{"x": 1}])


def test_workers_must_be_positive(sample):
    with pytest.raises(ValueError, match="workers must be at least 1"):
        run_cells(sample.square, [{"x": 1}], workers=0)


def test_no_cells_start_no_process(sample):
    assert run_cells(sample.square, []) == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_child_outlives_its_parent(sample, tmp_path, how):
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(
            """
            import signal
            import cell_sample
            from spanwise.report import Workers
            # A parent that runs in the background may hand down an ignored Ctrl-C.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            with Workers(cell_sample.slow, 2) as pool:
                def ready(**news):
                    print(*(c.process.pid for c in pool._children), flush=True)
                pool.progress = ready
                pool.map([{"x": 600}, {"x": 601}])
            """
        )
    )
    parent = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    children = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(children) == 2
    parent.send_signal(how)
    parent.wait(timeout=30)
    parent.stdout.close()
    assert parent.returncode != 0
    for pid in children:
        for _ in range(100):
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                break
            time.sleep(0.05)
        else:
            pytest.fail(f"child {pid} still runs")
