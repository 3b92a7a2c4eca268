"""What a body is given, what it may ask from where, and who hears what it emits."""

from __future__ import annotations

import contextvars
import threading

import anyio
import pytest
from anyio import get_cancelled_exc_class, to_thread

from lanes import LaneSpec, Message, RunCancelled, RunState, current_run
from locks import InvalidSession
from runtime import Supervisor
from tests.supervised import path_of, texts

color: contextvars.ContextVar[str] = contextvars.ContextVar("color", default="none")


# Context variables and tasks


async def test_a_body_sees_its_submitters_context_and_leaks_nothing_into_it(sup):
    async def body(ctx):
        seen = color.get()
        color.set("changed by the body")
        await anyio.sleep(1)
        return seen

    color.set("red")
    red = sup.submit("session:a", body)
    color.set("blue")
    blue = sup.submit("session:a", body)
    assert [await red.result(), await blue.result()] == ["red", "blue"]
    assert color.get() == "blue" and current_run() is None


async def test_a_runs_own_variables_never_reach_who_runs_next_on_its_lane(sup):
    async def body(ctx):
        seen = color.get(), current_run() is ctx.run
        color.set(f"left by {ctx.run.id}")
        return seen

    runs = [sup.submit("session:a", body) for _ in range(3)]
    assert [await run.result() for run in runs] == [("none", True)] * 3


async def test_the_current_run_is_known_in_child_tasks_and_worker_threads_and_nowhere_else(sup):
    async def body(ctx):
        seen = [current_run()]

        async def child():
            seen.append(current_run())

        async with anyio.create_task_group() as group:
            group.start_soon(child)
        seen.append(await to_thread.run_sync(current_run))
        return seen

    run = sup.submit("session:a", body)
    assert await run.result() == [run] * 3
    assert current_run() is None


async def test_a_run_submitted_by_a_run_knows_its_parent_and_has_a_name_of_its_own(sup):
    async def child(ctx):
        return current_run(), anyio.get_current_task().name

    async def body(ctx):
        return await sup.submit("session:b", child).result(), sup.find(ctx.run.id)

    run = sup.submit("session:a", body)
    (inner, name), found = await run.result()
    assert found is run and run.parent is None
    assert (inner.parent, inner.lane, name) == (run.id, "session:b", f"run {inner.id} on lane session:b")


async def test_each_run_is_a_task_of_its_own(sup):
    async def body(ctx):
        return anyio.get_current_task().id, anyio.get_current_task().name

    runs = [sup.submit("session:a", body) for _ in range(5)]
    seen = [await run.result() for run in runs]
    assert [name for _, name in seen] == [f"run {run.id} on lane session:a" for run in runs]


# Cancelled


async def test_a_thread_reads_that_its_run_was_cancelled_and_why(sup, virtual):
    begun, told = threading.Event(), threading.Event()

    def works(ctx):
        begun.set()
        while not ctx.cancelled:
            if told.wait(5):
                break
        assert told.wait(5)
        return ctx.cancelled, ctx.run.reason

    async def body(ctx):
        return await to_thread.run_sync(works, ctx)

    run = sup.submit("session:a", body)
    with virtual.held():
        while not begun.is_set():
            await anyio.lowlevel.checkpoint()
    run.cancel("stop")
    told.set()
    outcome = await run.wait()
    assert (outcome.state, outcome.value) == (RunState.CANCELLED, (True, "stop"))


async def test_cancelled_is_false_while_a_run_may_go_on_and_true_ever_after(sup):
    kept = []

    async def body(ctx):
        kept.append((ctx, ctx.cancelled))
        await anyio.sleep_forever()

    run = sup.submit("session:a", body)
    await anyio.sleep(1)
    ctx, before = kept[0]
    assert (before, ctx.cancelled) == (False, False)
    run.cancel()
    assert ctx.cancelled
    await run.wait()
    assert ctx.cancelled


# Session


async def test_a_run_without_a_session_says_so_when_asked_for_one(sup):
    async def body(ctx):
        with pytest.raises(InvalidSession, match=r"run 1 on lane side:a names no session; submit it with session="):
            ctx.session  # noqa: B018 -- a property that raises
        await ctx.session_of("b").append({"text": "note"})

    await sup.submit("side:a", body).result()
    assert texts(sup, "b") == ["note"]


@pytest.mark.on_store
async def test_a_run_with_turn_false_may_do_all_but_hold_the_turn(sup):
    async def conducts(ctx):
        await anyio.sleep(5)

    async def announces(ctx):
        async with ctx.session.lease() as lease:
            await lease.append_many([{"text": "one"}, {"text": "two"}])
        await ctx.session.append({"text": "three"})
        return [record["text"] for record in await ctx.session.read(last=2)]

    run = sup.submit("session:a", conducts)
    note = sup.submit("side:a", announces, session="a", turn=False)
    assert await note.result() == ["two", "three"]
    assert run.state is RunState.RUNNING and not note.turn and run.turn
    await run.result()


async def test_a_sessions_context_is_the_same_object_each_time_and_names_its_file(sup):
    async def body(ctx):
        assert ctx.session is ctx.session
        return ctx.session.key, str(ctx.session.path)

    assert await sup.submit("session:a", body).result() == ("a", str(path_of(sup, "a")))


@pytest.mark.on_store
async def test_a_lease_keeps_records_together(sup):
    async def body(ctx, name):
        for _ in range(3):
            async with ctx.session.lease() as lease:
                for part in range(3):
                    await lease.append({"text": f"{name}{part}"})
                    await anyio.sleep(0.01)

    runs = [sup.submit(f"side:{name}", body, name, session="a", turn=False) for name in "xy"]
    for run in runs:
        await run.result()
    said = texts(sup, "a")
    for at in range(0, 18, 3):
        assert said[at : at + 3] in (["x0", "x1", "x2"], ["y0", "y1", "y2"])
    assert len(said) == 18


# Messages


async def test_a_handler_gets_each_message_in_order_wrapped_once(virtual, tmp_path):
    async def handle(ctx, messages):
        (message,) = messages
        return message

    async with Supervisor(tmp_path, lanes=[LaneSpec("session:*", handler=handle)]) as sup:
        routed = Message("hi", route="direct")
        assert await sup.post("session:a", routed).result() is routed
        assert await sup.post("session:a", "hello").result() == Message("hello")
        assert await sup.post("session:a", {"any": "thing"}).result() == Message({"any": "thing"})


# run()


async def test_run_submits_waits_and_returns_the_value(sup):
    async def body(ctx, a, b):
        return a + b

    assert await sup.run("session:a", body, 1, 2) == 3


async def test_run_cancels_the_run_when_its_waiter_is_cancelled(sup):
    heard = []

    async def body(ctx):
        try:
            await anyio.sleep_forever()
        except get_cancelled_exc_class():
            heard.append(ctx.run)
            raise

    with anyio.move_on_after(1) as scope:
        await sup.run("session:a", body)
    assert scope.cancelled_caught
    await anyio.sleep(0.1)
    (run,) = heard
    assert run.state is RunState.CANCELLED and run.reason == "whoever waited for it was cancelled"


async def test_run_cancels_a_queued_run_when_its_waiter_is_cancelled(sup):
    started = []

    async def body(ctx):
        started.append(ctx.run.id)
        await anyio.sleep(3)

    first = sup.submit("session:a", body)
    with anyio.move_on_after(1):
        await sup.run("session:a", body)
    assert sup.runs() == [first]
    await first.result()
    assert started == [first.id]


async def test_run_raises_what_the_run_ended_with(sup):
    async def body(ctx):
        ctx.run.cancel("by itself")
        await anyio.sleep_forever()

    with pytest.raises(RunCancelled, match="by itself"):
        await sup.run("session:a", body)


# Events


async def emits(ctx, number, pause=0.0):
    for n in range(number):
        ctx.emit(n)
        if pause:
            await anyio.sleep(pause)


async def test_events_reach_every_reader_in_order_until_the_run_has_ended(sup):
    heard: dict[str, list[int]] = {"one": [], "two": []}

    async def listen(name, events):
        async for event in events:
            heard[name].append(event)

    run = sup.submit("session:a", emits, 10, 0.1)
    async with anyio.create_task_group() as group:
        for name in heard:
            group.start_soon(listen, name, run.events())  # from this moment on, not from when that task begins
    assert heard["one"] == heard["two"] == list(range(10))
    assert run.outcome is not None


async def test_a_slow_reader_misses_the_oldest_and_never_slows_the_run(sup, virtual):
    began = virtual.now()
    run = sup.submit("session:a", emits, 1000)
    events = run.events(buffer=4)
    await run.result()
    assert virtual.now() == began
    assert [event async for event in events] == [996, 997, 998, 999]


async def test_the_buffer_is_bounded_by_256_unless_told(sup):
    run = sup.submit("session:a", emits, 1000)
    events = run.events()
    await run.result()
    assert len([event async for event in events]) == 256
    for wrong in (0, -1):
        with pytest.raises(ValueError, match=f"buffer: {wrong} is not allowed; allowed: a whole number from 1"):
            run.events(buffer=wrong)


async def test_a_reader_that_leaves_early_is_forgotten(sup):
    run = sup.submit("session:a", emits, 10, 0.1)
    events = run.events()
    async for event in events:
        if event == 3:
            break
    await events.aclose()
    assert not run._streams
    assert [event async for event in events] == []
    async for event in run.events():
        if event == 5:
            break
    assert not run._streams  # nobody refers to it any more
    await run.result()


async def test_a_reader_that_comes_after_the_end_hears_nothing_and_waits_for_nothing(sup):
    run = sup.submit("session:a", emits, 3)
    await run.result()
    assert [event async for event in run.events()] == []


async def test_a_reader_is_woken_when_a_run_is_cancelled_in_the_queue(sup):
    first, queued = sup.submit("session:a", emits, 10, 0.1), sup.submit("session:a", emits, 1)
    heard = []

    async def listen():
        heard.extend([event async for event in queued.events()])
        heard.append("over")

    async with anyio.create_task_group() as group:
        group.start_soon(listen)
        await anyio.sleep(0.1)
        queued.cancel()
    assert heard == ["over"]
    await first.result()
