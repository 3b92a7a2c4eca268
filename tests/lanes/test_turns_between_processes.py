"""Supervisors that share a directory: turns never overlap, and the turn of a process that dies is free at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from contextlib import contextmanager, suppress

import anyio
import pytest
from anyio import to_thread
from structlog.testing import capture_logs

from lanes import GroupSpec, LaneSpec, RunState
from locks import LockRegistry
from runtime import Supervisor
from tests import ROOT, blocking, forks
from tests.poll import eventually
from tests.supervised import assert_empty, lines_of, path_of, texts

LANES = [LaneSpec("session:*", timeout=60.0, grace=0.2, queue_limit=None)]


@contextmanager
def gateway(*args: object):
    """A gateway in a process of its own; killed when it is still there at the end."""
    command = ["-m", "tests.children.gateway", *map(str, args)]
    with blocking.permitted("until the child is started"):
        child = forks.python(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()


@pytest.fixture
def child(tmp_path):
    """One that conducts session `a`."""
    with gateway("conduct", tmp_path, "a") as child:
        yield child


async def says(child):
    """The next thing that a gateway says."""
    with anyio.fail_after(60):
        return json.loads(await to_thread.run_sync(child.stdout.readline))


async def answers(ctx):
    await ctx.session.append({"text": "next question"})
    return ctx.run.id


@pytest.mark.failure("C1", "H4", "C8")
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGABRT, signal.SIGHUP])
async def test_a_waiting_run_gets_the_turn_of_a_process_that_dies_and_finds_its_question(tmp_path, child, sent):
    async with Supervisor(tmp_path, lanes=LANES) as sup:
        assert (await says(child))["event"] == "conducting"
        run = sup.submit("session:a", answers)
        await eventually(lambda: sup.statistics().leases.competing == 1)
        assert (run.state, run.started_at) == (RunState.QUEUED, None)
        child.send_signal(sent)
        with anyio.fail_after(60):
            assert await run.result() == run.id
        assert texts(sup, "a") == ["question", "half an answer", "next question"]
        await eventually(lambda: child.poll() is not None)
        assert_empty(sup)


@pytest.mark.failure("G8")
async def test_a_run_that_waits_for_another_process_takes_no_place_on_its_lane(tmp_path, child):
    lanes = [LaneSpec("work", capacity=1, queue_limit=None)]
    async with Supervisor(tmp_path, lanes=lanes) as sup:
        assert (await says(child))["event"] == "conducting"
        blocked = sup.submit("work", answers, session="a")
        other = [sup.submit("work", answers, session=key) for key in "bcd"]
        for run in other:
            await run.result()
        assert blocked.state is RunState.QUEUED
        child.stdin.close()
        assert await blocked.result() == blocked.id
        assert_empty(sup)


@pytest.mark.failure("G8")
async def test_a_run_that_waits_for_another_process_can_be_cancelled_and_its_follower_waits_on(tmp_path, child):
    async with Supervisor(tmp_path, lanes=LANES) as sup:
        assert (await says(child))["event"] == "conducting"
        first, second = sup.submit("session:a", answers), sup.submit("session:a", answers)
        await eventually(lambda: sup.statistics().leases.competing == 1)
        assert first.cancel()
        assert first.outcome is not None
        await eventually(lambda: sup.statistics().leases.waiting == 1)
        assert second.state is RunState.QUEUED
        child.kill()
        assert await second.result() == second.id
        assert_empty(sup)


@pytest.mark.failure("G8")
async def test_a_supervisor_that_waits_for_another_process_can_be_stopped(tmp_path, child):
    sup = Supervisor(tmp_path, lanes=LANES)
    await sup.start()
    assert (await says(child))["event"] == "conducting"
    runs = [sup.submit("session:a", answers) for _ in range(3)]
    await eventually(lambda: sup.statistics().leases.competing == 1)
    with anyio.fail_after(60):
        report = await sup.stop()
    assert report.unstarted == tuple(runs)
    assert {run.state for run in runs} == {RunState.CANCELLED}
    assert_empty(sup)


@pytest.mark.failure("G8", "B4")
@pytest.mark.backends("asyncio", "trio")
async def test_turns_of_two_processes_and_of_this_one_never_overlap(tmp_path):
    turns = 40

    async def body(ctx, n):
        await ctx.session.append({"by": "here", "n": n, "what": "begins"})
        await anyio.sleep(0.002)
        await ctx.session.append({"by": "here", "n": n, "what": "ends"})

    with (
        gateway("take-turns", tmp_path, "a", turns, "one") as one,
        gateway("take-turns", tmp_path, "a", turns, "two") as two,
    ):
        async with Supervisor(tmp_path, lanes=LANES) as sup:
            for child in (one, two):
                assert (await says(child))["event"] == "ready"
                child.stdin.write("go\n")
                child.stdin.flush()
            with anyio.fail_after(30):
                for n in range(turns):
                    await sup.run("session:a", body, n)
                for child in (one, two):
                    assert await says(child) == {"event": "done", "turns": turns}
            records = lines_of(path_of(sup, "a"))
    assert len(records) == 3 * 2 * turns
    for begins, ends in zip(records[::2], records[1::2], strict=True):
        assert (begins["what"], ends["what"]) == ("begins", "ends")
        assert (begins["by"], begins["n"]) == (ends["by"], ends["n"])
    for name in ("here", "one", "two"):
        assert [record["n"] for record in records[::2] if record["by"] == name] == list(range(turns))
    changes = sum(a["by"] != b["by"] for a, b in zip(records[::2], records[2::2], strict=False))
    assert changes >= turns, "they hardly met: this shows nothing"


async def test_two_supervisors_of_one_process_take_turns_too(virtual, tmp_path):
    running: list[str] = []

    async def body(ctx, name):
        running.append(name)
        assert running == [name]
        await anyio.sleep(1)
        running.remove(name)
        return name

    async with Supervisor(tmp_path, lanes=LANES) as one, Supervisor(tmp_path, lanes=LANES) as two:
        runs = [sup.submit("session:a", body, name) for _ in range(5) for name, sup in (("one", one), ("two", two))]
        assert [await run.result() for run in runs] == ["one", "two"] * 5
        assert_empty(one)
        assert_empty(two)


@pytest.mark.backends("asyncio", "trio")
@pytest.mark.failure("G8")
async def test_a_run_that_waits_for_a_slot_does_not_keep_its_session_from_other_processes(virtual, tmp_path):
    elsewhere = LockRegistry()
    groups = [GroupSpec("one", slots=1)]
    lanes = [LaneSpec("work", group="one", capacity=5, timeout=1000.0)]
    async with Supervisor(tmp_path, lanes=lanes, groups=groups) as sup:
        path = sup.layout.file_of("a")

        async def sleeps(ctx, seconds):
            await anyio.sleep(seconds)

        async with elsewhere.turn(path):
            waiting = sup.submit("work", sleeps, 1.0, session="a")
            await virtual.settle()  # it waits outside, and has given its slot back
            busy = sup.submit("work", sleeps, 100.0)
            await anyio.sleep(1.0)
        await anyio.sleep(1.0)
        assert (busy.state, waiting.state) == ("running", "queued")
        async with elsewhere.turn(path, wait_timeout=1.0):  # nobody conducts it, so whoever can may
            pass
        await waiting.result()
        await busy.result()


@pytest.mark.failure("G8")
async def test_a_run_conducts_the_file_that_took_the_place_of_the_one_it_waited_for(virtual, tmp_path):
    # The wait begins again at the new file: the turn that the run has, and gives back, is that one's.
    async with Supervisor(tmp_path, lanes=LANES) as sup:
        elsewhere, path = LockRegistry(), path_of(sup, "a")
        with capture_logs() as logs:
            async with elsewhere.turn(path) as turn:
                await turn.append({"text": "question"})
                run = sup.submit("session:a", answers)
                await virtual.settle()  # it waits for the turn of that file
                os.rename(path, tmp_path / "moved.jsonl")
            assert await run.result() == run.id
        assert [line["event"] for line in logs if line["event"] == "lease_revoked"] == []
        assert texts(sup, "a") == ["next question"]
        async with elsewhere.turn(path, wait_timeout=0):
            pass
        assert_empty(sup)
