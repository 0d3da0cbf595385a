"""The `spanwise` command: finds the verb, runs it, turns errors into one line.

Nothing heavy is imported here: a verb's module loads when the verb is called.
"""

import gc
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module

VERBS: dict[str, tuple[str, str]] = {
    "train": (
        "spanwise.cli.train:main",
        "pre-train or fine-tune a causal language model on your text",
    ),
    "atlas": (
        "spanwise.cli.atlas:main",
        "extract, show or compare the directions that a model uses",
    ),
    "merge": (
        "spanwise.cli.merge:main",
        "merge models of one base; reads mergekit's configurations too",
    ),
    "export": (
        "spanwise.cli.export:main",
        "a difference as a LoRA, an adapter merged, a folder checked to load",
    ),
    "detect": ("spanwise.cli.detect:main", "samples that lie outside of normal data, and why"),
    "decompose": (
        "spanwise.cli.decompose:main",
        "components of a symmetric tensor, or of a moment of samples",
    ),
    "cluster": (
        "spanwise.cli.cluster:main",
        "clusters of samples, and features in which each is a subspace",
    ),
    "forecast": (
        "spanwise.cli.forecast:main",
        "the future of trajectories, and the rates of what moves them",
    ),
    "demo": ("spanwise.cli.demo:main", "see it work: three minutes, no download"),
    "list": ("spanwise.cli.methods:list_methods", "the methods of this library, one line each"),
    "show": ("spanwise.cli.methods:show", "one method: claim, paper, entry points, result"),
    "cite": ("spanwise.cli.methods:cite", "BibTeX of the library and of the methods you name"),
    "reproduce": (
        "spanwise.cli.reproduce:main",
        "run a paper's claim at laptop scale, with verdict",
    ),
    "report": ("spanwise.cli.report:main", "build one static page out of a folder of results"),
    "doctor": ("spanwise.cli.doctor:main", "what is installed, what is missing, how to get it"),
}
"""Verb -> (where its `main(argv) -> exit code` lives, one line of help)."""

GROUPS: dict[str, tuple[str, ...]] = {
    "Teach": ("train",),
    "Look and combine": ("atlas", "merge", "export"),
    "Data": ("detect", "decompose", "cluster", "forecast"),
    "House": ("demo", "list", "show", "cite", "reproduce", "report", "doctor"),
}

INTRO = """\
spanwise: teach a model something new, keep out of the directions it already needs.

  spanwise VERB ...           run a verb;  spanwise VERB --help  explains its flags
"""

CLOSING = """\
A first session:
  spanwise demo                                                        see the effect
  spanwise atlas extract MODEL --data old.txt --out know.atlas.safetensors
  spanwise train MODEL --data new.txt --method galore --avoid know.atlas.safetensors --out runs/new

Every verb takes --config run.yaml, --print-config, --quiet and --json.
SPANWISE_TRACEBACK=1 shows where an error came from; SPANWISE_DATA names a folder of data sets.
Exit codes: 0 done, 1 error, 2 wrong usage, 130 Ctrl-C, 143 SIGTERM (the resume line is printed).
"""

MISUSE = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--version"]:
        from spanwise import __version__

        print(f"spanwise {__version__}")
        return 0
    code = dispatch(VERBS, arguments, prog="spanwise", page=help_page())
    if argv is None:
        # The interpreter would look through all of torch for garbage before it ends: half a second.
        gc.freeze()
        if code > 128:
            from spanwise.cli._signals import ignore_ctrl_c

            ignore_ctrl_c()
    return code


def help_page() -> str:
    """What `spanwise --help` prints."""
    lines = [INTRO]
    for group, verbs in GROUPS.items():
        lines += [group, *(f"  {verb:<11} {VERBS[verb][1]}" for verb in verbs), ""]
    return "\n".join([*lines, CLOSING])


def dispatch(
    verbs: Mapping[str, tuple[str, str]], argv: Sequence[str], *, prog: str, page: str | None = None
) -> int:
    """Call the verb that `argv` names, or help.

    Args:
        verbs: Verb -> (`"module:function"`, one line of help). The function takes the arguments
            after the verb and returns an exit code.
        argv: Command-line arguments, the verb first.
        prog: What comes before the verb, such as `"spanwise atlas"`.
        page: Text for `--help`; by default the verbs and their lines.

    Returns:
        0 or the verb's own code, 1 after an error, 2 for wrong usage, 130 for Ctrl-C,
        143 for SIGTERM.
    """
    if page is None:
        rows = "\n".join(f"  {verb:<11} {line}" for verb, (_, line) in verbs.items())
        page = f"usage: {prog} VERB ...\n\n{rows}\n\n{prog} VERB --help  explains a verb's flags.\n"
    verb, *rest = argv or ["--help"]
    if verb == "help" and rest and rest[0] in verbs:
        verb, rest = rest[0], ["--help"]
    if verb in ("-h", "--help", "help"):
        print(page, end="")
        return 0
    if verb not in verbs:
        print(f"{prog}: {unknown('verb', verb, verbs)}", file=sys.stderr)
        return MISUSE
    module, _, function = verbs[verb][0].partition(":")
    return guarded(lambda: getattr(import_module(module), function)(rest), prog=f"{prog} {verb}")


def unknown(kind: str, name: str, known: Mapping[str, object] | Sequence[str]) -> str:
    """A sentence that says that `name` is unknown and names the nearest one."""
    from difflib import get_close_matches

    near = get_close_matches(name, list(known), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}."
    return f"unknown {kind} {name!r}: {hint}"


def guarded(call: Callable[[], int | None], *, prog: str) -> int:
    """Run `call`; print an error of the user's as one line and return the exit code.

    Errors that can only be ours keep their traceback. `SPANWISE_TRACEBACK=1` keeps all of them.
    """
    from spanwise._lazy import install_line
    from spanwise.cli._signals import exit_code, unwinding_on_sigterm
    from spanwise.cli._warnings import plain_warnings
    from spanwise.errors import ConvergenceError

    try:
        with unwinding_on_sigterm(), plain_warnings(prog):
            return call() or 0
    except KeyboardInterrupt as stop:
        resume = getattr(stop, "resume", None)
        print(f"\n{prog}: interrupted." + (f" Resume: {resume}" if resume else ""), file=sys.stderr)
        return exit_code(stop)
    except BrokenPipeError:
        # The reader went away (`| head`); give the interpreter somewhere to flush to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, TypeError, OSError, ModuleNotFoundError, ConvergenceError) as error:
        line = None
        if isinstance(error, ModuleNotFoundError):
            if (error.name or "").startswith("spanwise"):
                raise
            line = install_line(error.name or "")
        if os.environ.get("SPANWISE_TRACEBACK", "") not in ("", "0"):
            raise
        message = str(error) or type(error).__name__
        if isinstance(error, OSError) and error.strerror and error.filename is not None:
            message = f"{error.filename}: {error.strerror}"
        print(f"{prog}: error: {message}", file=sys.stderr)
        if line and "pip install" not in message:
            print(f"  to install it: {line}", file=sys.stderr)
        return 1
