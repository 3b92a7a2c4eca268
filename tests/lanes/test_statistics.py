"""`statistics()`: frozen, and exact in every field at every instant, however runs wait, run, end and come back."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import itertools
import sys

import anyio
import pytest

from lanes import GroupSpec, LaneSpec, RetrySpec, RunState, Totals
from runtime import Limits, Supervisor
from tests.supervised import Shielded, about, assert_empty, gone

pytestmark = pytest.mark.backends("asyncio", "trio")


async def answers(ctx, messages):
    await anyio.sleep(10.0)
    return [message.body for message in [*messages, *ctx.inbox.take()]]


LANES = [
    LaneSpec("session:*", handler=answers, group="two", timeout=60.0),
    LaneSpec("tools", group="two", capacity=3, timeout=60.0, queue_limit=None),
    LaneSpec("again", group="two", capacity=3, retry=RetrySpec(2, wait=5.0, max_wait=5.0)),
    LaneSpec("full", group="two", capacity=1, queue_limit=1, when_full="drop_oldest"),
    LaneSpec("side", capacity=9),
]
GROUPS = [GroupSpec("two", slots=2)]


@pytest.fixture
async def sup(virtual, tmp_path):
    async with Supervisor(tmp_path, lanes=LANES, groups=GROUPS, limits=Limits(abandoned=1)) as sup:
        yield sup
        assert_empty(sup)
        assert_adds_up(sup)


def assert_adds_up(sup):
    """What is counted apart agrees."""
    now, live = sup.statistics(), sup.runs()
    by_state = {state: sum(run.state == state for run in live) for state in ("queued", "running")}
    assert {state: now.runs[state] for state in by_state} == by_state
    assert sum(lane.queued for lane in now.lanes.values()) == now.runs["queued"]
    assert sum(group.queued for group in now.groups.values()) == now.runs["queued"]
    for state in RunState:
        if state.ended:
            assert sum(group.totals.outcomes[state] for group in now.groups.values()) == now.runs[state]
    assert (now.parked, now.abandoned) == (len(sup.parked()), len(sup.abandoned()))


async def sleeps(ctx, seconds=10.0):
    await anyio.sleep(seconds)


# Each field


async def test_a_new_supervisor_holds_nothing(sup):
    now = sup.statistics()
    nothing = Totals(
        outcomes={state.value: 0 for state in RunState if state.ended},
        waited_s=0.0,
        ran_s=0.0,
        longest_wait_s=0.0,
        dropped=0,
        retries=0,
    )
    assert now.lanes == {}
    assert set(now.groups) == {"main", "background", "control", "two"}
    assert all(group.totals == nothing for group in now.groups.values())
    assert now.runs == {state.value: 0 for state in RunState}
    assert (now.leases.held, now.abandoned, now.parked, now.late_writes_refused, now.late_events_dropped) == (0,) * 5
    assert (now.admission_slowed, now.problems, now.healthy) == ("", (), True)
    assert (now.groups["two"].slots, now.groups["two"].reserve, now.groups["main"].reserve) == (2, 0, 4)


async def test_places_slots_and_queues_are_counted_by_lane_and_group(sup):
    runs = [sup.submit("tools", sleeps) for _ in range(3)] + [sup.submit("full", sleeps), sup.submit("side", sleeps)]
    now = sup.statistics()
    tools, full, side = (now.lanes[name] for name in ("tools", "full", "side"))
    assert (tools.running, tools.queued, tools.capacity) == (2, 1, 3)
    assert (full.running, full.queued, full.capacity) == (0, 1, 1)
    assert (side.running, side.queued, side.capacity) == (1, 0, 9)
    assert (now.groups["two"].running, now.groups["two"].queued) == (2, 2)
    assert (now.groups["main"].running, now.groups["main"].queued) == (1, 0)
    assert (now.runs["running"], now.runs["queued"]) == (3, 2)
    assert_adds_up(sup)
    for run in runs:
        await run.wait()


async def test_what_has_ended_is_summed_up_by_lane_and_group(sup):
    for run in [sup.submit("tools", sleeps, seconds) for seconds in (10.0, 20.0, 5.0)]:
        await run.wait()
    totals = sup.statistics().lanes["tools"].totals
    assert (totals.waited_s, totals.ran_s, totals.longest_wait_s) == about((10.0, 35.0, 10.0))
    assert totals.outcomes == {**dict.fromkeys(totals.outcomes, 0), "done": 3}
    assert sup.statistics().groups["two"].totals == totals


async def test_each_way_to_end_is_counted_as_itself(sup):
    async def fails(ctx):
        raise LookupError

    body = Shielded()
    runs = [sup.submit("side", sleeps, 0.0), sup.submit("side", fails), sup.submit("side", sleeps, timeout=1.0)]
    runs += [sup.submit("side", sleeps), sup.submit("side", body, timeout=1.0)]
    runs[3].cancel()
    old = sup.post("session:a", "old")
    new = sup.post("session:a", "new", when_busy="interrupt")
    for run in [*runs, old, new]:
        await run.wait()
    assert sup.statistics().lanes["side"].totals.outcomes == {
        "done": 1,
        "failed": 1,
        "timed_out": 1,
        "cancelled": 1,
        "superseded": 0,
        "abandoned": 1,
    }
    assert (old.state, sup.statistics().runs["superseded"], sup.statistics().runs["done"]) == ("superseded", 1, 2)
    body.release()
    await gone(sup)


async def test_what_was_dropped_is_counted_and_cancelled_too(sup):
    runs = [sup.submit("full", sleeps) for _ in range(4)]
    totals = sup.statistics().lanes["full"].totals
    assert (totals.dropped, totals.outcomes["cancelled"]) == (2, 2)
    assert sup.statistics().groups["two"].totals.dropped == 2
    for run in runs:
        await run.wait()


async def test_the_oldest_wait_is_that_of_the_oldest_in_the_queue(sup, virtual):
    runs = [sup.submit("tools", sleeps) for _ in range(2)]
    assert sup.statistics().lanes["tools"].oldest_wait_s == 0.0
    runs.append(sup.submit("tools", sleeps))
    await anyio.sleep(3.0)
    runs.append(sup.submit("full", sleeps))
    await anyio.sleep(2.0)
    now = sup.statistics()
    assert (now.lanes["tools"].oldest_wait_s, now.lanes["full"].oldest_wait_s) == about((5.0, 2.0))
    assert now.groups["two"].oldest_wait_s == about(5.0)
    assert now.groups["main"].oldest_wait_s == 0.0
    for run in runs:
        await run.wait()


async def test_runs_that_wait_to_be_tried_again_are_queued_and_the_oldest(sup):
    async def fails(ctx, seconds):
        await anyio.sleep(seconds)
        raise ConnectionError

    first, second = sup.submit("again", fails, 1.0), sup.submit("again", fails, 2.0)
    await anyio.sleep(2.5)
    third = [sup.submit("side", sleeps), sup.submit("again", sleeps), sup.submit("again", sleeps)]
    waiting = sup.submit("again", sleeps)
    await anyio.sleep(0.5)
    lane = sup.statistics().lanes["again"]
    assert (lane.running, lane.queued, lane.totals.retries) == (2, 3, 2)
    assert lane.oldest_wait_s == about(3.0)
    assert_adds_up(sup)
    for run in [first, second, *third, waiting]:
        await run.wait()
    lane = sup.statistics().lanes["again"]
    assert (lane.totals.outcomes["failed"], lane.totals.retries, sup.statistics().parked) == (2, 2, 2)
    assert lane.totals.waited_s + lane.totals.ran_s == about(
        sum(one.outcome.waited_s + one.outcome.ran_s for one in [first, second, *third[1:], waiting])
    )


async def test_a_run_that_waits_for_another_has_lent_its_slot_and_then_returns(sup, virtual):
    async def waits(ctx):
        await ctx.submit("side", sleeps, 5.0).result()

    parent = sup.submit("tools", waits)
    await virtual.settle()
    now = sup.statistics()
    assert (now.lanes["tools"].running, now.groups["two"].running, now.groups["two"].returning) == (1, 0, 0)
    fillers = [sup.submit("full", sleeps), sup.submit("session:a", sleeps)]
    await anyio.sleep(6.0)
    now = sup.statistics()
    assert (now.groups["two"].running, now.groups["two"].returning, now.groups["two"].queued) == (2, 1, 0)
    assert_adds_up(sup)
    for run in [parent, *fillers]:
        await run.wait()
    assert virtual.now() == about(1010.0)


async def test_a_message_in_an_inbox_is_queued_and_once_read_runs_with_its_reader(sup):
    async def reads(ctx, messages):
        await anyio.sleep(1.0)
        ctx.inbox.take()
        await anyio.sleep(1.0)

    async with Supervisor(sup.layout.root, lanes=[LaneSpec("session:*", handler=reads, when_busy="steer")]) as other:
        runs = [other.post("session:a", n) for n in range(3)]
        await anyio.sleep(0.5)
        assert (other.statistics().runs["running"], other.statistics().runs["queued"]) == (1, 2)
        assert_adds_up(other)
        await anyio.sleep(1.0)
        now = other.statistics()
        assert (now.runs["running"], now.runs["queued"], now.lanes["session:a"].running) == (3, 0, 1)
        assert_adds_up(other)
        for run in runs:
            await run.wait()
        assert other.statistics().runs["done"] == 3
        assert_empty(other)


async def test_late_events_and_writes_are_counted(sup):
    contexts = []

    async def body(ctx):
        contexts.append(ctx)

    await sup.submit("session:a", body).wait()
    contexts[0].emit("late")
    with pytest.raises(Exception, match="has ended"):
        await contexts[0].session.append({"text": "late"})
    assert (sup.statistics().late_events_dropped, sup.statistics().late_writes_refused) == (1, 1)


async def test_why_admission_is_slowed_is_said(sup):
    sup._scheduler.board.throttle.slow("the event loop was 2.00 s late; allowed: 1 s")
    assert sup.statistics().admission_slowed == "the event loop was 2.00 s late; allowed: 1 s"
    sup._scheduler.board.throttle.restore()
    assert sup.statistics().admission_slowed == ""


async def test_memory_that_cannot_be_looked_at_ends_nothing(virtual, tmp_path, monkeypatch):
    def fails(process):
        asked.append(process)
        raise OSError(24, "Too many open files")

    asked: list[object] = []
    monkeypatch.setattr("psutil.Process.memory_info", fails)
    async with Supervisor(tmp_path, limits=Limits(memory=10**12)) as sup:
        await sup.submit("main", sleeps).wait()
        assert (asked != [], sup.statistics().admission_slowed) == (True, "")


async def test_lanes_of_a_pattern_are_gone_when_idle_and_their_totals_stay_with_the_group(sup):
    for n in range(5):
        await sup.submit(f"session:{n}", sleeps, 1.0).wait()
    now = sup.statistics()
    assert (now.lanes, now.groups["two"].totals.outcomes["done"]) == ({}, 5)


async def test_a_supervisor_that_has_stopped_still_says_what_was(virtual, tmp_path):
    async with Supervisor(tmp_path) as sup:
        await sup.submit("main", sleeps).wait()
    now = sup.statistics()
    assert (now.runs["done"], now.runs["queued"], now.runs["running"]) == (1, 0, 0)


# Frozen, documented, cheap


async def test_it_does_not_change_afterwards(sup):
    before = sup.statistics()
    copy = dataclasses.replace(before)
    run = sup.submit("tools", sleeps)
    await run.wait()
    assert before == copy
    assert before.lanes == {}
    with pytest.raises(dataclasses.FrozenInstanceError):
        before.abandoned = 7


@pytest.mark.backends("asyncio")
@pytest.mark.parametrize("module", ["runtime.statistics", "lanes.queues.totals"])
def test_every_field_says_what_it_counts(module):
    tree = ast.parse(inspect.getsource(importlib.import_module(module)))
    kinds = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.decorator_list]
    assert kinds != []
    for node, after in (pair for kind in kinds for pair in itertools.pairwise([*kind.body, None])):
        if isinstance(node, ast.AnnAssign):
            assert isinstance(after, ast.Expr), f"{ast.unparse(node.target)} has no words"


@pytest.mark.failure("E15")
@pytest.mark.suite("Q1")
async def test_with_twenty_thousand_queued_it_runs_no_code_of_ours_for_each(sup):
    for _ in range(4):
        sup.submit("tools", sleeps)
    few = _events_of(sup.statistics)
    for _ in range(19_998):
        sup.submit("tools", sleeps)
    now = sup.statistics()
    assert (now.runs["queued"], now.lanes["tools"].queued, now.groups["two"].queued) == (20_000,) * 3
    assert _events_of(sup.statistics) < few + 1000  # there are more samples of the loop's lag now, for one
    sup.cancel(reason="enough")
    while sup.runs():
        await sup.runs()[0].wait()


def _events_of(call):
    """How many lines and calls of Python code something takes; a time would depend on the machine."""
    events = 0

    def count(frame, event, argument):
        nonlocal events
        events += 1
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        call()
    finally:
        sys.settrace(before)
    return events
