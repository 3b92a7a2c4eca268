"""`reset(key)`: the session starts afresh, and nothing of what went before reaches into it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import get_cancelled_exc_class, to_thread

from lanes import Draining, LaneBusy, LaneSpec, RetrySpec, RunCancelled, RunState
from locks import DeadlockError, InvalidSession, LockRegistry, RunEnded
from runtime import Supervisor
from tests.peers import peer
from tests.poll import eventually
from tests.supervised import Shielded, about, gone, lines_of, path_of, texts

pytestmark = [pytest.mark.backends("asyncio", "trio"), pytest.mark.failure("E14")]


async def answers(ctx, messages):
    for message in messages:
        await ctx.session.append({"text": message.body})


LANES = [
    LaneSpec("session:*", handler=answers, timeout=100.0, grace=2.0),
    LaneSpec("side:*", timeout=100.0, grace=2.0),
]


def ended(run):
    """The outcome of a run that has one."""
    assert run.outcome is not None
    return run.outcome


class Body:
    """A body that waits until it is released or cancelled; remembers its context."""

    def __init__(self) -> None:
        self.ctx: Any = None
        self.started = anyio.Event()
        self._released = anyio.Event()

    async def __call__(self, ctx):
        self.ctx = ctx
        self.started.set()
        await self._released.wait()

    def release(self):
        self._released.set()


# What becomes of the file


async def test_the_file_is_put_aside_and_the_session_is_empty(sup):
    await sup.post("session:a", "old").wait()
    moved = await sup.reset("a")
    assert moved.startswith(f"{path_of(sup, 'a')}.reset.")
    assert [record["text"] for record in lines_of(Path(moved))] == ["old"]
    assert not path_of(sup, "a").exists()
    await sup.post("session:a", "new").wait()
    assert texts(sup, "a") == ["new"]


async def test_without_an_archive_the_file_is_deleted(sup):
    await sup.post("session:a", "old").wait()
    assert await sup.reset("a", archive=False) is None
    assert list(path_of(sup, "a").parent.glob("*a-*")) == []


async def test_where_there_is_nothing_nothing_is_put_away(sup):
    assert await sup.reset("never seen") is None
    assert await sup.reset("never seen", archive=False) is None


@pytest.mark.on_store
async def test_a_second_reset_keeps_the_file_of_the_first(sup):
    moved = []
    for text in ("one", "two"):
        await sup.post("session:a", text).wait()
        moved.append(await sup.reset("a"))
    assert [[record["text"] for record in lines_of(Path(one))] for one in moved] == [["one"], ["two"]]


# What becomes of the runs


async def test_running_and_queued_runs_of_the_session_end_and_are_told_why(sup):
    body = Body()
    running = sup.submit("session:a", body)
    queued = [sup.post("session:a", n) for n in range(3)]
    named, notes = sup.submit("side:x", Body(), session="a"), sup.submit("side:y", Body(), session="a", turn=False)
    other = sup.submit("session:b", survivor := Body())
    await body.started.wait()
    await sup.reset("a")
    for run in (running, *queued, named, notes):
        with pytest.raises(RunCancelled, match="ended by a reset of its session"):
            await run.result()
    assert other.state is RunState.RUNNING
    survivor.release()
    await other.result()


@pytest.mark.on_store
async def test_last_words_after_a_reset_reach_neither_file(sup):
    refused = []

    async def speaks(ctx):
        await ctx.session.append({"text": "question"})
        try:
            await anyio.sleep_forever()
        except get_cancelled_exc_class():
            async with ctx.cleanup():
                try:
                    await ctx.session.append({"text": "last words"})
                except RunEnded as error:
                    refused.append(str(error))
            raise

    sup.submit("session:a", speaks)
    await anyio.sleep(1.0)
    moved = await sup.reset("a")
    assert [record["text"] for record in lines_of(Path(moved))] == ["question"]
    assert not path_of(sup, "a").exists()
    (message,) = refused
    assert message.endswith("may no longer write to " + str(path_of(sup, "a")) + ": the session was reset")


async def test_late_reports_of_an_old_run_are_dropped_and_counted(sup):
    body = Body()
    run = sup.submit("session:a", body)
    await body.started.wait()
    await sup.reset("a")
    await sup.post("session:a", "new").wait()
    body.ctx.emit("late")
    with pytest.raises(RunEnded):
        await body.ctx.session.append({"text": "late"})
    with pytest.raises(RunEnded):
        await to_thread.run_sync(body.ctx.session.append_sync, {"text": "late"})
    now = sup.statistics()
    assert (run.state, texts(sup, "a")) == (RunState.CANCELLED, ["new"])
    assert (now.late_events_dropped, now.late_writes_refused) == (1, 2)


async def test_an_older_run_of_another_session_announces_nothing_in_the_new_one(sup):
    body = Body()
    run = sup.submit("session:b", body)
    await body.started.wait()
    await sup.reset("a")
    old = body.ctx.session_of("a")
    with pytest.raises(RunEnded, match="the session was reset"):
        await old.append({"text": "late"})
    with pytest.raises(RunEnded, match="the session was reset"):
        async with old.lease():
            pass
    await body.ctx.session.append({"text": "its own"})
    younger = sup.submit("side:x", _announces)
    await younger.result()
    body.release()
    await run.result()
    assert (texts(sup, "a"), texts(sup, "b")) == (["from a younger run"], ["its own"])


async def _announces(ctx):
    await ctx.session_of("a").append({"text": "from a younger run"})


async def test_a_further_attempt_of_an_older_run_is_as_old_as_its_first(virtual, tmp_path):
    refused = []

    async def body(ctx):
        if ctx.run.attempt < 3:
            raise ConnectionError
        try:
            await ctx.session_of("a").append({"text": "late"})
        except RunEnded:
            refused.append(ctx.run.attempt)

    async with Supervisor(tmp_path, lanes=[LaneSpec("tools", retry=RetrySpec(3, wait=10.0))]) as sup:
        run = sup.submit("tools", body)
        await anyio.sleep(1.0)
        await sup.reset("a")
        await run.result()
        assert refused == [3]


async def test_a_run_that_waits_to_be_tried_again_ends_with_its_session(virtual, tmp_path):
    async def fails(ctx):
        raise ConnectionError

    async with Supervisor(tmp_path, lanes=[LaneSpec("session:*", retry=RetrySpec(3, wait=10.0))]) as sup:
        run = sup.submit("session:a", fails)
        await anyio.sleep(1.0)
        await sup.reset("a")
        assert (ended(run).state, ended(run).reason) == (RunState.CANCELLED, "ended by a reset of its session")
        assert (ended(run).attempts, sup.parked(), virtual.now()) == (1, [], about(1001.0))


@pytest.mark.failure("B2")
async def test_a_body_that_ignores_it_is_abandoned_and_the_reset_ends_at_its_grace(sup, virtual):
    body = Shielded()
    run = sup.submit("session:a", body)
    following = sup.post("session:a", "queued before")
    await body.started.wait()
    began = virtual.now()
    await sup.reset("a")
    assert virtual.now() == about(began + 2.0)
    assert (run.state, following.state) == (RunState.ABANDONED, RunState.CANCELLED)
    await sup.post("session:a", "new").wait()
    assert texts(sup, "a") == ["new"]
    body.release()
    await gone(sup)


# What is posted meanwhile


@pytest.mark.parametrize("policy", ["queue", "interrupt", "replace", "collect", "steer"])
async def test_what_is_posted_meanwhile_finds_the_new_session_in_order(sup, policy):
    async def lingers(ctx):
        try:
            await anyio.sleep_forever()
        except get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1.0)
            raise

    await sup.post("session:a", "old").wait()
    sup.submit("session:a", lingers)
    await anyio.sleep(0.1)
    async with anyio.create_task_group() as group:
        moved: list[str] = []
        group.start_soon(_reset, sup, "a", moved)
        await anyio.sleep(0.5)
        runs = [sup.post("session:a", n, when_busy=policy) for n in range(3)]
        assert runs[-1].state is RunState.QUEUED
    newest_only = policy in ("interrupt", "replace")
    assert [(await run.wait()).state for run in runs] == [*["superseded" if newest_only else "done"] * 2, "done"]
    assert texts(sup, "a") == ([2] if newest_only else [0, 1, 2])
    assert [record["text"] for record in lines_of(Path(moved[0]))] == ["old"]


async def _reset(sup, key, moved):
    moved.append(await sup.reset(key))


async def test_a_message_that_waits_for_quiet_finds_the_new_session_too(virtual, tmp_path):
    async with Supervisor(tmp_path, lanes=[LaneSpec("session:*", handler=answers, debounce=1.0)]) as sup:
        before = sup.post("session:a", "before")
        async with anyio.create_task_group() as group:
            group.start_soon(_reset, sup, "a", [])
            await virtual.settle()
            after = sup.post("session:a", "after")
        assert ended(before).reason == "ended by a reset of its session"
        await after.result()
        assert texts(sup, "a") == ["after"]


async def test_rejecting_work_is_told_that_the_session_is_busy(sup):
    body = Shielded()
    sup.submit("session:a", body)
    await body.started.wait()
    async with anyio.create_task_group() as group:
        group.start_soon(_reset, sup, "a", [])
        await anyio.sleep(1.0)
        with pytest.raises(LaneBusy, match=r"is busy: run 1 on lane session:a .* has the turn of session 'a'"):
            sup.post("session:a", "now", when_busy="reject")
    body.release()
    await gone(sup)


# Several at once, and from inside


async def test_two_at_once_both_return_and_what_was_posted_between_them_is_ended(sup):
    await sup.post("session:a", "old").wait()
    sup.submit("session:a", Body())
    moved: list[str | None] = []
    async with anyio.create_task_group() as group:
        group.start_soon(_reset, sup, "a", moved)
        await anyio.lowlevel.checkpoint()
        between = sup.post("session:a", "between")
        group.start_soon(_reset, sup, "a", moved)
    after = sup.post("session:a", "after")
    await after.result()
    assert len([one for one in moved if one is not None]) == 1
    assert ended(between).reason == "ended by a reset of its session"
    assert texts(sup, "a") == ["after"]


@pytest.mark.parametrize("turn", [True, False])
async def test_awaited_inside_a_run_of_the_session_it_is_refused_and_nothing_changes(sup, turn):
    async def body(ctx):
        with pytest.raises(DeadlockError, match=r"reset\('a'\) waits for run 1 on lane side:x, which awaits it"):
            await sup.reset("a")
        await ctx.session.append({"text": "goes on"})

    await sup.submit("side:x", body, session="a", turn=turn).result()
    assert texts(sup, "a") == ["goes on"]


async def test_awaited_inside_a_child_of_such_a_run_it_is_refused_too(sup):
    async def child(ctx):
        with pytest.raises(DeadlockError, match="waits for run 1 on lane session:a, which awaits it"):
            await sup.reset("a")
        return "refused"

    async def parent(ctx):
        return await ctx.submit("side:x", child).result()

    assert await sup.submit("session:a", parent).result() == "refused"


async def test_a_detached_run_may_reset_the_session_that_it_comes_from(sup):
    async def resets(ctx):
        return await sup.reset("a")

    async def parent(ctx):
        await ctx.session.append({"text": "old"})
        return ctx.submit("side:x", resets, detached=True)

    assert await (await sup.submit("session:a", parent).result()).result() is not None


async def test_a_run_of_another_session_may_await_it(sup):
    async def resets(ctx):
        return await sup.reset("a")

    await sup.post("session:a", "old").wait()
    body = Body()
    sup.submit("session:a", body)
    await body.started.wait()
    assert await sup.submit("session:b", resets).result() is not None


async def test_cancelled_the_runs_have_ended_all_the_same_and_the_session_goes_on(sup):
    body = Shielded()
    run = sup.submit("session:a", body)
    await body.started.wait()
    with anyio.move_on_after(1.0) as scope:
        await sup.reset("a")
    assert scope.cancelled_caught
    assert (await run.wait()).reason.startswith("ended by a reset of its session")
    await sup.post("session:a", "new").wait()
    assert texts(sup, "a") == ["new"]
    body.release()
    await gone(sup)


# When it is refused


async def test_while_draining_and_stopped_it_is_refused_and_nothing_changes(virtual, tmp_path):
    sup = Supervisor(tmp_path, lanes=LANES)
    with pytest.raises(Draining):
        await sup.reset("a")
    await sup.start()
    await sup.post("session:a", "old").wait()
    body = Body()
    run = sup.submit("session:a", body)
    async with anyio.create_task_group() as group:
        group.start_soon(sup.drain, 50.0)
        await anyio.sleep(1.0)
        with pytest.raises(Draining):
            await sup.reset("a")
        assert run.state is RunState.RUNNING
        body.release()
    await sup.stop()
    with pytest.raises(Draining):
        await sup.reset("a")
    assert texts(sup, "a") == ["old"]


async def test_a_stop_in_the_middle_of_it_is_told(virtual, tmp_path):
    sup = Supervisor(tmp_path, lanes=LANES)
    await sup.start()

    async def resets():
        with pytest.raises(RunCancelled, match="the supervisor stopped"):
            await sup.reset("a")

    async with LockRegistry().turn(sup.layout.file_of("a")), anyio.create_task_group() as group:
        group.start_soon(resets)  # waits for what another registry has
        await anyio.sleep(1.0)
        await sup.stop()


@pytest.mark.parametrize("key", ["", "a\0b", "x" * 2000, None], ids=["empty", "NUL", "long", "None"])
async def test_a_key_that_names_no_session_is_refused(sup, key):
    with pytest.raises(InvalidSession):
        await sup.reset(key)


# Another process


async def test_it_waits_for_the_turn_that_another_process_has(tmp_path):
    async with Supervisor(tmp_path, lanes=LANES) as sup:
        await sup.post("session:a", "old").wait()
        with peer("holder", sup.layout.file_of("a"), "turn", "asyncio") as other:
            await eventually(lambda: other.said("held"), within=60)
            moved: list[str] = []
            async with anyio.create_task_group() as group:
                group.start_soon(_reset, sup, "a", moved)
                (waiting,) = await eventually(lambda: [run for run in sup.runs() if run.lane == "control"])
                posted = sup.post("session:a", "new")
                assert (waiting.state, moved) == (RunState.QUEUED, [])
                other.tell("leave")
        await posted.result()
        assert [record.get("text") for record in lines_of(Path(moved[0]))] == ["old", None]
        assert texts(sup, "a") == ["new"]
