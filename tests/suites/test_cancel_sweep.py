"""Suite C1: every public operation of `locks` is cancelled at its k-th real suspension, for every k.

Afterwards nothing is held or waited for, no descriptor is open, the next one proceeds at once, and the file holds each
record once and whole, or not at all. `tests/cancel_sweep.py` plays it.
"""

from __future__ import annotations

import anyio
import pytest
from anyio import CancelScope, create_task_group

from locks import LockRegistry
from runtime.testing.suspensions import Suspensions
from tests.cancel_sweep import OPERATIONS, holds, read, sweep


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
