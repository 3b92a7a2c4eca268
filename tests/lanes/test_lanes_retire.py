"""Lanes come into being on first use; those of a pattern go when idle, those with a name of their own stay."""

from __future__ import annotations

import gc

import anyio
import pytest

from lanes import GroupSpec, LaneSpec, Run, RunState
from lanes.core.execution import Execution
from lanes.queues.lane import Lane
from runtime import Supervisor
from tests.supervised import Shielded, assert_empty, gone, sleeps


def alive(kind):
    """All instances, found by the garbage collector."""
    gc.collect()
    return [one for one in gc.get_objects() if type(one) is kind]


async def returns(ctx):
    return ctx.run.id


@pytest.mark.failure("E10", "E11")
async def test_20_000_one_shot_lanes_leave_everything_at_its_baseline(virtual, tmp_path):
    lanes = [LaneSpec("once:*", queue_timeout=3600.0)]
    async with Supervisor(tmp_path, lanes=lanes, keep_outcomes=10) as sup:
        await sup.run("once:0", returns)
        before = sup.statistics()

        async def run_all(names):
            runs = [sup.submit(name, returns) for name in names]
            assert {(await run.wait()).state for run in runs} == {RunState.DONE}

        for first in range(0, 20_000, 1000):
            await run_all(f"once:{n}" for n in range(first, first + 1000))
        after, scheduler = sup.statistics(), sup._scheduler
        assert after.lanes == before.lanes
        assert {group.running for group in after.groups.values()} == {0}
        assert after.runs["done"] == before.runs["done"] + 20_000
        assert_empty(sup)
        assert len(scheduler.board.timers._heap) <= 200, "cancelled timers pile up"
        assert alive(Execution) == [] and alive(Lane) == []
        assert len(alive(Run)) == 10


@pytest.mark.failure("E10")
async def test_a_thousand_one_shot_session_lanes_with_transcripts_leave_no_entry_descriptor_or_task(virtual, tmp_path):
    async def body(ctx):
        await ctx.session.append({"text": "once"})

    async with Supervisor(tmp_path) as sup:
        await sup.run("session:first", body)
        await virtual.settle()
        tasks = len(anyio.get_running_tasks())
        runs = [sup.submit(f"session:{n}", body) for n in range(1000)]
        for run in runs:
            await run.result()
        await virtual.settle()
        assert len(anyio.get_running_tasks()) == tasks
        assert_empty(sup)
        assert len(list(tmp_path.iterdir())) == 1001


async def test_a_lane_of_a_pattern_is_there_while_it_has_work_and_gone_when_idle(virtual, tmp_path):
    async with Supervisor(tmp_path) as sup:
        first, second = sup.submit("session:a", sleeps), sup.submit("session:a", sleeps)
        lane = sup.statistics().lanes["session:a"]
        assert (lane.running, lane.queued, lane.capacity) == (1, 1, 1)
        await anyio.sleep(3)
        assert sup.statistics().lanes["session:a"].oldest_wait_s == pytest.approx(3.0, abs=1e-6)
        first.cancel()
        await first.wait()
        assert sup.statistics().lanes["session:a"].running == 1
        second.cancel()
        await second.wait()
        assert sup.statistics().lanes == {}


async def test_a_lane_with_a_name_of_its_own_stays(virtual, tmp_path):
    async with Supervisor(tmp_path) as sup:
        assert await sup.run("main", returns) == 1
        lane = sup.statistics().lanes["main"]
        assert (lane.running, lane.queued) == (0, 0)
        assert await sup.run("main", returns) == 2


async def test_a_retired_lane_can_be_used_again(virtual, tmp_path):
    async with Supervisor(tmp_path) as sup:
        for n in range(1, 4):
            assert await sup.run("session:a", returns) == n
            assert sup.statistics().lanes == {}


async def test_a_lane_that_only_waits_for_a_slot_and_is_cancelled_is_gone(virtual, tmp_path):
    groups = [GroupSpec("one", slots=1)]
    async with Supervisor(tmp_path, lanes=[LaneSpec("work:*", group="one")], groups=groups) as sup:
        holder = sup.submit("work:holder", sleeps)
        for n in range(100):
            sup.submit(f"work:{n}", sleeps).cancel()
        assert set(sup.statistics().lanes) == {"work:holder"}
        holder.cancel()
        await holder.wait()
        assert_empty(sup)
        await virtual.settle()
        assert alive(Lane) == []


async def test_a_lane_whose_body_was_abandoned_is_gone_and_serves_again_under_its_name(virtual, tmp_path):
    body = Shielded()
    async with Supervisor(tmp_path, lanes=[LaneSpec("session:*", timeout=1.0, grace=0.5)]) as sup:
        run = sup.submit("session:a", body)
        assert (await run.wait()).state is RunState.ABANDONED
        assert sup.statistics().lanes == {}
        assert await sup.run("session:a", returns) == 2
        body.release()
        await gone(sup)
        assert_empty(sup)


@pytest.mark.failure("E9")
async def test_hooks_that_raise_harm_nothing(virtual, tmp_path):
    heard = []

    def hook(run):
        heard.append((run.id, run.state))
        raise RuntimeError("the hook is broken")

    async with Supervisor(tmp_path, on_run_start=hook, on_run_end=hook) as sup:
        for lane in ("session:a", "main"):
            assert isinstance(await sup.run(lane, returns), int)
        run = sup.submit("main", sleeps)
        await virtual.settle()
        run.cancel()
        await run.wait()
        assert_empty(sup)
    assert heard == [(n, state) for n in (1, 2) for state in ("running", "done")] + [(3, "running"), (3, "cancelled")]


@pytest.mark.failure("E9")
async def test_hooks_may_submit_and_cancel(virtual, tmp_path):
    followers: list[Run] = []

    def on_start(run):
        if run.lane == "session:refused":
            run.cancel("refused by the hook")

    def on_end(run):
        if run.lane == "session:a" and len(followers) < 3:
            followers.append(sup.submit("session:a", returns))

    async with Supervisor(tmp_path, on_run_start=on_start, on_run_end=on_end) as sup:
        await sup.run("session:a", returns)
        assert [await run.result() for run in followers] == [2, 3, 4]
        outcome = await sup.submit("session:refused", sleeps).wait()
        assert (outcome.state, outcome.reason) == (RunState.CANCELLED, "refused by the hook")
        assert_empty(sup)


@pytest.mark.failure("E9")
async def test_a_broken_logging_set_up_harms_nothing(virtual, tmp_path, monkeypatch):
    import structlog

    class Broken:
        def __getattr__(self, name):
            raise OSError("the disk of the log is full")

    async def fails(ctx):
        raise LookupError

    monkeypatch.setattr(structlog, "get_logger", lambda *_: Broken())
    async with Supervisor(tmp_path, lanes=[LaneSpec("session:*", timeout=1.0)]) as sup:
        assert (await sup.submit("session:a", fails).wait()).state is RunState.FAILED
        assert (await sup.submit("session:a", sleeps).wait()).state is RunState.TIMED_OUT
        assert await sup.run("session:a", returns) == 3
        assert_empty(sup)
