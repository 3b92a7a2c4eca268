"""Exclusion between processes: Linux open-file-description locks on the session file itself.

The idea. Each right of a file is one lock byte far beyond its end. Whoever has the byte has the right, and the kernel
takes it back when the process dies, so there is nothing to clean up, ever. Such a lock has no queue: whoever asks at
the right moment gets it, and a process that re-acquires without a gap starves all others (shares of 1 : 99 were
measured). So a waiter also locks one byte at `base + arrival in monotonic nanoseconds` as its ticket, and takes the
lock byte only when nobody holds a lower ticket. Safety rests on the lock byte alone; tickets only order.

Rejected: `flock` (no ticket ranges, and an inherited descriptor shares it), POSIX `F_SETLK` (any `close` of the file in
the process drops it), lock files (someone must decide whether their owner is dead), waking all waiters by inotify
(costs two thirds of the throughput).

Sources: fcntl_locking(2), "Open file description locks".
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from enum import IntEnum

from . import _os

AVAILABLE = sys.platform == "linux"
"""Whether this platform has such locks."""


class Right(IntEnum):
    """What a lease is for."""

    TURN = 0
    """To conduct the session: one run, from its start to its end."""
    WRITE = 1
    """To write at this instant."""


_BASES = (1 << 62, (1 << 62) + (1 << 61))
_SPAN = (1 << 61) - 2  # tickets of a right: 73 years of monotonic nanoseconds


def try_lock(fd: int, right: Right) -> bool:
    """Take the right for this process if no other process has it."""
    return _os.ofd_lock(fd, _BASES[right])


def unlock(fd: int, right: Right) -> None:
    """Give the right back to whichever process asks next."""
    _os.ofd_unlock(fd, _BASES[right])


def is_free(fd: int, right: Right) -> bool:
    """Whether no other process has the right."""
    return _os.ofd_conflict(fd, _BASES[right], 1) is None


def ticket_of(right: Right, arrived_at: float) -> int:
    """The ticket of one who arrived at `arrived_at`."""
    return _BASES[right] + 1 + min(int(arrived_at * 1e9), _SPAN - 1)


def take_ticket(fd: int, ticket: int) -> int:
    """Stand in the queue of all processes with this ticket, or the next that is free; returns it."""
    while not _os.ofd_lock(fd, ticket):
        ticket += 1  # someone arrived in the same nanosecond
    return ticket


def drop_ticket(fd: int, ticket: int) -> None:
    """Leave the queue."""
    _os.ofd_unlock(fd, ticket)


def anyone_before(fd: int, right: Right, arrived_at: float) -> bool:
    """Whether a waiter of another process arrived before `arrived_at`."""
    start, end = _BASES[right] + 1, ticket_of(right, arrived_at)
    return end > start and _os.ofd_conflict(fd, start, end - start) is not None


def count_before(fd: int, right: Right, ticket: int, most: int) -> int:
    """How many tickets below `ticket` other processes hold, counted up to `most`; at least that many are there."""
    start, end, found = _BASES[right] + 1, ticket, 0
    while found < most and end > start:
        position = _os.ofd_conflict(fd, start, end - start)
        if position is None:
            break
        end, found = position, found + 1  # downwards: what the kernel left out above is not worth another question
    return found


def lowest_before(fd: int, right: Right, ticket: int, ignored: Collection[int]) -> int | None:
    """The lowest ticket below `ticket` that another process holds, leaving out `ignored`.

    The kernel names some conflicting lock, not the lowest, so the range is narrowed downwards until it is empty.
    """
    return _lowest(fd, _BASES[right] + 1, ticket, ignored)


def lowest(fd: int, right: Right, ignored: Collection[int]) -> int | None:
    """The lowest ticket that another process holds, leaving out `ignored`."""
    return _lowest(fd, _BASES[right] + 1, _BASES[right] + 1 + _SPAN, ignored)


def _lowest(fd: int, start: int, end: int, ignored: Collection[int]) -> int | None:
    lowest_found: int | None = None
    todo = [(start, end)]  # the lowest range last
    while todo:
        start, end = todo.pop()
        if start >= end or (found := _os.ofd_conflict(fd, start, end - start)) is None:
            continue
        if found in ignored:
            todo += [(found + 1, end), (start, found)]
        else:
            lowest_found = found
            todo = [(start, found)]
    return lowest_found
