"""The interfaces of the files beside a session, as a queue sees them. `sidecar.guards` implements them.

A guard is entered by the process that has the lock between processes, on the event loop's thread and outside the file's
mutex, before a claim holds. A note says only who holds: it is written for a claim that has held for a while.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from ..engines.interface import Right
from ..holder import Holder
from .claim import Claim


class Named(NamedTuple):
    """A holder by name, as far as it is known."""

    holder: Holder | None
    remaining_s: float | None
    """Seconds for which it may go on; `None` when unknown, or without a limit."""
    words: str


class Change(NamedTuple):
    """What has become of a guard's file that we hold."""

    path: str
    what: str
    """In one word or two."""
    by: str
    """The program that did it, as far as it is known: the file that is there now may name it."""
    foreign: bool = False
    """Whether a foreign program has its file there now."""
    ours: bool = False
    """Whether what stands there is still what we wrote, and ours to remove."""


class Names(Protocol):
    """Who has a right in other processes, as far as the files beside the session say."""

    def holder_elsewhere(self, path: str, left_by: Claim | None = None) -> Named | None:
        """The holder of the right in another process, as far as is known.

        Args:
            left_by: a claim whose own files do not count: they may still be there.
        """


class Note(Names, Protocol):
    """One right's note, for people. Stateless: callable from any thread. Never raises."""

    def clear(self, path: str) -> None:
        """Remove what a dead process has left there. Called by the process that has the right."""

    def write(self, claim: Claim, grace: float) -> None:
        """Say that a claim holds the right."""

    def remove(self, claim: Claim) -> None:
        """Remove what was written for a claim, unless it is another claim's by now."""


class Guard(Names, Protocol):
    """One right's guard. Not entered, or entered for one claim."""

    next_try: float
    """When to ask again after a refusal."""

    @property
    def foreign_holder(self) -> Holder | None:
        """The foreign program that refused it last."""

    def enter(self, claim: Claim, grace: float) -> bool:
        """Say that a claim holds the right; `False` when a foreign program does.

        Raises:
            TranscriptError: it cannot be said; nothing has changed.
        """

    def leave(self) -> OSError | None:
        """Say that the right is free again; returns why that was not possible. Never raises."""

    def disturbed(self) -> Change | None:
        """What others have done to it while it is held, if that is news. Cheap; never raises.

        Called inside the file's mutex, by whichever thread writes for the claim that it was entered for.
        """

    def abandon(self) -> None:
        """Forget it, without touching the disk: the lock is another's now."""

    def forget(self) -> None:
        """Forget what was seen of others: the lock is not ours any more, and they may have come and gone since."""


class Beside(NamedTuple):
    """What there is beside a session for one of its rights."""

    names: Names | None = None
    guard: Guard | None = None
    note: Note | None = None


NewBeside = Callable[[Right, str], Beside]
"""What there is beside the session at a path, for a right."""
