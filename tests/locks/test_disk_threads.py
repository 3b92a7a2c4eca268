"""A disk that hangs: who is cancelled leaves at once, the thread lets go of what it has, and other disks are served."""

from __future__ import annotations

import contextlib
import os
import threading

import pytest
from anyio import create_task_group, fail_after
from anyio.lowlevel import checkpoint

from locks import LockRegistry, _os
from tests import leaks
from tests.poll import eventually

LINE = b'{"n":%6d,"text":"' + b"x" * 300 + b'"}\n'
MANY = 2_000  # more than is read on the event loop


class SlowDisk:
    """A directory on which reads, syncs and the directory's own sync hang until `go` is set."""

    def __init__(self, directory):
        self.directory = directory
        self.go = threading.Event()
        self.hung = 0
        self.hangs_from = 1
        """The number of the first call that hangs."""
        self._mutex = threading.Lock()
        self._calls = 0

    @contextlib.contextmanager
    def installed(self, *names):
        """Have these calls hang. They end with the block, whatever happens in it."""
        with pytest.MonkeyPatch.context() as patch:
            for name in names:
                patch.setattr(_os, name, self._slow(getattr(_os, name)))
            try:
                yield
            finally:
                self.go.set()

    def _slow(self, real):
        def call(fd, *args):
            if self._has(fd):
                with self._mutex:
                    self._calls += 1
                    hangs = self._calls >= self.hangs_from
                    self.hung += hangs
                if hangs:
                    assert self.go.wait(120), "somebody waits for a disk that hangs"
            return real(fd, *args)

        return call

    def _has(self, fd):
        with os.scandir(self.directory) as found:
            return os.fstat(fd).st_ino in {one.inode() for one in found} | {self.directory.stat().st_ino}


@pytest.fixture
def slow(tmp_path):
    directory = tmp_path / "slow"
    directory.mkdir()
    return SlowDisk(directory)


@pytest.fixture
def registry():
    return LockRegistry(durability="sync", sidecar=False)


def large(path, count=MANY):
    path.write_bytes(b"".join(LINE % number for number in range(count)))
    return path


async def read(registry, path):
    await registry.read(path)


async def stream(registry, path):
    async with contextlib.aclosing(registry.stream(path)) as batches:
        async for _ in batches:
            pass


async def append(registry, path):
    await registry.append(path, {"n": 1})


async def replace(registry, path):
    async with registry.lease(path) as lease:
        seen = await registry.read(path, last=0)
        await lease.replace([{"n": 1}], through=seen.position)


WAYS = [(read, "pread"), (stream, "pread"), (append, "fdatasync"), (append, "fsync"), (replace, "fdatasync")]
every_way = pytest.mark.parametrize("operation, hangs", WAYS, ids=[f"{way.__name__}-{name}" for way, name in WAYS])


async def hang_and_cancel(slow, operation, *args):
    """Begin an operation, and cancel it as soon as it hangs."""
    hung = slow.hung
    async with create_task_group() as group:
        group.start_soon(operation, *args)
        await eventually(lambda: slow.hung > hung)
        group.cancel_scope.cancel()


@pytest.mark.failure("A6", "F7")
@every_way
async def test_however_many_operations_were_cancelled_on_a_disk_that_hangs_another_disk_is_served(
    registry, slow, tmp_path, operation, hangs
):
    healthy, before = large(tmp_path / "healthy.jsonl"), leaks.descriptors()
    paths = [large(slow.directory / f"{n}.jsonl") for n in range(12)]
    with slow.installed(hangs):
        for path in paths:
            await hang_and_cancel(slow, operation, registry, path)
        with fail_after(60):
            assert len(await registry.read(healthy)) == MANY
            await append(registry, healthy)
            await stream(registry, healthy)
            await replace(registry, healthy)
        assert slow.hung == len(paths) and not slow.go.is_set()
    await eventually(lambda: leaks.descriptors() == before)
    assert registry.statistics().sessions == 0


async def test_no_more_than_eight_operations_wait_for_their_threads_and_the_next_one_goes_on_when_one_is_cancelled(
    registry, slow
):
    path = large(slow.directory / "session.jsonl")
    with slow.installed("pread"):
        async with create_task_group() as group:
            async with create_task_group() as first:
                first.start_soon(read, registry, path)
                await eventually(lambda: slow.hung == 1)
                for _ in range(9):
                    group.start_soon(read, registry, path)
                await eventually(lambda: slow.hung == 8)
                for _ in range(20):
                    await checkpoint()
                assert slow.hung == 8
                first.cancel_scope.cancel()
            await eventually(lambda: slow.hung == 9)
            slow.go.set()
        assert slow.hung >= 10  # all have read


@pytest.mark.failure("A6")
@pytest.mark.parametrize("hangs_from", range(1, 8))
async def test_a_stream_that_is_cancelled_in_any_read_that_hangs_ends_at_once_and_its_thread_closes_the_file(
    registry, slow, hangs_from
):
    path, before = large(slow.directory / "session.jsonl"), leaks.descriptors()
    slow.hangs_from = hangs_from
    with slow.installed("pread"):
        await hang_and_cancel(slow, stream, registry, path)
        assert not slow.go.is_set()
        assert len(leaks.descriptors() - before) >= 1  # in use
    await eventually(lambda: leaks.descriptors() == before)


@pytest.mark.failure("A6")
async def test_a_stream_that_is_cancelled_before_a_thread_could_begin_leaves_nothing_open(registry, slow):
    path, before = large(slow.directory / "session.jsonl"), leaks.descriptors()
    with slow.installed("pread"):
        async with create_task_group() as group:
            for _ in range(8):
                group.start_soon(read, registry, path)
            await eventually(lambda: slow.hung == 8)
            async with create_task_group() as inner:
                inner.start_soon(stream, registry, path)
                for _ in range(20):
                    await checkpoint()
                inner.cancel_scope.cancel()
            group.cancel_scope.cancel()
        assert slow.hung == 8
    await eventually(lambda: leaks.descriptors() == before)


async def test_a_stream_that_is_left_early_has_closed_its_file(registry, tmp_path):
    path, before = large(tmp_path / "session.jsonl", 4 * MANY), leaks.descriptors()  # more than is read ahead
    async with contextlib.aclosing(registry.stream(path)) as batches:
        assert await anext(batches)
        assert len(leaks.descriptors() - before) >= 1
    assert leaks.descriptors() == before
