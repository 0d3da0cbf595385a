"""How far a long fit is: one line on stderr, only where it was asked for."""

import os
import shutil
import sys
import time

EVERY = 0.2
"""Seconds between two rewritings of a terminal's line."""


class ProgressLine:
    """Tells a fit's progress: rewritten in place on a terminal, every tenth a line elsewhere.

    Use it as a context manager, so that the line is closed whatever happens.

    Args:
        verbose: Whether anything is told.
        what: What is being done, such as `"MLC epoch"`.
        total: How many parts there are.
    """

    def __init__(self, verbose: object, what: str, total: int) -> None:
        self.verbose, self.what, self.total = bool(verbose), what, total
        self._begun = self._told_at = time.perf_counter()
        self._tenths = self._width = 0

    def __enter__(self) -> "ProgressLine":
        return self

    def __exit__(self, *_: object) -> None:
        if self._width:
            sys.stderr.write("\n")
            self._width = 0

    def __call__(self, done: int, note: str = "") -> None:
        """Tell that `done` parts are done.

        Args:
            done: From 1 to `total`.
            note: What else to say, such as the loss.
        """
        if not self.verbose:
            return
        now = time.perf_counter()
        last = done >= self.total
        left = (now - self._begun) / max(done, 1) * max(self.total - done, 0)
        text = f"{self.what} {done}/{self.total}  {f'{note}  ' if note else ''}{left:.0f} s left"
        if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            if last or now - self._told_at >= EVERY:
                text = text[: max(20, shutil.get_terminal_size().columns - 1)]
                sys.stderr.write("\r" + text.ljust(self._width))
                sys.stderr.flush()
                self._width, self._told_at = len(text), now
            return
        tenths = 10 * done // max(self.total, 1)
        if tenths > self._tenths or last:
            self._tenths = tenths
            sys.stderr.write(text + "\n")
            sys.stderr.flush()
