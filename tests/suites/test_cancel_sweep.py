"""Suite C1: every public operation of `locks` is cancelled at its k-th real suspension, for every k.

Afterwards nothing is held or waited for, no descriptor is open, the next one proceeds at once, and the file holds each
record once and whole, or not at all. `LANES_LONG=1` sweeps 50 schedules of the other parties instead of 3.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import pytest
from anyio import CancelScope, create_task_group, fail_after

from locks import LeaseExpired, LeaseTimeout, LockRegistry
from tests import leaks
from tests.suspensions import Suspensions

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


@pytest.mark.suite("C1")
@pytest.mark.failure("A5")
@pytest.mark.parametrize("engine", ["kernel", "none"])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
async def test_cancelled_at_any_suspension_it_leaves_nothing(operation, engine, tmp_path, virtual):
    count = await sweep(operation, str(tmp_path / "session.jsonl"), [], LockRegistry(engine=engine))
    assert count >= 1


@pytest.mark.suite("C1")
@pytest.mark.failure("A5")
@pytest.mark.parametrize("engine", ["kernel", "none"])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
async def test_cancelled_at_any_suspension_while_a_task_holds_the_rights_it_leaves_nothing(
    operation, engine, tmp_path, virtual
):
    registry = LockRegistry(engine=engine)
    count = await sweep(operation, str(tmp_path / "session.jsonl"), [registry], registry)
    assert count >= 1


@pytest.mark.suite("C1")
@pytest.mark.failure("A5")
@pytest.mark.parametrize("woken", [True, False], ids=["woken", "polling"])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
async def test_cancelled_at_any_suspension_while_another_process_holds_the_rights_it_leaves_nothing(
    operation, woken, tmp_path, virtual, monkeypatch
):
    """The other process is a registry of its own: its descriptions of the file exclude ours as a process' would."""
    if not woken:

        def no_bell(file_id, ticket):
            raise OSError(24, "Too many open files")

        monkeypatch.setattr("locks.engines.kernel.Bell", no_bell)
    count = await sweep(operation, str(tmp_path / "session.jsonl"), [LockRegistry()], LockRegistry())
    assert count > (1 if woken else 5) or operation is read


@pytest.mark.suite("C1")
@pytest.mark.parametrize("where", ["free", "held here", "held elsewhere"])
async def test_a_record_is_in_the_file_exactly_when_its_append_returned(where, tmp_path, virtual):
    registry = LockRegistry()
    others = {"free": [], "held here": [registry], "held elsewhere": [LockRegistry()]}[where]
    path = str(tmp_path / "session.jsonl")
    returned: list[int] = []
    k, acted = 0, True
    while acted:
        k += 1
        async with create_task_group() as group:
            for other in others:
                await group.start(holds, other, path, 1)
            with CancelScope() as scope:
                driver = Suspensions(k, scope.cancel)
                await driver.run(registry.append(path, {"k": k}))
                returned.append(k)
        acted = driver.acted
    assert k > (1 if where == "free" else 2)
    assert returned[-1] == k
    assert [record["k"] for record in await registry.read(path, on_error="raise")] == returned


@pytest.mark.suite("C1")
@pytest.mark.backends("asyncio", "trio")
async def test_the_driver_acts_at_every_suspension_once(virtual):
    async def body():
        await anyio.lowlevel.checkpoint()
        await anyio.sleep(1)
        return "done"

    driver = Suspensions(1_000, lambda: None)
    assert await driver.run(body()) == "done"
    suspensions = driver.count
    assert suspensions >= 2
    assert not driver.acted
    for k in range(1, suspensions + 1):
        with CancelScope() as scope:
            driver = Suspensions(k, scope.cancel)
            await driver.run(body())
        assert scope.cancelled_caught
        assert driver.acted
