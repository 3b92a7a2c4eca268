"""What other threads may do with a supervisor: submit, post, wait for a result, append, see that they should stop."""

from __future__ import annotations

import functools
import threading
from concurrent.futures import ThreadPoolExecutor

import anyio
import pytest
from anyio import from_thread, to_thread

from lanes import (
    Draining,
    InvalidLane,
    LaneFull,
    LaneSpec,
    RunCancelled,
    RunTimedOut,
    WrongThread,
    current_run,
)
from locks import InvalidSession, RunEnded
from runtime import Supervisor
from tests.poll import eventually
from tests.supervised import texts


async def answers(ctx, messages):
    await ctx.session.append({"text": messages[0].body})
    return messages[0].body


LANES = [LaneSpec("session:*", handler=answers, queue_limit=2), LaneSpec("side:*", timeout=60.0)]


@pytest.fixture
async def sup(tmp_path):
    async with Supervisor(tmp_path, lanes=LANES) as sup:
        with anyio.fail_after(60):
            yield sup


async def adds(ctx, one, other):
    return one + other


async def waits(ctx, until):
    await until.wait()


async def in_thread(function, *args, **options):
    return await to_thread.run_sync(functools.partial(function, *args, **options))


# Giving work


@pytest.mark.on_store
async def test_a_thread_submits_and_posts_and_waits_for_the_results(sup):
    def work():
        added = sup.submit_threadsafe("side:a", adds, 1, 2, session="a", timeout=5.0)
        posted = sup.post_threadsafe("session:a", "hello", dedupe="m1")
        assert sup.post_threadsafe("session:a", "hello", dedupe="m1") is posted
        return added.result_sync(10), posted.result_sync(10)

    assert await in_thread(work) == (3, "hello")
    assert texts(sup, "a") == ["hello"]


async def test_a_thread_that_no_event_loop_has_started_may_too(sup):
    results = []
    thread = threading.Thread(target=lambda: results.append(sup.submit_threadsafe("side:a", adds, 1, 2).result_sync()))
    thread.start()
    await eventually(lambda: results == [3], within=10)
    thread.join()


async def test_many_threads_at_once_lose_nothing(sup):
    def work(n):
        return sup.submit_threadsafe("main", adds, n, 0).result_sync(10)

    def all_of_them():
        with ThreadPoolExecutor(16) as pool:
            return list(pool.map(work, range(200)))

    assert await in_thread(all_of_them) == list(range(200))


async def test_what_a_runs_thread_submits_remembers_its_parent(sup):
    def submits():
        run = current_run()
        assert run is not None
        return run.id, sup.submit_threadsafe("side:b", adds, 1, 2)

    async def body(ctx):
        return await to_thread.run_sync(submits)

    parent, run = await sup.submit("side:a", body).result()
    assert run.parent == parent
    assert await run.result() == 3


@pytest.mark.parametrize(
    "call, error",
    [
        (lambda sup: sup.submit_threadsafe("nowhere", adds), InvalidLane),
        (lambda sup: sup.submit_threadsafe("side:a", None), InvalidLane),
        (lambda sup: sup.submit_threadsafe("side:a", adds, timeout=-1), InvalidLane),
        (lambda sup: sup.submit_threadsafe("side:a", adds, no_such_option=1), TypeError),
        (lambda sup: sup.submit_threadsafe("side:a", adds, session="\0"), InvalidSession),
        (lambda sup: sup.post_threadsafe("side:a", "hello"), InvalidLane),
        (lambda sup: sup.post_threadsafe("session:a", "hello", dedupe=""), InvalidLane),
    ],
    ids=["lane", "body", "timeout", "option", "session", "no handler", "dedupe"],
)
async def test_what_is_refused_is_raised_in_the_thread(sup, call, error):
    with pytest.raises(error):
        await in_thread(call, sup)
    assert sup.runs() == []


async def test_a_full_lane_is_told_to_the_thread(sup):
    release = anyio.Event()
    for _ in range(3):
        sup.submit("session:a", waits, release)
    with pytest.raises(LaneFull, match="2 queued; allowed: 2"):
        await in_thread(sup.post_threadsafe, "session:a", "one more")
    release.set()


# The wrong thread


async def test_the_calls_for_the_loops_thread_are_refused_on_others_and_name_the_right_one(sup):
    for call in (lambda: sup.submit("side:a", adds, 1, 2), lambda: sup.post("session:a", "hello")):
        with pytest.raises(WrongThread, match="use submit_threadsafe, post_threadsafe"):
            await in_thread(call)
    assert sup.runs() == []


async def test_the_calls_for_other_threads_are_refused_on_the_loops_and_name_the_right_one(sup):
    with pytest.raises(WrongThread, match="submit_threadsafe would block the event loop; use submit there"):
        sup.submit_threadsafe("side:a", adds, 1, 2)
    with pytest.raises(WrongThread, match="post_threadsafe would block the event loop; use post there"):
        sup.post_threadsafe("session:a", "hello")
    run = sup.submit("side:a", adds, 1, 2)
    with pytest.raises(WrongThread, match="use `await run"):
        run.result_sync()
    assert await run.result() == 3


async def test_events_are_not_emitted_from_a_thread_but_by_way_of_the_loop(sup):
    def emits(ctx):
        with pytest.raises(WrongThread, match=r"use anyio.from_thread.run_sync\(ctx.emit, event\)"):
            ctx.emit("lost")
        from_thread.run_sync(ctx.emit, "heard")

    async def body(ctx):
        await to_thread.run_sync(emits, ctx)

    run = sup.submit("side:a", body)
    assert [event async for event in run.events()] == ["heard"]
    await run.result()


# Waiting for a result


async def test_a_thread_gets_what_the_run_ended_with(sup):
    async def fails(ctx):
        raise LookupError("no such tool")

    with pytest.raises(LookupError, match="no such tool"):
        await in_thread(sup.submit("side:a", fails).result_sync)
    with pytest.raises(RunTimedOut, match=r"timed out after 0\.01 s"):
        await in_thread(sup.submit("side:a", waits, anyio.Event(), timeout=0.01).result_sync, 10)


async def test_a_thread_that_waits_too_long_is_told_and_the_run_goes_on(sup):
    release = anyio.Event()
    run = sup.submit("side:a", waits, release)
    for timeout in (0, 0.01):
        with pytest.raises(TimeoutError, match=rf"run {run.id} on lane side:a has not ended within {timeout} s"):
            await in_thread(run.result_sync, timeout)
    assert run._threads == []
    release.set()
    assert await in_thread(run.result_sync, 1e9) is None


@pytest.mark.backends("asyncio")
@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), "1", True], ids=repr)
async def test_a_bad_wait_is_refused(sup, timeout):
    run = sup.submit("side:a", adds, 1, 2)
    with pytest.raises(InvalidLane, match=r"^timeout: .* is no duration"):
        await in_thread(run.result_sync, timeout)
    assert await run.result() == 3


async def test_all_threads_that_wait_are_woken(sup):
    release = anyio.Event()
    run, results = sup.submit("side:a", waits, release), []

    async def wait():
        results.append(await in_thread(run.result_sync, 15))

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(wait)
        await eventually(lambda: len(run._threads or ()) == 20)
        release.set()
    assert results == [await run.result()] * 20


# While the supervisor stops


async def test_before_the_start_and_after_the_stop_a_thread_is_told(tmp_path):
    sup = Supervisor(tmp_path, lanes=LANES)
    with pytest.raises(Draining, match="it is not started yet"):
        await in_thread(sup.submit_threadsafe, "side:a", adds, 1, 2)
    async with sup:
        pass
    with anyio.fail_after(60), pytest.raises(Draining):
        await in_thread(sup.post_threadsafe, "session:a", "hello")


async def test_a_thread_that_waits_for_a_run_is_told_when_the_supervisor_stops(tmp_path):
    sup = Supervisor(tmp_path, lanes=LANES)
    await sup.start()
    running = sup.submit("session:a", waits, anyio.Event())
    queued = sup.submit("session:a", waits, anyio.Event())

    async def is_told(run):
        with pytest.raises(RunCancelled, match="the supervisor"):
            await in_thread(run.result_sync, 15)

    async with anyio.create_task_group() as group:
        for run in (running, queued):
            group.start_soon(is_told, run)
        await eventually(lambda: running._threads and queued._threads)
        await sup.stop(drain_timeout=0.0)


@pytest.mark.backends("asyncio")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_thread_never_hangs_on_a_loop_that_ends(tmp_path, backend):
    started, over = threading.Event(), threading.Event()
    told: list[Draining] = []

    async def main():
        sup = Supervisor(tmp_path, lanes=LANES)
        async with sup:
            supervisors.append(sup)
            started.set()
            await anyio.sleep(0.05)

    def submits():
        assert started.wait(120)
        while not over.is_set() or not told:
            try:
                supervisors[0].submit_threadsafe("side:a", adds, 1, 2)
            except Draining as error:
                told.append(error)

    supervisors: list[Supervisor] = []
    thread = threading.Thread(target=submits)
    thread.start()
    anyio.run(main, backend=backend)
    over.set()
    thread.join(10)
    assert not thread.is_alive()
    assert told != []


# Threads of a run


async def test_a_thread_of_a_run_sees_that_it_should_stop(sup):
    running, seen = threading.Event(), threading.Event()

    def loops(ctx):
        running.set()
        while not ctx.cancelled:
            seen.wait(0.001)
        seen.set()

    async def body(ctx):
        await to_thread.run_sync(loops, ctx)

    run = sup.submit("side:a", body)
    await eventually(running.is_set)
    assert not seen.is_set()
    run.cancel("enough")
    with pytest.raises(RunCancelled, match="enough"):
        await run.result()
    assert seen.is_set()


@pytest.mark.failure("B0")
async def test_a_thread_that_outlives_its_run_neither_appends_nor_starts_anything(sup):
    errors, go, over = [], threading.Event(), threading.Event()

    def late(ctx):
        go.wait(120)
        for call in (
            lambda: ctx.session.append_sync({"text": "late"}),
            lambda: from_thread.run_sync(functools.partial(ctx.submit, "side:b", adds, detached=True)),
        ):
            try:
                call()
            except RunEnded as error:
                errors.append(error)
        assert ctx.cancelled
        over.set()

    async def body(ctx):
        await ctx.session.append({"text": "in time"})
        group.start_soon(in_thread, late, ctx)

    async with anyio.create_task_group() as group:
        await sup.submit("session:a", body).result()
        go.set()
        await eventually(over.is_set)
    assert len(errors) == 2
    assert (texts(sup, "a"), sup.statistics().late_writes_refused) == (["in time"], 2)
