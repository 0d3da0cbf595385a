"""Warnings as a line for people: without the place in our code, which they cannot act on."""

import contextlib
import sys
import warnings
from collections.abc import Iterator
from typing import TextIO


@contextlib.contextmanager
def plain_warnings(prog: str) -> Iterator[None]:
    """Show each `UserWarning` of the body as one line on stderr; other kinds stay as they are.

    Its subclasses too: `ConvergenceWarning` is what a fit tells people.
    """
    usual = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, UserWarning) and file is None:
            print(f"{prog}: warning: {message}", file=sys.stderr)
        else:
            usual(message, category, filename, lineno, file, line)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = usual
