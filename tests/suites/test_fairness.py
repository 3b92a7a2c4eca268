"""Suite Q1: who gets how many slots, and how long a run waits at most.

The bound that is checked here is derived in `docs/lanes.md`, "How long a run waits at most". Every run of a load is
held to it, and hand-made loads come close to it: a bound that nothing comes near would check nothing.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
import pytest

from lanes import GroupSpec, LaneSpec, RunState
from runtime import Supervisor
from runtime.watch import watchdog
from tests.supervised import TICK, about, assert_empty

pytestmark = [pytest.mark.backends("asyncio", "trio"), pytest.mark.suite("Q1")]

LANE = partial(LaneSpec, group="few", timeout=10.0, grace=0.0, queue_limit=None)
HANDICAP: dict[Any, float] = {"foreground": 0.0, "normal": 1.0, "background": 5.0}
ONE_OF = {"foreground": 3, "normal": 5, "background": 7}
"""Of so many slots that are given away while a class wants one, it gets at least one."""


@pytest.fixture(autouse=True)
def _watched_less_often(monkeypatch):
    # These loads last for minutes of virtual time: twenty pings a second took half of the time of the tests.
    monkeypatch.setattr(watchdog, "PING_S", 1.0)


async def sleeps(ctx, seconds=1.0):
    await anyio.sleep(seconds)


def jain(shares):
    """1 when all are equal, 1/n when one has everything."""
    return sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares))


@dataclass(frozen=True)
class Bound:
    """How long runs of one class wait at most, by what `docs/lanes.md` derives."""

    slots: int
    reserve: int
    longest: float
    """Seconds that a run of the group has a slot at most."""
    priority: str
    lanes: int
    """Lanes of the class that have work."""

    @property
    def own(self):
        return self.slots if self.priority == "foreground" else self.slots - self.reserve

    def with_places(self, place):
        """For the run that is the `place`-th of its lane, which always has a place."""
        windows = math.ceil(ONE_OF[self.priority] * place * self.lanes / self.own)
        return HANDICAP[self.priority] + windows * self.longest

    def on_a_lane_of(self, capacity, place):
        """For the run that is the `place`-th of its lane, which may be full."""
        windows = place * math.ceil(ONE_OF[self.priority] * self.lanes / self.own) + math.ceil(place / capacity)
        return HANDICAP[self.priority] + windows * self.longest


# Shares


@pytest.mark.parametrize("priority", ["foreground", "background"])
@pytest.mark.parametrize("slots", [1, 4, 7])
async def test_lanes_with_equal_load_get_equal_shares(virtual, tmp_path, priority, slots):
    served = Counter[str]()
    lanes = [LANE("work:*", priority=priority, capacity=3)]
    async with Supervisor(
        tmp_path, lanes=lanes, groups=[GroupSpec("few", slots)], on_run_start=lambda run: served.update([run.lane])
    ) as sup:
        for number in range(10):
            for _ in range(60):
                sup.submit(f"work:{number}", sleeps)
        await anyio.sleep(150 / slots)
        shares = [served[f"work:{number}"] for number in range(10)]
        sup.cancel()
    assert sum(shares) >= 150
    assert jain(shares) >= 0.99
    assert max(shares) - min(shares) <= 3  # the first lanes filled their places before there were others


async def test_lanes_with_equal_load_of_unequal_length_get_equal_numbers_of_runs(virtual, tmp_path):
    chance, served = random.Random(7), Counter[str]()
    async with Supervisor(
        tmp_path,
        lanes=[LANE("work:*", capacity=2)],
        groups=[GroupSpec("few", 5)],
        on_run_start=lambda run: served.update([run.lane]),
    ) as sup:
        for number in range(8):
            for _ in range(100):
                sup.submit(f"work:{number}", sleeps, chance.uniform(0.1, 2.0))
        await anyio.sleep(80)
        shares = [served[f"work:{number}"] for number in range(8)]
        sup.cancel()
    assert jain(shares) >= 0.99


async def test_a_lane_with_a_hundredth_of_the_load_is_served_as_if_the_other_had_as_little(virtual, tmp_path):
    async with Supervisor(tmp_path, lanes=[LANE("work:*")], groups=[GroupSpec("few", 1)]) as sup:
        for _ in range(1000):
            sup.submit("work:much", sleeps)
        few = [sup.submit("work:little", sleeps) for _ in range(10)]
        assert [(await run.wait()).waited_s for run in few] == about([2.0 * n + 1.0 for n in range(10)])
        sup.cancel()


async def test_a_hog_with_places_for_every_slot_holds_others_up_for_one_of_its_runs(virtual, tmp_path):
    lanes = [LANE("hog", capacity=4), LANE("work:*")]
    async with Supervisor(tmp_path, lanes=lanes, groups=[GroupSpec("few", 4)]) as sup:
        for _ in range(100):
            sup.submit("hog", sleeps, 10.0)
        await anyio.sleep(1)
        others = [sup.submit(f"work:{number}", sleeps) for number in range(3)]
        assert [(await run.wait()).waited_s for run in others] == about([9.0] * 3)
        sup.cancel()


@pytest.mark.failure("E6", "E7")
@pytest.mark.parametrize(
    "wants,shares",
    [
        (["foreground", "normal", "background"], [6, 3, 2]),
        (["foreground", "normal"], [22, 11]),
        (["foreground", "background"], [24, 8]),
        (["normal", "background"], [6, 4]),
    ],
)
async def test_classes_that_all_want_more_than_there_is_get_their_shares(virtual, tmp_path, wants, shares):
    """Once the oldest of each has waited as long as its class leaves the slots to others."""
    started = Counter[str]()
    async with Supervisor(tmp_path, lanes=[LANE("*")], groups=[GroupSpec("few", 1)]) as sup:
        for name in wants:
            for number in range(100):
                sup.submit(f"{name} {number}", sleeps, priority=name)
        await anyio.sleep(6.5)
        before = sup.statistics().groups["few"].totals.outcomes["done"]
        names = {run.id: run.lane.partition(" ")[0] for run in sup.runs()}
        await anyio.sleep(sum(shares) * 3)
        left = {run.id for run in sup.runs()}
        started.update(name for run_id, name in names.items() if run_id not in left)
        assert sup.statistics().groups["few"].totals.outcomes["done"] == before + sum(shares) * 3
        sup.cancel()
    assert [started[name] / 3 for name in wants] == pytest.approx(shares, abs=0.7)


@pytest.mark.failure("E6")
async def test_a_class_that_had_nothing_to_do_for_long_does_not_have_all_slots_for_as_long_when_it_comes_back(
    virtual, tmp_path
):
    lanes = [LANE("old:*", priority="background"), LANE("user:*", priority="foreground")]
    async with Supervisor(tmp_path, lanes=lanes, groups=[GroupSpec("few", 1)]) as sup:
        for number in range(100):
            sup.submit(f"user:{number}", sleeps)
        await anyio.sleep(40)
        old = [sup.submit(f"old:{number}", sleeps) for number in range(100)]
        await anyio.sleep(5 + 12)
        assert sum(run.state is not RunState.QUEUED for run in old) in (3, 4)
        sup.cancel()


@pytest.mark.failure("E6")
async def test_a_users_message_does_not_wait_for_an_old_backlog_of_background_work(virtual, tmp_path):
    """Nor with no slot in reserve: the next slot or the one after it is the user's."""
    async with Supervisor(
        tmp_path, lanes=[LANE("old:*", priority="background"), LANE("user")], groups=[GroupSpec("few", 2)]
    ) as sup:
        for number in range(200):
            sup.submit(f"old:{number}", sleeps)
        await anyio.sleep(20.5)
        user = sup.submit("user", sleeps, priority="foreground")
        assert (await user.wait()).waited_s == about(0.5)
        sup.cancel()


@pytest.mark.failure("E6")
async def test_a_users_message_starts_at_once_on_a_reserved_slot_however_much_background_there_is(virtual, tmp_path):
    lanes = [LANE("old:*", priority="background"), LANE("user:*", priority="foreground")]
    async with Supervisor(tmp_path, lanes=lanes, groups=[GroupSpec("few", 8, reserve=2)]) as sup:
        for number in range(500):
            sup.submit(f"old:{number}", sleeps, 9.0)
        await anyio.sleep(30)
        users = [sup.submit(f"user:{number}", sleeps) for number in range(2)]
        assert [run.state for run in users] == [RunState.RUNNING] * 2
        sup.cancel()


@pytest.mark.failure("E5")
async def test_sessions_wait_for_each_other_on_a_shared_inner_lane_beyond_its_capacity_only(virtual, tmp_path):
    async def outer(ctx):
        await ctx.submit("inner", sleeps, 4.0).result()

    lanes = [LANE("session:*"), LANE("inner", capacity=6, group="deep")]
    groups = [GroupSpec("few", 1), GroupSpec("deep", 6)]
    async with Supervisor(tmp_path, lanes=lanes, groups=groups) as sup:
        began = virtual.now()
        runs = [sup.submit(f"session:{number}", outer) for number in range(9)]
        assert [(await run.wait()).waited_s for run in runs] == about([0.0] * 9)
        assert virtual.now() == about(began + 8.0)
        assert_empty(sup)


# A turn's holder has the class of who waits for it


@pytest.mark.failure("E6")
async def test_a_foreground_run_that_waits_for_a_turn_lends_its_priority_to_the_one_before_it(virtual, tmp_path):
    started = []
    lanes = [LANE("quiet", priority="background"), LANE("user:*", priority="foreground"), LANE("main", capacity=9)]
    async with Supervisor(
        tmp_path, lanes=lanes, groups=[GroupSpec("few", 1)], on_run_start=lambda run: started.append(run.id)
    ) as sup:
        holder = sup.submit("user:0", sleeps)
        others = [sup.submit("quiet", sleeps) for _ in range(3)]
        keeper = sup.submit("quiet", sleeps, session="a")
        user = sup.submit("user:1", sleeps, session="a")
        assert (await user.wait()).waited_s == about(2.0)
        assert started[:3] == [holder.id, keeper.id, user.id]
        for run in others:
            await run.result()
        assert_empty(sup)


@pytest.mark.failure("E6")
async def test_a_lent_priority_lets_the_turns_holder_have_a_reserved_slot(virtual, tmp_path):
    lanes = [LANE("quiet:*", priority="background"), LANE("user", priority="foreground")]
    async with Supervisor(tmp_path, lanes=lanes, groups=[GroupSpec("few", 2, reserve=1)]) as sup:
        sup.submit("quiet:0", sleeps, 10.0)
        keeper = sup.submit("quiet:1", sleeps, session="a")
        states = [keeper.state]
        user = sup.submit("user", sleeps, session="a")
        assert [*states, keeper.state] == [RunState.QUEUED, RunState.RUNNING]
        assert (await user.wait()).waited_s == about(1.0)
        sup.cancel()


async def test_a_priority_is_lent_for_as_long_as_somebody_waits_with_it(virtual, tmp_path):
    lanes = [LANE("quiet:*", priority="background"), LANE("user", priority="foreground")]
    async with Supervisor(tmp_path, lanes=lanes, groups=[GroupSpec("few", 2, reserve=1)]) as sup:
        first = sup.submit("quiet:0", sleeps, 8.0)
        conductor = sup.submit("quiet:1", sleeps, 5.0, session="a", priority="foreground")
        keeper = sup.submit("quiet:2", sleeps, session="a")
        sup.submit("user", sleeps, session="a").cancel("not needed any more")
        await conductor.result()
        states = [keeper.state]
        await first.result()
        assert [*states, keeper.state] == [RunState.QUEUED, RunState.RUNNING]
        await keeper.result()
        assert_empty(sup)


@pytest.mark.failure("E6")
async def test_a_run_that_goes_on_after_a_wait_has_the_priority_of_who_waits_for_its_turn(virtual, tmp_path):
    async def outer(ctx):
        await ctx.submit("inner", sleeps, 2.0).result()
        return virtual.now()

    lanes = [
        LANE("quiet:*", priority="background"),
        LANE("user", priority="foreground"),
        LANE("inner", group="deep"),
    ]
    groups = [GroupSpec("few", 2, reserve=1), GroupSpec("deep", 1)]
    async with Supervisor(tmp_path, lanes=lanes, groups=groups) as sup:
        began = virtual.now()
        keeper = sup.submit("quiet:0", outer, session="a")
        await virtual.settle()
        hog = sup.submit("quiet:1", sleeps, 9.0)
        assert hog.state is RunState.RUNNING  # on the slot that is lent
        sup.submit("user", sleeps, session="a")
        assert await keeper.result() == about(began + 2.0)
        sup.cancel()


@pytest.mark.failure("E6")
async def test_a_run_that_waits_to_go_on_is_lent_the_priority_of_who_comes_to_wait_for_its_turn(virtual, tmp_path):
    async def outer(ctx):
        await ctx.submit("inner", sleeps, 2.0).result()
        return virtual.now()

    lanes = [
        LANE("quiet:*", priority="background"),
        LANE("user", priority="foreground"),
        LANE("inner", group="deep"),
    ]
    groups = [GroupSpec("few", 2, reserve=1), GroupSpec("deep", 1)]
    async with Supervisor(tmp_path, lanes=lanes, groups=groups) as sup:
        began = virtual.now()
        keeper = sup.submit("quiet:0", outer, session="a")
        await virtual.settle()
        sup.submit("quiet:1", sleeps, 9.0)  # on the slot that is lent
        await anyio.sleep(3)
        assert sup.statistics().groups["few"].returning == 1
        user = sup.submit("user", sleeps, session="a")
        assert await keeper.result() == about(began + 3.0)
        await user.result()
        group = sup._scheduler.board.groups["few"]
        assert (group.running, group.others) == (1, 1)
        sup.cancel()


# The bound


@pytest.mark.failure("E7")
@pytest.mark.parametrize("quiet", ["normal", "background"])
@pytest.mark.parametrize("slots,reserve", [(1, 0), (3, 0), (4, 2)])
async def test_quiet_runs_start_within_their_bound_though_the_foreground_would_fill_everything(
    virtual, tmp_path, slots, reserve, quiet
):
    bound = Bound(slots, reserve, 10.0, quiet, lanes=4)
    lanes = [LANE("user:*", priority="foreground"), LANE("quiet:*", capacity=9, priority=quiet)]
    async with Supervisor(tmp_path, lanes=lanes, groups=[GroupSpec("few", slots, reserve=reserve)]) as sup:
        for number in range(1000):
            sup.submit(f"user:{number}", sleeps, 9.9)
        runs = [sup.submit(f"quiet:{number}", sleeps, 9.9) for _ in range(3) for number in range(4)]
        waited = [(await run.wait()).waited_s for run in runs]
        limits = [bound.with_places(1 + index // 4) for index in range(12)]
        assert all(one <= limit + TICK for one, limit in zip(waited, limits, strict=True))
        assert waited[-1] > 0.2 * limits[-1], "nothing comes near the bound"
        sup.cancel()


@pytest.mark.parametrize("reserve", [0, 2])
async def test_a_foreground_run_starts_within_its_bound_though_everything_else_is_old(virtual, tmp_path, reserve):
    """Two other classes with old backlogs want every slot, and ten lanes of its own class are full of young work."""
    bound = Bound(4, reserve, 10.0, "foreground", lanes=11)
    async with Supervisor(tmp_path, lanes=[LANE("*")], groups=[GroupSpec("few", 4, reserve=reserve)]) as sup:
        for priority in ("normal", "background"):
            for number in range(200):
                sup.submit(f"{priority} {number}", sleeps, 9.9, priority=priority)
        await anyio.sleep(30)
        for number in range(10):
            for _ in range(20):
                sup.submit(f"user {number}", sleeps, 9.9, priority="foreground")
        user = sup.submit("user 10", sleeps, priority="foreground")
        assert 0.2 * bound.with_places(1) < (await user.wait()).waited_s <= bound.with_places(1)
        sup.cancel()


@pytest.mark.parametrize("seed", range(12))
async def test_no_run_of_a_random_load_waits_longer_than_its_bound(virtual, tmp_path, seed):
    """Hogs, bursts, lanes full of young work, runs that end badly, and runs that lend their slots, in any mixture."""
    chance = random.Random(seed)
    slots = chance.choice([1, 2, 3, 5, 8])
    reserve = chance.randrange(slots)
    capacity = chance.choice([1, 2, 9])
    names = [f"{priority} {number}" for priority in HANDICAP for number in range(chance.choice([1, 3, 6]))]
    weights = [chance.choice([1, 1, 5, 30]) for _ in names]
    queue: Counter[str] = Counter()
    limits, runs = {}, []

    async def fails(ctx):
        await anyio.sleep(chance.uniform(0, 5))
        raise LookupError

    async def lends(ctx):
        await ctx.submit("inner", sleeps, chance.uniform(0, 3)).result()
        await anyio.sleep(chance.uniform(0, 3))

    async def overruns(ctx):
        await anyio.sleep_forever()

    specs = [LANE(f"{priority} *", priority=priority, capacity=capacity) for priority in HANDICAP]
    specs.append(LANE("inner", group="deep", capacity=99))
    groups = [GroupSpec("few", slots, reserve=reserve), GroupSpec("deep", 99)]
    bounds = {
        priority: Bound(slots, reserve, 10.0, priority, sum(name.startswith(priority) for name in names))
        for priority in HANDICAP
    }

    def started(run):
        queue[run.lane] -= 1
        group = sup._scheduler.board.groups["few"]
        assert len(group.holders) <= slots and group.others <= slots - reserve

    async with Supervisor(tmp_path, lanes=specs, groups=groups, on_run_start=started) as sup:
        for _ in range(60):
            await anyio.sleep(chance.choice([0.0, 0.3, 5.0]) * 2 / slots)
            for _ in range(chance.choice([1, 1, 4])):
                name = chance.choices(names, weights)[0]
                queue[name] += 1
                limits[name, queue[name]] = bounds[name.partition(" ")[0]].on_a_lane_of(capacity, queue[name])
                limit = limits[name, queue[name]]
                body = chance.choice([sleeps, sleeps, fails, lends, overruns])
                args = (chance.choice([0.0, 1.0, 9.9]),) if body is sleeps else ()
                runs.append((sup.submit(name, body, *args), limit))
        for run, limit in runs:
            outcome = await run.wait()
            assert outcome.waited_s <= limit + TICK, f"{run} waited {outcome.waited_s} s; bound: {limit} s"
        assert_empty(sup)
