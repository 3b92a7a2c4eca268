"""What a host does from its hooks, whatever set them off: runs end, nobody is lost, nothing wedges.

A hook is called for one of several things that one change has done: a run has ended and another one starts, the first
of two unread messages starts, a child was told to end and its parent is tried again. It is called when all of that is
done; whatever it cancels, submits or posts, the rest goes on from what is true afterwards. Beside these, promises at
other edges: of draining, of a reset, of a refused wait, of idle time.
"""

from __future__ import annotations

from functools import partial

import anyio
import pytest

from lanes import InvalidLane, LaneSpec, Message, RetrySpec, Run, RunState, SessionLayout
from locks import DeadlockError
from runtime import Supervisor
from tests.poll import eventually
from tests.supervised import about, assert_empty, texts

pytestmark = pytest.mark.backends("asyncio", "trio")

SESSION = partial(LaneSpec, "session:*", timeout=100.0)


async def sleeps(ctx, seconds=1.0, value=None):
    await anyio.sleep(seconds)
    return value


async def answers(ctx, messages):
    await anyio.sleep(1)
    return "+".join(message.body for message in messages)


def endings(*runs):
    """What became of each."""
    return [(run.outcome.state.value, run.reason) if run.outcome is not None else None for run in runs]


DONE, BY_HOOK = ("done", ""), ("cancelled", "by a hook")


# A message that nobody has read is cancelled by a hook


async def test_a_hook_told_of_the_readers_end_cancels_what_it_left_unread(virtual, tmp_path):
    def ended(run):
        if run is runs[0]:
            runs[1].cancel("by a hook")

    lane = SESSION(handler=answers, when_busy="steer")
    async with Supervisor(tmp_path, lanes=[lane], on_run_end=ended) as sup:
        runs = [sup.post("session:a", "1")]
        await virtual.settle()
        runs += [sup.post("session:a", text) for text in "23"]
        for run in runs:
            await run.wait()
        assert endings(*runs) == [DONE, BY_HOOK, DONE]
        assert await sup.post("session:a", "4").result() == "4"
        assert_empty(sup)


class FailsOnce:
    """A handler whose first attempt fails after a second, and ends its child with it; the next one reads its inbox."""

    def __init__(self, *, reads_before_it_fails: bool = False) -> None:
        self.reads_first = reads_before_it_fails
        self.child: Run | None = None
        self.attempts: list[int] = []

    async def __call__(self, ctx, messages):
        self.attempts.append(ctx.run.attempt)
        texts = [message.body for message in messages]
        if ctx.run.attempt == 1 and texts[0] == "1":
            self.child = ctx.submit("side", sleeps)
            await anyio.sleep(1)
            if self.reads_first:
                ctx.inbox.take()
            raise ConnectionError("not this time")
        await anyio.sleep(1)
        return "+".join(texts + [message.body for message in ctx.inbox.take()])


RETRIED = partial(SESSION, when_busy="steer", retry=RetrySpec(attempts=2, wait=1.0))
SIDE = LaneSpec("side", capacity=1)


async def test_a_hook_cancels_an_unread_message_while_its_reader_is_put_back_to_be_tried_again(virtual, tmp_path):
    def ended(run):
        if run is handler.child:
            runs[1].cancel("by a hook")

    handler = FailsOnce()
    async with Supervisor(tmp_path, lanes=[RETRIED(handler=handler), SIDE], on_run_end=ended) as sup:
        keeps_the_child_queued = sup.submit("side", sleeps, 50.0)
        runs = [sup.post("session:a", "1")]
        await virtual.settle()
        runs += [sup.post("session:a", text) for text in "23"]
        assert await runs[0].result() == "1+3"
        assert endings(*runs) == [DONE, BY_HOOK, DONE]
        await keeps_the_child_queued.wait()
        assert_empty(sup)


async def test_the_start_of_the_first_unread_message_cancels_the_second_one_where_no_session_is_named(
    virtual, tmp_path
):
    def started(run):
        if run in runs[1:2]:
            runs[2].cancel("by a hook")

    runs: list[Run] = []
    lane = LaneSpec("work", handler=answers, when_busy="steer", capacity=1)
    async with Supervisor(tmp_path, lanes=[lane], on_run_start=started) as sup:
        for text in "1234":
            runs.append(sup.post("work", text))
            await virtual.settle()
        assert [run.answered_by for run in runs[1:]] == [runs[0].id] * 3
        for run in runs:
            await run.wait()
        assert endings(*runs) == [DONE, DONE, BY_HOOK, DONE]
        assert_empty(sup)


# A run that is about to be tried again is cancelled by a hook


async def test_a_hook_told_of_a_childs_end_cancels_its_parent_which_was_about_to_be_tried_again(virtual, tmp_path):
    def ended(run):
        if run is handler.child:
            first.cancel("by a hook")

    handler = FailsOnce()
    async with Supervisor(tmp_path, lanes=[RETRIED(handler=handler), SIDE], on_run_end=ended) as sup:
        keeps_the_child_queued = sup.submit("side", sleeps, 50.0)
        first = sup.post("session:a", "1")
        following = sup.post("session:a", "2", when_busy="queue")
        with anyio.fail_after(20):
            await first.wait()
            assert endings(first) == [BY_HOOK]
            assert await following.result() == "2"
        assert handler.attempts == [1, 1]
        await keeps_the_child_queued.wait()
        assert_empty(sup)


@pytest.mark.failure("X1")
async def test_what_was_said_to_a_run_that_a_hook_cancels_before_its_next_attempt_is_answered(virtual, tmp_path):
    def ended(run):
        if run is handler.child:
            first.cancel("by a hook")

    handler = FailsOnce(reads_before_it_fails=True)
    async with Supervisor(tmp_path, lanes=[RETRIED(handler=handler), SIDE], on_run_end=ended) as sup:
        keeps_the_child_queued = sup.submit("side", sleeps, 50.0)
        first = sup.post("session:a", "1")
        await virtual.settle()
        said = sup.post("session:a", "2")
        assert said.answered_by == first.id
        with anyio.fail_after(20):
            await said.wait()
        assert endings(first, said) == [BY_HOOK, DONE]
        assert await sup.post("session:a", "3").result() == "3"
        await keeps_the_child_queued.wait()
        assert_empty(sup)


# A run that is ready is cancelled, and a hook has its group admit somebody


async def test_a_ready_run_that_was_cancelled_is_not_started_by_what_a_hook_submits(virtual, tmp_path):
    began = []

    async def body(ctx, name):
        began.append(name)

    def ended(run):
        if run is cancelled:
            more.append(sup.submit("work", body, "submitted by the hook"))

    more: list[Run] = []
    cancelled = None
    async with Supervisor(tmp_path, lanes=[LaneSpec("work", capacity=10)], on_run_end=ended) as sup:
        sup._scheduler.board.throttle.slow("test")
        sup.submit("work", body, "first")
        cancelled = sup.submit("work", body, "cancelled")
        virtual.advance(10.0)  # one more may start by now, but the loop has had no time to see to it
        cancelled.cancel("not any more")
        await more[0].wait()
        assert sorted(began) == ["first", "submitted by the hook"]
        assert (cancelled.state, cancelled.reason) == (RunState.CANCELLED, "not any more")
        assert_empty(sup)


@pytest.mark.failure("X1")
async def test_a_hook_that_cancels_an_interrupting_run_comes_when_that_has_superseded(virtual, tmp_path):
    lane = SESSION(handler=answers, when_busy="interrupt")
    async with Supervisor(tmp_path, lanes=[lane], on_wait=lambda run: run.cancel("by a hook")) as sup:
        underway = sup.post("session:a", "1")
        await virtual.settle()
        interrupting = sup.post("session:a", "2")
        await underway.wait()
        superseded = (RunState.SUPERSEDED, f"superseded by run {interrupting.id}")
        assert endings(underway, interrupting) == [superseded, BY_HOOK]
        assert_empty(sup)


# The loop ends


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_what_is_queued_when_the_loop_is_torn_down_never_begins(backend, tmp_path):
    begun: list[str] = []
    runs: list[Run] = []

    async def handler(ctx, messages):
        begun.append(messages[0].body)
        await ctx.session.append({"text": messages[0].body})
        await anyio.sleep_forever()

    async def main():
        sup = Supervisor(tmp_path, lanes=[SESSION(handler=handler)])
        await sup.start()
        runs.extend(sup.post("session:a", str(number)) for number in range(6))
        await eventually(lambda: begun)
        return sup

    sup = anyio.run(main, backend=backend)
    assert begun == ["0"]
    assert [run.state for run in runs] == [RunState.CANCELLED] * 6
    assert_empty(sup)


# What is left of dropped messages


async def test_a_summary_goes_the_way_of_what_was_dropped_whatever_route_it_names(virtual, tmp_path):
    told = []

    async def handler(ctx, messages):
        told.append([(message.body, message.route) for message in messages])
        await anyio.sleep(1)

    def summary(run, messages):
        return Message("/".join(message.body for message in messages), route="elsewhere")

    lane = SESSION(handler=handler, queue_limit=1, when_full="summarize", on_drop=summary)
    async with Supervisor(tmp_path, lanes=[lane]) as sup:
        runs = [sup.post("session:a", Message(text, route="chat")) for text in "12345"]
        await runs[-1].wait()
        assert told == [[("1", "chat")], [("2/3/4", "chat"), ("5", "chat")]]
        assert_empty(sup)


# Draining


@pytest.mark.parametrize("submitted", ["before", "after"])
async def test_while_draining_a_child_goes_before_queued_work_that_is_not_started_any_more(
    virtual, tmp_path, submitted
):
    async def parent(ctx):
        if submitted == "after":
            await anyio.sleep(2)
        return await ctx.submit("main", sleeps, 1.0, "from the child", session="a").result()

    async with Supervisor(tmp_path, lanes=[LaneSpec("narrow", capacity=1)]) as sup:
        sup.submit("narrow", sleeps, 1.0)
        front = sup.submit("narrow", sleeps, session="a")
        waits_for_its_child = sup.submit("main", parent)
        await virtual.settle()
        assert len(sup.runs()) == (4 if submitted == "before" else 3)
        report = await sup.drain(20.0)
        assert (report.cancelled, report.unstarted) == (0, (front,))
        assert endings(waits_for_its_child, front) == [DONE, None]
        assert waits_for_its_child.outcome is not None
        assert waits_for_its_child.outcome.value == "from the child"
    assert front.state is RunState.CANCELLED
    assert_empty(sup)


@pytest.mark.parametrize("timeout", [float("nan"), -1, "1"])
async def test_a_drain_that_is_refused_for_its_timeout_has_refused_no_work(virtual, tmp_path, timeout):
    async with Supervisor(tmp_path) as sup:
        with pytest.raises(InvalidLane, match="timeout"):
            await sup.drain(timeout)
        assert await sup.submit("main", sleeps, 1.0, "served").result() == "served"


# Waits that would never end


async def test_a_run_whose_wait_was_refused_says_so(virtual, tmp_path):
    async def asks(ctx):
        with pytest.raises(DeadlockError):
            await sup.run("narrow", sleeps)
        refused = sup.find(ctx.run.id + 1)
        assert refused is not None
        return refused

    async with Supervisor(tmp_path, lanes=[LaneSpec("narrow", capacity=1)]) as sup:
        refused = await sup.submit("narrow", asks).result()
        assert endings(refused) == [("cancelled", "waiting for it would never have ended")]
        assert_empty(sup)


# A reset, and another key of the same file


def one_file_for_both(root):
    return SessionLayout(root, path=lambda key: "both.jsonl" if key in ("x", "y") else f"{key}.jsonl")


async def test_a_reset_ends_the_runs_of_another_key_that_has_the_same_file(virtual, tmp_path):
    async def cleans_up(ctx):
        try:
            await anyio.sleep(50)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1.5)

    async with Supervisor(one_file_for_both(tmp_path), lanes=[SESSION(grace=2.0)]) as sup:
        run, beside = sup.submit("session:x", cleans_up), sup.submit("session:z", sleeps, 10.0)
        queued = sup.submit("session:x", sleeps)
        await virtual.settle()
        began = virtual.now()
        await sup.reset("y")
        assert virtual.now() - began == about(1.5)
        assert endings(run, queued) == [("cancelled", "ended by a reset of its session")] * 2
        assert await sup.submit("session:x", sleeps, 1.0, "afresh").result() == "afresh"
        await beside.result()
        assert_empty(sup)


async def test_a_reset_awaited_by_a_run_of_another_key_that_has_the_same_file_is_refused(virtual, tmp_path):
    async def resets(ctx):
        with pytest.raises(DeadlockError):
            await sup.reset("y")
        await ctx.session.append({"text": "goes on"})
        return [run.id for run in sup.runs()] == [ctx.run.id]

    async with Supervisor(one_file_for_both(tmp_path), lanes=[SESSION()]) as sup:
        assert await sup.submit("session:x", resets).result()
        assert texts(sup, "y") == ["goes on"]
        assert_empty(sup)


# Idle time


async def parent_of(ctx, child_s, then_s):
    await ctx.submit("children", sleeps, child_s).result()
    await anyio.sleep(then_s)


IDLE = [LaneSpec("parents", idle_timeout=1.0, timeout=100.0), LaneSpec("children", timeout=100.0)]


@pytest.mark.parametrize("child_s", [5.0, 5.5, 5.9])
async def test_a_run_that_waits_for_its_child_is_not_idle_and_may_be_idle_afterwards_as_long_as_ever(
    virtual, tmp_path, child_s
):
    async with Supervisor(tmp_path, lanes=IDLE) as sup:
        run = sup.submit("parents", parent_of, child_s, 0.9)
        await run.wait()
        assert endings(run) == [DONE]
        assert_empty(sup)


async def test_a_run_that_has_waited_for_its_child_is_idle_when_it_does_nothing_afterwards(virtual, tmp_path):
    async with Supervisor(tmp_path, lanes=IDLE) as sup:
        run = sup.submit("parents", parent_of, 5.0, 20.0)
        outcome = await run.wait()
        assert outcome.state is RunState.TIMED_OUT
        assert 5.0 < outcome.ran_s < 7.0
        assert_empty(sup)


# A note, which conducts nothing


async def test_a_note_for_a_session_supersedes_nobody_on_a_lane_that_interrupts(virtual, tmp_path):
    lanes = [SESSION(when_busy="interrupt"), LaneSpec("notes", when_busy="interrupt", capacity=1)]
    async with Supervisor(tmp_path, lanes=lanes) as sup:
        conducts = sup.submit("session:a", sleeps, 5.0)
        notes = [sup.submit(lane, sleeps, session="a", turn=False) for lane in ("session:a", "notes", "notes")]
        for run in (conducts, *notes):
            await run.wait()
        assert endings(conducts, *notes) == [DONE] * 4
        assert_empty(sup)
