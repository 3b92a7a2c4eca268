"""What the queues need of a run that waits in them, or holds what they give out."""

from __future__ import annotations

from typing import Protocol, TypeVar

from ..checks import Priority
from ..run import Run


class Waiter(Protocol):
    """A run. Compared and hashed by identity; in a heap, of two runs of one rank the older one comes first."""

    run: Run
    rank: int
    """Its place in the queue of its lane: the lowest goes first."""
    joined: int
    """Messages that came to it while it was queued."""
    given_urgency: Priority
    urgency: Priority
    """Its class now; `given_urgency` is its class as submitted."""
    goes_first: bool
    """Whether no run may go before it."""

    @property
    def answer_id(self) -> int:
        """Counts up with persons' answers; 0 for other work. Answers go before that, the older ones first."""

    def is_queued(self) -> bool: ...
    def want_slot(self) -> None: ...
    def has_slot_again(self) -> None: ...


W = TypeVar("W", bound=Waiter)
