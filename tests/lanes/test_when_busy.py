"""A session is busy, or a lane at its capacity: `queue`, `reject`, `interrupt`, `replace` and `collect`."""

from __future__ import annotations

from functools import partial

import anyio
import pytest

from lanes import GroupSpec, LaneBusy, LaneFull, LaneSpec, Message, RetrySpec, RunCancelled, RunSuperseded
from locks import LockRegistry, Superseded
from runtime import Supervisor
from tests.supervised import Shielded, assert_empty, gone, texts

SESSION = partial(LaneSpec, "session:*", timeout=1000.0)
WORK = partial(LaneSpec, "work", timeout=1000.0)
FULL_AT_ONE = {"queue_limit": 1}
DROPS = {"when_full": "drop_oldest"}


class Answering:
    """A handler that takes a while for each answer, and notes what it was asked."""

    def __init__(self, seconds: float = 10.0) -> None:
        self.seconds = seconds
        self.asked: list[str] = []

    async def __call__(self, ctx, messages):
        asked = "+".join(message.body for message in messages)
        self.asked.append(asked)
        await anyio.sleep(self.seconds)
        return asked


class SlowToEnd(Answering):
    """A handler that takes a second to end when it is cancelled."""

    async def __call__(self, ctx, messages):
        try:
            return await super().__call__(ctx, messages)
        finally:
            async with ctx.cleanup():
                await anyio.sleep(1)


class Noting:
    """A body that notes its name when it starts, and takes ten seconds."""

    def __init__(self) -> None:
        self.started: list[str] = []

    async def __call__(self, ctx, name):
        self.started.append(name)
        await anyio.sleep(10)
        return name


# queue


@pytest.mark.on_store
async def test_queued_messages_are_answered_one_by_one_in_order(virtual, tmp_path):
    handler = Answering()
    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler)]) as sup:
        runs = [sup.post("session:a", text) for text in ("one", "two", "three")]
        assert [run.state for run in runs] == ["running", "queued", "queued"]
        assert [await run.result() for run in runs] == ["one", "two", "three"]
        assert handler.asked == ["one", "two", "three"]
        assert_empty(sup)


@pytest.mark.failure("E12")
@pytest.mark.parametrize("how", ["cancelled", "failed", "timed_out", "superseded", "abandoned"])
async def test_five_that_are_queued_run_once_and_in_order_whatever_ends_their_predecessor(virtual, tmp_path, how):
    deaf, handler = Shielded(), Answering(1.0)

    async def body(ctx):
        if how == "abandoned":
            await deaf(ctx)
            return
        if how == "failed":
            await anyio.sleep(5)
            raise LookupError("gone wrong")
        await anyio.sleep_forever()

    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler), WORK()]) as sup:
        first = sup.submit("work", body, session="a", timeout=20.0)
        runs = [sup.post("session:a", text) for text in "12345"]
        await virtual.settle()
        if how in ("cancelled", "abandoned"):
            first.cancel()
        if how == "superseded":
            assert await sup.post("session:a", "now", when_busy="interrupt").result() == "now"
        assert [await run.result() for run in runs] == list("12345")
        assert handler.asked[-5:] == list("12345") and len(handler.asked) == 5 + (how == "superseded")
        assert first.outcome is not None and first.outcome.state == how
        deaf.release()
        await gone(sup)
        assert_empty(sup)


# reject


@pytest.mark.on_store
async def test_a_session_that_is_conducted_rejects_and_says_by_whom(virtual, tmp_path):
    body = Noting()
    async with Supervisor(tmp_path, lanes=[SESSION(when_busy="reject"), WORK()]) as sup:
        holder = sup.submit("work", body, "first", session="a")
        before = sup.statistics().runs
        with pytest.raises(LaneBusy, match=r"lane 'session:a' is busy: run 1 .* has the turn of session 'a'") as caught:
            sup.submit("session:a", body, "second")
        assert (caught.value.lane, caught.value.session, caught.value.holder) == ("session:a", "a", holder.id)
        assert caught.value.retryable and sup.statistics().runs == before
        await holder.result()
        await sup.submit("session:a", body, "again").result()
        assert body.started == ["first", "again"]
        assert_empty(sup)


async def test_a_session_whose_turn_is_waited_for_rejects(virtual, tmp_path):
    body = Noting()
    lanes = [SESSION(group="one", when_busy="reject"), WORK(group="one")]
    async with Supervisor(tmp_path, lanes=lanes, groups=[GroupSpec("one", slots=1)]) as sup:
        sup.submit("work", body, "holds the slot")
        waiting = sup.submit("session:a", body, "waits for a slot")
        assert waiting.state == "queued"
        with pytest.raises(LaneBusy, match=r"run 2 .* waits for the turn of session 'a'") as caught:
            sup.submit("session:a", body, "refused")
        assert caught.value.holder == waiting.id
        await waiting.result()
        assert body.started == ["holds the slot", "waits for a slot"]


async def test_another_session_of_the_same_lane_is_not_rejected(virtual, tmp_path):
    body = Noting()
    async with Supervisor(tmp_path, lanes=[WORK(capacity=2, when_busy="reject")]) as sup:
        runs = [sup.submit("work", body, key, session=key) for key in "ab"]
        assert [run.state for run in runs] == ["running", "running"]
        # Its session is free; that the lane is at its capacity only means that it has to wait.
        assert sup.submit("work", body, "c", session="c").state == "queued"
        sup.cancel()


async def test_without_a_session_a_lane_at_its_capacity_rejects(virtual, tmp_path):
    body = Noting()
    async with Supervisor(tmp_path, lanes=[WORK(capacity=2, when_busy="reject")]) as sup:
        runs = [sup.submit("work", body, name) for name in ("one", "two")]
        with pytest.raises(LaneBusy, match="lane 'work' is busy: 2 of 2 run on it") as caught:
            sup.submit("work", body, "three")
        assert caught.value.holder is None
        await runs[0].result()
        assert await sup.submit("work", body, "four").result() == "four"
        assert_empty(sup)


async def test_a_run_without_the_turn_does_not_make_its_session_busy(virtual, tmp_path):
    body = Noting()
    async with Supervisor(tmp_path, lanes=[SESSION(when_busy="reject"), WORK()]) as sup:
        note = sup.submit("work", body, "note", session="a", turn=False)
        assert await sup.submit("session:a", body, "conducts").result() == "conducts"
        assert note.outcome is not None


async def test_the_policy_of_one_post_goes_before_that_of_its_lane(virtual, tmp_path):
    handler = Answering()
    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler, when_busy="reject")]) as sup:
        sup.post("session:a", "one")
        with pytest.raises(LaneBusy):
            sup.post("session:a", "two")
        assert await sup.post("session:a", "three", when_busy="queue").result() == "three"
        assert handler.asked == ["one", "three"]


# interrupt


async def test_an_interrupting_run_ends_the_one_under_way_and_goes_next(virtual, tmp_path):
    async def handler(ctx, messages):
        await ctx.session.append({"text": messages[0].body})
        try:
            await anyio.sleep(10)
        finally:
            async with ctx.cleanup():
                await anyio.sleep(1)
                await ctx.session.append({"text": f"end of {messages[0].body}"})

    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler)]) as sup:
        old, waiting = sup.post("session:a", "old"), sup.post("session:a", "waiting")
        await anyio.sleep(3)
        new = sup.post("session:a", "new", when_busy="interrupt")
        assert old.reason == "superseded by run 3" and (new.state, waiting.state) == ("queued", "queued")
        with pytest.raises(RunSuperseded, match="run 1 on lane session:a superseded by run 3"):
            await old.result()
        await waiting.result()
        assert new.outcome is not None and new.outcome.state == "done"
        assert texts(sup, "a") == ["old", "end of old", "new", "end of new", "waiting", "end of waiting"]
        assert_empty(sup)


@pytest.mark.on_store
async def test_who_was_interrupted_and_lives_on_writes_nothing_and_learns_by_whom(virtual, tmp_path):
    deaf = Shielded()
    refused: list[str] = []

    async def body(ctx):
        await deaf(ctx)
        try:
            await ctx.session.append({"text": "late"})
        except Superseded as error:
            refused.append(str(error))

    async def newer(ctx):
        await ctx.session.append({"text": "new"})

    async with Supervisor(tmp_path, lanes=[SESSION(when_busy="interrupt")]) as sup:
        old = sup.submit("session:a", body)
        await deaf.started.wait()
        await sup.submit("session:a", newer).result()
        assert old.outcome is not None and old.outcome.state == "abandoned"
        deaf.release()
        await gone(sup)
        assert texts(sup, "a") == ["new"]
        assert len(refused) == 1 and "run 2 on lane session:a" in refused[0]


@pytest.mark.on_store
async def test_an_interrupting_run_on_another_lane_ends_whoever_conducts_the_session(virtual, tmp_path):
    body = Noting()
    async with Supervisor(tmp_path, lanes=[SESSION(when_busy="interrupt"), WORK()]) as sup:
        old = sup.submit("work", body, "old", session="a")
        other = sup.submit("work", body, "other", session="b")
        await sup.submit("session:a", body, "new").result()
        assert old.outcome is not None and old.outcome.reason == "superseded by run 3"
        await other.result()
        assert_empty(sup)


@pytest.mark.failure("T4")
@pytest.mark.parametrize("session", ["a", None])
@pytest.mark.parametrize("options", [{}, FULL_AT_ONE, FULL_AT_ONE | DROPS], ids=["unlimited", "full", "drops"])
async def test_of_several_that_interrupt_only_the_newest_waits_and_each_other_one_is_told(
    virtual, tmp_path, session, options
):
    handler = SlowToEnd()
    async with Supervisor(tmp_path, lanes=[WORK(handler=handler, when_busy="interrupt", **options)]) as sup:
        runs = []
        for text in "ABCD":
            runs.append(sup.post("work", text, session=session))
            await anyio.sleep(0.1)
            assert sup.statistics().lanes["work"].queued <= 1
        assert [(run.state, run.outcome and run.outcome.reason) for run in runs[1:]] == [
            ("superseded", "superseded by run 3"),
            ("superseded", "superseded by run 4"),
            ("queued", None),
        ]
        with pytest.raises(RunSuperseded, match="run 2 on lane work superseded by run 3"):
            await runs[1].result()
        assert await runs[3].result() == "D"
        assert runs[0].outcome is not None and runs[0].outcome.reason == "superseded by run 2"
        assert handler.asked == ["A", "D"]
        assert sup.statistics().runs["superseded"] == 3 and sup.statistics().groups["main"].totals.dropped == 0
        assert_empty(sup)


@pytest.mark.failure("T4")
async def test_an_interrupt_that_waits_on_another_lane_is_superseded_too(virtual, tmp_path):
    handler = SlowToEnd()
    lanes = [SESSION(handler=handler, when_busy="interrupt"), WORK(handler=handler, queue_limit=1)]
    async with Supervisor(tmp_path, lanes=lanes) as sup:
        first = sup.post("session:a", "A")
        await virtual.settle()
        elsewhere = sup.post("work", "B", session="a", when_busy="interrupt")
        assert await sup.post("session:a", "C").result() == "C"
        assert [run.state for run in (first, elsewhere)] == ["superseded"] * 2
        assert_empty(sup)


@pytest.mark.failure("T4")
async def test_an_interrupt_supersedes_no_run_that_waits_for_another_reason(virtual, tmp_path):
    handler, body = SlowToEnd(), Noting()
    lanes = [SESSION(handler=handler, when_busy="interrupt"), WORK(handler=handler, capacity=9)]
    async with Supervisor(tmp_path, lanes=lanes) as sup:
        sup.post("session:a", "A")
        await virtual.settle()
        others = [
            sup.post("work", "queued", session="a"),
            sup.post("work", "replaces", session="a", when_busy="replace"),
            sup.post("work", "elsewhere", session="b", when_busy="interrupt"),
            sup.submit("work", body, "a note", session="a", turn=False),
        ]
        sup.post("session:a", "B")
        sup.post("session:a", "C")
        assert [(await run.wait()).state for run in others] == ["done"] * 4
        assert handler.asked == ["A", "elsewhere", "C", "queued", "replaces"]
        assert_empty(sup)


@pytest.mark.failure("T4")
async def test_the_next_attempt_of_a_run_that_interrupted_is_not_superseded(virtual, tmp_path):
    asked: list[str] = []

    async def fails_once(ctx, messages):
        asked.append(messages[0].body)
        if messages[0].body == "B" and ctx.run.attempt == 1:
            raise LookupError("once")
        await anyio.sleep(1)

    lane = SESSION(handler=fails_once, when_busy="interrupt", retry=RetrySpec(2, wait=60.0))
    async with Supervisor(tmp_path, lanes=[lane]) as sup:
        sup.post("session:a", "A")
        second = sup.post("session:a", "B")
        await anyio.sleep(5)
        assert (second.state, second.attempt) == ("queued", 2)
        sup.post("session:a", "C")
        assert (await second.wait()).state == "done"
        assert asked == ["B", "C", "B"]
        assert_empty(sup)


@pytest.mark.failure("T4")
async def test_an_interrupt_that_is_refused_supersedes_nobody_that_waits(virtual, tmp_path):
    handler = SlowToEnd()
    lanes = [SESSION(handler=handler, when_busy="interrupt"), WORK(handler=handler, queue_limit=1)]
    async with Supervisor(tmp_path, lanes=lanes) as sup:
        sup.post("session:a", "A")
        await virtual.settle()
        waits = sup.post("session:a", "B")
        for text in ("runs", "fills the queue"):
            sup.post("work", text)
        with pytest.raises(LaneFull):
            sup.post("work", "C", session="a", when_busy="interrupt")
        assert waits.state == "queued" and await waits.result() == "B"


@pytest.mark.failure("T4")
async def test_on_a_lane_of_two_places_an_interrupt_that_supersedes_one_that_waits_ends_no_other(virtual, tmp_path):
    handler = SlowToEnd()
    async with Supervisor(tmp_path, lanes=[WORK(handler=handler, capacity=2, when_busy="interrupt")]) as sup:
        runs = []
        for text in "ABCD":
            runs.append(sup.post("work", text))
            await virtual.settle()
        await runs[-1].result()
        assert [(await run.wait()).state for run in runs] == ["superseded", "done", "superseded", "done"]
        assert_empty(sup)


@pytest.mark.failure("T4")
@pytest.mark.parametrize("policy", ["interrupt", "replace"])
async def test_what_waits_for_the_turn_of_another_process_is_superseded_too(virtual, tmp_path, policy):
    handler = Answering(1.0)
    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler, when_busy=policy)]) as sup:
        async with LockRegistry().turn(sup.layout.file_of("a")):  # another registry stands for another process
            older, newer = sup.post("session:a", "A"), sup.post("session:a", "B")
            assert (older.reason, newer.state) == (f"superseded by run {newer.id}", "queued")
            await anyio.sleep(1)
            newest = sup.post("session:a", "C")
            assert newer.state == "superseded"
        assert await newest.result() == "C"
        assert handler.asked == ["C"]
        assert_empty(sup)


@pytest.mark.failure("T4")
async def test_what_collects_does_not_join_a_message_that_may_be_superseded(virtual, tmp_path):
    handler = SlowToEnd()
    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler, when_busy="interrupt")]) as sup:
        sup.post("session:a", "A")
        await virtual.settle()
        sup.post("session:a", "B")
        collected = sup.post("session:a", "also", when_busy="collect")
        sup.post("session:a", "C")
        assert await collected.result() == "also"
        assert handler.asked == ["A", "C", "also"]


async def test_an_interrupting_run_goes_before_the_one_that_waits_for_a_slot(virtual, tmp_path):
    body = Noting()
    lanes = [SESSION(group="one"), WORK(group="one"), LaneSpec("now:*", group="one", when_busy="interrupt")]
    async with Supervisor(tmp_path, lanes=lanes, groups=[GroupSpec("one", slots=1)]) as sup:
        sup.submit("work", body, "has the slot")
        first = sup.submit("session:a", body, "first")
        sup.submit("now:x", body, "second", session="a")
        await first.result()
        assert body.started == ["has the slot", "second", "first"]
        assert_empty(sup)


async def test_without_a_session_an_interrupting_run_ends_the_oldest_of_a_full_lane(virtual, tmp_path):
    body = Noting()
    async with Supervisor(tmp_path, lanes=[WORK(capacity=2, when_busy="interrupt")]) as sup:
        oldest = sup.submit("work", body, "oldest")
        await anyio.sleep(1)
        younger = sup.submit("work", body, "younger")
        assert (oldest.state, younger.state) == ("running", "running")  # there was a place: nobody is interrupted
        await sup.submit("work", body, "new").result()
        assert oldest.outcome is not None and oldest.outcome.reason == "superseded by run 3"
        assert await younger.result() == "younger"
        assert_empty(sup)


async def test_a_child_never_interrupts_who_submitted_it(virtual, tmp_path):
    body = Noting()

    async def parent(ctx):
        return await ctx.submit("work", body, "child").result()

    async with Supervisor(tmp_path, lanes=[WORK(capacity=2, when_busy="interrupt")]) as sup:
        above = sup.submit("work", parent)
        beside = sup.submit("work", body, "beside")
        await virtual.settle()
        assert beside.reason == "superseded by run 3"
        assert await above.result() == "child"


async def test_a_run_between_two_attempts_is_not_under_way_and_stays_queued(virtual, tmp_path):
    attempts: list[int] = []

    async def fails_once(ctx):
        attempts.append(ctx.run.attempt)
        if ctx.run.attempt == 1:
            raise LookupError("once")
        return "done in the end"

    body = Noting()
    lanes = [SESSION(retry=RetrySpec(2, wait=60.0)), LaneSpec("now", when_busy="interrupt")]
    async with Supervisor(tmp_path, lanes=lanes) as sup:
        run = sup.submit("session:a", fails_once)
        await anyio.sleep(5)
        assert (run.state, run.attempt) == ("queued", 2)
        assert await sup.submit("now", body, "new", session="a").result() == "new"
        assert attempts == [1]
        assert await run.result() == "done in the end"
        assert_empty(sup)


async def test_an_interrupting_run_that_is_cancelled_before_it_starts_leaves_the_turn_to_the_next(virtual, tmp_path):
    body = Noting()

    async def slow_to_end(ctx):
        try:
            await anyio.sleep(10)
        finally:
            async with ctx.cleanup():
                await anyio.sleep(1)

    async with Supervisor(tmp_path, lanes=[SESSION(when_busy="interrupt"), WORK()]) as sup:
        sup.submit("session:a", slow_to_end)
        queued = sup.submit("work", body, "queued", session="a")
        await virtual.settle()
        assert sup.submit("session:a", body, "never").cancel("changed my mind")
        assert await queued.result() == "queued"
        assert body.started == ["queued"]
        assert_empty(sup)


async def test_an_interrupt_that_is_refused_ends_nobody(virtual, tmp_path):
    body = Noting()
    lanes = [SESSION(), LaneSpec("now", when_busy="interrupt", queue_limit=1)]
    async with Supervisor(tmp_path, lanes=lanes) as sup:
        old = sup.submit("session:a", body, "old")
        sup.submit("now", body, "has the place", session="b")
        sup.submit("now", body, "waits", session="c")
        with pytest.raises(LaneFull, match=r"lane 'now' is full: 1 queued; allowed: 1"):
            sup.submit("now", body, "one too many", session="a")
        assert await old.result() == "old"


async def test_interrupting_a_reset_waits_for_it(virtual, tmp_path):
    body = Noting()

    async def slow_to_end(ctx):
        try:
            await anyio.sleep(10)
        finally:
            async with ctx.cleanup():
                await anyio.sleep(1)

    ended: list[str] = []
    lanes = [SESSION(when_busy="interrupt")]
    async with Supervisor(tmp_path, lanes=lanes, on_run_end=lambda run: ended.append(run.lane)) as sup:
        sup.submit("session:a", slow_to_end)
        await virtual.settle()
        async with anyio.create_task_group() as group:
            group.start_soon(sup.reset, "a")
            await virtual.settle()
            new = sup.submit("session:a", body, "new")
            assert await new.result() == "new"
        assert ended == ["session:a", "control", "session:a"]


# replace


@pytest.mark.failure("T4")
@pytest.mark.parametrize("session", ["a", None])
@pytest.mark.parametrize("options", [{}, FULL_AT_ONE, FULL_AT_ONE | DROPS], ids=["unlimited", "full", "drops"])
async def test_what_replaces_leaves_the_run_under_way_alone_and_of_several_only_the_newest_waits(
    virtual, tmp_path, session, options
):
    handler = Answering()
    async with Supervisor(tmp_path, lanes=[WORK(handler=handler, when_busy="replace", **options)]) as sup:
        runs = []
        for text in "ABCD":
            runs.append(sup.post("work", text, session=session))
            await anyio.sleep(1)
            assert sup.statistics().lanes["work"].queued <= 1
        assert [run.state for run in runs] == ["running", "superseded", "superseded", "queued"]
        with pytest.raises(RunSuperseded, match="run 2 on lane work superseded by run 3"):
            await runs[1].result()
        assert [await run.result() for run in (runs[0], runs[3])] == ["A", "D"]
        assert handler.asked == ["A", "D"]
        assert sup.statistics().runs["superseded"] == 2 and sup.statistics().groups["main"].totals.dropped == 0
        assert_empty(sup)


@pytest.mark.on_store
@pytest.mark.failure("T4")
async def test_what_replaces_goes_last_and_supersedes_no_run_that_waits_for_another_reason(virtual, tmp_path):
    handler = Answering(1.0)
    lanes = [SESSION(handler=handler), WORK(handler=handler, capacity=9)]
    async with Supervisor(tmp_path, lanes=lanes) as sup:
        sup.post("session:a", "busy")
        old = sup.post("work", "1", session="a", when_busy="replace")
        sup.post("session:a", "2")
        new = sup.post("session:a", "3", when_busy="replace")
        sup.post("session:a", "4", when_busy="collect")
        await new.result()
        await anyio.sleep(5)
        assert old.state == "superseded" and handler.asked == ["busy", "2", "3", "4"]
        assert_empty(sup)


@pytest.mark.failure("T4")
async def test_a_note_for_a_session_replaces_nobody(virtual, tmp_path):
    body = Noting()
    async with Supervisor(tmp_path, lanes=[WORK(capacity=1, when_busy="replace")]) as sup:
        sup.submit("work", body, "busy")
        runs = [sup.submit("work", body, "waits", session="a"), sup.submit("work", body, "waits too")]
        sup.submit("work", body, "a note", session="a", turn=False)
        assert [run.state for run in runs] == ["queued"] * 2
        for run in runs:
            await run.result()


@pytest.mark.failure("T4")
async def test_what_replaces_and_is_refused_supersedes_nobody(virtual, tmp_path):
    handler = Answering()
    lanes = [SESSION(handler=handler, when_busy="replace"), WORK(handler=handler, queue_limit=1)]
    async with Supervisor(tmp_path, lanes=lanes) as sup:
        sup.post("session:a", "A")
        waits = sup.post("session:a", "B")
        for text in ("runs", "fills the queue"):
            sup.post("work", text)
        with pytest.raises(LaneFull):
            sup.post("work", "C", session="a", when_busy="replace")
        assert await waits.result() == "B"


@pytest.mark.failure("T4")
async def test_replacing_messages_in_a_burst_are_answered_together_and_a_later_burst_supersedes_them(virtual, tmp_path):
    handler = Answering(20.0)
    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler, debounce=3.0, when_busy="replace")]) as sup:
        runs = []
        for text, after in (("1", 5), ("2", 1), ("3", 5), ("4", 1), ("5", 1)):
            runs.append(sup.post("session:a", text))
            await anyio.sleep(after)
        await runs[-1].result()
        assert handler.asked == ["1", "4+5"]
        assert [run.state for run in runs] == ["done", "superseded", "superseded", "done", "done"]
        assert_empty(sup)


# collect


async def test_what_comes_while_the_session_is_busy_is_collected_into_one_run(virtual, tmp_path):
    handler = Answering()
    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler, when_busy="collect")]) as sup:
        first = sup.post("session:a", "1")
        await anyio.sleep(1)
        others = [sup.post("session:a", text) for text in "234"]
        assert first is not others[0] and others == [others[0]] * 3
        await others[0].result()
        assert handler.asked == ["1", "2+3+4"]
        assert_empty(sup)


@pytest.mark.on_store
async def test_messages_of_different_routes_are_never_collected_together_and_stay_in_order(virtual, tmp_path):
    handler = Answering()
    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler, when_busy="collect")]) as sup:
        sup.post("session:a", "busy")
        said = [("1", "chat"), ("2", "chat"), ("3", "mail"), ("4", "chat"), ("5", "chat"), ("6", None)]
        runs = [sup.post("session:a", Message(text, route)) for text, route in said]
        await runs[-1].result()
        assert handler.asked == ["busy", "1+2", "3", "4+5", "6"]


async def test_routes_that_cannot_be_compared_are_apart(virtual, tmp_path):
    class Odd:
        def __eq__(self, other):
            raise ValueError("neither true nor false")

        def __hash__(self):
            raise ValueError("no number either")

    handler, odd = Answering(), Odd()
    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler, when_busy="collect")]) as sup:
        runs = [
            sup.post("session:a", Message(text, route))
            for text, route in zip("1234", (0, odd, odd, Odd()), strict=True)
        ]
        await runs[-1].result()
        assert handler.asked == ["1", "2+3", "4"]


@pytest.mark.parametrize("differing", [{"timeout": 7.0}, {"priority": "background"}])
async def test_messages_with_limits_of_their_own_are_answered_apart(virtual, tmp_path, differing):
    handler = Answering(1.0)
    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler, when_busy="collect")]) as sup:
        last = [
            sup.post("session:a", text, **options)
            for text, options in (("busy", {}), ("1", {}), ("2", differing), ("3", differing), ("4", {}))
        ][-1]
        await last.result()
        assert handler.asked == ["busy", "1", "2+3", "4"]


async def test_messages_of_different_sessions_are_never_collected_together(virtual, tmp_path):
    handler = Answering(1.0)
    async with Supervisor(tmp_path, lanes=[WORK(handler=handler, when_busy="collect")]) as sup:
        runs = [sup.post("work", f"{key}{n}", session=key) for n in range(3) for key in ("a", "b", None)]
        for run in runs:
            await run.result()
        assert sorted(handler.asked) == ["None0", "None1+None2", "a0", "a1+a2", "b0+b1+b2"]


async def test_a_message_does_not_join_work_that_is_none_or_that_waits_on_another_lane(virtual, tmp_path):
    handler, body = Answering(1.0), Noting()
    lanes = [SESSION(handler=handler, when_busy="collect"), WORK(handler=handler, when_busy="collect")]
    async with Supervisor(tmp_path, lanes=lanes) as sup:
        sup.submit("session:a", body, "busy")
        sup.post("session:a", "1")
        sup.submit("session:a", body, "no message")
        sup.post("session:a", "2")
        sup.post("work", "3", session="a")
        await sup.post("session:a", "4").result()
        assert handler.asked == ["1", "2", "3", "4"]


async def test_a_message_does_not_join_a_run_that_was_tried_already(virtual, tmp_path):
    asked: list[str] = []

    async def fails_once(ctx, messages):
        asked.append("+".join(message.body for message in messages))
        if ctx.run.attempt == 1 and messages[0].body == "1":
            raise LookupError("once")

    lanes = [SESSION(handler=fails_once, when_busy="collect", retry=RetrySpec(2, wait=60.0))]
    async with Supervisor(tmp_path, lanes=lanes) as sup:
        first = sup.post("session:a", "1")
        await anyio.sleep(1)
        assert first.attempt == 2
        second = sup.post("session:a", "2")
        assert second is not first
        await second.result()
        assert asked == ["1", "1", "2"]


async def test_the_queues_limit_counts_collected_messages(virtual, tmp_path):
    handler = Answering()
    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler, when_busy="collect", queue_limit=3)]) as sup:
        sup.post("session:a", "busy")
        runs = [sup.post("session:a", text) for text in "123"]
        with pytest.raises(LaneFull, match="lane 'session:a' is full: 3 queued"):
            sup.post("session:a", "4")
        assert await runs[0].result() == "1+2+3"
        await sup.post("session:a", "5").result()
        assert_empty(sup)


async def test_cancelling_a_collected_run_tells_everybody_who_shares_it(virtual, tmp_path):
    handler = Answering()
    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler, when_busy="collect")]) as sup:
        busy = sup.post("session:a", "busy")
        one, other = (sup.post("session:a", text) for text in "12")
        assert one.cancel("by the sender")
        for run in (one, other):
            with pytest.raises(RunCancelled, match="by the sender"):
                await run.result()
        await busy.result()
        assert handler.asked == ["busy"]
        assert_empty(sup)
