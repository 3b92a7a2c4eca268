"""The phases of a supervisor's life: the table of moves, what users see of it, and moves that overlap."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import anyio
import pytest

from lanes import Draining, LaneSpec
from runtime import Supervisor
from runtime.phase import MOVES, STATES, Phase, Standing
from runtime.services import Services, ServicesStuck

LANES = [LaneSpec("side:*", timeout=10.0, grace=2.0)]


async def returns(ctx, value=None):
    return value


@pytest.fixture
def moves(monkeypatch):
    """The phases that supervisors have entered, in order."""
    entered, move = [], Standing.move

    def recorded(self, phase):
        if phase is not self.phase:
            entered.append(phase)
        move(self, phase)

    monkeypatch.setattr(Standing, "move", recorded)
    return entered


class Slow:
    """A service that takes a second to be entered, and one to be left."""

    def __init__(self) -> None:
        self.there = 0

    @asynccontextmanager
    async def service(self):
        await anyio.sleep(1.0)
        self.there += 1
        try:
            yield
        finally:
            self.there -= 1
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1.0)


def test_each_phase_has_its_moves_and_its_state_and_ends():
    assert set(MOVES) == set(STATES) == set(Phase)
    assert [phase for phase, after in MOVES.items() if Phase.STOPPED not in after] == [Phase.STOPPED]
    assert {phase for after in MOVES.values() for phase in after} == set(Phase) - {Phase.NEW}
    assert not MOVES[Phase.STOPPED] and MOVES[Phase.STOPPING] == {Phase.STOPPED}, "nothing opens admission again"


@pytest.mark.parametrize("before", Phase)
@pytest.mark.parametrize("after", Phase)
def test_a_move_that_the_table_does_not_have_names_both_phases(before, after):
    standing = Standing(Services({}), 60.0)
    standing.phase = before
    if after is before or after in MOVES[before]:
        standing.move(after)
        assert standing.phase is after
    else:
        with pytest.raises(AssertionError, match=f"from {before} to {after}$"):
            standing.move(after)
        assert standing.phase is before


async def test_a_life_in_order(virtual, tmp_path, moves):
    sup, states = Supervisor(tmp_path, lanes=LANES), []
    await sup.start()
    states.append(sup.state)
    await sup.restart()
    states.append(sup.state)
    await sup.drain(0.0)
    states.append(sup.state)
    await sup.restart()
    await sup.stop()
    assert moves == [
        Phase.STARTING,
        Phase.RUNNING,
        *(Phase.RESTARTING, Phase.RUNNING),
        Phase.DRAINING,
        *(Phase.RESTARTING, Phase.RUNNING),
        *(Phase.STOPPING, Phase.STOPPED),
    ]
    assert (states, sup.state, sup.generation) == (["running", "running", "draining"], "stopped", 3)


async def test_a_drain_during_the_start_lasts_until_a_restart(virtual, tmp_path, moves):
    slow = Slow()
    sup = Supervisor(tmp_path, lanes=LANES, services={"slow": slow.service})
    async with anyio.create_task_group() as group:
        group.start_soon(sup.start)
        await anyio.sleep(0.5)
        await sup.drain(5.0)
    assert (sup.state, sup.generation) == ("draining", 1)
    with pytest.raises(Draining):
        sup.submit("side:a", returns)
    await sup.restart()
    assert await sup.submit("side:a", returns, 7).result() == 7
    await sup.stop()
    assert slow.there == 0
    assert moves[:3] == [Phase.STARTING, Phase.DRAINING, Phase.RESTARTING]


async def test_a_stop_during_the_start_opens_nothing(virtual, tmp_path, moves):
    slow = Slow()
    sup = Supervisor(tmp_path, lanes=LANES, services={"slow": slow.service})

    async def starts():
        with pytest.raises(RuntimeError, match="stopped while it started"):
            await sup.start()

    async with anyio.create_task_group() as group:
        group.start_soon(starts)
        await anyio.sleep(0.5)
        await sup.stop()
        with pytest.raises(Draining):
            sup.submit("side:a", returns)
    assert slow.there == 0
    assert moves == [Phase.STARTING, Phase.STOPPING, Phase.STOPPED]


async def test_a_drain_that_gives_a_restart_up_and_a_stop_after_it(virtual, tmp_path, moves):
    sup = Supervisor(tmp_path, lanes=LANES)
    await sup.start()
    run = sup.submit("side:a", sleeps, 5.0)
    async with anyio.create_task_group() as group:
        group.start_soon(gives_up, sup)
        await anyio.sleep(1.0)
        assert sup.state == "restarting"
        await sup.drain(10.0)
    assert sup.state == "draining" and run.outcome is not None
    await sup.stop()
    assert moves[2:] == [Phase.RESTARTING, Phase.DRAINING, Phase.STOPPING, Phase.STOPPED]


async def sleeps(ctx, seconds):
    await anyio.sleep(seconds)


async def gives_up(sup):
    with pytest.raises(Draining, match="given up"):
        await sup.restart()


@pytest.mark.backends("asyncio")
async def test_a_restart_of_lanes_that_end_by_themselves_enters_no_new_services(virtual, tmp_path, moves):
    slow = Slow()
    sup = Supervisor(tmp_path, lanes=LANES, services={"slow": slow.service})
    await sup.start()
    async with anyio.create_task_group() as group:
        group.start_soon(gives_up, sup)
        await anyio.sleep(0.5)
        for task in asyncio.all_tasks():
            if task.get_name() == f"supervisor of {tmp_path}":
                task.cancel()
    assert (slow.there, sup.state, sup.generation) == (0, "stopped", 1)
    with pytest.raises(RuntimeError, match="cancelled from outside"):
        await sup.stop()
    assert Phase.RESTARTING in moves and moves.count(Phase.RUNNING) == 1


@pytest.mark.backends("asyncio")
@pytest.mark.parametrize("whose", ["", ": services"])
async def test_a_start_whose_task_is_cancelled_before_its_first_step_fails_at_once(virtual, tmp_path, whose):
    async def cancels():
        task = None
        while task is None:
            tasks = asyncio.all_tasks()
            task = next((one for one in tasks if one.get_name() == f"supervisor of {tmp_path}{whose}"), None)
            await asyncio.sleep(0) if task is None else task.cancel()

    killer = asyncio.get_running_loop().create_task(cancels())
    sup, began = Supervisor(tmp_path, lanes=LANES), virtual.now()
    with anyio.fail_after(5), pytest.raises((RuntimeError, ServicesStuck), match="cancelled"):
        await sup.start()
    await killer
    assert (sup.state, virtual.now()) == ("stopped", began)
