"""One session file as this process knows it while one of its rights is held or waited for."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from typing import Any, TypeAlias

from .. import _os, network
from .._mutex import Mutex
from .._os import FileId
from ..engines import inside
from ..engines.choose import check_lock, seen_whole
from ..engines.interface import LeaseEngine, Right
from ..errors import LeaseLost, TranscriptError
from .claim import Claim
from .guard import Beside, NewBeside
from .queue import RightQueue

_FLAGS = os.O_RDWR | os.O_APPEND | _os.O_BINARY | _os.O_CLOEXEC | _os.O_NOCTTY | _os.O_NONBLOCK


class FileClaim(Claim):
    """A claim on a right of a session file."""

    entry: Entry | None = None
    """The file; set when it is asked for."""
    queue: FileQueue | None = None
    """The queue of the right; set with the file."""
    noted = False
    """Whether its name may stand in the note of the right."""
    on_run_end: Callable[[FileClaim, type[LeaseLost]], object] | None = None
    """Called by `end_with_run`; set while a run holds the right."""

    def end_with_run(self, kind: type[LeaseLost]) -> None:
        """Take the right away: its run has ended."""
        if self.on_run_end is not None:
            self.on_run_end(self, kind)


FileQueue: TypeAlias = RightQueue[FileClaim]


class Entry:
    """A file's descriptor and its two queues."""

    def __init__(
        self,
        path: str,
        fd: int | None,
        file_id: FileId,
        engine: LeaseEngine | None,
        grace: float,
        new_beside: NewBeside | None,
    ) -> None:
        self.path = path
        self.aliases: tuple[str, ...] = ()
        """Other names by which it was asked for."""
        self.fd = fd
        self.file_id = file_id
        self.queues: dict[Right, FileQueue] = {}
        """The rights that were asked for since the file was opened."""
        self.closed = False
        self.fresh = True
        """Nothing was awaited since the file was looked up."""
        self.pins = 0
        """What needs the descriptor without holding a right: appends that wait for the disk."""
        self.notes: tuple[tuple[str, dict[str, Any]], ...] = ()
        """Events to log once the mutex is free: a host's log handler may do anything."""
        self.sealed_size = 0
        """The size at which the file was last seen to end with a newline."""
        self.poisoned = ""
        """Why the descriptor is not trusted any more: a sync of it has failed."""
        self._engine = engine
        self._grace = grace
        self._new_beside = new_beside

    def reuse(self) -> None:
        """Begin again: the file was looked up once more after this was dropped, and is among the open files again."""
        self.closed, self.fresh, self.sealed_size = False, True, 0
        if inside.several and self._engine is None:  # asked afterwards: see `share`
            self.share()

    def queue(self, right: Right) -> FileQueue:
        """The queue of a right."""
        queue = self.queues.get(right)
        if queue is None:
            lock, beside = None, Beside()
            if self._engine is not None:
                assert self.fd is not None
                lock = self._engine.lock(self.path, self.fd, self.file_id, right)
                if type(lock) not in seen_whole:
                    check_lock(self._engine, lock)
                if self._new_beside is not None:
                    beside = self._new_beside(right, self.path)
            queue = self.queues[right] = RightQueue(right, lock, self._grace, beside)
            if inside.several and self._engine is None:  # asked afterwards: see `share`
                self._share(queue)
        return queue

    def share(self) -> None:
        """Another registry of this process may want the file from now on, without an engine between them.

        Callable from any thread. Either this finds a queue that is being made, or its maker finds `several` set.
        """
        for queue in list(self.queues.values()):
            self._share(queue)

    def _share(self, queue: FileQueue) -> None:
        with queue.mutex:
            queue.share(inside.InsideLock(self.file_id, queue.right))

    def is_at(self, path: str) -> bool:
        """Whether `path` still names this file; it does not once another was renamed into its place.

        A file whose descriptor is not trusted any more is as good as replaced: waiters start over with another.

        Raises:
            TranscriptError: the operating system does not say.
        """
        if self.poisoned:
            return False
        try:
            found = _os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise cannot("look at", path, error) from error
        return (found.st_dev, found.st_ino) == self.file_id

    def note(self, event: str, **fields: Any) -> None:
        """Have an event logged when the mutex is free again."""
        self.notes += ((event, fields),)

    def descriptor(self) -> int:
        """The open descriptor. Called with the mutex held."""
        if self.fd is None:
            self.fd, file_id = open_file(self.path)
            if file_id != self.file_id:
                let_go(self.fd)
                self.fd = None
                raise TranscriptError(f"{self.path} was replaced while it was held", path=self.path)
        return self.fd

    def close(self) -> None:
        """Unlock, then close, when idle. Never raises: the kernel lets go of a descriptor in any case.

        Called again after an exception came in the middle, it finishes.
        """
        again, self.closed = self.closed, True
        for queue in self.queues.values():
            with queue.mutex:
                queue.close()
        fd = self.fd
        if fd is not None and (not again or self._is_ours(fd)):
            try:
                _os.close(fd)
            except OSError as error:
                self.note("close_failed", path=self.path, error=str(error))
        self.fd = None

    def _is_ours(self, fd: int) -> bool:
        """Whether a descriptor still is this file's: closed, its number may be another file's by now."""
        try:
            found = _os.fstat(fd)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self.file_id

    def renew(self) -> None:
        """Replace a descriptor whose sync failed, where no lock hangs on it, once no write is under way."""
        queue = self.queue(Right.WRITE)
        if queue.holder is None:
            with queue.mutex:
                fd, self.fd, self.poisoned = self.fd, None, ""
            if fd is not None:
                let_go(fd)

    def abandon(self) -> None:
        """Close without unlocking, in a forked child; the mutex may be held by a thread that does not exist here."""
        self.closed = True
        for queue in self.queues.values():
            queue.mutex = Mutex()
            queue.abandon()
        fd, self.fd = self.fd, None
        if fd is not None:
            _os.close(fd)


def open_file(path: str, *, allow_network_fs: bool = True) -> tuple[int, FileId]:
    """Open a transcript for appending, creating it if need be.

    Raises:
        TranscriptError: it cannot be opened, is no regular file, or is on a network file system that is not allowed.
    """
    try:
        try:
            fd = _os.open(path, _FLAGS)
        except FileNotFoundError:
            network.refuse(path, allow_network_fs)  # before anything is created there
            fd = _os.open(path, _FLAGS | os.O_CREAT, 0o600)
    except OSError as error:
        raise cannot("open", path, error) from error
    try:
        found = _os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise TranscriptError(f"{path} is no regular file: a session needs one of its own", path=path)
        if not allow_network_fs:
            network.refuse(path, device=found.st_dev)
    except OSError as error:
        let_go(fd)
        raise cannot("open", path, error) from error
    except BaseException:
        let_go(fd)
        raise
    return fd, (found.st_dev, found.st_ino)


def identify(path: str) -> FileId:
    """The identity of a transcript that is only locked inside this process, creating it if need be."""
    try:
        found = _os.stat(path)
    except FileNotFoundError:
        fd, file_id = open_file(path)
        let_go(fd)
        return file_id
    except OSError as error:
        raise cannot("open", path, error) from error
    if not stat.S_ISREG(found.st_mode):
        raise TranscriptError(f"{path} is no regular file: a session needs one of its own", path=path)
    return found.st_dev, found.st_ino


def let_go(fd: int) -> None:
    """Close a descriptor that nothing was written through. Never raises: the kernel lets go of it in any case."""
    with contextlib.suppress(OSError):
        _os.close(fd)


def cannot(what: str, path: str, error: OSError, advice: str = "") -> TranscriptError:
    """The typed error for a failed call of the operating system, with the path, its own words, and ours if need be."""
    why = f"{error.strerror or error}; {advice}" if advice else error.strerror or error
    return TranscriptError(f"cannot {what} {path}: {why}", path=path, errno=error.errno)
