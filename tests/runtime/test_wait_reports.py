"""`lanes status` and `lanes stack` give the same answer to the question what a run waits for."""

from __future__ import annotations

import anyio
import pytest
from anyio import create_task_group, sleep_forever

from lanes import LaneSpec, PoolSpec
from lanes.core.needs import Kind, needs_of
from runtime import Supervisor
from runtime.cli.status import head
from runtime.inspect.run_report import report_on
from runtime.status import protocol
from runtime.status.handlers import Handlers

pytestmark = pytest.mark.backends("asyncio", "trio")
LANES = [
    LaneSpec("work:*", timeout=500.0, queue_limit=None, grace=0.5),
    LaneSpec("one", grace=0.5),
    LaneSpec("many", capacity=4, grace=0.5),
]


@pytest.fixture
async def sup(virtual, tmp_path):
    async with Supervisor(tmp_path, lanes=LANES, drain_timeout=1.0) as sup:
        yield sup


async def waits(ctx):
    await sleep_forever()


async def end(sup):
    runs = sup.runs()
    sup.cancel()
    for run in runs:
        await run.wait()
    await anyio.sleep(1.0)


def first_waits(sup, run):
    """What the two reports say first: `waits_for` of the status, and the first such line of the stack."""
    status = Handlers(sup).answer(protocol.Status(), "a test").status
    assert status is not None
    (row,) = (row for row in status.runs if row.id == run.id)
    told = [line.removeprefix("waits for ") for line in report_on(run).splitlines() if line.startswith("waits for ")]
    return row.waits_for, row.holder, told


async def test_on_the_ramp_after_a_restart_both_say_why_it_does_not_start_yet(sup):
    sup._scheduler.board.starting = False
    runs = [sup.submit(f"work:{number}", waits, priority="background") for number in range(50)]
    sup._scheduler.board.starting = True
    await sup.restart()
    run = next(run for run in reversed(runs) if run.state == "queued")
    assert not sup.statistics().admission_slowed  # that is for an overloaded process
    short, _, long = first_waits(sup, run)
    assert short == "admission, which is slowed: work that was overdue at a restart starts little by little"
    assert long == [short]
    await end(sup)


@pytest.mark.parametrize("what", ["the place on its lane", "the turn of its session"])
async def test_while_draining_both_say_that_nothing_starts(sup, what):
    lane = "one" if what == "the place on its lane" else "work:a"
    first, second = sup.submit(lane, waits, session="a"), sup.submit(lane, waits, session="a")
    async with create_task_group() as group:
        group.start_soon(sup.drain, 30.0)
        await anyio.sleep(1.0)
        assert (first.state, second.state) == ("running", "queued")
        short, holder, long = first_waits(sup, second)
        assert (short, holder) == ("admission, which is closed", "")
        assert long[0] == "admission: the supervisor is not started yet, or drains, and starts nothing"
        group.cancel_scope.cancel()
    await end(sup)


async def test_a_run_that_waits_for_another_one_names_it_in_both(sup):
    child = []

    async def parent(ctx):
        child.append(ctx.submit("one", waits))
        await child[0].wait()

    run = sup.submit("work:a", parent)
    await anyio.sleep(1.0)
    short, holder, long = first_waits(sup, run)
    assert (short, holder) == (f"run {child[0].id}", f"run {child[0].id} on lane one")
    assert long[0].startswith(f"run {child[0].id} on lane one (running for 1.0 s")
    await end(sup)


async def test_what_both_report_is_what_the_deadlock_detector_searches(sup):
    first, second, third = (sup.submit("many", waits, session="a") for _ in range(3))
    await anyio.sleep(1.0)
    need, *more = needs_of(third._execution)
    assert (need.kind, need.runs, more) == (Kind.TURN, [second._execution], [])
    short, holder, long = first_waits(sup, third)
    assert (short, holder) == ("the turn of session a", f"run {first.id} on lane many")
    assert long[0].startswith(f"its turn of session a: 2 before it, first run {first.id} on lane many (running for")
    await end(sup)


async def test_a_run_that_waits_for_a_pool_says_what_the_pool_lacks_in_both(virtual, tmp_path):
    async def calls(ctx):
        async with ctx.pool("model") as grant:
            if ctx.run.id == 1:
                await anyio.sleep(9.0)
                grant.throttled(retry_after=30.0)

    async with Supervisor(tmp_path, lanes=[LaneSpec("many", capacity=3)], pools=[PoolSpec("model", slots=1)]) as sup:
        one = sup.submit("many", calls)
        await anyio.sleep(1.0)
        other = sup.submit("many", calls)
        await anyio.sleep(1.0)
        short, holder, long = first_waits(sup, other)
        assert (short, holder) == ("a grant of pool model: 1 of 1 slots held", f"run {one.id} on lane many")
        assert long[0].startswith(
            f"a grant of pool model: 1 of 1 slots held, held by run {one.id} on lane many (running"
        )
        await one.result()
        short, holder, _ = first_waits(sup, other)
        assert (short, holder) == ("a grant of pool model: paused for 30.0 s more, as the provider asked", "")
        pools = next(line for line in head(Handlers(sup)._picture(None)) if line.startswith("pools: "))
        assert pools == "pools: model 0/1 (1 waiting, for 8.0 s at most; paused for 30.0 s more; lowered to 50%)"
