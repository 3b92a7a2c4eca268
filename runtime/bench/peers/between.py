"""Peers between processes: locks on files. The key is the path of the file that is protected."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from .interface import BlockingLocks, Locks, Peer
from .ours import registry


class Blocking:
    """A library whose lock object is made with the path, for one block."""

    def __init__(self, new: Callable[[str], AbstractContextManager[Any]]) -> None:
        self.hold = new


class Async:
    """As `Blocking`, on an event loop."""

    def __init__(self, new: Callable[[str], AbstractAsyncContextManager[Any]]) -> None:
        self.hold = new


def _flock() -> BlockingLocks:
    import fcntl

    @contextmanager
    def hold(path: str) -> Iterator[None]:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    return Blocking(hold)


def _filelock() -> BlockingLocks:
    from filelock import FileLock

    return Blocking(lambda path: FileLock(path + ".lock"))


def _soft_filelock() -> BlockingLocks:
    from filelock import SoftFileLock

    return Blocking(lambda path: SoftFileLock(path + ".lock"))


def _async_filelock() -> Locks:
    from filelock import AsyncFileLock

    return Async(lambda path: AsyncFileLock(path + ".lock"))


def _portalocker() -> BlockingLocks:
    import portalocker

    return Blocking(lambda path: portalocker.Lock(path, "a"))


def _portalocker_blocking() -> BlockingLocks:
    import portalocker

    return Blocking(lambda path: portalocker.Lock(path, "a", flags=portalocker.LockFlags.EXCLUSIVE))


def _fasteners() -> BlockingLocks:
    import fasteners

    return Blocking(lambda path: fasteners.InterProcessLock(path + ".lock"))


def _legacy() -> Locks:
    from ..legacy.lock_file import LegacyLock, Times

    lock = LegacyLock(Times())

    @asynccontextmanager
    async def hold(path: str) -> AsyncIterator[None]:
        held = await lock.acquire(Path(path))
        yield
        lock.release(held)  # an exception in the block leaves the lock held, as it did there

    return Async(hold)


def _lanes() -> Locks:
    return Async(registry().lease)


def _lanes_limited(hold_s: float, grace_s: float) -> Locks:
    return Async(registry(max_hold=hold_s, grace=grace_s).lease)


def _lanes_alone() -> Locks:
    return Async(registry(sidecar=False).lease)


def _lanes_alone_limited(hold_s: float, grace_s: float) -> Locks:
    return Async(registry(sidecar=False, max_hold=hold_s, grace=grace_s).lease)


BETWEEN = (
    Peer(
        name="flock",
        kind="between",
        make=_flock,
        backends=("blocking",),
        about="the kernel's lock, waited for in the kernel: the floor; no time limit, no event loop",
    ),
    Peer(
        name="filelock.FileLock",
        kind="between",
        make=_filelock,
        backends=("blocking",),
        about="flock, tried every 50 ms",
    ),
    Peer(
        name="filelock.SoftFileLock",
        kind="between",
        make=_soft_filelock,
        backends=("blocking",),
        about="a file that exists, tried every 50 ms; works on any file system",
    ),
    Peer(
        name="filelock.AsyncFileLock",
        kind="between",
        make=_async_filelock,
        backends=("asyncio",),
        about="flock, tried every 50 ms in a thread",
    ),
    Peer(
        name="portalocker",
        kind="between",
        make=_portalocker,
        backends=("blocking",),
        about="flock, tried every 250 ms, given up after 5 s",
        needs="portalocker",
    ),
    Peer(
        name="portalocker-blocking",
        kind="between",
        make=_portalocker_blocking,
        backends=("blocking",),
        about="flock, waited for in the kernel",
        needs="portalocker",
    ),
    Peer(
        name="fasteners",
        kind="between",
        make=_fasteners,
        backends=("blocking",),
        about="a POSIX record lock, tried every 10 to 100 ms; does not exclude threads of one process",
        needs="fasteners",
    ),
    Peer(
        name="legacy",
        kind="between",
        make=_legacy,
        backends=("asyncio", "trio"),
        about="a file that exists, tried every 50 ms, given up after 60 s, held for 17 minutes at most; no fence",
    ),
    Peer(
        name="lanes",
        kind="between",
        make=_lanes,
        limited=_lanes_limited,
        appends=True,
        backends=("asyncio", "trio"),
        about="LockRegistry() as shipped: fair order, deadline, fence, and a lock file for other gateways",
    ),
    Peer(
        name="lanes-no-lock-file",
        kind="between",
        make=_lanes_alone,
        limited=_lanes_alone_limited,
        appends=True,
        backends=("asyncio", "trio"),
        about="LockRegistry(sidecar=False): the same without lock files for other gateways",
    ),
)
