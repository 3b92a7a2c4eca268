"""The ramp: what is overdue after a restart starts in order, the urgent first, and not all at once."""

from __future__ import annotations

import anyio
import pytest

from lanes import LaneSpec
from lanes.checks import Priority
from lanes.queues.throttle import Throttle
from runtime import Supervisor
from runtime.restart import RAMP_S
from tests.supervised import about, assert_empty

LANES = [LaneSpec("work:*", timeout=500.0, queue_limit=None)]


@pytest.fixture
async def sup(virtual, tmp_path):
    async with Supervisor(tmp_path, lanes=LANES, drain_timeout=1.0) as sup:
        yield sup
        assert_empty(sup)


async def instant(ctx):
    return ctx.run.started_at


async def overdue(sup, count, **options):
    """So many runs, each on a lane of its own, submitted while nothing starts."""
    sup._scheduler.board.starting = False
    runs = [sup.submit(f"work:{n}", instant, **options) for n in range(count)]
    sup._scheduler.board.starting = True
    return runs


def spacing(count, first_s, ramp_s=RAMP_S):
    """When they start, from the foot of the ramp on: each interval in proportion to what is left of it."""
    at, starts = 0.0, []
    for _ in range(count):
        starts.append(at)
        at += first_s * (ramp_s - at) / ramp_s
    return starts


@pytest.mark.failure("G6")
@pytest.mark.parametrize("priority, first_s", [("foreground", 0.005), ("normal", 0.01), ("background", 0.025)])
async def test_two_hundred_overdue_runs_start_one_by_one_ever_faster_in_order(sup, virtual, priority, first_s):
    runs = await overdue(sup, 200, priority=priority)
    began = virtual.now()
    await sup.restart()
    starts = [await run.result() - began for run in runs]
    assert starts == sorted(starts)
    assert starts == pytest.approx(spacing(200, first_s), abs=1e-4)
    assert starts[-1] < RAMP_S


@pytest.mark.failure("G6")
async def test_the_urgent_do_not_wait_for_the_others(sup, virtual):
    slow = await overdue(sup, 50, priority="background")
    sup._scheduler.board.starting = False
    urgent = [sup.submit(f"work:u{n}", instant, priority="foreground") for n in range(50)]
    sup._scheduler.board.starting = True
    began = virtual.now()
    await sup.restart()
    starts = [await run.result() - began for run in urgent]
    assert starts == pytest.approx(spacing(50, 0.005), abs=1e-4)
    assert max(starts) < [await run.result() - began for run in slow][15]


@pytest.mark.failure("G6")
async def test_work_that_waited_for_a_restart_that_was_taken_back_comes_on_a_ramp_too(sup, virtual):
    async def sleeps(ctx):
        await anyio.sleep(3.0)

    first = sup.submit("work:a", sleeps)
    runs = await overdue(sup, 100, priority="foreground")
    with anyio.move_on_after(1.0):
        await sup.restart(drain_timeout=10.0)
    began = virtual.now()
    starts = [await run.result() - began for run in runs]
    assert starts == pytest.approx(spacing(100, 0.005), abs=1e-4)
    await first.wait()


async def test_behind_the_ramp_all_is_at_full_speed(sup, virtual):
    await sup.restart()
    await anyio.sleep(RAMP_S)
    now = virtual.now()
    runs = [sup.submit(f"work:{n}", instant, priority="background") for n in range(20)]
    assert [await run.result() - now for run in runs] == about([0.0] * 20)


@pytest.mark.failure("G6", "E15")
async def test_control_is_not_on_it(sup, virtual):
    runs = await overdue(sup, 50)
    await sup.restart()
    now = virtual.now()
    with anyio.fail_after(0.001):
        await sup.reset("no such session")
    assert virtual.now() == now
    assert max([await run.result() for run in runs]) > now


def test_a_second_ramp_starts_from_its_own_foot():
    throttle = Throttle()
    throttle.ramp(0.0, 2.0)
    throttle.started("main", Priority.FOREGROUND, 0.0)
    assert throttle.may_start_at("main", Priority.FOREGROUND, 0.0) == 0.005
    assert throttle.holds_back("main") and not throttle.holds_back("control")
    throttle.ramp(100.0, 2.0)
    assert throttle.may_start_at("main", Priority.FOREGROUND, 100.0) <= 100.0
    throttle.started("main", Priority.FOREGROUND, 100.0)
    assert throttle.may_start_at("main", Priority.FOREGROUND, 100.0) == 100.005
    assert throttle.may_start_at("main", Priority.FOREGROUND, 102.0) <= 102.0
    assert not throttle.holds_back("main")


def test_slowed_on_a_ramp_it_is_the_slower_of_both_and_restored_it_stays_on_the_ramp():
    throttle = Throttle()
    throttle.ramp(0.0, 2.0)
    throttle.slow("the event loop was late")
    throttle.started("main", Priority.BACKGROUND, 0.0)
    assert throttle.may_start_at("main", Priority.BACKGROUND, 0.0) == 2.0
    assert throttle.restore()
    assert throttle.may_start_at("main", Priority.BACKGROUND, 0.0) == 0.025
    assert throttle.holds_back("main")


async def test_a_ramp_ends_although_nothing_was_started_on_it(sup):
    await sup.restart()
    assert sup._scheduler.board.throttle.holds_back("main")
    await anyio.sleep(RAMP_S + 2.0)
    assert not sup._scheduler.board.throttle.holds_back("main")
