"""Fair timing on a machine that is not quiet: contenders take turns, ratios come from one run."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from spanwise.io import write_json

RESULTS = Path(__file__).resolve().parent.parent / "results" / "benchmarks"


def set_threads(count: int = 1) -> None:
    """Use `count` threads; call it before the first tensor operation."""
    torch.set_num_threads(count)


def environment() -> dict[str, Any]:
    """What a figure depends on besides the code."""
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu": _cpu_name(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "blas": "MKL" if torch.backends.mkl.is_available() else "other",
    }


def interleave(
    contenders: Mapping[str, Callable[[], Any]],
    *,
    rounds: int = 9,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each call; every round runs each contender once, starting with another one.

    What disturbs the machine for a second or a minute then falls on all of them. With one thread,
    `clock=time.process_time` also leaves out the time in which other programs had the core.
    """
    names = list(contenders)
    times: dict[str, list[float]] = {name: [] for name in names}
    for name in names * warmup:
        contenders[name]()
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            start = clock()
            contenders[name]()
            times[name].append(clock() - start)
    return times


def summarize(times: Mapping[str, list[float]], baseline: str) -> dict[str, dict[str, float]]:
    """Per contender: least and median milliseconds, and how many times faster than `baseline`.

    `speedup` compares the least times, `median_round_speedup` is the median over rounds of the
    ratio within a round.
    """
    base = times[baseline]
    return {
        name: {
            "min_ms": 1e3 * min(own),
            "median_ms": 1e3 * statistics.median(own),
            "speedup": min(base) / min(own),
            "median_round_speedup": statistics.median(
                b / o for b, o in zip(base, own, strict=True)
            ),
        }
        for name, own in times.items()
    }


def rounded(value: Any, digits: int = 5) -> Any:
    """`value` with every float cut to `digits` significant digits, for a file people read."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, Mapping):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item, digits) for item in value]
    return value


def write_results(name: str, value: Mapping[str, Any]) -> Path:
    """Write `results/benchmarks/NAME.json`, whole or not at all."""
    return write_json(RESULTS / f"{name}.json", rounded(dict(value)))


def _cpu_name() -> str:
    """The model that the system reports, or the architecture."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
