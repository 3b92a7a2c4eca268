"""`lanes run --trace` and `Trace`: a file that the viewers of the Chrome Trace Event format show, whatever happens.

There is no viewer here. `checked` holds the file to what both of them need: an array of events; every track named, and
in one group; whole microseconds; no end without a beginning; and slices of a track that nest or follow each other.
"""

from __future__ import annotations

import errno
import json
import math
import os
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs

from lanes import LaneSpec, RetrySpec, RunState
from locks import LockRegistry, Revoked, _events, _os
from runtime import Supervisor
from runtime.export import event_file, trace
from runtime.export.event_file import EventFile
from runtime.export.trace import Trace
from tests import blocking
from tests.command import lanes, result_of, started
from tests.poll import eventually, eventually_sync
from tests.supervised import HungThread, gone

pytestmark = pytest.mark.backends("asyncio", "trio")


@dataclass
class Slice:
    name: str
    began: int
    ended: float
    args: dict[str, Any]


@dataclass
class Track:
    slices: list[Slice] = field(default_factory=list)
    marks: dict[str, dict[str, Any]] = field(default_factory=dict)


def checked(events, *, killed=False):
    """The tracks by name, of which several may have the same; fails for what a viewer would drop or misplace."""
    named: dict[int, str] = {}
    groups: dict[int, int] = {}
    found: dict[int, Track] = defaultdict(Track)
    begun: dict[int, list[Slice]] = defaultdict(list)
    for event in events:
        assert event["ph"] in ("M", "B", "E", "X", "i"), event
        assert type(event["pid"]) is type(event["tid"]) is type(event["ts"]) is int and event["ts"] >= 0, event
        assert groups.setdefault(event["tid"], event["pid"]) == event["pid"] or event["tid"] == 0, event
        if event["ph"] == "M" and event["name"] == "thread_name":
            assert event["tid"] not in named
            named[event["tid"]] = event["args"]["name"]
    for event in sorted((one for one in events if one["ph"] != "M"), key=lambda one: one["ts"]):
        track, stack, args = found[event["tid"]], begun[event["tid"]], event.get("args", {})
        match event["ph"]:
            case "B":
                stack.append(Slice(event["name"], event["ts"], math.inf, args))
                track.slices.append(stack[-1])
            case "E":
                stack[-1].ended = event["ts"]
                stack.pop().args.update(args)
            case "X":
                assert event["dur"] >= 0
                track.slices.append(Slice(event["name"], event["ts"], event["ts"] + event["dur"], args))
            case "i":
                assert event["s"] == "t"
                track.marks[event["name"]] = args
    assert killed or not any(begun.values()), "slices without an end"
    assert found.keys() <= named.keys(), "tracks without a name"
    for track in found.values():
        assert_nested(track.slices)
    by_name = defaultdict(list)
    for number, track in found.items():
        by_name[named[number]].append(track)
    return by_name


def assert_nested(slices):
    around: list[Slice] = []
    for one in sorted(slices, key=lambda one: (one.began, -one.ended)):
        while around and around[-1].ended <= one.began:
            around.pop()
        assert not around or one.ended <= around[-1].ended, f"{one} overlaps {around[-1]} in part"
        around.append(one)


def slices_of(tracks, start=""):
    return [one for name in tracks for track in tracks[name] if name.startswith(start) for one in track.slices]


def assert_shows(tracks, run):
    """The attempts of a run are its slices, and last together for as long as its outcome says."""
    own = [one for one in slices_of(tracks, run.lane) if one.args.get("run") == run.id]
    ran = [one for one in own if one.name == f"run {run.id}"]
    assert sum(one.ended - one.began for one in ran) == pytest.approx(run.outcome.ran_s * 1e6, abs=3)
    assert len(ran) == (run.outcome.attempts if run.started_at is not None else 0)
    last = (ran or own)[-1].args
    assert (last["state"], last["reason"], last["session"]) == (run.state, run.reason, run.session)
    assert last["late_s"] == pytest.approx(run.outcome.late_s, abs=1e-6)
    return own


async def sleeps(ctx, seconds=1.0):
    await anyio.sleep(seconds)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "trace.json"


def read(path):
    return checked(json.loads(path.read_text()))


def test_the_checker_sees_what_overlaps_in_part():
    name = {"ph": "M", "pid": 1, "tid": 2, "ts": 0, "name": "thread_name", "args": {"name": "x"}}
    slices = [{"ph": "X", "pid": 1, "tid": 2, "name": "a", "ts": ts, "dur": 10} for ts in (0, 5)]
    with pytest.raises(AssertionError, match="overlaps"):
        checked([name, *slices])
    assert len(checked([name, slices[0], slices[0] | {"ts": 10}])["x"][0].slices) == 2


# What it shows


async def test_runs_stand_on_their_lane_each_behind_its_waiting(virtual, tmp_path, path):
    with Trace(path) as trace:
        async with Supervisor(tmp_path / "s", **trace.hooks()) as sup:
            runs = [sup.submit("session:a", sleeps) for _ in range(3)]
            runs += [sup.submit("main", sleeps, 2.0) for _ in range(2)]
            for run in runs:
                await run.wait()
    tracks = read(path)
    own = [[(one.name, one.ended - one.began) for one in assert_shows(tracks, run)] for run in runs]
    assert own[0] == [("run 1", 1e6)]
    assert own[2] == [("run 3 waits", 2e6), ("run 3", 1e6)]
    assert {name for name in tracks if name.startswith(("session", "main"))} == {
        "session:a",
        "session:a (2)",
        "session:a (3)",
        "main",
        "main (2)",
    }


async def test_a_row_is_used_again_when_its_run_has_ended(virtual, tmp_path, path):
    with Trace(path) as trace:
        async with Supervisor(tmp_path / "s", **trace.hooks()) as sup:
            for _ in range(5):
                await sup.run("main", sleeps)
    assert [len(track.slices) for track in read(path)["main"]] == [5]


async def test_every_way_to_end_is_told(virtual, tmp_path, path):
    async def flaky(ctx):
        await anyio.sleep(0.5)
        raise OSError("not now")

    async def overruns(ctx):
        await anyio.sleep(100)

    body = HungThread()
    specs = [
        LaneSpec("again", retry=RetrySpec(2, wait=5.0, max_wait=5.0)),
        LaneSpec("short", timeout=1.0, grace=0.5),
        LaneSpec("narrow", capacity=1, queue_timeout=0.5),
    ]
    virtual.threads_hold = False
    with Trace(path) as trace:
        async with Supervisor(tmp_path / "s", lanes=specs, **trace.hooks()) as sup:
            runs = {
                "retried": sup.submit("again", flaky),
                "late": sup.submit("short", overruns),
                "hung": sup.submit("short", body),
                "cancelled": sup.submit("main", overruns),
                "first": sup.submit("narrow", sleeps),
                "unstarted": sup.submit("narrow", sleeps),
                "dropped": sup.submit("narrow", sleeps),
            }
            await anyio.sleep(0.25)
            runs["cancelled"].cancel("enough")
            runs["dropped"].cancel("never mind")
            for run in runs.values():
                await run.wait()
            body.release()
            virtual.threads_hold = True
            await gone(sup)
    tracks = read(path)
    states = {name: assert_shows(tracks, run)[-1].args["state"] for name, run in runs.items()}
    assert states == {
        "retried": "failed",
        "late": "timed_out",
        "hung": "abandoned",
        "cancelled": "cancelled",
        "first": "done",
        "unstarted": "timed_out",
        "dropped": "cancelled",
    }
    (again,) = tracks["again"]
    assert [one.name for one in again.slices] == ["run 1", "run 1 waits", "run 1"]
    assert again.marks["run_retried"]["error"] == "OSError: not now"
    assert {"run_timed_out", "run_abandoned"} <= tracks["short (2)"][0].marks.keys()
    assert tracks["main"][0].marks["cancelled"]["reason"] == "enough"
    assert "abandoned_body_ended" in tracks["log"][0].marks


async def test_turns_and_write_leases_have_tracks_of_their_session(virtual, tmp_path, path):
    async def writes(ctx):
        await ctx.session.append({"n": 1})
        async with ctx.session.lease():
            await anyio.sleep(1.0)

    with Trace(path) as trace:
        async with Supervisor(tmp_path / "s", **trace.hooks()) as sup:
            trace.watch(sup.registry)
            await sup.run("session:a", writes)
            await sup.run("session:a", writes)
            file = sup.layout.file_of("a")
    tracks, stem = read(path), os.path.basename(file).removesuffix(".jsonl")
    turns, writes_ = tracks[f"{stem}: turn"][0].slices, tracks[f"{stem}: write"][0].slices
    assert [(one.name, one.ended - one.began) for one in turns] == [("run 1", 1e6), ("run 2", 1e6)]
    assert [(one.name, one.ended - one.began) for one in writes_ if one.ended > one.began] == [
        ("run 1", 1e6),
        ("run 2", 1e6),
    ]
    assert turns[0].args["path"] == file and "lane session:a" in turns[0].args["holder"]


async def test_a_lease_that_was_taken_away_says_why(virtual, tmp_path, path):
    with Trace(path) as trace:
        registry = LockRegistry()
        trace.watch(registry)
        with pytest.raises(Revoked):  # noqa: PT012 -- leaving the block is what raises
            async with registry.lease(tmp_path / "a.jsonl"):
                registry.revoke(tmp_path / "a.jsonl", "by hand")
                await anyio.sleep(1.0)
    (lost,) = read(path)["a: write"][0].slices
    assert "by hand" in lost.args["lost"]


async def test_what_the_event_loop_stood_still_for_is_on_its_track(virtual, path):
    with Trace(path):
        await anyio.sleep(10.0)
        _events.log("loop_blocked", level="error", blocked_s=0.5, place="tool.py:12 in crunch", run="", stack="…")
        await anyio.sleep(1.5)
        _events.log("loop_unblocked", level="warning", blocked_s=2.0, place="tool.py:12 in crunch", run="")
        _events.log("process_stood_still", level="warning", late_s=0.5, reason="the machine was suspended")
        await anyio.sleep(3.0)
        _events.log("process_stood_still", level="warning", late_s=2.0, reason="the machine was suspended")
    (loop,) = read(path)["event loop"]
    assert [(one.name, one.began, one.ended) for one in loop.slices] == [
        ("blocked: tool.py:12 in crunch", 9.5e6, 11.5e6),
        ("stood still", 11.5e6, 11.5e6),  # the same time, told twice
        ("stood still", 12.5e6, 14.5e6),
    ]
    assert loop.marks["loop_blocked"]["place"] == "tool.py:12 in crunch"


@pytest.mark.backends("asyncio")
async def test_a_body_that_blocks_the_loop_is_named_by_the_slice(tmp_path, path):
    async def blocks(ctx):
        eventually_sync(lambda: told("loop_blocked"), within=60)

    def told(event):
        return any(one["event"] == event for one in logs)

    with Trace(path) as trace, capture_logs() as logs:
        async with Supervisor(tmp_path / "s", **trace.hooks()) as sup:
            with blocking.permitted("a body that blocks the loop"):
                await sup.run("main", blocks)
            await eventually(lambda: told("loop_unblocked"), within=60)
    stall, *_ = [one for one in slices_of({"event loop": read(path)["event loop"]}) if one.name.startswith("blocked: ")]
    assert stall.args["run"] == "run 1 on lane main"
    assert stall.ended - stall.began >= 0.5e6


@pytest.mark.parametrize("end", ["restart_finished", "restart_failed"])
async def test_a_restart_is_a_slice(virtual, path, end):
    with Trace(path):
        _events.log("restart_started", generation=1)
        await anyio.sleep(2.0)
        _events.log(end, generation=2)
    (restart,) = read(path)["restarts"][0].slices
    assert (restart.ended - restart.began, restart.args["ended"]) == (2e6, end)


def test_whatever_a_field_of_a_log_line_is_the_file_is_json(path):
    class Unprintable(Exception):
        def __str__(self):
            raise RuntimeError

    with Trace(path):
        _events.log(
            "odd",
            inf=math.inf,
            nan=math.nan,
            text="\udc80",
            error=Unprintable(),
            long="x" * 10_000,
            state=RunState.DONE,
        )
    told = read(path)["log"][0].marks["odd"]
    assert (told["inf"], told["nan"], told["text"], told["state"], len(told["long"])) == (
        "inf",
        "nan",
        "\udc80",
        "done",
        4000,
    )
    assert "Infinity" not in path.read_text()


async def test_the_hosts_own_hooks_are_called_as_well(virtual, tmp_path, path):
    seen = []
    with Trace(path) as trace:
        hooks = trace.hooks(on_run_start=lambda run: seen.append("start"), on_run_end=lambda run: seen.append("end"))
        async with Supervisor(tmp_path / "s", **hooks) as sup:
            await sup.run("main", sleeps)
    assert seen == ["start", "end"]
    assert len(slices_of(read(path), "main")) == 1


# What it costs


async def test_it_remembers_no_more_tracks_than_it_may(virtual, tmp_path, path, monkeypatch):
    monkeypatch.setattr(trace, "_KEPT_TRACKS", 3)
    with Trace(path) as tracer:
        async with Supervisor(tmp_path / "s", **tracer.hooks()) as sup:
            tracer.watch(sup.registry)
            stays = sup.submit("session:stays", sleeps, 100.0)
            for number in range(20):
                await sup.run(f"session:{number}", sleeps)
            assert len(tracer._lanes) <= 3 and len(tracer._files) <= 3 and len(tracer._live) == 1
            await stays.wait()
            assert not tracer._live
    assert len(slices_of(read(path), "session:")) == 21


def test_nothing_of_it_is_left_when_it_is_closed(path):
    registry = LockRegistry()
    with Trace(path) as trace:
        trace.watch(registry)
        observers: list[object] = [*_events.observers, *registry.arbiter.grants.observers]
        assert len(observers) == 2
    trace.close()
    assert [*_events.observers, *registry.arbiter.grants.observers] == []


# When the file fails


@pytest.mark.parametrize("kind", ["directory", "parent", "pipe", "full"])
def test_a_file_that_cannot_be_written_is_refused_at_once(tmp_path, kind):
    os.mkfifo(tmp_path / "pipe")
    files = {
        "directory": tmp_path,
        "parent": tmp_path / "no" / "t.json",
        "pipe": tmp_path / "pipe",
        "full": "/dev/full",
    }
    with pytest.raises(OSError):  # noqa: PT011 -- the system's own, whichever it is
        Trace(files[kind])
    assert _events.observers == ()


def test_the_command_says_so_in_one_line_and_starts_nothing(tmp_path):
    done = lanes("run", "mixed", "--sessions", tmp_path / "s", "--trace", tmp_path / "no" / "t.json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("lanes: --trace: ") and "No such file or directory" in done.stderr
    assert done.stderr.count("\n") == 1
    assert list((tmp_path / "s").iterdir()) == []


async def test_a_disk_that_is_full_ends_the_trace_and_nothing_else(tmp_path, path, monkeypatch):
    room, real = 3000, os.write

    def write(fd, data):
        nonlocal room
        if threading.current_thread().name != "lanes-trace":
            return real(fd, data)
        if room <= 0 and len(data) > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = real(fd, data[: max(room, 3)])
        room -= written
        return written

    monkeypatch.setattr(_os, "write", write)
    monkeypatch.setattr(event_file, "_CHUNK", 4)
    with capture_logs() as logs, Trace(path) as trace:
        async with Supervisor(tmp_path / "s", **trace.hooks()) as sup:
            runs = [sup.submit("main", sleeps, 0.0) for _ in range(100)]
            states = [(await run.wait()).state for run in runs]
    assert states == ["done"] * 100
    assert [one for one in logs if one["event"] == "trace_stopped"] == [
        {
            "event": "trace_stopped",
            "log_level": "warning",
            "path": str(path),
            "error": "No space left on device",
        }
    ]
    whole = json.loads(path.read_text())
    assert 10 < len(whole) < 100
    checked(whole, killed=True)


def test_a_disk_that_is_too_slow_ends_the_trace_too(path, monkeypatch):
    monkeypatch.setattr(event_file, "_MOST_EVENTS", 10)
    goes_on, real = threading.Event(), os.write

    def write(fd, data):
        if threading.current_thread().name == "lanes-trace":
            goes_on.wait(30)
        return real(fd, data)

    monkeypatch.setattr(_os, "write", write)
    with capture_logs() as logs:
        file = EventFile(str(path))
        for number in range(100):
            file.put({"number": number})
        goes_on.set()
        file.close()
    assert [one["event"] for one in logs] == ["trace_stopped"]
    numbers = [event["number"] for event in json.loads(path.read_text())]
    assert numbers == list(range(len(numbers))) and 10 <= len(numbers) < 100


# As a command


@pytest.fixture(autouse=True)
def _nothing_stays_behind(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path_factory.mktemp("sessions")))


def test_the_trace_of_a_scenario_has_every_run_once(path):
    done = lanes("run", "mixed", "--scale", "0.1", "--trace", path, "--json")
    assert done.returncode == 0, done.stderr
    tracks, result = read(path), result_of(done)
    runs = defaultdict(list)
    for one in slices_of(
        {name: tracks[name] for name in tracks if name.startswith(("session:", "main", "cron", "heart"))}
    ):
        runs[one.args["run"]].append(one)
    assert len(runs) == result["messages"] > 100
    assert sorted(runs) == list(range(1, len(runs) + 1))
    marked = 0
    for number, slices in runs.items():
        *_, last = slices
        ran = sum(one.ended - one.began for one in slices if one.name == f"run {number}")
        assert ran == pytest.approx(last.args["ran_s"] * 1e6, abs=3)
        waits = [one.ended - one.began for one in slices if one.name == f"run {number} waits"]
        if waits:  # it may start without a mark, however late the loop is then
            assert sum(waits) == pytest.approx(last.args["waited_s"] * 1e6, abs=20_000)
            marked += 1
    assert marked
    states = [slices[-1].args["state"] for slices in runs.values()]
    assert states.count("done") == result["answered"]
    assert {"event loop", "restarts", "log", "main", "cron", "heartbeat"} <= tracks.keys() | {"event loop", "restarts"}
    assert any(name.endswith(": turn") for name in tracks) and any(name.endswith(": write") for name in tracks)


def test_a_process_that_was_killed_leaves_a_trace_that_needs_only_its_bracket(path):
    with started("run", "mixed", "--trace", path) as child:
        eventually_sync(
            lambda: child.poll() is not None or (path.exists() and path.stat().st_size > 50_000), within=30.0
        )
        assert child.poll() is None
        child.kill()
        child.wait()
    text = path.read_text()
    assert not text.endswith("]\n")
    tracks = checked(json.loads(text + "]"), killed=True)
    assert any(one.ended == math.inf for one in slices_of(tracks))
    assert any(one.args.get("state") == "done" for one in slices_of(tracks))
