"""The front doors are light: nothing heavy loads until it is used."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import spanwise
from spanwise._lazy import EXTRAS, install_line, require

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "numpy", "transformers", "matplotlib", "tyro", "rich", "yaml", "safetensors")


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize(
    "statement",
    [
        "import spanwise",
        "import spanwise.catalog",
        "import spanwise.cli; spanwise.cli.main(['--help'])",
        "import spanwise.cli; spanwise.cli.main(['tarin'])",
    ],
)
def test_the_front_door_loads_nothing_heavy(statement):
    code = f"{statement}\nimport sys\nprint([m for m in {HEAVY} if m in sys.modules])"
    assert _python(code).splitlines()[-1] == "[]"


def test_public_names_resolve():
    for name in spanwise.__all__:
        assert getattr(spanwise, name) is not None


def test_rooms_are_attributes_and_listed():
    assert {"Atlas", "Subspace", "optim", "linalg", "catalog"} <= set(dir(spanwise))
    assert spanwise.catalog.METHODS
    with pytest.raises(AttributeError, match="no attribute 'grassy'"):
        _ = spanwise.grassy


def test_every_optional_module_belongs_to_an_extra():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    packages = {"sklearn": "scikit-learn"}  # where the package has another name
    for module, extra in EXTRAS.items():
        package = packages.get(module, module)
        assert any(line.startswith(package) for line in extras[extra]), (module, extra)


def test_a_missing_extra_names_its_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"a plot needs .*pip install 'spanwise\[plots\]'"
    ):
        require("matplotlib", "a plot")
    assert install_line("no_such_module") is None
