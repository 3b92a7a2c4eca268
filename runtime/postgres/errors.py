"""What a program on a shared store has to expect besides what it expects of files."""

from __future__ import annotations

from locks import LeaseLost, LockError

from ..inbox.errors import InboxDown


class StoreDown(InboxDown, LockError):
    """The database cannot be reached, or cannot do what it must. Nothing was taken, or what became of it is not known.

    While the database is away for less than a node may be silent, work waits and goes on. Asking again later can help;
    a message with a `dedupe` key is accepted once.
    """

    retryable = True
    path: str


class NodeLost(LeaseLost):
    """Another node has, or may have, what a run is about. Nothing was written.

    Mostly since this process was silent for too long: its runs are cancelled, and it joins again under another id. Else
    the message of a run that was to begin has ended elsewhere, or was submitted again there.
    """
