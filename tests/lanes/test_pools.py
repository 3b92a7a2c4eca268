"""Pools as bodies use them: what waits for what, how long, and what is given back when a run ends in whatever way."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from functools import partial

import anyio
import pytest
from anyio import to_thread
from anyio.lowlevel import checkpoint
from structlog.testing import capture_logs

from lanes import GroupSpec, InvalidLane, LaneSpec, PoolSpec, RunState, WrongThread
from lanes.core.pools import Pools
from locks import DeadlockError, RunEnded
from runtime import Supervisor
from runtime.testing.suspensions import Suspensions
from tests.invariants import complaints
from tests.supervised import about, assert_empty

LANE = partial(LaneSpec, timeout=1000.0, queue_limit=None)
LANES = [LANE("work", capacity=1000, group="many"), LANE("session:*", group="many")]
GROUPS = [GroupSpec("many", slots=1000)]


def supervisor(path, *pools, **options):
    """A supervisor of wide lanes: what waits, waits in a pool."""
    return Supervisor(path, **{"lanes": LANES, "groups": GROUPS, **options}, pools=pools)


async def asking(sup, body, *args, lane="work", **options):
    """A run whose body has asked the pool: trio starts the tasks of one instant in any order."""

    def asked():
        (pool,) = sup.statistics().pools.values()
        return pool.granted + pool.waiting

    before, run = asked(), sup.submit(lane, body, *args, **options)
    while asked() == before:
        await checkpoint()
    return run


class Calls:
    """A body that makes one call of a provider, and notes when calls began."""

    def __init__(self, virtual) -> None:
        self.now = virtual.now
        self.origin = virtual.now()
        self.began: list[float] = []
        self.names: list[str] = []
        self.under_way = self.most = 0

    async def __call__(self, ctx, name="", seconds=1.0, tokens=None, used=None):
        async with ctx.pool("model", tokens=tokens) as grant:
            self.began.append(self.now() - self.origin)
            self.names.append(name)
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            await anyio.sleep(seconds)
            self.under_way -= 1
            if used is not None:
                grant.settle(used)
            return grant.waited_s


async def test_no_more_calls_than_slots_are_under_way_and_the_others_wait_in_order(virtual, tmp_path):
    async with supervisor(tmp_path, PoolSpec("model", slots=2)) as sup:
        calls = Calls(virtual)
        runs = [await asking(sup, calls, str(number)) for number in range(6)]
        assert [await run.result() for run in runs] == about([0, 0, 1, 1, 2, 2])
        assert (calls.most, calls.began) == (2, about([0, 0, 1, 1, 2, 2]))
        assert_empty(sup)


async def test_a_rate_holds_in_every_stretch(virtual, tmp_path):
    async with supervisor(tmp_path, PoolSpec("model", rate=(3, 60.0))) as sup:
        calls = Calls(virtual)
        await sup.run("work", calls, "", 0.0)
        await anyio.sleep(59)
        runs = [sup.submit("work", calls, "", 0.0) for _ in range(6)]
        for run in runs:
            await run.result()
        # Not three at 60 s again, as with a count that starts afresh with each minute.
        assert calls.began == about([0, 59, 59, 60, 119, 119, 120])
        assert_empty(sup)


async def test_tokens_count_until_a_while_after_they_were_settled(virtual, tmp_path):
    async with supervisor(tmp_path, PoolSpec("model", tokens=(1000, 60.0))) as sup:
        calls = Calls(virtual)
        first = await asking(sup, calls, "first", 10.0, 900, 400)
        small = await asking(sup, calls, "small", 0.0, 100)
        large = await asking(sup, calls, "large", 0.0, 600)
        for run in (first, small, large):
            await run.result()
        # 900 asked for leave room for 100; 400 used, and those 100, leave room for 600 no sooner than the 100 are out.
        assert calls.began == about([0, 0, 60])
        assert sup.statistics().pools["model"].tokens == 1100
        assert_empty(sup)


async def test_what_was_used_beyond_what_was_asked_for_is_waited_for(virtual, tmp_path):
    async with supervisor(tmp_path, PoolSpec("model", tokens=(1000, 60.0))) as sup:
        calls = Calls(virtual)
        await sup.run("work", calls, "", 0.0, 10, 5000)
        await sup.run("work", calls, "", 0.0, 1000, 0)
        await sup.run("work", calls, "", 0.0, 1000)
        assert calls.began == about([0, 60, 60])


async def test_a_small_call_does_not_overtake_a_large_one(virtual, tmp_path):
    async with supervisor(tmp_path, PoolSpec("model", tokens=(1000, 60.0))) as sup:
        calls = Calls(virtual)
        runs = [await asking(sup, calls, str(number), 0.0, tokens) for number, tokens in enumerate((600, 600, 10))]
        for run in runs:
            await run.result()
        assert calls.began == about([0, 60, 60])


@pytest.mark.failure("G29")
async def test_after_a_429_nothing_is_granted_for_a_while_and_then_less_until_it_has_come_back(virtual, tmp_path):
    throttled = []

    async def refused(ctx):
        async with ctx.pool("model") as grant:
            await anyio.sleep(1.0)
            grant.throttled(retry_after=30.0)
            throttled.append(sup.statistics().pools["model"])

    async with supervisor(tmp_path, PoolSpec("model", slots=8, recovery=60.0)) as sup:
        refusals = [sup.submit("work", refused) for _ in range(3)]  # all for one reason: halved once
        for run in refusals:
            await run.result()
        calls = Calls(virtual)
        runs = [sup.submit("work", calls, "", 500.0) for _ in range(8)]
        await anyio.sleep(70)
        # Four of eight slots after 30 s; then one more for each eighth of a minute, as a straight line.
        assert calls.began == about([30, 30, 30, 30, 37.5, 45, 52.5, 60])
        assert [one.share for one in throttled] == [0.5] * 3
        assert throttled[0].paused_for_s == about(30.0)
        assert sup.statistics().pools["model"].share == 1.0
        for run in runs:
            run.cancel()


async def test_a_call_is_let_through_however_low_the_limits_are(virtual, tmp_path):
    async def refused(ctx):
        for _ in range(10):
            async with ctx.pool("model", tokens=900) as grant:
                grant.settle(0)
                grant.throttled(retry_after=0)

    async with supervisor(tmp_path, PoolSpec("model", slots=2, rate=(1000, 1.0), tokens=(1000, 1.0))) as sup:
        began = virtual.now()
        await sup.run("work", refused)
        assert sup.statistics().pools["model"].share == about(1 / 16)
        assert virtual.now() == about(began)


async def test_one_session_with_many_calls_holds_up_another_for_one_of_them(virtual, tmp_path):
    async with supervisor(tmp_path, PoolSpec("model", slots=1)) as sup:
        calls = Calls(virtual)

        async def many(ctx):
            async with anyio.create_task_group() as tasks:
                for number in range(20):
                    tasks.start_soon(calls, ctx, f"hog {number}")

        hog = sup.submit("session:hog", many)
        await anyio.sleep(0.5)
        others = [sup.submit(f"session:{name}", calls, name) for name in "ab"]
        for run in (*others, hog):
            await run.result()
        assert {"a", "b"} <= set(calls.names[:4])
        assert_empty(sup)


@pytest.mark.parametrize("priority, most", [("foreground", 0.0), ("normal", 4.0), ("background", 12.0)])
async def test_no_class_starves_another(virtual, tmp_path, priority, most):
    """While the two other classes always have calls that wait, and each call takes a second."""
    lanes = [LANE(name, capacity=1000, group="many", priority=name) for name in ("foreground", "normal", "background")]
    async with supervisor(tmp_path, PoolSpec("model", slots=1), lanes=lanes) as sup:
        calls = Calls(virtual)
        others = [
            sup.submit(lane, calls)
            for _ in range(100)
            for lane in ("foreground", "normal", "background")
            if lane != priority
        ]
        await anyio.sleep(0.5)
        waited = await sup.run(priority, calls)
        assert waited <= 1.0 + most
        for run in others:
            run.cancel()


async def test_a_more_urgent_run_that_waits_for_the_session_lends_its_class_to_a_call(virtual, tmp_path):
    lanes = [LANE("people", priority="foreground"), LANE("cron", capacity=9, priority="background")]
    async with supervisor(tmp_path, PoolSpec("model", slots=1), lanes=lanes) as sup:
        calls = Calls(virtual)
        runs = [await asking(sup, calls, name, lane="cron", session=name) for name in "abcd"]
        await anyio.sleep(0.5)
        runs.append(sup.submit("people", calls, "urgent", session="d"))
        for run in runs:
            await run.result()
        assert calls.names == ["a", "d", "b", "urgent", "c"]  # "b" was granted when "urgent" had not asked yet


# What is given back


@pytest.mark.failure("G28")
@pytest.mark.parametrize("end", ["returns", "raises", "times out", "is cancelled", "leaves the block open"])
async def test_a_grant_is_given_back_however_its_run_ends(virtual, tmp_path, end):
    async def body(ctx):
        grant = ctx.pool("model")
        if end == "leaves the block open":
            await grant.__aenter__()
            return
        async with grant:
            if end == "raises":
                raise LookupError
            if end != "returns":
                await anyio.sleep_forever()

    async with supervisor(tmp_path, PoolSpec("model", slots=1)) as sup:
        run = sup.submit("work", body, timeout=5.0)
        await anyio.sleep(1)
        if end == "is cancelled":
            run.cancel()
        await run.wait()
        assert sup.statistics().pools["model"].held == 0
        await sup.run("work", Calls(virtual), timeout=2.0)
        assert_empty(sup)


@pytest.mark.failure("G28")
async def test_an_abandoned_body_holds_nothing(virtual, tmp_path):
    released = anyio.Event()

    async def stubborn(ctx):
        async with ctx.pool("model", tokens=70) as grant:
            with anyio.CancelScope(shield=True):
                await released.wait()
            try:
                grant.settle(1)
            except InvalidLane as error:
                refusals.append(str(error))

    refusals: list[str] = []
    async with supervisor(tmp_path, PoolSpec("model", slots=1, tokens=(100, 1e6))) as sup:
        run = sup.submit("work", stubborn, timeout=1.0)
        assert (await run.wait()).state is RunState.ABANDONED
        now = sup.statistics().pools["model"]
        assert (now.held, now.tokens) == (0, 70)  # it may have used them all
        released.set()
        await sup._scheduler.board.wait_abandoned()
        assert refusals == ["pool 'model', settle: the grant was given back; allowed: within its block"]


async def test_an_abandoned_body_that_waits_is_told_and_ends(virtual, tmp_path):
    told = []

    async def stubborn(ctx):
        with anyio.CancelScope(shield=True):
            try:
                async with ctx.pool("model"):
                    pass
            except RunEnded as error:
                told.append(str(error))

    async with supervisor(tmp_path, PoolSpec("model", slots=1)) as sup:
        hog = await asking(sup, Calls(virtual), "hog", 500.0)
        waits = await asking(sup, stubborn, timeout=1.0)
        assert (await waits.wait()).state is RunState.ABANDONED
        with anyio.fail_after(10):
            await sup._scheduler.board.wait_abandoned()
        assert ["has ended: nothing granted by pool 'model'" in one for one in told] == [True]
        hog.cancel()


async def test_a_wait_that_is_cancelled_leaves_the_queue(virtual, tmp_path):
    async with supervisor(tmp_path, PoolSpec("model", slots=1)) as sup:
        calls = Calls(virtual)
        _, second, third = [await asking(sup, calls, name, 10.0) for name in "abc"]
        second.cancel()
        await third.result()
        assert calls.names == ["a", "c"]
        assert second.outcome is not None
        assert second.outcome.state is RunState.CANCELLED
        assert_empty(sup)


@pytest.mark.suite("C1")
@pytest.mark.parametrize("taken", [False, True], ids=["free", "taken"])
async def test_cancelled_at_any_suspension_a_grant_leaves_nothing(virtual, tmp_path, taken):
    async def entered(ctx):
        async with ctx.pool("model"):
            await checkpoint()

    async def sweeps(ctx):
        k, acted = 0, True
        while acted:
            k += 1
            hog = await asking(sup, Calls(virtual), "hog", 1.0) if taken else None
            with anyio.CancelScope() as scope:
                driver = Suspensions(k, scope.cancel)
                await driver.run(entered(ctx))
            acted = driver.acted
            now = sup.statistics().pools["model"]
            assert (now.waiting, now.held) == (0, 1 if hog is not None and hog.outcome is None else 0)
            if hog is not None:
                await hog.wait()
        return k

    async with supervisor(tmp_path, PoolSpec("model", slots=1)) as sup:
        assert await sup.run("work", sweeps) > (2 if taken else 1)
        assert_empty(sup)


async def test_a_wait_ends_at_the_deadline_of_its_run(virtual, tmp_path):
    async with supervisor(tmp_path, PoolSpec("model", slots=1)) as sup:
        calls = Calls(virtual)
        hog = await asking(sup, calls, "hog", 500.0)
        waits = sup.submit("work", calls, "late", timeout=3.0)
        outcome = await waits.wait()
        assert (outcome.state, outcome.ran_s) == (RunState.TIMED_OUT, about(3.0))
        assert outcome.reason == "timed out after 3 s; it waited for a grant of pool model"
        hog.cancel()


async def test_waiting_for_a_grant_is_not_idleness(virtual, tmp_path):
    lanes = [*LANES, LANE("lazy", idle_timeout=2.0)]
    async with supervisor(tmp_path, PoolSpec("model", slots=1), lanes=lanes) as sup:
        calls = Calls(virtual)
        await asking(sup, calls, "hog", 100.0)
        run = sup.submit("lazy", calls, "patient")
        assert await run.result() == about(100.0)


async def test_a_run_that_has_ended_is_granted_nothing(virtual, tmp_path):
    left = []

    async def body(ctx):
        left.append(ctx)

    async with supervisor(tmp_path, PoolSpec("model", slots=1)) as sup:
        await sup.run("work", body)
        with pytest.raises(RunEnded, match="has ended: nothing granted by pool 'model'"):
            async with left[0].pool("model"):
                pass
        assert sup.statistics().pools["model"].granted == 0


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_happens_the_invariants_hold_and_nothing_is_left(virtual, tmp_path, seed):
    """Calls, cancels, deadlines, refusals, bodies that are abandoned, and other limits meanwhile, by chance."""
    chance, wrong = random.Random(seed), list[str]()
    specs = [PoolSpec("a", slots=3, rate=(5, 10.0)), PoolSpec("b", slots=2, tokens=(100, 20.0), recovery=5.0)]
    lanes = [LANE("work", capacity=40, timeout=40.0, grace=1.0), LANE("session:*", timeout=60.0, priority="normal")]

    async def body(ctx):
        with anyio.CancelScope(shield=chance.random() < 0.05):  # some are abandoned
            for _ in range(chance.randrange(4)):
                with anyio.move_on_after(chance.choice([1.0, 30.0, math.inf])):
                    async with ctx.pool(chance.choice("ab"), tokens=chance.randrange(60)) as grant:
                        await anyio.sleep(chance.choice([0.0, 0.5, 4.0]))
                        if chance.random() < 0.5:
                            grant.settle(chance.randrange(90))
                        if chance.random() < 0.1:
                            grant.throttled(retry_after=chance.choice([0.0, 3.0]))
                        if chance.random() < 0.1:
                            raise LookupError
                look()

    def look(_run=None):
        wrong.extend(complaints(sup._scheduler))

    async with supervisor(
        tmp_path, *specs, lanes=lanes, groups=[], on_run_start=look, on_run_end=look, on_zombie="raise"
    ) as sup:
        runs = []
        for _ in range(60):
            lane = chance.choice(["work", "session:x", "session:y", "session:z"])
            runs.append(sup.submit(lane, body))
            await anyio.sleep(chance.choice([0.0, 0.1, 2.0]))
            if chance.random() < 0.15:
                chance.choice(runs).cancel()
            if chance.random() < 0.1:
                sup.configure(pools=[replace(specs[0], slots=chance.randrange(1, 5))])
            look()
        for run in runs:
            await run.wait()
        await sup._scheduler.board.wait_abandoned()
        assert wrong == []
        assert [(one.held, one.waiting) for one in sup.statistics().pools.values()] == [(0, 0)] * 2


async def test_a_wake_up_that_was_lost_is_noticed_reported_and_made_good(virtual, tmp_path, monkeypatch):
    async with supervisor(tmp_path, PoolSpec("model", slots=1)) as sup:
        calls = Calls(virtual)
        await asking(sup, calls, "first", 2.0)
        waits = await asking(sup, calls, "second")
        with monkeypatch.context() as patched, capture_logs() as logs:
            patched.setattr(Pools, "_look", lambda self, pool: None)
            await anyio.sleep(3)
            patched.undo()
            assert 2.0 <= await waits.result() <= 6.0
        (line,) = [line for line in logs if line["event"] == "recovery_failed"]
        assert line["reason"] == "a call waits in pool model, which could let it through, and does not"


# Deadlocks


async def test_a_run_that_asks_for_the_pool_that_it_has_filled_is_refused(virtual, tmp_path):
    async def body(ctx):
        async with ctx.pool("model"), ctx.pool("model"):
            pass

    async with supervisor(tmp_path, PoolSpec("model", slots=1)) as sup:
        with pytest.raises(
            DeadlockError, match=r"waiting for a grant of pool model would never end: .*where run 1 has"
        ):
            await sup.run("work", body)
        assert_empty(sup)


async def test_a_wait_for_a_child_that_needs_the_pool_of_its_parent_is_refused(virtual, tmp_path):
    async def parent(ctx):
        async with ctx.pool("model"):
            child = ctx.submit("work", Calls(virtual))
            await anyio.sleep(1)
            with pytest.raises(DeadlockError, match="a grant of pool model, where run 1 has one"):
                await child.result()
        return await child.result()

    async with supervisor(tmp_path, PoolSpec("model", slots=1)) as sup:
        assert await sup.run("work", parent) == about(1.0)
        assert_empty(sup)


async def test_two_runs_that_hold_a_pool_each_and_want_the_other_are_found(virtual, tmp_path):
    async def body(ctx, first, second):
        async with ctx.pool(first):
            await anyio.sleep(1)
            async with ctx.pool(second):
                pass

    async with supervisor(tmp_path, PoolSpec("a", slots=1), PoolSpec("b", slots=1)) as sup:
        runs = [sup.submit("work", body, "a", "b"), sup.submit("work", body, "b", "a")]
        errors = [(await run.wait()).error for run in runs]
        assert [type(error) for error in errors] in ([DeadlockError, type(None)], [type(None), DeadlockError])


async def test_tokens_that_time_brings_are_no_deadlock(virtual, tmp_path):
    async def body(ctx):
        async with ctx.pool("model", tokens=90) as grant:
            grant.settle(90)
            async with ctx.pool("model", tokens=90):
                return ctx.run.started_at

    async with supervisor(tmp_path, PoolSpec("model", tokens=(100, 60.0))) as sup:
        began = virtual.now()
        await sup.run("work", body)
        assert virtual.now() == about(began + 60)


@pytest.mark.parametrize("limit", [{"slots": 1}, {"tokens": (10, 60.0)}])
async def test_a_grant_that_a_child_task_gives_back_is_waited_for(virtual, tmp_path, limit):
    """The body waits, and the task that has the grant goes on: no deadlock, also for a run that waits for that body."""

    async def fans_out(ctx):
        async def holds():
            async with ctx.pool("model", tokens=9) as grant:
                held.set()
                await anyio.sleep(5)
                grant.settle(0)

        held = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(holds)
            await held.wait()
            child = ctx.submit("work", asks)
            await child.result()
            async with ctx.pool("model", tokens=9) as grant:
                return grant.waited_s

    async def asks(ctx):
        async with ctx.pool("model", tokens=9) as grant:
            grant.settle(0)

    async def at_once(ctx):
        async def holds():
            async with ctx.pool("model", tokens=9) as grant:
                await anyio.sleep(5)
                grant.settle(0)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(holds)
            await anyio.sleep(1)
            async with ctx.pool("model", tokens=9) as grant:
                return grant.waited_s

    async with supervisor(tmp_path, PoolSpec("model", **limit)) as sup:
        assert await sup.run("work", fans_out) == about(0.0)
        assert_empty(sup)
    async with supervisor(tmp_path, PoolSpec("model", **limit)) as sup:
        assert await sup.run("work", at_once) == about(4.0)
        assert_empty(sup)


async def test_a_ring_with_a_limit_of_its_own_is_waited_for(virtual, tmp_path):
    async def body(ctx):
        async with ctx.pool("model"):
            with anyio.move_on_after(5):
                async with ctx.pool("model"):
                    pass
            return "went on"

    async with supervisor(tmp_path, PoolSpec("model", slots=1)) as sup:
        assert await sup.run("work", body) == "went on"
        assert_empty(sup)


# Bad input


@pytest.mark.parametrize(
    "given, complaint",
    [
        ({"name": ""}, "name: '' is not allowed"),
        ({}, "pool 'p', slots, rate, tokens: none is given"),
        ({"slots": 0}, "pool 'p', slots: 0 is not allowed; allowed: a whole number from 1"),
        (
            {"rate": 60},
            r"pool 'p', rate: 60 is not allowed; allowed: how many, and in how many seconds, as \(60, 60.0\)",
        ),
        ({"rate": (-1, 60.0)}, "pool 'p', rate: -1 is not allowed; allowed: a whole number from 1"),
        ({"rate": (math.nan, 60.0)}, "pool 'p', rate: nan is not allowed"),
        ({"rate": (60, math.nan)}, "pool 'p', rate: nan is no duration; allowed: seconds above 0"),
        ({"tokens": (100, -1.0)}, "pool 'p', tokens: -1.0 is no duration"),
        ({"slots": 1, "recovery": 0}, "pool 'p', recovery: 0 is no duration"),
    ],
)
def test_a_pool_that_contradicts_itself_is_refused(given, complaint):
    with pytest.raises(InvalidLane, match=complaint):
        PoolSpec(**{"name": "p", **given})


def test_two_pools_of_one_name_are_refused(tmp_path):
    with pytest.raises(InvalidLane, match="pool: 'p' is specified twice"):
        supervisor(tmp_path, PoolSpec("p", slots=1), PoolSpec("p", slots=2))


@pytest.mark.parametrize(
    "name, options, complaint",
    [
        ("other", {}, "pool: 'other' is unknown; allowed: model"),
        (None, {}, "pool: None is unknown; allowed: model"),
        ("model", {}, "pool 'model', tokens: are missing, and the pool limits them; allowed: 0 to 1000"),
        (
            "model",
            {"tokens": 1001},
            "pool 'model', tokens: 1001 are more than the pool has in any 60 s; allowed: 0 to 1000",
        ),
        ("model", {"tokens": -1}, "pool 'model', tokens: -1 is not allowed"),
        ("model", {"tokens": math.nan}, "pool 'model', tokens: nan is not allowed"),
    ],
)
@pytest.mark.backends("asyncio")
async def test_a_call_that_no_pool_can_let_through_is_refused(virtual, tmp_path, name, options, complaint):
    async def body(ctx):
        with pytest.raises(InvalidLane, match=complaint):
            ctx.pool(name, **options)

    async with supervisor(tmp_path, PoolSpec("model", tokens=(1000, 60.0))) as sup:
        await sup.run("work", body)


async def test_a_grant_is_used_within_its_block_and_settled_once(virtual, tmp_path):
    async def body(ctx):
        grant = ctx.pool("model", tokens=1)
        with pytest.raises(InvalidLane, match="settle: the grant is not entered yet"):
            grant.settle(1)
        async with grant:
            for wrong in (-1, math.nan, True):
                with pytest.raises(InvalidLane, match=r"pool 'model', used: .* allowed: a whole number from 0"):
                    grant.settle(wrong)
            with pytest.raises(InvalidLane, match="pool 'model', retry_after: nan is no duration"):
                grant.throttled(retry_after=math.nan)
            grant.settle(1)
            with pytest.raises(InvalidLane, match="used: 2 comes after the grant was settled; allowed: once"):
                grant.settle(2)
        with pytest.raises(InvalidLane, match="throttled: the grant was given back"):
            grant.throttled()
        with pytest.raises(InvalidLane, match="a grant was entered twice"):
            async with grant:
                pass

    async with supervisor(tmp_path, PoolSpec("model", slots=1)) as sup:
        await sup.run("work", body)
        assert sup.statistics().pools["model"].tokens == 1


async def test_a_grant_that_two_tasks_enter_at_once_is_one_grant(virtual, tmp_path):
    async def body(ctx, grant):
        refused = []

        async def enter():
            try:
                async with grant:
                    await anyio.sleep(1)
            except InvalidLane as error:
                refused.append(str(error))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(enter)
            tasks.start_soon(enter)
        return refused

    async def both(ctx):
        refused = await body(ctx, ctx.pool("model"))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(Calls(virtual), ctx)  # now both would wait
            await anyio.sleep(0.5)
            return refused + await body(ctx, ctx.pool("model"))

    async with supervisor(tmp_path, PoolSpec("model", slots=1)) as sup:
        refused = await sup.run("work", both)
        assert refused == ["pool 'model': a grant was entered twice; allowed: once, and `ctx.pool` for each call"] * 2
        assert await sup.run("work", Calls(virtual)) == about(0.0)  # nothing is held for ever
        assert_empty(sup)


async def test_a_number_that_is_no_count_is_refused_before_it_can_be_counted(virtual, tmp_path):
    huge, allowed = 10**5000, f"allowed: a whole number up to {2**53}"

    async def body(ctx):
        with pytest.raises(InvalidLane, match=f"pool 'model', tokens: .* {allowed}"):
            ctx.pool("model", tokens=huge)
        async with ctx.pool("model", tokens=1) as grant:
            with pytest.raises(InvalidLane, match=f"pool 'model', used: .* {allowed}"):
                grant.settle(huge)
            grant.settle(2**53)  # printed below
        return str(sup.statistics())

    with pytest.raises(InvalidLane, match=f"pool 'p', slots: .* {allowed}"):
        PoolSpec("p", slots=10**400)
    async with supervisor(tmp_path, PoolSpec("model", tokens=(100, 60.0))) as sup:
        assert str(2**53) in await sup.run("work", body)


@pytest.mark.parametrize("call, given", [("settle", 5), ("throttled", None)])
async def test_a_thread_is_told_how_to_report_of_a_grant(virtual, tmp_path, call, given):
    async def body(ctx):
        async with ctx.pool("model", tokens=10) as grant:
            with pytest.raises(WrongThread, match=f"{call} belongs to .*from_thread.run_sync\\(grant.{call}, "):
                await to_thread.run_sync(getattr(grant, call), *() if given is None else (given,))
            now = sup.statistics().pools["model"]
            assert (now.throttled, now.tokens_in_window) == (0, 10)
            grant.settle(3)

    async with supervisor(tmp_path, PoolSpec("model", tokens=(100, 60.0))) as sup:
        await sup.run("work", body)


async def test_a_supervisor_without_pools_says_how_one_is_defined(virtual, tmp_path):
    async def body(ctx):
        ctx.pool("model")

    async with supervisor(tmp_path) as sup:
        with pytest.raises(InvalidLane, match=r"allowed: none; Supervisor\(pools=\[PoolSpec"):
            await sup.run("work", body)
