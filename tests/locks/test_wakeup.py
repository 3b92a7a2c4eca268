"""The datagram by which a process that unlocks wakes the next waiter of another one."""

from __future__ import annotations

import os

import anyio
import pytest

from locks import Fence, LockRegistry
from locks.engines.wakeup import ring
from locks.rights.queue import RightQueue
from tests.leaks import descriptors


@pytest.fixture
def rare_polls(monkeypatch):
    """Nobody looks by himself for a thousand seconds."""
    monkeypatch.setattr("locks.rights.queue.POLL_LISTENING_S", 1000.0)
    monkeypatch.setattr("locks.rights.queue.POLL_MAX_S", 1000.0)


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


async def test_without_a_wake_up_the_waiter_looks_by_itself(path, virtual, rare_polls, monkeypatch):
    monkeypatch.setattr("locks.engines.kernel.ring", lambda file_id, ticket: None)
    here, elsewhere = LockRegistry(max_hold=5000), LockRegistry()
    unlocked_at, got_at = await hand_over(elsewhere, here, path, virtual)
    assert got_at == pytest.approx(unlocked_at + 1000.0)


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
