"""Tensors side by side, under a ceiling of memory."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

T = TypeVar("T")


def side_by_side(
    function: Callable[[str], T],
    names: Iterable[str],
    *,
    workers: int,
    ceiling: float,
    size: Callable[[str], float],
) -> Iterator[tuple[str, T]]:
    """`(name, function(name))` as they are done; for one worker in the order of `names`.

    Threads of one core each: what takes time is LAPACK and element-wise passes, which leave
    Python's lock alone.

    Args:
        function: Called once for each name.
        names: What to call it with.
        workers: How many threads.
        ceiling: Bytes that tasks may take together; a single task always may begin.
        size: Estimated bytes of a task and its result.

    Raises:
        Whatever `function` raises; tasks that have not begun are then dropped.
    """
    waiting = list(names)[::-1]
    if workers <= 1:
        while waiting:
            name = waiting.pop()
            yield name, function(name)
        return
    before = torch.get_num_threads()
    running: dict[Future[T], str] = {}
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    used = sum(size(name) for name in running.values())
                    if running and used + size(waiting[-1]) > ceiling:
                        break
                    name = waiting.pop()
                    running[pool.submit(function, name)] = name
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    name = running.pop(future)
                    yield name, future.result()
        finally:
            for future in running:
                future.cancel()
            torch.set_num_threads(before)
