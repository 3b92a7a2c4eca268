"""Where a run stands, as `lanes stack` prints it: the guilty line of code, whatever it is that waits there.

Each body waits at a line that ends in a comment of its own; the text has to quote that very line.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import sys
import threading
import weakref
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio import create_task_group, sleep_forever, to_thread

from lanes import GroupSpec, LaneSpec, RetrySpec, RunState, current_run
from lanes.body.stacks import places_of, stack_of
from runtime import Supervisor
from runtime.inspect.run_report import report_on
from tests.poll import eventually
from tests.supervised import Shielded, assert_empty, gone

LANES = [
    LaneSpec("session:*", timeout=60.0, grace=0.5, queue_timeout=1000.0),
    LaneSpec("side:*", timeout=60.0, grace=0.5, capacity=4),
    LaneSpec("one", timeout=60.0, grace=0.5),
]


@pytest.fixture
async def sup(tmp_path):
    async with Supervisor(tmp_path, lanes=LANES, drain_timeout=0.0) as sup:
        yield sup


async def end(sup):
    """End everything: what a test leaves running is a leak."""
    sup.cancel()
    await eventually(lambda: sup.runs() == [])
    assert_empty(sup)


async def shown(run, *parts):
    """Where a run stands, once that names all of these."""
    try:
        await eventually(lambda: all(part in report_on(run) for part in parts), within=60)
    except AssertionError:
        text = report_on(run)
        missing = [part for part in parts if part not in text]
        raise AssertionError(f"not told: {missing}; told:\n{text}") from None
    return report_on(run)


def level_of(text, marker):
    """How far in a line stands."""
    line = next(line for line in text.splitlines() if marker in line)
    return (len(line) - len(line.lstrip())) // 4


async def waits(ctx):
    await sleep_forever()  # waits here


# Bodies, and the lines that they stand at


async def straight(ctx):
    await fetches()  # calls


async def fetches():
    await sleep_forever()  # fetches


async def numbers():
    yield 1
    await sleep_forever()  # between two items


async def loops(ctx):
    async for _ in numbers():  # asks for an item
        pass


async def sends(ctx):
    generator, value = numbers(), waits(ctx)
    try:
        await generator.asend(None)
        await generator.asend(value)  # sends it a coroutine, which is not what is waited for
    finally:
        value.close()


@asynccontextmanager
async def slow_to_enter():
    await sleep_forever()  # enters
    yield


@asynccontextmanager
async def slow_to_leave():
    try:
        yield
    finally:
        await sleep_forever()  # leaves


async def enters(ctx):
    async with slow_to_enter():  # opens the block
        pass


async def leaves(ctx):
    async with slow_to_leave():  # closes the block
        await anyio.lowlevel.checkpoint()


class Awaitable:
    """One whose `__await__` is a generator."""

    def __await__(self):
        yield from fetches().__await__()  # by hand


class Foreign:
    """An awaitable that is its own iterator, as those of other languages are: it names nothing."""

    def __init__(self):
        self._inner = fetches()

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        return self._inner.send(None)

    def send(self, value):
        return self._inner.send(value)

    def throw(self, *error):
        return self._inner.throw(*error)


async def by_hand(ctx):
    await Awaitable()  # a custom awaitable


async def foreign(ctx):
    await Foreign()  # a foreign awaitable


STRAIGHT = {
    "a coroutine": (straight, ("# calls", "# fetches", "in fetches")),
    "async for": (loops, ("# asks for an item", "# between two items", "in numbers")),
    "asend": (sends, ("# sends it a coroutine", "# between two items")),
    "a block that is entered": (enters, ("# opens the block", "# enters", "in slow_to_enter")),
    "a block that is left": (leaves, ("# closes the block", "# leaves", "in slow_to_leave")),
    "a custom awaitable": (by_hand, ("# a custom awaitable", "# by hand", "# fetches")),
    "a foreign awaitable": (foreign, ("# a foreign awaitable", "# fetches")),
}


@pytest.mark.parametrize("case", STRAIGHT)
async def test_a_run_that_waits_is_shown_down_to_the_line_that_waits(sup, case):
    body, parts = STRAIGHT[case]
    run = sup.submit("side:a", body)
    text = await shown(run, f"run {run.id} on lane side:a", "running for", "deadline in", *parts)
    assert "waits at test_run_report.py:" in text
    await end(sup)


async def test_the_head_says_who_since_when_until_when_and_why_it_is_to_end(sup):
    async def body(ctx):
        try:
            await sleep_forever()
        finally:
            async with ctx.cleanup():
                await sleep_forever()  # cleans up

    run = sup.submit("session:alice", body)
    text = await shown(run, "# cleans up" if run.reason else "sleep_forever()")
    assert text.splitlines()[0] == f"run {run.id} on lane session:alice (pid {os.getpid()}), session alice"
    assert "attempt 1; waited 0.0 s before; deadline in" in text
    run.cancel("stopped by hand")
    text = await shown(run, "# cleans up")
    assert "asked to end: stopped by hand" in text and "its grace ends in" in text
    await end(sup)


# Child tasks


async def test_child_tasks_are_shown_as_a_tree_three_deep(sup):
    async def inner():
        await sleep_forever()  # innermost

    async def middle():
        async with create_task_group() as group:
            group.start_soon(inner, name="inner")
            group.start_soon(sleep_forever, name="beside")

    async def outer():
        async with create_task_group() as group:
            group.start_soon(middle, name="middle")  # starts the middle one

    async def body(ctx):
        async with create_task_group() as group:
            group.start_soon(outer, name="outer")
            await sleep_forever()  # the body

    run = sup.submit("side:a", body)
    text = await shown(run, "# innermost", "# the body", "child task beside")
    names = [f"run {run.id} on lane side:a waits", "child task outer", "child task middle", "child task inner"]
    assert [level_of(text, name) for name in names] == [0, 1, 2, 3]
    assert level_of(text, "child task beside") == 3
    assert "child task inner waits at test_run_report.py:" in text
    await end(sup)


async def gathers(ctx):
    await asyncio.gather(fetches(), waits(ctx))


async def in_a_group(ctx):
    async with asyncio.TaskGroup() as group:
        group.create_task(fetches(), name="named task")
        await sleep_forever()  # inside the group


async def leaves_a_group(ctx):
    async with asyncio.TaskGroup() as group:
        group.create_task(fetches())


async def creates(ctx):
    await asyncio.create_task(fetches(), name="named task")  # awaits the task


async def creates_and_waits(ctx):
    tasks = [asyncio.create_task(fetches()), asyncio.create_task(waits(ctx))]
    try:
        await asyncio.wait(tasks)  # awaits both
    finally:
        for task in tasks:
            task.cancel()


async def waits_for(ctx):
    await asyncio.wait_for(fetches(), 1000)  # with a limit


NATIVE = {
    "gather": (gathers, ("# fetches", "# waits here")),
    "a task group": (in_a_group, ("# inside the group", "child task named task", "# fetches")),
    "a task group that is left": (leaves_a_group, ("child task", "# fetches")),
    "create_task": (creates, ("# awaits the task", "child task named task", "# fetches")),
    "wait": (creates_and_waits, ("# awaits both", "# fetches", "# waits here")),
    "wait_for": (waits_for, ("# with a limit", "# fetches")),
}


@pytest.mark.backends("asyncio", "uvloop")
@pytest.mark.parametrize("case", NATIVE)
async def test_native_tasks_are_shown_below_the_one_that_awaits_them(sup, case):
    body, parts = NATIVE[case]
    run = sup.submit("side:a", body)
    text = await shown(run, *parts)
    assert level_of(text, "# fetches") >= 1
    assert "none of its tasks awaits" not in text
    await end(sup)


@pytest.mark.backends("asyncio", "uvloop")
async def test_a_native_task_that_nobody_awaits_is_shown_too_and_nobody_elses(sup):
    async def below():
        await sleep_forever()  # below the stray

    async def stray():
        await asyncio.create_task(below(), name="below")

    started = []

    async def body(ctx):
        started.append(asyncio.create_task(stray(), name="stray"))
        await sleep_forever()

    other = asyncio.create_task(fetches(), name="of the host")
    run, second = sup.submit("side:a", body), sup.submit("side:a", straight)
    text = await shown(run, "task that none of its tasks awaits: stray waits", "# below the stray")
    assert level_of(text, "child task below") == 1
    assert "of the host" not in text and "# fetches" not in text
    assert "stray" not in await shown(second, "# fetches")
    for task in (*started, other):
        task.cancel()
    await asyncio.gather(*started, other, return_exceptions=True)
    await end(sup)


async def test_a_task_that_runs_right_now_is_shown_where_it_runs(sup):
    told = []

    def asks():
        mine = current_run()
        assert mine is not None
        told.append(report_on(mine))  # asks for itself

    async def child():
        asks()

    async def body(ctx):
        asks()  # the body asks
        async with create_task_group() as group:
            group.start_soon(child, name="child")
            await sleep_forever()

    run = sup.submit("side:a", body)
    await eventually(lambda: len(told) == 2)
    assert "runs right now at test_run_report.py" in told[0] and "# asks for itself" in told[0]
    assert "# the body asks" in told[0] and "in report_on" not in told[0]
    assert "child task child runs right now" in told[1] and "# asks for itself" in told[1]
    assert f"task run {run.id} on lane side:a waits" in told[1]
    await end(sup)


# Threads, processes, rights, other runs


async def test_a_worker_thread_that_hangs_is_shown_down_to_its_line(sup):
    release = threading.Event()

    def hangs():
        release.wait(30)  # hangs

    async def body(ctx):
        await to_thread.run_sync(hangs)  # waits for the thread

    run, other = sup.submit("side:a", body), sup.submit("side:a", waits)
    try:
        await shown(run, "# waits for the thread", "thread ", "# hangs", "in hangs")
        assert "# hangs" not in await shown(other, "# waits here")
    finally:
        release.set()
    await run.wait()
    await end(sup)


async def test_a_process_that_it_runs_is_named(sup):
    async def body(ctx):
        await ctx.run_process([sys.executable, "-c", "import time; time.sleep(60)"])  # runs a program

    run = sup.submit("side:a", body)
    text = await shown(run, "# runs a program", f"('{sys.executable}', '-c', 'import time; time.sleep(60)')")
    (kill,) = run._execution.killers
    assert f"process {kill.__self__._popen.pid}: ('" in text
    run.cancel()
    await run.wait()
    assert "process " not in report_on(run)
    await end(sup)


async def test_the_rights_that_it_holds_and_waits_for_are_named(sup):
    async def holds(ctx):
        async with ctx.session_of("shared").lease():
            await sleep_forever()

    async def asks(ctx):
        async with ctx.session_of("shared").lease():  # asks for the lease
            pass

    first = sup.submit("session:a", holds)
    path = sup.layout.file_of("shared")
    await shown(first, f"holds write of {path} for", f"holds turn of {sup.layout.file_of('a')} for")
    second = sup.submit("session:b", asks)
    await shown(second, "# asks for the lease", f"waits for write of {path} for", f"run {first.id} on lane session:a")
    await shown(first, "1 wait for it")
    await end(sup)


async def test_a_run_that_waits_for_a_child_run_shows_where_that_one_stands(sup):
    async def body(ctx):
        child = ctx.submit("one", straight)
        ctx.submit("one", waits)
        await child.result()  # waits for the child

    run = sup.submit("side:a", body)
    text = await shown(run, "# waits for the child", "child run 2 on lane one (running for", "in fetches")
    assert "child run 3 on lane one (queued, submitted" in text
    assert "waits for a place on lane one: 1 of 1 taken, by run 2 on lane one (running for" in text
    await end(sup)


# Queued runs


async def test_a_queued_run_says_which_run_has_its_turn_and_where_that_one_stands(sup):
    first, second, third = (sup.submit("session:a", waits) for _ in range(3))
    await shown(first, "# waits here")
    text = await shown(third, "lane session:a (pid ", "queued, submitted", "gives up waiting in")
    assert f"waits for its turn of session a: 2 before it, first run {first.id} on lane session:a (running for" in text
    assert "at test_run_report.py:" in text and "in waits)" in text
    assert "1 before it" in report_on(second)
    await end(sup)


async def test_a_queued_run_says_that_its_lane_is_full(sup):
    running = [sup.submit("side:a", waits) for _ in range(4)]
    await shown(running[3], "# waits here")
    await shown(sup.submit("side:a", waits), "waits for a place on lane side:a: 4 of 4 taken, by run 1", "; and 1 more")
    await end(sup)


async def test_a_queued_run_says_that_its_group_is_full(tmp_path):
    lanes, groups = [LaneSpec("slow:*", grace=0.5, group="narrow")], [GroupSpec("narrow", slots=1)]
    async with Supervisor(tmp_path, lanes=lanes, groups=groups, drain_timeout=0.0) as sup:
        await shown(sup.submit("slow:a", waits), "# waits here")
        await shown(
            sup.submit("slow:b", waits), "waits for a slot: 1 of 1 of group narrow taken, by run 1 on lane slow:a"
        )
        await end(sup)


async def test_a_queued_run_says_that_another_supervisor_has_the_turn(sup, tmp_path):
    async with Supervisor(tmp_path, lanes=LANES, drain_timeout=0.0) as other:
        await shown(other.submit("session:a", waits), "# waits here")
        run = sup.submit("session:a", waits)
        await shown(run, "waits for its turn of session a, which another process has: run 1 on lane session:a, pid ")
        run.cancel()
    await end(sup)


async def test_a_queued_run_says_when_it_is_tried_again(tmp_path):
    async def fails(ctx):
        raise ValueError("no luck")

    lanes = [LaneSpec("again", retry=RetrySpec(attempts=3, wait=50.0))]
    async with Supervisor(tmp_path, lanes=lanes, drain_timeout=0.0) as sup:
        run = sup.submit("again", fails)
        text = await shown(
            run, "waits for its attempt 2 in ", "attempt 2;", "attempt 1 of 3 failed (ValueError: no luck)"
        )
        assert "asked to end" not in text
        run.cancel()


async def test_a_queued_run_says_that_it_waits_for_quiet_or_for_its_message_to_be_read(tmp_path):
    async def handler(ctx, messages):
        await sleep_forever()  # reads nothing

    lanes = [
        LaneSpec("quiet:*", handler=handler, debounce=30.0),
        LaneSpec("session:*", handler=handler, when_busy="steer", grace=0.5),
    ]
    async with Supervisor(tmp_path, lanes=lanes, drain_timeout=0.0) as sup:
        await shown(sup.post("quiet:a", "hello"), "waits for quiet (debounce)", "say more: in ")
        first = sup.post("session:a", "hello")
        await shown(first, "# reads nothing")
        await shown(sup.post("session:a", "more"), f"waits for run {first.id} on lane session:a", "from its inbox")
        sup.cancel()


async def test_a_run_whose_message_was_read_names_the_run_that_has_it(tmp_path):
    async def handler(ctx, messages):
        await ctx.inbox.receive()
        await sleep_forever()  # has read it

    lanes = [LaneSpec("session:*", handler=handler, when_busy="steer", grace=0.5)]
    async with Supervisor(tmp_path, lanes=lanes, drain_timeout=0.0) as sup:
        first = sup.post("session:a", "hello")
        await shown(first, "in handler")
        second = sup.post("session:a", "more")
        await shown(second, f"its message was read by run {first.id} on lane session:a (running for", "in handler)")
        sup.cancel()


async def test_a_queued_run_says_that_the_supervisor_drains(tmp_path):
    async with Supervisor(tmp_path, lanes=LANES, drain_timeout=0.0) as sup:
        first, second = sup.submit("one", waits), sup.submit("one", waits)
        await shown(first, "# waits here")
        async with create_task_group() as group:
            group.start_soon(sup.drain, 30.0)
            await shown(second, "waits for admission: the supervisor is not started yet, or drains")
            group.cancel_scope.cancel()


# What is over


async def test_a_finished_run_says_how_it_ended_with_the_traceback_if_it_failed(sup):
    async def fails(ctx):
        raise ValueError("no luck")  # fails

    async def done(ctx):
        return 1

    failed, ended = sup.submit("side:a", fails), sup.submit("side:a", done)
    await failed.wait()
    await ended.wait()
    assert "failed: ValueError: no luck (ran" in report_on(failed) and "# fails" in report_on(failed)
    assert report_on(ended).splitlines() == [
        f"run {ended.id} on lane side:a",
        "  done (ran 0.0 s, waited 0.0 s); attempt 1",
    ]
    await end(sup)


async def test_an_abandoned_body_is_shown_where_it_stands_now_and_where_it_stood_then(sup):
    class Moves(Shielded):
        def __init__(self):
            super().__init__()
            self.last = anyio.Event()

        async def __call__(self, ctx):
            await super().__call__(ctx)
            with anyio.CancelScope(shield=True):
                await self.last.wait()  # has moved on

    body = Moves()
    run = sup.submit("side:a", body)
    await eventually(body.started.is_set)
    run.cancel()
    assert (await run.wait()).state is RunState.ABANDONED
    text = report_on(run)
    assert "its body still runs, abandoned 0." in text and "# has moved on" not in text
    body.release()
    text = await shown(run, "where it stood then:", "where it stands now:", "# has moved on")
    assert text.index("where it stood then:") < text.index("self._released.wait()") < text.index("where it stands now:")
    assert text.index("where it stands now:") < text.index("# has moved on")
    body.last.set()
    await gone(sup)
    assert "still runs" not in report_on(run)
    await end(sup)


async def test_a_run_whose_loop_is_gone_can_still_be_asked_about(tmp_path):
    def elsewhere():
        async def main():
            async with Supervisor(tmp_path, lanes=LANES, drain_timeout=0.0) as sup:
                return sup.submit("side:a", waits), sup

        return anyio.run(main)

    run, _ = await to_thread.run_sync(elsewhere)
    assert report_on(run).splitlines()[0] == "run 1 on lane side:a"


@pytest.mark.backends("asyncio", "uvloop")
async def test_it_can_be_asked_from_a_callback_of_the_loop_in_a_context_that_knows_nothing(sup):
    told = []
    run = sup.submit("side:a", straight)
    await shown(run, "# fetches")
    asyncio.get_running_loop().call_soon(lambda: told.append(report_on(run)), context=contextvars.Context())
    await eventually(lambda: told)
    assert "# fetches" in told[0]
    await end(sup)


# Bounds


async def test_a_deep_stack_and_many_tasks_are_cut_and_counted(sup):
    async def deep(n):
        if n:
            await deep(n - 1)
        else:
            await sleep_forever()  # at the bottom

    async def body(ctx):
        async with create_task_group() as group:
            for n in range(150):
                group.start_soon(sleep_forever, name=f"child {n}")
            await deep(200)

    run = sup.submit("side:a", body)
    text = await shown(run, "# at the bottom", "child task child 98 ", "outer calls …", "  … 51 more tasks …")
    assert text.count("await deep(n - 1)") < 30
    assert text.count("child task") == 99
    await end(sup)


class Compiled:
    """As a compiled coroutine looks: no frame, but a name, and what it awaits."""

    cr_frame = cr_await = None

    def __init__(self, awaits):
        self.cr_await, self.__qualname__ = awaits, "Client.get"


class Unanswering(Compiled):
    """A compiled coroutine that raises when it is asked what it awaits."""

    @property
    def cr_await(self):
        raise RuntimeError("not now")

    @cr_await.setter
    def cr_await(self, value):
        pass


class Hostile:
    """One that answers no question."""

    __slots__ = ()

    def __getattr__(self, name):
        raise RuntimeError(name)


def test_what_has_no_frame_is_named_and_a_ring_of_awaits_ends():
    coroutine = fetches()
    assert [place.function for place in places_of(Compiled(coroutine)).kept] == ["Client.get", "fetches"]
    ring = Compiled(None)
    ring.cr_await = ring
    assert stack_of(type("Task", (), {"coro": ring})()) == '  File "compiled", line 0, in Client.get'
    assert places_of(Compiled(object())).kept[-1].function == "Client.get"
    assert places_of(Compiled(Hostile())).kept[-1].function == "Client.get"
    assert places_of(Unanswering(None)).kept == ()
    assert stack_of(None) == ""
    coroutine.close()
    assert places_of(coroutine).kept == ()


async def test_what_cannot_be_looked_at_is_said_and_all_else_is_told(sup, monkeypatch):
    run = sup.submit("side:a", straight)
    await shown(run, "# fetches")
    with monkeypatch.context() as broken:
        broken.setattr(sup.registry, "statistics", None)
        assert "# fetches" in report_on(run)
        assert "(something could not be looked at: TypeError" in report_on(run)
    await end(sup)


class Kept:
    """An object that can be referred to weakly."""


async def test_looking_keeps_neither_frames_nor_what_the_body_holds(sup):
    refs: list[Any] = []
    go_on = anyio.Event()

    async def body(ctx):
        first, second = Kept(), Kept()
        refs.extend(map(weakref.ref, (first, second)))
        report_on(ctx.run)
        await anyio.lowlevel.checkpoint()
        del first
        await go_on.wait()  # has let go of the first

    gc.collect()
    gc.disable()
    try:
        run = sup.submit("side:a", body)
        await shown(run, "# has let go of the first")
        assert refs[0]() is None and refs[1]() is not None
        go_on.set()
        await run.wait()
        await eventually(lambda: refs[1]() is None, awaited="the frame is gone")
    finally:
        gc.enable()
    await end(sup)
