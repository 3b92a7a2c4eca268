"""What a scheduler refuses: work that it did not take."""

from __future__ import annotations

from typing import Any

from locks._loop import running_loop


class LaneError(Exception):
    """Work was not accepted. No run exists; the sender keeps what it sent. Every field is an attribute."""

    retryable = False

    def __init__(self, message: str, /, **fields: Any) -> None:
        super().__init__(message)
        self.__dict__.update(fields)


class InvalidLane(LaneError, ValueError):
    """The lane is unknown, its specification contradicts itself, or it cannot do what was asked."""


class LaneFull(LaneError):
    """The lane's queue has reached its limit. Asking again later can help."""

    retryable = True
    lane: str
    queued: int
    limit: int


class LaneBusy(LaneError):
    """A run conducts the session, or the lane is at its capacity, and the policy is `reject`."""

    retryable = True
    lane: str
    session: str | None
    holder: int | None
    """The id of the run that conducts the session, if the work names a session."""


class DedupeConflict(LaneError):
    """The `dedupe` key has another body already, and its run waits, runs or is kept: a slip of the sender."""

    lane: str
    session: str | None
    key: str
    run: int
    """The id of the run that has the key."""


class Draining(LaneError):
    """The supervisor is draining, stopped or not yet started: it accepts nothing."""

    retryable = True


class WrongThread(LaneError, RuntimeError):
    """Called on the wrong thread; the message names the call for that thread. Nothing was submitted."""


def wrong_loop(message: str) -> WrongThread:
    """The error for a call from code of another event loop than the serving one, or on a thread without a loop."""
    if running_loop() is None:
        return WrongThread(message)
    return WrongThread(
        f"{message}; another event loop runs the calling code: on one thread with it, hand the call over by its "
        "`call_soon_threadsafe` or trio's `run_sync_soon`"
    )
