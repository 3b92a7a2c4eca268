"""Suite S1: whatever is asked of lanes, in whatever order, the promises hold. `schedules.py` says what is played."""

from __future__ import annotations

import os
import traceback

import anyio
import pytest
import structlog
import trio

from lanes import GroupSpec, LaneSpec, RunState
from runtime import Supervisor
from runtime.testing.virtual import virtual_time
from tests.schedules import INTERNAL_ERRORS, SCENARIOS, Plain, Schedule, World

pytestmark = pytest.mark.suite("S1")

BACKENDS = ("asyncio", "trio")
SCHEDULES = 2_000_000 if os.environ.get("LANES_LONG") else 12_000
EACH = SCHEDULES // (len(SCENARIOS) * len(BACKENDS))
PER_LOOP = 500


@pytest.fixture(autouse=True)
def _plain_tracebacks(monkeypatch):
    monkeypatch.setattr(traceback, "format_exception", Plain.format_exception)


@pytest.fixture(autouse=True)
def _shuffled(monkeypatch):
    """Have trio shuffle each batch of ready tasks from the seed; by itself it only reverses one now and then."""
    monkeypatch.setattr(trio._core._run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)


def play(name: str, backend: str, root, seeds) -> list[Schedule]:
    """The schedules of these seeds, in one event loop."""
    with virtual_time() as clock, structlog.testing.capture_logs() as logs:
        world = World(SCENARIOS[name], root, clock)
        played = clock.run(backend, world.play, seeds)
    assert [line for line in logs if line["event"] in INTERNAL_ERRORS] == []
    return played


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SCENARIOS)
def test_no_schedule_breaks_a_promise(name, backend, tmp_path):
    traces = set()
    for first in range(0, EACH, PER_LOOP):
        seeds = range(first, min(first + PER_LOOP, EACH))
        traces |= {hash(tuple(schedule.trace)) for schedule in play(name, backend, tmp_path, seeds)}
    assert len(traces) >= 0.8 * EACH, f"only {len(traces)} of {EACH} schedules are distinct"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SCENARIOS)
def test_the_same_seed_gives_the_same_trace(name, backend, tmp_path):
    seeds = list(range(8))
    once = {seed: schedule.trace for seed, schedule in zip(seeds, play(name, backend, tmp_path, seeds), strict=True)}
    seeds.reverse()
    again = {seed: schedule.trace for seed, schedule in zip(seeds, play(name, backend, tmp_path, seeds), strict=True)}
    assert once == again


# What schedules have found, by hand.


async def test_a_queued_run_that_is_lent_its_followers_priority_takes_a_reserved_slot_at_once(virtual, tmp_path):
    release = anyio.Event()

    async def holds(ctx):
        await release.wait()

    specs = [LaneSpec("slow:*", priority="normal"), LaneSpec("fast", priority="foreground")]
    async with Supervisor(tmp_path, lanes=specs, groups=[GroupSpec("main", slots=2, reserve=1)]) as sup:
        sup.submit("slow:one", holds)  # has the only slot that is not for the foreground
        waits = sup.submit("slow:two", holds, session="a")
        assert waits.started_at is None
        sup.submit("fast", holds, session="a")
        assert waits.state is RunState.RUNNING
        release.set()


async def test_a_run_that_is_cancelled_in_the_instant_it_may_start_lets_its_follower_start(virtual, tmp_path):
    release = anyio.Event()

    async def holds(ctx):
        await release.wait()

    async with Supervisor(tmp_path, lanes=[LaneSpec("slow:*", priority="normal")]) as sup:
        sup._scheduler.board.throttle.slow("on purpose")
        sup.submit("slow:one", holds)
        leaves = sup.submit("slow:two", holds, session="a")
        follows = sup.submit("slow:three", holds, session="a")
        assert leaves.state is RunState.QUEUED
        virtual.advance(0.5)  # the loop is late: admission has not looked again yet
        assert leaves.cancel()
        assert follows.state is RunState.RUNNING
        release.set()
