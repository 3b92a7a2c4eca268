"""What others do to our lock file while we hold it is said once, at the next append or the end. The right stays."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from anyio import to_thread
from structlog.testing import capture_logs

from locks import LeaseLost, LeaseTimeout, LockRegistry
from locks.sidecar import lockfile
from tests.lock_files import foreign, ours, put

pytestmark = pytest.mark.failure("Y8")


@pytest.fixture(autouse=True)
def _new_process(monkeypatch):
    monkeypatch.setattr(lockfile, "_warned", False)


def rewrite(lock: Path) -> None:
    """As many bytes, in place, in the same instant as far as the clock of the file system can tell."""
    content = lock.read_bytes()
    lock.write_bytes(content.replace(b'"pid"', b'"PID"'))


def move_over(lock: Path, content: bytes) -> None:
    fresh = lock.with_suffix(".fresh")
    fresh.write_bytes(content)
    fresh.rename(lock)


def put_instead(lock: Path, kind: str) -> None:
    lock.unlink()
    put(lock, kind)


# What is done, and what is said about it: what, and by whom ({pid} lives and is foreign).
WAYS = {
    "removed": (lambda lock, pid: lock.unlink(), "removed", "unknown; nothing is there now"),
    "moved away": (lambda lock, pid: lock.rename(lock.with_suffix(".old")), "removed", "unknown; nothing is there now"),
    "robbed": (lambda lock, pid: (lock.unlink(), lock.write_bytes(foreign(pid))), "replaced", "process {pid}"),
    "moved over": (lambda lock, pid: move_over(lock, foreign(pid)), "replaced", "process {pid}"),
    "made anew": (lambda lock, pid: move_over(lock, lock.read_bytes()), "replaced", "process {own}"),
    "rewritten": (lambda lock, pid: lock.write_bytes(foreign(pid)), "rewritten", "process {pid}"),
    "rewritten alike": (lambda lock, pid: rewrite(lock), "rewritten", "process unknown"),
    "emptied": (lambda lock, pid: os.truncate(lock, 0), "rewritten", "unreadable content"),
    "made longer": (lambda lock, pid: os.truncate(lock, 5000), "rewritten", "unreadable content"),
    "made unreadable": (lambda lock, pid: lock.chmod(0), "changed mode", "unknown; its mode is 0000 now"),
    "a symlink": (lambda lock, pid: put_instead(lock, "symlink"), "replaced", "{lock} is a symbolic link, so no"),
    "a directory": (lambda lock, pid: put_instead(lock, "directory"), "replaced", "{lock} is a directory, so no"),
    "a fifo": (lambda lock, pid: put_instead(lock, "fifo"), "replaced", "{lock} is a FIFO, so no"),
}


def told(logs, way, lock, pid):
    """Whether just this was said, once."""
    said = [one for one in logs if one["event"] == "sidecar_replaced"]
    assert len(said) == 1, logs
    _, what, by = WAYS[way]
    assert said[0]["what"] == what
    assert said[0]["by"].startswith(by.format(pid=pid, own=os.getpid(), lock=lock))
    assert (said[0]["path"], said[0]["log_level"]) == (str(lock), "warning")
    return True


@pytest.mark.parametrize("way", WAYS)
async def test_it_is_said_at_the_next_append_and_not_again(path, lock, other, way):
    with capture_logs() as logs:
        async with LockRegistry().lease(path) as lease:
            await lease.append({"n": 1})
            assert logs == []
            WAYS[way][0](lock, other.pid)
            await lease.append({"n": 2})
            assert told(logs, way, lock, other.pid)
            await lease.append({"n": 3})
    assert told(logs, way, lock, other.pid)
    assert await LockRegistry().read(path) == [{"n": n} for n in (1, 2, 3)]


@pytest.mark.parametrize("way", WAYS)
async def test_without_an_append_it_is_said_at_the_end(path, lock, other, way):
    with capture_logs() as logs:
        async with LockRegistry().lease(path):
            WAYS[way][0](lock, other.pid)
        assert told(logs, way, lock, other.pid)
    # What is ours is removed, what is another's is left alone.
    stays = way not in ("removed", "moved away", "made unreadable")
    assert (lock.name in os.listdir(lock.parent)) == stays


async def test_a_thread_that_appends_says_it_as_well(path, lock, other):
    with capture_logs() as logs:
        async with LockRegistry().lease(path) as lease:
            lock.unlink()
            await to_thread.run_sync(lease.append_sync, {"n": 1})
            assert told(logs, "removed", lock, other.pid)
    assert told(logs, "removed", lock, other.pid)


async def test_a_momentary_append_says_it_when_it_ends(path, lock, other, monkeypatch):
    registry = LockRegistry()
    original = registry.store.write

    def write(*args):
        position = original(*args)
        lock.unlink()
        return position

    monkeypatch.setattr(registry.store, "write", write)
    with capture_logs() as logs:
        await registry.append(path, {"n": 1})
    assert told(logs, "removed", lock, other.pid)


async def test_the_right_stays_ours_between_processes(path, lock):
    registry, elsewhere = LockRegistry(), LockRegistry()
    async with registry.lease(path) as lease:
        lock.unlink()
        with pytest.raises(LeaseTimeout):
            async with elsewhere.lease(path, wait_timeout=0.05):
                raise AssertionError("two holders")
        await lease.append({"n": 1})
    await elsewhere.append(path, {"n": 2})
    assert await elsewhere.read(path) == [{"n": 1}, {"n": 2}]


@pytest.mark.parametrize("harm", ["a second name", "another time"])
async def test_what_does_it_no_harm_is_not_said(path, lock, harm):
    with capture_logs() as logs:
        async with LockRegistry().lease(path) as lease:
            for n in range(3):
                if n == 1 and harm == "a second name":
                    os.link(lock, f"{lock}.backup")
                elif n == 1:
                    os.utime(lock, (1, 1))
                await lease.append({"n": n})
    assert logs == []
    assert not lock.exists()


async def test_after_harmless_touches_a_robbery_is_still_said(path, lock, other):
    with capture_logs() as logs:
        async with LockRegistry().lease(path) as lease:
            os.utime(lock, (1, 1))
            await lease.append({"n": 1})
            lock.unlink()
            await lease.append({"n": 2})
            assert told(logs, "removed", lock, other.pid)


async def test_each_hold_says_what_has_become_of_its_own(path, lock, other):
    registry = LockRegistry()
    for _ in range(2):
        with capture_logs() as logs:
            async with registry.lease(path) as lease:
                lock.unlink()
                await lease.append({"n": 1})
        assert told(logs, "removed", lock, other.pid)


async def test_a_directory_that_was_put_in_the_place_of_ours_is_said(tmp_path):
    (tmp_path / "sessions").mkdir()
    path = str(tmp_path / "sessions" / "a.jsonl")
    lock = Path(path + ".lock")
    with capture_logs() as logs:
        async with LockRegistry().lease(path) as lease:
            (tmp_path / "sessions").rename(tmp_path / "moved")
            (tmp_path / "sessions").mkdir()
            with pytest.raises(LeaseLost):
                await lease.append({"n": 1})
    assert told(logs, "removed", lock, 0)


async def test_the_gap_for_foreign_gateways_is_left_from_then_on(virtual, path, lock, other):
    registry = LockRegistry()
    async with registry.lease(path) as lease:
        lock.write_bytes(foreign(other.pid))
        await lease.append({"n": 1})
    lock.unlink()
    started = virtual.now()
    await registry.append(path, {"n": 2})
    assert virtual.now() - started == pytest.approx(0.06)


async def test_a_lock_file_of_lanes_in_its_place_is_no_reason_for_a_gap(virtual, path, lock):
    registry = LockRegistry()
    async with registry.lease(path) as lease:
        move_over(lock, ours(instance="0123456789abcdef"))
        await lease.append({"n": 1})
    started = virtual.now()
    await registry.append(path, {"n": 2})
    assert virtual.now() == started


async def test_among_many_appends_that_follow_each_other_closely_it_is_said_as_well(path, lock, other):
    with capture_logs() as logs:
        async with LockRegistry().lease(path) as lease:
            for n in range(5000):
                if n == 100:
                    lock.unlink()
                await lease.append({"n": n})
                if logs:
                    break
            assert told(logs, "removed", lock, other.pid)
