"""`ctx.extend`: a run moves its hard deadline, within what its lane allows, and all that rests on it moves along."""

from __future__ import annotations

import math
from functools import partial

import anyio
import pytest
from anyio import to_thread

from lanes import InvalidLane, LaneSpec, RetrySpec, RunState, WrongThread
from locks import RunEnded
from runtime import Supervisor
from runtime.cli.status import lines
from runtime.status.handlers import Handlers
from tests.supervised import about, assert_empty, lines_of, path_of

LANE = partial(LaneSpec, "session:*", timeout=10.0, grace=2.0, extend_at_most=30.0)


async def test_a_run_ends_at_the_deadline_that_it_has_moved(virtual, tmp_path):
    async def body(ctx):
        await anyio.sleep(9)
        ctx.extend(5, "the tool still compiles")
        ctx.extend(20, "and links")
        await anyio.sleep_forever()

    async with Supervisor(tmp_path, lanes=[LANE()]) as sup:
        run = sup.submit("session:a", body)
        began = virtual.now()
        await anyio.sleep(9.5)
        assert run.deadline == about(began + 35)
        report = "\n".join(lines(Handlers(sup)._picture(None)))
        assert "ran 9.5 s, 25.5 s left, extended by 25.0 s: and links" in report
        outcome = await run.wait()
        assert (outcome.state, outcome.reason) == (RunState.TIMED_OUT, "timed out after 10 s, extended by 25 s")
        assert virtual.now() == about(began + 35)
        assert_empty(sup)


async def test_it_keeps_its_turn_and_writes_until_then_and_no_longer(virtual, tmp_path):
    written = []

    async def body(ctx):
        ctx.extend(10, "long")
        try:
            await anyio.sleep(19)  # past its first deadline, and the grace after that
            await ctx.session.append({"n": 1})
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1.9)
                await ctx.session.append({"n": 2})
                await anyio.sleep(0.2)
                with pytest.raises(RunEnded):
                    await ctx.session.append({"n": 3})
                written.append(virtual.now())

    async with Supervisor(tmp_path, lanes=[LANE()]) as sup:
        began = virtual.now()
        run, behind = sup.submit("session:a", body), sup.submit("session:a", LookAt(virtual))
        assert (await run.wait()).state is RunState.ABANDONED
        assert await behind.result() == about(began + 22)
        await anyio.sleep(1)
        assert written == [about(began + 22.1)]
        assert [line["n"] for line in lines_of(path_of(sup, "a")) if "n" in line] == [1, 2]


class LookAt:
    """A body that returns when it began."""

    def __init__(self, clock) -> None:
        self.clock = clock

    async def __call__(self, ctx):
        return self.clock.now()


@pytest.mark.failure("G31")
async def test_no_sign_of_life_moves_the_hard_deadline(virtual, tmp_path):
    async def body(ctx):
        while True:
            ctx.emit("still here")
            ctx.progress()
            await anyio.sleep(1)

    async with Supervisor(tmp_path, lanes=[LANE(idle_timeout=3.0)]) as sup:
        outcome = await sup.submit("session:a", body).wait()
        assert (outcome.state, outcome.ran_s) == (RunState.TIMED_OUT, about(10))


async def test_it_counts_as_progress_and_the_idle_timeout_stays(virtual, tmp_path):
    async def body(ctx):
        await anyio.sleep(2)
        ctx.extend(30, "long")
        await anyio.sleep_forever()

    async with Supervisor(tmp_path, lanes=[LANE(idle_timeout=3.0)]) as sup:
        outcome = await sup.submit("session:a", body).wait()
        assert (outcome.reason, outcome.ran_s) == ("made no progress for 3 s", about(5))


async def test_what_is_allowed_in_all_is_allowed_in_parts_and_not_exceeded(virtual, tmp_path):
    async def child(ctx):
        for _ in range(3):
            ctx.extend(0.1, "a part")
        for more in (0.1, 1e-5):
            with pytest.raises(InvalidLane, match=r"allowed: 0 s, since extend_at_most is 0\.3 s"):
                ctx.extend(more, "more")
        return ctx.run.deadline - ctx.run.started_at

    async def parent(ctx):
        return await ctx.submit("parts", child, timeout=9.7).result()

    lanes = [LANE(), LaneSpec("parts", timeout=10.0, extend_at_most=0.3)]
    async with Supervisor(tmp_path, lanes=lanes) as sup:
        assert await sup.run("parts", child) == about(10.3)
        assert await sup.run("session:a", parent) == about(10.0)


async def test_a_child_says_whose_deadline_it_has_reached_whoever_was_extended_since(virtual, tmp_path):
    async def parent(ctx, by, timeout):
        child = ctx.submit("session:b", moves if by else sleeps, by, timeout=timeout)
        await anyio.sleep(5)
        ctx.extend(10, "long")
        return (await child.wait()).reason

    async def moves(ctx, by):
        await anyio.sleep(6)
        ctx.extend(by, "as long")
        await anyio.sleep_forever()

    async def sleeps(ctx, by):
        await anyio.sleep_forever()

    async with Supervisor(tmp_path, lanes=[LANE()]) as sup:
        for by, timeout, reason in [
            (0, 300.0, "reached the deadline of its parent, run 1"),
            (5, 300.0, "reached the deadline of its parent, run 3, extended by 5 s"),
            (2, 8.0, "timed out after 8 s, extended by 2 s"),  # which is when its parent was to end at first
        ]:
            assert await sup.run("session:a", parent, by, timeout) == reason


async def test_each_attempt_has_the_allowance_of_its_lane(virtual, tmp_path):
    async def body(ctx):
        ctx.extend(30, "long")
        with pytest.raises(InvalidLane, match="allowed: 0 s"):
            ctx.extend(1, "more")
        await anyio.sleep(35)
        raise OSError

    retry = RetrySpec(2, wait=1.0, max_wait=1.0)
    async with Supervisor(tmp_path, lanes=[LANE(retry=retry)]) as sup:
        outcome = await sup.submit("session:a", body).wait()
        assert (outcome.state, outcome.ran_s) == (RunState.FAILED, about(70))


async def test_a_run_that_has_read_a_message_moves_the_deadline_of_its_sender_too(virtual, tmp_path):
    async def handle(ctx, messages):
        await anyio.sleep(1)
        assert (await ctx.inbox.receive()).body == "two"
        ctx.extend(30, "long")
        await anyio.sleep(5)

    async with Supervisor(tmp_path, lanes=[LANE(handler=handle, when_busy="steer")]) as sup:
        first, second = sup.post("session:a", "one"), sup.post("session:a", "two")
        await anyio.sleep(2)
        assert first.deadline == second.deadline == about(virtual.now() + 38)
        await first.result()


# Refused


@pytest.mark.failure("G31")
@pytest.mark.parametrize(
    "seconds, reason, complaint",
    [
        (0, "x", "lane 'session:a', seconds: 0 is no duration; allowed: seconds above 0"),
        (-1, "x", "seconds: -1 is no duration"),
        (math.nan, "x", "seconds: nan is no duration"),
        (5, "", "reason: '' is not allowed; allowed: 1 to 200 characters of text"),
        (5, None, "reason: None is not allowed"),
        (5, "x" * 201, "reason: .* is not allowed"),
        (
            31,
            "x",
            "seconds: 31 s more are not allowed; allowed: 30 s, since extend_at_most is 30 s and run 1 was extended",
        ),
    ],
)
@pytest.mark.backends("asyncio")
async def test_what_a_lane_does_not_allow_is_refused_and_nothing_moves(virtual, tmp_path, seconds, reason, complaint):
    async def body(ctx):
        before = ctx.run.deadline
        with pytest.raises(InvalidLane, match=complaint):
            ctx.extend(seconds, reason)
        assert ctx.run.deadline == before

    async with Supervisor(tmp_path, lanes=[LANE()]) as sup:
        await sup.run("session:a", body)


async def test_a_child_has_at_most_the_time_of_its_parent(virtual, tmp_path):
    async def child(ctx):
        with pytest.raises(
            InvalidLane, match="20 s more are not allowed; allowed: 5 s, after which its parent, run 1, ends"
        ):
            ctx.extend(20, "long")
        ctx.extend(5, "long")

    async def parent(ctx):
        ctx.extend(5, "long")
        await ctx.submit("session:b", child, timeout=10.0).result()

    async with Supervisor(tmp_path, lanes=[LANE()]) as sup:
        await sup.run("session:a", parent)


@pytest.mark.parametrize("why", ["was asked to end", "has passed its deadline", "has ended"])
async def test_a_run_that_is_to_end_gets_no_more_time(virtual, tmp_path, why):
    refused = []

    def extend(ctx):
        with pytest.raises(RunEnded, match=why):
            ctx.extend(5, "long")
        refused.append(why)

    async def body(ctx):
        contexts.append(ctx)
        if why == "has passed its deadline":
            virtual.advance(10.5)  # code that blocks the loop: its deadline has not been acted on yet
            extend(ctx)
        elif why == "was asked to end":
            try:
                await anyio.sleep_forever()
            finally:
                extend(ctx)

    contexts: list[object] = []
    async with Supervisor(tmp_path, lanes=[LANE()]) as sup:
        run = sup.submit("session:a", body)
        await anyio.sleep(1)
        run.cancel()
        await run.wait()
        if why == "has ended":
            extend(contexts[0])
        assert refused == [why]


async def test_a_thread_is_told_how_to_ask(virtual, tmp_path):
    async def body(ctx):
        with pytest.raises(WrongThread, match="from_thread"):
            await to_thread.run_sync(ctx.extend, 5, "long")

    async with Supervisor(tmp_path, lanes=[LANE()]) as sup:
        await sup.run("session:a", body)


def test_a_lane_that_allows_no_duration_is_refused():
    for wrong in (-1, math.nan, math.inf):
        with pytest.raises(InvalidLane, match=r"lane 'session:\*', extend_at_most: .* is no duration"):
            LANE(extend_at_most=wrong)
