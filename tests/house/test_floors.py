"""Three floors: `runtime` stands on `lanes`, `lanes` on `locks`, and no floor imports what is above it.

Inside each floor the folders have an order too, and no modules import each other in a circle. All of it is read from
the source: an import inside a function, or for types only, counts as well.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from tests import ROOT
from tests.imports import FLOORS, circles, imports_of, modules_of

OUTSIDE = ("tests", "benchmarks", "examples", "docs")

ORDER: dict[str, list[str]] = {
    "locks": [
        "_clock _effects _events _loop _mutex _os _public _threads checks errors file_kinds holder",
        "network paths process",
        "engines",
        "statistics",
        "rights",
        "sidecar transcript",
        "doctor lease",
        "registry",
        "lowlevel",
    ],
    "lanes": [
        "asking checks errors events layout message pool_spec retry run run_errors spec spec_table tracebacks",
        "queues",
        "body",
        "core",
        "testing",
    ],
    "runtime": [
        "background failures log mismatch quantiles threads usage_error",
        "watch",
        "export inspect services statistics zombies",
        "drain phase",
        "calls status",
        "process",
        "inbox",
        "postgres",
        "fleet",
        "neighbours streams",
        "posting",
        "ending everywhere",
        "restart",
        "life",
        "supervisor",
        "testing",
        "asgi metrics web",
        "trial",
        "bench",
        "cli",
    ],
}
"""The rooms of each floor, from the ground up: each imports what stands on its own line or above. The package itself,
which users import, comes last."""

DOORS = {"lanes.testing": "runtime.testing"}
"""Modules by which users reach a room of a higher floor, under the name of the floor that they know it by. A door may
import that room, and no module of any floor imports the door: so it is no way up for the floor that it stands on."""


def upward(root: Path) -> list[str]:
    """Every import that goes up or out, as `file:line: why`."""
    modules = modules_of(root)
    complaints = []
    for name, path in modules.items():
        floor = name.partition(".")[0]
        forbidden = (*FLOORS[FLOORS.index(floor) + 1 :], *OUTSIDE)
        for target, line, _ in imports_of(name, path, modules):
            through = DOORS.get(name)
            if through is not None and (target == through or target.startswith(f"{through}.")):
                continue
            if target in DOORS or target.partition(".")[0] in forbidden:
                complaints.append(f"{path.relative_to(root)}:{line}: {floor} imports {target}")
    return complaints


def level_of(module: str) -> int:
    """On which line of its floor's order a module stands."""
    floor, _, rest = module.partition(".")
    room = rest.partition(".")[0]
    if not room:
        return len(ORDER[floor])
    (level,) = (level for level, rooms in enumerate(ORDER[floor]) if room in rooms.split())
    return level


def out_of_order(root: Path) -> list[str]:
    """Every import from a room to one that comes later on the same floor, as `file:line: why`."""
    modules = modules_of(root)
    return [
        f"{path.relative_to(root)}:{line}: {name} imports {target}"
        for name, path in modules.items()
        for target, line, _ in imports_of(name, path, modules)
        if target in modules
        and target.partition(".")[0] == name.partition(".")[0]
        and level_of(target) > level_of(name)
    ]


def test_no_floor_imports_what_is_above_it():
    assert upward(ROOT) == []


def test_no_room_imports_one_that_comes_later():
    assert out_of_order(ROOT) == []


def test_every_room_of_the_order_is_there():
    names = [name.split(".") for name in modules_of(ROOT) if "." in name]
    found = {floor: {room for above, room, *_ in names if above == floor} for floor in ORDER}
    assert found == {floor: {room for rooms in lines for room in rooms.split()} for floor, lines in ORDER.items()}


def test_no_modules_import_each_other_in_a_circle():
    assert circles(ROOT) == []


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
    assert out_of_order(tmp_path) == []
    assert circles(tmp_path) == []
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
    house("locks/steward.py", source)
    assert [found.partition(" imports ")[0].rpartition(" ")[2] for found in upward(tmp_path)] == ["locks"]


@pytest.mark.parametrize(
    "path, source",
    [
        ("lanes/run.py", "from .testing import run"),
        ("runtime/supervisor.py", "import lanes.testing"),
        ("lanes/testing.py", "from runtime.supervisor import Supervisor"),
    ],
)
def test_a_door_is_for_users_alone_and_leads_into_one_room(house, tmp_path, path, source):
    house("runtime/testing/alone.py", "from ..supervisor import Supervisor")
    house("lanes/testing.py", "from runtime.testing.alone import run")
    assert upward(tmp_path) == []
    house(path, source)
    assert [found.partition(":")[0] for found in upward(tmp_path)] == [path]


@pytest.mark.parametrize(
    "source", ["from ..cli import main", "import runtime.cli", "if TYPE_CHECKING:\n    from ..cli import main"]
)
def test_an_import_of_a_later_room_is_found(house, tmp_path, source):
    house("runtime/watch/watchdog.py", source)
    assert out_of_order(tmp_path) == [
        f"runtime/watch/watchdog.py:{1 + source.count(chr(10))}: runtime.watch.watchdog imports runtime.cli"
    ]


@pytest.mark.parametrize(
    "source, kind",
    [
        ("from . import lease", "hard"),
        ("from .lease import Lease", "hard"),
        ("import locks.lease", "hard"),
        ("def late():\n    from . import lease", "lazy"),
        ("if TYPE_CHECKING:\n    from .lease import Lease", "typing"),
    ],
)
def test_a_circle_is_found_whatever_the_import_is_for(house, tmp_path, source, kind):
    house("locks/_clock.py", source)
    assert f"locks/_clock.py:{1 + source.count(chr(10))}: {kind} import of locks.lease" in circles(tmp_path)
    assert [found.partition(":")[0] for found in circles(tmp_path)] == ["locks/_clock.py"] + ["locks/lease.py"] * 2


def test_a_circle_through_a_package_is_found(house, tmp_path):
    house("locks/_clock.py", "from . import Lease")
    assert {found.partition(":")[0] for found in circles(tmp_path)} == {
        "locks/__init__.py",
        "locks/_clock.py",
        "locks/lease.py",
    }
