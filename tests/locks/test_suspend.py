"""A process that stood still, and a wall clock that was set: no false verdict, and nobody overlaps.

A stopped process can neither be cancelled nor leave its last words, so its grace starts afresh when it goes on. Its
lock is the kernel's meanwhile: others wait, whatever any clock says.
"""

# ruff: noqa: PT012 -- leaving the block is what raises, so the block stands inside `raises`

from __future__ import annotations

import signal
import time

import anyio
import pytest
from anyio import CancelScope, create_task_group, fail_after, move_on_after, to_thread

from locks import LeaseExpired, LeaseTimeout, LockRegistry, Revoked, process
from tests.peers import peer
from tests.poll import eventually


@pytest.mark.failure("C5")
@pytest.mark.parametrize("by", ["own", "scope"])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.backends("asyncio")
async def test_a_process_that_was_stopped_past_its_deadline_may_still_write_its_last_words(path, backend, by):
    registry, waited_for = LockRegistry(), []
    stopped_for_s, max_hold, grace = 0.9, 0.3, 0.5

    async def wait():
        async with registry.lease(path) as lease:
            waited_for.append(other.said("append went through"))
            await lease.append({"by": "us"})

    with peer("suspended", path, backend, max_hold, grace, by) as other, fail_after(60):
        await eventually(lambda: other.said("held"), within=60)
        other.signal(signal.SIGSTOP)
        await eventually(other.stopped)
        stopped_at = time.monotonic()
        async with create_task_group() as group:
            group.start_soon(wait)
            await eventually(lambda: time.monotonic() - stopped_at > stopped_for_s)
            assert registry.statistics().waiting == 1
            other.signal(signal.SIGCONT)
        await eventually(lambda: other.said("left revoked=0"))
        assert other.said("cancelled")
        assert other.said("block: LeaseExpired") == (by == "own")
    assert waited_for == [True]
    assert [record["by"] for record in await registry.read(path, on_error="raise")] == ["suspended", "suspended", "us"]


# The same, step by step: time passes, and the steward has not been there


def suspend(registry, virtual, seconds):
    """Let time pass as if the process stood still: the alarms ring once it goes on."""
    alarm = registry.arbiter.grants.steward._alarm
    alarm.due = float("inf")
    virtual.advance(seconds)
    alarm.ring_by(virtual.now())


@pytest.fixture(params=["kernel", "none"])
def registry(request, virtual):
    return LockRegistry(max_hold=10.0, grace=2.0, engine=request.param)


@pytest.mark.failure("C5")
@pytest.mark.parametrize("seconds", [11.9, 12.0, 12.5, 20.0, 100_000.0])
@pytest.mark.parametrize("by", ["own", "scope"])
async def test_the_grace_starts_afresh_when_the_process_goes_on(registry, path, virtual, seconds, by):
    with pytest.raises(LeaseExpired) if by == "own" else move_on_after(10.0) as caught:
        async with registry.lease(path, max_hold=10.0 if by == "own" else 1e9) as lease:
            suspend(registry, virtual, seconds)
            went_on_at = virtual.now()
            lease.check()  # before anybody has looked
            try:
                await anyio.sleep_forever()
            finally:
                assert virtual.now() == went_on_at
                with CancelScope(shield=True):
                    await anyio.sleep(1.999)
                    await lease.append({"last": "words"})
    if not isinstance(caught, CancelScope):
        assert caught.value.overstayed_s == pytest.approx(seconds + 1.999 - 10)  # by a clock that is never set
    assert await registry.read(path) == [{"last": "words"}]
    assert registry.statistics().revoked == 0


@pytest.mark.failure("C5")
async def test_a_grace_that_has_started_afresh_ends_all_the_same(registry, path, virtual):
    with pytest.raises(Revoked):
        async with registry.lease(path) as lease:
            suspend(registry, virtual, 50)
            went_on_at = virtual.now()
            with CancelScope(shield=True):
                while lease.lost is None:
                    await anyio.sleep(0.25)
                assert virtual.now() == went_on_at + 2
                with pytest.raises(Revoked):
                    await lease.append({"too": "late"})
    assert await registry.read(path) == []


@pytest.mark.failure("C5")
async def test_a_process_that_is_stopped_within_its_grace_gets_another_one(registry, path, virtual):
    with pytest.raises(LeaseExpired):
        async with registry.lease(path) as lease:
            try:
                await anyio.sleep_forever()
            finally:
                with CancelScope(shield=True):
                    await anyio.sleep(1)
                    suspend(registry, virtual, 30)
                    await anyio.sleep(1.5)
                    await lease.append({"last": "words"})
    assert await registry.read(path) == [{"last": "words"}]


async def test_a_grace_that_has_passed_as_a_whole_starts_afresh_however_short_it_is(path, virtual):
    registry = LockRegistry(max_hold=10.0, grace=0.25)
    with pytest.raises(LeaseExpired):
        async with registry.lease(path) as lease:
            suspend(registry, virtual, 10.5)
            try:
                await anyio.sleep_forever()
            finally:
                with CancelScope(shield=True):
                    await anyio.sleep(0.2)
                    await lease.append({"last": "words"})
    assert await registry.read(path) == [{"last": "words"}]


async def test_a_lease_without_grace_is_gone_when_the_process_goes_on(path, virtual):
    registry = LockRegistry(max_hold=10.0, grace=0.0)
    with pytest.raises(Revoked):
        async with registry.lease(path):
            suspend(registry, virtual, 50)
            with CancelScope(shield=True):
                await anyio.sleep(0.1)
    assert registry.statistics().revoked == 1


async def test_a_steward_that_is_late_by_less_than_the_grace_forgives_nothing(registry, path, virtual):
    """Else a busy machine would let everybody overstay."""
    started = virtual.now()
    with pytest.raises(Revoked):
        async with registry.lease(path) as lease:
            suspend(registry, virtual, 10.9)
            with CancelScope(shield=True):
                while lease.lost is None:
                    await anyio.sleep(0.1)
    assert virtual.now() == pytest.approx(started + 12.0, abs=0.11)


# The wall clock


@pytest.mark.failure("C5")
@pytest.mark.parametrize("step", [3600.0, -3600.0])
async def test_a_wall_clock_that_is_set_by_an_hour_changes_no_verdict(path, virtual, monkeypatch, step):
    here, elsewhere = LockRegistry(max_hold=10.0, grace=2.0), LockRegistry()
    started = virtual.now()
    with pytest.raises(LeaseExpired) as caught:
        async with here.lease(path) as lease:
            wall, stat_time = process.wall, time.time
            monkeypatch.setattr(process, "wall", lambda: wall() + step)
            monkeypatch.setattr(time, "time", lambda: stat_time() + step)
            with pytest.raises(LeaseTimeout):
                async with elsewhere.lease(path, wait_timeout=1):
                    pytest.fail("overlapped")
            assert lease.deadline == started + 10
            await lease.append({"n": 1})
            (held,) = here.holders()
            assert held.held_s == pytest.approx(1.0)
            await anyio.sleep_forever()
    assert virtual.now() == pytest.approx(started + 10)
    assert caught.value.overstayed_s == pytest.approx(0, abs=1e-6)
    async with elsewhere.lease(path, wait_timeout=1) as next_one:
        await to_thread.run_sync(next_one.append_sync, {"n": 2})
    assert await here.read(path) == [{"n": 1}, {"n": 2}]
    assert here.statistics().revoked == 0
