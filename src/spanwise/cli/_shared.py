"""What every verb shares: flags, `--config`, and output that reads well anywhere.

A verb is a dataclass of options and a function::

    def main(argv: list[str]) -> int:
        return run_verb(TrainConfig, argv, train_verb, prog="spanwise train")

    def train_verb(config: TrainConfig, terminal: Terminal) -> int: ...

The dataclass's own fields become the flags. By convention it names the shared ones `seed`,
`device`, `resume` and `out`; `--config`, `--print-config`, `--quiet` and `--json` are added here.
"""

import dataclasses
import inspect
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from io import TextIOBase
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import tyro

from spanwise.cli._numbers import check_numbers
from spanwise.cli._usage import one_line_usage
from spanwise.io.configs import from_plain, read_yaml, to_plain, to_yaml

C = TypeVar("C")


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM after the state was saved: exit code 130 or 143, a line that resumes.

    Attributes:
        resume: The command that continues the run.
    """

    def __init__(self, resume: str) -> None:
        super().__init__(resume)
        self.resume = resume


@dataclasses.dataclass(frozen=True, kw_only=True)
class House:
    """Flags that every verb takes."""

    config: Path | None = None
    """YAML file with any of these options; flags on the command line win over it."""
    print_config: bool = False
    """Print the resolved options as YAML and stop."""
    quiet: bool = False
    """Print results and errors only."""
    json: bool = False
    """Print the result as one JSON document on stdout, and everything else on stderr."""


class Terminal:
    """Where a verb speaks: rich on a terminal, plain lines in a pipe, JSON if asked.

    Attributes:
        quiet: Whether `say`, `table` and `live` stay silent.
        json: Whether stdout is kept for one JSON document.
    """

    def __init__(self, *, quiet: bool = False, json: bool = False) -> None:
        self.quiet = quiet
        self.json = json
        self._open_line = 0

    @property
    def stream(self) -> TextIOBase:
        """Where text for people goes."""
        return cast(TextIOBase, sys.stderr if self.json else sys.stdout)

    @property
    def interactive(self) -> bool:
        """Whether a person watches, so that a line may be rewritten in place."""
        return self.stream.isatty() and os.environ.get("TERM") != "dumb"

    def say(self, text: str = "") -> None:
        """Print a line for people, unless `--quiet`."""
        if not self.quiet:
            self._finish_line()
            print(text, file=self.stream, flush=True)

    def live(self, text: str) -> None:
        """Show progress: rewritten in place on a terminal, a plain line elsewhere."""
        if self.quiet:
            return
        if not self.interactive:
            print(text, file=self.stream, flush=True)
            return
        width = max(20, shutil.get_terminal_size().columns - 1)
        text = text[:width]
        print("\r" + text.ljust(self._open_line), end="", file=self.stream, flush=True)
        self._open_line = len(text)

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[object]],
        *,
        title: str | None = None,
        left: Sequence[str] = (),
    ) -> None:
        """Print a table; the first column and those in `left` are left-aligned.

        Args:
            columns: Headers.
            rows: One sequence of cells for each row; cells are converted with `str`.
            title: A line above the table.
            left: Headers of further columns that hold words rather than numbers.
        """
        if self.quiet:
            return
        self._finish_line()
        if title:
            self.say(title)
        if not self.interactive:
            print(_plain_table(columns, rows, left), file=self.stream, flush=True)
            return
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
        for index, name in enumerate(columns):
            word = index == 0 or name in left
            table.add_column(Text(name), justify="left" if word else "right", no_wrap=index == 0)
        for row in rows:
            table.add_row(*(Text(str(cell)) for cell in row))
        Console(
            file=cast(Any, self.stream), no_color="NO_COLOR" in os.environ, highlight=False
        ).print(table)

    def result(self, value: Any) -> None:
        """Hand the result to machines: printed as JSON with `--json`, otherwise nothing."""
        if self.json:
            print(json.dumps(to_plain(value), indent=2, allow_nan=True), flush=True)

    def _finish_line(self) -> None:
        if self._open_line:
            print(file=self.stream, flush=True)
            self._open_line = 0


def run_verb(
    config_class: type[C],
    argv: Sequence[str],
    function: Callable[[C, Terminal], int | None],
    *,
    prog: str,
    description: str | None = None,
) -> int:
    """Parse `argv` into `config_class` and call `function(config, terminal)`.

    Args:
        config_class: Dataclass of the verb's options; docstrings are the help.
        argv: Arguments after the verb.
        function: The verb. Its return value is the exit code, None for 0.
        prog: The command so far, such as `"spanwise train"`.
        description: Text above the flags; by default the docstring of `config_class`.

    Raises:
        ValueError: If the `--config` file has an unknown key or a value of the wrong kind.
        SystemExit: With code 0 after `--help` and 2 after wrong usage.
    """
    try:
        check_numbers(config_class, argv)
    except ValueError as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    template = _template(config_class, argv)
    flat = tyro.conf.arg(name="")
    options: tuple[Any, ...] = ("options", Annotated[config_class, flat])
    house = ("house", Annotated[House, flat], House())
    # No template, no default: tyro then reads the defaults of the dataclass's own fields.
    fields = [options if template is None else (*options, template), house]
    invocation = dataclasses.make_dataclass("Invocation", fields)
    with one_line_usage(prog):
        parsed = tyro.cli(
            invocation,
            args=list(argv),
            prog=prog,
            description=inspect.cleandoc(description or config_class.__doc__ or ""),
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    if parsed.house.print_config:
        print(to_yaml(parsed.options), end="")
        return 0
    terminal = Terminal(quiet=parsed.house.quiet, json=parsed.house.json)
    return function(parsed.options, terminal) or 0


def check_device(device: str) -> None:
    """Raise `ValueError` if tensors cannot live there; torch says so in many ways."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device = {device} cannot be used here ({reason}). Leave --device out for the CPU."
        ) from error


def _plain_table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], left: Sequence[str]
) -> str:
    """Aligned columns without colours or lines; nothing is cut, for a pipe has no width."""
    cells = [list(columns), *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    words = [index == 0 or name in left for index, name in enumerate(columns)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if word else cell.rjust(width)
            for cell, width, word in zip(line, widths, words, strict=True)
        ).rstrip()
        for line in cells
    )


def _template(config_class: type[C], argv: Sequence[str]) -> C | None:
    """The options in the file behind `--config`, or None without one."""
    path = None
    for here, following in zip(argv, [*argv[1:], None], strict=False):
        if here == "--":
            break
        if here == "--config":
            path = following
        elif here.startswith("--config="):
            path = here.partition("=")[2]
    if path is None:
        return None
    data: Mapping[str, Any] = read_yaml(path)
    try:
        return from_plain(config_class, data, missing=tyro.MISSING)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
