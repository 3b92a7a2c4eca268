"""A path is taken as it leads when it is asked for: a program that changes its directory later changes nothing."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

import pytest
from anyio import create_task_group, fail_after, to_thread

from lanes import LaneSpec, SessionLayout
from locks import InvalidSession, LeaseTimeout, LockRegistry, TranscriptError
from locks.doctor import mending
from locks.doctor.inspection import inspect
from locks.doctor.mending import mend
from runtime import Supervisor
from runtime.export.trace import Trace
from runtime.status.client import Client
from tests.poll import eventually

pytestmark = pytest.mark.backends("asyncio", "trio")  # files and values: what uvloop does otherwise has no part in it

RECORD = b'{"n":1}\n'


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Where the program stands at first."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    return home


@pytest.fixture
def away(tmp_path):
    """Where it goes."""
    away = tmp_path / "away"
    away.mkdir()
    return away


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A current directory that is not there any more."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    return gone


def names(directory):
    return sorted(one.name for one in directory.iterdir() if one.suffix != ".flock")


@pytest.mark.failure("Z11")
@pytest.mark.parametrize("engine", ["kernel", "filelock", "none"])
@pytest.mark.parametrize("right", ["lease", "turn"])
@pytest.mark.parametrize("name", ["s.jsonl", Path("s.jsonl"), "../home/s.jsonl", "./s.jsonl"])
async def test_a_right_that_is_held_is_not_lost_by_a_change_of_directory(home, away, engine, right, name):
    registry = LockRegistry(engine=engine)
    async with getattr(registry, right)(name) as lease:
        await lease.append({"n": 1})
        os.chdir(away)
        await lease.append({"n": 2})
        read = await lease.read()
        await lease.replace([{"n": 3}], through=read.position)
        assert os.path.samefile(lease.path, home / "s.jsonl")  # noqa: ASYNC240 -- on the spot
        (held,) = [one for one in registry.holders() if one.right == ("write" if right == "lease" else "turn")]
        assert held.path == lease.path
        if engine == "kernel":
            with pytest.raises(LeaseTimeout):
                async with getattr(LockRegistry(), right)(home / "s.jsonl", wait_timeout=0):
                    raise AssertionError("two holders")
    assert ((home / "s.jsonl").read_bytes(), names(home), names(away)) == (b'{"n":3}\n', ["s.jsonl"], [])
    assert registry.statistics().sessions == 0


@pytest.mark.failure("Z11")
async def test_a_lease_and_a_stream_go_by_the_directory_in_which_they_were_asked_for(home, away):
    registry = LockRegistry()
    (home / "s.jsonl").write_bytes(RECORD)
    lease, stream = registry.lease("s.jsonl"), registry.stream("s.jsonl")
    os.chdir(away)
    async with contextlib.aclosing(stream) as batches:
        assert [list(batch) async for batch in batches] == [[{"n": 1}]]
    async with lease:
        await lease.append({"n": 2})
        assert await registry.read("s.jsonl") == []  # asked for here, where there is none
    assert await registry.read(home / "s.jsonl") == [{"n": 1}, {"n": 2}]
    assert names(away) == []


@pytest.mark.failure("Z11")
async def test_one_name_from_two_directories_is_two_sessions(home, away):
    registry = LockRegistry()
    async with registry.lease("s.jsonl") as first:
        os.chdir(away)
        async with registry.lease("s.jsonl", wait_timeout=0) as second:
            await first.append({"n": 1})
            await second.append({"n": 2})
        assert registry.revoke("s.jsonl", "here") == 0
        os.chdir(home)
    assert [await registry.read(place / "s.jsonl") for place in (home, away)] == [[{"n": 1}], [{"n": 2}]]


async def keep(ctx, messages):
    for message in messages:
        await ctx.session.append({"text": message.body})


def by_name(key):
    return f"{key}/transcript.jsonl"


@pytest.mark.failure("Z11")
@pytest.mark.parametrize("layout", ["directory", "path", "layout"])
async def test_a_supervisor_stays_where_it_was_made(away, layout, monkeypatch):
    with tempfile.TemporaryDirectory(dir="/tmp") as short:  # the names of sockets are
        home = Path(short)
        monkeypatch.chdir(home)
        (home / "sessions" / "a").mkdir(parents=True)
        given: dict[str, str | Path | SessionLayout] = {
            "directory": "sessions",
            "path": Path("sessions"),
            "layout": SessionLayout("sessions", path=by_name),
        }
        lanes = [LaneSpec("session:*", handler=keep)]
        trace = Trace("trace.json")
        sup = Supervisor(given[layout], lanes=lanes, exclusive=True, status_socket="status.sock", **trace.hooks())
        os.chdir(away)
        with trace, fail_after(60):
            async with sup:
                trace.watch(sup.registry)
                await sup.post("session:a", "one").result()
                await to_thread.run_sync(lambda: Client(str(home / "status.sock")).close())
                assert sup.layout.file_of("a").startswith(str(home / "sessions"))
                os.chdir("/")
                await sup.post("session:a", "two").result()
                assert (await sup.reset("a") or "").startswith(str(home / "sessions"))
                await sup.post("session:a", "three").result()
        assert (names(home), names(away)) == (["sessions", "trace.json"], [])
        os.chdir(away)  # not in what is removed now


@pytest.mark.failure("Z11")
async def test_without_a_current_directory_a_relative_path_is_refused_and_others_are_not(nowhere, tmp_path):
    registry = LockRegistry()
    refusals = [
        lambda: registry.lease("s.jsonl"),
        lambda: registry.turn("s.jsonl"),
        lambda: registry.stream("s.jsonl"),
        lambda: registry.revoke("s.jsonl", "gone"),
        lambda: inspect("s.jsonl"),
        lambda: mend("s.jsonl"),
    ]
    for refused in refusals:
        with pytest.raises(InvalidSession, match=r"path: 's\.jsonl' is relative, and there is no current directory"):
            refused()
    for call in (registry.append("s.jsonl", {"n": 1}), registry.read("s.jsonl")):
        with pytest.raises(InvalidSession, match="allowed: an absolute path"):
            await call
    for make in (Supervisor, SessionLayout):
        with pytest.raises(InvalidSession, match="sessions: 'sessions' is relative"):
            make("sessions")
    await registry.append(tmp_path / "s.jsonl", {"n": 1})
    async with Supervisor(tmp_path / "sessions", lanes=[LaneSpec("session:*", handler=keep)]) as sup:
        await sup.post("session:a", "one").result()


@pytest.mark.failure("Z11")
async def test_a_tilde_is_a_name_and_a_trailing_slash_is_refused(home, away):
    registry = LockRegistry()
    (home / "~").mkdir()
    await registry.append("~/s.jsonl", {"n": 1})
    assert names(home / "~") == ["s.jsonl"]
    for name in ("s.jsonl/", "~/s.jsonl/", "~/"):
        with pytest.raises(TranscriptError, match=r"directory|regular file"):
            await registry.append(name, {"n": 2})
    assert (names(home), names(home / "~")) == (["~"], ["s.jsonl"])


@pytest.mark.failure("Z11")
async def test_who_waits_gets_the_session_for_which_it_asked(home, away):
    registry, got = LockRegistry(), []

    async def wait():
        async with registry.lease("s.jsonl") as lease:
            await lease.append({"n": 2})
            got.append(lease.path)

    async with create_task_group() as group, registry.lease("s.jsonl") as lease:
        group.start_soon(wait)
        await eventually(lambda: registry.statistics().waiting)
        os.chdir(away)
        await lease.append({"n": 1})
    assert got == [lease.path]
    assert await registry.read(home / "s.jsonl") == [{"n": 1}, {"n": 2}]
    assert names(away) == []


@pytest.mark.failure("Z11")
def test_the_doctor_stays_with_the_session_for_which_it_was_asked(home, away, monkeypatch):
    (home / "a.jsonl").write_bytes(RECORD + b"torn")
    held = mending._held

    @contextlib.contextmanager
    def leave_first(path):
        os.chdir(away)
        with held(path) as entry:
            yield entry

    monkeypatch.setattr(mending, "_held", leave_first)
    assert mend("a.jsonl").done
    assert ((home / "a.jsonl").read_bytes(), names(away)) == (RECORD, [])


def test_a_layout_keeps_the_kind_of_root_that_it_was_given(home):
    assert SessionLayout(Path("sessions")).root == home / "sessions"
    assert SessionLayout("sessions").root == str(home / "sessions")
    assert SessionLayout("/sessions").root == "/sessions"
    with pytest.raises(InvalidSession, match="allowed: a str or a PathLike of one"):
        SessionLayout(b"sessions")  # type: ignore[arg-type]  # what is refused
