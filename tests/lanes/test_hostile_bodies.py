"""Bodies that do what no body should: the run says so, and its lane, its session and everybody else go on."""

from __future__ import annotations

import asyncio

import anyio
import pytest
from anyio import from_thread
from structlog.testing import capture_logs

from lanes import LaneSpec, RunCancelled, RunState, RunTimedOut
from runtime import Supervisor
from tests.supervised import assert_empty, texts

LANES = [LaneSpec(pattern, timeout=10.0, grace=2.0) for pattern in ("session:*", "side:*")]


@pytest.fixture
async def sup(virtual, tmp_path):
    async with Supervisor(tmp_path, lanes=LANES) as sup:
        yield sup
        with anyio.fail_after(30):
            assert await sup.run("session:a", serves) == "served"
        assert_empty(sup)


async def serves(ctx):
    await ctx.session.append({"text": "served"})
    return "served"


class Unprintable(Exception):
    """An exception that cannot say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("cannot be printed")

    __repr__ = __str__


class Changed(Exception):
    """An exception whose arguments are not what it was made of."""

    def __init__(self, code: int, detail: object) -> None:
        super().__init__()
        self.code, self.detail = code, detail


@pytest.mark.parametrize("cancelled", [False, True])
async def test_an_exception_that_cannot_be_printed_harms_nobody(virtual, tmp_path, cancelled):
    async def body(ctx):
        try:
            await anyio.sleep(2)
        finally:
            raise Unprintable

    async with Supervisor(tmp_path, lanes=LANES) as sup:
        run = sup.submit("session:a", body)
        await anyio.sleep(1)
        if cancelled:
            run.cancel("stop")
        with anyio.fail_after(30):
            outcome = await run.wait()
            assert outcome.state is (RunState.CANCELLED if cancelled else RunState.FAILED)
            assert ("stop" if cancelled else "Unprintable") in outcome.reason
            assert await sup.run("session:a", serves) == "served"
        assert_empty(sup)


async def test_each_waiter_gets_an_exception_with_all_its_fields(sup):
    async def body(ctx):
        error = Changed(7, {"any": "thing"})
        error.add_note("noted")
        raise error from LookupError("its cause")

    run = sup.submit("session:a", body)
    for _ in range(2):
        with pytest.raises(Changed) as caught:
            await run.result()
        assert (caught.value.code, caught.value.detail) == (7, {"any": "thing"})
        assert caught.value.__notes__ == ["noted"]
        assert isinstance(caught.value.__cause__, LookupError)


async def test_an_exception_that_is_raised_again_by_many_waiters_at_once_stays_apart(sup):
    async def body(ctx):
        await anyio.sleep(1)
        raise LookupError("no such tool")

    caught: list[LookupError] = []

    async def wait():
        try:
            await run.result()
        except LookupError as error:
            caught.append(error)

    run = sup.submit("session:a", body)
    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(wait)
    assert len({id(error) for error in caught}) == len(caught) == 5


@pytest.mark.parametrize("what", [None, 42, "text"])
async def test_a_body_that_is_not_async_is_a_failure_that_says_so(sup, what):
    outcome = await sup.submit("session:a", lambda ctx: what).wait()
    assert outcome.state is RunState.FAILED
    assert type(outcome.error) is TypeError


async def test_a_body_that_takes_other_arguments_is_a_failure_that_says_so(sup):
    async def body(ctx, one, two):
        return None

    outcome = await sup.submit("session:a", body, 1).wait()
    assert outcome.state is RunState.FAILED and "two" in outcome.reason


@pytest.mark.parametrize("error", [GeneratorExit, SystemExit, StopIteration, StopAsyncIteration, MemoryError])
async def test_a_body_that_raises_what_ends_other_things_has_failed_and_nothing_else_has(sup, error):
    async def body(ctx):
        raise error

    outcome = await sup.submit("session:a", body).wait()
    assert outcome.state is RunState.FAILED


@pytest.mark.backends("asyncio")
async def test_a_body_that_raises_a_cancellation_of_its_own_is_cancelled(sup):
    async def body(ctx):
        raise asyncio.CancelledError("mine")

    assert (await sup.submit("session:a", body).wait()).state is RunState.CANCELLED


async def test_a_body_may_cancel_its_own_run(sup):
    async def body(ctx):
        assert ctx.run.cancel("had enough")
        assert ctx.cancelled
        await anyio.sleep_forever()

    with pytest.raises(RunCancelled, match="had enough"):
        await sup.submit("session:a", body).result()


async def test_a_body_may_cancel_all_runs_its_own_included(sup):
    async def body(ctx):
        assert sup.cancel(reason="all of them") == 3
        await anyio.sleep_forever()

    async def never(ctx):
        raise AssertionError("it was queued")

    runs = [sup.submit("session:a", body), sup.submit("session:a", never), sup.submit("session:a", never)]
    for run in runs:
        assert (await run.wait()).reason == "all of them"


async def test_a_body_that_returns_at_once_though_it_was_cancelled_before_it_began_never_began(sup):
    began = []

    async def body(ctx):
        began.append(ctx.run.id)

    run = sup.submit("session:a", body)
    run.cancel("at once")
    outcome = await run.wait()
    assert (outcome.state, began) == (RunState.CANCELLED, [])


async def test_a_body_whose_child_task_raises_is_a_failure_and_its_other_children_are_cancelled(sup):
    heard = []

    async def child(n):
        try:
            await anyio.sleep(n)
            raise LookupError(f"child {n}")
        finally:
            heard.append(n)

    async def body(ctx):
        async with anyio.create_task_group() as group:
            for n in (1, 2, 3):
                group.start_soon(child, n)

    with pytest.RaisesGroup(LookupError):
        await sup.submit("session:a", body).result()
    assert sorted(heard) == [1, 2, 3]


async def test_a_body_that_times_out_in_a_child_task_is_timed_out(sup):
    async def body(ctx):
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)
            async with ctx.session.lease():
                await anyio.sleep_forever()

    with pytest.raises(RunTimedOut):
        await sup.submit("session:a", body).result()


async def test_a_bodys_own_timeout_is_its_own_failure_and_not_the_runs(sup):
    async def body(ctx):
        with anyio.fail_after(1):
            await anyio.sleep_forever()

    run = sup.submit("session:a", body)
    with pytest.raises(TimeoutError) as caught:
        await run.result()
    assert run.state is RunState.FAILED and not isinstance(caught.value, RunTimedOut)


async def test_append_sync_on_the_loops_own_thread_is_refused_instead_of_hanging(sup, monkeypatch):
    def waits_for_itself(*args, **kwargs):
        pytest.fail("it waits for the loop, on the loop's own thread")

    async def body(ctx):
        with monkeypatch.context() as patch:
            patch.setattr(from_thread, "run", waits_for_itself)
            with pytest.raises(RuntimeError, match="append"):
                ctx.session.append_sync({"text": "from the loop"})

    await sup.submit("session:a", body).result()
    assert texts(sup, "a") == []


@pytest.mark.parametrize("record", [None, [1], "text", {"text": object()}, {1: {2, 3}}])
async def test_what_is_no_json_object_is_refused_and_the_file_is_as_before(sup, record):
    async def body(ctx):
        await ctx.session.append({"text": "before"})
        await ctx.session.append(record)

    outcome = await sup.submit("session:a", body).wait()
    if record == {1: {2, 3}}:
        assert outcome.state in (RunState.FAILED, RunState.DONE)
    else:
        assert (outcome.state, type(outcome.error).__name__) == (RunState.FAILED, "TranscriptError")
        assert texts(sup, "a") == ["before"]


async def test_a_queue_budget_that_passes_while_another_process_has_the_turn_says_so(virtual, tmp_path):
    lanes = [LaneSpec("session:*", timeout=100.0, queue_timeout=4.0)]

    async def holds(ctx):
        await anyio.sleep(50)

    async with Supervisor(tmp_path, lanes=lanes) as one, Supervisor(tmp_path, lanes=lanes) as other:
        holder = one.submit("session:a", holds)
        with capture_logs() as logs, pytest.raises(RunTimedOut, match="waited 4 s in the queue: another process has"):
            await other.run("session:a", serves)
        assert [line["event"] for line in logs] == ["run_timed_out"]
        await anyio.sleep(0.1)
        assert_empty(other)
        holder.cancel()
        await holder.wait()
