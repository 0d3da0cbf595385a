"""SIGTERM ends a command as Ctrl-C does: everything unwinds, nothing is left running."""

import contextlib
import signal as signals
import threading
from collections.abc import Iterator
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived.

    Attributes:
        signal: Its number.
    """

    signal = int(signals.SIGTERM)


@contextlib.contextmanager
def unwinding_on_sigterm() -> Iterator[None]:
    """Raise `Terminated` in the body when SIGTERM arrives; a second one ends the process at once.

    Nothing changes in other threads than the main one, or where somebody else listens already.
    """
    listens = threading.current_thread() is threading.main_thread()
    if not listens or signals.getsignal(signals.SIGTERM) is not signals.SIG_DFL:
        yield
        return
    signals.signal(signals.SIGTERM, _raise)
    try:
        yield
    finally:
        signals.signal(signals.SIGTERM, signals.SIG_DFL)


def ignore_ctrl_c() -> None:
    """For a process that is about to end: one more Ctrl-C would only print a traceback."""
    signals.signal(signals.SIGINT, signals.SIG_IGN)


def exit_code(stop: BaseException) -> int:
    """128 and the number of the signal behind `stop`: 143 for SIGTERM, 130 for Ctrl-C."""
    link: BaseException | None = stop
    while link is not None:
        number = getattr(link, "signal", None)
        if number is not None:
            return 128 + int(number)
        link = link.__cause__ or link.__context__
    return 128 + int(signals.SIGINT)


def _raise(number: int, frame: FrameType | None) -> None:
    signals.signal(signals.SIGTERM, signals.SIG_DFL)
    raise Terminated
