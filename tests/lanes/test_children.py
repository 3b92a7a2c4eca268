"""Runs that a run submits: they end with it, within its deadline, and it always learns how they ended."""

from __future__ import annotations

from functools import partial

import anyio
import pytest

from lanes import (
    Draining,
    LaneSpec,
    RetrySpec,
    Run,
    RunAbandoned,
    RunCancelled,
    RunState,
    RunSuperseded,
    RunTimedOut,
)
from locks import DeadlockError, RunEnded, Superseded
from runtime import Supervisor
from tests.supervised import Shielded, about, assert_empty, gone

pytestmark = pytest.mark.backends("asyncio", "trio")

LANE = partial(LaneSpec, timeout=10.0, grace=2.0)


async def returns(ctx, value=None):
    return value


async def sleeps(ctx, seconds=1000.0):
    await anyio.sleep(seconds)


async def raises(ctx):
    raise LookupError("the child's own")


LANES = [
    LANE("parent:*"),
    LANE("child:*", timeout=100.0),
    LANE("impatient", timeout=100.0, queue_timeout=3.0),
    LANE("small", timeout=100.0, queue_limit=1, when_full="drop_oldest"),
    LANE("again:*", retry=RetrySpec(wait=1.0, on=LookupError)),
    LANE("session:*", when_busy="interrupt"),
]


@pytest.fixture
async def sup(virtual, tmp_path):
    async with Supervisor(tmp_path, lanes=LANES) as sup:
        yield sup
        assert_empty(sup)
        assert len(sup._scheduler.waits) == 0


# What a child has of its parent


async def test_a_child_knows_who_it_ends_with_and_a_detached_one_only_who_submitted_it(sup):
    async def grandparent(ctx):
        return await ctx.submit("parent:2", parent).result()

    async def parent(ctx):
        child = ctx.submit("child:1", returns)
        detached = ctx.submit("child:2", returns, detached=True)
        plain = sup.submit("child:3", returns)
        return [(run.parent, run.lineage) for run in (ctx.run, child, detached, plain)]

    run = sup.submit("parent:1", grandparent)
    top, below = run.id, run.id + 1
    assert await run.result() == [(top, (top,)), (below, (top, below)), (below, ()), (below, ())]
    assert (run.parent, run.lineage) == (None, ())


async def test_a_child_has_at_most_its_parents_deadline_at_whatever_depth(sup):
    seen = []

    async def parent(ctx):
        await anyio.sleep(4)
        await ctx.submit("child:1", child).wait()

    async def child(ctx):
        await anyio.sleep(1)
        seen.append(ctx.run.deadline)
        await ctx.submit("child:2", grandchild, timeout=50.0).wait()

    async def grandchild(ctx):
        seen.append(ctx.run.deadline)
        shorter = ctx.submit("child:3", sleeps, timeout=1.0)
        await shorter.wait()
        seen.append(shorter.outcome.reason)

    run = sup.submit("parent:1", parent)
    await run.wait()
    assert seen == [about(run.started_at + 10.0), about(run.started_at + 10.0), "timed out after 1 s"]


async def test_a_detached_child_has_a_deadline_of_its_own_and_outlives_its_parent(sup):
    async def parent(ctx):
        return ctx.submit("child:1", sleeps, 30.0, detached=True)

    child = await sup.run("parent:1", parent)
    assert child.state is RunState.RUNNING
    assert child.deadline == about(child.started_at + 100.0)
    assert (await child.wait()).ran_s == about(30.0)


# The parent ends


async def forks(ctx, then):
    """A parent with a running child, a queued one, and a grandchild; it ends as it is told."""

    async def forks_too(ctx):
        children.append(ctx.submit("child:2", sleeps))
        await anyio.sleep_forever()

    children = ctx.services["children"]
    children += [ctx.submit("child:1", forks_too), ctx.submit("child:1", sleeps)]
    await anyio.sleep(1)
    return await then(ctx)


async def _return(ctx):
    return "done"


async def _raise(ctx):
    raise ValueError("its own")


async def _wait(ctx):
    await anyio.sleep_forever()


ENDS = {
    "returns": (_return, RunState.DONE, "has ended"),
    "raises": (_raise, RunState.FAILED, "ValueError: its own"),
    "times out": (_wait, RunState.TIMED_OUT, "timed out after 10 s"),
    "is cancelled": (_wait, RunState.CANCELLED, "by its user"),
    "is superseded": (_wait, RunState.SUPERSEDED, "superseded by run "),
    "is abandoned": (Shielded, RunState.ABANDONED, "by its user"),
}


@pytest.mark.parametrize("end", ENDS)
async def test_however_a_parent_ends_its_children_end_within_their_grace_and_say_why(sup, virtual, end):
    then, state, why = ENDS[end]
    shielded = None
    if then is Shielded:
        then = shielded = Shielded()
    children: list[Run] = []
    sup._scheduler.board.services["children"] = children
    run = sup.submit("session:a", forks, then)
    await virtual.settle()
    if end in ("is cancelled", "is abandoned"):
        await anyio.sleep(2)
        run.cancel("by its user")
    if end == "is superseded":
        await sup.submit("session:a", returns).wait()
    assert (await run.wait()).state is state
    reasons = [(await child.wait()).reason for child in children]
    assert len(children) == 3
    assert [child.state for child in children] == [RunState.CANCELLED] * 3
    first, queued, grandchild = reasons
    assert first == queued and first.startswith(f"ended with its parent, run {run.id} (") and why in first
    assert grandchild == f"ended with its parent, run {children[0].id} ({first})"
    assert children[1].started_at is None
    if shielded is not None:
        shielded.release()
        await gone(sup)


async def test_the_children_of_an_attempt_that_is_tried_again_end_and_the_next_one_has_its_own(sup):
    children = []

    async def parent(ctx):
        children.append(ctx.submit(f"child:{ctx.run.attempt}", sleeps))
        await anyio.sleep(0.5)
        if ctx.run.attempt == 1:
            raise LookupError("not yet")
        assert children[1].state is RunState.RUNNING
        return "second"

    run = sup.submit("again:1", parent)
    assert await run.result() == "second"
    outcomes = [await child.wait() for child in children]
    assert outcomes[0].reason == f"ended with its parent, run {run.id} (tries again: LookupError: not yet)"
    assert outcomes[1].reason == f"ended with its parent, run {run.id} (has ended)"
    assert [child.parent for child in children] == [run.id] * 2


async def test_a_child_may_clean_up_after_its_parent_has_ended(sup):
    cleaned = []

    async def child(ctx):
        try:
            await anyio.sleep_forever()
        finally:
            async with ctx.cleanup():
                await anyio.sleep(1)
                cleaned.append(ctx.run.reason)

    async def parent(ctx):
        run = ctx.submit("child:1", child)
        await anyio.sleep(1)
        return run

    run = await sup.run("parent:1", parent)
    await run.wait()
    assert cleaned == [f"ended with its parent, run {run.parent} (has ended)"]


async def test_children_that_have_ended_are_forgotten(sup):
    async def parent(ctx):
        for _ in range(100):
            await ctx.submit("child:1", returns).result()
        return len(ctx._permit.children)

    assert await sup.run("parent:1", parent) == 0


async def test_a_parent_that_waits_when_its_deadline_passes_is_timed_out_and_its_child_with_it(sup):
    children = []

    async def parent(ctx):
        children.append(ctx.submit("child:1", sleeps))
        await children[0].result()

    run = sup.submit("parent:1", parent)
    assert (await run.wait()).reason == "timed out after 10 s"
    outcome = await children[0].wait()
    assert outcome.state in (RunState.CANCELLED, RunState.TIMED_OUT)
    assert outcome.reason in (
        f"ended with its parent, run {run.id} (timed out after 10 s)",
        f"reached the deadline of its parent, run {run.id}",
    )


# The child ends


async def hold(sup, lane, session=None):
    """Keep a lane busy."""
    return sup.submit(lane, sleeps, 8.0, session=session)


async def _times_out(sup, ctx):
    return ctx.submit("child:1", sleeps, timeout=2.0)


async def _fails(sup, ctx):
    return ctx.submit("child:1", raises)


async def _is_cancelled(sup, ctx):
    child = ctx.submit("child:1", sleeps)
    sup._scheduler.board.timers.at(anyio.current_time() + 1, child.cancel, "by its user")
    return child


async def _is_cancelled_in_the_queue(sup, ctx):
    await hold(sup, "child:1")
    return await _is_cancelled(sup, ctx)


async def _is_dropped(sup, ctx):
    await hold(sup, "small")
    child = ctx.submit("small", returns)
    sup._scheduler.board.timers.at(anyio.current_time() + 1, sup.submit, "small", returns)
    return child


async def _is_reset(sup, ctx):
    child = ctx.submit("session:b", sleeps)
    ctx.services["tasks"].start_soon(sup.reset, "b")
    return child


async def _is_abandoned(sup, ctx):
    return ctx.submit("child:1", ctx.services["shielded"], timeout=1.0)


async def _is_superseded(sup, ctx):
    child = ctx.submit("session:b", sleeps)
    sup._scheduler.board.timers.at(anyio.current_time() + 1, sup.submit, "session:b", returns)
    return child


async def _never_starts(sup, ctx):
    await hold(sup, "impatient")
    return ctx.submit("impatient", returns)


async def _cannot_open_its_session(sup, ctx):
    await anyio.Path(sup.layout.file_of("directory")).mkdir()
    return ctx.submit("session:directory", returns)


async def _fails_for_the_last_time(sup, ctx):
    return ctx.submit("again:1", raises)


CHILDREN = {
    "times out": (_times_out, RunTimedOut, "timed out after 2 s"),
    "fails": (_fails, LookupError, "the child's own"),
    "is cancelled": (_is_cancelled, RunCancelled, "by its user"),
    "is cancelled in the queue": (_is_cancelled_in_the_queue, RunCancelled, "by its user"),
    "is dropped": (_is_dropped, RunCancelled, "dropped: lane 'small' was full"),
    "is reset": (_is_reset, RunCancelled, "reset of its session"),
    "is abandoned": (_is_abandoned, RunAbandoned, "its body ignored that for 2 s and was abandoned"),
    "is superseded": (_is_superseded, RunSuperseded, "superseded by run "),
    "never starts": (_never_starts, RunTimedOut, "waited 3 s in the queue"),
    "cannot open its session": (_cannot_open_its_session, Exception, "directory"),
    "fails for the last time": (_fails_for_the_last_time, LookupError, "the child's own"),
}


@pytest.mark.failure("F5")
@pytest.mark.parametrize("end", CHILDREN)
async def test_a_parent_always_learns_how_its_child_ended(sup, virtual, end):
    begin, kind, words = CHILDREN[end]
    shielded = Shielded()

    async def parent(ctx):
        child = await begin(sup, ctx)
        with pytest.raises(kind, match=words) as caught:
            await child.result()
        if end not in ("fails", "fails for the last time", "cannot open its session"):
            assert getattr(caught.value, "run", None) is child
        assert await child.wait() is child.outcome
        return "knows"

    async with anyio.create_task_group() as group:
        sup._scheduler.board.services.update(shielded=shielded, tasks=group)
        run = sup.submit("parent:1", parent, timeout=90.0)
        assert await run.result() == "knows"
    shielded.release()
    await gone(sup)
    sup.cancel()
    for left in sup.runs():
        await left.wait()
    for parked in sup.parked():
        sup.discard(parked.run.id)


@pytest.mark.failure("F5")
async def test_a_parent_that_does_not_catch_it_fails_with_its_childs_error_and_is_not_told_apart_as_its_own(sup):
    async def parent(ctx):
        await ctx.submit("child:1", sleeps, timeout=2.0).result()

    run = sup.submit("parent:1", parent)
    outcome = await run.wait()
    assert outcome.state is RunState.FAILED
    assert isinstance(outcome.error, RunTimedOut) and outcome.error.run is not run


@pytest.mark.failure("F5")
async def test_every_one_of_many_waiters_is_told(sup, virtual):
    told = []

    async def parent(ctx):
        child = ctx.submit("child:1", sleeps)

        async def waiter():
            told.append((await child.wait()).state)

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(waiter)
            await anyio.sleep(1)
            child.cancel()

    await sup.run("parent:1", parent)
    assert told == [RunState.CANCELLED] * 5


# Who may submit what


@pytest.mark.failure("E4")
@pytest.mark.parametrize("depth", [1, 2])
async def test_a_child_that_names_the_session_of_a_run_above_it_is_refused(sup, depth):
    async def top(ctx):
        return await (ctx.submit("child:1", below).result() if depth == 2 else below(ctx))

    async def below(ctx):
        for lane, options in (("session:a", {}), ("child:2", {"session": "a"})):
            with pytest.raises(DeadlockError, match=r"turn of session 'a', which .*allowed: turn=False, or detached"):
                ctx.submit(lane, returns, **options)
        return await ctx.submit("child:2", returns, "appends only", session="a", turn=False).result()

    assert await sup.run("session:a", top) == "appends only"


async def test_a_detached_child_may_name_its_parents_session_and_comes_after_it(sup):
    async def parent(ctx):
        child = ctx.submit("child:1", returns, "after", session="a", detached=True)
        await anyio.sleep(1)
        assert child.state is RunState.QUEUED
        return child

    child = await sup.run("session:a", parent)
    assert await child.result() == "after"


@pytest.mark.failure("D4")
@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("end", ["returned", "was abandoned", "was superseded", "is tried again"])
async def test_a_dead_parent_submits_nothing(sup, virtual, end, detached):
    kept, body = [], Shielded()

    async def parent(ctx):
        kept.append(ctx)
        if end == "is tried again" and ctx.run.attempt == 1:
            raise LookupError
        if end == "was superseded" and len(kept) == 1:
            await anyio.sleep_forever()
        if end == "was abandoned":
            await body(ctx)

    run = sup.submit("again:1" if end == "is tried again" else "session:a", parent)
    await virtual.settle()
    if end == "was abandoned":
        run.cancel()
    if end == "was superseded":
        await sup.submit("session:a", returns).wait()
    if end != "is tried again":
        await run.wait()
    kind = Superseded if end == "was superseded" else RunEnded
    with pytest.raises(kind, match="has ended: nothing submitted to lane 'child:1'"):
        kept[0].submit("child:1", returns, detached=detached)
    assert [one for one in sup.runs() if one.lane == "child:1"] == []
    await run.wait()
    body.release()
    await gone(sup)


async def test_a_run_that_was_asked_to_end_submits_only_what_goes_on_without_it(sup):
    async def parent(ctx):
        try:
            await anyio.sleep_forever()
        finally:
            async with ctx.cleanup():
                with pytest.raises(RunEnded, match=r"was asked to end: no child .*allowed: detached=True"):
                    ctx.submit("child:1", returns)
                submitted.append(ctx.submit("child:1", returns, "notified", detached=True))

    submitted: list[Run] = []
    run = sup.submit("parent:1", parent)
    await anyio.sleep(1)
    run.cancel()
    await run.wait()
    assert await submitted[0].result() == "notified"


# Draining


async def test_draining_starts_the_children_of_running_runs_and_nothing_else(virtual, tmp_path):
    async def parent(ctx):
        await anyio.sleep(1)
        first = await ctx.submit("child:1", returns, "child").result()
        second = await ctx.submit("child:1", grandparent).result()
        with pytest.raises(Draining):
            ctx.submit("child:2", returns, detached=True)
        with pytest.raises(Draining):
            sup.submit("child:2", returns)
        return first, second

    async def grandparent(ctx):
        return await ctx.submit("child:2", returns, "grandchild").result()

    sup = Supervisor(tmp_path, lanes=LANES)
    await sup.start()
    run = sup.submit("parent:1", parent)
    queued = sup.submit("parent:1", returns)
    report = await sup.stop(drain_timeout=5.0)
    assert await run.result() == ("child", "grandchild")
    assert queued.state is RunState.CANCELLED
    assert (report.cancelled, report.unstarted) == (0, (queued,))
    assert_empty(sup)


async def test_a_drain_goes_on_until_children_have_ended_too_and_ends_both_at_its_limit(virtual, tmp_path):
    children: list[Run] = []

    async def parent(ctx):
        await anyio.sleep(1)
        children.extend(ctx.submit("child:1", sleeps) for _ in range(2))
        await children[1].wait()

    sup = Supervisor(tmp_path, lanes=LANES)
    await sup.start()
    run = sup.submit("parent:1", parent)
    await virtual.settle()
    began = virtual.now()
    await sup.stop(drain_timeout=5.0)
    assert virtual.now() == about(began + 5.0)
    assert (run.state, run.reason) == (RunState.CANCELLED, "the supervisor is stopping")
    assert [child.state for child in children] == [RunState.CANCELLED] * 2
    assert_empty(sup)


async def test_a_queued_child_is_started_by_the_drain_only_while_its_parent_runs(virtual, tmp_path):
    started = []

    async def parent(ctx):
        ctx.submit("child:1", sleeps, 3.0)
        ctx.submit("child:1", note)
        await anyio.sleep(1)

    async def note(ctx):
        started.append(ctx.run.id)

    sup = Supervisor(tmp_path, lanes=LANES)
    await sup.start()
    sup.submit("parent:1", parent)
    await virtual.settle()
    await sup.stop(drain_timeout=9.0)
    assert started == []
    assert_empty(sup)
