"""Trying again: how often, after how long, and what it is worth trying again for.

The waits double from `wait` to `max_wait`, and each has some jitter on top, so that runs which failed together do not
come back together. Between two attempts a run sleeps nowhere: it stands in its lane's queue without place and slot, and
the scheduler's timers bring it back.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from locks._events import described, log

from . import checks
from .errors import InvalidLane

_MOST_DOUBLINGS = 1000
"""More are too many for a float, and every wait is at its maximum long before."""


@dataclass(frozen=True, slots=True)
class RetrySpec:
    """When a run of a lane whose body failed is tried again.

    Each attempt has a run budget, a grace and a permission to write of its own; the earlier ones are fenced. A run that
    conducts a session keeps its place in the session's queue meanwhile, so messages are answered in order; the wait
    between two attempts holds no place and no slot. A run that fails for the last time is parked.

    Args:
        attempts: how often the body is called at most, the first time included.
        wait: seconds before the second attempt; doubled before each further one.
        max_wait: what these seconds grow to at most, jitter included.
        on: the exceptions that are worth another attempt. One with an attribute `retryable` that is false never is. Of
            an exception group, each member has to be worth it: a lock error in a task group counts as such.
        timeouts: whether an attempt that passed its run's deadline is tried again too. A body that had to be abandoned
            never is, since it still runs.

    Raises:
        InvalidLane: naming the field, its value and what is allowed.
    """

    attempts: int = 3
    _: KW_ONLY
    wait: float = 1.0
    max_wait: float = 60.0
    on: type[Exception] | tuple[type[Exception], ...] = Exception
    timeouts: bool = False

    def __post_init__(self) -> None:
        checks.whole("retry, attempts", self.attempts, 2)
        checks.seconds("retry, wait", self.wait, zero=True)
        checks.seconds("retry, max_wait", self.max_wait, zero=True)
        if self.wait > self.max_wait:
            raise InvalidLane(f"retry, wait: {self.wait} s is longer than max_wait ({self.max_wait} s)")
        kinds = self.on if isinstance(self.on, tuple) else (self.on,)
        for kind in kinds or (None,):
            if not isinstance(kind, type) or not issubclass(kind, Exception):
                raise InvalidLane(f"retry, on: {kind!r:.80} is not allowed; allowed: exception classes")
        if not isinstance(self.timeouts, bool):
            raise InvalidLane(f"retry, timeouts: {self.timeouts!r:.80} is not allowed; allowed: True or False")

    def is_for(self, error: BaseException) -> bool:
        """Whether a body that raised this is worth another attempt."""
        todo = [error]
        while todo:
            one = todo.pop()
            if isinstance(one, BaseExceptionGroup):
                todo += one.exceptions
            elif not isinstance(one, self.on) or not _is_retryable(one):
                return False
        return True

    def wait_after(self, attempt: int) -> float:
        """Seconds to wait after that attempt (1, 2, …) has failed: `wait` doubled each time, plus up to `wait`, within
        `max_wait`.
        """
        import random  # noqa: PLC0415 -- slow to import, and few runs are tried again

        # The doubling ends early enough to leave room for the jitter: runs that failed together for long need it most.
        top = max(self.wait, self.max_wait - self.wait)
        doubled = self.wait * 2.0 ** min(attempt - 1, _MOST_DOUBLINGS)
        return min(doubled, top) + random.random() * min(self.wait, self.max_wait - top)


def _is_retryable(error: BaseException) -> bool:
    try:
        return getattr(error, "retryable", True) is not False
    except Exception as second:
        # The class is the user's: an error in it must not keep the run from ending.
        log("retryable_failed", level="warning", kind=type(error).__name__, error=described(second))
        return False
