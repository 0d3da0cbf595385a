"""Real data by name or path, read into plain values.

The default texts ship with the interpreter (`python_stdlib`, `python_docs`), so nothing here
needs a network.
"""

from spanwise.datasets.builtin import python_docs, python_stdlib, unicode_names
from spanwise.datasets.load import load, load_text, names
from spanwise.datasets.resolve import ASSETS, Asset, cache_folder, resolve
from spanwise.datasets.text import Document, TextData, join
from spanwise.datasets.tokens import ByteTokenizer

__all__ = [
    "ASSETS",
    "Asset",
    "ByteTokenizer",
    "Document",
    "TextData",
    "cache_folder",
    "join",
    "load",
    "load_text",
    "names",
    "python_docs",
    "python_stdlib",
    "resolve",
    "unicode_names",
]
