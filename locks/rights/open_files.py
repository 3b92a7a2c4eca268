"""The session files that a registry has open: found by name, told apart by device and inode.

Only files that are held or waited for have an entry, so an idle session costs nothing. Names lead to entries, several
to one if need be: symlinks, relative paths and hard links cannot split a session.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Set
from contextlib import suppress

from .. import _os
from .._os import FileId
from ..engines import inside
from ..engines.interface import LeaseEngine, Right
from .guard import NewBeside
from .open_file import Entry, FileQueue, identify, let_go, open_file

_REMEMBERED = 64
_none_between: weakref.WeakSet[OpenFiles] = weakref.WeakSet()
"""The files of registries that no engine keeps apart."""


class OpenFiles:
    """The entries of one registry.

    Invariants: an entry is in `_by_file` from being made until it is dropped, which closes it; every name in `_by_path`
    leads to an entry that is in `_by_file`, or that was replaced and is still held; `_spare` is in neither.
    """

    def __init__(
        self, *, engine: LeaseEngine | None, grace: float, new_beside: NewBeside | None, allow_network_fs: bool
    ) -> None:
        self._engine = engine
        self._grace = grace
        self._new_beside = new_beside
        self._allow_network_fs = allow_network_fs
        self._by_path: dict[str, Entry] = {}
        self._by_file: dict[FileId, Entry] = {}
        self._spare: Entry | None = None
        """The last one that was dropped and had no descriptor.

        What was locked once is mostly locked again, and an entry is a tenth of what a lease costs inside the process.
        """
        if engine is None:
            _none_between.add(self)
            if len(_none_between) > 1:
                inside.several = True
                for files in list(_none_between):
                    for entry in list(files):
                        entry.share()
        self._passed_over: dict[tuple[FileId, Right], Set[int]] = {}

    def __del__(self) -> None:
        # A registry that is collected with something held, since its loop was closed on it: its descriptors would keep
        # the rights until the process ends.
        with suppress(Exception):
            self.abandon()

    def __len__(self) -> int:
        return len(self._by_file)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._by_file.values())

    def get_or_open(self, path: str) -> Entry:
        """The entry of a file; opened, and created when missing.

        Raises:
            TranscriptError: it cannot be opened, or is no regular file.
        """
        entry = self._by_path.get(path)
        if entry is not None and not entry.poisoned:
            return entry
        fd: int | None = None
        if self._engine is not None:
            fd, file_id = open_file(path, allow_network_fs=self._allow_network_fs)
        else:
            file_id = identify(path)
        entry = self._by_file.get(file_id)
        if entry is not None and entry.poisoned and self._engine is None:
            entry.renew()  # nothing but this very entry keeps two holders apart
        elif entry is None or entry.poisoned:
            entry = None
        spare = self._spare
        if entry is None and spare is not None and spare.path == path and spare.file_id == file_id:
            self._spare = None
            self._by_file[file_id] = entry = spare
            entry.reuse()
        elif entry is None:
            entry = Entry(path, fd, file_id, self._engine, self._grace, self._new_beside)
            self._by_file[file_id] = entry
            if self._passed_over:
                self._recall(entry)
        else:
            if fd is not None:
                let_go(fd)  # an alias of a file that is open already; its locks belong to the other descriptor
            entry.aliases += (path,)
        self._by_path[path] = entry
        return entry

    def known(self, path: str) -> Entry | None:
        """The entry of a file by a name by which it was asked for, if it has one; without a look at the disk."""
        return self._by_path.get(path)

    def find(self, path: str) -> Entry | None:
        """The entry of a file, by any of its names, if it has one."""
        entry = self._by_path.get(path)
        if entry is not None:
            return entry
        try:
            found = _os.stat(path)
        except OSError:
            return None
        return self._by_file.get((found.st_dev, found.st_ino))

    def moved(self, entry: Entry, fd: int, file_id: FileId) -> None:
        """Note that an entry goes on with the file that was renamed into its place."""
        if self._by_file.get(entry.file_id) is entry:
            del self._by_file[entry.file_id]
        entry.fd, entry.file_id = fd, file_id
        self._by_file[file_id] = entry

    def forget(self, entry: Entry | None) -> None:
        """Let the names of a file that was replaced lead to the new one."""
        if entry is None:
            return
        for path in (entry.path, *entry.aliases):
            if self._by_path.get(path) is entry:
                del self._by_path[path]

    def drop_if_idle(self, entry: Entry) -> None:
        """Close a file of which no right is held or waited for."""
        if entry.pins:
            return
        for queue in entry.queues.values():
            if queue.holder is not None or queue.waiting:
                return
        had_descriptor = entry.fd is not None
        if had_descriptor:
            for queue in entry.queues.values():
                if queue.passed_over:
                    self._remember(entry.file_id, queue)
            entry.close()
        entry.closed = True
        if entry.aliases:
            self.forget(entry)
        elif self._by_path.get(entry.path) is entry:
            del self._by_path[entry.path]
        if self._by_file.get(entry.file_id) is entry:  # last: until then it is found again, and this is finished
            del self._by_file[entry.file_id]
            if self._engine is None and not (had_descriptor or entry.aliases or entry.poisoned):
                self._spare = entry

    def abandon(self) -> None:
        """Close everything without unlocking it; for a forked child, whose locks are its parent's."""
        for entry in self._by_file.values():
            entry.abandon()
        self._by_file.clear()
        self._by_path.clear()
        self._spare = None

    def _remember(self, file_id: FileId, queue: FileQueue) -> None:
        """Keep which tickets do not move, so that a new claim does not wait for a stopped process again."""
        while len(self._passed_over) >= _REMEMBERED:
            del self._passed_over[next(iter(self._passed_over))]
        self._passed_over[file_id, queue.right] = queue.passed_over

    def _recall(self, entry: Entry) -> None:
        for right in Right:
            if (tickets := self._passed_over.pop((entry.file_id, right), None)) is not None:
                entry.queue(right).passed_over = tickets
