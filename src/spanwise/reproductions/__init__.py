"""One module per experiment: the claim, the criterion fixed beforehand, the run, the figure.

A module offers `TITLE`, `CLAIM`, `CRITERION`, a `Settings` dataclass, `PRESETS` (`quick`,
`default`, `full`), `run(settings, ...) -> Result`, `PANELS` and `figure(result, axes)`. It is
found by its slug, with `_` for `-`; modules that begin with `_` are shared by several experiments.
"""

import pkgutil
from difflib import get_close_matches
from importlib import import_module
from types import ModuleType

__all__ = ["load", "slugs"]


def slugs() -> list[str]:
    """Every experiment that can be run, sorted; imports nothing."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name.replace("_", "-") for name in names if not name.startswith("_"))


def load(slug: str) -> ModuleType:
    """The module of an experiment.

    Raises:
        ValueError: If there is none of this name; the nearest one is given.
    """
    known = slugs()
    if slug not in known:
        near = get_close_matches(slug, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}."
        raise ValueError(f"no reproduction is called {slug!r}; {hint}")
    return import_module(f"{__name__}.{slug.replace('-', '_')}")
