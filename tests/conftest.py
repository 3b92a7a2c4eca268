"""Hostile defaults: every async test on every event loop, and failure for whatever leaves something behind or blocks.

- Async tests need no marker; they run on asyncio in debug mode, uvloop and trio, or on those that
  `@pytest.mark.backends` names.
- The fixture `sup` is a running supervisor, in virtual time.
- With the fixture `virtual` they run on asyncio and trio in virtual time: see `runtime.testing.virtual`.
- With `virtual_time`, the fixture for users, they run as users' tests do: see `runtime.testing.plugin`.
- Signals, `umask` and environment are those of a terminal, whoever starts the tests: see `surroundings.py`.
- Tasks that outlive the test, threads, descriptors, leases: see `leaks.py`. Blocking calls: see `blocking.py`.
- What asyncio's debug mode keeps of each task: see `stacks.py`.
- A run whose phase does not follow from the one before it, or disagrees with the queues: see `phases.py`.
- Tests marked `on_store` also run with their sessions on PostgreSQL: see `on_store.py`.
- `pytest --failure A3` and `pytest --suite S1` select tests by their markers.
"""

from __future__ import annotations

import functools
import gc
import inspect
import re
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from locks.rights.notes import Notes
from runtime import Supervisor
from runtime.testing import virtual
from runtime.testing.tasks import leaked_tasks, tasks
from runtime.trial.postgres_server import PostgresServer
from tests import blocking, leaks, on_store, phases, stacks, supervised, surroundings
from tests.planted.server import Server

BACKENDS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {"debug": True}),
    "uvloop": ("asyncio", {"debug": True, "use_uvloop": True}),
    "trio": ("trio", {}),
}
VIRTUAL = ("asyncio", "trio")

CATALOGUED = ("failure", "suite")
_ID = re.compile(r"[A-Z]+[0-9]+[a-z]?")

_failed = pytest.StashKey[bool]()
_before = pytest.StashKey[leaks.Look]()
_recorder = pytest.StashKey[phases.Recorder]()


# Event loops


@pytest.fixture(scope="module")
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """The event loop of an async test, and its options. `pytest_generate_tests` below chooses."""
    name, in_virtual_time, _ = request.param
    return (name, virtual.backend_options(name)) if in_virtual_time else BACKENDS[name]


@pytest.fixture(name="virtual")
def _virtual() -> Iterator[virtual.VirtualClock]:
    """Virtual time for this test, asynchronous or not."""
    with virtual.virtual_time() as clock:
        yield clock


@pytest.fixture
async def sup(
    request: pytest.FixtureRequest, virtual: virtual.VirtualClock, tmp_path: Path
) -> AsyncIterator[Supervisor]:
    """A supervisor of the test module's `LANES`, or of `supervised.LANES`; at the end of the test it must be empty."""
    virtual.busy_limit = 100
    async with Supervisor(tmp_path, lanes=getattr(request.module, "LANES", supervised.LANES)) as sup:
        yield sup
        supervised.assert_empty(sup)


@pytest.fixture
def notes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each right that has a note gets it at its grant, not only once it has lasted."""
    monkeypatch.setattr(Notes, "watch", Notes._write)


@pytest.fixture(scope="session")
def planting() -> Iterator[Server]:
    """Runs tests with defects planted."""
    server = Server()
    yield server
    server.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "anyio_backend" not in metafunc.fixturenames or "virtual_time" in metafunc.fixturenames:  # as the plugin says
        return
    if any("anyio_backend" in marker.args[0] for marker in metafunc.definition.iter_markers("parametrize")):
        return
    in_virtual_time = "virtual" in metafunc.fixturenames
    names = list(VIRTUAL if in_virtual_time else BACKENDS)
    if chosen := metafunc.definition.get_closest_marker("backends"):
        if unknown := set(chosen.args) - set(BACKENDS):
            raise pytest.UsageError(f"{metafunc.definition.nodeid}: no such backend: {', '.join(sorted(unknown))}")
        names = [name for name in names if name in chosen.args]
    store = metafunc.config.getoption("store")
    ways: list[tuple[str, bool, str | None]] = [(name, in_virtual_time, None) for name in names if store is None]
    if store is not None or metafunc.definition.get_closest_marker("on_store"):
        ways += [(name, in_virtual_time, store or on_store.STORES[0]) for name in VIRTUAL if name in names]
    ids = [name if kept_in is None else f"{name}-{kept_in}" for name, _, kept_in in ways]
    metafunc.parametrize("anyio_backend", ways, ids=ids, indirect=True, scope="module")


# PostgreSQL


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A server of this process's own."""
    on_store.fail_or_skip()
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_schemas(postgres_server: PostgresServer) -> Iterator[on_store.Schemas]:
    """Schemas that tests in place of directories use, one after the other."""
    schemas = on_store.Schemas(postgres_server)
    yield schemas
    schemas.close()


@pytest.fixture
def kept_on_store(request: pytest.FixtureRequest, postgres_schemas: on_store.Schemas) -> Iterator[on_store.Kept]:
    """Each directory of a supervisor in this test stands for a schema."""
    clock = request.getfixturevalue("virtual") if "virtual" in request.fixturenames else None
    with on_store.kept(postgres_schemas, clock, cold=_store_of(request.node) == "cold") as kept:
        yield kept


def _store_of(item: pytest.Item) -> str | None:
    """Where a test has its sessions; `None` for files."""
    call = getattr(item, "callspec", None)
    way = None if call is None else call.params.get("anyio_backend")
    return way[2] if isinstance(way, tuple) and len(way) == 3 else None


# What the tests and their children inherit


@pytest.fixture(autouse=True, scope="session")
def _as_in_a_terminal() -> Iterator[None]:
    with surroundings.as_in_a_terminal():
        yield


# Phases


@pytest.fixture(autouse=True)
def _phases(request: pytest.FixtureRequest) -> Iterator[phases.Recorder]:
    with phases.recorded() as recorder:
        request.node.stash[_recorder] = recorder
        yield recorder
    if recorder.complaints and not request.node.stash.get(_failed, False):
        pytest.fail("\n".join(recorder.complaints[:20]), pytrace=False)


# Leaks and blocking calls


def pytest_configure() -> None:
    blocking.install()
    stacks.install()


def pytest_sessionstart() -> None:
    # The first uvloop of a process opens descriptors that stay. They are nobody's leak.
    import uvloop

    uvloop.new_event_loop().close()


@pytest.fixture(autouse=True)
def _leaves_nothing_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    # Set up first, torn down last: by then every loop of the test has closed.
    on_a_store = _store_of(request.node) is not None
    if on_a_store:
        request.getfixturevalue("postgres_schemas").ready()
    blocking.seen.clear()
    before = request.node.stash[_before] = leaks.Look()
    if "virtual" in request.fixturenames:
        request.getfixturevalue("virtual")  # before async fixtures, whose loop must go by it
    if on_a_store:
        request.getfixturevalue("kept_on_store")
    yield
    if request.node.stash.get(_failed, False):
        return  # what it left behind is no news
    if found := leaks.complaints(before) + blocking.seen:
        pytest.fail("\n".join(found), pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    original, before = pyfuncitem.obj, pyfuncitem.stash[_before]
    given = getattr(original, "hypothesis", None)
    if given is not None:
        # Not twice: the function is shared by the event loops, and anyio has wrapped it for the one before.
        if inspect.iscoroutinefunction(given.inner_test) and not hasattr(given.inner_test, "_watched"):
            given.inner_test = _watched(given.inner_test, before)
    elif inspect.iscoroutinefunction(original):
        pyfuncitem.obj = _watched(original, before)
    try:
        result = yield
    finally:
        pyfuncitem.obj = original
    if found := blocking.seen + pyfuncitem.stash[_recorder].complaints[:20]:
        pytest.fail("\n".join(found), pytrace=False)
    return result


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    if call.excinfo is not None:
        item.stash[_failed] = True


def _watched(test: Callable[..., Any], look: leaks.Look) -> Callable[..., Any]:
    """`test`, failing if it leaves tasks or leases behind in a loop that lives on."""

    @functools.wraps(test)
    async def watched(*args: Any, **kwargs: Any) -> None:
        await on_store.quiet()
        before = tasks()
        await test(*args, **kwargs)
        await on_store.quiet()
        found = [f"leaked task: {name}" for name in await leaked_tasks(before)] + leaks.busy_now(look)
        if found:
            pytest.fail("\n".join(found), pytrace=False)

    watched._watched = True  # type: ignore[attr-defined]  # a mark for the hook above
    return watched


# The failure catalogue and the suites


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    gc.disable()  # nearly all that is made meanwhile stays: to look for garbage among it took a seventh of the time
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    # Thousands of collected tests stay until the end: no collection of garbage needs to look through them again.
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):  # a worker has no summary, and ends with five collections of garbage
        gc.unfreeze()  # what is imported for the summary may ask for referrers


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--store", choices=on_store.STORES, help="only tests with sessions on such a store")
    for marker in CATALOGUED:
        parser.addoption(
            f"--{marker}", action="append", metavar="ID", default=[], help=f"only tests marked {marker}(ID)"
        )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wrong = [
        f"{item.nodeid}: {name}{marker.args!r} does not name ids such as 'A3'"
        for item in items
        for name in CATALOGUED
        for marker in item.iter_markers(name)
        if marker.kwargs or not marker.args or not all(_ID.fullmatch(str(one)) for one in marker.args)
    ]
    if wrong:
        raise pytest.UsageError("\n".join(wrong))
    if config.getoption("store"):
        chosen = [item for item in items if _store_of(item) and not on_store.left_out(item.nodeid)]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen
    # The suites have the longest tests: what is left at the end of a job keeps one worker busy, and others idle.
    items.sort(key=lambda item: "suites" not in item.path.parts)
    for name in CATALOGUED:
        if wanted := set(config.getoption(name)):
            chosen = [item for item in items if wanted & {one for m in item.iter_markers(name) for one in m.args}]
            config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
            items[:] = chosen
