"""`Supervisor.configure`: other limits while it runs, all of them or none, and no work that is stranded by it."""

from __future__ import annotations

from dataclasses import replace

import anyio
import pytest
from anyio import to_thread

from lanes import GroupSpec, InvalidLane, LaneFull, LaneSpec, PoolSpec, RetrySpec, RunState, WrongThread
from runtime import Supervisor
from runtime.cli.status import head
from runtime.status.handlers import Handlers
from tests.supervised import about, assert_empty


async def handle(ctx, messages):
    await anyio.sleep(float(messages[0].body))
    return ctx.run.started_at


async def sleeps(ctx, seconds=10.0):
    await anyio.sleep(seconds)
    return ctx.run.started_at


WORK = LaneSpec("work", handler=handle, capacity=1, group="few", timeout=100.0)
FEW = GroupSpec("few", slots=2)
MODEL = PoolSpec("model", slots=1)


@pytest.fixture
async def sup(virtual, tmp_path):
    async with Supervisor(tmp_path, lanes=[WORK], groups=[FEW], pools=[MODEL], drain_timeout=0.0) as sup:
        yield sup
        sup.cancel()


def states(runs):
    return [run.state for run in runs]


RUNNING, QUEUED = RunState.RUNNING, RunState.QUEUED


async def test_more_capacity_lets_runs_start_at_once_and_less_ends_none(sup):
    runs = [sup.submit("work", sleeps) for _ in range(5)]
    assert states(runs) == [RUNNING] + [QUEUED] * 4
    changes = sup.configure(lanes=[replace(WORK, capacity=3)], groups=[GroupSpec("few", slots=5)])
    assert changes == ("lane work, capacity: 1 → 3", "group few, slots: 2 → 5")
    assert states(runs) == [RUNNING] * 3 + [QUEUED] * 2
    sup.configure(lanes=[WORK])
    assert states(runs) == [RUNNING] * 3 + [QUEUED] * 2
    assert [await run.result() for run in runs[3:]] == about([runs[0].enqueued_at + 10, runs[0].enqueued_at + 20])
    assert_empty(sup)


async def test_slots_that_are_fewer_are_waited_for(sup):
    sup.configure(lanes=[replace(WORK, capacity=9)])
    runs = [sup.submit("work", sleeps, 5.0 + number) for number in range(4)]
    assert states(runs) == [RUNNING] * 2 + [QUEUED] * 2
    sup.configure(groups=[GroupSpec("few", slots=1)])
    await runs[0].wait()
    assert states(runs[1:]) == [RUNNING, QUEUED, QUEUED]
    await runs[1].wait()
    assert states(runs[2:]) == [RUNNING, QUEUED]
    assert [(await run.wait()).state for run in runs] == [RunState.DONE] * 4


async def test_timeouts_and_policies_count_for_what_is_submitted_from_then_on(sup):
    first, second = sup.submit("work", sleeps, 3.0), sup.submit("work", sleeps, 50.0)
    sup.configure(lanes=[replace(WORK, timeout=5.0, queue_limit=2)])
    third = sup.submit("work", sleeps, 50.0)
    with pytest.raises(LaneFull):
        sup.submit("work", sleeps)
    assert [(await run.wait()).state for run in (first, second, third)] == [
        RunState.DONE,
        RunState.DONE,
        RunState.TIMED_OUT,
    ]


async def test_a_pool_is_changed_or_made_and_a_lowered_one_is_whole_again(sup):
    async def calls(ctx, pool="model"):
        async with ctx.pool(pool) as grant:
            if ctx.run.id == first.id:
                grant.throttled(retry_after=0.5)
            await anyio.sleep(5.0)
            return ctx.run.started_at + grant.waited_s

    sup.configure(lanes=[replace(WORK, capacity=9)], groups=[GroupSpec("few", slots=9)])
    first = sup.submit("work", calls)
    await anyio.sleep(1)
    runs = [sup.submit("work", calls) for _ in range(3)]
    await anyio.sleep(1)
    assert sup.statistics().pools["model"].waiting == 3
    assert sup.configure(pools=[PoolSpec("model", slots=3), PoolSpec("other", slots=1)]) == (
        "pool model, slots: 1 → 3",
        "pool other: is new",
    )
    began = sorted([await run.result() for run in runs])
    assert began == about([first.enqueued_at + 2, first.enqueued_at + 2, first.enqueued_at + 5])
    await sup.run("work", calls, "other")


async def test_a_pause_that_a_provider_has_asked_for_goes_on(sup):
    async def refused(ctx):
        async with ctx.pool("model") as grant:
            grant.throttled(retry_after=30.0)
        assert sup.configure(pools=[PoolSpec("model", slots=3)]) == ("pool model, slots: 1 → 3",)
        async with ctx.pool("model") as grant:
            return grant.waited_s

    assert await sup.run("work", refused) == about(30.0)


async def test_a_run_that_now_waits_for_what_can_no_longer_come_ends_at_its_deadline(sup):
    """As `configure` says: less room is not refused for that, and what it ends is told from the reason."""

    async def asks_twice(ctx):
        async with ctx.pool("model"):
            await anyio.sleep(2)
            async with ctx.pool("model"):
                pass

    async def asks(ctx):
        async with ctx.pool("model"):
            await anyio.sleep(5)

    sup.configure(lanes=[replace(WORK, capacity=3)], pools=[PoolSpec("model", slots=2)])
    first, second = sup.submit("work", asks_twice), sup.submit("work", asks)
    await anyio.sleep(3)
    assert sup.configure(pools=[PoolSpec("model", slots=1)]) == ("pool model, slots: 2 → 1",)
    assert (await first.wait()).reason == "timed out after 100 s; it waited for a grant of pool model"
    assert second.state is RunState.DONE
    await sup.run("work", asks)
    assert_empty(sup)


async def test_a_lane_that_exists_gets_the_more_specific_specification(sup):
    busy = sup.submit("session:a", sleeps)
    sup.configure(lanes=[LaneSpec("session:a", timeout=7.0, capacity=2)])
    lane = sup.statistics().lanes["session:a"]
    assert (lane.capacity, lane.running) == (2, 1)
    await busy.wait()
    assert "session:a" in sup.statistics().lanes  # of its own name, it is not retired


async def test_what_was_changed_is_in_the_status_and_nothing_changed_is_nothing(sup):
    assert sup.configure(lanes=[WORK], groups=[FEW], pools=[MODEL]) == ()
    picture = Handlers(sup)._picture(None)
    assert (picture.configured, picture.configured_s_ago) == ([], None)
    sup.configure(groups=[GroupSpec("few", slots=4)], pools=[replace(MODEL, rate=(60, 60))])
    await anyio.sleep(3)
    (line,) = [line for line in head(Handlers(sup)._picture(None)) if line.startswith("configured")]
    assert line == "configured 3.0 s ago: group few, slots: 2 → 4; pool model, rate: None → (60, 60.0)"


async def test_it_may_be_called_before_the_start_and_from_hooks(virtual, tmp_path):
    def more(_run):
        early.configure(lanes=[LaneSpec("work", capacity=2)])

    early = Supervisor(tmp_path, lanes=[LaneSpec("work")], on_wait=more)
    assert early.configure(lanes=[LaneSpec("work", timeout=9.0)]) == ("lane work, timeout: 300.0 → 9.0",)
    async with early:
        runs = [early.submit("work", sleeps, 1.0) for _ in range(2)]
        assert states(runs) == [RUNNING] * 2


# Refused, as a whole


@pytest.mark.failure("G30")
@pytest.mark.parametrize(
    "given, complaint",
    [
        ({"lanes": [replace(WORK, group="none")]}, "lane 'work', group: 'none' is unknown; allowed: "),
        ({"lanes": [WORK, WORK]}, "pattern: 'work' is specified twice"),
        ({"lanes": WORK}, "lanes: .* is not allowed; allowed: a list of LaneSpec"),
        ({"groups": ["few"]}, "groups: 'few' is not allowed; allowed: GroupSpec"),
        ({"lanes": [replace(WORK, handler=None)]}, "lane 'work', handler: is missing, and accepted messages need it"),
        (
            {"lanes": [replace(WORK, group="main")]},
            "lane 'work', group: 'main' is not allowed while 1 of its runs run and 1 wait; allowed: 'few'",
        ),
        (
            {"lanes": [LaneSpec("chat:a")]},
            "lane 'chat:a', handler: is missing in 'chat:a', and it has 0 runs that wait",
        ),
        (
            {"pools": [PoolSpec("tokens", tokens=(400, 60.0))]},
            "pool 'tokens', tokens: 400 are fewer than run 4 waits for; allowed: 500 or more, or until it has ended",
        ),
    ],
)
@pytest.mark.backends("asyncio")
async def test_what_contradicts_or_would_strand_work_is_refused_and_nothing_changes(sup, given, complaint):
    async def calls(ctx, tokens):
        async with ctx.pool("tokens", tokens=tokens):
            await anyio.sleep(5)

    lanes = [LaneSpec("chat:*", handler=handle), LaneSpec("calls", capacity=2)]
    sup.configure(lanes=lanes, pools=[PoolSpec("tokens", tokens=(1000, 60.0))])
    runs = [sup.post("work", "9"), sup.post("work", "9"), sup.submit("calls", calls, 900)]
    await anyio.sleep(1)
    runs += [sup.submit("calls", calls, 500), sup.post("chat:a", "9")]
    await anyio.sleep(1)
    before = sup.configure(groups=[GroupSpec("few", slots=3)])
    more = {"groups": [GroupSpec("few", slots=7)], "pools": [PoolSpec("model", slots=7)]}
    with pytest.raises(InvalidLane, match=complaint):
        sup.configure(**{**more, **given})
    now = sup.statistics()
    assert (now.groups["few"].slots, now.pools["model"].slots) == (3, 1)
    assert Handlers(sup)._picture(None).configured == list(before)
    assert [(await run.wait()).state for run in runs] == [RunState.DONE] * 5


async def test_a_message_that_a_run_of_another_lane_has_read_keeps_the_group_of_its_lane(virtual, tmp_path):
    """It is on no lane meanwhile, and comes back to its own one when its reader is tried again."""

    async def reads(ctx, messages):
        if ctx.run.attempt == 1:
            await anyio.sleep(3)
            ctx.inbox.take()
            await anyio.sleep(5)
            raise LookupError

    def steered(**options):
        return LaneSpec("b:*", handler=handle, when_busy="steer", **options)

    reader = LaneSpec("a", handler=reads, retry=RetrySpec(2, wait=1.0, max_wait=1.0))
    groups = [GroupSpec("one", slots=1), GroupSpec("two", slots=1)]
    async with Supervisor(tmp_path, lanes=[reader, steered(group="one")], groups=groups) as sup:
        run, read = sup.post("a", "1", session="s"), None
        await anyio.sleep(1)
        read = sup.post("b:x", "1", session="s")
        await anyio.sleep(3)
        await sup.run("b:x", sleeps, 0.5)  # with which its lane is retired
        complaint = "lane 'b:x', group: 'two' is not allowed while run 2 is answered by run 1; allowed: 'one', until"
        with pytest.raises(InvalidLane, match=complaint):
            sup.configure(lanes=[steered(group="two")])
        assert sup.configure(lanes=[steered(group="one", capacity=3)])
        await anyio.sleep(4)  # the reader waits for its next attempt
        assert sup.statistics().lanes["b:x"].capacity == 3
        other = sup.submit("b:x", sleeps)
        assert [(await one.wait()).state for one in (run, read, other)] == [RunState.DONE] * 3
        assert_empty(sup)


async def test_a_lane_that_is_idle_may_change_its_group(sup):
    await sup.run("work", sleeps, 1.0)
    sup.configure(lanes=[replace(WORK, group="main")])
    run = sup.submit("work", sleeps, 1.0)
    assert (sup.statistics().groups["main"].running, sup.statistics().groups["few"].running) == (1, 0)
    await run.wait()
    assert_empty(sup)


async def test_a_message_that_was_kept_meanwhile_finds_the_new_lane(virtual, tmp_path):
    """Its lane was looked up before it was kept on disk, and is made after the change."""
    async with Supervisor(tmp_path, lanes=[LaneSpec("chat", handler=handle)]) as sup:
        intake = sup._scheduler.intake
        request, policy = intake.message_request("chat", "1")
        sup.configure(lanes=[LaneSpec("chat", handler=handle, capacity=4)])
        await intake.admit(request, policy).wait()
        assert sup.statistics().lanes["chat"].capacity == 4


async def test_a_call_that_the_new_limits_never_allow_is_refused_and_holds_up_none(sup):
    async def calls(ctx):
        large = ctx.pool("model", tokens=900)
        sup.configure(pools=[PoolSpec("model", tokens=(500, 60.0))])
        with pytest.raises(InvalidLane, match="tokens: 900 are more than the pool has in any 60 s; allowed: 0 to 500"):
            async with large:
                pass
        async with ctx.pool("model", tokens=500):
            return sup.statistics().pools["model"].waiting

    assert await sup.run("work", calls) == 0


async def test_another_thread_is_refused(sup):
    def outside():
        with pytest.raises(WrongThread, match="configure belongs to the event loop's thread"):
            sup.configure(lanes=[WORK])

    await to_thread.run_sync(outside)
