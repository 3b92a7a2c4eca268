"""Waits of runs that could never end are refused before they begin; waits that can end never are."""

from __future__ import annotations

import pickle
from functools import partial

import anyio
import pytest

from lanes import GroupSpec, LaneSpec, RetrySpec, RunState
from locks import DeadlockError, Holder
from runtime import Supervisor
from tests.supervised import about, assert_empty

pytestmark = pytest.mark.backends("asyncio", "trio")

LANE = partial(LaneSpec, timeout=100.0, queue_limit=None)


async def returns(ctx, value=None):
    return value


async def sleeps(ctx, seconds):
    await anyio.sleep(seconds)


@pytest.fixture
async def sup(virtual, tmp_path):
    lanes = [LANE("one"), LANE("other"), LANE("third"), LANE("two", capacity=2), LANE("many", capacity=50)]
    lanes += [LANE("tight", group="tight"), LANE("tight:*", group="tight"), LANE("session:*")]
    async with Supervisor(tmp_path, lanes=lanes, groups=[GroupSpec("tight", 1)]) as sup:
        yield sup
        assert_empty(sup)
        assert len(sup._scheduler.waits) == 0


async def refused(run):
    """Wait, and return the error by which that is refused; it comes at once."""
    asked = anyio.current_time()
    with pytest.raises(DeadlockError) as caught:
        await run.result()
    assert anyio.current_time() == about(asked)
    return caught.value


class Later:
    """Runs that bodies wait for, once all of them are known."""

    def __init__(self):
        self.runs = {}
        self.known = anyio.Event()

    async def __call__(self, name):
        await self.known.wait()
        return self.runs[name]


# Rings


@pytest.mark.failure("E4")
async def test_a_run_that_submits_to_its_own_full_lane_and_waits_is_told_at_once_who_waits_for_whom(sup):
    async def body(ctx):
        inner = sup.submit("one", returns, "inner")
        return inner, await refused(inner)

    outer = sup.submit("one", body)
    inner, error = await outer.result()
    assert str(error) == (
        f"waiting for run {inner.id} on lane one would never end: {Holder('one', outer.id)} waits for run {inner.id}; "
        f"{Holder('one', inner.id)} waits for a place on lane one, where run {outer.id} runs"
    )
    assert [(who.run_id, whom.run_id) for who, _, whom in error.chain] == [(outer.id, inner.id), (inner.id, outer.id)]
    assert pickle.loads(pickle.dumps(error)).chain == error.chain
    assert not error.retryable
    assert await inner.result() == "inner"


@pytest.mark.failure("E4")
async def test_a_child_on_its_parents_full_lane_is_refused_too_and_ends_with_its_parent(sup):
    async def body(ctx):
        child = ctx.submit("one", returns)
        await refused(child)
        return child

    child = await sup.run("one", body)
    assert child.outcome.state is RunState.CANCELLED


@pytest.mark.failure("E4")
async def test_two_full_lanes_that_wait_for_each_other_are_found_by_the_second_one(sup):
    errors = []

    async def body(ctx, lane):
        await anyio.sleep(1 if lane == "other" else 2)
        inner = sup.submit(lane, returns, lane)
        try:
            return await inner.result()
        except DeadlockError as error:
            errors.append((ctx.run.lane, len(error.chain)))

    runs = [sup.submit("one", body, "other"), sup.submit("other", body, "one")]
    assert [await run.result() for run in runs] == ["other", None]
    assert errors == [("other", 4)]


@pytest.mark.failure("E4")
async def test_a_ring_through_a_sessions_turn_is_found(sup):
    async def body(ctx):
        return str(await refused(sup.submit("many", returns, session="a")))

    assert "waits for the turn of session a, which run 1 has before it" in await sup.run("session:a", body)


@pytest.mark.on_store
@pytest.mark.failure("E4")
async def test_a_ring_through_somebody_in_the_middle_of_a_sessions_queue_is_found(sup):
    """The one that is waited for comes after one that needs the waiting run's place."""

    async def body(ctx):
        sup.submit("one", returns, session="a")
        return await refused(sup.submit("many", returns, session="a"))

    front = sup.submit("session:a", sleeps, 5)
    error = await sup.run("one", body)
    assert len(error.chain) == 3
    await front.result()


@pytest.mark.failure("E4")
async def test_a_lane_of_two_places_is_a_ring_only_when_both_are_stuck(sup):
    async def body(ctx, seconds):
        await anyio.sleep(seconds)
        try:
            return await sup.submit("two", returns, f"after {seconds}").result()
        except DeadlockError:
            return "refused"

    runs = [sup.submit("two", body, 1), sup.submit("two", body, 2)]
    assert [await run.result() for run in runs] == ["after 1", "refused"]


@pytest.mark.failure("E4")
@pytest.mark.parametrize("first", ["lease", "wait"])
async def test_a_ring_through_a_write_lease_is_found_whoever_closes_it(sup, first):
    """One run has the lease and awaits the other, which asks for the lease."""
    later, told = Later(), []

    async def keeper(ctx):
        async with ctx.session_of("shared").lease():
            other = await later("other")
            await anyio.sleep(2 if first == "lease" else 1)
            try:
                await other.wait()
            except DeadlockError:
                told.append("keeper")

    async def other(ctx):
        await anyio.sleep(1 if first == "lease" else 2)
        try:
            async with ctx.session_of("shared").lease():
                pass
        except DeadlockError:
            told.append("other")

    later.runs = {"keeper": sup.submit("one", keeper), "other": sup.submit("other", other)}
    later.known.set()
    for run in later.runs.values():
        assert (await run.wait()).state is RunState.DONE
    assert told == ["keeper" if first == "lease" else "other"]


@pytest.mark.failure("E4")
async def test_a_run_that_awaits_itself_is_refused(sup):
    async def body(ctx):
        return str(await refused(ctx.run))

    assert "waits for run 1;" not in (told := await sup.run("one", body))
    assert told.endswith("waits for run 1")


@pytest.mark.failure("E4")
async def test_two_runs_that_await_each_other_are_refused_by_the_second_wait(sup):
    later = Later()

    async def body(ctx, other, seconds):
        run = await later(other)
        await anyio.sleep(seconds)
        try:
            return await run.result()
        except DeadlockError:
            return f"{ctx.run.lane} was refused"

    later.runs = {"one": sup.submit("one", body, "other", 1), "other": sup.submit("other", body, "one", 2)}
    later.known.set()
    assert [await run.result() for run in later.runs.values()] == ["other was refused"] * 2


@pytest.mark.failure("E4")
async def test_a_child_that_awaits_the_parent_that_awaits_it_is_refused(sup):
    async def child(ctx, parent):
        await anyio.sleep(1)
        await refused(parent)
        return "child"

    async def parent(ctx):
        return await ctx.submit("other", child, ctx.run).result()

    assert await sup.run("one", parent) == "child"


@pytest.mark.failure("E4")
@pytest.mark.parametrize("reads", [False, True])
async def test_a_steered_message_that_its_reader_awaits_is_refused(virtual, tmp_path, reads):
    async def handler(ctx, messages):
        await anyio.sleep(1)
        if messages[0].body != "first":
            return messages[0].body
        if reads:
            ctx.inbox.receive_nowait()
        error = await refused(steered[0])
        assert "which has its message" in str(error) or reads
        return "first"

    steered = []
    async with Supervisor(tmp_path, lanes=[LANE("session:*", handler=handler, when_busy="steer")]) as sup:
        first = sup.post("session:a", "first")
        await virtual.settle()
        steered.append(sup.post("session:a", "second"))
        assert await first.result() == "first"
        assert await steered[0].result() == ("first" if reads else "second")
        assert_empty(sup)


@pytest.mark.failure("E4")
async def test_a_reset_of_ones_own_session_is_refused_and_has_ended_nothing(sup):
    async def body(ctx):
        with pytest.raises(DeadlockError, match=r"reset\('a'\) waits for run 1 on lane session:a, which awaits it"):
            await sup.reset("a")
        return "goes on"

    assert await sup.run("session:a", body) == "goes on"


@pytest.mark.failure("E4")
async def test_a_ring_through_the_only_slot_of_a_group_is_found(sup):
    """One keeps the slot and asks for a lease; who has the lease waits for a child that needs the slot."""
    told = []

    async def keeper(ctx):
        async with ctx.session_of("shared").lease():
            await anyio.sleep(2)
            try:
                await ctx.submit("tight:child", returns).result()
            except DeadlockError as error:
                told.append(str(error))

    async def hog(ctx):
        await anyio.sleep(1)
        async with ctx.session_of("shared").lease():
            told.append("has the lease")

    runs = [sup.submit("one", keeper), sup.submit("tight", hog)]
    for run in runs:
        assert (await run.wait()).state is RunState.DONE
    assert "waits for a slot of group tight, where run 2 has one" in told[0]
    assert told[1:] == ["has the lease"]


@pytest.mark.failure("E4")
async def test_who_asks_for_a_lease_of_one_that_waits_for_its_slot_is_refused(sup):
    told = []

    async def keeper(ctx):
        async with ctx.session_of("shared").lease():
            await ctx.submit("tight:child", sleeps, 5).result()

    async def hog(ctx):
        await anyio.sleep(1)
        try:
            async with ctx.session_of("shared").lease():
                pass
        except DeadlockError as error:
            told.append(str(error))

    first = sup.submit("one", keeper)
    second = sup.submit("tight", hog)
    for run in (first, second):
        assert (await run.wait()).state is RunState.DONE
    assert len(told) == 1 and "would never end" in told[0]


@pytest.mark.failure("E4")
async def test_a_run_goes_on_without_a_slot_where_waiting_for_one_would_never_end(sup):
    """Who has taken the slot it had lent waits for its lease."""

    async def keeper(ctx):
        async with ctx.session_of("shared").lease():
            await ctx.submit("one", sleeps, 5).result()
            return anyio.current_time()

    async def hog(ctx):
        async with ctx.session_of("shared").lease():
            return anyio.current_time()

    began = anyio.current_time()
    runs = [sup.submit("tight:a", keeper), sup.submit("tight:b", hog)]
    assert [await run.result() for run in runs] == about([began + 5] * 2)


@pytest.mark.failure("E4")
async def test_a_ring_over_two_supervisors_is_found(virtual, tmp_path):
    later = Later()

    async def body(ctx, other, seconds):
        run = await later(other)
        await anyio.sleep(seconds)
        try:
            return await run.result()
        except DeadlockError:
            return "refused"

    async with Supervisor(tmp_path / "a", lanes=[LANE("a")]) as a, Supervisor(tmp_path / "b", lanes=[LANE("b")]) as b:
        later.runs = {"a": a.submit("a", body, "b", 1), "b": b.submit("b", body, "a", 2)}
        later.known.set()
        assert [await run.result() for run in later.runs.values()] == ["refused"] * 2


@pytest.mark.failure("E4")
async def test_a_refused_wait_changes_nothing(sup):
    async def body(ctx):
        for _ in range(3):
            await refused(ctx.run)
        group = sup._scheduler.board.groups["tight"]
        return (group.running, group.returning, len(sup._scheduler.waits))

    waiting = sup.submit("tight:b", returns)
    assert await sup.run("tight:a", body) == (1, 0, 0)
    await waiting.result()


# No false alarms


async def test_a_wait_for_a_run_behind_a_thousand_others_in_its_session_is_none_and_quick(sup):
    async def body(ctx):
        return await last.result()

    front = sup.submit("session:a", sleeps, 5)
    for _ in range(1000):
        sup.submit("many", returns, session="a")
    last = sup.submit("many", returns, "last", session="a")
    assert await sup.run("one", body) == "last"
    await front.result()


async def test_a_full_lane_whose_run_goes_on_by_itself_is_waited_for(sup):
    async def body(ctx):
        return await sup.submit("other", returns, "other").result()

    hog = sup.submit("other", sleeps, 5)
    assert await sup.run("one", body) == "other"
    await hog.result()


async def test_many_that_await_the_same_run_are_all_told(sup):
    async def body(ctx, run):
        return await run.result()

    async def slow(ctx):
        await anyio.sleep(5)
        return "slow"

    run = sup.submit("one", slow)
    waiters = [sup.submit("many", body, run) for _ in range(20)]
    assert [await waiter.result() for waiter in waiters] == ["slow"] * 20


async def test_a_chain_of_waits_down_ten_lanes_ends(virtual, tmp_path):
    async def body(ctx, depth):
        if depth == 0:
            return 0
        return 1 + await ctx.submit(f"deep:{depth - 1}", body, depth - 1).result()

    lanes, groups = [LANE("deep:*", group="tight")], [GroupSpec("tight", 1)]
    async with Supervisor(tmp_path, lanes=lanes, groups=groups) as sup:
        assert await sup.run("deep:10", body, 10) == 10
        assert_empty(sup)


async def test_a_wait_in_a_child_task_is_no_wait_of_the_body(sup):
    """The body could end it at any time; here it does."""

    async def body(ctx):
        async with anyio.create_task_group() as group:
            group.start_soon(sup.submit("one", returns).wait)
            await anyio.sleep(1)
            group.cancel_scope.cancel()
        return "ended it"

    assert await sup.run("one", body) == "ended it"
    assert await sup.run("one", returns, "next") == "next"


async def test_a_run_that_has_ended_is_not_waited_for(sup):
    async def body(ctx):
        inner = sup.submit("many", returns, "inner")
        await anyio.sleep(1)
        return await inner.result(), await inner.result()

    assert await sup.run("one", body) == ("inner", "inner")


async def test_a_run_that_waits_to_be_tried_again_is_waited_for(virtual, tmp_path):
    async def fails_once(ctx):
        if ctx.run.attempt == 1:
            raise LookupError
        return "second"

    async def body(ctx):
        return await ctx.submit("again", fails_once).result()

    async with Supervisor(tmp_path, lanes=[LANE("again", retry=RetrySpec(wait=2.0)), LANE("one")]) as sup:
        assert await sup.run("one", body) == "second"
        assert_empty(sup)
