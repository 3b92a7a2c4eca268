"""What the queues need of whatever excludes processes from each other: the seam between fairness here and locks there.

An engine makes one `ProcessLock` per right of a file that is held or waited for. It is called on the event loop's
thread and, for `unlock`, by the steward, always inside the file's mutex; no method may block or wait.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import IntEnum
from typing import Protocol, Self

from .._os import FileId
from .wakeup import Bell


class Right(IntEnum):
    """What a lease is for."""

    TURN = 0
    """To conduct the session: one run, from its start to its end."""
    WRITE = 1
    """To write at this instant."""


class ProcessLock(Protocol):
    """One right of one file among processes, as one open descriptor sees it.

    Safety rests on `try_lock` alone. Tickets only order who may try; an engine without an order answers as `Unordered`
    does. Every method but `bell` and `wake` may raise `OSError`; nothing has changed then.
    """

    def try_lock(self) -> bool:
        """Take the right for this process if no other process has it."""

    def unlock(self) -> None:
        """Give the right back to whichever process asks next; nothing happens when it was not held."""

    def is_free(self) -> bool:
        """Whether no other process has the right, as far as that shows without taking it."""

    def ticket_of(self, arrived_at: float) -> int:
        """The ticket of a waiter that arrived at an instant of the monotonic clock."""

    def take_ticket(self, ticket: int) -> int:
        """Stand in the queue of all processes with this ticket, or the next that is free; returns it."""

    def drop_ticket(self, ticket: int) -> None:
        """Leave the queue."""

    def anyone_before(self, arrived_at: float) -> bool:
        """Whether a waiter of another process arrived before an instant."""

    def count_before(self, ticket: int, most: int) -> int:
        """How many tickets below `ticket` other processes hold, counted up to `most`; at least that many are there."""

    def lowest_before(self, ticket: int, ignored: Collection[int]) -> int | None:
        """The lowest ticket below `ticket` that another process holds, leaving out `ignored`."""

    def lowest(self, ignored: Collection[int]) -> int | None:
        """The lowest ticket that another process holds, leaving out `ignored`."""

    def bell(self, ticket: int) -> Bell | None:
        """Something that rings when the one before has unlocked; `None` where only polling is to be had."""

    def wake(self, ticket: int) -> bool:
        """Ring the bell of another process's ticket; returns whether it has one. Never raises."""

    def follow(self, fd: int, file_id: FileId) -> ProcessLock:
        """The same right on a file that is about to be renamed into the place of this one: locked, too.

        A lock that goes by the name returns itself: it must hold the right already.
        """

    def close(self) -> None:
        """Let go of what the lock keeps open of its own; the right was unlocked before. Never raises."""


class LeaseEngine(Protocol):
    """Excludes processes from each other. Give one to `LockRegistry(engine=...)` to bring your own."""

    name: str
    """For messages and statistics."""

    def lock(self, path: str, fd: int, file_id: FileId, right: Right) -> ProcessLock:
        """The lock of one right of a file that is open as `fd`; called once per right while the file is in use."""


class Unordered:
    """The ticket methods of a lock that has no queue between processes."""

    def is_free(self) -> bool:
        """Only a try shows it."""
        return True

    def ticket_of(self, arrived_at: float) -> int:
        """All are alike."""
        return 0

    def take_ticket(self, ticket: int) -> int:
        """There is no queue to stand in."""
        return ticket

    def drop_ticket(self, ticket: int) -> None:
        """There is no queue to leave."""

    def anyone_before(self, arrived_at: float) -> bool:
        """No process is known to wait."""
        return False

    def count_before(self, ticket: int, most: int) -> int:
        """No process is known to wait."""
        return 0

    def lowest_before(self, ticket: int, ignored: Collection[int]) -> int | None:
        """No process is known to wait."""
        return None

    def lowest(self, ignored: Collection[int]) -> int | None:
        """No process is known to wait."""
        return None

    def bell(self, ticket: int) -> Bell | None:
        """Polling only."""
        return None

    def wake(self, ticket: int) -> bool:
        """No waiter listens."""
        return False

    def follow(self, fd: int, file_id: FileId) -> Self:
        """For a lock that goes by the name of the file."""
        return self

    def close(self) -> None:
        """Nothing is kept open."""
