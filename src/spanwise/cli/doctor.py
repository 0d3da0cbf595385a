"""`spanwise doctor`: what is installed, what is missing, how to get it."""

import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from spanwise._lazy import EXTRAS, install_line
from spanwise.cli._shared import Terminal, run_verb

BASE = ("torch", "numpy", "safetensors", "jaxtyping", "rich", "tyro", "pyyaml")


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """Say what is installed, what is missing and how to get it.

    Exit code 1 if something that spanwise cannot do without is missing.
    """


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's."""

    what: str
    state: Literal["ok", "missing", "broken", "note"]
    detail: str


def main(argv: list[str]) -> int:
    """`spanwise doctor`."""
    return run_verb(DoctorOptions, argv, _doctor, prog="spanwise doctor")


def _doctor(options: DoctorOptions, terminal: Terminal) -> int:
    del options
    findings = [*_base(), *_extras(), *_machine(), *_data()]
    rows = [(f.what, f.state, f.detail) for f in findings]
    terminal.table(("what", "state", "detail"), rows, left=("state", "detail"))
    terminal.result([asdict(finding) for finding in findings])
    return 1 if any(f.state == "broken" for f in findings) else 0


def _base() -> Iterator[Finding]:
    yield Finding("python", "ok", f"{platform.python_version()} at {sys.prefix}")
    for name in ("spanwise", *BASE):
        found = _version(name)
        if found is None:
            yield Finding(name, "broken", f"not installed; run: pip install {name}")
        else:
            yield Finding(name, "ok", f"{found}{_below_bound(name, found)}")


def _extras() -> Iterator[Finding]:
    for name, extra in sorted(EXTRAS.items(), key=lambda item: (item[1], item[0])):
        found = _version(name)
        if found is None:
            yield Finding(name, "missing", f"extra {extra!r}: {install_line(name)}")
        else:
            yield Finding(name, "ok", f"{found} (extra {extra!r}){_below_bound(name, found)}")


def _machine() -> Iterator[Finding]:
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding("torch", "broken", f"does not load: {error}")
        return
    yield Finding("threads", "ok", f"torch uses {torch.get_num_threads()} of {cpus} cores")
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 1e9
        detail = f"{torch.cuda.get_device_name(0)}, {memory:.0f} GB"
        yield Finding("accelerator", "ok", detail)
    elif torch.backends.mps.is_available():
        yield Finding("accelerator", "ok", "mps")
    else:
        yield Finding("accelerator", "note", "none: everything runs on the CPU, slower")


def _data() -> Iterator[Finding]:
    from spanwise.datasets import cache_folder

    folder = os.environ.get("SPANWISE_DATA")
    if folder is None:
        yield Finding("SPANWISE_DATA", "note", "not set: named data sets come from cache or origin")
    elif Path(folder).expanduser().is_dir():
        yield Finding("SPANWISE_DATA", "ok", folder)
    else:
        yield Finding("SPANWISE_DATA", "missing", f"{folder} is not a folder")
    yield Finding("cache", "ok" if cache_folder().is_dir() else "note", str(cache_folder()))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _below_bound(name: str, found: str) -> str:
    """A remark if `found` is older than what spanwise asks for."""
    try:
        from packaging.requirements import Requirement
    except ModuleNotFoundError:
        return ""
    for line in requires("spanwise") or []:
        wanted = Requirement(line)
        if wanted.name.lower() == name and not wanted.specifier.contains(found, prereleases=True):
            return f", but spanwise wants {wanted.specifier}"
    return ""
