"""What a scheduler refuses, and how a run can end other than well."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from locks._loop import running_loop

if TYPE_CHECKING:
    from .run import Run


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
    """The session is conducted by somebody, or the lane is at its capacity, and the policy is `reject`."""

    retryable = True
    lane: str
    session: str | None
    holder: int | None
    """The id of the run that conducts the session, if it names one."""


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
    """Called on a thread that this call is not for; the message names the call that is. Nothing was submitted."""


def wrong_loop(message: str) -> WrongThread:
    """The error for a call on another event loop's code than the one that serves, or on a thread without a loop."""
    if running_loop() is None:
        return WrongThread(message)
    return WrongThread(
        f"{message}; another event loop runs the calling code: on one thread with it, hand the call over by its "
        "`call_soon_threadsafe` or trio's `run_sync_soon`"
    )


class RunError(Exception):
    """A run ended without a value of its own. What it wrote until then stands; its turn and lane are free.

    `run` is the run, so a child's error is told from one's own; `None` when that run is forgotten.
    """

    def __init__(self, message: str, run: Run | None = None) -> None:
        super().__init__(message)
        # Weak, because a run's outcome holds its error: a finished run must not need the garbage collector to go away.
        self._run = weakref.ref(run) if run is not None else None

    @property
    def run(self) -> Run | None:
        """The run that ended so."""
        return self._run() if self._run is not None else None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args


class RunTimedOut(RunError, TimeoutError):
    """The run passed its deadline, or waited longer than its queue budget."""


class RunCancelled(RunError):
    """The run was cancelled, while it was queued or while it ran; the message says why."""


class RunSuperseded(RunError):
    """A newer run took its place."""


class RunAbandoned(RunError):
    """The body ignored its cancellation past the grace: it is fenced, and nobody waits for it any more."""


class RunAbandonedAfterTimeout(RunAbandoned, RunTimedOut):
    """As `RunAbandoned`, and what had cancelled the body was its deadline."""
