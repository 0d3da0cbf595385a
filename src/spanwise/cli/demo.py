"""`spanwise demo`."""

import shlex

from spanwise.cli._shared import Interrupted, Terminal, run_verb
from spanwise.demo.options import DemoOptions


def main(argv: list[str]) -> int:
    """Parse the options and run."""

    def run(options: DemoOptions, terminal: Terminal) -> None:
        length = "four minutes" if options.full else "two and a half minutes"
        if not options.quick:
            terminal.say(f"Learning something new without losing the old: about {length}.")
        # Imported here, so that --help needs neither torch nor transformers.
        from spanwise.demo.show import show

        try:
            result = show(options, terminal, lively=terminal.interactive)
        except KeyboardInterrupt as stop:
            raise Interrupted(shlex.join(["spanwise", "demo", *argv])) from stop
        terminal.result(result.to_dict())

    return run_verb(DemoOptions, argv, run, prog="spanwise demo")
