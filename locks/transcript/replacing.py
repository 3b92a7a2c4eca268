"""Writing a transcript anew, as compaction does: the new file is written aside, synced, and renamed into place.

A crash at any step leaves the old file or the new one, whole. Everything here is synchronous: `prepare` and
`complete` are called with the file's mutex and its write lease held, `write_aside` in a worker thread with neither
mutex nor haste. What is found at `<file>.new` was left by a crash, or by a thread that nobody waits for any more.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from dataclasses import dataclass, field

from .. import _os
from ..engines.bell import FileId
from ..entry import Entry, cannot
from ..errors import LeaseLost, TranscriptError
from .appending import seal
from .records import HEADER_KEY, Position, decoder

SUFFIX = ".new"
_BLOCK = 1 << 20
_LONGEST_HEADER = 1 << 16


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
    copied_to: int
    """Up to where that is done, or will be by `write_aside`."""
    header: bytes
    mode: os.stat_result
    fd: int = -1
    size: int = 0
    _mutex: threading.Lock = field(default_factory=threading.Lock)
    _writing: bool = False
    _abandoned: bool = False

    def begin_writing(self) -> bool:
        """For the thread that writes: whether anybody still wants it to."""
        with self._mutex:
            self._writing = not self._abandoned
            return self._writing

    def end_writing(self) -> bool:
        """For the thread that writes: whether somebody has the draft now; if not, the thread discards it."""
        with self._mutex:
            self._writing = False
            return not self._abandoned

    def abandon(self) -> bool:
        """For who gives up waiting for the thread: whether it has to discard the draft, because no thread will."""
        with self._mutex:
            self._abandoned = True
            return not self._writing

    @property
    def file_id(self) -> FileId:
        """Device and inode of the new file."""
        found = _os.fstat(self.fd)
        return found.st_dev, found.st_ino


def prepare(entry: Entry, path: str, through: Position | None, read_to: Position | None, header: bytes | None) -> Draft:
    """Decide what is kept, and refuse what would lose something. Seals the tail first.

    Raises:
        TranscriptError: it grew since it was read, was replaced since, or has several names; nothing has changed.
        LeaseLost: it was replaced or removed under the lease.
    """
    fd = entry.descriptor()
    try:
        found = _os.fstat(fd)
        if found.st_nlink == 0 or not entry.is_at(path):
            raise LeaseLost(f"{path} was replaced or removed while it was held", path=path, holder=None)
        if found.st_nlink > 1:
            raise TranscriptError(
                f"{path} has {found.st_nlink} names (hard links), and replacing it would part them: remove the others",
                path=path,
            )
        size = seal(entry, fd, found.st_size) if found.st_size else 0
        kept_header = _header_of(fd, size)
        keep_from = max(_keep_from(entry, path, fd, size, len(kept_header), through, read_to), len(kept_header))
        target = _os.realpath(path)
        source = _os.dup(fd)
    except OSError as error:
        raise cannot("replace", path, error) from error
    return Draft(target + SUFFIX, target, source, keep_from, size, kept_header or header or b"", found)


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
    if known.offset and _os.pread(fd, 1, known.offset - 1) != b"\n":
        raise TranscriptError(f"through: {known.offset} is in the middle of a line of {path}", path=path)
    if through is None and known.offset != size:
        raise TranscriptError(
            f"{path} grew from {known.offset} to {size} bytes since it was read: give `through=` the position of what "
            "you have read, and what came later is kept",
            path=path,
        )
    return known.offset


def _header_of(fd: int, size: int) -> bytes:
    """The first line, if it is no record."""
    start = _os.pread(fd, min(size, _LONGEST_HEADER), 0)
    line, newline, _ = start.partition(b"\n")
    if not newline:
        return b""
    try:
        found = decoder.decode(line)
    except (ValueError, RecursionError):
        return b""
    return line + newline if isinstance(found, dict) and HEADER_KEY in found else b""


def write_aside(draft: Draft, data: bytes) -> None:
    """Write the new file and have it reach the disk. Blocks: for a worker thread.

    Raises:
        TranscriptError: the operating system refused; what was written is for `discard`.
    """
    if not draft.begin_writing():
        return
    try:
        with contextlib.suppress(FileNotFoundError):
            _os.unlink(draft.path)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | _os.O_BINARY | _os.O_CLOEXEC | _os.O_NOFOLLOW
        draft.fd = _os.open(draft.path, flags, 0o600)
        _own_alike(draft)
        _add(draft, draft.header + data)
        _copy(draft, draft.keep_from, draft.copied_to)
        _os.fdatasync(draft.fd)
    except OSError as error:
        raise cannot("write", draft.path, error) from error
    finally:
        if not draft.end_writing():
            discard(draft)


def complete(draft: Draft, entry: Entry) -> None:
    """Copy what the lease's own threads have appended meanwhile.

    Raises:
        OSError: it cannot be copied; the old file is in place.
    """
    size = _os.fstat(entry.descriptor()).st_size
    if size > draft.copied_to:
        _copy(draft, draft.copied_to, size)
        draft.copied_to = size
        _os.fdatasync(draft.fd)


def discard(draft: Draft) -> None:
    """Let go of what is not in place, and remove it. Called again, nothing happens. Never raises."""
    fd, draft.fd = draft.fd, -1
    source, draft.source = draft.source, -1
    if fd >= 0:
        try:
            ours, there = _os.fstat(fd), _os.stat(draft.path)
            if stat.S_ISREG(there.st_mode) and (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino):
                _os.unlink(draft.path)
        except OSError:
            pass  # the next `replace` removes it, or `lanes doctor`
    for one in (fd, source):
        if one >= 0:
            with contextlib.suppress(OSError):  # the kernel lets go of a descriptor in any case
                _os.close(one)


def _own_alike(draft: Draft) -> None:
    """The new file belongs to whom the old one belonged to, as far as we may."""
    if hasattr(os, "fchmod"):
        os.fchmod(draft.fd, stat.S_IMODE(draft.mode.st_mode))
        if (draft.mode.st_uid, draft.mode.st_gid) != (os.geteuid(), os.getegid()):
            with contextlib.suppress(PermissionError):  # then it is ours, with the same mode
                os.fchown(draft.fd, draft.mode.st_uid, draft.mode.st_gid)


def _add(draft: Draft, data: bytes) -> None:
    view = memoryview(data)
    while view:
        written = _os.write(draft.fd, view[:_BLOCK])
        draft.size += written
        view = view[written:]


def _copy(draft: Draft, start: int, end: int) -> None:
    while start < end:
        block = _os.pread(draft.source, min(_BLOCK, end - start), start)
        if not block:
            raise OSError(5, "it became shorter while it was copied")
        _add(draft, block)
        start += len(block)
