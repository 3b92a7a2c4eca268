"""Several processes on one directory, without a database: what comes to one of them reaches the one that conducts."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from typing import Any

import anyio
import anyio.to_thread
import pytest
from structlog.testing import capture_logs

from lanes import InvalidLane, RunState, SessionLayout
from locks.lowlevel import conductor_of
from runtime import Supervisor, Unreached, neighbours
from runtime.posting import Posted
from runtime.status import client, protocol, socket_path
from runtime.status.client import Found
from tests.children.neighbour import KEY, LANES
from tests.peers import peer
from tests.poll import eventually

pytestmark = pytest.mark.backends("asyncio", "trio")
NOT_ALLOWED: list[dict[str, Any]] = [
    *({"timeout": wrong} for wrong in (float("inf"), float("nan"), "x")),
    *({"priority": wrong} for wrong in (3, "\udc80")),
    *({"when_busy": wrong} for wrong in ("later", object())),
    *({"dedupe": wrong} for wrong in ("\ud800", object(), "")),
]


@pytest.fixture
def place(monkeypatch):
    """A default place of sockets that is ours alone, with a short path."""
    with tempfile.TemporaryDirectory() as made:
        monkeypatch.setenv("XDG_RUNTIME_DIR", made)
        yield made


@pytest.mark.failure("G23")
async def test_what_is_posted_to_another_process_steers_and_interrupts_and_a_reset_ends_it(
    tmp_path, place, anyio_backend_name, monkeypatch
):
    async with Supervisor(tmp_path, lanes=LANES) as sup:
        with peer("neighbour", tmp_path, anyio_backend_name, f"{place}/mine.sock") as other:
            await eventually(lambda: other.said("holds 0"))
            (seen,) = await sup.everywhere.runs(session=KEY)
            with pytest.raises(InvalidLane, match=r"process \d+ refuses: .*'none'"):
                await sup.everywhere.post("none", "hello", session=KEY)
            with pytest.raises(InvalidLane, match="message: 60007 bytes cannot be posted in another process"):
                await sup.everywhere.post("talk", "x" * 60_001, session=KEY)
            with pytest.raises(InvalidLane, match="message: cannot be kept"):
                await sup.everywhere.post("talk", object(), session=KEY)
            for options in NOT_ALLOWED:
                with pytest.raises(InvalidLane, match=next(iter(options))):
                    await sup.everywhere.post("talk", "hello", session=KEY, **options)
            with pytest.raises(InvalidLane, match="with the names of lane and session and the key, cannot be posted"):
                await sup.everywhere.post("talk", "x" * 59_000, session=KEY, dedupe="\1" * 1_024)
            with monkeypatch.context() as patched:
                patched.setattr(neighbours, "conductor_of", lambda path: None)  # as of a turn that is quite new
                steered = await sup.everywhere.post("talk", "hello", session=KEY)
            assert (steered.run, steered.node) == (None, seen.node)
            outcome = await steered.wait(30)
            assert (outcome.state, outcome.value) == (RunState.DONE, {"answered": ["hold", "hello"]})

            other.tell("again")
            await eventually(lambda: other.said("holds 1"))
            await eventually(lambda: conductor_of(sup.layout.file_of(KEY)))
            with monkeypatch.context() as patched:
                patched.setattr(neighbours, "_conducts", lambda session, client: False)  # the note says it
                posted = await sup.everywhere.post("talk", "now", session=KEY, when_busy="interrupt")
            assert (await posted.wait(30)).value == {"answered": ["now"]}
            assert any(line.startswith("ended superseded") for line in other.lines)

            other.tell("again")
            await eventually(lambda: other.said("holds 2"))
            with anyio.fail_after(60):
                moved = await sup.reset(KEY)
            assert moved is not None and ".reset." in moved
            await eventually(lambda: other.said("ended cancelled ended by a reset of its session"))
            here = await sup.everywhere.post("talk", "new", session=KEY)
            assert here.run is not None and (await here.wait()).value == {"answered": ["new"]}
            records = await sup.registry.read(sup.layout.file_of(KEY))
            assert [record.get("text") for record in records] == ["new"]

            other.tell("again")
            await eventually(lambda: other.said("holds 3"))
            waited = await sup.everywhere.post("talk", "hold", session=KEY, when_busy="queue")
            monkeypatch.setattr(neighbours, "ANSWERS_WITHIN_S", 0.3)
            other.signal(signal.SIGSTOP)
            await eventually(other.stopped)
            with pytest.raises(Unreached, match=r"process \d+: .* does not answer within 0.3 s") as raised:
                await sup.everywhere.cancel(session=KEY)
            assert len(raised.value.processes) == 1 and raised.value.retryable
            with pytest.raises(Unreached, match="does not answer"):
                await sup.everywhere.runs()
        with pytest.raises(Unreached):
            await waited.wait(30)  # it was killed
        assert await sup.everywhere.runs() == []


@pytest.mark.failure("G24")
async def test_a_process_without_a_socket_is_named(tmp_path, place, anyio_backend_name):
    async with Supervisor(tmp_path, lanes=LANES) as sup:
        with peer("neighbour", tmp_path, anyio_backend_name, "-") as other:
            await eventually(lambda: other.said("holds 0"))
            await eventually(lambda: conductor_of(sup.layout.file_of(KEY)))
            (seen,) = await sup.everywhere.runs(session=KEY)
            assert (seen.id, seen.lane, seen.state) == (1, "talk", RunState.RUNNING)
            assert "it cannot be asked: its process has no status socket" in seen.reason
            mine = sup.post("talk", "hold", session="mine")
            await eventually(lambda: mine.state is RunState.RUNNING)
            named = rf"not all .*: run 1 on lane talk \(pid {seen.node.removeprefix('process ')}\), which has no status"
            with pytest.raises(Unreached, match=named) as raised:
                await sup.everywhere.cancel()
            assert raised.value.asked == 1
            with pytest.raises(Unreached, match=named):
                await sup.everywhere.cancel(session=KEY)
            with pytest.raises(Unreached, match=named):
                await sup.everywhere.post("talk", "hello", session=KEY)
            with capture_logs() as logs:
                async with anyio.create_task_group() as group:
                    group.start_soon(sup.reset, KEY)  # it waits for the turn
                    await eventually(lambda: [line for line in logs if line["event"] == "reset_unreached"])
                    assert [run.state for run in sup.runs(session=KEY)] == [RunState.QUEUED]
                    group.cancel_scope.cancel()
            assert await sup.everywhere.cancel(lane="other") == await sup.everywhere.cancel(session="other") == 0


async def test_the_users_path_is_asked_on_the_event_loops_thread_only(tmp_path, place):
    def path(key: str) -> str:
        asked.add(threading.current_thread())
        return str(tmp_path / f"{key}.jsonl")

    asked: set[threading.Thread] = set()
    async with Supervisor(SessionLayout(tmp_path, path=path), lanes=LANES) as sup:
        await sup.reset("a")
        await sup.everywhere.runs(session="a")
        await sup.everywhere.cancel(session="a")
        await (await sup.everywhere.post("talk", "hello", session="a")).wait(30)
    assert asked == {threading.current_thread()}


async def test_a_process_that_took_the_place_of_another_is_not_asked_in_its_stead(tmp_path, place):
    async with Supervisor(tmp_path, lanes=LANES, status_socket=f"{place}/mine.sock") as sup:
        run = sup.post("talk", "hello", session="a")
        await run.wait()
        before = Found(f"{place}/mine.sock", os.getpid() + 1, str(tmp_path))  # killed since, and started again
        others = neighbours.Neighbours(sup.layout)
        with pytest.raises(Unreached, match=f"process {before.pid}: it has gone"):
            await Posted(None, run.id, before, others).wait(30)
        with pytest.raises(Unreached, match="it has gone"):
            await others.ask(before, protocol.End(key="a"))


async def test_a_link_to_the_socket_of_another_user_is_not_followed(tmp_path, place, monkeypatch):
    async with Supervisor(tmp_path, lanes=LANES, status_socket=f"{place}/mine.sock"):
        (found,) = await anyio.to_thread.run_sync(client.beside, str(tmp_path))
        assert found.pid == os.getpid()
        with monkeypatch.context() as patched:
            patched.setattr(socket_path, "peer_of", lambda connection: socket_path.Peer(7, os.geteuid() + 1))
            assert await anyio.to_thread.run_sync(client.beside, str(tmp_path)) == []
