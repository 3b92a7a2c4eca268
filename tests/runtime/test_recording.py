"""`lanes trace`: a running process is recorded for some seconds, within bounds, and is as it was before afterwards."""

from __future__ import annotations

import json
from functools import partial

import anyio
import pytest
from anyio import to_thread

from lanes import LaneSpec, RetrySpec
from locks import _events
from runtime import Supervisor
from runtime.export import event_buffer
from runtime.status import protocol
from runtime.status.handlers import Handlers
from tests.command import lanes
from tests.runtime.test_trace import checked, slices_of

pytestmark = pytest.mark.backends("asyncio", "trio")
SPECS = [LaneSpec("session:*"), LaneSpec("again", retry=RetrySpec(attempts=2))]


async def sleeps(ctx, seconds):
    await anyio.sleep(seconds)


async def fails(ctx):
    raise ValueError("\udc80 is half of a pair")


def ask(handlers, question):
    answer = handlers.answer(question, "me")
    return answer.recording if answer.error is None else answer.error


def fetched(handlers, number):
    """All events that are there now, and the last answer."""
    events: list[dict[str, object]] = []
    while True:
        part = ask(handlers, protocol.Recorded(recording=number))
        if isinstance(part, protocol.Refused):
            return events, part
        events += json.loads(bytes(part.events))
        if part.over or bytes(part.events) == b"[]":
            return events, part


async def test_what_runs_before_during_and_after_a_recording_is_in_it_as_far_as_it_lasts(
    virtual, tmp_path, monkeypatch
):
    monkeypatch.setattr(event_buffer, "_A_PART", 7)
    logs = _events.observers
    async with Supervisor(tmp_path, lanes=SPECS) as sup:
        handlers = Handlers(sup)
        before = sup.submit("session:s", sleeps, 3.0)
        waiting = sup.submit("session:s", sleeps, 1.0)
        await anyio.sleep(1.0)
        begun = ask(handlers, protocol.Record(seconds=6.0))
        assert (begun.id, begun.left_s) == (1, 6.0)
        again = ask(handlers, protocol.Record(seconds=1.0))
        assert again.kind == "not_now" and "it is being recorded already, for 6.0 s more" in again.message
        retried = sup.submit("again", fails)
        await anyio.sleep(4.0)
        after = sup.submit("session:s", sleeps, 10.0)
        events, part = fetched(handlers, 1)
        assert not part.over and part.left_s == pytest.approx(2.0)
        await anyio.sleep(3.0)
        rest, part = fetched(handlers, 1)
        assert part.over and part.error == ""
        tracks = checked(events + rest)
        named = {
            one.name: (one.began, one.ended) for one in slices_of(tracks, "session:s") if one.name.startswith("run")
        }
        assert named[f"run {before.id}"] == (0, 2_000_000)
        assert named[f"run {waiting.id} waits"] == (0, 2_000_000)
        assert named[f"run {waiting.id}"] == (2_000_000, 3_000_000)
        assert named[f"run {after.id}"][0] == 4_000_000 <= named[f"run {after.id}"][1] < 7_000_000
        assert len([one for one in slices_of(tracks, "again") if one.name == f"run {retried.id}"]) == 2
        assert ask(handlers, protocol.Recorded(recording=1)).message == "recording: 1 is not there any more"
        assert (sup._scheduler.board.hooks.observers, _events.observers) == ((), logs)
        sup.cancel()


@pytest.mark.failure("G26")
async def test_a_recording_that_is_not_fetched_ends_by_itself_and_one_that_is_too_large_at_once(
    virtual, tmp_path, monkeypatch
):
    async with Supervisor(tmp_path, lanes=SPECS) as sup:
        handlers, hooks = Handlers(sup), sup._scheduler.board.hooks
        ask(handlers, protocol.Record(seconds=600.0))
        await anyio.sleep(9.0)
        assert hooks.observers
        await anyio.sleep(2.0)
        assert not hooks.observers
        assert ask(handlers, protocol.Recorded(recording=1)).kind == "refused"
        monkeypatch.setattr(event_buffer, "MOST_EVENTS", 20)
        assert ask(handlers, protocol.Record(seconds=600.0)).id == 2
        for _ in range(10):
            await sup.submit("session:s", sleeps, 0.1).wait()
        events, part = fetched(handlers, 2)
        assert len(events) == 20 and part.over and "20 events wait to be fetched" in part.error
    assert not hooks.observers


async def test_the_command_writes_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("LANES_SOCKET", raising=False)
    path = tmp_path / "trace.json"
    command = partial(lanes, "trace", "--seconds", "0.5", "-o")
    async with Supervisor(tmp_path / "a", lanes=SPECS, status_socket=True, drain_timeout=0.0) as sup:
        run = sup.submit("session:s", sleeps, 600.0)
        done = await to_thread.run_sync(command, path)
        assert (done.returncode, done.stderr) == (0, "")
        events = json.loads(path.read_text())
        (name,) = {one.name for one in slices_of(checked(events), "session:s") if one.args.get("run") == run.id}
        assert name == f"run {run.id}"
        assert f"{path}: {len(events)} events; " in done.stdout
        refused = await to_thread.run_sync(command, tmp_path / "none" / "x")
        assert refused.returncode == 2 and "-o: " in refused.stderr and "cannot be written" in refused.stderr
