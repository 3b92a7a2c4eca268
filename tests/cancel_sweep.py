"""Cancels every public operation of `locks` at its k-th real suspension, for every k: suite C1 and others play it.

`LANES_LONG=1` sweeps 50 schedules of the other parties instead of 3.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
from anyio import CancelScope, create_task_group, fail_after

from locks import LeaseExpired, LeaseTimeout, LockRegistry
from runtime.testing.suspensions import Suspensions
from tests import leaks

SCHEDULES = 50 if os.environ.get("LANES_LONG") else 3

Operation = Callable[[LockRegistry, str], Coroutine[Any, Any, Any]]


async def lease(registry, path):
    async with registry.lease(path) as lease:
        await lease.append({"n": 1})
        await lease.append_many([{"n": 2}, {"n": 3}])
        await lease.read()
        await anyio.sleep(0.01)
        await lease.append({"n": 4})


async def turn(registry, path):
    async with registry.turn(path) as turn:
        await turn.append({"n": 1})
        await anyio.sleep(0.01)
        await turn.append_many([{"n": 2}, {"n": 3}])
        await turn.read(last=1)


async def nested(registry, path):
    async with registry.turn(path) as turn, registry.lease(path) as outer:
        await turn.append({"n": 1})
        async with registry.lease(path) as inner:
            await inner.append({"n": 2})
        await outer.append({"n": 3})


async def append(registry, path):
    await registry.append(path, {"n": 1})


async def read(registry, path):
    await registry.read(path)


async def budgeted(registry, path):
    async with registry.lease(path, wait_timeout=0.003) as lease:
        await lease.append({"n": 1})


async def overstaying(registry, path):
    async with registry.lease(path, max_hold=0.005) as lease:
        await lease.append({"n": 1})
        await anyio.sleep(1)


async def cleaning_up(registry, path):
    async with registry.lease(path) as lease:
        try:
            await anyio.sleep(0.01)
        finally:
            with CancelScope(shield=True):
                await lease.append({"n": 1})


OPERATIONS = [lease, turn, nested, append, read, budgeted, overstaying, cleaning_up]


async def holds(registry: LockRegistry, path: str, schedule: int, *, task_status: Any) -> None:
    """The other party: has both rights first, and lets go of them in an order that depends on the schedule."""
    async with registry.lease(path):
        async with registry.turn(path):
            task_status.started()
            await anyio.sleep(0.001 * (schedule % 7))
        await anyio.sleep(0.0007 * (schedule % 5))
    async with registry.turn(path):
        await anyio.sleep(0.0003 * (schedule % 3))


async def sweep(operation: Operation, path: str, others: list[LockRegistry], registry: LockRegistry) -> int:
    """Cancel `operation` at each of its suspensions in turn; returns how many there were."""
    most = 0
    for schedule in range(SCHEDULES):
        k = 0
        while True:
            k += 1
            scope = CancelScope()
            driver = Suspensions(k, scope.cancel)
            before = leaks.descriptors()
            async with create_task_group() as group:
                for other in others:
                    await group.start(holds, other, path, schedule)
                # What the operation asks for itself, it may get.
                with scope, contextlib.suppress(LeaseTimeout, LeaseExpired):
                    await driver.run(operation(registry, path))
                if registry not in others:
                    assert registry.statistics().sessions == 0, f"cancelled at {k}: still held or waited for"
            for one in {*others, registry}:
                now = one.statistics()
                assert (now.sessions, now.held, now.waiting, now.competing) == (0, 0, 0, 0), f"cancelled at {k}: {now}"
            assert leaks.descriptors() == before, f"cancelled at {k}: a descriptor stays open"
            with fail_after(1):
                async with registry.turn(path, wait_timeout=0), registry.lease(path, wait_timeout=0) as check:
                    await check.append({"schedule": schedule, "cancelled_at": k})
            if not driver.acted:
                most = max(most, driver.count)
                break
    whole(path)
    return most


def whole(path: str) -> None:
    """Every line is a record, and each attempt left a beginning of its records, in order."""
    with open(path, "rb") as file:
        *lines, tail = file.read().split(b"\n")
    assert tail == b""
    attempt: list[int] = []
    for line in lines:
        record = json.loads(line)
        if "n" in record:
            attempt.append(record["n"])
            continue
        assert attempt == list(range(1, len(attempt) + 1)), f"{record}: {attempt}"
        attempt = []
