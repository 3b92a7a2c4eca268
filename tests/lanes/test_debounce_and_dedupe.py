"""Messages that wait for quiet (`debounce`), and messages that are sent twice (`dedupe`)."""

from __future__ import annotations

import pickle
import weakref
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
import pytest

from lanes import DedupeConflict, InvalidLane, LaneBusy, LaneError, LaneFull, LaneSpec, Message, RetrySpec
from runtime import Supervisor
from tests.supervised import Shielded, about, assert_empty, gone

SESSION = partial(LaneSpec, "session:*", timeout=1000.0)
WORK = partial(LaneSpec, "work", timeout=1000.0)


class Answering:
    """A handler that takes ten seconds for each answer, and notes what it was asked, and when."""

    def __init__(self, clock, seconds=10.0) -> None:
        self.clock, self.began, self.seconds = clock, clock.now(), seconds
        self.asked: list[str] = []
        self.at: list[float] = []

    async def __call__(self, ctx, messages):
        self.asked.append("+".join(message.body for message in messages))
        self.at.append(self.clock.now() - self.began)
        await anyio.sleep(self.seconds)


# debounce


@pytest.mark.on_store
async def test_a_message_waits_for_quiet_and_is_answered_with_what_comes_meanwhile(virtual, tmp_path):
    handler = Answering(virtual)
    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler, debounce=3.0)]) as sup:
        runs = []
        for text in "123":
            runs.append(sup.post("session:a", text))
            await anyio.sleep(2)
        assert runs == [runs[0]] * 3 and runs[0].state == "queued"
        await runs[0].result()
        assert (handler.asked, handler.at) == (["1+2+3"], [about(4 + 3)])
        assert_empty(sup)


async def test_a_stream_without_a_pause_waits_ten_times_as_long_and_no_longer(virtual, tmp_path):
    handler = Answering(virtual)
    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler, debounce=2.95, queue_limit=None)]) as sup:
        runs = []
        for second in range(45):
            runs.append(sup.post("session:a", str(second)))
            await anyio.sleep(1)
        await runs[-1].result()
        assert handler.at[0] == about(29.5)
        assert handler.asked[0] == "+".join(map(str, range(30)))
        assert "+".join(handler.asked) == "+".join(map(str, range(45)))
        assert_empty(sup)


@pytest.mark.failure("D3")
async def test_a_stream_without_a_pause_is_answered_though_its_wait_budget_is_shorter(virtual, tmp_path):
    handler = Answering(virtual, seconds=1.0)
    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler, debounce=3.0, queue_timeout=20.0)]) as sup:
        runs = []
        for second in range(40):
            runs.append(sup.post("session:a", str(second)))
            await anyio.sleep(1)
        assert {(await run.wait()).state for run in runs} == {"done"}
        assert handler.at[0] == about(10)
        assert "+".join(handler.asked) == "+".join(map(str, range(40)))


async def test_messages_of_different_routes_do_not_wait_for_each_others_quiet_and_stay_in_order(virtual, tmp_path):
    handler = Answering(virtual, seconds=1.0)
    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler, debounce=3.0)]) as sup:
        runs = []
        for text, route in (("1", "chat"), ("2", "mail"), ("3", "mail"), ("4", "chat")):
            runs.append(sup.post("session:a", Message(text, route)))
            await anyio.sleep(1)
        await runs[-1].result()
        assert (handler.asked, handler.at) == (["1", "2+3", "4"], [about(3), about(5), about(6)])


async def test_sessions_and_limits_are_debounced_apart(virtual, tmp_path):
    handler = Answering(virtual, seconds=1.0)
    async with Supervisor(tmp_path, lanes=[WORK(handler=handler, debounce=3.0, capacity=9)]) as sup:
        for text, options in (("1", {"session": "a"}), ("2", {"session": "b"}), ("3", {"session": "a", "timeout": 5})):
            sup.post("work", text, **options)
        await sup.post("work", "4", session="b").result()
        for run in sup.runs():
            await run.wait()
        assert sorted(handler.asked) == ["1", "2+4", "3"]


async def test_a_message_that_has_waited_for_quiet_behind_another_is_joined_no_more(virtual, tmp_path):
    handler = Answering(virtual)
    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler, debounce=3.0)]) as sup:
        sup.post("session:a", "1")
        await anyio.sleep(4)
        sup.post("session:a", "2")
        await anyio.sleep(4)
        await sup.post("session:a", "3").result()
        assert handler.asked == ["1", "2", "3"]
        assert handler.at == [about(3), about(13), about(23)]


async def test_what_is_told_to_a_run_under_way_does_not_wait_for_quiet(virtual, tmp_path):
    read: list[float] = []

    async def handler(ctx, messages):
        await ctx.inbox.receive()
        read.append(virtual.now())

    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler, debounce=3.0, when_busy="steer")]) as sup:
        began = virtual.now()
        sup.post("session:a", "1")
        await anyio.sleep(5)
        await sup.post("session:a", "2").result()
        assert read == [about(began + 5)]


async def test_what_is_told_to_a_run_under_way_joins_none_that_waits_for_quiet(virtual, tmp_path):
    async def handler(ctx, messages):
        await anyio.sleep(5)
        return [message.body for message in [*messages, *ctx.inbox.take()]]

    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler, debounce=3.0)]) as sup:
        sup.post("session:a", "1")
        await anyio.sleep(4)
        waits = sup.post("session:a", "2")
        told = sup.post("session:a", "3", when_busy="steer")
        assert (await told.result(), await waits.result()) == (["1", "3"], ["2"])


async def test_an_interrupt_ends_the_run_under_way_at_once_though_it_waits_for_quiet_itself(virtual, tmp_path):
    handler = Answering(virtual)
    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler, debounce=3.0)]) as sup:
        first = sup.post("session:a", "1")
        await anyio.sleep(4)
        queued = sup.post("session:a", "2")
        await anyio.sleep(1)
        new = sup.post("session:a", "3", when_busy="interrupt")
        assert first.reason == f"superseded by run {new.id}" and new is not queued
        await anyio.sleep(1)
        assert sup.post("session:a", "4", when_busy="interrupt") is not queued
        await queued.result()
        assert handler.asked[0] == "1" and handler.asked[-1] == "2"


async def test_interrupts_in_a_burst_are_answered_together(virtual, tmp_path):
    handler = Answering(virtual)
    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler, debounce=3.0, when_busy="interrupt")]) as sup:
        runs = []
        for text, after in (("1", 1), ("2", 5), ("3", 1), ("4", 1)):
            runs.append(sup.post("session:a", text))
            await anyio.sleep(after)
        await runs[-1].result()
        assert handler.asked == ["1+2", "3+4"]


async def test_a_session_under_way_rejects_though_a_message_waits_for_quiet(virtual, tmp_path):
    handler = Answering(virtual)
    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler, debounce=3.0, when_busy="reject")]) as sup:
        first = sup.post("session:a", "1")
        assert sup.post("session:a", "2") is first  # it waits for just that: nobody is before it
        await anyio.sleep(5)
        sup.post("session:a", "3", when_busy="queue")
        with pytest.raises(LaneBusy, match="has the turn of session 'a'"):
            sup.post("session:a", "4")
        await first.result()
        assert handler.asked[0] == "1+2"


async def test_the_queues_limit_counts_messages_that_wait_for_quiet(virtual, tmp_path):
    handler = Answering(virtual)
    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler, debounce=3.0, queue_limit=2)]) as sup:
        for text in "12":
            sup.post("session:a", text)
        with pytest.raises(LaneFull, match="lane 'session:a' is full: 2 queued"):
            sup.post("session:a", "3")
        await anyio.sleep(4)
        await sup.post("session:a", "4").result()
        assert handler.asked == ["1+2", "4"]


async def test_a_message_that_waits_for_quiet_is_told_when_it_is_cancelled_or_the_supervisor_stops(virtual, tmp_path):
    handler = Answering(virtual)
    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler, debounce=3.0)]) as sup:
        first, second = sup.post("session:a", "1"), sup.post("session:b", "2")
        assert first.cancel("never mind") and first.outcome is not None
        report = await sup.stop()
        assert report.unstarted == (second,)
        assert (await second.wait()).reason == "the supervisor stopped before it started"
        assert handler.asked == []


async def test_work_that_is_no_message_does_not_wait_for_quiet(virtual, tmp_path):
    async def body(ctx):
        return virtual.now()

    async with Supervisor(tmp_path, lanes=[SESSION(handler=Answering(virtual), debounce=3.0)]) as sup:
        assert await sup.submit("session:a", body).result() == virtual.now()


# dedupe


async def test_the_same_key_again_gives_the_same_run_queued_running_and_over(virtual, tmp_path):
    handler = Answering(virtual)
    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler)]) as sup:
        busy = sup.post("session:a", "busy")
        first = sup.post("session:a", "1", dedupe="id 1")
        assert sup.post("session:a", "1", dedupe="id 1") is first
        await busy.result()
        assert first.state == "running" and sup.post("session:a", "1", dedupe="id 1") is first
        await first.result()
        assert sup.post("session:a", "1", dedupe="id 1") is first
        assert sup.post("session:a", "2", dedupe="id 2") is not first
        assert handler.asked == ["busy", "1"]
        sup.cancel()


async def test_keys_belong_to_lane_and_session(virtual, tmp_path):
    handler = Answering(virtual)
    lanes = [SESSION(handler=handler), WORK(handler=handler, capacity=9)]
    async with Supervisor(tmp_path, lanes=lanes) as sup:
        places = [("session:a", None), ("session:b", None), ("work", "a"), ("work", "b"), ("work", None)]
        runs = {sup.post(lane, "1", session=session, dedupe="same") for lane, session in places for _ in range(2)}
        assert len(runs) == len(places)
        sup.cancel()


@pytest.mark.parametrize("keep", [0, 1, 3])
async def test_a_key_lasts_as_long_as_the_outcome_is_kept(virtual, tmp_path, keep):
    handler = Answering(virtual, seconds=0.0)
    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler)], keep_outcomes=keep) as sup:
        first = sup.post("session:a", "1", dedupe="id")
        await first.result()
        for _ in range(keep):
            assert sup.find(first.id) is first and sup.post("session:a", "1", dedupe="id") is first
            await sup.post("session:a", "other").result()
        assert sup.find(first.id) is None
        assert sup.post("session:a", "1", dedupe="id") is not first
        sup.cancel()
        history = sup._scheduler.board.history
        await virtual.settle()
        assert len(history._known) <= keep and len(history._keys) <= keep


async def test_a_refused_message_leaves_its_key_free(virtual, tmp_path):
    handler = Answering(virtual)
    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler, when_busy="reject")]) as sup:
        busy = sup.post("session:a", "busy")
        with pytest.raises(LaneBusy):
            sup.post("session:a", "1", dedupe="id")
        await busy.result()
        await sup.post("session:a", "1", dedupe="id").result()
        assert handler.asked == ["busy", "1"]


@pytest.mark.parametrize("policy", ["collect", "steer"])
async def test_a_repeated_message_is_not_said_twice_to_a_run_that_it_shares(virtual, tmp_path, policy):
    asked: list[str] = []

    async def handler(ctx, messages):
        await anyio.sleep(10)
        asked.append("+".join(message.body for message in [*messages, *ctx.inbox.take()]))

    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler, when_busy=policy)]) as sup:
        sup.post("session:a", "1")
        runs = [sup.post("session:a", text, dedupe=text) for text in ("2", "2", "3", "3", "2")]
        assert runs == [runs[0], runs[0], runs[2], runs[2], runs[0]]
        await runs[2].result()
        assert asked == (["1", "2+3"] if policy == "collect" else ["1+2+3"])


async def test_a_repeated_message_neither_interrupts_nor_waits_for_quiet_again(virtual, tmp_path):
    handler = Answering(virtual)
    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler, when_busy="interrupt", debounce=3.0)]) as sup:
        first = sup.post("session:a", "1", dedupe="id")
        await anyio.sleep(2)
        assert sup.post("session:a", "1", dedupe="id") is first
        await anyio.sleep(3)
        assert sup.post("session:a", "1", dedupe="id") is first
        await first.result()
        assert (handler.asked, handler.at) == (["1"], [about(3)])


async def test_a_repeated_message_finds_the_run_that_is_being_tried_again(virtual, tmp_path):
    async def fails_once(ctx, messages):
        if ctx.run.attempt == 1:
            raise LookupError("once")
        return "done in the end"

    async with Supervisor(tmp_path, lanes=[SESSION(handler=fails_once, retry=RetrySpec(2, wait=60.0))]) as sup:
        first = sup.post("session:a", "1", dedupe="id")
        await anyio.sleep(5)
        assert sup.post("session:a", "1", dedupe="id") is first
        assert await first.result() == "done in the end"
        assert sup.post("session:a", "1", dedupe="id") is first


async def test_a_message_that_repeats_itself_from_a_hook_is_still_one_message(virtual, tmp_path):
    handler = Answering(virtual)
    twins = []

    def on_wait(run):
        twins.append(sup.post("session:a", "1", dedupe="id"))

    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler)], on_wait=on_wait) as sup:
        sup.post("session:a", "busy")
        first = sup.post("session:a", "1", dedupe="id")
        assert twins == [first]
        await first.result()
        assert handler.asked == ["busy", "1"]


@pytest.mark.parametrize("key", ["", 7, b"id", "x" * 1025, ["id"], float("nan")])
async def test_a_key_that_cannot_be_names_itself_and_what_is_allowed(virtual, tmp_path, key):
    async with Supervisor(tmp_path, lanes=[SESSION(handler=Answering(virtual))]) as sup:
        with pytest.raises(InvalidLane, match=r"dedupe: .* is not allowed; allowed: 1 to 1024 characters of text"):
            sup.post("session:a", "1", dedupe=key)
        assert_empty(sup)


# dedupe: what failed to happen is not kept


class Ends:
    """A handler that comes to each end that a run may have."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.deaf = Shielded()

    async def __call__(self, ctx, messages):
        self.asked.append(how := messages[0].body)
        if how == "failed" and self.asked.count(how) == 1:
            raise LookupError("once")
        if how == "abandoned" and self.asked.count(how) == 1:
            return await self.deaf(ctx)
        await anyio.sleep(1 if self.asked.count(how) > 1 or how == "busy" else 100)
        return "answered"


async def ended(sup, virtual, how):
    """A run with the key "id" that has come to this end."""
    if how in ("dropped", "superseded in the queue", "waited too long"):
        sup.post("session:a", "busy", timeout=None if how == "waited too long" else 5.0)
    policy = "replace" if how == "superseded in the queue" else None
    first = sup.post("session:a", how, dedupe="id", when_busy=policy)
    await anyio.sleep(0.1)
    if how in ("cancelled", "abandoned"):
        first.cancel()
    elif how == "reset":
        await sup.reset("a")
    elif how == "revoked":
        sup.registry.revoke(sup.layout.file_of("a"), "by hand")
    elif how == "superseded":
        sup.post("session:a", "busy", when_busy="interrupt")
    elif how in ("dropped", "superseded in the queue"):
        sup.post("session:a", "busy", when_busy=policy)
    await first.wait()
    return first


ENDS = {
    "failed": "failed",
    "timed out": "timed_out",
    "cancelled": "cancelled",
    "abandoned": "abandoned",
    "reset": "cancelled",
    "revoked": "cancelled",
    "superseded": "superseded",
    "superseded in the queue": "superseded",
    "dropped": "cancelled",
}


@pytest.mark.failure("T5")
@pytest.mark.parametrize("keeps", ["done", "ended"])
@pytest.mark.parametrize("how", ENDS)
async def test_after_a_run_that_came_to_nothing_the_same_key_gives_a_new_run(virtual, tmp_path, how, keeps):
    handler = Ends()
    lane = SESSION(handler=handler, timeout=20.0, grace=0.5, queue_limit=1, when_full="drop_oldest", dedupe_keeps=keeps)
    async with Supervisor(tmp_path, lanes=[lane]) as sup:
        first = await ended(sup, virtual, how)
        assert first.state == ENDS[how]
        again = sup.post("session:a", how, dedupe="id")
        if keeps == "ended":
            assert again is first
        else:
            assert again is not first
            assert sup.post("session:a", how, dedupe="id") is again
            await anyio.sleep(60)
            second = sup.post("session:a", how, dedupe="id")
            assert (second is again) is (again.state == "done")
        sup.cancel()
        handler.deaf.release()
        await gone(sup)


@pytest.mark.failure("T5")
async def test_a_run_that_was_asked_to_end_is_under_way_no_more(virtual, tmp_path):
    async def slow_to_end(ctx, messages):
        try:
            await anyio.sleep(10)
        finally:
            async with ctx.cleanup():
                await anyio.sleep(1)

    async with Supervisor(tmp_path, lanes=[SESSION(handler=slow_to_end)]) as sup:
        first = sup.post("session:a", "1", dedupe="id")
        await virtual.settle()
        first.cancel()
        again = sup.post("session:a", "1", dedupe="id")
        assert (first.outcome, again is first) == (None, False)
        assert (await again.wait()).state == "done"


@pytest.mark.on_store
@pytest.mark.failure("T5")
async def test_a_run_that_timed_out_and_will_be_tried_again_or_is_parked_is_still_the_one(virtual, tmp_path):
    async def slow_to_end(ctx, messages):
        try:
            await anyio.sleep(10 if ctx.run.attempt < 3 else 1)
        finally:
            async with ctx.cleanup():
                await anyio.sleep(1)

    retry = RetrySpec(2, wait=1.0, max_wait=1.0, timeouts=True)
    async with Supervisor(tmp_path, lanes=[SESSION(handler=slow_to_end, timeout=5.0, retry=retry)]) as sup:
        first = sup.post("session:a", "1", dedupe="id")
        found = []
        # It timed out; is between two attempts; is in the second one; that one timed out; is parked.
        for after in (5.5, 1.0, 1.0, 5.0, 1.0):
            await anyio.sleep(after)
            assert sup.post("session:a", "1", dedupe="id") is first
            found.append((first.attempt, first.state))
        assert found == [(1, "running"), (2, "queued"), (2, "running"), (2, "running"), (2, "timed_out")]
        sup.discard(first.id)
        assert sup.post("session:a", "1", dedupe="id") is not first
        sup.cancel()


@pytest.mark.failure("T5")
async def test_what_a_run_read_that_was_asked_to_end_is_new_and_what_it_left_unread_is_not(virtual, tmp_path):
    async def reads_one(ctx, messages):
        try:
            await anyio.sleep(1)
            if len(ctx.inbox):
                ctx.inbox.receive_nowait()
            await anyio.sleep(1)
        finally:
            async with ctx.cleanup():
                await anyio.sleep(1)

    async with Supervisor(tmp_path, lanes=[SESSION(handler=reads_one, when_busy="steer")]) as sup:
        one = sup.post("session:a", "1")
        await virtual.settle()
        read, unread = (sup.post("session:a", key, dedupe=key) for key in ("read", "unread"))
        await anyio.sleep(1.5)
        one.cancel()
        assert sup.post("session:a", "unread", dedupe="unread") is unread
        assert sup.post("session:a", "read", dedupe="read") is not read
        assert (await unread.wait()).state == "done" and read.state == "cancelled"
        sup.cancel()


@pytest.mark.failure("T5")
async def test_the_key_of_an_older_run_that_is_forgotten_stays_with_the_newer_one(virtual, tmp_path):
    handler = Answering(virtual, seconds=1.0)
    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler)], keep_outcomes=1) as sup:
        first = sup.post("session:a", "1", dedupe="id")
        first.cancel()
        await virtual.settle()
        again = sup.post("session:a", "1", dedupe="id")
        sup.post("session:b", "other").cancel()  # takes the place of the first one among those that are kept
        await virtual.settle()
        assert sup.find(first.id) is None and sup.post("session:a", "1", dedupe="id") is again
        await again.result()
        assert sup.post("session:a", "1", dedupe="id") is again
        history = sup._scheduler.board.history
        assert (len(history._known), history._keys) == (1, {again.id: [("session:a", "a", "id")]})
        await sup.post("session:b", "other").result()
        assert (history._known, history._keys) == ({}, {})


@dataclass
class Fields:
    text: str


@dataclass(eq=False)
class Named:
    text: str


class Opaque:
    pass


ROUND: list[Any] = []
ROUND.append(ROUND)


@pytest.mark.failure("T5")
@pytest.mark.parametrize(
    "body, same, other",
    [
        ("hello", "hello", "hello "),
        ({"a": 1, "b": [True, None]}, {"b": [True, None], "a": 1}, {"a": 1, "b": [1, None]}),
        ([1.5], (1.5,), [1.25]),
        (b"a", bytearray(b"a"), b"b"),
        (Fields("a"), Fields("a"), Fields("b")),
        ("\ud83d", "\ud83d", "\ufffd"),
        (None, None, ""),
        (Opaque(), Opaque(), Fields("a")),
        (Named("a"), Named("b"), Fields("a")),
        (ROUND, [Opaque()], {"a": Opaque()}),
    ],
    ids=["text", "object", "list", "bytes", "dataclass", "half a pair", "nothing", "no JSON", "eq=False", "round"],
)
@pytest.mark.parametrize("keeps", ["done", "ended"])
async def test_the_same_key_with_another_body_is_a_conflict_that_takes_nothing(
    virtual, tmp_path, body, same, other, keeps
):
    async def handler(ctx, messages):
        await anyio.sleep(1)

    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler, dedupe_keeps=keeps)]) as sup:
        first = sup.post("session:a", body, dedupe="id")
        for _ in range(2):  # while it runs, and when it is done
            assert sup.post("session:a", same, dedupe="id") is first
            with pytest.raises(DedupeConflict, match=r"dedupe: 'id' is the key of run 1 on lane 'session:a'") as caught:
                sup.post("session:a", other, dedupe="id")
            error = pickle.loads(pickle.dumps(caught.value))
            assert (error.lane, error.session, error.key, error.run) == ("session:a", "a", "id", first.id)
            assert isinstance(error, LaneError) and not error.retryable
            await first.wait()
        assert sup.post("session:a", other, dedupe="id 2") is not first
        sup.cancel()


@pytest.mark.failure("T5")
async def test_messages_that_are_answered_together_keep_a_body_for_each_key(virtual, tmp_path):
    handler = Answering(virtual)
    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler, when_busy="collect")]) as sup:
        sup.post("session:a", "busy")
        two, three = (sup.post("session:a", text, dedupe=text) for text in "23")
        assert two is three and sup.post("session:a", "2", dedupe="2") is two
        with pytest.raises(DedupeConflict):
            sup.post("session:a", "3", dedupe="2")
        sup.cancel()


@pytest.mark.failure("T5")
async def test_a_failed_run_may_be_followed_by_another_body_under_its_key(virtual, tmp_path):
    async with Supervisor(tmp_path, lanes=[SESSION(handler=Answering(virtual))]) as sup:
        sup.post("session:a", "1", dedupe="id").cancel()
        await virtual.settle()
        assert (await sup.post("session:a", "2", dedupe="id").wait()).state == "done"


@pytest.mark.failure("T5")
async def test_a_kept_key_does_not_keep_its_message_alive(virtual, tmp_path):
    async def handler(ctx, messages):
        pass

    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler)]) as sup:
        body = Opaque()
        seen = weakref.ref(body)
        await sup.post("session:a", body, dedupe="id").result()
        del body
        await virtual.settle()
        assert seen() is None
