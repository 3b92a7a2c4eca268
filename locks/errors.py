"""What can go wrong with a lock, by culprit. None of these is an `OSError`.

A generic network retry catches `OSError` (and with it `TimeoutError`), takes a busy session for a failed request and
repeats a whole model call. `retryable` says whether asking again later can help; nothing else needs to be parsed.
"""

from __future__ import annotations

from typing import Any

from .holder import Holder


class LockError(Exception):
    """The base of everything that the lock layer raises.

    Every field is an attribute, the message is made from them, and instances survive pickling.
    """

    retryable = False

    def __init__(self, message: str, /, **fields: Any) -> None:
        super().__init__(message)
        self.__dict__.update(fields)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, dict(self.__dict__))


def _rebuild(kind: type[LockError], args: tuple[Any, ...], fields: dict[str, Any]) -> LockError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(fields)
    return error


class LeaseTimeout(LockError):
    """The wait budget passed before the right was free. Nothing was taken; asking again later can help."""

    retryable = True
    path: str
    waited_s: float
    holder: Holder | None
    """The holder; `None` when that is another process, whose name is not known here."""
    remaining_s: float | None
    """How long that holder may still keep it, grace included; `None` when unknown."""


class LeaseExpired(LockError):
    """The block was left after the lease's deadline. What was written before stands; the right is free again."""

    path: str
    holder: Holder
    overstayed_s: float


class LeaseLost(LockError):
    """The right was taken away while it was held. Nothing that this raises from was written.

    Itself, not one of the kinds below: the file was replaced under the lease, or the block was left.
    """

    path: str
    holder: Holder
    """The holder that has lost it."""
    by: Holder | None = None
    """The holder that has it instead, where that is known."""


class Revoked(LeaseLost):
    """Taken away because it overstayed deadline and grace, or by hand."""


class Superseded(LeaseLost):
    """Taken away in favour of a newer run."""


class RunEnded(LeaseLost):
    """The run this write belongs to has ended, or the grace after its cancellation has passed."""


class InvalidSession(LockError, ValueError):
    """A session key or path that cannot name a transcript. Nothing was opened or created."""


class TranscriptError(LockError):
    """The transcript could not be read or written.

    The file holds what it held before, unless the message says otherwise: after a failed sync, what was appended stands
    in it, but may not survive a power cut.

    `errno` is the operating system's number where there is one.
    """

    path: str
    errno: int | None = None


class DeadlockError(LockError):
    """The wait was refused because what it waits for cannot happen before the wait ends. Nothing was taken.

    A wait that has a time limit of its own is not refused.
    """

    path: str = ""
    chain: tuple[tuple[Holder, str, Holder], ...] = ()
    """Waiter, file and holder of each wait: the last holder is the first waiter.

    An empty path: the one waits for the other itself, as for the outcome of a run, and not for a file.
    """
