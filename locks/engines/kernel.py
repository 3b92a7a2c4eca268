"""Exclusion between processes: Linux open-file-description locks on the session file itself.

The idea. Each right of a file is one lock byte far beyond its end. The process that has the byte has the right, and the
kernel takes it back when the process dies, so there is nothing to clean up. Such a lock has no queue: a process that
asks at the right moment gets it, and a process that re-acquires without a gap starves all others (shares of 1 : 99 were
measured). So a waiter also locks one byte at `base + arrival in monotonic nanoseconds` as its ticket, and takes the
lock byte only when no other process holds a lower ticket. Safety rests on the lock byte alone; tickets only order.

The arrival is an instant of the machine's monotonic clock. In a time namespace (`unshare --time`, a restored container)
that clock is shifted, and a waiter there would come always first or always last; so the shift is taken off again.

Rejected: `flock` (no ticket ranges, and an inherited descriptor shares it), POSIX `F_SETLK` (any `close` of the file in
the process drops it), lock files (a person must decide whether their owner is dead), waking all waiters by inotify
(costs two thirds of the throughput).

Sources: fcntl_locking(2), "Open file description locks"; time_namespaces(7).
"""

from __future__ import annotations

import errno
from collections.abc import Collection

from .. import _os
from .._os import FileId
from ..process import shifts
from .interface import Right
from .wakeup import Bell, ring

_BASES = (1 << 62, (1 << 62) + (1 << 61))
_SPAN = (1 << 61) - 2  # tickets of a right: 73 years of monotonic nanoseconds


class KernelLock:
    """One right of one file: a lock byte, and the tickets behind it."""

    __slots__ = ("_base", "_fd", "_file_id", "_right")

    def __init__(self, fd: int, file_id: FileId, right: Right) -> None:
        self._fd = fd
        self._file_id = file_id
        self._right = right
        self._base = _BASES[right]

    def try_lock(self) -> bool:
        """Take the right for this process if no other process has it."""
        return _os.ofd_lock(self._fd, self._base)

    def unlock(self) -> None:
        """Give the right back to whichever process asks next."""
        _os.ofd_unlock(self._fd, self._base)

    def is_free(self) -> bool:
        """Whether no other process has the right."""
        return _os.ofd_conflict(self._fd, self._base, 1) is None

    def ticket_of(self, arrived_at: float) -> int:
        """The ticket of a waiter that arrived at `arrived_at`."""
        on_the_machine = int(arrived_at * 1e9) - shifts().monotonic
        return self._base + 1 + min(max(on_the_machine, 0), _SPAN - 1)

    def take_ticket(self, ticket: int) -> int:
        """Stand in the queue of all processes with this ticket, or the next that is free; returns it."""
        while not _os.ofd_lock(self._fd, ticket):
            ticket += 1  # another waiter arrived in the same nanosecond
        return ticket

    def drop_ticket(self, ticket: int) -> None:
        """Leave the queue."""
        _os.ofd_unlock(self._fd, ticket)

    def anyone_before(self, arrived_at: float) -> bool:
        """Whether a waiter of another process arrived before `arrived_at`."""
        start, end = self._base + 1, self.ticket_of(arrived_at)
        return end > start and _os.ofd_conflict(self._fd, start, end - start) is not None

    def count_before(self, ticket: int, most: int) -> int:
        """How many tickets below `ticket` other processes hold, counted up to `most`; at least that many are there."""
        start, found = self._base + 1, 0
        while found < most and start < ticket:
            position = _os.ofd_conflict(self._fd, start, ticket - start)
            if position is None:
                break
            start, found = position + 1, found + 1  # upwards: the kernel names what was locked first, so mostly all
        return found

    def lowest_before(self, ticket: int, ignored: Collection[int]) -> int | None:
        """The lowest ticket below `ticket` that another process holds, leaving out `ignored`.

        The kernel names some conflicting lock, not the lowest, so the range is narrowed downwards until it is empty.
        """
        return self.lowest(ignored, ticket)

    def lowest(self, ignored: Collection[int], before: int | None = None) -> int | None:
        """The lowest ticket that another process holds, leaving out `ignored`."""
        lowest_found: int | None = None
        first = self._base + 1
        todo = [(first, first + _SPAN if before is None else before)]  # the lowest range last
        while todo:
            start, end = todo.pop()
            if start >= end or (found := _os.ofd_conflict(self._fd, start, end - start)) is None:
                continue
            if found in ignored:
                todo += [(found + 1, end), (start, found)]
            else:
                lowest_found = found
                todo = [(start, found)]
        return lowest_found

    def bell(self, ticket: int) -> Bell | None:
        """Rings when the one before has unlocked; `None` when there is no socket to be had, and polling goes on."""
        try:
            return Bell(self._file_id, ticket)
        except OSError:
            return None

    def wake(self, ticket: int) -> bool:
        """Ring the bell of another process's ticket; returns whether it has one."""
        return ring(self._file_id, ticket)

    def follow(self, fd: int, file_id: FileId) -> KernelLock:
        """The same right of another file, locked."""
        lock = KernelLock(fd, file_id, self._right)
        if not lock.try_lock():
            raise OSError(errno.EDEADLK, "somebody has locked a file that has no name yet")
        return lock

    def close(self) -> None:
        """Nothing is kept open: the descriptor is the file's."""


class KernelEngine:
    """Linux open-file-description locks."""

    name = "kernel"

    def lock(self, path: str, fd: int, file_id: FileId, right: Right) -> KernelLock:
        """The lock of one right of the file that is open as `fd`."""
        return KernelLock(fd, file_id, right)
