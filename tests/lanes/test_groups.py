"""Capacity of lanes, slots of groups, the reserve, priorities with age, and turn-taking among lanes."""

from __future__ import annotations

from functools import partial

import anyio
import pytest

from lanes import GroupSpec, LaneFull, LaneSpec, Run, RunState
from runtime import Supervisor
from tests.supervised import about, assert_empty

LANE = partial(LaneSpec, timeout=1000.0, queue_limit=None)


class Counting:
    """A body that sleeps and notes in which order runs start, and how many run at once."""

    def __init__(self) -> None:
        self.running = self.most = 0
        self.started: list[str] = []

    async def __call__(self, ctx, name, seconds=1.0):
        self.started.append(name)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await anyio.sleep(seconds)
        finally:
            self.running -= 1


async def test_a_lane_runs_as_many_as_its_capacity_in_order(virtual, tmp_path):
    body = Counting()
    started: list[Run] = []
    async with Supervisor(tmp_path, lanes=[LANE("work", capacity=3)], on_run_start=started.append) as sup:
        began = virtual.now()
        runs = [sup.submit("work", body, str(n)) for n in range(10)]
        assert [run.state for run in runs] == [RunState.RUNNING] * 3 + [RunState.QUEUED] * 7
        for run in runs:
            await run.result()
        assert virtual.now() == about(began + 4)
        assert (body.most, started) == (3, runs)
        assert_empty(sup)


async def test_a_group_runs_as_many_as_its_slots_over_all_its_lanes(virtual, tmp_path):
    body = Counting()
    async with Supervisor(tmp_path, lanes=[LANE("work:*", group="few")], groups=[GroupSpec("few", slots=2)]) as sup:
        runs = [sup.submit(f"work:{n}", body, str(n)) for n in range(7)]
        assert sup.statistics().groups["few"].running == 2
        for run in runs:
            await run.result()
        assert body.most == 2
        assert_empty(sup)


async def test_groups_do_not_wait_for_each_other(virtual, tmp_path):
    body = Counting()
    lanes = [LANE("a", group="a"), LANE("b", group="b")]
    async with Supervisor(tmp_path, lanes=lanes, groups=[GroupSpec("a", slots=1), GroupSpec("b", slots=1)]) as sup:
        runs = [sup.submit(lane, body, lane) for lane in "ab"]
        assert [run.state for run in runs] == [RunState.RUNNING] * 2
        for run in runs:
            await run.result()
        assert sorted(body.started) == ["a", "b"]


@pytest.mark.parametrize("end", ["returns", "raises", "times out", "is cancelled"])
async def test_place_and_slot_are_given_back_however_a_run_ends(virtual, tmp_path, end):
    async def body(ctx):
        if end == "raises":
            raise LookupError
        if end != "returns":
            await anyio.sleep_forever()

    lanes, groups = [LANE("work", group="one")], [GroupSpec("one", slots=1)]
    async with Supervisor(tmp_path, lanes=lanes, groups=groups) as sup:
        for _ in range(3):
            run = sup.submit("work", body, timeout=5.0)
            if end == "is cancelled":
                await virtual.settle()
                run.cancel()
            await run.wait()
            assert sup.statistics().groups["one"].running == 0
            assert sup.statistics().lanes["work"].running == 0
        assert_empty(sup)


@pytest.mark.failure("E6")
async def test_the_reserve_is_kept_for_the_foreground(virtual, tmp_path):
    body = Counting()
    lanes = [LANE("quiet:*", group="one"), LANE("user:*", group="one", priority="foreground")]
    async with Supervisor(tmp_path, lanes=lanes, groups=[GroupSpec("one", slots=4, reserve=2)]) as sup:
        quiet = [sup.submit(f"quiet:{n}", body, f"quiet {n}", 100.0) for n in range(6)]
        assert [run.state for run in quiet] == [RunState.RUNNING] * 2 + [RunState.QUEUED] * 4
        users = [sup.submit(f"user:{n}", body, f"user {n}") for n in range(2)]
        assert [run.state for run in users] == [RunState.RUNNING] * 2
        for run in users:
            await run.result()
        assert [run.state for run in quiet] == [RunState.RUNNING] * 2 + [RunState.QUEUED] * 4
        sup.cancel()


async def test_the_more_urgent_of_two_that_came_together_goes_first(virtual, tmp_path):
    body = Counting()
    async with Supervisor(tmp_path, lanes=[LANE("work:*", group="one")], groups=[GroupSpec("one", slots=1)]) as sup:
        runs = [sup.submit("work:0", body, "holder")]
        classes = ("background", "normal", "foreground")
        runs += [sup.submit(f"work:{name}", body, name, priority=name) for name in classes]
        for run in runs:
            await run.result()
        assert body.started == ["holder", "foreground", "normal", "background"]


@pytest.mark.failure("E7")
@pytest.mark.parametrize("reserve", [0, 1])
@pytest.mark.parametrize("quiet", ["background", "normal"])
async def test_quiet_work_starts_though_the_foreground_would_fill_every_slot(virtual, tmp_path, quiet, reserve):
    body = Counting()
    lanes = [LANE("user:*", group="few", priority="foreground"), LANE("quiet", group="few", priority=quiet)]
    async with Supervisor(tmp_path, lanes=lanes, groups=[GroupSpec("few", slots=2, reserve=reserve)]) as sup:

        async def flood():
            n = 0
            while True:  # three come in the time that two slots take for two
                sup.submit(f"user:{n}", body, "user")
                n += 1
                await anyio.sleep(1 / 3)

        async with anyio.create_task_group() as group:
            group.start_soon(flood)
            await anyio.sleep(3)
            run = sup.submit("quiet", body, "quiet")
            with anyio.move_on_after(60):
                await run.wait()
            group.cancel_scope.cancel()
        state = run.state
        sup.cancel()
        assert state is RunState.DONE, f"it has waited for 60 s: {sup.statistics().groups}"
        assert body.started.count("quiet") == 1


async def test_lanes_of_a_class_take_turns(virtual, tmp_path):
    body = Counting()
    async with Supervisor(tmp_path, lanes=[LANE("work:*", group="one")], groups=[GroupSpec("one", slots=1)]) as sup:
        runs = [sup.submit("work:hog", body, "hog") for _ in range(6)]
        runs += [sup.submit(f"work:{name}", body, name) for name in "abc" for _ in range(2)]
        for run in runs:
            await run.result()
        assert body.started == ["hog", "a", "b", "c"] * 2 + ["hog"] * 4


async def test_a_run_of_low_priority_gets_no_reserved_slot_by_its_lanes_place_in_the_queue(virtual, tmp_path):
    """Its lane had queued up for an urgent run, which was cancelled."""
    body = Counting()
    lanes = [LANE("user:*", group="few", priority="foreground"), LANE("work", group="few")]
    async with Supervisor(tmp_path, lanes=lanes, groups=[GroupSpec("few", slots=2, reserve=1)]) as sup:
        sup.submit("user:0", body, "unreserved", 100.0, priority="normal")
        holder = sup.submit("user:1", body, "reserved", 3.0)
        urgent = sup.submit("work", body, "urgent", priority="foreground")
        quiet = sup.submit("work", body, "quiet", 100.0, priority="background")
        late = sup.submit("work", body, "late", 1.0, priority="background")
        urgent.cancel()
        await holder.wait()
        await anyio.sleep(1)
        user = sup.submit("user:9", body, "user 9")
        states = (quiet.state, late.state, user.state)
        sup.cancel()
        # The slot that is not reserved is taken; the other one is for the foreground only.
        assert states == (RunState.QUEUED, RunState.QUEUED, RunState.RUNNING)


@pytest.mark.failure("E5")
async def test_a_run_that_queues_for_a_busy_session_takes_no_place_and_no_slot(virtual, tmp_path):
    body = Counting()
    lanes = [LANE("main", capacity=2, group="two"), LANE("session:*", group="other")]
    groups = [GroupSpec("two", slots=2), GroupSpec("other", slots=9)]
    async with Supervisor(tmp_path, lanes=lanes, groups=groups) as sup:
        holder = sup.submit("session:busy", body, "holder", 50.0)
        blocked = [sup.submit("main", body, "blocked", session="busy") for _ in range(5)]
        assert sup.statistics().lanes["main"].running == sup.statistics().groups["two"].running == 0
        others = [sup.submit("main", body, f"other {n}", session=f"free {n}") for n in range(2)]
        assert [run.state for run in others] == [RunState.RUNNING] * 2
        for run in others:
            await run.result()
        assert holder.state is RunState.RUNNING and {run.state for run in blocked} == {RunState.QUEUED}
        await holder.wait()
        for run in blocked:
            await run.wait()
        assert sorted(body.started[:3]) == ["holder", "other 0", "other 1"]
        assert body.started[3:] == ["blocked"] * 5
        assert_empty(sup)


# Limits


@pytest.mark.parametrize("limit", [0, 1, 3])
async def test_a_queue_takes_exactly_its_limit(virtual, tmp_path, limit):
    body = Counting()
    async with Supervisor(tmp_path, lanes=[LaneSpec("work", queue_limit=limit)]) as sup:
        runs = [sup.submit("work", body, str(n)) for n in range(1 + limit)]
        with pytest.raises(
            LaneFull, match=rf"'work' is full: {limit} queued; allowed: {limit} \(queue_limit\)"
        ) as caught:
            sup.submit("work", body, "one too many")
        error = caught.value
        assert (error.lane, error.queued, error.limit, error.retryable) == ("work", limit, limit, True)
        await runs[0].wait()
        runs.append(sup.submit("work", body, "again"))
        for run in runs:
            await run.result()
        assert "one too many" not in body.started and len(body.started) == 2 + limit


async def test_a_limit_of_0_refuses_what_would_wait_for_a_slot_that_is_reserved(virtual, tmp_path):
    body = Counting()
    lanes = [LaneSpec("work:*", queue_limit=0, group="two")]
    async with Supervisor(tmp_path, lanes=lanes, groups=[GroupSpec("two", slots=2, reserve=1)]) as sup:
        first = sup.submit("work:a", body, "a")
        with pytest.raises(LaneFull):
            sup.submit("work:b", body, "b")
        await first.wait()
        assert body.started == ["a"]


async def test_a_refused_run_leaves_no_trace(virtual, tmp_path):
    body = Counting()
    async with Supervisor(tmp_path, lanes=[LaneSpec("work:*", queue_limit=0)]) as sup:
        run = sup.submit("work:a", body, "a")
        before = sup.runs()
        for _ in range(3):
            with pytest.raises(LaneFull):
                sup.submit("work:a", body, "refused")
        assert sup.runs() == before == [run]
        await run.wait()
        assert_empty(sup)


async def test_a_run_that_cannot_open_its_session_fails_and_so_may_a_thousand_behind_it(virtual, tmp_path):
    """Each one that fails lets the next one in, in the same instant."""
    body = Counting()
    async with Supervisor(tmp_path, lanes=[LANE("work")]) as sup:
        first = sup.submit("work", body, "first")
        (tmp_path / sup.layout.file_of("directory").rpartition("/")[2]).mkdir()
        runs = [sup.submit("work", body, "never", session="directory") for _ in range(1000)]
        last = sup.submit("work", body, "last")
        await first.wait()
        await last.result()
        assert {run.state for run in runs} == {RunState.FAILED}
        assert body.started == ["first", "last"]
        assert_empty(sup)


@pytest.mark.failure("E6")
@pytest.mark.parametrize("slots,reserve", [(1, 0), (2, 1)])
async def test_a_run_that_comes_to_the_front_of_its_lane_is_admitted_in_its_own_class(
    virtual, tmp_path, slots, reserve
):
    """Its lane stands in the ring of the run that was in front before, and that one has gone."""
    body = Counting()
    specs = [LANE("a", group="few", priority="normal"), LANE("b", group="few", priority="normal")]
    groups = [GroupSpec("few", slots=slots, reserve=reserve)]
    async with Supervisor(tmp_path, lanes=specs, groups=groups) as sup:
        first = sup.submit("a", body, "first", 10.0)
        await virtual.settle()
        quiet = sup.submit("b", body, "quiet")
        urgent = sup.submit("b", body, "urgent", priority="foreground")
        assert quiet.cancel("not needed any more")
        if reserve == 0:
            assert first.cancel("make room")
            await first.wait()
        await urgent.result()
        assert (virtual.now(), body.started) == (about(urgent.enqueued_at + 1.0), ["first", "urgent"])
        await first.wait()
        assert_empty(sup)
