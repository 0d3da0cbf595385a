"""The shape of the house: floors, sizes, and nothing that prints or asserts at users."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "spanwise"

FLOORS = {
    "errors": 0, "_lazy": 0,
    "linalg": 1, "io": 1,
    "layouts": 2, "lora": 2, "subspace": 2, "atlas": 2, "plots": 2, "catalog": 2,
    "optim": 3, "merging": 3, "estimators": 3, "datasets": 3, "zoo": 3,
    "training": 4, "report": 4,
    "reproductions": 5, "demo": 5,
    "cli": 6,
}  # fmt: skip
# Inside floor 2 there is one order: a layout, subspaces on it, an atlas of them.
WITHIN_FLOOR = {("subspace", "layouts"), ("lora", "layouts")}
WITHIN_FLOOR |= {("atlas", "layouts"), ("atlas", "lora"), ("atlas", "subspace")}
# `zoo` gives byte-level models the tokenizer of `datasets`.
WITHIN_FLOOR |= {("zoo", "datasets"), ("demo", "reproductions")}

modules = pytest.mark.parametrize(
    "path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE))
)


def room_of(path):
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_rooms(path):
    """Rooms that a file imports when it runs; imports for type checkers only do not count."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            package, _, rest = node.module.partition(".")
            if package == "spanwise":
                yield from [rest.partition(".")[0]] if rest else [a.name for a in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("spanwise."):
                    yield alias.name.split(".")[1]


@modules
def test_a_room_imports_from_lower_floors_only(path):
    room = room_of(path)
    if room in ("__init__", "__main__"):
        return
    for other in imported_rooms(path):
        if other in (room, "__version__"):
            continue
        lower = FLOORS[other] < FLOORS[room]
        assert lower or (room, other) in WITHIN_FLOOR, f"{room} imports {other}"


@modules
def test_a_reader_can_hold_a_module_in_mind(path):
    assert len(path.read_text().splitlines()) <= 450


@modules
def test_library_code_does_not_print(path):
    if room_of(path) == "cli" or path.name == "_worker.py":  # a worker speaks through its pipe
        return
    calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
    printed = [c.lineno for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]
    assert printed == []


@modules
def test_no_module_touches_the_global_generator(path):
    if FLOORS.get(room_of(path), 0) > 2 and room_of(path) != "optim":
        return  # fresh models and runs of their own are seeded as a whole
    calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
    assert "torch.manual_seed" not in [ast.unparse(call.func) for call in calls]
