"""How far a job is, on the live line."""

import time

from spanwise.cli._shared import Terminal


class Progress:
    """Tells how far a job is: every part on a terminal, every tenth elsewhere.

    Args:
        terminal: Where it is told.
        part: What is counted, such as `tensor`.
    """

    def __init__(self, terminal: Terminal, part: str) -> None:
        self.terminal, self.part, self.told = terminal, part, 0
        self.begun = time.perf_counter()

    def __call__(self, done: int, total: int) -> None:
        tenths = 10 * done // total
        if not self.terminal.interactive and tenths == self.told and done < total:
            return
        self.told = tenths
        left = (time.perf_counter() - self.begun) / done * (total - done)
        self.terminal.live(f"{self.part} {done}/{total}  {left:.0f} s left")
