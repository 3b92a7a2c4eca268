"""A run that waits for another one lends its group slot, and takes one again before everybody who has not started."""

from __future__ import annotations

import random
from functools import partial

import anyio
import pytest
from anyio import get_cancelled_exc_class

from lanes import GroupSpec, LaneSpec, RetrySpec, RunState
from lanes.core.phase import Phase
from runtime import Supervisor
from tests.supervised import Shielded, about, assert_empty, gone

pytestmark = pytest.mark.backends("asyncio", "trio")

LANE = partial(LaneSpec, timeout=100.0, group="tight", queue_limit=None)


async def sleeps(ctx, seconds=1.0):
    await anyio.sleep(seconds)


@pytest.fixture
async def sup(virtual, tmp_path):
    """Lanes `work:*`, which share one slot, and `free:*`, which have as many as they want."""
    lanes = [LANE("work:*"), LaneSpec("free:*", timeout=100.0, group="wide")]
    async with Supervisor(tmp_path, lanes=lanes, groups=[GroupSpec("tight", 1), GroupSpec("wide", 50)]) as sup:
        yield sup
        assert_empty(sup)
        assert_nothing_lent(sup)


def assert_nothing_lent(sup):
    for group in sup._scheduler.board.groups.values():
        assert (group.running, group.others, group.returning) == (0, 0, 0)
    assert len(sup._scheduler.waits) == 0


def tight(sup):
    """Slots taken, and runs that wait to go on."""
    now = sup.statistics().groups["tight"]
    return now.running, now.returning


# Lending


async def test_parent_child_and_grandchild_share_one_slot(sup):
    order = []

    async def body(ctx, *names):
        name, *below = names
        order.append(f"{name} begins")
        assert tight(sup) == (1, 0)
        if below:
            await ctx.submit(f"work:{below[0]}", body, *below).result()
            assert tight(sup) == (1, 0)
        order.append(f"{name} ends")

    await sup.run("work:parent", body, "parent", "child", "grandchild")
    assert order == [
        "parent begins",
        "child begins",
        "grandchild begins",
        "grandchild ends",
        "child ends",
        "parent ends",
    ]


async def test_a_lent_slot_is_for_anyone(sup):
    async def parent(ctx):
        await ctx.submit("free:child", sleeps, 5.0).result()

    run = sup.submit("work:parent", parent)
    stranger = sup.submit("work:stranger", sleeps, 2.0)
    await stranger.result()
    assert stranger.outcome.waited_s == about(0.0)
    await run.result()


async def test_a_run_takes_a_slot_again_before_others_that_have_waited_longer(sup):
    order = []

    async def parent(ctx):
        await ctx.submit("work:child", sleeps, 3.0).result()
        order.append("parent")
        await anyio.sleep(1)

    async def stranger(ctx):
        order.append("stranger")

    run = sup.submit("work:parent", parent)
    await anyio.sleep(1)
    strangers = [sup.submit(f"work:{number}", stranger) for number in range(3)]
    for one in (run, *strangers):
        await one.result()
    assert order == ["parent"] + ["stranger"] * 3
    assert run.outcome.ran_s == about(4.0)
    assert strangers[0].started_at == about(run.started_at + 4.0)


async def test_a_run_whose_lent_slot_is_taken_waits_for_the_next_one(sup, virtual):
    async def parent(ctx):
        await ctx.submit("free:child", sleeps, 2.0).result()
        return anyio.current_time()

    began = virtual.now()
    run = sup.submit("work:parent", parent)
    await virtual.settle()
    taker = sup.submit("work:taker", sleeps, 5.0)
    later = sup.submit("work:later", sleeps)
    await anyio.sleep(3)
    assert tight(sup) == (1, 1)
    assert await run.result() == about(began + 5.0)
    await later.result()
    assert later.started_at == about(began + 5.0)
    await taker.result()


async def test_those_that_go_on_take_their_slots_in_the_order_in_which_their_waits_ended(sup, virtual):
    order = []

    async def parent(ctx, seconds):
        await ctx.submit(f"free:{ctx.run.lane}", sleeps, seconds).result()
        order.append(seconds)

    runs = [sup.submit(f"work:{seconds}", parent, seconds) for seconds in (3.0, 1.0, 2.0)]
    await virtual.settle()
    taker = sup.submit("work:taker", sleeps, 5.0)
    for run in (taker, *runs):
        await run.result()
    assert order == [1.0, 2.0, 3.0]


async def test_only_the_task_of_the_body_lends_the_slot(sup, virtual):
    async def parent(ctx):
        async with anyio.create_task_group() as group:
            group.start_soon(ctx.submit("free:child", sleeps, 3.0).wait)
        return tight(sup)

    run = sup.submit("work:parent", parent)
    stranger = sup.submit("work:stranger", sleeps)
    await virtual.settle()
    assert stranger.state is RunState.QUEUED
    assert await run.result() == (1, 0)
    await stranger.result()
    assert stranger.outcome.waited_s == about(3.0)


async def test_a_wait_from_outside_of_any_run_lends_nothing(sup):
    run = sup.submit("work:a", sleeps, 3.0)
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(run.wait)
    assert run.outcome.state is RunState.DONE


async def test_a_wait_for_a_run_that_has_ended_lends_nothing(sup):
    async def parent(ctx):
        child = ctx.submit("free:child", sleeps)
        await anyio.sleep(2)
        await child.wait()
        return tight(sup)

    run = sup.submit("work:parent", parent)
    stranger = sup.submit("work:stranger", sleeps)
    assert await run.result() == (1, 0)
    await stranger.result()
    assert stranger.outcome.waited_s == about(2.0)


# Cut short


async def test_a_wait_that_is_cut_short_goes_on_at_once_and_takes_the_next_free_slot(sup, virtual):
    seen = []

    async def parent(ctx):
        child = ctx.submit("free:child", sleeps, 50.0)
        with anyio.move_on_after(2):
            await child.wait()
        seen.append((anyio.current_time(), tight(sup)))
        await anyio.sleep(4)
        seen.append((anyio.current_time(), tight(sup)))

    began = virtual.now()
    run = sup.submit("work:parent", parent)
    await virtual.settle()
    taker = sup.submit("work:taker", sleeps, 3.0)
    later = sup.submit("work:later", sleeps)
    await run.wait()
    assert seen == [(about(began + 2.0), (1, 1)), (about(began + 6.0), (1, 0))]
    await later.result()
    assert later.started_at == about(began + 6.0)
    await taker.wait()


async def test_a_run_that_waits_again_before_it_has_a_slot_does_not_take_it_from_its_child(sup, virtual):
    async def parent(ctx):
        child = ctx.submit("work:child", sleeps)
        with anyio.move_on_after(1):
            await child.wait()
        await child.result()
        return anyio.current_time()

    began = virtual.now()
    run = sup.submit("work:parent", parent)
    taker = sup.submit("work:taker", sleeps, 3.0)
    assert await run.result() <= began + 6.0
    await taker.wait()


async def test_a_run_that_ends_before_it_has_a_slot_again_gives_up_its_claim(sup, virtual):
    async def parent(ctx):
        with anyio.move_on_after(1):
            await ctx.submit("free:child", sleeps, 50.0).wait()
        return tight(sup)

    run = sup.submit("work:parent", parent)
    await virtual.settle()
    taker = sup.submit("work:taker", sleeps, 9.0)
    assert await run.result() == (1, 1)
    assert tight(sup) == (1, 0)
    await taker.result()
    assert tight(sup) == (0, 0)


@pytest.mark.parametrize("moment", ["while its child runs", "while it waits to go on"])
async def test_a_waiting_run_that_is_cancelled_cleans_up_at_once_without_a_slot(sup, virtual, moment):
    cleaned = []

    async def parent(ctx):
        try:
            await ctx.submit("free:child", sleeps, 3.0).wait()
        except get_cancelled_exc_class():
            async with ctx.cleanup():
                cleaned.append((anyio.current_time(), tight(sup)))
            raise

    began = virtual.now()
    run = sup.submit("work:parent", parent)
    await virtual.settle()
    taker = sup.submit("work:taker", sleeps, 9.0)
    after = 1.0 if moment == "while its child runs" else 5.0
    await anyio.sleep(after)
    run.cancel("enough")
    await run.wait()
    assert virtual.now() == about(began + after)
    assert len(cleaned) == 1 and cleaned[0][0] == about(began + after) and cleaned[0][1][0] == 1
    assert tight(sup) == (1, 0)
    await taker.result()


async def test_a_run_that_is_cancelled_in_the_tick_in_which_its_wait_ends_keeps_no_slot(sup, virtual):
    async def parent(ctx):
        await ctx.submit("free:child", sleeps, 3.0).wait()
        await anyio.sleep(5)

    run = sup.submit("work:parent", parent)
    await virtual.settle()
    child = next(one for one in sup.runs() if one.lane == "free:child")
    child.cancel()
    run.cancel("enough")
    assert (await run.wait()).state is RunState.CANCELLED
    assert tight(sup) == (0, 0)


async def test_an_abandoned_run_that_waits_for_its_slot_under_a_shield_ends_all_the_same(virtual, tmp_path):
    lanes = [LANE("work:*", grace=1.0), LaneSpec("free", timeout=100.0)]
    body, ended = Shielded(), []

    async def parent(ctx):
        with anyio.CancelScope(shield=True):
            await ctx.submit("free", sleeps, 2.0, detached=True).wait()
        ended.append("parent")

    async with Supervisor(tmp_path, lanes=lanes, groups=[GroupSpec("tight", 1)]) as sup:
        run = sup.submit("work:parent", parent)
        await virtual.settle()
        taker = sup.submit("work:taker", body)
        await anyio.sleep(3)
        assert tight(sup) == (1, 1)
        run.cancel("enough")
        assert (await run.wait()).state is RunState.ABANDONED
        await gone(sup)
        assert ended == ["parent"]
        body.release()
        await taker.wait()
        assert_empty(sup)
        assert_nothing_lent(sup)


async def test_a_waiting_run_that_times_out_ends_in_time(sup, virtual):
    async def parent(ctx):
        await ctx.submit("free:child", sleeps, 50.0, detached=True).wait()

    run = sup.submit("work:parent", parent, timeout=5.0)
    outcome = await run.wait()
    assert (outcome.state, outcome.ran_s) == (RunState.TIMED_OUT, about(5.0))
    assert tight(sup) == (0, 0)
    sup.cancel()


# Classes


async def test_a_quiet_run_that_goes_on_takes_no_reserved_slot(virtual, tmp_path):
    async def parent(ctx):
        await ctx.submit("free", sleeps, 1.0).wait()
        return anyio.current_time()

    lanes = [LANE("work:*", priority="background"), LANE("user", priority="foreground"), LaneSpec("free")]
    async with Supervisor(tmp_path, lanes=lanes, groups=[GroupSpec("tight", 2, reserve=1)]) as sup:
        began = virtual.now()
        run = sup.submit("work:parent", parent)
        await virtual.settle()
        taker = sup.submit("work:taker", sleeps, 4.0)
        await anyio.sleep(2)
        user = sup.submit("user", sleeps)
        assert user.state is RunState.RUNNING
        assert await run.result() == about(began + 4.0)
        await taker.wait()
        await user.wait()
        assert_empty(sup)
        assert_nothing_lent(sup)


# Whatever happens


@pytest.mark.parametrize("seed", range(8))
async def test_the_counts_never_drift(virtual, tmp_path, seed):
    """Trees of runs on few slots, waited for in any way, cut short, cancelled and timed out at random."""
    chance = random.Random(seed)
    slots = chance.choice([1, 2, 3])
    reserve = chance.randrange(slots)

    async def body(ctx, depth):
        await anyio.sleep(chance.choice([0.0, 0.5, 2.0]))
        for _ in range(chance.choice([0, 1, 2]) if depth else 0):
            lane = f"work:{chance.randrange(1000)}"
            priority = chance.choice(["foreground", "normal", "background"])
            child = ctx.submit(lane, body, depth - 1, priority=priority, timeout=chance.choice([1.5, 50.0]))
            how = chance.choice(["wait", "shortly", "not", "in a task", "twice"])
            if how in ("shortly", "twice"):
                with anyio.move_on_after(chance.choice([0.0, 0.5, 1.0])):
                    await child.wait()
            if how in ("wait", "twice"):
                await child.wait()
            if how == "in a task":
                async with anyio.create_task_group() as group:
                    group.start_soon(child.wait)
                    await anyio.sleep(0.5)
                    group.cancel_scope.cancel()
        if chance.random() < 0.1:
            raise LookupError

    def counted(run):
        group = supervisor._scheduler.board.groups["tight"]
        live = [one for one in supervisor._scheduler.board.live.values() if one.spec.group == "tight"]
        assert set(group.holders) <= set(live)
        ending = {one for one in live if one.phase is Phase.ENDING}
        with_slot = {one for one in live if one.phase in (Phase.STARTED, Phase.RUNNING)}
        assert set(group.holders) - ending == with_slot
        assert group.running <= slots
        assert group.others == sum(one.urgency != 0 for one in group.holders) <= slots - reserve

    failures = []

    def hook(run):
        try:
            counted(run)
        except AssertionError as error:
            failures.append(error)

    async with Supervisor(
        tmp_path,
        lanes=[LANE("work:*")],
        groups=[GroupSpec("tight", slots, reserve=reserve)],
        on_run_start=hook,
    ) as supervisor:
        runs = [supervisor.submit(f"work:root {number}", body, 3) for number in range(12)]
        for _ in range(6):
            await anyio.sleep(2)
            live = supervisor.runs()
            if live:
                chance.choice(live).cancel("by chance")
        for run in runs:
            await run.wait()
        supervisor.cancel()
        await virtual.settle()
        assert_empty(supervisor)
        assert_nothing_lent(supervisor)
    assert failures == []


async def test_a_wait_that_an_interrupt_of_a_hook_cuts_short_is_over(virtual, tmp_path):
    def interrupts(run):
        if run.lane == "work:other" and not caught:
            raise KeyboardInterrupt

    async def body(ctx):
        if not caught:
            with pytest.raises(KeyboardInterrupt) as error:
                await other.wait()  # lends its slot, by which the other run starts
            caught.append(error.type)
            raise OSError("again")
        return "value"

    caught: list[type[BaseException]] = []
    lanes = [LANE("work:*"), LANE("again", retry=RetrySpec(2, wait=0.1))]
    async with Supervisor(tmp_path, lanes=lanes, groups=[GroupSpec("tight", 1)], on_run_start=interrupts) as sup:
        run, other = sup.submit("again", body), sup.submit("work:other", sleeps)
        with anyio.fail_after(5):
            assert await run.result() == "value"
            await other.result()
        assert_empty(sup)
        assert_nothing_lent(sup)
