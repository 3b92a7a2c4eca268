"""Suite C3: five ways to cancel the same thing leave the same behind: nothing, and the next one proceeds.

A cancellation comes from a scope, from the parent's, from a deadline, since a sibling has failed, or by asyncio's own
`task.cancel()`, which knows nothing of scopes and shields. trio has nothing of the kind; there a scope of trio's own
stands for it, and for a body `Run.cancel`.

First whoever waits is cancelled, then the run itself, in every stage that it can be in.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any

import anyio
import pytest
import trio
from anyio import CancelScope, create_task_group, get_cancelled_exc_class

from lanes import Draining, GroupSpec, LaneSpec, RetrySpec, RunState
from runtime import Supervisor
from tests.supervised import assert_empty, on_trio, path_of, texts

pytestmark = pytest.mark.suite("C3")

WAYS = ("scope", "parent", "deadline", "sibling", "native")
SOON = 0.5
"""When the deadline is, for the way of that name."""


class SiblingFailed(Exception):
    """What the sibling raises."""


async def cut_short(way: str, operation: Callable[[], Awaitable[Any]], virtual, prepare=None) -> None:
    """Await an operation in a task of its own, call `prepare` when it waits, cancel it, and see that this was noticed.

    Returns when the task has ended.
    """
    scope, fail = CancelScope(), anyio.Event()
    native: list[Callable[[], Any]] = []
    seen: list[str] = []

    async def victim():
        with ExitStack() as around:
            if way == "scope":
                around.enter_context(scope)
            elif way == "deadline":
                around.enter_context(anyio.move_on_after(SOON))
            elif way == "native":
                native.append(around.enter_context(trio.CancelScope()).cancel if on_trio() else native_cancel())
            try:
                await operation()
                seen.append("returned")
            except get_cancelled_exc_class():
                seen.append("cancelled")
                raise

    async def sibling():
        await fail.wait()
        raise SiblingFailed

    async def family():
        async with create_task_group() as group:
            group.start_soon(victim)
            group.start_soon(sibling)
            try:
                await ended_after(group)
            finally:
                group.cancel_scope.cancel()

    async def ended_after(group):
        while not seen:
            await anyio.sleep(0.01)

    try:
        async with create_task_group() as parent:
            parent.start_soon(family)
            await virtual.settle()
            if prepare is not None:
                await prepare()
            assert seen == [], "it should wait"
            if way == "scope":
                scope.cancel()
            elif way == "parent":
                parent.cancel_scope.cancel()
            elif way == "sibling":
                fail.set()
            elif way == "native":
                native[0]()
    except* SiblingFailed:
        assert way == "sibling"
    assert seen == ["cancelled"]


def native_cancel() -> Callable[[], Any]:
    task = asyncio.current_task()
    assert task is not None
    return task.cancel


async def never_called(ctx, messages):
    raise AssertionError("the message was to be read from the inbox")


LANES = [
    LaneSpec("talk", handler=never_called, when_busy="steer"),
    LaneSpec("session:*", timeout=60.0, grace=2.0),
    LaneSpec("side:*", timeout=60.0, grace=2.0),
    LaneSpec("hasty", timeout=60.0, grace=2.0, queue_timeout=SOON),
    LaneSpec("again", timeout=60.0, grace=2.0, retry=RetrySpec(2, wait=30.0, max_wait=30.0)),
    LaneSpec("narrow:*", group="narrow", timeout=60.0, grace=2.0),
]
GROUPS = [GroupSpec("narrow", slots=1)]


@pytest.fixture
async def sup(virtual, tmp_path):
    async with Supervisor(tmp_path, lanes=LANES, groups=GROUPS, drain_timeout=0.0) as sup:
        yield sup
        assert_empty(sup)


async def stays(ctx):
    """A body that has last words, and takes a second for them."""
    try:
        await anyio.sleep(50)
    except get_cancelled_exc_class():
        async with ctx.cleanup():
            await ctx.session.append({"text": "last words"})
            await anyio.sleep(1)
        raise


async def answers(ctx):
    await ctx.session.append({"text": "answer"})
    return "answered"


async def next_one_proceeds(sup):
    with anyio.fail_after(5):
        assert await sup.submit("session:a", answers).result() == "answered"


# Whoever waits


@pytest.mark.parametrize("way", WAYS)
async def test_the_run_of_a_waiter_is_cancelled_with_it_whichever_way(sup, way, virtual):
    runs = []

    async def look():
        runs.extend(sup.runs())

    await cut_short(way, lambda: sup.run("session:a", stays), virtual, look)
    outcome = await runs[0].wait()
    assert (outcome.state, outcome.reason) == (RunState.CANCELLED, "whoever waited for it was cancelled")
    await next_one_proceeds(sup)
    assert texts(sup, "a") == ["last words", "answer"]


@pytest.mark.parametrize("wait", ["wait", "result", "events"])
@pytest.mark.parametrize("way", WAYS)
async def test_who_only_looks_on_can_be_cancelled_whichever_way_and_the_run_goes_on(sup, way, wait, virtual):
    release = anyio.Event()

    async def body(ctx):
        await release.wait()
        return "value"

    run = sup.submit("session:a", body)

    async def looks_on():
        if wait == "events":
            async for _ in run.events():
                pass
        await getattr(run, wait)()

    await cut_short(way, looks_on, virtual)
    assert run.state is RunState.RUNNING
    gc.collect()  # on asyncio, a task that is cancelled by another one's error stands in a cycle with that error
    assert not run._streams
    release.set()
    assert await run.result() == "value"
    await next_one_proceeds(sup)


@pytest.mark.parametrize("way", WAYS)
async def test_a_body_whose_wait_for_a_message_is_cancelled_whichever_way_has_taken_none(sup, way, virtual):
    heard = []

    async def body(ctx):
        await cut_short(way, ctx.inbox.receive, virtual)
        sup.post("talk", "hello", session="a")
        heard.append((await ctx.inbox.receive()).body)
        return "value"

    with anyio.fail_after(10):
        assert await sup.submit("session:a", body).result() == "value"
    assert heard == ["hello"]
    await next_one_proceeds(sup)


@pytest.mark.parametrize("way", WAYS)
async def test_a_reset_that_is_cancelled_whichever_way_has_ended_the_runs_all_the_same(sup, way, virtual):
    async def lingers(ctx):
        with CancelScope(shield=True):
            await anyio.sleep(1)

    await next_one_proceeds(sup)
    run, queued = sup.submit("session:a", lingers), sup.submit("session:a", answers)
    await cut_short(way, lambda: sup.reset("a"), virtual)
    reason = "ended by a reset of its session"
    for outcome in (await run.wait(), await queued.wait()):
        assert (outcome.state, outcome.reason) == (RunState.CANCELLED, reason)
    # Cut short before its turn came: the file is as it was, and nobody who was reset writes to it.
    await next_one_proceeds(sup)
    assert path_of(sup, "a").exists()
    assert texts(sup, "a") == ["answer", "answer"]


@pytest.mark.parametrize("call", ["drain", "stop"])
@pytest.mark.parametrize("way", WAYS)
async def test_a_drain_that_is_cancelled_whichever_way_cancels_the_runs_and_gives_them_their_grace(
    way, call, virtual, tmp_path
):
    sup = Supervisor(tmp_path, lanes=LANES, groups=GROUPS)
    await sup.start()
    run, queued = sup.submit("session:a", stays), sup.submit("session:a", answers)
    drain = (lambda: sup.drain(30)) if call == "drain" else (lambda: sup.stop(drain_timeout=30))
    began = virtual.now()
    await cut_short(way, drain, virtual)
    assert virtual.now() <= began + SOON + 1.5
    assert run.state is RunState.CANCELLED
    assert texts(sup, "a") == ["last words"]
    with pytest.raises(Draining):
        sup.submit("session:a", answers)
    await sup.stop()
    assert queued.outcome is not None
    assert queued.outcome.reason == "the supervisor stopped before it started"
    assert_empty(sup)


# The run itself, in every stage


class Stage:
    """A run in one stage: what it needs around it, what it does, and what must become of it."""

    words: tuple[str, ...] = ("last words",)
    """What it may still write."""
    lane = "session:a"

    def __init__(self, sup: Supervisor, virtual) -> None:
        self.sup, self.virtual = sup, virtual
        self.over = anyio.Event()

    async def before(self, way: str) -> None:
        """Prepare the place."""

    async def body(self, ctx):
        """What the run does."""
        await stays(ctx)

    async def reach(self, run) -> None:
        """Bring a run that was submitted into the stage."""
        assert run.state is RunState.RUNNING

    async def holds(self, ctx):
        """A body that stands in the way until all is over."""
        await self.over.wait()


class Queued(Stage):
    words = ()

    async def before(self, way):
        self.sup.submit("side:blocker", self.holds, session="a")
        if way == "deadline":
            self.lane = "hasty"

    async def reach(self, run):
        assert run.state is RunState.QUEUED


class Running(Stage):
    pass


class InCleanup(Stage):
    async def reach(self, run):
        run.cancel("first")
        await self.virtual.settle()
        assert run.state is RunState.RUNNING


class WaitingForAChild(Stage):
    async def body(self, ctx):
        child = ctx.submit("side:child", self.holds)
        try:
            await child.wait()
        except get_cancelled_exc_class():
            async with ctx.cleanup():
                await ctx.session.append({"text": "last words"})
            raise

    async def reach(self, run):
        assert len(self.sup._scheduler.waits) >= 1


class ReturningToASlot(WaitingForAChild):
    """Its child is done, and somebody else has its slot."""

    lane = "narrow:a"

    async def before(self, way):
        self.release = anyio.Event()

    async def body(self, ctx):
        self.child = ctx.submit("side:child", self.waits_for_release)
        await WaitingForAChild.body(self, _With(ctx, self.child))

    async def waits_for_release(self, ctx):
        await self.release.wait()

    async def reach(self, run):
        other = self.sup.submit("narrow:other", self.holds)
        await self.virtual.settle()
        assert other.state is RunState.RUNNING
        self.release.set()
        await self.virtual.settle()
        assert self.child.state is RunState.DONE
        assert self.sup._scheduler.board.groups["narrow"].returning == 1


class _With:
    """A context whose child is there already."""

    def __init__(self, ctx, child) -> None:
        self.session, self.cleanup, self.submit = ctx.session, ctx.cleanup, lambda *_: child


class InBackoff(Stage):
    words = ()
    lane = "again"

    async def body(self, ctx):
        raise ValueError("once")

    async def reach(self, run):
        assert (run.state, run.attempt) == (RunState.QUEUED, 2)


STAGES = (Queued, Running, InCleanup, WaitingForAChild, ReturningToASlot, InBackoff)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("way", WAYS)
async def test_a_run_that_is_cancelled_in_whatever_stage_whichever_way_leaves_place_slot_and_turn(
    sup, stage, way, virtual
):
    scene = stage(sup, virtual)
    await scene.before(way)
    await virtual.settle()
    runs: list[Any] = []
    own_deadline = way == "deadline" and stage is not InBackoff

    async def submitted():
        await virtual.settle()
        runs.append(next(run for run in sup.runs(session="a") if run.lane == scene.lane))
        await scene.reach(runs[0])

    async def parent(ctx):
        await ctx.submit(scene.lane, scene.body, session="a").wait()

    if way == "parent":
        above = sup.submit("side:parent", parent)
        await submitted()
        above.cancel()
    elif own_deadline:
        sup.submit(scene.lane, scene.body, session="a", timeout=SOON)
        await submitted()
    elif way == "native" and runs_in(stage):
        run = sup.submit(scene.lane, scene.body, session="a")
        await submitted()
        cancel_natively(run)
    else:
        await cut_short(way, lambda: sup.run(scene.lane, scene.body, session="a"), virtual, submitted)
    with anyio.fail_after(5):
        outcome = await runs[0].wait()
    timed_out = own_deadline and stage is not InCleanup
    assert outcome.state is (RunState.TIMED_OUT if timed_out else RunState.CANCELLED)
    assert texts(sup, "a") == list(scene.words) if scene.words else not lines_written(sup)
    scene.over.set()
    await next_one_proceeds(sup)
    with anyio.fail_after(5):
        assert await sup.submit("narrow:next", answers, session="b").result() == "answered"


def runs_in(stage) -> bool:
    return stage not in (Queued, InBackoff)


def cancel_natively(run) -> None:
    """Cancel the task of a body as asyncio does; on trio, where there is no such thing, the run."""
    if on_trio():
        run.cancel()
    else:
        run._execution.fence.task.cancel()


def lines_written(sup) -> bool:
    return path_of(sup, "a").exists() and texts(sup, "a") != []
