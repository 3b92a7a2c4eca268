"""Reaching the disk: one `fdatasync` for all appends that wait for one.

An append that comes while a sync is under way shares the next, so a busy session pays the disk once per round, not once
per record. A sync runs in a thread, on a descriptor of its own, so nothing has to stay open for it and no lock is held.

After a failed sync it is unknown what the disk has: the kernel marks the pages clean, and a second try would succeed
without having written them. So the file's descriptor is not used again: what waits or comes later opens another one.
Source: fsync(2), "EIO"; Rebello and others, "Can Applications Recover from fsync Failures?" (2020).
"""

from __future__ import annotations

import contextlib
import os
from functools import partial

import anyio

from .. import _os
from .._os import FileId
from .._threads import in_thread
from ..engines.interface import Right
from ..errors import TranscriptError
from ..rights.open_file import Entry, cannot, let_go

_REMEMBERED = 4096


class GroupSync:
    """The syncs of one registry. For its event loop's tasks, but where a method says so.

    Invariant: an entry has rounds exactly while appends of it wait for a sync.
    """

    def __init__(self) -> None:
        self._rounds: dict[Entry, _Rounds] = {}  # not by file: that changes when it is replaced
        self._linked: dict[FileId, None] = {}
        """Files whose directory entry was synced since they were first seen here, or got their first line."""

    def __len__(self) -> int:
        return len(self._rounds)

    def forget(self, file_id: FileId) -> None:
        """A file has just come into being, perhaps with the number of one that is gone. Callable from any thread."""
        self._linked.pop(file_id, None)

    async def sync(self, entry: Entry, path: str) -> None:
        """Return once everything that was written to a file so far is on its disk. A checkpoint.

        Cancelled, the sync may or may not have happened; other waiters are not affected.

        Raises:
            TranscriptError: the disk refused; what was appended last may be lost in a power cut.
        """
        rounds = self._rounds.setdefault(entry, _Rounds())
        rounds.waiting += 1
        rounds.asked = mine = rounds.asked + 1
        try:
            while rounds.done < mine:
                if entry.poisoned:
                    raise not_synced(path, entry.poisoned)
                if rounds.running:
                    await rounds.changed.wait()
                else:
                    await self._run(rounds, entry, path)
        finally:
            rounds.waiting -= 1
            if not rounds.waiting:
                del self._rounds[entry]

    def sync_now(self, entry: Entry, path: str) -> None:
        """As `sync`, alone and on the calling worker thread."""
        with entry.queue(Right.WRITE).mutex:  # the loop's thread may give the entry another descriptor
            fd = _duplicate(entry, path)
        _flush([fd], entry, path, link=True)
        if entry.poisoned:
            raise not_synced(path, entry.poisoned)

    async def _run(self, rounds: _Rounds, entry: Entry, path: str) -> None:
        upto, file_id = rounds.asked, entry.file_id
        link = file_id not in self._linked
        owned = [_duplicate(entry, path)]
        rounds.running = True
        rounds.changed = anyio.Event()
        try:
            await in_thread(partial(_flush, owned, entry, path, link=link))
            if not entry.poisoned:
                rounds.done = upto
                while len(self._linked) >= _REMEMBERED:
                    self.forget(next(iter(self._linked)))
                if link:
                    self._linked[file_id] = None
        finally:
            rounds.running = False
            rounds.changed.set()
            with contextlib.suppress(IndexError):  # the thread has it
                let_go(owned.pop())  # cancelled before a thread could begin


def _flush(owned: list[int], entry: Entry, path: str, *, link: bool) -> None:
    """On a worker thread. Reports a failure through the entry, since the task that asked may have gone."""
    try:
        fd = owned.pop()
    except IndexError:
        return  # the task that asked was cancelled first, and has closed it
    try:
        _os.fdatasync(fd)
        if link:
            sync_directory(path)
    except OSError as error:
        entry.poisoned = error.strerror or str(error)
    finally:
        let_go(fd)


class _Rounds:
    """One file's: how many appends have asked, and how many of them are on the disk."""

    def __init__(self) -> None:
        self.asked = self.done = self.waiting = 0
        self.running = False
        self.changed = anyio.Event()


def sync_directory(path: str) -> None:
    """Make a file's name as durable as its content. Blocks: for worker threads."""
    if not hasattr(os, "O_DIRECTORY"):
        return  # Windows opens no directories, and its journal keeps names
    fd = _os.open(os.path.dirname(_os.realpath(path)), os.O_RDONLY | os.O_DIRECTORY | _os.O_CLOEXEC)
    try:
        _os.fsync(fd)
    finally:
        _os.close(fd)


def not_synced(path: str, why: str) -> TranscriptError:
    """The error for every append that relied on a sync that failed."""
    return TranscriptError(
        f"cannot sync {path}: {why}; what was appended last may be lost in a power cut, and the descriptor is not used "
        "again: read the file, and append once more what is missing",
        path=path,
    )


def _duplicate(entry: Entry, path: str) -> int:
    if entry.fd is None:
        raise TranscriptError(f"cannot sync {path}: it was closed meanwhile", path=path)
    try:
        return _os.dup(entry.fd)
    except OSError as error:
        raise cannot("sync", path, error) from error
