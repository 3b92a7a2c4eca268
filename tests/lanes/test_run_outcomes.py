"""Every way in which a run can end, and what it is told to have been."""

from __future__ import annotations

import asyncio
import math
import pickle

import anyio
import pytest
from anyio import get_cancelled_exc_class

from lanes import (
    LaneSpec,
    RunAbandoned,
    RunCancelled,
    RunState,
    RunTimedOut,
)
from lanes.core.finish import Finishing
from runtime import Supervisor
from tests.supervised import HungThread, Shielded, Stubborn, about, assert_empty, gone, path_of, sleeps

LANES = [LaneSpec("session:*", timeout=10.0, grace=2.0)]


async def test_a_body_that_returns_is_done_with_its_value(sup):
    async def body(ctx, a, b):
        assert ctx.run.state is RunState.RUNNING
        await anyio.sleep(3)
        return a + b

    run = sup.submit("session:a", body, 1, 2)
    outcome = await run.wait()
    assert (outcome.state, outcome.value, outcome.error) == (RunState.DONE, 3, None)
    assert (outcome.waited_s, outcome.ran_s, outcome.late_s) == about((0.0, 3.0, 0.0))
    assert (run.state, run.outcome, await run.result()) == (RunState.DONE, outcome, 3)


async def test_a_body_that_raises_has_failed_with_its_own_exception(sup):
    async def body(ctx):
        raise LookupError("no such tool")

    run = sup.submit("session:a", body)
    outcome = await run.wait()
    assert (outcome.state, outcome.reason) == (RunState.FAILED, "LookupError: no such tool")
    assert "no such tool" in outcome.traceback and "in body" in outcome.traceback
    with pytest.raises(LookupError, match="no such tool"):
        await run.result()


async def test_a_body_that_raises_a_group_has_failed_with_the_group(sup):
    async def child():
        raise LookupError("no such tool")

    async def body(ctx):
        async with anyio.create_task_group() as group:
            group.start_soon(child)

    run = sup.submit("session:a", body)
    with pytest.RaisesGroup(LookupError):
        await run.result()
    assert run.state is RunState.FAILED


async def test_a_run_past_its_timeout_is_timed_out(sup):
    run = sup.submit("session:a", sleeps)
    with pytest.raises(TimeoutError, match=r"run 1 on lane session:a timed out after 10 s") as caught:
        await run.result()
    assert isinstance(caught.value, RunTimedOut)
    assert caught.value.run == run
    outcome = await run.wait()
    assert outcome.state is RunState.TIMED_OUT
    assert (outcome.ran_s, outcome.late_s) == about((10.0, 0.0))


async def test_a_running_run_that_is_cancelled_says_why(sup):
    run = sup.submit("session:a", sleeps)
    await anyio.sleep(1)
    assert run.cancel("the user pressed stop") is True
    with pytest.raises(RunCancelled, match="the user pressed stop") as caught:
        await run.result()
    assert not isinstance(caught.value, TimeoutError)
    assert (run.outcome.state, run.reason, run.outcome.reason) == (
        RunState.CANCELLED,
        "the user pressed stop",
        "the user pressed stop",
    )
    assert run.outcome.ran_s == about(1.0)
    assert run.cancel("again") is False


@pytest.mark.failure("E8")
async def test_a_queued_run_that_is_cancelled_is_gone_at_once_and_never_starts(sup, virtual):
    started = []

    async def body(ctx):
        started.append(ctx.run.id)

    first = sup.submit("session:a", sleeps)
    queued = sup.submit("session:a", body)
    last = sup.submit("session:a", body)
    assert queued.cancel("not wanted any more")
    assert queued.outcome is not None and queued.outcome.state is RunState.CANCELLED
    assert queued.outcome.ran_s == 0.0
    first.cancel()
    await last.wait()
    assert started == [last.id]


async def test_a_body_that_makes_no_progress_is_timed_out_early(virtual, tmp_path):
    async with Supervisor(tmp_path, lanes=[LaneSpec("session:*", timeout=10.0, idle_timeout=3.0)]) as sup:
        run = sup.submit("session:a", sleeps)
        outcome = await run.wait()
    assert outcome.state is RunState.TIMED_OUT and outcome.ran_s == about(3.0)
    assert outcome.reason == "made no progress for 3 s"


@pytest.mark.failure("E2")
async def test_progress_renews_the_idle_timeout_but_never_the_hard_one(virtual, tmp_path):
    async def body(ctx):
        while True:
            await anyio.sleep(2)
            ctx.progress()

    async with Supervisor(tmp_path, lanes=[LaneSpec("session:*", timeout=11.0, idle_timeout=3.0)]) as sup:
        run = sup.submit("session:a", body)
        with anyio.fail_after(60):
            outcome = await run.wait()
        assert (outcome.state, outcome.reason) == (RunState.TIMED_OUT, "timed out after 11 s")
        assert outcome.ran_s == about(11.0)
        assert_empty(sup)


@pytest.mark.failure("E2")
async def test_traffic_is_no_progress(virtual, tmp_path):
    async def body(ctx):
        while True:
            await anyio.sleep(1)
            ctx.emit("alive")
            await ctx.session.append({"text": "alive"})

    async with Supervisor(tmp_path, lanes=[LaneSpec("session:*", timeout=11.0, idle_timeout=3.5)]) as sup:
        outcome = await sup.submit("session:a", body).wait()
    assert outcome.state is RunState.TIMED_OUT and outcome.ran_s == about(3.5)


@pytest.mark.failure("D3")
async def test_a_run_that_waits_longer_than_its_queue_budget_is_timed_out_unstarted(virtual, tmp_path):
    started = []

    async def body(ctx):
        started.append(ctx.run.id)

    async with Supervisor(tmp_path, lanes=[LaneSpec("session:*", timeout=10.0, queue_timeout=4.0)]) as sup:
        first = sup.submit("session:a", sleeps)
        run = sup.submit("session:a", body)
        with pytest.raises(
            RunTimedOut, match=r"waited 4 s in the queue: run 1 on lane session:a \(pid \d+\) has the turn"
        ):
            await run.result()
        outcome = await run.wait()
        assert (outcome.state, outcome.ran_s) == (RunState.TIMED_OUT, 0.0)
        assert outcome.waited_s == about(4.0)
        assert first.state is RunState.RUNNING
        first.cancel()
        await first.wait()
        assert started == []
        assert_empty(sup)


@pytest.mark.parametrize("kind", [Stubborn, Shielded, HungThread])
async def test_a_timed_out_body_that_does_not_end_is_abandoned_after_its_grace(sup, virtual, kind):
    virtual.threads_hold = False
    body = kind()
    run = sup.submit("session:a", body)
    outcome = await run.wait()
    assert outcome.state is RunState.ABANDONED
    assert outcome.ran_s == pytest.approx(12.0, abs=0.1)  # a body that spins lets time creep
    with pytest.raises(RunAbandoned) as caught:
        await run.result()
    assert isinstance(caught.value, RunTimedOut) and isinstance(caught.value, TimeoutError)
    assert sup.statistics().abandoned == 1
    body.release()
    await gone(sup)
    assert run.outcome is outcome and run.state is RunState.ABANDONED


async def test_a_cancelled_body_that_does_not_end_is_abandoned_and_no_timeout(sup):
    body = Stubborn()
    run = sup.submit("session:a", body)
    await body.started.wait()
    run.cancel("stop")
    with pytest.raises(RunAbandoned, match="stop") as caught:
        await run.result()
    assert not isinstance(caught.value, TimeoutError)
    body.release()
    await gone(sup)


@pytest.mark.backends("asyncio")
async def test_a_native_cancel_of_the_runs_task_ends_the_run_and_not_its_lane(sup):
    async def body(ctx):
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await anyio.sleep_forever()

    async def next_body(ctx):
        return "next"

    run, following = sup.submit("session:a", body), sup.submit("session:a", next_body)
    assert (await run.wait()).state is RunState.CANCELLED
    assert await following.result() == "next"


@pytest.mark.backends("asyncio")
async def test_a_body_that_waits_for_a_cancelled_task_is_cancelled_and_harms_nobody(sup):
    async def body(ctx):
        task = asyncio.get_running_loop().create_task(asyncio.sleep(100))
        task.cancel()
        await task

    async def next_body(ctx):
        return "next"

    run, following = sup.submit("session:a", body), sup.submit("session:a", next_body)
    assert (await run.wait()).state is RunState.CANCELLED
    assert await following.result() == "next"


async def test_a_stopped_supervisor_tells_running_and_queued_runs(virtual, tmp_path):
    started = []

    async def never(ctx):
        started.append(ctx.run.id)

    sup = Supervisor(tmp_path, lanes=LANES)
    await sup.start()
    running, queued = sup.submit("session:a", sleeps), sup.submit("session:a", never)
    report = await sup.stop(drain_timeout=1.0)
    assert (running.state, queued.state, started) == (RunState.CANCELLED, RunState.CANCELLED, [])
    assert "stop" in running.reason and "stop" in queued.reason
    assert (await running.wait()).ran_s == about(1.0)
    assert (report.finished, report.cancelled, report.abandoned, report.unstarted) == (0, 1, (), (queued,))
    assert_empty(sup)


async def test_a_run_whose_turn_is_revoked_is_cancelled_with_that_reason(sup):
    run = sup.submit("session:a", sleeps)
    await anyio.sleep(1)
    assert sup.registry.revoke(path_of(sup, "a"), "by hand") == 1
    outcome = await run.wait()
    assert outcome.state is RunState.CANCELLED and "by hand" in outcome.reason


async def test_the_first_cause_decides_a_cancel_stands_though_the_deadline_passes(sup):
    async def body(ctx):
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1.5)

    run = sup.submit("session:a", body)
    await anyio.sleep(9)
    run.cancel("stop")
    outcome = await run.wait()
    assert (outcome.state, outcome.reason) == (RunState.CANCELLED, "stop")
    assert outcome.ran_s == about(10.5)


async def test_the_first_cause_decides_a_timeout_stands_though_it_is_cancelled(sup):
    async def body(ctx):
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1.5)

    run = sup.submit("session:a", body)
    await anyio.sleep(11)
    assert run.cancel("too late") is False
    outcome = await run.wait()
    assert (outcome.state, outcome.reason) == (RunState.TIMED_OUT, "timed out after 10 s")


async def test_a_value_returned_after_a_cancel_fills_the_outcome_and_leaves_the_state(sup):
    async def body(ctx):
        try:
            await anyio.sleep_forever()
        except get_cancelled_exc_class():
            return "partial answer"

    run = sup.submit("session:a", body)
    await anyio.sleep(1)
    run.cancel("stop")
    outcome = await run.wait()
    assert (outcome.state, outcome.value) == (RunState.CANCELLED, "partial answer")
    with pytest.raises(RunCancelled, match="stop"):
        await run.result()


async def test_an_error_raised_after_a_cancel_fills_the_outcome_and_leaves_the_state(sup):
    async def body(ctx):
        try:
            await anyio.sleep_forever()
        finally:
            raise LookupError("clean-up failed")

    run = sup.submit("session:a", body)
    await anyio.sleep(1)
    run.cancel("stop")
    outcome = await run.wait()
    assert outcome.state is RunState.CANCELLED and isinstance(outcome.error, RunCancelled)
    assert isinstance(outcome.error.__cause__, LookupError)
    assert "clean-up failed" in outcome.traceback


async def test_waiting_never_raises_and_result_always_does(sup):
    async def body(ctx):
        raise LookupError("no")

    run = sup.submit("session:a", body)
    assert (await run.wait()) is (await run.wait())
    for _ in range(3):
        with pytest.raises(LookupError, match="no"):
            await run.result()


async def test_a_cancelled_waiter_leaves_the_run_as_it_is(sup):
    async def body(ctx):
        await anyio.sleep(5)
        return "done"

    run = sup.submit("session:a", body)
    for wait in (run.wait, run.result):
        with anyio.move_on_after(1):
            await wait()
        assert run.state is RunState.RUNNING
    assert await run.result() == "done"


async def test_run_errors_survive_pickling_without_their_run(sup):
    run = sup.submit("session:a", sleeps)
    outcome = await run.wait()
    again = pickle.loads(pickle.dumps(outcome.error))
    assert (type(again), str(again)) == (RunTimedOut, str(outcome.error))
    assert again.run is None


async def test_statistics_count_each_end_once(sup):
    async def good(ctx):
        return 1

    async def bad(ctx):
        raise LookupError

    await sup.submit("session:a", good).wait()
    await sup.submit("session:a", bad).wait()
    await sup.submit("session:a", sleeps).wait()
    assert {state: n for state, n in sup.statistics().runs.items() if n} == {"done": 1, "failed": 1, "timed_out": 1}
    assert math.isfinite(sup.statistics().loop_lag.max)


@pytest.mark.parametrize("times", [1, 2])
async def test_a_fault_of_our_own_at_the_end_of_a_body_ends_its_run_and_is_raised_by_the_supervisor(
    virtual, tmp_path, monkeypatch, times
):
    """Twice: the end of the task meets the same fault again."""
    real, left = Finishing.finish, 0

    def fails(self, execution, *args, **options):
        nonlocal left
        if left:
            left -= 1
            raise AssertionError("an illegal move")
        real(self, execution, *args, **options)

    async def returns(ctx):
        return 1

    monkeypatch.setattr(Finishing, "finish", fails)
    sup = Supervisor(tmp_path, lanes=LANES)
    await sup.start()
    left = times
    run, queued = sup.submit("session:a", returns), sup.submit("session:a", returns)
    with anyio.fail_after(30):
        await run.wait()
        with pytest.raises(AssertionError, match="an illegal move"):
            await sup.stop()
    assert (left, sup.state) == (0, "stopped")
    assert run.outcome is not None and queued.state is RunState.CANCELLED
