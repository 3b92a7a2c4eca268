"""What the queues need of a run that waits in them, or holds what they give out."""

from __future__ import annotations

from typing import Protocol, TypeVar

from ..checks import Priority
from ..run import Run


class Waiter(Protocol):
    """A run. Compared and hashed by identity; in a heap, of two runs of one rank the older one comes first."""

    @property
    def run(self) -> Run: ...

    @property
    def rank(self) -> int:
        """Its place in the queue of its lane: the lowest goes first."""

    @property
    def joined(self) -> int:
        """Messages that came to it while it was queued."""

    @property
    def given_urgency(self) -> Priority:
        """Its class, as submitted."""

    @property
    def urgency(self) -> Priority:
        """Its class now."""

    @property
    def goes_first(self) -> bool:
        """Whether no run may go before it."""

    def is_queued(self) -> bool:
        """Whether it has not started."""

    def want_slot(self) -> None:
        """Take note that it waits for the slot that it had lent."""

    def has_slot_again(self) -> None:
        """Take note that it has a slot again."""


W = TypeVar("W", bound=Waiter)
