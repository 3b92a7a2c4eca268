"""The datagram by which a process that unlocks wakes the next waiter of another one."""

from __future__ import annotations

import os
from collections import Counter

import anyio
import pytest

from locks import Fence, LockRegistry
from locks.engines.wakeup import ring
from locks.rights.queue import RightQueue
from tests.leaks import descriptors


@pytest.fixture
def rare_polls(monkeypatch):
    """Nobody looks by himself for a thousand seconds."""
    monkeypatch.setattr("locks.rights.pace.POLL_LISTENING_S", 1000.0)
    monkeypatch.setattr("locks.rights.pace.POLL_MAX_S", 1000.0)
    monkeypatch.setattr("locks.rights.pace.POLL_BEHIND_MAX_S", 1000.0)


async def waiting(registry: LockRegistry) -> RightQueue:
    """The queue of the one file that a registry waits for, once its waiter listens."""
    while True:
        queues = [
            queue for entry in registry.arbiter.files for queue in entry.queues.values() if queue.bell is not None
        ]
        if queues:
            return queues[0]
        await anyio.lowlevel.checkpoint()


async def hand_over(holder: LockRegistry, waiter: LockRegistry, path: str, virtual) -> tuple[float, float]:
    """When the one unlocked, and when the other, which had listened by then, got the lease."""
    got_at: list[float] = []

    async def wait() -> None:
        async with waiter.lease(path):
            got_at.append(virtual.now())

    async with anyio.create_task_group() as group, holder.lease(path):
        group.start_soon(wait)
        await waiting(waiter)
        unlocked_at = virtual.now()
    (got,) = got_at
    return unlocked_at, got


async def test_who_unlocks_wakes_the_next_waiter_at_once(path, virtual, rare_polls):
    here, elsewhere = LockRegistry(), LockRegistry()
    unlocked_at, got_at = await hand_over(elsewhere, here, path, virtual)
    assert got_at == unlocked_at


async def test_the_next_waiter_is_woken_before_the_lock_file_goes_and_once_the_right_is_free(
    path, virtual, monkeypatch
):
    lock_file_is_there: list[bool] = []

    def counted_ring(file_id, ticket):
        lock_file_is_there.append(os.path.exists(f"{path}.lock"))
        return ring(file_id, ticket)

    monkeypatch.setattr("locks.engines.kernel.ring", counted_ring)
    await hand_over(LockRegistry(), LockRegistry(), path, virtual)
    assert lock_file_is_there == [True, False]


async def test_without_a_wake_up_the_waiter_looks_by_itself(path, virtual, rare_polls, monkeypatch):
    monkeypatch.setattr("locks.engines.kernel.ring", lambda file_id, ticket: None)
    here, elsewhere = LockRegistry(max_hold=5000), LockRegistry()
    unlocked_at, got_at = await hand_over(elsewhere, here, path, virtual)
    assert got_at == pytest.approx(unlocked_at + 1000.0)


def counted_looks(monkeypatch) -> Counter[RightQueue]:
    """How often each queue is looked at from now on."""
    looks: Counter[RightQueue] = Counter()
    poll = RightQueue.poll

    def counted(queue: RightQueue):
        looks[queue] += 1
        return poll(queue)

    monkeypatch.setattr(RightQueue, "poll", counted)
    return looks


def held(registry: LockRegistry) -> RightQueue:
    """The queue of the one right that a registry holds."""
    (queue,) = [queue for entry in registry.arbiter.files for queue in entry.queues.values() if queue.holder]
    return queue


async def test_a_waiter_that_was_woken_before_the_right_was_free_is_woken_again(path, virtual, rare_polls, monkeypatch):
    looks = counted_looks(monkeypatch)
    here, elsewhere = LockRegistry(), LockRegistry(sidecar=False)  # told by hand, and not at the release as well
    got_at: list[float] = []

    async def wait() -> None:
        async with here.lease(path):
            got_at.append(virtual.now())

    async with anyio.create_task_group() as group, elsewhere.lease(path):
        group.start_soon(wait)
        await waiting(here)
        await virtual.settle()
        before = looks.total()
        held(elsewhere).announce()
        await virtual.settle()
        assert (looks.total(), got_at) == (before + 1, [])
        unlocked_at = virtual.now()
    assert got_at == [unlocked_at]


async def test_when_the_waiter_that_was_told_has_gone_the_next_is_woken(path, virtual, rare_polls):
    first, second, elsewhere = LockRegistry(), LockRegistry(), LockRegistry(sidecar=False)  # told by hand, as above
    got_at: list[float] = []

    async def wait(registry: LockRegistry, scope: anyio.CancelScope) -> None:
        with scope:
            async with registry.lease(path):
                got_at.append(virtual.now())

    scopes = [anyio.CancelScope(), anyio.CancelScope()]
    async with anyio.create_task_group() as group, elsewhere.lease(path):
        for registry, scope in zip((first, second), scopes, strict=True):
            group.start_soon(wait, registry, scope)
            await waiting(registry)
            await virtual.settle()
        held(elsewhere).announce()
        scopes[0].cancel()
        await virtual.settle()
        unlocked_at = virtual.now()
    assert got_at == [unlocked_at]


async def test_a_waiter_looks_the_less_often_the_more_are_before_it(path, virtual, monkeypatch):
    """Else sixteen processes would spend more time on looking than on what they wait for."""
    looks = counted_looks(monkeypatch)
    registries = [LockRegistry() for _ in range(10)]
    queues: list[RightQueue] = []

    async def wait(registry: LockRegistry) -> None:
        async with registry.lease(path):
            pass

    async with anyio.create_task_group() as group, LockRegistry(max_hold=600).lease(path):
        for registry in registries:
            group.start_soon(wait, registry)
            queues.append(await waiting(registry))
            await anyio.sleep(0.001)
        looks.clear()
        await anyio.sleep(10.0)
        group.cancel_scope.cancel()
    seconds_between = [10.0 / looks[queue] for queue in queues]
    assert seconds_between == pytest.approx([0.005] * 6 + [0.006, 0.007, 0.008, 0.008], rel=0.05)


async def test_a_wake_up_out_of_turn_does_no_harm(path, virtual):
    here, elsewhere = LockRegistry(), LockRegistry()
    held: list[str] = []

    async def wait() -> None:
        async with here.lease(path):
            held.append("here")

    async with anyio.create_task_group() as group, elsewhere.lease(path):
        group.start_soon(wait)
        queue = await waiting(here)
        assert queue.ticket is not None
        found = os.stat(path)
        file_id = (found.st_dev, found.st_ino)
        for _ in range(50):  # anybody on this machine may send these
            ring(file_id, queue.ticket)
        await virtual.settle()
        assert held == []
        held.append("elsewhere")
    assert held == ["elsewhere", "here"]


async def test_a_waiter_that_gives_up_takes_its_bell_down(path, virtual):
    here, elsewhere = LockRegistry(), LockRegistry()
    async with elsewhere.lease(path):
        before = descriptors()
        with anyio.move_on_after(1.0):
            async with here.lease(path):
                raise AssertionError("two at once")
        assert descriptors() == before


async def test_two_tasks_of_one_run_may_wait_for_one_claim_and_one_of_them_may_give_up(path, virtual):
    here, elsewhere = LockRegistry(), LockRegistry()
    fence = Fence(lane="main", run_id=1)
    got: list[str] = []

    async def wait(name: str, patience: float) -> None:
        with anyio.move_on_after(patience):
            async with here.lease_for(fence, path):
                got.append(name)

    async with anyio.create_task_group() as group, elsewhere.lease(path):
        group.start_soon(wait, "impatient", 1.0)
        group.start_soon(wait, "patient", 100.0)
        await anyio.sleep(5.0)
        assert got == []
    assert got == ["patient"]
