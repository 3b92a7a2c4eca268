"""A loop that is closed with rights held or waited for: the next loop uses the registry."""

from __future__ import annotations

import asyncio
import gc
import threading

import anyio
import pytest
import trio

from locks import LeaseTimeout, LockRegistry, Revoked, Right
from tests import blocking
from tests.poll import eventually

MAX_HOLD, GRACE = 0.2, 0.1


def left(*coroutines, when):
    """A loop that is closed while these tasks go on, once `when()` is true; what must not be collected yet."""
    loop = asyncio.new_event_loop()
    tasks = [loop.create_task(one) for one in coroutines]
    loop.run_until_complete(eventually(when, within=60))
    loop.close()
    for task in tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # asyncio complains of it, rightly, and not of us
    return tasks


async def hold(lease, seconds=3600.0):
    async with lease:
        await asyncio.sleep(seconds)


async def use(registry, path, wait_timeout=60.0):
    async with registry.lease(path, wait_timeout=wait_timeout) as lease:
        await lease.append({"n": 1})
    return len(await registry.read(path))


@pytest.mark.failure("Y6")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("engine", ["kernel", "none"])
def test_the_next_loop_gets_what_an_ended_one_has_held_at_its_deadline_and_grace(path, backend, engine):
    registry = LockRegistry(max_hold=MAX_HOLD, grace=GRACE, engine=engine)
    tasks = left(
        hold(registry.lease(path)),
        hold(registry.lease(path)),
        hold(registry.turn(path)),
        when=lambda: (registry.statistics().held, registry.statistics().waiting) == (2, 1),
    )
    assert anyio.run(use, registry, path, backend=backend) == 1
    assert anyio.run(use, registry, path + ".other", backend=backend) == 1
    anyio.run(_turn, registry, path, backend=backend)
    assert registry.statistics().sessions == 0
    del tasks


async def _turn(registry, path):
    async with registry.turn(path, wait_timeout=60):
        pass


@pytest.mark.failure("Y6")
def test_what_an_ended_loop_has_held_is_not_taken_before_its_time(path):
    registry = LockRegistry(max_hold=30.0)
    tasks = left(hold(registry.lease(path)), when=lambda: registry.statistics().held == 1)
    with pytest.raises(LeaseTimeout):
        asyncio.run(use(registry, path, wait_timeout=0.05))
    assert asyncio.run(use(registry, path + ".other")) == 1
    assert registry.revoke(path, "enough") == 1
    assert asyncio.run(use(registry, path)) == 1
    del tasks


@pytest.mark.failure("Y6")
def test_what_an_ended_loop_has_held_without_a_deadline_is_taken_at_once(path):
    registry = LockRegistry(max_hold=float("inf"))
    tasks = left(hold(registry.lease(path)), when=lambda: registry.statistics().held == 1)
    assert asyncio.run(use(registry, path)) == 1
    del tasks


@pytest.mark.failure("Y6")
def test_waiters_for_another_registry_leave_no_ticket_when_their_loop_ends(path):
    ours, other, third = LockRegistry(), LockRegistry(max_hold=MAX_HOLD, grace=GRACE), LockRegistry()

    async def both():
        async with other.lease(path):
            waiter = asyncio.create_task(hold(ours.lease(path)))
            waiters.append(waiter)
            waiter._log_destroy_pending = False  # type: ignore[attr-defined]
            await asyncio.sleep(3600)

    waiters: list[asyncio.Task[None]] = []
    tasks = left(both(), when=lambda: ours.statistics().competing == 1) + waiters
    assert asyncio.run(use(ours, path + ".other")) == 1
    now = ours.statistics()
    assert (now.sessions, now.waiting, now.competing) == (0, 0, 0)
    assert asyncio.run(use(other, path)) == 1
    assert asyncio.run(use(third, path)) == 2
    del tasks


@pytest.mark.failure("Y6")
def test_a_thread_of_an_ended_loop_may_write_until_its_lease_is_over(path):
    registry, leases = LockRegistry(max_hold=MAX_HOLD, grace=GRACE), []

    async def enter():
        async with registry.lease(path) as lease:
            leases.append(lease)
            await asyncio.sleep(3600)

    tasks = left(enter(), when=lambda: leases)
    leases[0].append_sync({"by": "thread"})
    assert asyncio.run(use(registry, path)) == 2
    with pytest.raises(Revoked):
        leases[0].append_sync({"by": "thread"})
    del tasks


@pytest.mark.failure("Y6", "T1")
def test_a_thread_that_waits_for_a_loop_is_told_when_that_ends(path):
    registry, found = LockRegistry(), []
    loop = asyncio.new_event_loop()
    loop.run_until_complete(registry.append(path, {"n": 1}))

    def append():
        try:
            registry.store.append_sync(path, b'{"n": 2}\n')
        except RuntimeError as error:
            found.append(str(error))

    thread = threading.Thread(target=append)
    thread.start()  # the loop does not run now, and never will
    loop.close()
    thread.join(5)
    assert not thread.is_alive()
    assert "ended" in found[0]


@pytest.mark.failure("Y6")
def test_trio_runs_twice_with_one_registry(path):
    registry = LockRegistry()
    assert [trio.run(use, registry, path) for _ in range(2)] == [1, 2]


@pytest.mark.failure("Y6")
@pytest.mark.parametrize("engine", ["kernel", "none"])
def test_a_registry_that_is_collected_lets_go_of_what_it_holds(path, engine):
    registry = LockRegistry(engine=engine)

    async def take(registry):
        claim = registry.arbiter.new_claim()
        assert registry.arbiter.acquire_nowait(path, Right.WRITE, claim)

    asyncio.run(take(registry))
    del registry
    with blocking.permitted("on no loop"):
        gc.collect()
    assert asyncio.run(use(LockRegistry(engine=engine), path)) == 1


@pytest.mark.failure("Y2")
@pytest.mark.backends("asyncio", "trio")
async def test_registries_without_an_engine_exclude_each_other(path):
    first = LockRegistry(engine="none")
    async with first.lease(path), first.turn(path):
        second = LockRegistry(engine="none")  # made while the first one holds
        for right in (second.lease, second.turn):
            with pytest.raises(LeaseTimeout):
                async with right(path, wait_timeout=0.02):
                    raise AssertionError("two holders")
    async with second.turn(path, wait_timeout=60):
        await first.append(path, {"n": 1})
        with pytest.raises(LeaseTimeout):
            async with first.turn(path, wait_timeout=0.02):
                raise AssertionError("two holders")
    async with first.lease(path) as lease:  # and a compaction keeps what others append
        records = await lease.read()
        await lease.replace([{"summary": 1}], through=records.position)
        with pytest.raises(LeaseTimeout):
            async with second.lease(path, wait_timeout=0.02):
                raise AssertionError("two holders")
    await second.append(path, {"n": 2})
    assert [*await first.read(path)] == [{"summary": 1}, {"n": 2}]


@pytest.mark.failure("Y2")
def test_registries_without_an_engine_exclude_each_other_over_threads(path):
    inside, most, both = 0, 0, threading.Barrier(2)

    def work():
        async def main():
            nonlocal inside, most
            registry = LockRegistry(engine="none")
            both.wait(120)
            for _ in range(20):
                async with registry.lease(path, wait_timeout=30):
                    inside += 1
                    most = max(most, inside)
                    await asyncio.sleep(0.001)  # in which the other thread would come in
                    inside -= 1

        asyncio.run(main())

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == 1
