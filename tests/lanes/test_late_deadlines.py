"""Deadlines that are acted upon late: what is said of it is true, and who had no chance to end gets one more."""

from __future__ import annotations

import math
import re

import anyio
import pytest
from structlog.testing import capture_logs

from lanes import LaneSpec, RunState
from lanes.core.loop_lag import Unwatched, late_reason
from locks import Fence
from runtime import Supervisor
from runtime.inspect.run_report import report_on
from tests.supervised import Shielded, about, gone

GRACE = 2.0
LANES = [
    LaneSpec("work:*", timeout=10.0, grace=GRACE),
    LaneSpec("idle:*", timeout=100.0, idle_timeout=10.0, grace=GRACE),
    LaneSpec("queue:*", timeout=100.0, queue_timeout=10.0, grace=GRACE),
]


async def sleeps(ctx, seconds=math.inf):
    await anyio.sleep(seconds)
    return "well"


def blocks_at(virtual, seconds, after):
    """A body that keeps the loop for some seconds after a while."""

    async def body(ctx):
        await anyio.sleep(after)
        virtual.advance(seconds)

    return body


def named(logs, event):
    return [entry for entry in logs if entry["event"] == event]


# What is said


@pytest.mark.failure("F4")
async def test_a_deadline_that_a_blocked_loop_has_delayed_names_the_culprit_and_by_how_much(sup, virtual):
    with capture_logs() as logs:
        run = sup.submit("work:a", sleeps)
        culprit = sup.submit("work:b", blocks_at(virtual, 5.0, after=9.0), timeout=50.0)
        outcome = await run.wait()
    assert outcome.state is RunState.TIMED_OUT
    assert outcome.late_s == pytest.approx(4.0, abs=0.1)
    told = f"timed out after 10 s, {outcome.late_s:.2f} s late: the event loop was blocked by run {culprit.id}"
    assert outcome.reason.startswith(f"{told} on lane work:b at test_late_deadlines.py:")
    (logged,) = named(logs, "run_timed_out")
    assert (logged["reason"], logged["late_s"]) == (outcome.reason, round(outcome.late_s, 3))
    assert outcome.reason in str(outcome.error)


@pytest.mark.failure("F4")
async def test_a_wait_in_the_queue_that_ended_late_says_so_too(sup, virtual):
    sup.submit("queue:a", sleeps, 60.0)
    waiting = sup.submit("queue:a", sleeps)
    sup.submit("work:b", blocks_at(virtual, 5.0, after=9.0), timeout=50.0)
    outcome = await waiting.wait()
    assert (outcome.state, outcome.late_s) == (RunState.TIMED_OUT, pytest.approx(4.0, abs=0.1))
    assert "1 of 1 run on the lane" in outcome.reason
    assert f", {outcome.late_s:.2f} s late: the event loop was blocked by run 3 on lane work:b at" in outcome.reason
    sup.cancel(lane="queue:a")
    await virtual.settle()


async def test_a_deadline_in_time_says_nothing_of_it(sup):
    outcome = await sup.submit("work:a", sleeps).wait()
    assert (outcome.reason, outcome.late_s) == ("timed out after 10 s", about(0.0))


async def test_a_block_that_ends_before_the_deadline_is_no_reason(sup, virtual):
    run = sup.submit("work:a", sleeps)
    sup.submit("work:b", blocks_at(virtual, 5.0, after=2.0), timeout=50.0)
    assert (await run.wait()).reason == "timed out after 10 s"


def blocks_its_cleanup(virtual, seconds):
    async def body(ctx):
        try:
            await anyio.sleep_forever()
        finally:
            virtual.advance(seconds)

    return body


HOWS = {
    "stopped": ("session:a", "after its run was asked to end"),
    "idle": ("idle:a", "after its run was asked to end"),
    "timed out": ("session:a", "past its deadline"),
}


@pytest.mark.failure("T3")
@pytest.mark.parametrize("how", HOWS)
async def test_lateness_counts_from_the_instant_that_was_missed(virtual, tmp_path, how):
    """The clean-up blocks the loop past the grace: the steward takes the turn 2 s and a little after the end came."""
    lane, words = HOWS[how]
    lanes = [LaneSpec("session:*", timeout=300.0, grace=GRACE), LANES[1]]
    async with Supervisor(tmp_path, lanes=lanes) as sup:
        with capture_logs() as logs:
            run = sup.submit(lane, blocks_its_cleanup(virtual, 30.0), session="a")
            await anyio.sleep(1.0)
            if how == "stopped":
                run.cancel("the user pressed stop")
            outcome = await run.wait()
            await virtual.settle()
    (line,) = named(logs, "lease_revoked")
    assert line["overstayed_s"] == pytest.approx(30.0, abs=0.1)
    told = re.search(r"kept .* (-?[\d.]+) s (.*): revoked", line["reason"])
    assert told is not None and told[2] == words
    assert float(told[1]) == pytest.approx(GRACE, abs=0.1)
    assert outcome.late_s == about(0.0)
    assert "late" not in outcome.reason


@pytest.mark.failure("T3")
async def test_no_text_about_a_run_counts_backwards(virtual, tmp_path):
    """Of a body that is abandoned, of one that should have ended, and of one that waits too long for its turn."""
    texts = []

    async def body(ctx):
        with anyio.CancelScope(shield=True):
            await anyio.sleep(5.0)
            virtual.advance(20.0)
            texts.append(report_on(ctx.run))
            texts.append(report_on(waiting))
            await anyio.sleep(5.0)
            texts.append(report_on(ctx.run))

    async with Supervisor(tmp_path, lanes=LANES) as sup:
        run = sup.submit("queue:a", body, timeout=10.0)
        waiting = sup.submit("queue:a", sleeps)
        await run.wait()
        await gone(sup)
        sup.cancel()
        await waiting.wait()
    assert len(texts) == 3
    assert [text for text in texts if re.search(r"-\d", text.partition("in its own task")[0].split("path=")[0])] == []
    assert "its deadline has passed 15.0 s ago" in texts[0]
    assert "should have given up waiting 15.0 s ago" in texts[1]


def test_nobody_who_watches_knows_no_reason_but_the_figure():
    assert late_reason(Unwatched(), 10.0, 10.04) == ""
    assert late_reason(Unwatched(), 10.0, 12.0) == ", 2.00 s late"


# Who lives


@pytest.mark.failure("F1", "E1")
async def test_a_stuck_run_is_freed_by_deadline_and_grace_and_its_lane_moves(sup, virtual):
    body, began = Shielded(), virtual.now()
    stuck, next_one = sup.submit("work:a", body), sup.submit("work:a", sleeps, 0)
    assert await next_one.result() == "well"
    assert virtual.now() == about(began + 10.0 + GRACE)
    assert stuck.state is RunState.ABANDONED
    body.release()
    await gone(sup)


@pytest.mark.failure("F3")
async def test_a_long_wait_that_is_declared_survives_and_the_reason_of_one_that_is_not_is_true(sup):
    async def steady(ctx):
        for _ in range(10):
            await anyio.sleep(9.0)
            ctx.progress()
        return "well"

    async def waits_for_a_child(ctx):
        return await ctx.submit("work:child", sleeps, 50.0, timeout=60.0).result()

    async def says_nothing(ctx):
        await anyio.sleep(9.0)
        ctx.progress()
        await anyio.sleep_forever()

    good = [sup.submit("idle:a", steady), sup.submit("idle:b", waits_for_a_child)]
    bad = sup.submit("idle:c", says_nothing)
    assert [await run.result() for run in good] == ["well"] * 2
    outcome = await bad.wait()
    assert (outcome.reason, outcome.ran_s) == ("made no progress for 10 s", about(19.0))


@pytest.mark.failure("F3")
async def test_a_run_that_was_done_before_the_late_timer_came_is_done(sup, virtual):
    async def body(ctx):
        await anyio.sleep(9.0)
        virtual.advance(2.0)
        return "well"

    assert await sup.submit("work:a", body).result() == "well"


@pytest.mark.failure("F4")
async def test_a_body_that_a_blocked_loop_kept_from_ending_gets_its_grace_again(sup, virtual):
    async def cleans(ctx):
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1.0)  # begins, and the loop is blocked for longer than the grace
                await anyio.sleep(1.0)

    run = sup.submit("work:a", cleans)
    sup.submit("work:b", blocks_at(virtual, 5.0, after=10.5), timeout=50.0)
    outcome = await run.wait()
    assert outcome.state is RunState.TIMED_OUT
    assert sup.statistics().runs["abandoned"] == 0


@pytest.mark.failure("F4")
async def test_its_grace_is_given_again_but_once(sup, virtual):
    body, began = Shielded(), virtual.now()
    run = sup.submit("work:a", body)
    for number, after in enumerate((10.5, 16.0, 19.0)):
        sup.submit(f"work:{number}", blocks_at(virtual, 5.0 if number == 0 else 2.5, after=after), timeout=50.0)
    outcome = await run.wait()
    assert outcome.state is RunState.ABANDONED
    assert began + 15.5 + GRACE <= virtual.now() <= began + 18.6
    body.release()
    await gone(sup)
    sup.cancel()
    await virtual.settle()


@pytest.mark.failure("F4", "F2")
async def test_late_timers_of_an_idle_loop_put_nothing_off(sup, virtual):
    """The scheduler's timers come late, and the loop answers its watchdog all the time."""
    body = Shielded()
    run = sup.submit("work:a", body)
    await anyio.sleep(10.5)
    scheduler = sup._scheduler
    execution = scheduler.board.live[run.id]
    timer, due = execution.timer, execution.timer.due
    scheduler.board.timers.cancel(timer)
    execution.timer = scheduler.board.timers.at(due + 5.0, scheduler._causes._abandon, execution, due)
    await run.wait()
    assert run.state is RunState.ABANDONED
    assert virtual.now() == pytest.approx(due + 5.0, abs=0.1)
    body.release()
    await gone(sup)


# The permission to write


async def test_a_grace_that_is_forgiven_starts_afresh_each_time_and_never_grows(virtual):
    fence = Fence(lane="work", run_id=1, deadline=1010.0, end_at=1012.0)
    fence.restart_grace(virtual.now())
    assert fence.end_at == 1012.0, "the deadline has not come"
    for stopped_until in (1050.0, 1051.0, 1100.0):
        virtual.advance(stopped_until - virtual.now())
        for _ in range(3):  # for each right that the run holds
            fence.restart_grace(virtual.now())
        assert fence.end_at == stopped_until + GRACE
    fence.close()
    virtual.advance(50.0)
    fence.restart_grace(virtual.now())
    assert fence.closed and fence.end_at == 1102.0


async def test_a_run_that_was_asked_to_end_is_forgiven_by_its_own_grace(virtual):
    fence = Fence(lane="work", run_id=1, deadline=2000.0, end_at=2000.0 + GRACE)
    fence.end_by(virtual.now() + GRACE)
    virtual.advance(30.0)
    assert fence.closed
    fence.restart_grace(virtual.now())
    assert fence.end_at == virtual.now() + GRACE and not fence.closed
