"""Trying again: bounded, in order, each attempt fenced from the one before, and nothing of that one kept in memory."""

from __future__ import annotations

import contextvars
import gc
import math
import weakref
from contextlib import aclosing

import anyio
import pytest
from anyio import get_cancelled_exc_class, to_thread
from structlog.testing import capture_logs

from lanes import InvalidLane, LaneFull, LaneSpec, Message, RetrySpec, RunCancelled, RunState, RunTimedOut
from locks import LeaseLost, LeaseTimeout, LockRegistry, RunEnded
from runtime import Supervisor
from tests.supervised import Shielded, about, assert_empty, gone, sleeps, texts

RETRY = RetrySpec(3, wait=2.0, max_wait=60.0, on=ConnectionError)
pytestmark = pytest.mark.backends("asyncio", "trio")


async def answers(ctx, messages):
    for message in messages:
        await ctx.session.append({"text": message.body})


def specs(retry=RETRY, **options):
    return [
        LaneSpec("session:*", handler=answers, timeout=10.0, grace=2.0, retry=retry, **options),
        LaneSpec("tools", capacity=1, timeout=10.0, grace=2.0, retry=retry, **options),
        LaneSpec("plain:*", timeout=10.0, grace=2.0),
    ]


@pytest.fixture
async def sup(virtual, tmp_path):
    async with Supervisor(tmp_path, lanes=specs()) as sup:
        yield sup
        assert_empty(sup)


@pytest.fixture
def no_jitter(monkeypatch):
    """Waits are the doubled ones, without the random part."""
    monkeypatch.setattr("random.random", lambda: 0.0)


class Fails:
    """A body that fails so many times, then returns; remembers the context of each attempt, and when it began."""

    def __init__(self, times=math.inf, error=ConnectionError, after=0.0) -> None:
        self.times = times
        self.error = error
        self.after = after
        self.contexts: list = []
        self.began: list[float] = []

    async def __call__(self, ctx, *args):
        self.contexts.append(ctx)
        self.began.append(anyio.current_time())
        await anyio.sleep(self.after)
        if len(self.contexts) <= self.times:
            raise self.error("no route to the model")
        return len(self.contexts)


def ended(run):
    """The outcome of a run that has one."""
    assert run.outcome is not None
    return run.outcome


async def until_backoff(run):
    """Wait, in virtual time, until an attempt has failed and the run waits for the next one."""
    while not (run.state is RunState.QUEUED and run.attempt > 1):
        await anyio.sleep(0.01)


# How often, and when


async def test_a_body_that_fails_twice_is_called_three_times_and_its_value_is_the_runs(sup, virtual, no_jitter):
    body = Fails(2, after=1.0)
    run = sup.submit("session:a", body)
    assert await run.result() == 3
    assert body.began == about([1000.0, 1003.0, 1008.0])
    outcome = ended(run)
    assert (outcome.attempts, outcome.state, outcome.reason) == (3, RunState.DONE, "")
    assert (outcome.ran_s, outcome.waited_s) == about((3.0, 6.0))
    assert outcome.ran_s + outcome.waited_s == about(virtual.now() - run.enqueued_at)


@pytest.mark.failure("E13")
async def test_a_body_that_always_fails_is_called_so_many_times_and_its_lane_goes_on(sup, virtual):
    body = Fails()
    run = sup.submit("session:a", body)
    with anyio.fail_after(600.0), pytest.raises(ConnectionError, match="no route to the model"):
        await run.result()
    assert (len(body.contexts), run.attempt, ended(run).attempts) == (3, 3, 3)
    assert virtual.now() < 1000.0 + 60.0
    assert await sup.submit("session:a", Fails(0)).result() == 1


async def test_waits_double_with_jitter_and_stay_within_their_maximum():
    spec = RetrySpec(20, wait=1.0, max_wait=30.0)
    for attempt, least in enumerate([1, 2, 4, 8, 16, 29, 29], 1):
        waits = {spec.wait_after(attempt) for _ in range(50)}
        assert least <= min(waits) and max(waits) <= min(least + 1, 30)
        assert len(waits) > 10, "runs that failed together must not come back together"


@pytest.mark.parametrize("attempt", [1, 5, 1025, 10**5])
async def test_without_a_wait_it_is_tried_again_at_once_however_often(attempt):
    assert RetrySpec(10**6, wait=0.0, max_wait=60.0).wait_after(attempt) == 0.0


async def test_a_wait_as_long_as_its_maximum_is_that_long_each_time():
    assert {RetrySpec(9, wait=5.0, max_wait=5.0).wait_after(n) for n in range(1, 2000)} == {5.0}


async def test_while_it_waits_it_says_why_and_while_it_runs_again_it_says_nothing(sup, no_jitter):
    reasons = []

    async def body(ctx):
        reasons.append((ctx.run.attempt, ctx.run.reason))
        raise ConnectionError("reset by peer")

    run = sup.submit("session:a", body)
    await until_backoff(run)
    assert run.reason == "attempt 1 of 3 failed (ConnectionError: reset by peer); again in 2 s"
    assert (run.started_at, run.deadline, run.outcome) == (None, None, None)
    await run.wait()
    assert reasons == [(1, ""), (2, ""), (3, "")]


async def test_each_attempt_has_the_whole_run_budget(sup, no_jitter):
    deadlines = []

    async def body(ctx):
        deadlines.append(ctx.run.deadline - anyio.current_time())
        await anyio.sleep(9.0)
        raise ConnectionError

    run = sup.submit("session:a", body)
    await run.wait()
    assert run.state is RunState.FAILED
    assert deadlines == about([10.0] * 3)


async def test_the_queue_budget_counts_to_the_first_start_only(virtual, tmp_path, no_jitter):
    async with Supervisor(tmp_path, lanes=specs(queue_timeout=1.0)) as sup:
        run = sup.submit("session:a", Fails(2))
        late = sup.submit("session:a", Fails(0))
        assert await run.result() == 3
        assert ended(late).state is RunState.TIMED_OUT
        assert ended(late).waited_s == about(1.0)


# What is worth it


class Unusable(ConnectionError):
    retryable = False


class Trap(ConnectionError):
    @property
    def retryable(self):
        raise SystemError("trap")


@pytest.mark.failure("D4")
@pytest.mark.parametrize(
    "error",
    [
        ValueError("a bug"),
        Unusable("for good"),
        Trap("hostile"),
        LeaseLost("lost"),
        ExceptionGroup("several", [ConnectionError(), Unusable()]),
        ExceptionGroup("several", [ExceptionGroup("deep", [ConnectionError(), LeaseLost("lost")])]),
    ],
    ids=["another kind", "unusable", "hostile", "lock error", "group", "nested group"],
)
async def test_an_error_that_is_not_worth_it_is_not_retried(virtual, tmp_path, error):
    calls = []

    async def body(ctx):
        calls.append(ctx)
        raise error

    async with Supervisor(tmp_path, lanes=specs(RetrySpec(3, on=(ConnectionError, LeaseLost, LeaseTimeout)))) as sup:
        run = sup.submit("session:a", body)
        assert (await run.wait()).state is RunState.FAILED
        assert (len(calls), ended(run).attempts) == (1, 1)
        assert [one.run for one in sup.parked()] == [run]


@pytest.mark.parametrize(
    "error",
    [ConnectionResetError("its subclass"), ExceptionGroup("several", [ConnectionError(), ConnectionResetError()])],
    ids=["subclass", "group"],
)
async def test_what_is_of_the_kind_is_retried(sup, error):
    async def body(ctx):
        if ctx.run.attempt == 1:
            raise error
        return "well"

    assert await sup.submit("session:a", body).result() == "well"


async def test_a_lane_without_retry_tries_nothing_again_and_parks_nothing(sup):
    body = Fails()
    assert (await sup.submit("plain:a", body).wait()).attempts == 1
    assert (len(body.contexts), sup.parked()) == (1, [])


@pytest.mark.parametrize("error", [KeyError, get_cancelled_exc_class], ids=["failure", "cancellation"])
async def test_what_was_asked_to_end_is_not_tried_again(sup, error):
    async def body(ctx):
        try:
            await anyio.sleep_forever()
        except get_cancelled_exc_class():
            if error is KeyError:
                raise ConnectionError("in its clean-up") from None
            raise

    run = sup.submit("session:a", body)
    await anyio.sleep(1.0)
    run.cancel("enough")
    with pytest.raises(RunCancelled, match="enough"):
        await run.result()
    assert (ended(run).attempts, sup.parked()) == (1, [])


# Timeouts


@pytest.mark.parametrize("timeouts, attempts", [(False, 1), (True, 3)])
async def test_an_overrun_is_retried_only_where_that_is_asked_for(virtual, tmp_path, no_jitter, timeouts, attempts):
    async with Supervisor(tmp_path, lanes=specs(RetrySpec(3, wait=2.0, timeouts=timeouts))) as sup:
        run = sup.submit("session:a", sleeps)
        with pytest.raises(RunTimedOut, match="timed out after 10 s"):
            await run.result()
        assert ended(run).attempts == attempts
        assert ended(run).ran_s == about(10.0 * attempts)
        assert [one.run for one in sup.parked()] == [run] * timeouts


async def test_a_body_that_was_abandoned_is_not_called_again_beside_itself_but_parked(virtual, tmp_path):
    async with Supervisor(tmp_path, lanes=specs(RetrySpec(3, timeouts=True))) as sup:
        body = Shielded()
        run = sup.submit("session:a", body)
        assert (await run.wait()).state is RunState.ABANDONED
        assert (ended(run).attempts, [one.run for one in sup.parked()]) == (1, [run])
        body.release()
        await gone(sup)


async def test_an_abandoned_child_of_a_cancelled_parent_is_not_parked(virtual, tmp_path):
    async with Supervisor(tmp_path, lanes=specs(RetrySpec(3, timeouts=True))) as sup:
        body = Shielded()
        run = sup.submit("session:a", body)
        await body.started.wait()
        run.cancel()
        assert (await run.wait()).state is RunState.ABANDONED
        assert sup.parked() == []
        body.release()
        await gone(sup)


# While it waits for its next attempt


async def test_place_and_slot_are_free_meanwhile(sup, no_jitter):
    run = sup.submit("tools", Fails(1))
    await until_backoff(run)
    now = sup.statistics()
    assert (now.lanes["tools"].running, now.lanes["tools"].queued, now.groups["main"].running) == (0, 1, 0)
    assert await sup.submit("tools", Fails(0)).result() == 1
    assert run.outcome is None
    assert await run.result() == 2


@pytest.mark.on_store
async def test_the_session_keeps_its_order_meanwhile(sup, virtual, no_jitter):
    order = []

    async def body(ctx, name):
        if name == "first" and ctx.run.attempt < 3:
            raise ConnectionError
        order.append(name)

    runs = [sup.submit("session:a", body, name) for name in ("first", "second", "third")]
    elsewhere = sup.submit("plain:x", body, "another lane", session="a")
    await sup.submit("session:b", body, "another session").wait()
    for run in (*runs, elsewhere):
        await run.wait()
    assert order == ["another session", "first", "second", "third", "another lane"]


async def test_a_cancelled_one_ends_at_once_and_the_next_one_goes_on(sup, virtual, no_jitter):
    body = Fails(after=1.0)
    run, following = sup.submit("session:a", body), sup.submit("session:a", Fails(0))
    await until_backoff(run)
    at = virtual.now()
    assert run.cancel("enough")
    assert (ended(run).state, ended(run).reason, ended(run).attempts) == (RunState.CANCELLED, "enough", 1)
    assert (ended(run).ran_s, ended(run).waited_s) == about((1.0, at - 1001.0))
    assert await following.result() == 1
    assert virtual.now() == at
    assert (len(body.contexts), sup.parked()) == (1, [])


async def test_an_interrupting_message_goes_before_the_next_attempt(sup, no_jitter):
    run = sup.submit("session:a", Fails(1))
    await until_backoff(run)
    urgent = sup.post("session:a", "now", when_busy="interrupt")
    await urgent.result()
    assert run.outcome is None
    assert await run.result() == 2
    assert texts(sup, "a") == ["now"]


@pytest.mark.parametrize("policy", ["queue", "collect", "steer"])
async def test_other_messages_wait_behind_the_next_attempt(sup, policy, no_jitter):
    run = sup.submit("session:a", Fails(1))
    await until_backoff(run)
    posted = sup.post("session:a", "later", when_busy=policy)
    assert posted is not run
    await run.result()
    assert posted.outcome is None
    await posted.result()


async def test_a_message_is_not_collected_into_one_that_is_tried_again(virtual, tmp_path):
    answered = []

    async def handler(ctx, messages):
        answered.append([m.body for m in messages])
        if len(answered) == 1:
            raise ConnectionError

    lanes = [LaneSpec("desk", handler=handler, when_busy="collect", retry=RETRY)]
    async with Supervisor(tmp_path, lanes=lanes) as sup:
        first = sup.post("desk", "one")
        await until_backoff(first)
        second = sup.post("desk", "two")
        await first.wait()
        await second.wait()
        assert (first is second, sorted(answered)) == (False, [["one"], ["one"], ["two"]])


async def test_a_drain_does_not_wait_for_the_next_attempt_and_names_it(virtual, tmp_path, no_jitter):
    sup = Supervisor(tmp_path, lanes=specs())
    await sup.start()
    run = sup.submit("session:a", Fails())
    await until_backoff(run)
    at = virtual.now()
    report = await sup.drain(30.0)
    assert (report.unstarted, virtual.now()) == ((run,), at)
    await sup.stop()
    assert (ended(run).state, ended(run).attempts) == (RunState.CANCELLED, 1)
    assert virtual.now() == at


async def test_one_that_fails_while_draining_is_parked_instead(virtual, tmp_path):
    sup = Supervisor(tmp_path, lanes=specs())
    await sup.start()
    run = sup.submit("session:a", Fails(after=1.0))
    await anyio.sleep(0.5)
    report = await sup.stop()
    assert (report.finished, ended(run).state, ended(run).attempts) == (1, RunState.FAILED, 1)
    assert [one.run for one in sup.parked()] == [run]


async def test_a_queue_that_drops_the_oldest_drops_it_too_and_tells(virtual, tmp_path, no_jitter):
    async with Supervisor(tmp_path, lanes=specs(queue_limit=2, when_full="drop_oldest")) as sup:
        run = sup.submit("session:a", Fails(after=1.0))
        kept = [sup.submit("session:a", Fails(0))]
        await until_backoff(run)
        kept.append(sup.submit("session:a", Fails(0)))
        assert ended(run).state is RunState.CANCELLED
        assert ended(run).reason.startswith("dropped: lane 'session:a' was full (2 queued) when run 3 came")
        assert [await one.result() for one in kept] == [1, 1]


async def test_waiting_attempts_count_for_the_limit_of_the_queue(virtual, tmp_path):
    async with Supervisor(tmp_path, lanes=specs(queue_limit=1)) as sup:
        run = sup.submit("session:a", Fails(1))
        await until_backoff(run)
        with pytest.raises(LaneFull, match="1 queued; allowed: 1"):
            sup.submit("session:a", Fails(0))
        await run.result()


# Earlier attempts are fenced


@pytest.mark.on_store
async def test_nothing_of_an_earlier_attempt_reaches_the_session_or_the_listeners(sup, no_jitter):
    body = Fails(1, after=1.0)
    run = sup.submit("session:a", body)
    heard = []

    async def listen():
        heard.extend([event async for event in run.events()])

    async def checks_the_earlier_one():
        (earlier,) = body.contexts
        with pytest.raises(RunEnded):
            await earlier.session.append({"text": "late"})
        with pytest.raises(RunEnded):
            await earlier.session_of("b").append({"text": "late"})
        with pytest.raises(RunEnded):
            await to_thread.run_sync(earlier.session.append_sync, {"text": "late from a thread"})
        with pytest.raises(RunEnded):
            async with earlier.session.lease():
                pass
        for detached in (False, True):
            with pytest.raises(RunEnded, match="has ended: nothing submitted to lane 'tools'"):
                earlier.submit("tools", sleeps, detached=detached)
        with pytest.raises(RunEnded, match="has ended: nothing started"):
            await earlier.run_process(["true"])
        with pytest.raises(anyio.EndOfStream):
            earlier.inbox.receive_nowait()
        earlier.emit("late")
        assert earlier.cancelled

    async with anyio.create_task_group() as group:
        group.start_soon(listen)
        await until_backoff(run)
        await checks_the_earlier_one()
        while run.state is not RunState.RUNNING:
            await anyio.sleep(0.1)
        del body.contexts[1:]
        await checks_the_earlier_one()
        body.contexts.append(None)
        await run.wait()
    assert (heard, sup.statistics().late_events_dropped, sup.statistics().late_writes_refused) == ([], 2, 14)
    assert [one.id for one in sup.runs()] == []


async def test_an_earlier_attempt_moves_no_deadline_of_the_next_one(virtual, tmp_path, no_jitter):
    contexts = []

    async def body(ctx):
        contexts.append(ctx)
        if len(contexts) == 1:
            raise ConnectionError
        await anyio.sleep(2.0)
        contexts[0].progress()
        await anyio.sleep_forever()

    async with Supervisor(tmp_path, lanes=[LaneSpec("tools", timeout=60.0, idle_timeout=5.0, retry=RETRY)]) as sup:
        run = sup.submit("tools", body)
        assert (await run.wait()).reason == "made no progress for 5 s"
        assert virtual.now() == about(1000.0 + 2.0 + 5.0)


async def test_an_earlier_attempts_children_end_with_it(sup, no_jitter):
    children = []

    async def body(ctx):
        children.append(ctx.submit("plain:child", sleeps))
        await anyio.sleep(1.0)
        if len(children) == 1:
            raise ConnectionError("first")
        return ended(children[0]).reason

    run = sup.submit("session:a", body)
    assert await run.result() == "ended with its parent, run 1 (tries again: ConnectionError: first)"
    assert [(await child.wait()).state for child in children] == [RunState.CANCELLED] * 2


async def test_a_child_that_is_tried_again_ends_with_its_parent(sup, no_jitter):
    body = Fails()

    async def parent(ctx):
        child = ctx.submit("tools", body)
        await until_backoff(child)
        return child

    child = await sup.submit("plain:a", parent).result()
    assert (child.state, child.reason) == (RunState.CANCELLED, "ended with its parent, run 1 (has ended)")
    assert len(body.contexts) == 1


async def test_a_parent_waits_through_all_attempts_of_its_child(sup, no_jitter):
    async def parent(ctx):
        return await ctx.submit("tools", Fails(1)).result()

    assert await sup.submit("plain:a", parent).result() == 2


async def test_variables_that_an_attempt_sets_are_not_seen_by_the_next_one(sup):
    variable = contextvars.ContextVar("variable", default="unset")
    seen = []

    async def body(ctx):
        seen.append(variable.get())
        variable.set("set by an attempt")
        raise ConnectionError

    variable.set("the submitter's")
    await sup.submit("session:a", body).wait()
    assert seen == ["the submitter's"] * 3


# Messages that were steered into a failed attempt


async def test_what_a_failed_attempt_read_from_its_inbox_is_given_to_the_next_one(virtual, tmp_path, no_jitter):
    read = []

    async def handler(ctx, messages):
        read.append([m.body for m in messages])
        await anyio.sleep(1.0)
        read.append([m.body for m in ctx.inbox.take()])
        await anyio.sleep(1.0)
        if ctx.run.attempt < 3:
            raise ConnectionError
        return "answered"

    lanes = [LaneSpec("session:*", handler=handler, when_busy="steer", retry=RETRY)]
    async with Supervisor(tmp_path, lanes=lanes) as sup:
        run = sup.post("session:a", "one")
        await anyio.sleep(0.5)
        read_twice = sup.post("session:a", "two")
        await anyio.sleep(1.0)
        unread_at_first = sup.post("session:a", "three")
        assert (read_twice.state, unread_at_first.state) == (RunState.RUNNING, RunState.QUEUED)
        await until_backoff(run)
        assert (read_twice.state, read_twice.answered_by, read_twice.started_at) == (RunState.QUEUED, run.id, None)
        assert [await one.result() for one in (run, read_twice, unread_at_first)] == ["answered"] * 3
        assert read == [["one"], ["two"], ["one"], ["two", "three"], ["one"], ["two", "three"]]
        assert_empty(sup)


async def test_when_the_run_is_cancelled_meanwhile_what_was_steered_into_it_runs_by_itself(virtual, tmp_path):
    answered = []

    async def handler(ctx, messages):
        answered.append([m.body for m in messages])
        await anyio.sleep(1.0)
        if answered == [["one"]]:
            ctx.inbox.take()
            raise ConnectionError

    lanes = [LaneSpec("session:*", handler=handler, when_busy="steer", retry=RETRY)]
    async with Supervisor(tmp_path, lanes=lanes) as sup:
        run = sup.post("session:a", "one")
        await anyio.sleep(0.5)
        steered = sup.post("session:a", "two")
        await until_backoff(run)
        run.cancel()
        assert (await steered.wait()).state is RunState.DONE
        assert answered == [["one"], ["two"]]
        assert_empty(sup)


async def test_a_steered_message_is_cancelled_by_itself_while_the_run_waits(virtual, tmp_path, no_jitter):
    async def handler(ctx, messages):
        await anyio.sleep(1.0)
        if ctx.run.attempt == 1:
            ctx.inbox.take()
            raise ConnectionError
        return [m.body for m in [*messages, *ctx.inbox.take()]]

    lanes = [LaneSpec("session:*", handler=handler, when_busy="steer", retry=RETRY)]
    async with Supervisor(tmp_path, lanes=lanes) as sup:
        run = sup.post("session:a", "one")
        await anyio.sleep(0.5)
        steered = sup.post("session:a", "two")
        await until_backoff(run)
        assert steered.cancel("not any more")
        assert ended(steered).reason == "not any more"
        assert await run.result() == ["one"]


# Streaming


async def test_a_reader_hears_all_attempts_of_a_run_to_its_end(sup, no_jitter):
    async def body(ctx):
        ctx.emit((ctx.run.attempt, "token"))
        await anyio.sleep(1.0)
        if ctx.run.attempt < 3:
            raise ConnectionError

    run = sup.submit("session:a", body)
    async with aclosing(run.events()) as events:
        assert [event async for event in events] == [(1, "token"), (2, "token"), (3, "token")]


# Memory


class Graph:
    """A session graph of 5 MB."""

    def __init__(self) -> None:
        self.data = bytearray(5_000_000)


@pytest.fixture
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.failure("D6")
async def test_what_a_failed_attempt_held_is_gone_before_the_next_one_begins(sup, no_collector):
    graphs: list[weakref.ref[Graph]] = []
    alive = []

    async def body(ctx):
        alive.append(sum(graph() is not None for graph in graphs))
        graph = Graph()
        graphs.append(weakref.ref(graph))
        try:
            raise ConnectionError(f"{len(graph.data)} bytes")
        except ConnectionError as error:
            kept = error  # a cycle through its own frame, which only the collector would free
            raise kept from None

    with pytest.raises(ConnectionError):
        await sup.submit("session:a", body).result()
    assert alive == [0, 0, 0]


@pytest.mark.failure("D6")
@pytest.mark.suite("M1")
@pytest.mark.backends("asyncio")
async def test_five_hundred_overruns_with_retries_keep_nothing(virtual, tmp_path, no_collector):
    graphs: list[weakref.ref[Graph]] = []

    async def body(ctx):
        graph = Graph()
        graphs.append(weakref.ref(graph))
        await anyio.sleep_forever()
        return graph

    lanes = [LaneSpec("session:*", timeout=1.0, retry=RetrySpec(2, wait=1.0, timeouts=True))]
    async with Supervisor(tmp_path, lanes=lanes) as sup:
        runs = [sup.submit(f"session:{n % 25}", body) for n in range(500)]
        for run in runs:
            with pytest.raises(RunTimedOut):
                await run.result()
        await virtual.settle()
        assert len(graphs) == 1000
        assert [graph for graph in graphs if graph() is not None] == []
        assert len(sup.parked()) == 500


# Bad values


@pytest.mark.parametrize(
    "options, message",
    [
        ({"attempts": 1}, "retry, attempts: 1 is not allowed; allowed: a whole number from 2"),
        ({"attempts": 2.5}, "retry, attempts: 2.5"),
        ({"attempts": True}, "retry, attempts: True"),
        ({"wait": -1}, "retry, wait: -1 is no duration"),
        ({"wait": math.nan}, "retry, wait: nan is no duration"),
        ({"max_wait": math.inf}, "retry, max_wait: inf is no duration"),
        ({"wait": 61.0}, r"retry, wait: 61.0 s is longer than max_wait \(60.0 s\)"),
        ({"on": ()}, "retry, on: None is not allowed; allowed: exception classes"),
        ({"on": KeyboardInterrupt}, "retry, on: .*KeyboardInterrupt.* is not allowed"),
        ({"on": [ConnectionError]}, "retry, on: .* is not allowed"),
        ({"on": (ConnectionError, "x")}, "retry, on: 'x' is not allowed"),
        ({"timeouts": 1}, "retry, timeouts: 1 is not allowed; allowed: True or False"),
    ],
)
async def test_a_bad_retry_is_refused_by_field_and_value(options, message):
    with pytest.raises(InvalidLane, match=message):
        RetrySpec(**options)


async def test_each_attempt_is_counted_and_logged_once(sup, no_jitter):
    with capture_logs() as logs:
        run = sup.submit("tools", Fails(2))
        await run.result()
    now = sup.statistics()
    assert (now.lanes["tools"].totals.retries, now.groups["main"].totals.retries) == (2, 2)
    assert now.lanes["tools"].totals.outcomes["done"] == 1
    again = [line for line in logs if line["event"] == "run_retried"]
    assert [(line["run"], line["attempt"], line["wait_s"]) for line in again] == [(1, 1, 2.0), (1, 2, 4.0)]


async def test_a_message_is_answered_with_the_same_messages_each_time(virtual, tmp_path):
    given = []

    async def handler(ctx, messages):
        given.append([m.body for m in messages])
        messages.clear()
        raise ConnectionError

    async with Supervisor(tmp_path, lanes=[LaneSpec("session:*", handler=handler, retry=RETRY)]) as sup:
        await sup.post("session:a", Message("one")).wait()
    assert given == [["one"]] * 3


async def test_the_turn_is_free_for_another_process_between_two_attempts(sup, tmp_path, no_jitter):
    run = sup.submit("session:a", Fails(1))
    await until_backoff(run)
    other = LockRegistry()
    with anyio.fail_after(1.0):
        async with other.turn(sup.layout.file_of("a")):
            await anyio.sleep(0.5)
    assert await run.result() == 2
