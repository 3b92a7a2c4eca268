"""The legacy model: as good as the original, and as bad."""

from __future__ import annotations

import json
import subprocess
import sys

import anyio
import pytest

from locks import process
from runtime.bench.legacy.lock_file import LegacyLock, LegacyLockTimeout, Times
from tests import blocking

TIMES = Times()


@pytest.fixture
def session(tmp_path):
    return tmp_path / "session.jsonl"


async def test_two_tasks_exclude_each_other_and_the_file_goes_with_the_holder(virtual, session):
    lock = LegacyLock(TIMES)
    held = await lock.acquire(session)
    owner = json.loads(held.lock_file.read_bytes())
    assert (owner["pid"], owner["maxHoldMs"]) == (process.me().pid, 1_020_000)
    asked = virtual.now()
    async with anyio.create_task_group() as tasks:

        async def wait():
            lock.release(await lock.acquire(session))

        tasks.start_soon(wait)
        await anyio.sleep(10)
        assert lock.release(held)
    assert virtual.now() == pytest.approx(asked + 10, abs=TIMES.poll_s)
    assert list(session.parent.iterdir()) == []


async def test_a_waiter_gives_up_long_before_a_holder_must(virtual, session):
    lock = LegacyLock(TIMES)
    await lock.acquire(session)
    asked = virtual.now()
    with pytest.raises(LegacyLockTimeout):
        await lock.acquire(session)
    assert virtual.now() == pytest.approx(asked + 60, abs=TIMES.poll_s)


async def test_the_watchdog_takes_the_file_away_without_telling_the_holder(virtual, session):
    lock = LegacyLock(TIMES)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lock.watch)
        held = await lock.acquire(session)
        await anyio.sleep(1019)
        assert held.lock_file.exists()
        await anyio.sleep(62)
        assert not held.lock_file.exists()
        successor = await lock.acquire(session)
        assert not lock.release(held)  # the old holder has only now finished
        assert successor.lock_file.exists()
        tasks.cancel_scope.cancel()


@pytest.mark.backends("asyncio")
async def test_a_dead_owner_is_replaced_and_a_living_one_is_believed(session):
    lock = LegacyLock(Times(wait_s=0.0))
    with blocking.permitted("starting a process takes milliseconds"):
        child = subprocess.Popen(  # noqa: ASYNC220 -- no other task runs
            [sys.executable, "-c", "input()"], stdin=subprocess.PIPE
        )
    lock_file = session.with_name("session.jsonl.lock")
    owner = {"pid": child.pid, "createdAt": "2999-01-01T00:00:00Z", "starttime": process.starttime(child.pid)}
    lock_file.write_text(json.dumps(owner))
    with pytest.raises(LegacyLockTimeout):
        await lock.acquire(session)
    assert lock.sweep(session.parent) == 0
    with blocking.permitted("ending a process takes milliseconds"):
        child.communicate()
    assert lock.sweep(session.parent) == 1
    lock.release(await lock.acquire(session))


@pytest.mark.backends("asyncio")
@pytest.mark.parametrize("text", ["", "half", "[]", '{"pid": "x"}'])
async def test_a_half_written_file_is_left_alone_while_it_is_young(session, text):
    lock = LegacyLock(Times(wait_s=0.0))
    session.with_name("session.jsonl.lock").write_text(text)
    with pytest.raises(LegacyLockTimeout):
        await lock.acquire(session)
    assert LegacyLock(Times(half_written_s=-1.0)).sweep(session.parent) == 1
