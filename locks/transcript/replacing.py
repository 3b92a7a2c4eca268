"""Replacing a transcript, as compaction does: the new file is written aside, synced, and renamed into place.

A crash at any step leaves the old file or the new one, whole. Everything here is synchronous: `prepare` and
`is_complete` are called with the file's mutex and its write lease held, `write_aside` in a worker thread with neither
mutex nor haste.

The thread may hang in the disk, and go on long after its task has given it up and a later `replace` has begun. So it
never touches a name: the holder of the lease creates and removes `<file>.new`, and the thread only has descriptors.
What is found there was left by a crash.

What could not be read is not replaced. A broken line in the part that is replaced is kept, byte by byte, behind the new
records and before all that is kept anyway. A first line that is a header, or may be one to another program, or is
broken, stays the first. Blank lines go.

Rejected: moving broken lines to `<file>.torn`, since then two files change, and a program that can read them looks in
the one. To refuse, since one broken line would end all compaction of its session.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from dataclasses import dataclass, field

from .. import _os
from .._os import FileId
from ..errors import TranscriptError
from ..rights.open_file import Entry, cannot, let_go
from .access import carry_over, check_flags, withhold
from .appending import check_in_place, seal
from .header import first_line, refuse_as_first, stays_first
from .lines import NoRecord, decode
from .reading import broken_lines
from .records import Position

SUFFIX = ".new"
_BLOCK = 1 << 20
_END = 1 << 12


@dataclass(slots=True)
class Draft:
    """The new file, until it is in place or discarded."""

    path: str
    """Where it is written."""
    target: str
    """Where it goes: never a symlink, whose target is what people mean."""
    source: int
    """The old file, on a descriptor of its own."""
    keep_from: int
    """What the old file has from here on is kept."""
    keep_to: int
    """Up to where, as far as is known."""
    replaced_from: int
    """Where the part begins that is replaced, and of which only broken lines are kept; it ends at `keep_from`."""
    first: bytes
    """The first line, if it stays."""
    fd: int
    file_id: FileId
    size: int = 0
    """How long it is by now."""
    end: bytes = b""
    """What it ends with."""
    begun: bool = False
    """Whether what stands before all that is kept was added."""
    placed: bool = False
    """Whether it has the name of the old one."""
    _mutex: threading.Lock = field(default_factory=threading.Lock)
    _writing: bool = False
    _discarded: bool = False

    def begin_writing(self) -> bool:
        """For the thread that writes: whether its task still wants it to."""
        with self._mutex:
            self._writing = not self._discarded
            return self._writing

    def end_writing(self) -> None:
        """For the thread that writes: it needs the descriptors no more."""
        with self._mutex:
            self._writing = False
            if self._discarded:
                self._close()

    def discard(self) -> None:
        """Let go of it, and remove it unless it is in place; a thread that still writes closes it. Never raises."""
        if not self.placed and _is_at(self.path, self.file_id):
            with contextlib.suppress(OSError):  # the next `replace` removes it, or `lanes doctor`
                _os.unlink(self.path)
        with self._mutex:
            self._discarded = True
            if not self._writing:
                self._close()

    def hand_over(self) -> int:
        """The descriptor, for the entry that goes on with it: it is in place."""
        self.placed = True
        fd, self.fd = self.fd, -1
        return fd

    def _close(self) -> None:
        for fd in (self.fd, self.source):
            if fd >= 0:
                let_go(fd)
        self.fd = self.source = -1


def prepare(entry: Entry, path: str, through: Position | None, read_to: Position | None, header: bytes | None) -> Draft:
    """Decide what is kept, refuse what would lose something, and begin the new file. Seals the tail first.

    Raises:
        TranscriptError: it grew since it was read, was replaced since, or has several names; or there can be no new
            file. Nothing has changed.
        LeaseLost: it was replaced or removed under the lease.
    """
    fd = entry.descriptor()
    try:
        found = _os.fstat(fd)
        check_in_place(entry, path)
        refuse_links(path, found)
        check_flags(path, fd)
        size = seal(entry, fd, found.st_size) if found.st_size else 0
        first = first_line(fd, size)
        if not first or not stays_first(first, header):
            first = b""
        keep_from = max(_keep_from(entry, path, fd, size, len(first), through, read_to), len(first))
        target = _os.realpath(path)
        draft = _begin(target, fd, keep_from, size, first)
    except OSError as error:
        raise cannot("replace", path, error) from error
    if size == 0 and header is not None:
        draft.first = header
    return draft


def refuse_links(path: str, found: os.stat_result) -> None:
    """Raise if a file has several names: one of them would keep the old content."""
    if found.st_nlink > 1:
        raise TranscriptError(
            f"{path} has {found.st_nlink} names (hard links), and replacing it would part them: remove the others",
            path=path,
        )


def _begin(target: str, fd: int, keep_from: int, keep_to: int, first: bytes) -> Draft:
    """Create the new file, alike the old one."""
    path = target + SUFFIX
    with contextlib.suppress(FileNotFoundError):
        _os.unlink(path)
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | _os.O_BINARY | _os.O_CLOEXEC | _os.O_NOFOLLOW
    new = _os.open(path, flags, 0o600)
    try:
        made = _os.fstat(new)
    except OSError:
        let_go(new)
        with contextlib.suppress(OSError):
            _os.unlink(path)  # no other process creates one while we have the lease
        raise
    draft = Draft(path, target, -1, keep_from, keep_to, len(first), first, new, (made.st_dev, made.st_ino))
    try:
        draft.source = _os.dup(fd)
        carry_over(target, fd, new)  # what cannot be is a refusal, before anything is written
        withhold(new)
    except BaseException:
        draft.discard()
        raise
    return draft


def _keep_from(
    entry: Entry,
    path: str,
    fd: int,
    size: int,
    header_size: int,
    through: Position | None,
    read_to: Position | None,
) -> int:
    known = through if through is not None else read_to
    if known is None:
        if size > header_size:
            raise TranscriptError(
                f"{path} was not read under this lease: give `through=` the position of what you have read, "
                "and what came later is kept",
                path=path,
            )
        return size
    if known.file_id != entry.file_id or known.offset > size:
        raise TranscriptError(f"{path} was replaced since it was read: read it again", path=path)
    if not known.stands(fd):
        raise TranscriptError(
            f"{path} was replaced since it was read, or {known.offset} is in the middle of a line: read it again",
            path=path,
        )
    if through is None and known.offset != size:
        raise TranscriptError(
            f"{path} grew from {known.offset} to {size} bytes since it was read: give `through=` the position of what "
            "you have read, and what came later is kept",
            path=path,
        )
    return known.offset


def write_aside(draft: Draft, data: bytes) -> None:
    """Add records and what is kept of the old file, and have it all reach the disk. Blocks: for a worker thread.

    Raises:
        TranscriptError: the operating system refused.
    """
    if not draft.begin_writing():
        return
    try:
        if not draft.begun:
            draft.begun = True
            _add_first(draft, data)
        draft.keep_from = _copy(draft, draft.keep_from, draft.keep_to)
        _os.fdatasync(draft.fd)
    except OSError as error:
        advice = "it needs room beside the old file, until it takes its place" if error.errno in _os.NO_ROOM else ""
        raise cannot("write", draft.path, error, advice) from error
    finally:
        draft.end_writing()


def _add_first(draft: Draft, data: bytes) -> None:
    """Add what stands before all that is kept: the first line, the new records, and lines that could not be read."""
    if not draft.first:
        refuse_as_first(data, draft.target)
    elif _begins_with(data, draft.first):
        data = data[data.index(b"\n") + 1 :]  # it was read as a record, and is among the new ones
    _add(draft, draft.first)
    _add(draft, data)
    for line in broken_lines(draft.target, draft.source, draft.file_id, draft.replaced_from, draft.keep_from):
        _copy(draft, line.offset, line.offset + line.length + 1)


def _begins_with(data: bytes, first: bytes) -> bool:
    """Whether the first of some lines is the same record as another line."""
    try:
        return bool(data) and decode(data[: data.index(b"\n")]) == decode(first)
    except NoRecord:
        return False


def _copy(draft: Draft, start: int, end: int) -> int:
    """Add what the old file has between two places; returns the second."""
    while start < end:
        block = _os.pread(draft.source, min(_BLOCK, end - start), start)
        if not block:
            raise OSError(errno.EIO, "the old file became shorter while it was copied")
        _add(draft, block)
        start += len(block)
    return start


def is_complete(draft: Draft, entry: Entry) -> bool:
    """Whether it has all that is to be kept; if not, more was appended under this very lease, and `write_aside` again.

    If so, it is open to those whom the old file is open to, and ready to take its place.

    Raises:
        OSError, TranscriptError: the old file cannot be looked at, or has got a second name; it is in place.
    """
    fd = entry.descriptor()
    found = _os.fstat(fd)
    refuse_links(draft.target, found)
    draft.keep_to = seal(entry, fd, found.st_size) if found.st_size else 0
    if draft.keep_from < draft.keep_to:
        return False
    carry_over(draft.target, fd, draft.fd)
    return True


def _is_at(path: str, file_id: FileId) -> bool:
    try:
        found = _os.stat(path)
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == file_id


def _add(draft: Draft, data: bytes) -> None:
    view = memoryview(data)
    while view:
        written = _os.write(draft.fd, view[:_BLOCK])
        draft.size += written
        draft.end = bytes(view[:written][-_END:])
        view = view[written:]
