"""Which waits of runs can end: by a time limit of their own, by a slot that is not waited for, in their turn."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import anyio
import pytest

from lanes import GroupSpec, LaneSpec, Run, RunState
from locks import DeadlockError, LeaseTimeout, LockRegistry
from runtime import Supervisor
from tests.supervised import about, assert_empty, path_of

pytestmark = [pytest.mark.backends("asyncio", "trio"), pytest.mark.failure("X6")]

LANE = partial(LaneSpec, timeout=100.0, queue_limit=None, capacity=9)
LANES = [LANE("one", group="one"), LANE("free", group="wide"), LANE("narrow", group="wide", capacity=1)]
GROUPS = [GroupSpec("one", 1), GroupSpec("wide", 50), GroupSpec("two", 2, reserve=1)]


async def sleeps(ctx, seconds=1.0):
    await anyio.sleep(seconds)


async def returns(ctx, value=None):
    return value


async def awaits(ctx, run):
    try:
        return await run.result()
    except DeadlockError as error:
        return f"refused: {error}"


async def leases(ctx, key="shared", **options):
    try:
        async with ctx.session_of(key).lease(**options):
            return "had the lease"
    except DeadlockError as error:
        return f"refused: {error}"


@pytest.fixture
async def sup(virtual, tmp_path):
    lanes = [*LANES, LANE("quiet", group="two", priority="background"), LANE("mixed", group="two")]
    async with Supervisor(tmp_path, lanes=lanes, groups=GROUPS) as sup:
        yield sup
        assert_empty(sup)
        assert len(sup._scheduler.waits) == 0
        assert sup._scheduler.waits._awaited == {}


# Without a slot


@pytest.mark.parametrize("how", ["cut short", "cut short while its child runs", "not waiting for a stuck one"])
async def test_who_goes_on_without_its_slot_needs_nothing_and_is_waited_for(sup, virtual, how):
    """Another run has its slot, and waits for its lease."""
    going_on = anyio.Event()

    async def parent(ctx):
        async with ctx.session_of("shared").lease():
            child = ctx.submit("free", sleeps, 5.0 if how == "cut short while its child runs" else 1.0)
            with anyio.move_on_after(50.0 if how.startswith("not") else 2.0):
                await child.result()
            going_on.set()
            await anyio.sleep(3)
        return "parent"

    async def hog(ctx):
        await anyio.sleep(0.0 if how.startswith("not") else 1.5)
        return await leases(ctx)

    p = sup.submit("one", parent)
    await virtual.settle()
    h = sup.submit("one", hog)
    with anyio.fail_after(10):
        await going_on.wait()
    group = sup._scheduler.board.groups["one"]
    assert (group.running, group.returning) == (1, 1)
    assert not group.keeps_waiting(p._execution)  # nor does a status say so
    assert await sup.run("free", awaits, p) == "parent"
    assert await h.result() == "had the lease"


async def test_a_ring_through_a_run_that_goes_on_without_its_slot_is_found(sup, virtual):
    """What it waits for then is a lease, not its slot."""

    async def parent(ctx):
        child = ctx.submit("free", sleeps, 1.0)
        with anyio.move_on_after(2):
            await child.result()
        return await leases(ctx)

    async def keeper(ctx):
        async with ctx.session_of("shared").lease():
            await anyio.sleep(3)
            return await awaits(ctx, p)

    began = virtual.now()
    p = sup.submit("one", parent)
    await virtual.settle()
    hog = sup.submit("one", sleeps, 20.0)
    k = sup.submit("free", keeper)
    assert (await k.result()).startswith("refused")
    assert await p.result() == "had the lease"
    assert virtual.now() < began + 10
    await hog.result()


async def test_a_run_that_waits_again_before_it_has_a_slot_is_seen_to_wait_for_that(sup, virtual):
    async def parent(ctx):
        with anyio.move_on_after(2):
            await ctx.submit("free", sleeps, 1.0).result()
        return await awaits(ctx, other)

    async def waits_for_parent(ctx):
        await anyio.sleep(3)
        return await awaits(ctx, p)

    other = sup.submit("free", waits_for_parent)
    p = sup.submit("one", parent)
    await virtual.settle()
    hog = sup.submit("one", sleeps, 20.0)
    assert (await other.result()).startswith("refused")
    assert (await p.result()).startswith("refused")
    await hog.result()


# Limits


async def test_a_wait_with_a_time_limit_of_its_own_is_not_refused_and_ends_at_it(sup, virtual):
    async def body(ctx):
        began = anyio.current_time()
        with anyio.move_on_after(2) as scope:
            await ctx.run.result()
        return scope.cancelled_caught, anyio.current_time() - began

    assert await sup.run("free", body) == (True, about(2.0))


async def test_who_waits_for_one_whose_wait_has_a_limit_waits(sup, virtual):
    async def first(ctx):
        await anyio.sleep(1)
        with anyio.move_on_after(3):
            await s.result()
        return "first"

    async def second(ctx):
        await anyio.sleep(2)
        return await awaits(ctx, f)

    f, s = sup.submit("free", first), sup.submit("free", second)
    assert await s.result() == "first"


async def test_a_limit_that_has_been_left_counts_no_more(sup, virtual):
    async def first(ctx):
        with anyio.move_on_after(1):
            await s.result()
        return await awaits(ctx, s)

    async def second(ctx):
        await anyio.sleep(2)
        return await awaits(ctx, f)

    f, s = sup.submit("free", first), sup.submit("free", second)
    assert (await s.result()).startswith("refused")
    assert (await f.result()).startswith("refused")


async def test_the_limit_of_the_host_is_no_limit_of_a_body(virtual, tmp_path):
    async def holds_and_asks(ctx, mine, other):
        async with ctx.session_of(mine).lease():
            await anyio.sleep(1)
            return await leases(ctx, other)

    with anyio.fail_after(1000):
        async with Supervisor(tmp_path, lanes=LANES, groups=GROUPS) as sup:

            async def body(ctx):
                return await awaits(ctx, ctx.run)

            assert (await sup.run("free", body)).startswith("refused")
            began = virtual.now()
            runs = [sup.submit("free", holds_and_asks, *keys) for keys in ("ab", "ba")]
            told = [await run.result() for run in runs]
            assert sum(one.startswith("refused") for one in told) == 1
            assert virtual.now() == about(began + 1)


@pytest.mark.parametrize("limit", ["wait_timeout", "scope", "none"])
@pytest.mark.parametrize("asks", ["first", "last"])
async def test_a_wait_for_a_lease_that_has_a_limit_closes_no_ring(sup, virtual, limit, asks):
    async def limited(ctx):
        async with ctx.session_of("a").lease():
            await anyio.sleep(1 if asks == "first" else 2)
            try:
                with anyio.move_on_after(5.0) if limit == "scope" else nullcontext():
                    return await leases(ctx, "b", wait_timeout=5.0 if limit == "wait_timeout" else None)
            except LeaseTimeout:
                pass
            return "gave up"

    async def patient(ctx):
        async with ctx.session_of("b").lease():
            await anyio.sleep(2 if asks == "first" else 1)
            return await leases(ctx, "a")

    async def unlimited(ctx):
        async with ctx.session_of("a").lease():
            await anyio.sleep(1 if asks == "first" else 2)
            return await leases(ctx, "b")

    began = virtual.now()
    one, two = sup.submit("free", unlimited if limit == "none" else limited), sup.submit("free", patient)
    told = [await one.result(), await two.result()]
    if limit == "none":
        refused = told[1] if asks == "first" else told[0]
        assert refused.startswith("refused") and virtual.now() == about(began + 2)
    else:
        assert told == ["gave up", "had the lease"]
        assert virtual.now() == about(began + (6 if asks == "first" else 7))


async def test_an_attempt_without_waiting_is_no_wait(sup, virtual):
    """With `wait_timeout=0` nothing is waited for, so nothing can be refused for being a deadlock."""

    async def body(ctx, mine, other, wait_timeout):
        async with ctx.session_of(mine).lease():
            await anyio.sleep(1 if wait_timeout is None else 2)
            try:
                return await leases(ctx, other, wait_timeout=wait_timeout)
            except LeaseTimeout:
                return "not free"

    runs = [sup.submit("free", body, "a", "b", None), sup.submit("free", body, "b", "a", 0.0)]
    assert [await run.result() for run in runs] == ["had the lease", "not free"]


async def test_outside_of_runs_a_limit_inside_the_block_counts_and_one_around_it_does_not(virtual, tmp_path):
    registry, told = LockRegistry(engine="none"), []

    async def task(mine, other, *, after, inside=1000.0, around=1000.0):
        with anyio.move_on_after(around):
            async with registry.lease(tmp_path / mine):
                await anyio.sleep(after)
                with anyio.move_on_after(inside):
                    try:
                        async with registry.lease(tmp_path / other):
                            told.append(f"{mine} has both")
                    except DeadlockError:
                        told.append(f"{mine} was refused")

    async with anyio.create_task_group() as group:
        group.start_soon(partial(task, "a", "b", after=1, inside=3.0))
        group.start_soon(partial(task, "b", "a", after=2))
    assert told == ["b has both"]
    told.clear()
    async with anyio.create_task_group() as group:
        group.start_soon(partial(task, "a", "b", after=1, around=900.0))
        group.start_soon(partial(task, "b", "a", after=2, around=900.0))
    assert told == ["b was refused", "a has both"]


async def test_who_was_asked_to_end_gives_its_lease_back_within_its_grace(virtual, tmp_path):
    """It waits in its last words, under a shield, for what the other one has."""

    async def ending(ctx):
        async with ctx.session_of("a").lease():
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await leases(ctx, "b")

    async def other(ctx):
        async with ctx.session_of("b").lease():
            await anyio.sleep(1)
            one.cancel()
            await anyio.sleep(1)
            return await leases(ctx, "a")

    lanes = [LANE("free", grace=5.0)]
    async with Supervisor(tmp_path, lanes=lanes) as sup:
        one = sup.submit("free", ending)
        two = sup.submit("free", other)
        assert await two.result() == "had the lease"
        assert (await two.wait()).ran_s == about(6.0)
        assert (await one.wait()).state is RunState.ABANDONED


# Queues


async def test_a_turn_behind_a_quiet_run_on_a_lane_whose_slots_are_taken_is_a_ring(sup, virtual):
    """An urgent run does not overtake on its lane, and who stands before it may not take the reserved slot."""

    async def keeper(ctx):
        async with ctx.session_of("shared").lease():
            await anyio.sleep(2)
            return await awaits(ctx, urgent)

    async def hog(ctx):
        await anyio.sleep(1)
        return await leases(ctx)

    k = sup.submit("free", keeper)
    h = sup.submit("quiet", hog)
    quiet = sup.submit("mixed", returns, "quiet", priority="background")
    urgent = sup.submit("mixed", returns, "urgent", priority="foreground")
    assert quiet.state is urgent.state is RunState.QUEUED
    assert (await k.result()).startswith("refused")
    assert await h.result() == "had the lease"
    assert [await quiet.result(), await urgent.result()] == ["quiet", "urgent"]


async def test_who_will_be_lent_a_class_at_the_front_of_its_session_needs_no_quiet_slot(sup, virtual):
    async def keeper(ctx):
        async with ctx.session_of("shared").lease():
            await anyio.sleep(2)
            return await awaits(ctx, quiet)

    async def hog(ctx):
        await anyio.sleep(1)
        return await leases(ctx)

    front = sup.submit("free", sleeps, 4.0, session="a")
    k = sup.submit("free", keeper)
    h = sup.submit("quiet", hog)
    quiet = sup.submit("mixed", returns, "quiet", priority="background", session="a")
    urgent = sup.submit("mixed", returns, "urgent", priority="foreground", session="a")
    assert await k.result() == "quiet"
    assert await h.result() == "had the lease"
    assert await urgent.result() == "urgent"
    await front.result()


async def test_when_a_right_is_asked_for_a_ring_through_all_places_of_a_lane_is_found(virtual, tmp_path):
    """The one that has it waits for a run on a lane of two places; both are taken by runs that ask for it."""

    async def keeper(ctx):
        async with ctx.session_of("shared").lease():
            await anyio.sleep(1)
            return await awaits(ctx, queued)

    async def asks(ctx, after):
        await anyio.sleep(after)
        return await leases(ctx)

    async with Supervisor(tmp_path, lanes=[LANE("free"), LANE("two", capacity=2)]) as sup:
        k = sup.submit("free", keeper)
        runs = [sup.submit("two", asks, after) for after in (2, 3)]
        queued = sup.submit("two", returns, "queued")
        assert (await runs[1].result()).startswith("refused")
        assert await k.result() == "queued"
        assert await runs[0].result() == "had the lease"
        assert_empty(sup)


async def test_a_ring_through_a_task_that_is_no_run_is_found_by_a_run_that_closes_it(sup, virtual):
    """A task of the host keeps what one run asks for, and asks for what another one keeps."""

    async def host():
        async with sup.registry.lease(path_of(sup, "a")):
            await anyio.sleep(1)
            async with sup.registry.lease(path_of(sup, "b")):
                told.append("host")

    async def asks(ctx):
        await anyio.sleep(0.5)
        return await leases(ctx, "a")

    async def closes(ctx):
        async with ctx.session_of("b").lease():
            await anyio.sleep(2)
            return await awaits(ctx, one)

    told: list[str] = []
    async with anyio.create_task_group() as group:
        group.start_soon(host, name="the host")
        one, two = sup.submit("free", asks), sup.submit("free", closes)
        refused = await two.result()
    assert refused.startswith("refused") and "task the host" in refused
    assert told == ["host"]
    assert await one.result() == "had the lease"


# A turn that somebody here has


@pytest.mark.failure("X7")
async def test_a_run_of_another_supervisor_on_ones_own_session_is_not_waited_for(virtual, tmp_path):
    """Both share a registry, so whose turn it is can be known."""
    registry = LockRegistry()
    chat = LaneSpec("session:*", timeout=100.0)
    async with (
        Supervisor(tmp_path, lanes=[chat], registry=registry) as a,
        Supervisor(tmp_path, lanes=[chat], registry=registry) as b,
    ):

        async def handler(ctx):
            inner.append(b.submit("session:ann", returns, "inner"))
            return await awaits(ctx, inner[0])

        inner: list[Run] = []
        outer = a.submit("session:ann", handler)
        told = await outer.result()
        assert told.startswith("refused: waiting for run 1 on lane session:ann would never end")
        assert "waits for the turn of session ann, which run 1 on lane session:ann" in told
        assert (await outer.wait()).ran_s == about(0.0)
        assert await inner[0].result() == "inner"
        assert_empty(a)
        assert_empty(b)


@pytest.mark.failure("X7")
@pytest.mark.parametrize("place", ["at once", "when there is a place"])
async def test_a_run_whose_turn_the_waiting_one_has_taken_by_hand_is_not_waited_for(sup, virtual, place):
    async def body(ctx):
        async with sup.registry.turn(path_of(sup, "a")):
            return await awaits(ctx, sup.submit("narrow", returns, "inner", session="a"))

    first = sup.submit("narrow", sleeps, 1.0 if place == "when there is a place" else 0.0)
    await anyio.sleep(0.5)
    assert (await sup.run("free", body)).startswith("refused")
    await first.result()


@pytest.mark.failure("X7")
async def test_a_turn_that_a_run_of_another_supervisor_has_is_waited_for_by_those_it_does_not_wait_for(
    virtual, tmp_path
):
    registry = LockRegistry()
    async with (
        Supervisor(tmp_path, registry=registry) as a,
        Supervisor(tmp_path, registry=registry) as b,
    ):
        first = a.submit("session:ann", sleeps, 5.0)
        second = b.submit("session:ann", returns, "second")
        assert await b.run("main", awaits, second) == "second"
        assert await a.run("main", awaits, b.submit("session:ann", returns, "third")) == "third"
        await first.result()
