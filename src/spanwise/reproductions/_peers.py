"""Other people's optimizers, for a measurement beside ours: loaded from where pip put them."""

import importlib
import importlib.util
import sys
import types

INSTALL = {
    "galore_torch": "galore-torch==1.0",
    "apollo_torch": "apollo-torch==1.0.3",
    "fira": "fira==1.0.2",
}
"""Package and what to install; all with `pip install --no-deps`."""


def available(package: str) -> bool:
    """Whether a peer is installed; imports nothing."""
    return importlib.util.find_spec(package) is not None


def load(package: str, module: str) -> types.ModuleType:
    """One module of a peer without the package's own import, which may want a CUDA library.

    Raises:
        ModuleNotFoundError: With the line that installs it.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"{package} is needed beside ours here: pip install --no-deps {INSTALL[package]}"
        )
    name = f"_peer_{package}"
    if name not in sys.modules:
        shell = types.ModuleType(name)
        shell.__path__ = [spec.submodule_search_locations[0]]
        sys.modules[name] = shell
    return importlib.import_module(f"{name}.{module}")
