"""`lanes status` and `lanes top` where several processes of a user have a socket."""

from __future__ import annotations

import json
import os
from functools import partial

import anyio
import pytest
from anyio import to_thread

from lanes import LaneSpec
from runtime import Supervisor
from runtime.cli import fleet
from runtime.fleet import on_host
from runtime.fleet.on_host import OnHost
from runtime.fleet.seen import FleetError
from runtime.status import client, protocol, socket_path
from tests.command import lanes
from tests.poll import eventually
from tests.supervised import Shielded, gone

pytestmark = pytest.mark.backends("asyncio", "trio")
SPECS = [LaneSpec("session:*", grace=0.1)]
NONE = fleet.Which(store=None, schema="lanes", node=None)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The default place of sockets, empty."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("LANES_SOCKET", raising=False)
    return tmp_path / "lanes"


async def waits(ctx):
    await anyio.sleep_forever()


async def test_all_processes_are_shown_with_what_is_stuck_and_who_has_which_session(tmp_path, place):
    body = Shielded()
    async with (
        Supervisor(tmp_path / "a", status_socket=True, lanes=SPECS, drain_timeout=0.0) as one,
        Supervisor(tmp_path / "b", status_socket=place / "b.sock", lanes=SPECS, drain_timeout=0.0) as two,
    ):
        bad = one.submit("session:bad", body)
        await body.started.wait()
        bad.cancel()
        for sup in (one, two):
            for _ in range(2):
                sup.submit("session:s", waits)
        await eventually(lambda: one.abandoned() and two.statistics().runs["running"])
        done = await to_thread.run_sync(partial(lanes, "status"))
        assert (done.returncode, done.stderr) == (0, "")
        head, *rest = done.stdout.splitlines()
        assert head == "2 processes of this user on this host; 2 sessions: 2 conducted"
        row = f"  process {os.getpid()}  alive  {tmp_path}/"
        assert [line.split()[3] for line in rest if line.startswith(row)] == [f"{tmp_path}/a", f"{tmp_path}/b"]
        (stuck,) = [line for line in rest if f"run {bad.id}  session:bad  abandoned " in line]
        assert "at " in rest[rest.index(stuck) + 1]
        assert f"  s: process {os.getpid()}; 2 open, the oldest for " in done.stdout

        found = json.loads((await to_thread.run_sync(partial(lanes, "status", "--json"))).stdout)
        assert [len(found["fleet"]["processes"]), [one["session"] for one in found["open"]]] == [2, ["s", "s"]]
        refused = await to_thread.run_sync(partial(lanes, "status", "--node", "gw-1"))
        assert (refused.returncode, refused.stdout) == (
            2,
            "",
        ) and "--node: 'gw-1' is a process on a store" in refused.stderr

        both = OnHost()
        for process in (await both.look()).processes:
            answer = await both.ask(process.key, protocol.Ping(), "me")
            assert answer.pong is not None and answer.pong.sessions == process.place
        with pytest.raises(FleetError, match="process 1 has gone"):
            await both.ask("1", protocol.Ping(), "me")
        body.release()
        await gone(one)


async def test_a_process_that_does_not_answer_is_silent_and_the_command_says_so(place, monkeypatch):
    monkeypatch.setattr(client, "_FOUND_WITHIN_S", 0.05)
    monkeypatch.setattr(on_host, "_LOOK_WITHIN_S", 0.05)
    place.mkdir(mode=0o700)
    with socket_path.listen(str(place / "7.sock")), socket_path.listen(str(place / "8.sock")):
        seen = await OnHost().look()
        assert [(one.key, one.state) for one in seen.processes] == [("7", "silent"), ("8", "silent")]
        assert "does not answer within" in seen.processes[0].why
        assert f"PROBLEM: process {os.getpid()}: " in "\n".join(fleet.lines("here", seen, []))
        found = await to_thread.run_sync(fleet.fleet_of, None, NONE)
        assert isinstance(found, OnHost)
        shown = partial(fleet.show, found, NONE, json=False)
        assert await to_thread.run_sync(shown) == 1


async def test_top_goes_on_with_what_was_seen_last(place, monkeypatch, tmp_path):
    def watch(watched):
        watched.look()
        before = watched.lines
        monkeypatch.setattr(OnHost, "look", failing)
        watched.look()
        watched.close()
        return before, watched.lines

    async def failing(self):
        raise FleetError("the place is not ours alone")

    async with Supervisor(tmp_path / "a", status_socket=True):
        before, after = await to_thread.run_sync(watch, fleet.Watched(OnHost(), NONE))
    assert before[0].startswith("1 process of this user on this host; ")
    assert after[0].startswith("PROBLEM: nothing was heard for ") and after[0].endswith(": the place is not ours alone")
    assert after[1:] == ["It was last seen so:", "", *before]
