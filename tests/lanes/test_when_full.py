"""A lane's queue has reached its limit and one more comes: `reject`, `drop_oldest` and `summarize`."""

from __future__ import annotations

from functools import partial

import anyio
import pytest

from lanes import LaneFull, LaneSpec, Message, RetrySpec, Run, RunCancelled
from runtime import Supervisor
from tests.supervised import assert_empty

SESSION = partial(LaneSpec, "session:*", timeout=1000.0)
WORK = partial(LaneSpec, "work", timeout=1000.0)


class Answering:
    """A handler that takes ten seconds for each answer, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def __call__(self, ctx, messages):
        asked = "+".join(message.body for message in messages)
        self.asked.append(asked)
        await anyio.sleep(10)
        return asked


class Dropped:
    """An `on_drop` that notes what it is given, and makes one line of it."""

    def __init__(self) -> None:
        self.given: list[str] = []
        self.runs: list[Run] = []

    def __call__(self, run, messages):
        self.runs.append(run)
        self.given += [message.body for message in messages]
        return f"({' '.join(message.body for message in messages)})"


async def told(run: Run) -> str:
    """What the sender of a dropped message is told."""
    with pytest.raises(RunCancelled) as caught:
        await run.result()
    return str(caught.value)


# reject


async def test_a_full_queue_rejects_and_says_by_how_much(virtual, tmp_path):
    handler = Answering()
    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler, queue_limit=2)]) as sup:
        runs = [sup.post("session:a", text) for text in "123"]
        with pytest.raises(LaneFull, match=r"lane 'session:a' is full: 2 queued; allowed: 2 \(queue_limit\)") as caught:
            sup.post("session:a", "4")
        assert (caught.value.lane, caught.value.queued, caught.value.limit) == ("session:a", 2, 2)
        assert caught.value.retryable
        await runs[1].result()
        assert await sup.post("session:a", "5").result() == "5"
        assert handler.asked == ["1", "2", "3", "5"]
        assert_empty(sup)


async def test_those_who_wait_for_one_session_keep_no_other_session_out_of_a_shared_lane(virtual, tmp_path):
    handler = Answering()
    async with Supervisor(tmp_path, lanes=[WORK(handler=handler, capacity=5, queue_limit=2)]) as sup:
        for text in "123":
            sup.post("work", text, session="busy")
        with pytest.raises(LaneFull):
            sup.post("work", "4", session="busy")
        free = sup.post("work", "free", session="free")
        assert free.state == "running"
        assert await free.result() == "free"


async def test_a_full_lane_without_a_limit_takes_everything(virtual, tmp_path):
    handler = Answering()
    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler, queue_limit=None)]) as sup:
        for text in range(500):
            sup.post("session:a", str(text))
        assert sup.statistics().lanes["session:a"].queued == 499
        sup.cancel()


# drop_oldest


@pytest.mark.failure("D3")
async def test_who_has_waited_longest_is_dropped_and_told(virtual, tmp_path):
    handler = Answering()
    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler, queue_limit=2, when_full="drop_oldest")]) as sup:
        runs = [sup.post("session:a", text) for text in "12345"]
        assert [run.state for run in runs] == ["running", "cancelled", "cancelled", "queued", "queued"]
        assert "dropped: lane 'session:a' was full (2 queued) when run 4 came" in await told(runs[1])
        assert "when run 5 came" in await told(runs[2])
        await runs[4].result()
        assert handler.asked == ["1", "4", "5"]
        now = sup.statistics().groups["main"]
        assert (now.totals.dropped, now.totals.outcomes["cancelled"]) == (2, 2)
        assert_empty(sup)


@pytest.mark.on_store
async def test_on_drop_is_given_what_was_dropped_after_its_sender_was_told(virtual, tmp_path):
    states: list[str] = []

    async def nothing(ctx):
        return None

    def on_drop(run, messages):
        states.append(f"{run.state} {messages}")

    lane = SESSION(handler=Answering(), queue_limit=1, when_full="drop_oldest", on_drop=on_drop)
    async with Supervisor(tmp_path, lanes=[lane]) as sup:
        for text in "123":
            sup.post("session:a", text)
        for _ in range(2):
            sup.submit("session:a", nothing)
        assert states == [
            "cancelled (Message(body='2', route=None),)",
            "cancelled (Message(body='3', route=None),)",
            "cancelled ()",
        ]
        sup.cancel()


@pytest.mark.failure("E9")
@pytest.mark.parametrize("when_full", ["drop_oldest", "summarize"])
async def test_an_exception_in_on_drop_harms_nobody(virtual, tmp_path, when_full):
    handler = Answering()

    def on_drop(run, messages):
        raise SystemExit("not here")

    lane = SESSION(handler=handler, queue_limit=1, when_full=when_full, on_drop=on_drop)
    async with Supervisor(tmp_path, lanes=[lane]) as sup:
        runs = [sup.post("session:a", text) for text in "123"]
        assert "dropped" in await told(runs[1])
        assert await runs[2].result() == "3"
        assert handler.asked == ["1", "3"]
        assert_empty(sup)


async def test_one_goes_for_one_that_comes_though_more_wait_than_the_limit_to_be_tried_again(virtual, tmp_path):
    async def handler(ctx, messages):
        for _ in range(2):
            await anyio.sleep(5)
            ctx.inbox.take()
        if messages[0].body == "1":
            raise LookupError("no such thing")

    lane = SESSION(handler=handler, queue_limit=2, when_full="drop_oldest", retry=RetrySpec(2, wait=60.0))
    async with Supervisor(tmp_path, lanes=[lane]) as sup:
        sup.post("session:a", "1")
        await anyio.sleep(4)
        for text in ("read", "read too"):
            sup.post("session:a", text, when_busy="steer")
        await anyio.sleep(4)
        sup.post("session:a", "read later", when_busy="steer")
        await anyio.sleep(4)
        assert sup.statistics().lanes["session:a"].queued == 4  # the failed one, and the three that it has read
        sup.post("session:a", "2")
        assert sup.statistics().lanes["session:a"].totals.dropped == 1
        sup.cancel()


async def test_a_run_that_would_start_at_once_drops_nobody(virtual, tmp_path):
    handler = Answering()
    lanes = [WORK(handler=handler, capacity=5, queue_limit=1, when_full="drop_oldest")]
    async with Supervisor(tmp_path, lanes=lanes) as sup:
        sup.post("work", "1", session="busy")
        waiting = sup.post("work", "2", session="busy")
        await sup.post("work", "free", session="free").result()
        assert await waiting.result() == "2"


async def test_a_collected_run_is_dropped_with_all_its_messages(virtual, tmp_path):
    handler, dropped = Answering(), Dropped()
    lane = SESSION(handler=handler, when_busy="collect", queue_limit=3, when_full="drop_oldest", on_drop=dropped)
    async with Supervisor(tmp_path, lanes=[lane]) as sup:
        runs = [sup.post("session:a", text) for text in "12345"]
        assert dropped.given == ["2", "3", "4"] and dropped.runs == [runs[1]]
        assert "dropped" in await told(runs[3])
        await runs[4].result()
        assert handler.asked == ["1", "5"]
        assert_empty(sup)


async def test_a_message_that_was_not_read_is_dropped_from_the_inbox_too(virtual, tmp_path):
    async def handler(ctx, messages):
        await anyio.sleep(10)
        return [message.body for message in ctx.inbox.take()]

    lane = SESSION(handler=handler, when_busy="steer", queue_limit=2, when_full="drop_oldest")
    async with Supervisor(tmp_path, lanes=[lane]) as sup:
        runs = [sup.post("session:a", text) for text in "1234"]
        assert "dropped" in await told(runs[1])
        assert await runs[0].result() == ["3", "4"]
        assert_empty(sup)


async def test_what_interrupts_a_full_lane_drops_one_that_waits_and_goes_next(virtual, tmp_path):
    handler = Answering()
    lane = SESSION(handler=handler, queue_limit=2, when_full="drop_oldest")
    async with Supervisor(tmp_path, lanes=[lane]) as sup:
        runs = [sup.post("session:a", text) for text in "123"]
        await virtual.settle()
        new = sup.post("session:a", "new", when_busy="interrupt")
        assert "dropped" in await told(runs[1])
        await runs[2].result()
        assert new.outcome is not None and handler.asked == ["1", "new", "3"]
        assert_empty(sup)


# What on_drop does itself


@pytest.mark.parametrize("hook", ["on_drop", "on_run_end"])
async def test_a_message_that_is_posted_again_when_it_was_dropped_is_refused_and_drops_nobody_else(
    virtual, tmp_path, hook
):
    handler, refused = Answering(), list[int]()

    def again(run, messages=()):
        if run.reason.startswith("dropped"):
            with pytest.raises(LaneFull) as caught:
                sup.post("session:a", "again")
            refused.append(caught.value.queued)

    on_drop, on_run_end = (again, None) if hook == "on_drop" else (None, again)
    lane = SESSION(handler=handler, queue_limit=2, when_full="drop_oldest", on_drop=on_drop)
    async with Supervisor(tmp_path, lanes=[lane], on_run_end=on_run_end) as sup:
        runs = [sup.post("session:a", text) for text in "1234"]
        assert [run.state for run in runs] == ["running", "cancelled", "queued", "queued"]
        assert len(refused) == 1
        await runs[3].result()
        assert handler.asked == ["1", "3", "4"]
        assert_empty(sup)


async def test_what_was_dropped_can_be_posted_to_another_lane(virtual, tmp_path):
    handler, moved = Answering(), list[Run]()

    def on_drop(run, messages):
        moved.extend(sup.post("work", message) for message in messages)

    lane = SESSION(handler=handler, queue_limit=1, when_full="drop_oldest", on_drop=on_drop)
    async with Supervisor(tmp_path, lanes=[lane, WORK(handler=handler)]) as sup:
        for text in "123":
            sup.post("session:a", text)
        assert [await run.result() for run in moved] == ["2"]


@pytest.mark.parametrize("posts_again", [True, False])
async def test_a_lane_whose_only_run_is_dropped_stays_one_lane(virtual, tmp_path, posts_again):
    handler = Answering()

    def on_drop(run, messages):
        if posts_again:
            sup.post("chat:x", "again", session="other")

    chat = LaneSpec("chat:*", handler=handler, queue_limit=1, when_full="drop_oldest", on_drop=on_drop)
    async with Supervisor(tmp_path, lanes=[SESSION(handler=handler), chat]) as sup:
        sup.post("session:a", "busy")
        dropped = sup.post("chat:x", "1", session="a")
        new = sup.post("chat:x", "2", session="a")
        assert dropped.state == "cancelled"
        assert await new.result() == "2"
        assert len([text for text in handler.asked if text == "again"]) == posts_again
        assert_empty(sup)


async def test_on_drop_may_cancel_who_came(virtual, tmp_path):
    handler = Answering()

    def on_drop(run, messages):
        sup.cancel(session="a", reason="all of it", queued=True)

    lane = SESSION(handler=handler, queue_limit=1, when_full="drop_oldest", on_drop=on_drop)
    async with Supervisor(tmp_path, lanes=[lane]) as sup:
        runs = [sup.post("session:a", text) for text in "123"]
        assert [(await run.wait()).state for run in runs] == ["cancelled"] * 3
        assert_empty(sup)


@pytest.mark.parametrize("ends", ["target", "both"])
async def test_a_message_whose_reader_ends_while_room_is_made_is_not_lost(virtual, tmp_path, ends):
    asked: list[str] = []

    async def handler(ctx, messages):
        asked.append(messages[0].body)
        if messages[0].body == "1":
            await anyio.sleep(1000)

    def on_drop(run, messages):
        first.cancel()

    lane = SESSION(
        handler=handler, when_busy="steer", queue_limit=1, when_full="drop_oldest", on_drop=on_drop, timeout=2000.0
    )
    async with Supervisor(tmp_path, lanes=[lane]) as sup:
        first = sup.post("session:a", "1")
        if ends == "target":
            await virtual.settle()  # else it is asked to end before its first step
        sup.post("session:a", "2")
        last = sup.post("session:a", "3")
        assert (await last.wait()).state == "done"
        assert asked[-1] == "3"
        assert_empty(sup)


# summarize


async def test_a_summary_goes_in_front_of_the_messages_that_come_next(virtual, tmp_path):
    handler, dropped = Answering(), Dropped()
    lane = SESSION(handler=handler, queue_limit=2, when_full="summarize", on_drop=dropped)
    async with Supervisor(tmp_path, lanes=[lane]) as sup:
        runs = [sup.post("session:a", text) for text in "123456"]
        assert dropped.given == ["2", "(2)", "3", "((2) 3)", "4"]
        assert "dropped, and given to on_drop to be summarized" in await told(runs[1])
        await runs[5].result()
        assert handler.asked == ["1", "(((2) 3) 4)+5", "6"]
        assert_empty(sup)


async def test_a_summary_may_be_a_message_of_its_own_or_nothing(virtual, tmp_path):
    asked: list[list[Message]] = []

    async def handler(ctx, messages):
        asked.append(messages)
        await anyio.sleep(10)

    summaries = iter([Message("all of it", "log"), None])
    lane = SESSION(handler=handler, queue_limit=1, when_full="summarize", on_drop=lambda run, messages: next(summaries))
    async with Supervisor(tmp_path, lanes=[lane]) as sup:
        last = [sup.post("session:a", text) for text in "123"][-1]
        await last.result()
        # It goes where what was dropped would have gone: one run answers one route.
        assert asked == [[Message("1")], [Message("all of it"), Message("3")]]
        for text in "45":
            sup.post("session:a", text)
        last = sup.post("session:a", "6")
        await last.result()
        assert asked[2:] == [[Message("4")], [Message("6")]]


async def test_a_summary_never_crosses_routes(virtual, tmp_path):
    handler, dropped = Answering(), Dropped()
    lane = SESSION(handler=handler, queue_limit=2, when_full="summarize", on_drop=dropped)
    async with Supervisor(tmp_path, lanes=[lane]) as sup:
        said = [("1", None), ("2", "mail"), ("3", "chat"), ("4", "mail"), ("5", "log")]
        last = [sup.post("session:a", Message(text, route)) for text, route in said][-1]
        await last.result()
        assert dropped.given == ["2", "3"]
        assert handler.asked == ["1", "(2)+4", "5"]


async def test_a_summary_never_crosses_sessions(virtual, tmp_path):
    handler, dropped = Answering(), Dropped()
    lane = WORK(handler=handler, queue_limit=2, when_full="summarize", on_drop=dropped)
    async with Supervisor(tmp_path, lanes=[lane]) as sup:
        last = [
            sup.post("work", text, session=session)
            for text, session in (("1", None), ("2", "a"), ("3", "b"), ("4", "a"), ("5", None))
        ][-1]
        await last.result()
        assert dropped.given == ["2", "3"]
        assert handler.asked == ["1", "(2)+4", "5"]


async def test_a_summary_reaches_the_one_that_starts_because_the_one_before_it_was_dropped(virtual, tmp_path):
    asked: list[str] = []

    async def handler(ctx, messages):
        asked.append("+".join(message.body for message in messages))
        if asked == ["1"]:
            raise LookupError("once")
        await anyio.sleep(10)

    retry = RetrySpec(2, wait=60.0)
    lane = SESSION(handler=handler, queue_limit=2, when_full="summarize", on_drop=Dropped(), retry=retry)
    async with Supervisor(tmp_path, lanes=[lane]) as sup:
        first = sup.post("session:a", "1")
        await anyio.sleep(1)
        assert (first.state, first.attempt) == ("queued", 2)
        sup.post("session:a", "2")
        last = sup.post("session:a", "3")
        assert "dropped" in await told(first)
        await last.result()
        assert asked == ["1", "(1)+2", "3"]
        assert_empty(sup)
