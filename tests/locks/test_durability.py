"""`durability="sync"`: who returns is on the disk. Shown by the order of the calls, never by how long they take."""

from __future__ import annotations

import json
import os
import threading

import anyio
import pytest
from anyio import CancelScope, create_task_group, fail_after, from_thread, to_thread

from locks import LockRegistry, TranscriptError
from locks import _os as seam
from tests import leaks
from tests.poll import eventually, eventually_sync


class Disk:
    """Notes what is written and synced, in order; a sync may be made to wait or to fail.

    `events` are `("write", inode, text)`, `("begin", inode)`, `("end", inode)`, `("directory", inode)`, and what a
    test adds.
    """

    def __init__(self, monkeypatch):
        self.events = []
        self.before_sync = lambda number: None
        """Called on the thread of the so-many-th sync before it is done."""
        self.opened = []
        self._mutex = threading.Lock()
        self._number = 0
        for name in ("write", "fdatasync", "fsync", "open"):
            monkeypatch.setattr(seam, name, self._noting(getattr(self, f"_{name}"), getattr(seam, name)))

    def note(self, *event):
        with self._mutex:
            self.events.append(event)

    @property
    def syncs(self):
        return sum(event[0] == "begin" for event in self.events)

    def texts(self):
        return [event[2] for event in self.events if event[0] == "write"]

    def covered(self, text):
        """Whether a sync of the file began after a text was written and ended before `("returned", text)`."""
        at = next(i for i, event in enumerate(self.events) if event[0] == "write" and event[2] == text)
        inode, end = self.events[at][1], self.events.index(("returned", text))
        between = self.events[at:end]
        begun = between.index(("begin", inode)) if ("begin", inode) in between else len(between)
        return ("end", inode) in between[begun:]

    @staticmethod
    def _noting(noted, real):
        return lambda *args: noted(real, *args)

    def _write(self, real, fd, data):
        written = real(fd, data)
        for line in bytes(data).splitlines():
            self.note("write", os.fstat(fd).st_ino, json.loads(line).get("text"))
        return written

    def _fdatasync(self, real, fd):
        inode = os.fstat(fd).st_ino
        with self._mutex:
            self._number += 1
            number = self._number
            self.events.append(("begin", inode))
        self.before_sync(number)
        real(fd)
        self.note("end", inode)

    def _fsync(self, real, fd):
        real(fd)
        self.note("directory", os.fstat(fd).st_ino)

    def _open(self, real, path, *args):
        self.opened.append(path)
        return real(path, *args)


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


@pytest.fixture
def registry():
    return LockRegistry(durability="sync", sidecar=False)


def fails(number):
    raise OSError(5, "Input/output error")


async def texts_in(registry, path):
    return [record["text"] for record in await registry.read(path, on_error="raise")]


async def by_registry(registry, path, text):
    await registry.append(path, {"text": text})


async def by_lease(registry, path, text):
    async with registry.lease(path) as lease:
        await lease.append({"text": text})


async def by_many(registry, path, text):
    async with registry.lease(path) as lease:
        await lease.append_many([{"text": text}])


async def by_turn(registry, path, text):
    async with registry.turn(path) as turn:
        await turn.append({"text": text})


async def by_thread_of_lease(registry, path, text):
    async with registry.lease(path) as lease:
        await to_thread.run_sync(lease.append_sync, {"text": text})


async def by_thread_of_turn(registry, path, text):
    async with registry.turn(path) as turn:
        await to_thread.run_sync(turn.append_sync, {"text": text})


WAYS = [by_registry, by_lease, by_many, by_turn, by_thread_of_lease, by_thread_of_turn]
every_way = pytest.mark.parametrize("append", WAYS, ids=lambda way: way.__name__)


# Who returns is on the disk


@every_way
async def test_an_append_returns_after_a_sync_that_began_behind_its_write(registry, path, disk, append):
    for text in "ab":
        await append(registry, path, text)
        disk.note("returned", text)
        assert disk.covered(text)
    assert disk.texts() == ["a", "b"]
    assert registry.statistics().sessions == 0


@every_way
async def test_with_durability_process_nothing_is_synced(path, disk, append):
    registry = LockRegistry(sidecar=False)
    await append(registry, path, "a")
    assert [event[0] for event in disk.events] == ["write"]


async def test_appends_of_a_file_share_their_syncs_and_each_is_covered(registry, path, disk):
    names = [str(n) for n in range(50)]
    disk.before_sync = lambda number: eventually_sync(lambda: len(disk.texts()) == len(names))  # all are in by then

    async def append(text):
        await registry.append(path, {"text": text})
        disk.note("returned", text)

    async with create_task_group() as group:
        for text in names:
            group.start_soon(append, text)
    assert disk.syncs == 2  # of the one who came first, and of all who came meanwhile
    assert all(disk.covered(text) for text in names)
    assert len(registry.store.syncs) == 0
    assert registry.statistics().sessions == 0


async def test_appends_of_several_files_do_not_wait_for_each_others_syncs(registry, path, tmp_path, disk):
    other = str(tmp_path / "other.jsonl")
    done = threading.Event()
    disk.before_sync = lambda number: number > 1 or done.wait(120)
    async with create_task_group() as group:
        group.start_soon(by_registry, registry, path, "a")
        await eventually(lambda: disk.syncs == 1)
        await registry.append(other, {"text": "b"})
        assert ("end", os.stat(path).st_ino) not in disk.events
        done.set()
    assert disk.syncs == 2


async def test_an_append_that_waits_for_the_disk_keeps_nobody_from_writing(registry, path, disk):
    go = threading.Event()
    disk.before_sync = lambda number: go.wait(120)
    async with create_task_group() as group:
        group.start_soon(by_registry, registry, path, "a")
        await eventually(lambda: disk.syncs == 1)
        async with registry.lease(path, wait_timeout=0):
            pass
        async with LockRegistry(sidecar=False).lease(path, wait_timeout=0) as lease:
            await lease.append({"text": "b"})
        go.set()
    assert await texts_in(registry, path) == ["a", "b"]


# The directory


def directories(disk):
    return sum(event[0] == "directory" for event in disk.events)


async def test_the_directory_is_synced_when_a_file_comes_into_being_and_not_again(registry, path, tmp_path, disk):
    await registry.append(path, {"text": "a"})
    assert disk.events[-1] == ("directory", tmp_path.stat().st_ino)
    await registry.append(path, {"text": "b"})
    assert directories(disk) == 1
    os.unlink(path)
    await registry.append(path, {"text": "a"})  # ext4 has given it the number of the one before
    assert directories(disk) == 2
    await registry.append(str(tmp_path / "other.jsonl"), {"text": "a"})
    assert directories(disk) == 3


async def test_a_replaced_file_is_synced_then_renamed_and_then_its_directory(
    registry, path, tmp_path, disk, monkeypatch
):
    real = seam.rename

    def rename(source, target):
        disk.note("rename", os.stat(source).st_ino)
        real(source, target)

    monkeypatch.setattr(seam, "rename", rename)
    async with registry.lease(path) as lease:
        await lease.append({"text": "a"})
        await lease.read()
        del disk.events[:]
        await lease.replace([{"text": "b"}])
        new = os.stat(path).st_ino
        assert disk.events == [
            ("write", new, "b"),
            ("begin", new),
            ("end", new),
            ("rename", new),
            ("directory", tmp_path.stat().st_ino),
        ]


async def test_when_a_replaced_file_could_not_sync_its_directory_the_next_append_does(
    registry, path, disk, monkeypatch
):
    async with registry.lease(path) as lease:
        await lease.append({"text": "a"})
        for text in "bcd":  # the numbers of files repeat
            await lease.read()
            with monkeypatch.context() as patch:
                patch.setattr(seam, "fsync", fails)
                with pytest.raises(TranscriptError, match="is replaced, but"):
                    await lease.replace([{"text": text}])
            before = directories(disk)
            await lease.append({"text": "e"})
            assert directories(disk) == before + 1


async def test_an_append_that_waits_for_the_disk_while_the_file_is_replaced_is_in_the_new_one(registry, path, disk):
    go = threading.Event()
    disk.before_sync = lambda number: number > 1 or go.wait(120)
    async with create_task_group() as group:
        group.start_soon(by_registry, registry, path, "a")
        await eventually(lambda: disk.syncs == 1)
        seen = await registry.read(path)
        await LockRegistry(sidecar=False).append(path, {"text": "b"})
        async with registry.lease(path) as lease:
            await lease.replace([{"text": "summary"}], through=seen.position)
            group.start_soon(by_registry, registry, path, "c")
            go.set()
            await lease.append({"text": "d"})
    assert await texts_in(registry, path) == ["summary", "b", "d", "c"]
    assert len(registry.store.syncs) == 0
    assert registry.statistics().sessions == 0


# The disk refuses


@pytest.mark.failure("H1")
async def test_a_failing_sync_is_an_error_of_everybody_who_relied_on_it_and_of_nobody_else(registry, path, disk):
    count, refused = 5, []

    def fails_once(number):
        if number == 1:
            eventually_sync(lambda: len(disk.texts()) == count)
            fails(number)

    disk.before_sync = fails_once

    async def append(text):
        with pytest.raises(TranscriptError, match=r"cannot sync .*: Input/output error"):
            await registry.append(path, {"text": text})
        refused.append(text)

    async with create_task_group() as group:
        for n in range(count):
            group.start_soon(append, str(n))
    assert sorted(refused) == [str(n) for n in range(count)]
    assert disk.syncs == 1  # a second one would succeed, and say nothing
    await registry.append(path, {"text": "later"})
    disk.note("returned", "later")
    assert disk.covered("later")
    assert len(registry.store.syncs) == 0
    assert registry.statistics().sessions == 0


@pytest.mark.failure("H1")
async def test_a_descriptor_whose_sync_failed_is_never_written_again(registry, path, disk, monkeypatch):
    wrote, real = [], seam.write

    def write(fd, data):
        wrote.append(fd)
        return real(fd, data)

    monkeypatch.setattr(seam, "write", write)
    async with registry.turn(path) as turn:  # keeps the old descriptor open, so its number is not used again
        disk.before_sync = fails
        with pytest.raises(TranscriptError):
            await turn.append({"text": "a"})
        disk.before_sync = lambda number: None
        opened = len(disk.opened)
        await turn.append({"text": "b"})
        await registry.append(path, {"text": "c"})
        async with registry.lease(path) as lease:
            await lease.append({"text": "d"})
    assert wrote[0] not in wrote[1:]
    assert len([one for one in disk.opened[opened:] if one == path]) >= 1
    assert await texts_in(registry, path) == ["a", "b", "c", "d"]
    assert registry.statistics().sessions == 0


@pytest.mark.failure("H1")
@pytest.mark.parametrize("append", [by_lease, by_thread_of_lease], ids=lambda way: way.__name__)
async def test_under_a_lease_whose_sync_failed_nothing_more_is_written(registry, path, disk, append):
    async with registry.lease(path) as lease:
        disk.before_sync = fails
        with pytest.raises(TranscriptError):
            await (
                lease.append({"text": "a"})
                if append is by_lease
                else to_thread.run_sync(lease.append_sync, {"text": "a"})
            )
        disk.before_sync = lambda number: None
        for _ in range(2):
            with pytest.raises(TranscriptError, match="Input/output error"):
                await lease.append({"text": "b"})
        await lease.read()
        with pytest.raises(TranscriptError, match="Input/output error"):
            await lease.replace([])
        lease.check()
    assert disk.texts() == ["a"]
    await append(registry, path, "c")
    assert await texts_in(registry, path) == ["a", "c"]


@pytest.mark.failure("H1")
async def test_who_waits_for_a_lease_whose_sync_fails_goes_on_with_another_descriptor(registry, path, disk, virtual):
    async with create_task_group() as group, registry.lease(path) as lease:
        for text in "bcd":
            group.start_soon(by_registry, registry, path, text)
            await virtual.settle()
        disk.before_sync = lambda number: number > 1 or fails(number)
        with pytest.raises(TranscriptError):
            await lease.append({"text": "a"})
    assert await texts_in(registry, path) == list("abcd")
    assert registry.statistics().sessions == 0


async def test_when_the_directory_cannot_be_synced_the_append_is_refused(registry, path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(seam, "fsync", fails)
        with pytest.raises(TranscriptError, match="cannot sync"):
            await registry.append(path, {"text": "a"})
    await registry.append(path, {"text": "b"})
    assert await texts_in(registry, path) == ["a", "b"]


# Cancelled, and hung


async def test_when_the_one_who_syncs_for_others_is_cancelled_they_sync_themselves(registry, path, disk):
    go, done = threading.Event(), []
    disk.before_sync = lambda number: number > 1 or go.wait(120)

    async def append(text):
        await registry.append(path, {"text": text})
        disk.note("returned", text)
        done.append(text)

    before = leaks.descriptors()
    async with create_task_group() as group:
        with CancelScope() as leader:
            async with create_task_group() as inner:
                inner.start_soon(append, "leader")
                await eventually(lambda: disk.syncs == 1)
                for text in "abc":
                    group.start_soon(append, text)
                await eventually(lambda: len(disk.texts()) == 4)
                leader.cancel()
        with fail_after(60):
            await eventually(lambda: sorted(done) == list("abc"))
        assert disk.syncs == 2
        assert all(disk.covered(text) for text in "abc")
        go.set()
    assert "leader" not in done
    await eventually(lambda: leaks.descriptors() == before)
    first, *others = await texts_in(registry, path)
    assert first == "leader"  # cancelled while it waited for the disk: its record is there
    assert sorted(others) == list("abc")
    assert registry.statistics().sessions == 0


@pytest.mark.failure("H1")
async def test_when_a_sync_that_nobody_waits_for_any_more_fails_the_others_are_told(registry, path, disk):
    go = threading.Event()

    def before(number):
        go.wait(120)
        if number == 1:
            fails(number)
        eventually_sync(failed.is_set)

    failed, told = threading.Event(), []
    disk.before_sync = before

    async def append(text):
        with pytest.raises(TranscriptError):
            await registry.append(path, {"text": text})
        told.append(text)

    async with create_task_group() as group:
        with CancelScope() as leader:
            async with create_task_group() as inner:
                inner.start_soon(by_registry, registry, path, "leader")
                await eventually(lambda: disk.syncs == 1)
                group.start_soon(append, "a")
                await eventually(lambda: len(disk.texts()) == 2)
                leader.cancel()
        await eventually(lambda: disk.syncs == 2)
        entry = registry.arbiter.files.find(path)
        go.set()
        await eventually(lambda: entry.poisoned)
        failed.set()
    assert told == ["a"]
    await registry.append(path, {"text": "b"})


@pytest.mark.failure("A6", "F7")
@pytest.mark.parametrize("append", [by_registry, by_lease, by_turn], ids=lambda way: way.__name__)
async def test_a_disk_that_hangs_keeps_nobody_past_a_cancellation(registry, path, disk, virtual, append):
    go, started, before = threading.Event(), virtual.now(), leaks.descriptors()

    def hangs(number):
        if number == 1:
            from_thread.run_sync(setattr, virtual, "threads_hold", False)
            go.wait(120)

    disk.before_sync = hangs
    with CancelScope(deadline=anyio.current_time() + 3.0) as scope:
        await append(registry, path, "a")
    assert scope.cancelled_caught
    assert virtual.now() == started + 3.0
    assert registry.statistics().sessions == 0
    virtual.threads_hold = True
    await append(registry, path, "b")
    go.set()
    with virtual.held():
        await to_thread.run_sync(eventually_sync, lambda: leaks.descriptors() == before)
    assert await texts_in(registry, path) == ["a", "b"]


@pytest.mark.failure("H1")
async def test_a_turn_does_not_wait_for_itself_to_replace_a_file_whose_sync_failed(registry, path, disk):
    async with registry.turn(path) as turn:
        disk.before_sync = fails
        with pytest.raises(TranscriptError):
            await turn.append({"text": "a"})
        disk.before_sync = lambda number: None
        await turn.read()
        with fail_after(60), pytest.raises(TranscriptError, match="Input/output error"):
            await turn.replace([])
    assert await texts_in(registry, path) == ["a"]
