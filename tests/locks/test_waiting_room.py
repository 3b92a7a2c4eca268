"""One task looks after all files of its registry: none of them waits for another's pace."""

from __future__ import annotations

import json
import os
from pathlib import Path

import anyio
import pytest

from locks import LockRegistry, process
from locks.rights.pace import POLL_MAX_S
from locks.sidecar import lockfile
from locks.sidecar.guards import FOREIGN_POLL_S
from locks.sidecar.payload import Terms, encode


def held_by_a_foreign_program(session: str) -> None:
    fields = json.loads(encode(Terms(None, None, 1, 300_000), process.wall()))
    del fields["instance"]
    fields |= {"pid": os.getppid(), "starttime": process.starttime(os.getppid())}
    Path(lockfile.path_of(session)).write_text(json.dumps(fields))


@pytest.mark.failure("D2")
async def test_who_waits_for_a_foreign_program_does_not_slow_down_those_who_wait_for_our_own(tmp_path, virtual):
    """It looks every 50 ms, and is the one who looks for all; a file that is waited for later is due much sooner."""
    foreign, ours = str(tmp_path / "foreign.jsonl"), str(tmp_path / "ours.jsonl")
    held_by_a_foreign_program(foreign)
    registry, other = LockRegistry(yield_to_foreign=False), LockRegistry()
    waited: list[float] = []

    async def wait_for_ever() -> None:
        async with registry.lease(foreign):
            pytest.fail("the foreign program still holds it")

    async def wait() -> None:
        async with registry.turn(ours):
            waited.append(virtual.now())

    async with anyio.create_task_group() as group:
        group.start_soon(wait_for_ever)
        await virtual.settle()
        async with other.turn(ours):
            group.start_soon(wait)
            await anyio.sleep(0.001)
        released = virtual.now()
        await anyio.sleep(FOREIGN_POLL_S)
        group.cancel_scope.cancel()
    assert len(waited) == 1
    assert waited[0] - released <= POLL_MAX_S


async def test_who_waits_behind_many_looks_at_once_for_a_task_that_begins_to_wait_for_another_file(tmp_path, virtual):
    crowded, other = str(tmp_path / "crowded.jsonl"), str(tmp_path / "other.jsonl")
    here, elsewhere = LockRegistry(), LockRegistry()
    got_at: list[float] = []

    async def wait(registry: LockRegistry, path: str) -> None:
        async with registry.turn(path):
            got_at.append(virtual.now())

    async with anyio.create_task_group() as group, elsewhere.turn(crowded):
        for registry in [LockRegistry() for _ in range(9)] + [here]:
            group.start_soon(wait, registry, crowded)
            await anyio.sleep(0.001)
        await anyio.sleep(0.05)  # by now it looks every 8 ms
        async with elsewhere.turn(other):
            group.start_soon(wait, here, other)
            await anyio.sleep(0.0001)
        released = virtual.now()
        await anyio.sleep(0.03)
        group.cancel_scope.cancel()
    assert len(got_at) == 1
    assert got_at[0] - released <= 0.001
