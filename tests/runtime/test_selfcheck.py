"""What must never be is looked for, said, and mended where it can be: a lost timer, a lost wake-up."""

from __future__ import annotations

import anyio
import pytest
from structlog.testing import capture_logs

from lanes import LaneSpec, RunState
from lanes.core.causes import Causes
from lanes.core.start import Starting
from runtime import Supervisor
from tests.supervised import Shielded, assert_empty, gone

LANES = [LaneSpec("work:*", timeout=10.0, grace=2.0), LaneSpec("one", timeout=50.0)]


def named(logs, event):
    return [entry for entry in logs if entry["event"] == event]


async def returns(ctx):
    return "well"


@pytest.fixture
async def sup(virtual, tmp_path):
    async with Supervisor(tmp_path, lanes=LANES) as sup:
        yield sup


@pytest.mark.failure("F2")
async def test_a_recovery_that_frees_nothing_is_said_and_unhealthy(sup, monkeypatch):
    abandon, body = Causes._abandon, Shielded()
    monkeypatch.setattr(Causes, "_abandon", lambda self, execution, due: None)
    run = sup.submit("work:a", body)
    with capture_logs() as logs:
        await anyio.sleep(18.0)
        before = sup.statistics()
        await anyio.sleep(5.0)
        now = sup.statistics()
    monkeypatch.setattr(Causes, "_abandon", abandon)
    body.release()
    await run.wait()
    assert before.healthy, "deadline, twice the grace, and what the loop may be late"
    (problem,) = now.problems
    assert problem.startswith("run 1 on lane work:a (pid ") and "should have been ended by now" in problem
    assert not now.healthy
    (told,) = named(logs, "recovery_failed")
    assert told["reason"] == problem, "once, however long it lasts"
    await anyio.sleep(2.5)
    assert sup.statistics().healthy
    assert_empty(sup)


@pytest.mark.failure("F2")
async def test_a_lost_wake_up_is_said_and_made_good(sup, monkeypatch):
    first = sup.submit("one", returns)
    second = sup.submit("one", returns)
    monkeypatch.setattr(Starting, "admit_group", lambda self, group: None)
    await first.wait()
    await anyio.sleep(0.1)
    assert second.state is RunState.QUEUED
    monkeypatch.undo()
    with capture_logs() as logs, anyio.fail_after(3.0):
        assert await second.result() == "well"
    assert [entry["reason"] for entry in named(logs, "recovery_failed")] == [
        "work of group main is ready, there is room for it, and it does not start"
    ]
    await anyio.sleep(2.5)
    assert sup.statistics().healthy


@pytest.mark.failure("F4")
@pytest.mark.parametrize("seconds", [8.0, 30.0, 300.0])
async def test_a_stall_past_every_bound_is_no_failure_of_the_recovery(sup, virtual, seconds):
    async def blocks(ctx):
        await anyio.sleep(9.0)
        virtual.advance(seconds)

    run, body = sup.submit("work:a", Shielded()), None
    body = sup._scheduler.board.live[run.id].body
    sup.submit("work:b", blocks)
    with capture_logs() as logs:
        await run.wait()
        await anyio.sleep(5.0)
    assert named(logs, "recovery_failed") == []
    assert sup.statistics().problems == ()
    body.release()
    await gone(sup)


async def test_what_waits_for_its_pace_or_while_draining_is_no_defect(sup):
    sup._scheduler.board.throttle.restore = lambda: False
    sup._scheduler.board.throttle.slow("for a test")
    runs = [sup.submit(f"work:{n}", returns, priority="background") for n in range(4)]
    with capture_logs() as logs:
        for run in runs:
            await run.wait()
        sup._scheduler.shut()
        await anyio.sleep(5.0)
        sup._scheduler.open()
    assert named(logs, "recovery_failed") == []


@pytest.mark.failure("F2")
async def test_after_each_recovery_the_lane_is_idle_its_owner_fenced_and_the_queue_moves(sup):
    kept = []

    class Writes(Shielded):
        async def __call__(self, ctx):
            kept.append(ctx)
            await super().__call__(ctx)

    body = Writes()
    stuck = sup.submit("work:a", body, session="s")
    following = [sup.submit("work:a", returns, session="s") for _ in range(3)]
    assert [await run.result() for run in following] == ["well"] * 3
    assert stuck.state is RunState.ABANDONED
    with pytest.raises(Exception, match="has ended: nothing written"):
        await kept[0].session.append({"text": "late"})
    assert "work:a" not in sup.statistics().lanes
    assert sup.statistics().problems == ()
    body.release()
    await gone(sup)
