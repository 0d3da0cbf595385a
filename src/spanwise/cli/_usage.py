"""Wrong usage in one line: the parser draws boxes, which neither logs nor eyes need."""

import contextlib
import difflib
import io
import re
import sys
from collections.abc import Iterator

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@contextlib.contextmanager
def one_line_usage(prog: str) -> Iterator[None]:
    """Within the body, what the parser says of wrong usage becomes one line on stderr.

    Args:
        prog: The command so far, such as `"spanwise train"`.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            yield
    except SystemExit as stop:
        text = said.getvalue()
        if stop.code not in (None, 0) and (line := summary(text)):
            text = f"{prog}: error: {line} {prog} --help explains every flag.\n"
        sys.stderr.write(text)
        raise
    sys.stderr.write(said.getvalue())


def summary(box: str) -> str:
    r"""A box's first paragraph as a sentence, with the flag that was perhaps meant; "" of no box.

    Example:
        >>> summary("╭ No ╮\n│ Unrecognized │\n│ options: --lamm │\n│ ─── │\n│ For full helptext │")
        'unrecognized options: --lamm.'
    """
    lines = [_COLOURS.sub("", line).strip("│ ") for line in box.strip().splitlines()]
    parts: list[list[str]] = [[]]
    for line in lines[1:]:  # after the title, which a rule follows where the frame is no line
        if line.strip("─-╰╯"):
            parts[-1].append(line)
        else:
            parts.append([])
    first, *others = [part for part in parts if part] or [[]]
    if not any(part[0].startswith("For full helptext") for part in others):
        return ""
    text = " ".join(" ".join(first).split())
    # Fields have a prefix that is ours, and one value is no plural.
    text = text.replace("'options.", "'").replace("Expected 1 values", "Expected one value")
    text = re.sub(r"^Missing from [^:]*: (\S+) (.*?)\.? \(required\)$", r"\1 is missing: \2", text)
    near = [flag.group() for line in others[0] if (flag := re.match(r"--[\w-]+", line))]
    if others[0][0].startswith("Perhaps you meant") and near:
        given = re.search(r"--[\w-]+", text)
        nearest = difflib.get_close_matches(given.group() if given else "", near, 1, 0) or near
        text = f"{text.rstrip('.')}; did you mean {nearest[0]}?"
    elif not text.endswith("."):
        text += "."
    return text if text[:2].isupper() else text[:1].lower() + text[1:]
