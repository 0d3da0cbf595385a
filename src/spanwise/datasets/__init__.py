"""Real data by name or path, read into plain values.

The default texts ship with the interpreter (`python_stdlib`, `python_docs`), so nothing here
needs a network.
"""

from spanwise.datasets.anomalies import AnomalySet, load_anomalies, source_of
from spanwise.datasets.builtin import python_docs, python_stdlib, unicode_names
from spanwise.datasets.images import LabelledImages, fashion_mnist, read_idx
from spanwise.datasets.labelled import (
    LabelledTexts,
    banking77,
    bbc_news,
    clinc150,
    dbpedia14,
    load_labelled,
    rotten_tomatoes,
)
from spanwise.datasets.load import load, load_text, names
from spanwise.datasets.resolve import ASSETS, Asset, cache_folder, data_folders, resolve
from spanwise.datasets.text import Document, TextData, join
from spanwise.datasets.tokens import ByteTokenizer

__all__ = [
    "ASSETS",
    "AnomalySet",
    "Asset",
    "ByteTokenizer",
    "Document",
    "LabelledImages",
    "LabelledTexts",
    "TextData",
    "banking77",
    "bbc_news",
    "cache_folder",
    "clinc150",
    "data_folders",
    "dbpedia14",
    "fashion_mnist",
    "join",
    "load",
    "load_anomalies",
    "load_labelled",
    "load_text",
    "names",
    "python_docs",
    "python_stdlib",
    "read_idx",
    "resolve",
    "rotten_tomatoes",
    "source_of",
    "unicode_names",
]
