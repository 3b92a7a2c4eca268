"""`cancel_everywhere` and `crash_everywhere` find each kind of fault, at its line, and none where there is none."""

from __future__ import annotations

import asyncio
import inspect
import os
import re
from typing import Any

import anyio
import pytest
from anyio import get_cancelled_exc_class

from lanes import GroupSpec, InvalidLane, PoolSpec, RetrySpec, RunState
from lanes.testing import FakeModel, HandlerFault, Played, cancel_everywhere, crash_everywhere, run_handler
from runtime import MessageState

SERVICES = {"model": FakeModel("one two", delay=1.0)}


async def good(ctx, messages):
    """Writes the question once, cleans up within its grace, and lets cancellations through."""
    known = {record.get("message") for record in await ctx.session.read()}
    for message in messages:
        if message.id not in known:
            await ctx.session.append({"role": "user", "content": message.body, "message": message.id})
    text = ""
    try:
        async for token in ctx.services["model"](messages[-1].body):
            text += token
            ctx.emit(token)
    except get_cancelled_exc_class():
        async with ctx.cleanup():
            await ctx.session.append({"role": "assistant", "content": text, "stopped": ctx.run.reason})
        raise
    await ctx.finish({"role": "assistant", "content": text}, text)
    return text


async def tells(ctx, messages):
    await ctx.session.append({"role": "assistant", "content": "I was interrupted"})


def found_in(caught):
    """Each fault, as (suspension, what)."""
    return [(fault.played.at, fault.what) for fault in caught.value.faults]


def line_of(function, text):
    lines, first = inspect.getsourcelines(function)
    (number,) = [number for number, line in enumerate(lines, first) if text in line]
    return f"{function.__qualname__} (test_sweeps.py:{number})"


# Cancelled


async def test_a_handler_without_faults_is_cancelled_at_each_of_its_suspensions(virtual_time):
    seen: list[Played] = []
    count = await cancel_everywhere(good, "hello", services=SERVICES, check=seen.append)
    assert [one.at for one in seen] == list(range(1, count + 1))
    assert {one.outcome.state for one in seen if one.outcome is not None} <= {RunState.CANCELLED, RunState.DONE}
    assert {line_of(good, "in ctx.services"), line_of(good, "await ctx.finish")} <= {one.where for one in seen}
    assert [len(one.events) for one in seen if "in ctx.services" in one.where or not one.events] != []


async def swallows(ctx, messages):
    try:
        await anyio.sleep(1)
    except BaseException:
        return "never mind"


async def raises(ctx, messages):
    try:
        await anyio.sleep(1)
    finally:
        raise_if_cancelled(ctx)


def raise_if_cancelled(ctx):
    if ctx.cancelled:
        raise ValueError("no connection")


async def hangs_on(ctx, messages):
    try:
        await anyio.sleep(1)
    except get_cancelled_exc_class():
        with anyio.CancelScope(shield=True):
            await anyio.sleep(60)
        raise


async def breaks(ctx, messages):
    if {"half": True} in await ctx.session.read():
        raise RuntimeError("half a file")
    try:
        await anyio.sleep(1)
    finally:
        if ctx.cancelled:
            async with ctx.cleanup():
                await ctx.session.append({"half": True})


@pytest.mark.parametrize(
    "handler, told",
    [
        (swallows, "swallows its cancellation and returns 'never mind'"),
        (raises, "raises ValueError when it is cancelled: no connection"),
        (breaks, "the next message of the session ends as failed: RuntimeError: half a file"),
    ],
)
async def test_a_fault_is_named_with_its_line(virtual_time, handler, told):
    with pytest.raises(HandlerFault) as caught:
        await cancel_everywhere(handler, "hello", records=[{"role": "system"}])
    assert [what for _, what in found_in(caught)] == [told]
    assert caught.value.faults[0].played.where == line_of(handler, "await anyio.sleep(1)")
    name, (fault,) = handler.__name__, caught.value.faults
    assert re.match(rf"{name} has 1 fault in \d cancellations?:\n  at {fault.played.at}, {name}", str(caught.value))


async def test_a_handler_that_outlives_its_grace_is_a_fault_and_ends_the_sweep(virtual_time):
    with pytest.raises(HandlerFault) as caught:
        await cancel_everywhere(hangs_on, "hello", grace=1.0)
    ((at, what),) = found_in(caught)
    assert at == 1
    assert what.startswith("still runs when its grace is over: ")
    await anyio.sleep(60)


async def shields_with_a_limit(ctx, messages):
    with anyio.move_on_after(1, shield=True):
        await anyio.sleep_forever()


async def swallows_behind_a_shield(ctx, messages):
    await shields_with_a_limit(ctx, messages)
    with anyio.CancelScope():
        await swallows(ctx, messages)


async def test_a_shield_with_a_limit_of_its_own_swallows_no_cancellation(virtual_time):
    assert await cancel_everywhere(shields_with_a_limit, "hello") == 1
    with pytest.raises(HandlerFault) as caught:
        await cancel_everywhere(swallows_behind_a_shield, "hello")
    assert found_in(caught) == [(at, "swallows its cancellation and returns None") for at in (1, 2)]


async def asks_a_model_with_a_limit(ctx, messages):
    try:
        with anyio.fail_after(5):
            return await ctx.services["model"].complete()
    except TimeoutError:
        try:
            await anyio.sleep(1)
        except BaseException:
            return 5


async def test_a_model_hangs_in_each_play(virtual_time):
    model = FakeModel("one two", at={2: "hang"})
    with pytest.raises(HandlerFault, match="swallows its cancellation and returns 5"):
        await cancel_everywhere(asks_a_model_with_a_limit, "hello", services={"model": model})


# With runs of its own


async def waits_for_a_child(ctx, messages):
    async def child(ctx):
        await anyio.sleep(1)
        return 5

    try:
        return await ctx.submit("subagent", child).result()
    except get_cancelled_exc_class():
        async with ctx.cleanup():
            await ctx.session.append({"role": "assistant", "content": "stopped"})
        raise


async def has_a_child_that_cleans_up(ctx, messages):
    async def child(ctx):
        try:
            await anyio.sleep_forever()
        except get_cancelled_exc_class():
            async with ctx.cleanup():
                await anyio.sleep(0.5)
            raise

    ctx.submit("subagent", child)
    await anyio.sleep(1)


async def leaves_a_detached_run(ctx, messages):
    async def report(ctx):
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep, 60)

    ctx.submit("main", report, detached=True)
    await anyio.sleep(1)


async def catches_a_failure(ctx, messages):
    async def child(ctx):
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        await ctx.submit("subagent", child).result()
    await anyio.sleep(1)


async def leaves_a_detached_run_that_fails(ctx, messages):
    async def report(ctx):
        await anyio.sleep(60)
        raise ConnectionError("gone")

    ctx.submit("main", report, detached=True)
    await anyio.sleep(1)


@pytest.mark.parametrize(
    "handler",
    [
        waits_for_a_child,
        has_a_child_that_cleans_up,
        leaves_a_detached_run,
        catches_a_failure,
        leaves_a_detached_run_that_fails,
    ],
)
async def test_runs_of_a_handler_are_no_faults(virtual_time, handler):
    assert await cancel_everywhere(handler, "hello") >= 1
    assert await crash_everywhere(handler, "hello", repeat=True) >= 1


@pytest.mark.virtual_time_loops("asyncio")
async def test_a_task_that_is_left_behind_is_a_fault(virtual_time):
    left = []

    async def leaves(ctx, messages):
        ctx.submit("subagent", lambda _: anyio.sleep(0.5))
        left.append(asyncio.get_running_loop().create_task(asyncio.sleep(100), name="left"))
        await anyio.sleep(1)
        await left[-1]

    with pytest.raises(HandlerFault, match="leaves a task behind: left"):
        await cancel_everywhere(leaves, "hello")
    for task in left:
        task.cancel()
    await anyio.lowlevel.checkpoint()


@pytest.mark.backends("asyncio", "trio")
async def test_both_sweeps_work_in_real_time_too():
    async def quick(ctx, messages):
        await anyio.sleep(0.01)

    assert await cancel_everywhere(quick, "hello") == 1
    assert await crash_everywhere(quick, "hello", repeat=True) == 1


async def test_what_the_handler_needs_of_the_supervisor_is_given_to_each_process(virtual_time):
    async def limited(ctx, messages):
        async with ctx.pool("provider"):
            await anyio.sleep(1)

    given: dict[str, Any] = {
        "group": "few",
        "groups": [GroupSpec("few", slots=1)],
        "pools": [PoolSpec("provider", slots=1)],
    }
    assert (await run_handler(limited, "hello", **given)).outcome.ran_s == 1
    assert await cancel_everywhere(limited, "hello", **given) > 0
    assert await crash_everywhere(limited, "hello", repeat=True, **given) > 0


async def test_a_check_of_the_test_itself_counts(virtual_time):
    def answered(played):
        assert played.records[-1]["role"] == "assistant", "a question without an answer"

    async def careless(ctx, messages):
        await ctx.session.append({"role": "user"})
        await anyio.sleep(1)
        await ctx.session.append({"role": "assistant"})

    with pytest.raises(HandlerFault, match="check: AssertionError: a question without an answer"):
        await cancel_everywhere(careless, "hello", check=answered)
    await cancel_everywhere(good, "hello", services=SERVICES)


@pytest.mark.parametrize("tool", [cancel_everywhere, crash_everywhere, run_handler])
async def test_arguments_that_cannot_be_used_are_refused(virtual_time, tool):
    refused: list[tuple[Any, dict[str, Any], str]] = [
        (5, {}, "(lane 'session:.', )?handler: 5 is not async"),
        (sleeps, {"services": 5}, "services: 5 is not allowed"),
        (sleeps, {"records": 5}, "records: 5 is not allowed"),
        (sleeps, {"time_out": 5}, "'time_out' is no argument"),
    ]
    for handler, given, told in refused:
        with pytest.raises(InvalidLane, match=rf"^{told}; allowed: "):
            await tool(handler, "hello", **given)


@pytest.mark.parametrize("sweep", [cancel_everywhere, crash_everywhere])
async def test_a_handler_that_fails_by_itself_is_not_swept(virtual_time, sweep):
    async def fails(ctx, messages):
        raise ConnectionError("gone")

    with pytest.raises(HandlerFault, match=r"(?s)fails without any .*ConnectionError: gone"):
        await sweep(fails, "hello")


def scribble(ctx):
    """Do what no handler should: write to the file of its session, past the session. Returns its size before."""
    with open(ctx.session.path, "ab") as file:
        before = file.tell()
        file.write(b"{no record\n")
    return before


async def scribbles_when_cancelled(ctx, messages):
    await ctx.session.append({"role": "user"})
    try:
        await anyio.sleep(1)
    except get_cancelled_exc_class():
        scribble(ctx)
        raise


async def scribbles_for_a_while(ctx, messages):
    await ctx.session.append({"role": "user"})
    before = scribble(ctx)
    await anyio.sleep(1)
    os.truncate(ctx.session.path, before)


async def scribbles(ctx, messages):
    return scribble(ctx)


async def sleeps(ctx, messages):
    await anyio.sleep_forever()


@pytest.mark.parametrize(
    "sweep, handler, told",
    [
        (cancel_everywhere, scribbles_when_cancelled, r"at 2, .*: leaves a broken transcript: .*line 3"),
        (crash_everywhere, scribbles_for_a_while, "the transcript is broken: .*line 3"),
        (cancel_everywhere, scribbles, "fails without any cancellation:\n.*leaves a broken transcript"),
        (crash_everywhere, scribbles, "fails without any crash:\n.*leaves a broken transcript"),
        (cancel_everywhere, sleeps, "fails without any cancellation:\n.*ends as timed_out: timed out after 300 s"),
        (crash_everywhere, sleeps, "fails without any crash:\n.*ends as timed_out: timed out after 300 s"),
    ],
)
async def test_a_broken_transcript_and_a_timeout_are_faults(virtual_time, sweep, handler, told):
    with pytest.raises(HandlerFault, match=told):
        await sweep(handler, "hello", **({"repeat": True} if sweep is crash_everywhere else {}))


# Killed


@pytest.mark.parametrize("spec", [{"repeat": True}, {"on_unknown": tells}], ids=["repeated", "told"])
async def test_a_handler_without_faults_is_killed_at_each_of_its_suspensions(virtual_time, spec):
    seen: list[Played] = []
    count = await crash_everywhere(good, "hello", services=SERVICES, check=seen.append, **spec)
    assert [one.at for one in seen] == list(range(count + 2))
    if "repeat" in spec:
        assert {one.state for one in seen} == {MessageState.DONE}
        assert {len(one.records) for one in seen} == {2}
    else:
        assert seen[0].state is MessageState.UNKNOWN
        assert seen[0].records == [{"role": "assistant", "content": "I was interrupted"}]
        assert seen[-1].state is MessageState.DONE


async def test_a_message_of_which_nobody_is_told_is_a_fault(virtual_time):
    with pytest.raises(HandlerFault) as caught:
        await crash_everywhere(good, "hello", services=SERVICES)
    told = "the message stays unknown; allowed: a lane with repeat=True, or with on_unknown="
    assert found_in(caught)[:2] == [(0, told), (1, told)]


async def forgets(ctx, messages):
    await ctx.session.append({"role": "user", "content": messages[0].body})
    await anyio.sleep(1)
    await ctx.session.append({"role": "assistant", "content": "done"})


async def test_what_is_done_twice_is_a_fault(virtual_time):
    with pytest.raises(HandlerFault) as caught:
        await crash_everywhere(forgets, "hello", repeat=True)
    whats = dict(found_in(caught))
    line = {fault.played.at: fault.played.where for fault in caught.value.faults}
    slept = next(at for at, where in line.items() if where == line_of(forgets, "await anyio.sleep(1)"))
    assert whats[slept] == '{"content": "hello", "role": "user"} is there 2 times, and 1 without a crash'
    assert '"done"' in whats[max(whats)]  # killed behind its last step, the answer is written once more


async def test_a_next_process_that_fails_is_a_fault(virtual_time):
    async def cannot(ctx, messages):
        raise KeyError("lost")

    with pytest.raises(HandlerFault, match="the next process: a run ends as failed: KeyError: 'lost'"):
        await crash_everywhere(good, "hello", services=SERVICES, on_unknown=cannot)

    async def once(ctx, messages):
        if await ctx.session.read():
            raise RuntimeError("begun before")
        await ctx.session.append({"role": "user"})
        await anyio.sleep(1)

    with pytest.raises(HandlerFault, match="the next process: a run ends as failed: RuntimeError: begun before"):
        await crash_everywhere(once, "hello", repeat=True, retry=RetrySpec(2, wait=0.0))


# Between the steps of tasks that a handler has started


async def asks_two_tools(ctx, messages):
    """Waits for two tasks at one suspension; each of them does two steps."""

    async def tool(number):
        for step in (1, 2):
            await anyio.sleep(step * number)
            await ctx.session.append({"tool": number, "step": step})

    async with anyio.create_task_group() as tools:
        tools.start_soon(tool, 1)
        tools.start_soon(tool, 3)


async def test_a_handler_is_cancelled_and_killed_between_the_steps_of_its_tasks(virtual_time):
    seen: list[Played] = []
    await cancel_everywhere(asks_two_tools, "hello", check=seen.append)
    assert {len(one.records) for one in seen} >= {0, 1, 3}
    assert any(one.where.endswith("s later") for one in seen)

    def none_alone(played):
        assert len(played.records) != 1, "half of the first tool"

    async def unaware(ctx, messages):
        if await ctx.session.read():
            raise RuntimeError("begun before")
        await asks_two_tools(ctx, messages)

    with pytest.raises(HandlerFault, match=r" s later: the next process: a run ends as failed: RuntimeError: begun"):
        await crash_everywhere(unaware, "hello", repeat=True)

    with pytest.raises(HandlerFault, match=r"asks_two_tools \(test_sweeps.py:\d+\), \S+ s later: check: .*half of the"):
        await cancel_everywhere(asks_two_tools, "hello", check=none_alone)
