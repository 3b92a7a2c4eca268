"""One owner per sessions directory: a second gateway on it ends before it has touched a session.

The idea. Turns keep two processes apart session by session, so they may share a directory. A gateway that also keeps
things in memory, queued work or a connection to a chat service, must be the only one. It holds a kernel lock on the
file `.lanes.owner` in the directory for as long as it lives. The kernel takes the lock back when the process dies,
whatever it dies of, so the next one starts at once, and no process has to decide whether an owner is dead.

What stands in the file, one JSON line, is for people: the owner, and since when it owns. Safety rests on the lock
alone, so the line may be garbage, old or missing; then the owner is unknown, and still excludes all others.

The file is never removed: between seeing that it is free and unlinking it, another process may have taken it, and a
third would then own a new file of that name. Removing it by hand while it is owned does just that.

Where there are no Linux open-file-description locks, `filelock` locks `.lanes.owner.turn.flock` beside it; see
`locks.engines`. Network file systems are not looked for here: the registry refuses their sessions.

A forked child has a copy of the descriptor, and such a lock lasts as long as any copy is open: the child would own the
directory after the death of its parent. So it closes them, and no fork may fall between opening a descriptor and noting
it. `exec` closes them by itself.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from datetime import UTC, datetime, timedelta
from typing import Annotated, Self

import anyio
import msgspec
from anyio.lowlevel import checkpoint

from lanes.errors import LaneError
from locks import InvalidSession, _clock, _os, process
from locks._events import log
from locks.engines.choose import engine_for
from locks.engines.interface import ProcessLock, Right
from locks.file_kinds import kind_of
from locks.rights.open_file import let_go

NAME = ".lanes.owner"
POLL_S = 0.05
"""Between two attempts of a process that waits; it keeps nothing open in between."""

_MOST_BYTES = 1 << 16
_ROUNDS = 10  # of opening a file and finding that another has its name
# None of them follows a symlink, waits for the other end of a FIFO, or lets a terminal take charge of this process.
_LOOK = os.O_RDONLY | _os.O_NOFOLLOW | _os.O_NONBLOCK | _os.O_NOCTTY | _os.O_CLOEXEC | _os.O_BINARY
_TAKE = os.O_RDWR | os.O_CREAT | (_LOOK & ~os.O_RDONLY)

_held: set[Ownership] = set()
"""Every ownership of this process whose descriptor is open. Changed with `_forking` held, which a fork waits for."""
_forking = threading.RLock()


class Owner(msgspec.Struct, frozen=True, kw_only=True):
    """The owner of a sessions directory, as that process wrote it down."""

    pid: Annotated[int, msgspec.Meta(ge=1, lt=1 << 31)]
    starttime: int | None = None
    """When that process was started, in clock ticks since the boot; `None` where there is no `/proc`."""
    boot_id: str | None = None
    host: Annotated[str, msgspec.Meta(max_length=255)]
    since: Annotated[datetime, msgspec.Meta(tz=True)]
    sessions: str
    """The directory, as that process calls it."""

    def __str__(self) -> str:
        where = "" if self.host == process.me().host else f" on host {self.host!r}"
        here = ", this one," if not where and self.pid == os.getpid() else ""
        age = timedelta(seconds=max(0, round(process.wall() - self.since.timestamp())))
        return f"process {self.pid}{where}{here} since {self.since.isoformat(' ', 'seconds')}, for {age}"


class SessionsOwned(LaneError, RuntimeError):
    """Another supervisor owns the sessions directory. Nothing was taken or changed; asking again later can help."""

    retryable = True
    root: str
    pid: int | None
    """The owner's process; `None`, like `host` and `since`, when the file does not say."""
    host: str | None
    since: float | None
    """When it became the owner, in seconds of its wall clock."""
    waited_s: float


class Ownership:
    """The right to be the only exclusive supervisor of a sessions directory, until `release` or the process's end.

    Two ownerships of one process exclude each other too. May be taken and released on any thread.

    Invariant: `_fd` is open and its file locked by `_lock` while `self` is in `_held`; else it is `None`.
    """

    def __init__(self, root: str, fd: int, lock: ProcessLock) -> None:
        self.root = root
        self._fd: int | None = fd
        self._lock = lock

    def __repr__(self) -> str:
        return f"<Ownership of {self.root}, {'held' if self.held else 'released'}>"

    @classmethod
    def take(cls, root: str) -> Self:
        """Take the directory now. Blocks for no longer than it takes to open a file.

        Raises:
            SessionsOwned: another supervisor has it; the error names its process.
            InvalidSession: the file of the owner cannot be used; the message says why. Nothing was followed or written.
        """
        ownership = cls._attempt(root)
        if ownership is None:
            raise _owned(root, 0.0)
        return ownership

    @property
    def held(self) -> bool:
        """Whether it is neither released nor left behind by a fork."""
        return self._fd is not None

    def release(self) -> None:
        """Let the next owner take it. Never raises; calling it again, or in a forked child, does nothing."""
        with _forking:
            fd, self._fd = self._fd, None
            if fd is None:
                return
            _held.discard(self)
            with contextlib.suppress(OSError):  # then the line is out of date, which harms nothing
                _os.ftruncate(fd, 0)
            failure = None
            try:
                self._lock.unlock()
            except OSError as error:
                failure = str(error)
            let_go(fd)
        if failure is not None:
            log("unlock_failed", level="warning", path=os.path.join(self.root, NAME), right="owner", error=failure)

    def _abandon(self) -> None:
        """In a forked child: close without unlocking, for the lock is the parent's."""
        fd, self._fd = self._fd, None
        if fd is not None:
            let_go(fd)

    @classmethod
    def _attempt(cls, root: str) -> Self | None:
        """Take the directory; `None` when another supervisor has it."""
        path = os.path.join(root, NAME)
        try:
            with _forking:
                if (locked := _locked(path)) is None:
                    return None
                ownership = cls(root, *locked)
                _held.add(ownership)
                _sign(locked[0], root)
        except OSError as error:
            raise _unusable(path, error.strerror or str(error)) from error
        return ownership


async def own(root: str, wait_s: float = 0.0) -> Ownership:
    """Take the directory as soon as it is free, waiting for its owner if need be.

    A checkpoint. Cancelled, nothing is left behind, and the directory is as free as it was. Waiting
    processes have no order among each other.

    Args:
        wait_s: seconds to wait at most, 0 and more; a log line names the owner when waiting begins.

    Raises:
        SessionsOwned: its owner still has it; the error names the process, and how long was waited.
        InvalidSession: the file of the owner cannot be used; the message says why. Nothing was followed or written.
    """
    await checkpoint()
    began = _clock.clock.now()
    ownership = Ownership._attempt(root)
    if ownership is None and wait_s > 0:
        owner = read_owner(root)
        log("waiting_for_owner", level="warning", sessions=root, owner=str(owner or "unknown"), wait_s=wait_s)
    while ownership is None:
        left = began + wait_s - _clock.clock.now()
        if left <= 0:
            raise _owned(root, _clock.clock.now() - began)
        await anyio.sleep(min(POLL_S, left))
        ownership = Ownership._attempt(root)  # nothing is awaited between this and the caller: it cannot get lost
    return ownership


def read_owner(root: str) -> Owner | None:
    """The owner of the directory as its file names it; `None` when that cannot be read. Never raises.

    A killed process leaves its name too: whether the directory is owned, only the lock says.
    """
    try:
        fd = _open(os.path.join(root, NAME), _LOOK)
        try:
            return msgspec.json.decode(_os.pread(fd, _MOST_BYTES, 0), type=Owner)
        finally:
            let_go(fd)
    except (OSError, InvalidSession, msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _owned(root: str, waited_s: float) -> SessionsOwned:
    owner = read_owner(root)
    told = "another process (unknown)" if owner is None else str(owner)
    return SessionsOwned(
        f"sessions: {root!r} is owned by {told}" + (f"; waited {waited_s:.1f} s" if waited_s else ""),
        root=root,
        pid=None if owner is None else owner.pid,
        host=None if owner is None else owner.host,
        since=None if owner is None else owner.since.timestamp(),
        waited_s=waited_s,
    )


def _locked(path: str) -> tuple[int, ProcessLock] | None:
    """Open and lock the owner's file; `None` when it is locked."""
    engine = engine_for("auto")
    assert engine is not None  # only "none" stands for no engine
    for _ in range(_ROUNDS):
        fd = _open(path, _TAKE)
        try:
            found = _os.fstat(fd)
            lock = engine.lock(path, fd, (found.st_dev, found.st_ino), Right.TURN)
            taken = lock.try_lock()
            if taken and _is_at(path, found):
                return fd, lock
            if taken:
                lock.unlock()  # the file was removed in between: its lock excludes no process
        except BaseException:
            let_go(fd)
            raise
        let_go(fd)
        if not taken:
            return None
    raise _unusable(path, "it is being replaced all the time")


def _open(path: str, flags: int) -> int:
    """Open the owner's file.

    Raises:
        InvalidSession: it is no regular file, or has another name elsewhere, where something else may rely on it.
    """
    with contextlib.suppress(FileNotFoundError):
        _check(path, _os.lstat(path))  # before it is opened: opening some devices does something
    fd = _os.open(path, flags, 0o600)
    try:
        _check(path, _os.fstat(fd))
    except BaseException:
        let_go(fd)
        raise
    return fd


def _check(path: str, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise _unusable(path, f"it is {kind_of(found.st_mode)}")
    if found.st_nlink > 1:
        raise _unusable(path, "it is a hard link to a file that has another name, too")


def _is_at(path: str, found: os.stat_result) -> bool:
    try:
        named = _os.lstat(path)
    except FileNotFoundError:
        return False
    return (named.st_dev, named.st_ino) == (found.st_dev, found.st_ino)


def _sign(fd: int, root: str) -> None:
    """Write down this owner. What was there goes first: on a full disk, a dead owner's name must not stay."""
    me = process.me()
    with contextlib.suppress(OSError, ValueError, OverflowError):  # the line is only for people
        _os.ftruncate(fd, 0)
        owner = Owner(
            pid=me.pid,
            starttime=me.starttime,
            boot_id=me.boot_id,
            host=me.host,
            since=datetime.fromtimestamp(process.wall(), UTC),
            sessions=os.fsencode(os.path.abspath(root)).decode(errors="replace"),
        )
        _os.write(fd, msgspec.json.encode(owner) + b"\n")


def _unusable(path: str, why: str) -> InvalidSession:
    return InvalidSession(f"sessions: {path!r} cannot be used ({why}); allowed: a regular file of this user, or none")


def _after_fork() -> None:
    for ownership in _held:
        ownership._abandon()
    _held.clear()
    _forking.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_forking.acquire, after_in_parent=_forking.release, after_in_child=_after_fork)
