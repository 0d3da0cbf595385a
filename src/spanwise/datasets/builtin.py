"""Text that every Python carries: its source code, its manual, and its table of characters."""

import hashlib
import sysconfig
import tokenize
import unicodedata
from importlib import import_module
from pathlib import Path

from spanwise.datasets.text import Document, TextData

_SKIPPED_FOLDERS = {
    "site-packages",
    "dist-packages",
    "__pycache__",
    "test",
    "tests",
    "idle_test",
    # English prose that `python_docs` reads; kept out so that the two texts share nothing.
    "pydoc_data",
}


def python_stdlib(*, root: str | Path | None = None) -> TextData:
    """The interpreter's own `.py` sources outside test folders, one document per file.

    About 12 MB of real code on Python 3.11, sorted by path, so that the same interpreter
    always gives the same digest. Generated build settings are left out: they name machines.

    Args:
        root: The library's folder; the running interpreter's by default.

    Raises:
        FileNotFoundError: If the folder holds no sources (some minimal images strip them).
    """
    root = Path(root or sysconfig.get_path("stdlib"))
    documents: list[Document] = []
    files: list[tuple[str, str]] = []
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        relative = path.relative_to(root)
        folders = relative.parts[:-1]
        if _SKIPPED_FOLDERS & set(folders) or any(f.startswith("config-") for f in folders):
            continue
        if relative.name.startswith("_sysconfigdata"):
            continue
        try:
            with tokenize.open(path) as stream:  # honours the file's coding cookie
                text = stream.read()
        except (SyntaxError, UnicodeDecodeError):
            continue
        if text.strip():
            documents.append(Document(text))
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            files.append((relative.as_posix(), digest))
    if not documents:
        raise FileNotFoundError(
            f"no Python sources under {root}: this interpreter ships without them. "
            "Install the full standard library, or pass your own text files."
        )
    return TextData(name="python-stdlib", documents=tuple(documents), files=tuple(files))


def python_docs() -> TextData:
    """The language reference in English that `help()` shows, one document per topic.

    About 0.4 MB of prose, sorted by topic.

    Raises:
        FileNotFoundError: If the interpreter ships without `pydoc_data`.
    """
    try:
        topics: dict[str, str] = import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise FileNotFoundError(
            "this interpreter ships without pydoc_data, the text behind help(). "
            "Install the full standard library, or pass your own text files."
        ) from error
    documents: list[Document] = []
    seen: set[str] = set()
    for name in sorted(topics):
        text = topics[name].strip() + "\n"
        # Some topics are the same page under two names.
        if text not in seen:
            seen.add(text)
            documents.append(Document(text))
    return TextData(name="python-docs", documents=tuple(documents))


def unicode_names(*, last: int = 0x2FFF) -> TextData:
    """The Unicode characters' code points and names, one a line, 64 lines a document.

    About 0.4 MB up to U+2FFF; the interpreter's version of Unicode decides, see the digest.

    Args:
        last: Highest code point. CJK and Hangul, whose names are mostly numbers, lie above the
            default.
    """
    lines = [
        f"U+{code:04X} {name}\n"
        for code in range(last + 1)
        if (name := unicodedata.name(chr(code), None))
    ]
    documents = (Document("".join(lines[i : i + 64])) for i in range(0, len(lines), 64))
    return TextData(name="unicode-names", documents=tuple(documents))
