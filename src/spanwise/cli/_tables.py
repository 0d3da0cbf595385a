"""What the verbs on data share: numbers from a file in, a folder of tables and pictures out."""

import contextlib
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from spanwise.cli._shared import Terminal, check_device

if TYPE_CHECKING:
    import numpy as np

    from spanwise.datasets.tables import Table


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """The options that every verb on data has."""

    data: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")] = None
    """CSV (.csv, .tsv, .txt; with or without a header; .gz too), .npy, .npz or .safetensors."""
    key: str | None = None
    """Which array of an .npz or .safetensors file, if there are several."""
    drop: tuple[str, ...] = ()
    """Columns to leave out."""
    keep: tuple[str, ...] = ()
    """Columns that are no features (ids, dates, known labels): copied into the result."""
    out: Path | None = None
    """The folder of the results. Without it the summary is printed and nothing is written."""
    overwrite: bool = False
    """Replace the folder if it exists."""
    pictures: bool = True
    """Whether pictures (SVG) are drawn into the folder."""
    seed: int = 0
    """Of everything random; the same seed gives the same result."""
    device: str = "cpu"
    """Where to compute."""


def check(options: TableOptions) -> Path:
    """Refuse what cannot work before anything is read, and return the data's path.

    Raises:
        ValueError: If no file was named, the device is unknown, or the folder cannot be made.
    """
    from spanwise.io import check_place

    if options.data is None:
        raise ValueError(
            "name the file that holds the data: .csv, .tsv, .txt, .npy, .npz or .safetensors."
        )
    check_device(options.device)
    if options.out is not None:
        check_place(options.out)
        if options.out.is_dir() and any(options.out.iterdir()) and not options.overwrite:
            raise ValueError(
                f"{options.out} exists and is not empty. Name another folder, or pass --overwrite."
            )
    if options.out is not None and options.pictures:
        from spanwise._lazy import require

        require("matplotlib", "pictures (or pass --no-pictures)")
    return options.data


def read(options: TableOptions, terminal: Terminal, *, lenient: bool = False) -> "Table":
    """The table that the options name, and a line about it.

    Args:
        options: The verb's.
        terminal: Where to say the line.
        lenient: Whether `drop` may name columns that only another file has.

    Raises:
        ValueError: As `check` and `load_table` do.
        FileNotFoundError: If there is no such file.
    """
    from spanwise.datasets.tables import load_table

    path = check(options)
    table = load_table(
        path, apart=options.keep, drop=options.drop, key=options.key, lenient=lenient
    )
    for name in options.keep:
        if name not in table.apart:
            raise ValueError(
                f"{path} has no column {name!r} to keep. A column that only another file has is "
                "left out with --drop."
            )
    n, d = table.values.shape
    terminal.say(f"{path}: {n} samples, {d} feature{'s' if d > 1 else ''}")
    return table


def flagged(text: str, flags: Mapping[str, str]) -> str:
    """What an estimator says, with the command line's names for its parameters.

    Words that are also English are replaced only where they stand for a parameter: before `must`,
    `exceeds` or an equals sign, or after `raise`, `lower` or `give`.

    Args:
        text: Of an error or a warning.
        flags: Parameter -> flag, without dashes.

    Example:
        >>> flagged("lam must be above 0. Raise max_iter, or set kernel='rbf'.",
        ...         {"lam": "lam", "max_iter": "steps", "kernel": "kernel"})
        '--lam must be above 0. Raise --steps, or set --kernel rbf.'
    """
    for name, flag in flags.items():
        text = re.sub(rf"(?<![\w-]){name}=True\b", f"--{flag}", text)
        text = re.sub(rf"(?<![\w-]){name}=(['\"]?)([\w.-]*\w)\1", rf"--{flag} \2", text)
        where = "" if "_" in name else r"(?= must\b| exceeds\b| = )"
        text = re.sub(rf"(?<![\w-]){name}\b{where}", f"--{flag}", text)
        text = re.sub(rf"\b(raise|lower|give) {name}\b", rf"\1 --{flag}", text, flags=re.IGNORECASE)
    return text


@contextlib.contextmanager
def naming_flags(flags: Mapping[str, str]) -> Iterator[None]:
    """Errors and warnings of the body are `flagged`."""
    try:
        with warnings.catch_warnings(record=True) as told:
            yield
    except ValueError as error:
        raise ValueError(flagged(str(error), flags)) from error
    for warning in told:
        warnings.warn(flagged(str(warning.message), flags), warning.category, stacklevel=3)


def on_device(values: "np.ndarray", device: str) -> Any:
    """What an estimator is given: the array, or a tensor where the device is not the CPU."""
    if device == "cpu":
        return values
    import torch

    return torch.from_numpy(values).to(device)


def as_array(values: Any) -> "np.ndarray":
    """What an estimator gave, as an array."""
    import numpy as np

    return np.asarray(values.cpu() if hasattr(values, "cpu") else values)


@contextlib.contextmanager
def results(options: TableOptions, inputs: Mapping[str, Path], **facts: Any) -> Iterator[Path]:
    """A folder that becomes `--out` when the body ends without an error.

    `config.yaml` and `manifest.json` are written into it beforehand.

    Args:
        options: The verb's, with `out` set.
        inputs: Label -> file that was read; digests are recorded.
        **facts: More for the manifest.
    """
    from spanwise.io import atomic_folder
    from spanwise.io.runs import RunFolder

    assert options.out is not None
    with atomic_folder(options.out, overwrite=options.overwrite) as folder:
        run = RunFolder(folder)
        run.write_config(options)
        run.write_manifest(inputs=inputs, seed=options.seed, device=options.device, **facts)
        yield folder


def tell_files(folder: Path, terminal: Terminal, meanings: Mapping[str, str]) -> None:
    """A line for each file of the results that exists."""
    terminal.say()
    terminal.say(f"wrote {folder}:")
    width = max(len(name) for name in meanings)
    for name, meaning in meanings.items():
        if (folder / name).exists():
            terminal.say(f"  {name:<{width}}  {meaning}")
