"""What worker threads call of a run that is cancelled: it returns or raises, never spins, and no cancellation comes."""

from __future__ import annotations

import threading
import time

import anyio
import pytest
from anyio import to_thread

from lanes import LaneSpec, RunCancelled
from lanes.core.execution import execution_of
from locks import LockRegistry, RunEnded
from runtime import Supervisor
from tests.poll import eventually


@pytest.mark.failure("T1")
@pytest.mark.parametrize("durability", ["process", "sync"])
@pytest.mark.parametrize("by", ["timeout", "cancel", "stop"])
async def test_a_thread_appends_within_the_grace_of_its_cancelled_run(tmp_path, durability, by):
    ended, began, told = threading.Event(), threading.Event(), []

    async def handle(ctx, messages):
        def work():
            began.set()
            assert ended.wait(120)
            ctx.session.append_sync({"n": 1})
            told.append("appended")
            other = ctx.session.append_sync({"n": 2})
            told.append(other.offset)

        await to_thread.run_sync(work)

    registry = LockRegistry(durability=durability)
    async with Supervisor(
        tmp_path, registry=registry, lanes=[LaneSpec("session:*", handler=handle, grace=10.0)]
    ) as sup:
        run = sup.post("session:x", "q", timeout=0.2 if by == "timeout" else 60)
        await eventually(began.is_set)
        if by == "cancel":
            run.cancel("enough")
        async with anyio.create_task_group() as group:
            if by == "stop":
                group.start_soon(sup.drain, 0)
            await eventually(lambda: (one := execution_of(run)) is None or one.cause is not None)
            spent = time.process_time()
            ended.set()
            outcome = await run.wait()
        assert time.process_time() - spent < 5
        assert told[0] == "appended"
        assert outcome.state in ("timed_out", "cancelled")
        assert [one["n"] for one in await registry.read(sup.layout.file_of("x"))] == [1, 2]


@pytest.mark.failure("T1")
@pytest.mark.parametrize("durability", ["process", "sync"])
async def test_a_thread_that_appends_too_late_is_refused(tmp_path, durability):
    late, told, over = threading.Event(), [], threading.Event()

    async def handle(ctx, messages):
        def work():
            assert late.wait(120)
            try:
                ctx.session.append_sync({"n": 1})
            except RunEnded as error:
                told.append(error)
            over.set()

        await to_thread.run_sync(work, abandon_on_cancel=True)

    registry = LockRegistry(durability=durability)
    async with Supervisor(tmp_path, registry=registry, lanes=[LaneSpec("session:*", handler=handle)]) as sup:
        run = sup.post("session:x", "q", timeout=0.05)
        await run.wait()
        late.set()
        await eventually(over.is_set)
        assert len(told) == 1
        assert [*await registry.read(sup.layout.file_of("x"))] == []


@pytest.mark.failure("T1")
async def test_a_thread_of_a_cancelled_run_submits_waits_and_emits(tmp_path):
    ended, began, told = threading.Event(), threading.Event(), []

    async def child(ctx):
        await ctx.session.append({"n": "child"})
        return "done"

    async def handle(ctx, messages):
        def work():
            began.set()
            assert ended.wait(120)
            anyio.from_thread.run_sync(ctx.emit, "late")
            told.append("emitted")
            run = sup.submit_threadsafe("main", child, session="y")
            told.append(run.result_sync(10))
            told.append(sup.post_threadsafe("session:z", "q").lane)

        await to_thread.run_sync(work)

    async def quick(ctx, messages):
        return None

    lanes = [LaneSpec("session:*", handler=quick), LaneSpec("session:x", handler=handle, grace=10.0)]
    async with Supervisor(tmp_path, lanes=lanes) as sup:
        run = sup.post("session:x", "q")
        stream = run.events()
        await eventually(began.is_set)
        run.cancel("enough")
        ended.set()
        with pytest.raises(RunCancelled):
            await run.result()
        events = [event async for event in stream]
        await eventually(lambda: len(told) == 3)
    assert told == ["emitted", "done", "session:z"]
    assert events == ["late"]


@pytest.mark.failure("T1")
async def test_a_thread_of_a_cancelled_block_appends_under_its_turn(tmp_path):
    registry, told, began, ended = LockRegistry(durability="sync"), [], threading.Event(), threading.Event()

    def work(turn):
        began.set()
        assert ended.wait(120)
        turn.append_sync({"n": 1})
        told.append("appended")

    async def hold(scope):
        with scope:
            async with registry.turn(tmp_path / "s.jsonl") as turn:
                await to_thread.run_sync(work, turn)

    scope = anyio.CancelScope()
    async with anyio.create_task_group() as group:
        group.start_soon(hold, scope)
        await eventually(began.is_set)
        scope.cancel()
        ended.set()
    assert told == ["appended"]
    assert [one["n"] for one in await registry.read(tmp_path / "s.jsonl")] == [1]
