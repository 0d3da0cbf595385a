"""Models as a person names them on the command line."""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path


def model_path(spec: str) -> str:
    """The folder behind a packaged name; a path, or a name on the hub, as it is.

    Raises:
        ModuleNotFoundError: If the package that carries the model is not installed.
        ValueError: If it is a size, whose weights nobody has trained, or nearly a packaged name.
    """
    if not spec.strip():
        raise ValueError("a model has no name: got an empty path. An unset shell variable?")
    if Path(spec).expanduser().exists():
        return spec
    from spanwise.zoo import is_pretrained, names, source_folder

    if not is_pretrained(spec):
        raise ValueError(
            f"{spec} is a size with fresh weights, of which nothing was trained: name a folder."
        )
    found = source_folder(spec)
    if found is not None:
        return str(found)
    packaged = [name for name in names() if is_pretrained(name)]
    near = [] if "/" in spec else get_close_matches(spec, packaged, n=1, cutoff=0.8)
    if near:
        raise ValueError(f"no model at {spec!r}. Did you mean {near[0]!r}?")
    return spec


def atlas_path(path: Path, model: str) -> Path:
    """An atlas's file.

    Raises:
        FileNotFoundError: If it is not there; the message tells how to make one.
        ValueError: If it is a folder.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name an atlas, such as know.atlas.safetensors.")
    if not path.exists():
        raise FileNotFoundError(
            f"no atlas at {path}. Make one: spanwise atlas extract {model} --data old.txt --out "
            f"{path}"
        )
    return path


def check_different(specs: Sequence[str], hint: str = "", what: str = "model") -> None:
    """Raise `ValueError` if one model is named twice: it would count twice, or be its own base.

    Args:
        specs: Models as they were named.
        hint: What else one may have meant, the end of a sentence.
        what: What they are.
    """
    seen: dict[Path | str, str] = {}
    for spec in specs:
        path = Path(spec).expanduser()
        place = path.resolve() if path.exists() else spec
        if place in seen:
            also = "" if seen[place] == spec else f", also as {seen[place]}"
            raise ValueError(f"{spec} is named twice{also}: name each {what} once{hint}.")
        seen[place] = spec
