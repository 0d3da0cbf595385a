"""Where a named data file lies: explicit path, `$SPANWISE_DATA`, the cache, its origin."""

import difflib
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Asset:
    """A data file that is not packaged: its place in a data folder and its origin."""

    path: str
    """Below a data folder; a `.gz` beside it is taken as well."""
    url: str
    sha256: str
    """Of the file as its origin serves it."""
    licence: str


_WIKITEXT = (
    "https://raw.githubusercontent.com/pytorch/examples/77f55b912142/"
    "word_language_model/data/wikitext-2/"
)

ASSETS: dict[str, Asset] = {
    "clinc150": Asset(
        path="clinc150/data_full.json",
        url="https://raw.githubusercontent.com/clinc/oos-eval/828f8093932c/data/data_full.json",
        sha256="9473b147c37b042e9a10d93faf976d8770464f5cc84646d4ac0bc2625a9632e0",
        licence="CC BY 3.0",
    ),
    "clinc150-domains": Asset(
        path="clinc150/domains.json",
        url="https://raw.githubusercontent.com/clinc/oos-eval/828f8093932c/data/domains.json",
        sha256="b947b579d3b8e74b06f93b01083d8efaff2888b43a3e362533bd88a6e1211b3a",
        licence="CC BY 3.0",
    ),
    "banking77": Asset(
        path="banking77/train.csv",
        url="https://raw.githubusercontent.com/PolyAI-LDN/task-specific-datasets/57ec275d8078/"
        "banking_data/train.csv",
        sha256="b06e26ac675513959a63135f11b94ea7786ed02da65db93a5650d8838cbc664b",
        licence="CC BY 4.0",
    ),
    "dbpedia14": Asset(
        path="dbpedia14/test7600.json",
        url="https://raw.githubusercontent.com/cmnfriend/O-LoRA/07117e1fc4a5/"
        "CL_Benchmark/TC/dbpedia/test.json",
        sha256="971c1a298668385042ce02b67444e1d45773ce0b8b22abbbc39a2592bbe7c255",
        licence="CC BY-SA 3.0",
    ),
    "wikitext2-valid": Asset(
        path="wikitext2/valid.txt",
        url=_WIKITEXT + "valid.txt",
        sha256="f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
        licence="CC BY-SA 3.0",
    ),
    "wikitext2-test": Asset(
        path="wikitext2/test.txt",
        url=_WIKITEXT + "test.txt",
        sha256="d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
        licence="CC BY-SA 3.0",
    ),
}


def cache_folder() -> Path:
    """Where spanwise keeps what it downloads or converts.

    `$SPANWISE_CACHE` if set, else `spanwise` below `$XDG_CACHE_HOME` or `~/.cache`.
    """
    if chosen := os.environ.get("SPANWISE_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "spanwise"


def data_folders() -> list[Path]:
    """Where named files are looked for: below `$SPANWISE_DATA` if set, then in the cache."""
    folders = [cache_folder() / "data"]
    if chosen := os.environ.get("SPANWISE_DATA"):
        folders.insert(0, Path(chosen).expanduser())
    return folders


def nearest(name: str, known: list[str]) -> str:
    """A sentence that names the nearest known name, or all of them."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(sorted(known))}."


def resolve(name: str, path: str | Path | None = None) -> Path:
    """The file behind a named asset.

    Looks at `path`, then below `$SPANWISE_DATA`, then in the cache, and last downloads from
    the origin with a pinned checksum (needs `pooch`).

    Raises:
        ValueError: If the name is unknown.
        FileNotFoundError: If `path` was given and is missing, or the file is nowhere and
            cannot be downloaded.
    """
    if name not in ASSETS:
        raise ValueError(f"unknown data set {name!r}. {nearest(name, list(ASSETS))}")
    return locate(name, ASSETS[name], path)


def locate(name: str, asset: Asset, path: str | Path | None = None) -> Path:
    """The file behind an asset of any table; see `resolve`."""
    if path is not None:
        path = Path(path).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"{name}: no file at {path}.")
        return path
    for folder in data_folders():
        for candidate in (folder / asset.path, folder / f"{asset.path}.gz"):
            if candidate.is_file():
                return candidate
    return _download(name, asset)


def _download(name: str, asset: Asset) -> Path:
    way_out = f"Put it at $SPANWISE_DATA/{asset.path} (or .gz) by hand; its origin is {asset.url}"
    try:
        import pooch
    except ImportError as error:
        raise FileNotFoundError(
            f"{name} is not on this machine and pooch is not installed "
            f"(pip install 'spanwise[hub]'). {way_out}"
        ) from error
    target = cache_folder() / "data" / asset.path
    try:
        found = pooch.retrieve(
            asset.url, f"sha256:{asset.sha256}", fname=target.name, path=target.parent
        )
    except Exception as error:  # requests, urllib3 and OSError, by what is installed
        raise FileNotFoundError(f"{name} could not be downloaded ({error}). {way_out}") from error
    return Path(found)
