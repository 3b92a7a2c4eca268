"""`when_busy="steer"`: a message goes to the run that is under way, whoever reads it answers it, and none is lost."""

from __future__ import annotations

import gc
import weakref
from functools import partial

import anyio
import pytest

from lanes import (
    LaneFull,
    LaneSpec,
    Message,
    RetrySpec,
    Run,
    RunAbandoned,
    RunCancelled,
    RunContext,
    RunSuperseded,
    RunTimedOut,
)
from locks import DeadlockError
from runtime import Supervisor
from tests.supervised import Shielded, about, assert_empty, gone

SESSION = partial(LaneSpec, "session:*", timeout=100.0, when_busy="steer")
WORK = partial(LaneSpec, "work", timeout=100.0, when_busy="steer")


class Reading:
    """A handler that reads its inbox after each of so many seconds, and notes who was asked what."""

    def __init__(self, *after: float) -> None:
        self.after = after or (10.0,)
        self.asked: list[str] = []

    async def __call__(self, ctx, messages):
        texts = [message.body for message in messages]
        mine = len(self.asked)
        self.asked.append("+".join(texts))
        for seconds in self.after:
            await anyio.sleep(seconds)
            texts += [message.body for message in ctx.inbox.take()]
            self.asked[mine] = "+".join(texts)
        return self.asked[mine]


async def deaf_to_inbox(ctx, messages):
    await anyio.sleep(10)
    return "+".join(message.body for message in messages)


# Reading


@pytest.mark.on_store
async def test_what_is_said_to_a_run_is_read_by_it_and_shares_its_outcome(virtual, tmp_path):
    handler = Reading(5.0, 5.0)
    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler)]) as sup:
        first = sup.post("session:a", "1")
        await anyio.sleep(1)
        said = [sup.post("session:a", text) for text in "23"]
        assert len({first, *said}) == 3
        assert [(run.state, run.answered_by) for run in said] == [("queued", first.id)] * 2
        await anyio.sleep(5)
        assert [run.state for run in said] == ["running", "running"]
        assert said[0].deadline == first.deadline
        assert [await run.result() for run in (first, *said)] == ["1+2+3"] * 3
        assert handler.asked == ["1+2+3"]
        assert_empty(sup)


async def test_a_run_without_a_session_is_told_when_its_lane_is_at_its_capacity(virtual, tmp_path):
    handler = Reading()
    async with Supervisor(tmp_path, lanes=[WORK(handler=handler, capacity=2)]) as sup:
        runs = [sup.post("work", text) for text in "123"]
        assert [run.answered_by for run in runs] == [None, None, runs[0].id]
        assert [await run.result() for run in runs] == ["1+3", "2", "1+3"]
        assert_empty(sup)


async def test_a_run_of_another_lane_that_conducts_the_session_is_told(virtual, tmp_path):
    handler = Reading()
    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler), WORK(handler=handler)]) as sup:
        conducts = sup.post("work", "1", session="a")
        beside = sup.post("session:a", "2")
        assert beside.answered_by == conducts.id
        assert await beside.result() == "1+2"
        assert_empty(sup)


async def test_work_that_is_no_message_is_queued(virtual, tmp_path):
    async def body(ctx):
        return len(ctx.inbox)

    async with Supervisor(tmp_path, lanes=[SESSION(handler=Reading())]) as sup:
        sup.post("session:a", "1")
        run = sup.submit("session:a", body)
        assert run.answered_by is None
        assert await run.result() == 0


async def test_one_post_can_steer_on_a_lane_that_queues(virtual, tmp_path):
    handler = Reading()
    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler, when_busy="queue")]) as sup:
        sup.post("session:a", "1")
        queued = sup.post("session:a", "2")
        assert await sup.post("session:a", "3", when_busy="steer").result() == "1+3"
        assert await queued.result() == "2"


async def test_a_message_of_another_route_is_queued(virtual, tmp_path):
    handler = Reading()
    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler)]) as sup:
        said = [("1", "chat"), ("2", "mail"), ("3", "chat")]
        runs = [sup.post("session:a", Message(text, route)) for text, route in said]
        assert [await run.result() for run in runs] == ["1+3", "2", "1+3"]


async def test_a_message_is_not_told_to_a_run_that_was_asked_to_end(virtual, tmp_path):
    async def handler(ctx, messages):
        try:
            await anyio.sleep(10)
        finally:
            async with ctx.cleanup():
                await anyio.sleep(1)
        return messages[0].body

    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler)]) as sup:
        first = sup.post("session:a", "1")
        await virtual.settle()
        first.cancel()
        second = sup.post("session:a", "2")
        assert second.answered_by is None
        assert await second.result() == "2"


# The inbox


async def test_an_inbox_is_read_without_waiting(virtual, tmp_path):
    seen: list[object] = []

    async def handler(ctx, messages):
        with pytest.raises(anyio.WouldBlock):
            ctx.inbox.receive_nowait()
        assert ctx.inbox.take() == []
        await anyio.sleep(1)
        seen.extend([len(ctx.inbox), ctx.inbox.receive_nowait(), len(ctx.inbox), ctx.inbox.take(), len(ctx.inbox)])

    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler)]) as sup:
        first = sup.post("session:a", "1")
        await virtual.settle()
        for text in "234":
            sup.post("session:a", text)
        await first.result()
        assert seen == [3, Message("2"), 2, [Message("3"), Message("4")], 0]


async def test_an_inbox_is_waited_for(virtual, tmp_path):
    started = virtual.now()

    async def handler(ctx, messages):
        said = [await ctx.inbox.receive(), await ctx.inbox.receive()]
        return [message.body for message in said], virtual.now() - started

    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler)]) as sup:
        first = sup.post("session:a", "1")
        await anyio.sleep(5)
        sup.post("session:a", "2")
        await anyio.sleep(5)
        sup.post("session:a", "3")
        assert await first.result() == (["2", "3"], about(10))


async def test_an_inbox_is_iterated_and_left_in_the_middle_without_complaint(virtual, tmp_path):
    async def handler(ctx, messages):
        said = []
        async for message in ctx.inbox:
            said.append(message.body)
            if message.body == "3":
                break
        return said

    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler)]) as sup:
        first = sup.post("session:a", "1")
        await virtual.settle()
        for text in "23":
            sup.post("session:a", text)
        assert await first.result() == ["2", "3"]
        gc.collect()


async def test_waiting_for_an_inbox_that_is_cancelled_takes_nothing(virtual, tmp_path):
    async def handler(ctx, messages):
        with anyio.move_on_after(5):
            await ctx.inbox.receive()
        await anyio.sleep(10)
        return messages[0].body

    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler)]) as sup:
        sup.post("session:a", "1")
        await anyio.sleep(6)
        assert await sup.post("session:a", "2").result() == "2"


async def test_an_inbox_is_closed_when_its_run_is_asked_to_end(virtual, tmp_path):
    seen: list[object] = []

    async def handler(ctx, messages):
        if messages[0].body != "1":
            return messages[0].body
        try:
            await anyio.sleep_forever()
        finally:
            async with ctx.cleanup():
                seen.extend([len(ctx.inbox), ctx.inbox.take(), [m async for m in ctx.inbox]])
                with pytest.raises(anyio.EndOfStream):
                    ctx.inbox.receive_nowait()
                with pytest.raises(anyio.EndOfStream):
                    await ctx.inbox.receive()

    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler)]) as sup:
        first, second = sup.post("session:a", "1"), sup.post("session:a", "2")
        await virtual.settle()
        first.cancel()
        assert await second.result() == "2"
        assert seen == [0, [], []]


async def test_an_inbox_that_nobody_has_looked_for_is_closed_all_the_same(virtual, tmp_path):
    ended: list[type[BaseException]] = []
    kept: list[RunContext] = []

    async def handler(ctx, messages):
        try:
            await anyio.sleep_forever()
        finally:
            async with ctx.cleanup():
                with pytest.raises(anyio.EndOfStream) as caught:
                    await ctx.inbox.receive()
                ended.append(caught.type)

    async def body(ctx):
        kept.append(ctx)

    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler), WORK()]) as sup:
        run = sup.post("session:a", "1")
        await virtual.settle()
        run.cancel()
        await run.wait()
        assert ended == [anyio.EndOfStream]
        await sup.submit("work", body).result()
        with pytest.raises(anyio.EndOfStream):
            await kept[0].inbox.receive()


async def test_a_task_that_waits_for_the_inbox_under_a_shield_is_woken_when_the_run_is_asked_to_end(virtual, tmp_path):
    async def handler(ctx, messages):
        with anyio.CancelScope(shield=True):
            async for _ in ctx.inbox:
                pass
        await anyio.lowlevel.checkpoint()

    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler)]) as sup:
        run = sup.post("session:a", "1")
        await virtual.settle()
        run.cancel("enough")
        assert (await run.wait()).state == "cancelled"


async def test_two_tasks_share_an_inbox_and_each_message_is_read_once(virtual, tmp_path):
    read: list[str] = []

    async def reader(inbox):
        while True:
            message = await inbox.receive()
            read.append(message.body)

    async def handler(ctx, messages):
        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(reader, ctx.inbox)
            await anyio.sleep(10)
            group.cancel_scope.cancel()

    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler)]) as sup:
        first = sup.post("session:a", "1")
        await virtual.settle()
        for text in "2345":
            sup.post("session:a", text)
        await first.result()
        assert sorted(read) == list("2345")


# What ends the run that has read it


@pytest.mark.parametrize(
    "how", ["returns", "raises", "times out", "is cancelled", "is superseded", "is abandoned", "ignores its deadline"]
)
async def test_who_was_read_shares_the_outcome_however_the_run_ends(virtual, tmp_path, how):
    deaf = Shielded()

    async def handler(ctx, messages):
        if messages[0].body == "new":
            return None
        await ctx.inbox.receive()
        if how in ("is abandoned", "ignores its deadline"):
            await deaf(ctx)
        elif how == "raises":
            raise LookupError("no such thing")
        elif how != "returns":
            await anyio.sleep_forever()
        return "answer"

    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler)]) as sup:
        first = sup.post("session:a", "1")
        second = sup.post("session:a", "2")
        await anyio.sleep(5)
        if how in ("is cancelled", "is abandoned"):
            first.cancel("stop")
        if how == "is superseded":
            sup.post("session:a", "new", when_busy="interrupt")
        one, other = await first.wait(), await second.wait()
        assert (one.state, one.reason, one.value) == (other.state, other.reason, other.value)
        assert type(one.error) is type(other.error)
        kinds = {
            "raises": LookupError,
            "times out": RunTimedOut,
            "is cancelled": RunCancelled,
            "is superseded": RunSuperseded,
            "is abandoned": RunAbandoned,
            "ignores its deadline": TimeoutError,
        }
        if how == "returns":
            assert await second.result() == "answer"
        else:
            with pytest.raises(kinds[how]):
                await second.result()
        deaf.release()
        await gone(sup)
        assert_empty(sup)


async def test_cancelling_a_message_that_was_read_ends_the_run_that_answers_it(virtual, tmp_path):
    async with Supervisor(tmp_path, lanes=[SESSION(handler=Reading(5.0, 50.0))]) as sup:
        first, second = sup.post("session:a", "1"), sup.post("session:a", "2")
        await anyio.sleep(6)
        assert second.cancel("never mind")
        assert (await first.wait()).reason == (await second.wait()).reason == "never mind"
        assert_empty(sup)


@pytest.mark.failure("E8")
async def test_a_message_that_is_cancelled_unread_is_gone_at_once_and_read_by_nobody(virtual, tmp_path):
    handler = Reading()
    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler)]) as sup:
        first, second, third = (sup.post("session:a", text) for text in "123")
        assert second.cancel("never mind")
        assert second.outcome is not None and second.outcome.state == "cancelled"
        assert await third.result() == await first.result() == "1+3"
        assert_empty(sup)


# What is left unread


@pytest.mark.failure("E12")
@pytest.mark.parametrize("how", ["returns", "raises", "times out", "is cancelled", "is abandoned"])
@pytest.mark.parametrize("session", ["a", None])
async def test_what_is_left_unread_is_answered_first_and_in_order_however_the_run_ended(
    virtual, tmp_path, how, session
):
    deaf, asked = Shielded(), list[str]()

    async def handler(ctx, messages):
        asked.append(messages[0].body)
        if messages[0].body != "1":
            return
        await ctx.inbox.receive()
        if how == "is abandoned":
            await deaf(ctx)
        elif how == "raises":
            raise LookupError("no such thing")
        elif how != "returns":
            await anyio.sleep_forever()

    async with Supervisor(tmp_path, lanes=[WORK(handler=handler)]) as sup:
        first = sup.post("work", "1", session=session)
        sup.post("work", "read", session=session)
        queued = sup.post("work", "6", session=session, when_busy="queue")
        unread = [sup.post("work", text, session=session) for text in "2345"]
        await virtual.settle()
        if how in ("is cancelled", "is abandoned"):
            first.cancel()
        await queued.result()
        assert asked == list("123456")
        assert [(run.answered_by, run.outcome and run.outcome.state) for run in unread] == [(None, "done")] * 4
        deaf.release()
        await gone(sup)
        assert_empty(sup)


@pytest.mark.parametrize("session", ["a", None])
async def test_who_interrupts_goes_before_what_the_interrupted_run_left_unread(virtual, tmp_path, session):
    asked: list[str] = []

    async def handler(ctx, messages):
        asked.append(messages[0].body)
        if messages[0].body == "1":
            try:
                await anyio.sleep_forever()
            finally:
                async with ctx.cleanup():
                    await anyio.sleep(1)
        await anyio.sleep(1)

    async with Supervisor(tmp_path, lanes=[WORK(handler=handler)]) as sup:
        sup.post("work", "1", session=session)
        last = sup.post("work", "queued", session=session, when_busy="queue")
        for text in ("unread", "unread too"):
            sup.post("work", text, session=session)
        await virtual.settle()
        stopped, _ = [sup.post("work", text, session=session, when_busy="interrupt") for text in ("stop", "no, wait")]
        await last.result()
        assert asked == ["1", "no, wait", "unread", "unread too", "queued"]
        assert (stopped.state, stopped.reason) == ("superseded", "superseded by run 6")
        assert_empty(sup)


async def test_what_a_full_lane_left_unread_fills_its_places_in_order(virtual, tmp_path):
    started: list[Run] = []
    async with Supervisor(
        tmp_path, lanes=[WORK(handler=deaf_to_inbox, capacity=2)], on_run_start=started.append
    ) as sup:
        runs = [sup.post("work", text) for text in "123456"]
        await runs[-1].result()
        assert started == runs
        assert_empty(sup)


@pytest.mark.failure("D3")
async def test_a_message_that_stays_unread_past_its_wait_budget_is_timed_out_and_says_for_whom_it_waited(
    virtual, tmp_path
):
    handler = Reading(30.0)
    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler, queue_timeout=20.0)]) as sup:
        first, second = sup.post("session:a", "1"), sup.post("session:a", "2")
        with pytest.raises(RunTimedOut, match=r"waited 20 s in the queue: run 1 .* has the turn of session 'a'"):
            await second.result()
        assert await first.result() == "1"
        assert_empty(sup)


async def test_a_message_that_was_read_has_waited_enough(virtual, tmp_path):
    handler = Reading(10.0, 30.0)
    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler, queue_timeout=20.0)]) as sup:
        sup.post("session:a", "1")
        outcome = await sup.post("session:a", "2").wait()
        assert outcome.value == "1+2"
        assert (outcome.waited_s, outcome.ran_s) == (about(10), about(30))


@pytest.mark.failure("D3")
async def test_a_stop_tells_who_was_read_and_who_was_not(virtual, tmp_path):
    async with Supervisor(tmp_path, lanes=[SESSION(handler=Reading(5.0, 50.0))], drain_timeout=10.0) as sup:
        first, read = sup.post("session:a", "1"), sup.post("session:a", "2")
        await anyio.sleep(6)
        unread = sup.post("session:a", "3")
        report = await sup.stop()
        assert (await first.wait()).reason == (await read.wait()).reason == "the supervisor is stopping"
        assert (await unread.wait()).reason == "the supervisor stopped before it started"
        assert report.unstarted == (unread,)


async def test_a_draining_run_still_reads_what_was_said_to_it(virtual, tmp_path):
    async with Supervisor(tmp_path, lanes=[SESSION(handler=Reading())]) as sup:
        first, second = sup.post("session:a", "1"), sup.post("session:a", "2")
        await virtual.settle()
        await sup.drain(60.0)
        assert await first.result() == await second.result() == "1+2"


@pytest.mark.on_store
async def test_a_reset_tells_whoever_was_said_to_the_run_it_ends(virtual, tmp_path):
    async with Supervisor(tmp_path, lanes=[SESSION(handler=Reading(5.0, 50.0))]) as sup:
        runs = [sup.post("session:a", text) for text in "12"]
        await anyio.sleep(6)
        runs.append(sup.post("session:a", "3"))
        await sup.reset("a")
        assert {(await run.wait()).reason for run in runs} == {"ended by a reset of its session"}
        assert_empty(sup)


async def test_unread_messages_count_for_the_queues_limit_and_read_ones_do_not(virtual, tmp_path):
    handler = Reading(5.0, 5.0)
    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler, queue_limit=2)]) as sup:
        for text in "123":
            sup.post("session:a", text)
        with pytest.raises(LaneFull, match="lane 'session:a' is full: 2 queued"):
            sup.post("session:a", "4")
        await anyio.sleep(6)
        assert await sup.post("session:a", "5").result() == "1+2+3+5"


# Together with trying again


@pytest.mark.parametrize("session", ["a", None])
async def test_what_a_failed_attempt_has_read_the_next_one_reads_again_with_what_it_had_not(virtual, tmp_path, session):
    read: list[list[str]] = []

    async def handler(ctx, messages):
        await anyio.sleep(5)
        if ctx.run.attempt == 1:
            read.append([ctx.inbox.receive_nowait().body, ctx.inbox.receive_nowait().body])
            raise LookupError("once")
        read.append([message.body for message in ctx.inbox.take()])
        return "answer"

    async with Supervisor(tmp_path, lanes=[WORK(handler=handler, retry=RetrySpec(2, wait=60.0))]) as sup:
        runs = [sup.post("work", text, session=session) for text in "1234"]
        await anyio.sleep(6)
        assert {run.state for run in runs} == {"queued"} and sup.statistics().lanes["work"].queued == 4
        assert [await run.result() for run in runs] == ["answer"] * 4
        assert read == [["2", "3"], ["2", "3", "4"]]
        assert_empty(sup)


async def test_what_waits_for_the_next_attempt_is_answered_first_when_there_is_none(virtual, tmp_path):
    asked: list[str] = []

    async def handler(ctx, messages):
        asked.append(messages[0].body)
        if messages[0].body == "1":
            await ctx.inbox.receive()
            raise LookupError("no such thing")

    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler, retry=RetrySpec(3, wait=50.0))]) as sup:
        first, second, third = (sup.post("session:a", text) for text in "123")
        await anyio.sleep(1)
        assert (first.attempt, first.state) == (2, "queued")
        first.cancel()
        await third.result()
        assert second.outcome is not None and second.outcome.state == "done"
        assert asked == ["1", "2", "3"]
        assert_empty(sup)


async def test_a_read_message_whose_lane_was_retired_goes_back_to_the_lane_that_took_its_place(virtual, tmp_path):
    handled: list[str] = []

    async def retried(ctx, messages):
        await ctx.inbox.receive()
        await anyio.sleep(20)
        if ctx.run.attempt == 1:
            raise LookupError("once")

    async def short(ctx):
        handled.append("short")

    async def long(ctx):
        await anyio.sleep(60)

    lanes = [
        SESSION(handler=retried, retry=RetrySpec(2, wait=10.0)),
        LaneSpec("chat:*", handler=retried, timeout=100.0),
    ]
    async with Supervisor(tmp_path, lanes=lanes) as sup:
        first = sup.post("session:a", "1")
        second = sup.post("chat:x", "2", session="a", when_busy="steer")
        await anyio.sleep(1)
        assert second.state == "running"
        await sup.submit("chat:x", short).result()
        sup.submit("chat:x", long)
        await anyio.sleep(20)
        assert first.attempt == 2
        now = sup.statistics().lanes["chat:x"]
        assert (now.running, now.queued) == (1, 1)
        assert (await first.wait()).state == (await second.wait()).state == "done"


async def test_a_parked_run_keeps_what_it_has_read(virtual, tmp_path):
    asked: list[list[str]] = []

    async def handler(ctx, messages):
        asked.append([message.body for message in messages])
        if len(messages) == 1:
            await ctx.inbox.receive()
            raise LookupError("no such thing")

    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler, retry=RetrySpec(2, wait=1.0))]) as sup:
        first, second = sup.post("session:a", "1"), sup.post("session:a", "2")
        assert (await first.wait()).state == (await second.wait()).state == "failed"
        assert [parked.run for parked in sup.parked()] == [first]
        await sup.resubmit(first.id).result()
        assert asked == [["1"], ["1"], ["1", "2"]]


# Waiting, and what stays behind


async def test_a_run_that_waits_for_what_was_said_to_it_is_a_deadlock(virtual, tmp_path):
    async def handler(ctx, messages):
        if messages[0].body == "1":
            with pytest.raises(DeadlockError):
                await sup.post("session:a", "2").result()
        return messages[0].body

    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler)]) as sup:
        assert await sup.post("session:a", "1").result() == "1"


@pytest.mark.failure("D6")
async def test_an_inbox_that_was_used_keeps_no_run_alive(virtual, tmp_path):
    alive: list[weakref.ref] = []

    async def handler(ctx, messages):
        alive.append(weakref.ref(ctx._permit))
        await ctx.inbox.receive()

    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler)], keep_outcomes=0) as sup:
        gc.disable()
        try:
            runs = [sup.post("session:a", text) for text in "12"]
            for run in runs:
                await run.wait()
            await virtual.settle()
            assert alive[0]() is None
        finally:
            gc.enable()
