"""The pytest plugin: the fixture `virtual_time`, which runs a test in virtual time, on both event loops.

An async test that requests the fixture is run by anyio's plugin and needs no marker. Nothing of lanes is imported
before a test asks for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .virtual import VirtualClock

FIXTURE = "virtual_time"
LOOPS = "virtual_time_loops"
_LOOPS = ("asyncio", "trio")


def pytest_addoption(parser: pytest.Parser) -> None:
    """The setting that names the loops."""
    parser.addini(LOOPS, f"event loops of tests that request `{FIXTURE}`", type="args", default=list(_LOOPS))


def pytest_configure(config: pytest.Config) -> None:
    """Describe the marker."""
    config.addinivalue_line("markers", f"{LOOPS}(*names): run on these event loops only: asyncio, trio")


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Have a test that requests the fixture run on each loop."""
    if FIXTURE not in metafunc.fixturenames or "anyio_backend" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker(LOOPS)
    names = list(marker.args) if marker is not None else metafunc.config.getini(LOOPS)
    if unknown := [name for name in names if name not in _LOOPS]:
        raise pytest.UsageError(f"{LOOPS}: {', '.join(map(repr, unknown))} is unknown; allowed: 'asyncio', 'trio'")
    from .virtual import backend_options  # noqa: PLC0415 -- a session without such tests imports nothing of ours

    # By a marker, which the fixture of that name gives way to, whoever has defined it and with which parameters.
    loops = [(name, backend_options(name)) for name in names]
    metafunc.definition.add_marker(pytest.mark.parametrize("anyio_backend", loops, ids=names, scope="module"))


@pytest.fixture
def virtual_time(anyio_backend: Any) -> Iterator[VirtualClock]:  # noqa: ARG001 -- it is what anyio runs the test by
    """Virtual time for this test: it stands still while a task can run, and jumps when all of them wait."""
    from .alone import virtual_time as entered  # noqa: PLC0415 -- as above

    with entered() as clock:
        yield clock


@pytest.fixture(autouse=True)
def _virtual_time_first(request: pytest.FixtureRequest) -> None:
    """Before async fixtures, whose loop must go by it."""
    if FIXTURE in request.fixturenames:
        request.getfixturevalue(FIXTURE)
