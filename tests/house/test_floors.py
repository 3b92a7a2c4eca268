"""Three floors: `runtime` stands on `lanes`, `lanes` on `locks`, and nothing leans on what is above it.

Read from the source, so that an import inside a function or for types only counts as well. Within the floors no two
modules need each other in order to be imported.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import ROOT

FLOORS = ("locks", "lanes", "runtime")  # from the ground up
OUTSIDE = ("tests", "benchmarks", "examples", "docs")

Import = tuple[str, int, bool]
"""The module that is imported, the line, and whether importing the importer needs it."""


def modules_of(root: Path) -> dict[str, Path]:
    """All modules of the floors, by name."""
    found = {}
    for floor in FLOORS:
        for path in (root / floor).rglob("*.py"):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(name: str, path: Path, modules: dict[str, Path]) -> list[Import]:
    """What the module `name` imports, anywhere in it."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]

    def targets(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
            return
        base = node.module or ""
        if node.level:
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*above, base] if base else above)
        for alias in node.names:
            # A submodule, or a name that the package must have defined by then.
            yield f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules else base

    def walk(node: ast.AST, at_import: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import | ast.ImportFrom):
                for target in targets(child):
                    yield target, child.lineno, at_import
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                yield from walk(child, False)
            elif isinstance(child, ast.If) and _is_for_types(child.test):
                for part in child.body:
                    yield from walk(ast.Module([part], []), False)
                for part in child.orelse:
                    yield from walk(ast.Module([part], []), at_import)
            else:
                yield from walk(child, at_import)

    return list(walk(ast.parse(path.read_text(encoding="utf-8")), True))


def _is_for_types(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def upward(root: Path) -> list[str]:
    """Every import that goes up or out, as `file:line: why`."""
    modules = modules_of(root)
    complaints = []
    for name, path in modules.items():
        floor = name.partition(".")[0]
        forbidden = (*FLOORS[FLOORS.index(floor) + 1 :], *OUTSIDE)
        for target, line, _ in imports_of(name, path, modules):
            if target.partition(".")[0] in forbidden:
                complaints.append(f"{path.relative_to(root)}:{line}: {floor} imports {target}")
    return complaints


def cycles(root: Path) -> list[str]:
    """Every ring of modules each of which must be imported before the next, as `a -> b -> a`."""
    modules = modules_of(root)
    needs = {
        name: sorted({target for target, _, at_import in imports_of(name, path, modules) if at_import} & modules.keys())
        for name, path in modules.items()
    }
    found, done = [], set()

    def visit(name: str, trail: list[str]) -> None:
        if name in trail:
            found.append(" -> ".join([*trail[trail.index(name) :], name]))
        elif name not in done:
            for needed in needs[name]:
                visit(needed, [*trail, name])
            done.add(name)

    for name in sorted(needs):
        visit(name, [])
    return found


def test_no_floor_imports_what_is_above_it():
    assert upward(ROOT) == []


def test_no_modules_need_each_other_to_be_imported():
    assert cycles(ROOT) == []


# The checks themselves


@pytest.fixture
def house(tmp_path):
    """A house that is in order, and a way to add a module."""

    def add(path: str, source: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(textwrap.dedent(source))

    add("locks/__init__.py", "from .lease import Lease")
    add("locks/lease.py", "import os\nfrom . import _clock\nfrom ._clock import now")
    add("locks/_clock.py", "import time")
    add("lanes/__init__.py", "from locks import Lease")
    add("runtime/cli/__init__.py", "import lanes.run\nfrom ..supervisor import Supervisor")
    add("runtime/supervisor.py", "from locks.lease import Lease")
    assert upward(tmp_path) == []
    assert cycles(tmp_path) == []
    return add


@pytest.mark.parametrize(
    "source",
    [
        "import lanes",
        "from lanes.run import Run",
        "import os, runtime.cli as cli",
        "def late():\n    from lanes import Run",
        "if TYPE_CHECKING:\n    from lanes import Run",
        "try:\n    from tests.poll import eventually\nexcept ImportError:\n    pass",
    ],
)
def test_an_upward_import_is_found(house, tmp_path, source):
    house("locks/rights/steward.py", source)
    assert [one.partition(" imports ")[0].rpartition(" ")[2] for one in upward(tmp_path)] == ["locks"]


@pytest.mark.parametrize(
    "source", ["from . import lease", "from .lease import Lease", "import locks.lease", "from . import Lease"]
)
def test_a_cycle_is_found(house, tmp_path, source):
    house("locks/_clock.py", source)
    assert len(cycles(tmp_path)) == 1


@pytest.mark.parametrize(
    "source", ["def late():\n    from . import lease", "if TYPE_CHECKING:\n    from . import lease"]
)
def test_an_import_that_is_not_needed_at_once_makes_no_cycle(house, tmp_path, source):
    house("locks/_clock.py", source)
    assert cycles(tmp_path) == []
