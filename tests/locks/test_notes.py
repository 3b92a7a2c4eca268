"""Notes on turns: for those that last, by a thread that neither the event loop nor the steward waits for."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import anyio
import pytest

from locks import LeaseTimeout, LockRegistry, Revoked, Right
from locks.rights.notes import NOTED_AFTER_S, THREAD
from locks.sidecar import guards, turn_note
from locks.sidecar.payload import Terms
from tests.lock_files import dead, ours
from tests.poll import eventually


@pytest.fixture
def note(path):
    return Path(turn_note.path_of(path))


@pytest.fixture
def nobody():
    """The number of a process that has ended."""
    return dead()


@pytest.fixture
def written(monkeypatch):
    """How many notes were written."""
    real, found = turn_note.write, []

    def write(path: str, terms: Terms) -> bool:
        found.append(path)
        return real(path, terms)

    monkeypatch.setattr(turn_note, "write", write)
    return found


async def test_a_turn_is_noted_once_it_has_lasted_and_the_note_goes_with_it(virtual, path, note, written):
    async with LockRegistry().turn(path) as turn:
        await anyio.sleep(NOTED_AFTER_S - 0.001)
        assert not note.exists()
        await anyio.sleep(0.001)
        named = turn_note.read(path)
        assert named is not None and (named.pid, named.epoch) == (os.getpid(), turn.epoch)
        await anyio.sleep(100)
    assert not note.exists()
    assert written == [path]


async def test_a_short_turn_and_a_write_lease_are_never_noted(virtual, path, written):
    registry = LockRegistry()
    for _ in range(3):
        async with registry.turn(path) as turn:
            await turn.append({"n": 1})
    async with registry.lease(path):
        await anyio.sleep(1)
    await anyio.sleep(1)
    assert written == []
    assert os.listdir(os.path.dirname(path)) == ["session.jsonl"]


async def test_each_turn_of_many_is_noted_at_its_own_time(virtual, tmp_path):
    """One alarm serves them in the order of their grants, past turns that have ended meanwhile."""
    registry, noted = LockRegistry(), {}

    async def conduct(name, begins, lasts):
        await anyio.sleep(begins)
        async with registry.turn(tmp_path / name):
            await anyio.sleep(min(lasts, NOTED_AFTER_S))
            noted[name] = (tmp_path / f"{name}.turn").exists()
            await anyio.sleep(max(0.0, lasts - NOTED_AFTER_S))

    async with anyio.create_task_group() as group:
        for number, lasts in enumerate([1.0, 0.01, 0.06, 0.049, 0.3]):
            group.start_soon(conduct, f"{number}", number * 0.02, lasts)
    assert noted == {"0": True, "1": False, "2": True, "3": False, "4": True}
    assert not list(tmp_path.glob("*.turn"))


async def test_a_turn_that_ends_while_its_note_is_written_leaves_none(virtual, path, note, monkeypatch):
    registry, real = LockRegistry(), turn_note.write
    claim = registry.arbiter.new_claim()

    def write(path: str, terms: Terms) -> bool:
        registry.arbiter.release(claim)
        return real(path, terms)

    monkeypatch.setattr(turn_note, "write", write)
    assert registry.arbiter.acquire_nowait(path, Right.TURN, claim)
    await anyio.sleep(1)
    assert not note.exists()


async def test_the_note_of_another_process_is_left_alone(virtual, path, note):
    """The steward took the turn away, and another process has it: the late end of the block is none of its business."""
    theirs = ours(instance="0123456789abcdef")

    async def overstay():
        async with LockRegistry(max_hold=1.0, grace=0.5).turn(path):
            await anyio.sleep(0.9)
            assert note.exists()
            virtual.advance(1.0)
            note.write_bytes(theirs)
            await anyio.sleep(1)

    with pytest.raises(Revoked):
        await overstay()
    assert note.read_bytes() == theirs


@pytest.mark.failure("C2")
async def test_the_note_of_a_dead_process_names_no_holder_and_goes_with_the_next_turn(virtual, path, note, nobody):
    left = ours(pid=nobody, instance="0123456789abcdef", lane="main", runId=7)
    note.write_bytes(left)
    async with LockRegistry().turn(path):
        assert not note.exists()
        note.write_bytes(left)
        with pytest.raises(LeaseTimeout, match="another process holds it") as caught:
            async with LockRegistry().turn(path, wait_timeout=0):
                pytest.fail("entered")
    assert caught.value.holder is None


@pytest.mark.failure("D3")
async def test_the_holder_in_a_frozen_event_loop_is_named(virtual, path, note):
    async with LockRegistry().turn(path):
        virtual.advance(NOTED_AFTER_S)  # the block computes, and the loop stands still
        assert note.exists()


@pytest.mark.backends("asyncio", "trio")
async def test_a_disk_that_hangs_under_a_note_keeps_neither_the_loop_nor_the_steward(path, note, tmp_path, monkeypatch):
    hung, go_on, threads = threading.Event(), threading.Event(), []

    def write(*_):
        threads.append(threading.current_thread().name)
        hung.set()
        go_on.wait(120)

    monkeypatch.setattr(guards.TurnNote, "write", write)
    registry = LockRegistry(max_hold=0.05, grace=0.05)

    async def overstay():
        async with registry.lease(tmp_path / "other"):
            with anyio.CancelScope(shield=True):
                await eventually(lambda: registry.statistics().revoked == 1)

    try:
        async with LockRegistry().turn(path):
            await eventually(hung.is_set)
            with pytest.raises(Revoked):
                await overstay()
    finally:
        go_on.set()
    assert threads == [THREAD]


@pytest.mark.failure("C2")
async def test_the_note_of_a_process_that_died_while_it_was_waited_for_goes_with_the_turn(virtual, path, note, nobody):
    """Beside a session that this registry had found clean before."""
    here, there = LockRegistry(), LockRegistry()
    async with here.turn(path):
        pass

    async def wait():
        async with here.turn(path):
            assert not note.exists()

    async with anyio.create_task_group() as group, there.turn(path):
        group.start_soon(wait)
        await virtual.settle()
        note.write_bytes(ours(pid=nobody, instance="0123456789abcdef"))
