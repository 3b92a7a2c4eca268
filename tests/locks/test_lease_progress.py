"""Deadlines that move: `progress()` renews the idle time within the hard limits, `end_by` ends a lease early."""

# ruff: noqa: PT012 -- leaving the block is what raises, so the block stands inside `raises`

from __future__ import annotations

import anyio
import pytest
from anyio import CancelScope, create_task_group, fail_after, move_on_after, to_thread

from locks import Fence, LeaseExpired, LeaseLost, LockRegistry, Revoked, Right
from locks.lowlevel import current_fence
from locks.rights.hold_time import HoldTime


@pytest.fixture(params=["kernel", "none"])
def registry(request, virtual):
    return LockRegistry(max_hold=100.0, grace=2.0, engine=request.param)


async def test_each_progress_starts_the_idle_time_anew(registry, path, virtual):
    started = virtual.now()
    with pytest.raises(LeaseExpired):
        async with registry.lease(path, idle_timeout=5) as lease:
            assert lease.deadline == started + 5
            for seconds in (4, 8, 12):
                await anyio.sleep(4)
                assert lease.progress()
                assert lease.deadline == started + seconds + 5
            await anyio.sleep_forever()
    assert virtual.now() == started + 12 + 5
    assert registry.statistics().revoked == 0


@pytest.mark.failure("A10", "E2")
async def test_a_block_that_is_stuck_ends_although_its_timers_are_alive(registry, path, virtual):
    """Heartbeats and appends of other tasks renew nothing: only `progress()` does, and a stuck body calls it not."""
    started = virtual.now()
    beats: list[float] = []

    async def beat(lease):
        while True:
            await anyio.sleep(1)
            lease.check()
            await lease.append({"beat": len(beats)})
            beats.append(virtual.now())

    with pytest.raises(LeaseExpired):
        async with registry.lease(path, idle_timeout=5) as lease, create_task_group() as group:
            group.start_soon(beat, lease)
            await anyio.sleep_forever()
    assert virtual.now() == started + 5
    assert len(beats) == 4


@pytest.mark.failure("E2")
async def test_progress_never_moves_the_deadline_beyond_max_hold(registry, path, virtual):
    started, moved = virtual.now(), []
    with pytest.raises(LeaseExpired):
        async with registry.lease(path, idle_timeout=5, max_hold=12) as lease:
            while True:
                await anyio.sleep(3.5)
                moved.append(lease.progress())
    assert virtual.now() == started + 12
    assert moved == [True, True, False]
    assert registry.statistics().revoked == 0


async def test_progress_at_the_hard_limit_says_that_nothing_has_moved(registry, path, virtual):
    async with registry.lease(path, idle_timeout=5, max_hold=6) as lease:
        await anyio.sleep(2)
        assert lease.progress()
        assert lease.deadline == lease.acquired_at + 6
        await anyio.sleep(2)
        assert not lease.progress()
        assert lease.deadline == lease.acquired_at + 6


@pytest.mark.parametrize("progress_first", [True, False])
async def test_an_enclosing_scope_that_ends_first_ends_the_block_by_itself(registry, path, virtual, progress_first):
    """Two timers at one instant would race: who set `fail_after` waits for its `TimeoutError`."""
    started = virtual.now()
    limit = 7 if progress_first else 4
    with pytest.raises(TimeoutError), fail_after(limit):
        async with registry.lease(path, idle_timeout=5) as lease:
            if progress_first:
                await anyio.sleep(3)
                assert lease.progress()
            assert lease.deadline == started + limit
            await anyio.sleep(1)
            assert not lease.progress()
            await anyio.sleep_forever()
    assert virtual.now() == started + limit
    assert registry.statistics().sessions == 0


async def test_a_shielded_block_is_revoked_one_grace_after_a_scopes_deadline_that_progress_has_reached(
    registry, path, virtual
):
    started = virtual.now()
    with pytest.raises(Revoked), move_on_after(7):
        async with registry.lease(path, idle_timeout=5) as lease:
            await anyio.sleep(4)
            lease.progress()
            with CancelScope(shield=True):
                while lease.lost is None:
                    await anyio.sleep(0.5)
    assert virtual.now() == started + 7 + 2


async def test_a_runs_deadline_bounds_progress_and_its_grace_is_not_exceeded(registry, path, virtual):
    started = virtual.now()
    fence = Fence(run_id=1, deadline=started + 8, end_at=started + 9)
    token = current_fence.set(fence)
    with pytest.raises(LeaseLost):
        async with registry.lease(path, idle_timeout=5) as lease:
            for _ in range(2):
                await anyio.sleep(4)
                lease.progress()
            assert lease.deadline == started + 8
            with CancelScope(shield=True):
                await anyio.sleep(0.9)
                await lease.append({"within": "grace"})
                assert not lease.progress()
                await anyio.sleep(0.2)
                lease.check()
    current_fence.reset(token)
    assert await registry.read(path) == [{"within": "grace"}]


async def test_progress_after_the_deadline_renews_nothing(registry, path, virtual):
    started = virtual.now()
    with pytest.raises(Revoked):
        async with registry.lease(path, idle_timeout=5) as lease:
            with CancelScope(shield=True):
                await anyio.sleep(5)
                assert not lease.progress()
                await anyio.sleep(1.5)
                assert not lease.progress()
                await anyio.sleep(0.5)
                assert isinstance(lease.lost, Revoked)
                assert not lease.progress()
    assert virtual.now() == started + 7


async def test_progress_after_a_deadline_that_nobody_has_looked_at_yet_renews_nothing(registry, path, virtual):
    with pytest.raises(LeaseExpired):
        async with registry.lease(path, idle_timeout=5) as lease:
            registry.arbiter.grants.steward.held.clear()  # a steward that the interpreter lock keeps from acting
            virtual.advance(5)
            assert not lease.progress()
            registry.arbiter.grants.steward.watch(lease.claim)
            await anyio.sleep_forever()


async def test_without_an_idle_timeout_progress_moves_nothing(registry, path, virtual):
    async with registry.lease(path, max_hold=10) as lease:
        await anyio.sleep(3)
        assert not lease.progress()
        assert lease.deadline == lease.acquired_at + 10


async def test_progress_may_be_reported_from_a_thread(registry, path, virtual):
    async with registry.lease(path, idle_timeout=5) as lease:
        for _ in range(4):
            await anyio.sleep(4)
            assert await to_thread.run_sync(lease.progress)
        assert lease.deadline == virtual.now() + 5


@pytest.mark.failure("A10")
async def test_a_frozen_loop_is_revoked_one_grace_after_the_idle_time(path, virtual):
    here, elsewhere = LockRegistry(grace=2.0), LockRegistry()
    with pytest.raises(Revoked):
        async with here.lease(path, idle_timeout=5) as lease:
            await anyio.sleep(4)
            lease.progress()  # the steward set its alarm to the old instant, and has to set it anew
            virtual.advance(6.999)
            lease.check()
            virtual.advance(0.001)
            assert isinstance(lease.lost, Revoked)
            claim = elsewhere.arbiter.new_claim()
            assert elsewhere.arbiter.acquire_nowait(path, Right.WRITE, claim)
            elsewhere.arbiter.release(claim)


async def test_an_idle_timeout_of_a_turn_ends_it(registry, path, virtual):
    started = virtual.now()
    with pytest.raises(LeaseExpired):
        async with registry.turn(path, idle_timeout=5) as turn:
            await turn.append({"n": 1})
            await anyio.sleep_forever()
    assert virtual.now() == started + 5


async def test_an_idle_timeout_has_to_be_a_duration(registry, path):
    with pytest.raises(ValueError, match="idle_timeout"):
        registry.lease(path, idle_timeout=-1)


# end_by


async def test_end_by_cancels_now_and_revokes_at_that_instant(registry, path, virtual):
    started, cancelled_at = virtual.now(), []
    with pytest.raises(Revoked):
        async with registry.lease(path) as lease:
            lease.end_by(started + 3)
            assert lease.deadline == started
            try:
                await anyio.sleep_forever()
            finally:
                cancelled_at.append(virtual.now())
                with CancelScope(shield=True):
                    await anyio.sleep(2.999)
                    await lease.append({"last": "words"})
                    await anyio.sleep(0.001)
                    with pytest.raises(Revoked):
                        await lease.append({"too": "late"})
    assert cancelled_at == [started]
    assert await registry.read(path) == [{"last": "words"}]


async def test_end_by_never_gives_more_time_than_there_was(registry, path, virtual):
    started = virtual.now()
    with pytest.raises(Revoked):
        async with registry.lease(path, max_hold=1) as lease:
            lease.end_by(started + 50)
            lease.end_by(started + 60)
            with CancelScope(shield=True):
                while lease.lost is None:
                    await anyio.sleep(0.5)
    assert virtual.now() == started + 3


async def test_a_block_that_ends_in_time_after_end_by_says_that_it_was_ended(registry, path, virtual):
    with pytest.raises(LeaseExpired):
        async with registry.lease(path) as lease:
            lease.end_by(virtual.now() + 3)
            await anyio.sleep_forever()
    assert registry.statistics().revoked == 0


async def test_end_by_an_instant_long_past_revokes_now(registry, path, virtual):
    started = virtual.now()
    with pytest.raises(Revoked):
        async with registry.lease(path) as lease:
            lease.end_by(started - 50)
            with pytest.raises(Revoked):
                lease.append_sync({"too": "late"})
            with CancelScope(shield=True):
                await anyio.sleep(0.1)
                assert isinstance(lease.lost, Revoked)
    assert await registry.read(path) == []


async def test_progress_after_end_by_renews_nothing(registry, path, virtual):
    started = virtual.now()
    with pytest.raises(Revoked):
        async with registry.lease(path, idle_timeout=5) as lease:
            lease.end_by(started + 1)
            assert not lease.progress()
            with CancelScope(shield=True):
                await anyio.sleep(1)
                assert lease.lost is not None


@pytest.mark.parametrize("between", ["before the limits are set", "after"])
async def test_an_end_that_comes_in_the_middle_of_a_progress_stands(registry, path, virtual, monkeypatch, between):
    started = virtual.now()
    with pytest.raises(Revoked):
        async with registry.lease(path, idle_timeout=5) as lease:
            limit = HoldTime._limit

            def interrupted(time, now):
                if between == "after":
                    limit(time, now)
                lease.end_by(started + 2)  # on the loop, while a thread is here
                if between != "after":
                    limit(time, now)

            await anyio.sleep(1)
            monkeypatch.setattr(HoldTime, "_limit", interrupted)
            assert not lease.progress()
            with CancelScope(shield=True):
                while lease.lost is None:
                    await anyio.sleep(0.25)
    assert virtual.now() == started + 2
