"""Pictures with a class each: real sets by name, from files in the IDX format."""

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from spanwise.datasets.resolve import data_folders

Part = Literal["train", "test"]

LARGEST = 2**30
"""Bytes that a file may announce: no header, damaged or made to harm, asks for all memory."""
SYSTEM = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package lays the files."""
FASHION = (
    "t-shirt or top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
    "ankle boot",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Grey pictures of one size in a fixed order, each with one of the classes."""

    name: str
    pixels: np.ndarray
    """`(n, height, width)`, uint8."""
    labels: np.ndarray
    """Index into `classes`, `(n,)`, int64."""
    classes: tuple[str, ...]
    """What the classes are called, in words."""

    def __len__(self) -> int:
        return len(self.pixels)


def fashion_mnist(folder: str | Path | None = None, *, part: Part = "train") -> LabelledImages:
    """Fashion-MNIST: 28 x 28 pictures of clothes, ten kinds, 6000 of each to train, 1000 to test.

    Args:
        folder: Where its IDX files lie, gzipped or not. By default `fashion-mnist` below
            `$SPANWISE_DATA`, then below the cache, then where Debian's package
            `dataset-fashion-mnist` lays them.
        part: `"train"` or `"test"`.

    Raises:
        ValueError: If `part` is unknown, or a file is no IDX file or not whole.
        FileNotFoundError: If the files are nowhere.

    Sources:
        Xiao, Rasul and Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine
        learning algorithms", 2017.
    """
    if part not in get_args(Part):
        raise ValueError(f"part must be 'train' or 'test', got {part!r}.")
    stem = "train" if part == "train" else "t10k"
    names = (f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte")
    pixels, labels = (read_idx(path) for path in _find(names, folder))
    if pixels.ndim != 3 or labels.shape != pixels.shape[:1]:
        raise ValueError(
            f"pictures must be (n, height, width) with one label each, got shapes {pixels.shape} "
            f"and {labels.shape} in {names[0]} and {names[1]}."
        )
    if labels.size and labels.max() >= len(FASHION):
        raise ValueError(f"labels must lie below {len(FASHION)}, got {labels.max()} in {names[1]}.")
    return LabelledImages(
        name=f"fashion-mnist, {part}", pixels=pixels, labels=labels.astype(np.int64),
        classes=FASHION,
    )  # fmt: skip


def read_idx(path: str | Path) -> np.ndarray:
    """The bytes of an IDX file, gzipped if its name ends in `.gz`, as an array of uint8.

    Args:
        path: A file of MNIST's format: two zeros, the type (8, unsigned bytes, is read), the
            number of axes, each axis as a big-endian number of four bytes, then the values.

    Raises:
        ValueError: If the header says something else, or the file holds fewer or more values.
    """
    path = Path(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            head = stream.read(4)
            if len(head) < 4 or head[:3] != b"\0\0\x08" or not 1 <= head[3] <= 4:
                raise ValueError(
                    f"{path}: no IDX file of unsigned bytes; it begins with {head.hex(' ')!r}, "
                    "where '00 00 08' and the number of axes, 1 to 4, were expected."
                )
            sizes = stream.read(4 * head[3])
            if len(sizes) < 4 * head[3]:
                raise ValueError(f"{path}: it ends within its header. Fetch it again.")
            shape = struct.unpack(f">{head[3]}I", sizes)
            count = math.prod(shape)
            if count > LARGEST:
                raise ValueError(f"{path}: shape {shape} is above {LARGEST} bytes.")
            values = stream.read(count + 1)  # one more, to see whether there are more
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: not a whole gzip file ({error}). Fetch it again.") from error
    if len(values) != count:
        held = "more" if len(values) > count else f"only {len(values)}"
        raise ValueError(
            f"{path}: shape {shape} takes {count} bytes, the file holds {held}. Fetch it again."
        )
    return np.frombuffer(values, dtype=np.uint8).reshape(shape)


def _find(names: tuple[str, str], folder: str | Path | None) -> tuple[Path, Path]:
    """Both files from the first folder that has them."""
    if folder is None:
        folders = [*(held / "fashion-mnist" for held in data_folders()), SYSTEM]
    else:
        folders = [Path(folder).expanduser()]
    for held in folders:
        found = [
            next((p for p in (held / name, held / f"{name}.gz") if p.is_file()), None)
            for name in names
        ]
        if found[0] is not None and found[1] is not None:
            return found[0], found[1]
    raise FileNotFoundError(
        f"no {names[0]} and {names[1]} (or .gz) in {', '.join(map(str, folders))}. On Debian and "
        "Ubuntu: apt-get install dataset-fashion-mnist. Elsewhere take them from data/fashion of "
        "github.com/zalandoresearch/fashion-mnist to $SPANWISE_DATA/fashion-mnist, or name their "
        "folder."
    )
