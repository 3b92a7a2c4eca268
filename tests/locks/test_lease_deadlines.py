"""A lease ends with its deadline: the block is cancelled, then revoked; what counts is the earliest limit."""

# ruff: noqa: PT012 -- leaving the block is what raises, so the block stands inside `raises`

from __future__ import annotations

import math

import anyio
import pytest
from anyio import CancelScope, create_task_group, fail_after, move_on_after

from locks import Fence, LeaseExpired, LeaseLost, LockRegistry, Revoked, Right
from locks.lowlevel import current_fence


@pytest.fixture(params=["kernel", "none"])
def registry(request, virtual):
    return LockRegistry(max_hold=10.0, grace=2.0, engine=request.param)


async def test_a_block_is_cancelled_at_its_deadline_and_says_so(registry, path, virtual):
    started = virtual.now()
    with pytest.raises(LeaseExpired) as caught:
        async with registry.lease(path) as lease:
            assert lease.deadline == started + 10
            await anyio.sleep_forever()
    assert virtual.now() == started + 10
    assert caught.value.path == path
    assert caught.value.holder == lease.holder
    assert caught.value.overstayed_s == 0
    assert registry.statistics().revoked == 0


async def test_a_block_that_is_left_a_moment_before_its_deadline_is_left_in_peace(registry, path, virtual):
    async with registry.lease(path):
        await anyio.sleep(9.999)
    assert registry.statistics().sessions == 0


async def test_a_block_that_leaves_late_hears_of_it(registry, path, virtual):
    with pytest.raises(LeaseExpired) as caught:
        async with registry.lease(path):
            with CancelScope(shield=True):
                await anyio.sleep(11)
    assert caught.value.overstayed_s == 1
    assert registry.statistics().revoked == 0


async def test_an_error_of_the_block_goes_before_the_leases_own(registry, path, virtual):
    with pytest.raises(ZeroDivisionError):
        async with registry.lease(path):
            with CancelScope(shield=True):
                await anyio.sleep(11)
            raise ZeroDivisionError
    assert registry.statistics().sessions == 0


async def test_within_the_grace_the_cancelled_block_may_still_write(registry, path, virtual):
    with pytest.raises(LeaseExpired):
        async with registry.lease(path) as lease:
            try:
                await anyio.sleep_forever()
            finally:
                with CancelScope(shield=True):
                    await anyio.sleep(1.999)
                    await lease.append({"last": "words"})
    assert await registry.read(path) == [{"last": "words"}]


@pytest.mark.failure("A3", "A10")
async def test_a_shielded_block_is_revoked_at_deadline_plus_grace_and_its_later_append_is_refused(
    registry, path, virtual
):
    started = virtual.now()
    granted_at = []

    async def successor():
        async with registry.lease(path) as lease:
            granted_at.append(virtual.now())
            await lease.append({"by": "successor"})
            await anyio.sleep(5)

    async with create_task_group() as group:
        with pytest.raises(Revoked) as caught:
            async with registry.lease(path) as lease:
                group.start_soon(successor)
                with CancelScope(shield=True):
                    await anyio.sleep(11.999)
                    lease.check()
                    await anyio.sleep(1)
                    assert lease.lost is not None
                    with pytest.raises(Revoked):
                        await lease.append({"by": "overstayer"})
                    with pytest.raises(Revoked):
                        lease.append_sync({"by": "overstayer"})
                    await anyio.sleep(1)
    assert granted_at == [started + 12]
    assert caught.value is lease.lost
    assert caught.value.path == path
    assert await registry.read(path) == [{"by": "successor"}]
    assert registry.statistics().revoked == 1


async def test_leaving_late_does_not_take_the_right_from_the_successor(path, virtual):
    here, elsewhere = LockRegistry(max_hold=10), LockRegistry()

    async def overstay():
        with pytest.raises(Revoked):
            async with here.lease(path):
                with CancelScope(shield=True):
                    await anyio.sleep(15)

    async with create_task_group() as group:
        group.start_soon(overstay)
        await virtual.settle()
        async with here.lease(path) as lease:
            assert lease.acquired_at == virtual.now()
            await anyio.sleep(5)  # the overstayer leaves its block meanwhile
            lease.check()
            assert not elsewhere.arbiter.acquire_nowait(path, Right.WRITE, elsewhere.arbiter.new_claim())
            assert [held.epoch for held in here.holders()] == [lease.epoch]


async def test_a_block_that_freezes_the_loop_is_revoked_in_time_all_the_same(path, virtual):
    here, elsewhere = LockRegistry(max_hold=10, grace=2), LockRegistry()
    with pytest.raises(Revoked):
        async with here.lease(path) as lease:
            virtual.advance(11.999)
            lease.check()
            virtual.advance(0.001)  # the loop has not run since; the steward has
            assert isinstance(lease.lost, Revoked)
            with pytest.raises(Revoked):
                lease.append_sync({"n": 1})
            claim = elsewhere.arbiter.new_claim()
            assert elsewhere.arbiter.acquire_nowait(path, Right.WRITE, claim)
            elsewhere.arbiter.release(claim)
    assert await here.read(path) == []


async def test_an_expired_lease_that_waited_for_nothing_refuses_before_the_steward_comes(registry, path, virtual):
    with pytest.raises((LeaseExpired, Revoked)):
        async with registry.lease(path) as lease:
            registry.arbiter.grants.steward.revoke = lambda claim, error: (
                None
            )  # a steward that the interpreter lock keeps from acting
            virtual.advance(12)
            with pytest.raises(Revoked):
                lease.append_sync({"n": 1})
    assert await registry.read(path) == []


# Which limit is the earliest


async def test_max_hold_of_the_lease_replaces_the_registrys(registry, path, virtual):
    async with registry.lease(path, max_hold=3) as lease:
        assert lease.deadline == lease.acquired_at + 3
    async with registry.lease(path, max_hold=30) as lease:
        assert lease.deadline == lease.acquired_at + 30
    async with registry.lease(path, max_hold=math.inf) as lease:
        assert lease.deadline == math.inf
        await anyio.sleep(50_000)


async def test_the_enclosing_scopes_deadline_bounds_the_lease(registry, path, virtual):
    started = virtual.now()
    with move_on_after(4):
        async with registry.lease(path) as lease:
            assert lease.deadline == started + 4
            await anyio.sleep_forever()
    assert virtual.now() == started + 4
    assert registry.statistics().sessions == 0


async def test_the_enclosing_scopes_deadline_also_bounds_a_shielded_overstayer(registry, path, virtual):
    with pytest.raises(Revoked), move_on_after(4):
        async with registry.lease(path) as lease:
            with CancelScope(shield=True):
                await anyio.sleep(5.999)
                assert lease.lost is None
                await anyio.sleep(0.002)
                assert isinstance(lease.lost, Revoked)
    assert registry.statistics().sessions == 0


async def test_a_later_enclosing_deadline_changes_nothing(registry, path, virtual):
    with fail_after(100):
        async with registry.lease(path) as lease:
            assert lease.deadline == lease.acquired_at + 10


async def test_a_shield_between_hides_the_outer_deadline(registry, path, virtual):
    with move_on_after(4), CancelScope(shield=True):
        async with registry.lease(path) as lease:
            assert lease.deadline == lease.acquired_at + 10


async def test_the_wait_uses_up_the_enclosing_deadline(registry, path, virtual):
    started = virtual.now()

    async def wait():
        with move_on_after(4):
            async with registry.lease(path) as lease:
                assert lease.acquired_at == started + 3
                assert lease.deadline == started + 4

    async with create_task_group() as group, registry.lease(path):
        group.start_soon(wait)
        await anyio.sleep(3)


async def test_in_a_cancelled_scope_nothing_is_taken(registry, path, virtual):
    with CancelScope() as scope:
        scope.cancel()
        async with registry.lease(path):
            pytest.fail("entered")
    with CancelScope() as scope:
        scope.cancel()
        async with registry.turn(path):
            pytest.fail("entered")
    await virtual.settle()
    assert registry.statistics().sessions == 0
    assert registry.statistics().revoked == 0  # nobody has overstayed


@pytest.mark.parametrize("zero", ["max_hold", "max_hold and grace"])
async def test_a_hold_budget_of_zero_ends_at_the_first_suspension(tmp_path, zero, virtual):
    registry = LockRegistry(grace=2.0 if zero == "max_hold" else 0.0)
    with pytest.raises((LeaseExpired, Revoked)):
        async with registry.lease(tmp_path / "a", max_hold=0):
            await anyio.sleep_forever()
    assert registry.statistics().sessions == 0


# Runs


async def test_a_runs_own_deadline_and_grace_rule_a_lease_it_takes(registry, path, virtual):
    fence = Fence(run_id=1, deadline=virtual.now() + 3, end_at=virtual.now() + 4)
    token = current_fence.set(fence)
    with pytest.raises(LeaseLost):
        async with registry.lease(path) as lease:
            assert lease.deadline == fence.deadline
            with CancelScope(shield=True):
                await anyio.sleep(3.999)
                await lease.append({"within": "grace"})
                await anyio.sleep(0.001)
                with pytest.raises(LeaseLost):
                    await lease.append({"past": "grace"})
                await anyio.sleep(0.1)  # the run's scheduler, if there is one, comes first
    current_fence.reset(token)
    assert await registry.read(path) == [{"within": "grace"}]


async def test_last_words_after_a_runs_deadline_get_a_lease_until_the_end_of_its_grace(registry, path, virtual):
    fence = Fence(run_id=1, deadline=virtual.now() + 3, end_at=virtual.now() + 5)
    token = current_fence.set(fence)
    await anyio.sleep(3.5)
    async with registry.lease(path) as lease:
        assert lease.deadline == fence.end_at
        await lease.append({"last": "words"})
    current_fence.reset(token)


async def test_ending_a_run_takes_away_what_it_holds_at_the_end_of_its_grace(registry, path, virtual):
    fence = Fence(run_id=1)
    token = current_fence.set(fence)
    started = virtual.now()
    with pytest.raises(LeaseLost):
        async with registry.turn(path, max_hold=math.inf) as turn:
            await anyio.sleep(1)
            registry.arbiter.end_by(fence, virtual.now() + 0.5)
            await turn.append({"last": "words"})
            with CancelScope(shield=True):
                await anyio.sleep(0.6)
            assert turn.lost is not None
    current_fence.reset(token)
    assert virtual.now() == pytest.approx(started + 1.6)
    assert await registry.read(path) == [{"last": "words"}]
