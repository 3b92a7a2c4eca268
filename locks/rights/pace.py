"""How often a waiter looks whether another process has given a right back, and when it passes over a process.

A process that unlocks wakes the one whose turn is next (`engines.wakeup`), so the others need to look only for what
nothing wakes them for: a process that has died, or that was stopped while its turn was next. Without a bell, looking is
all there is.

Looks are what many waiters cost. With sixteen processes at one file, each of which looked every 2 to 5 ms, they took
more of a processor than the work that they waited for.
"""

from __future__ import annotations

from ..engines.interface import ProcessLock

POLL_MIN_S, POLL_MAX_S, POLL_SHARE = 0.0002, 0.005, 0.01
"""Between two looks of the waiter that is next: the longer it has waited, the longer."""
POLL_AHEAD_S = 0.0005
"""A waiter that nothing wakes looks so much later for each one before it: each takes a handoff at least."""
POLL_LISTENING_S, POLL_BEHIND_S, POLL_BEHIND_MAX_S = 0.002, 0.001, 0.008
"""As the first and the last of these, for a waiter with a bell: at least, for each one before it, at most.

Not longer: on a busy machine Linux lets a process that has slept for 25 ms wait for 4 ms more often than one that has
just run, whoever rings, and that made the longest handoffs worse than the looks had been.
"""
STALLED_AFTER_S = 0.05
"""A lower ticket that does not move for this long while the lock is free belongs to a stopped or frozen process."""
STOOD_STILL_S = 0.8 * STALLED_AFTER_S
"""After so long without a look, others may have passed us over. Longer than any pause, shorter than they wait."""


class Pace:
    """The looks of one wait for other processes."""

    __slots__ = ("_before", "_before_since", "_looked_at", "_next", "_since")

    def __init__(self, since: float, now: float) -> None:
        self._since = since
        self._looked_at = now
        self._next = False
        """Whether no waiter of another process was before ours; hardly ever one comes before it later."""
        self._before: int | None = None
        self._before_since = 0.0

    def stood_still(self, now: float) -> bool:
        """Note a look; returns whether the last one was so long ago that others may have passed us over for good."""
        before, self._looked_at = self._looked_at, now
        return now - before > STOOD_STILL_S

    def pause(self, lock: ProcessLock, ticket: int, now: float, *, listens: bool, without: int) -> float:
        """Seconds until the next look: the more, the more waiters of other processes are before ours.

        Args:
            listens: whether the process that unlocks can wake it.
            without: how many tickets of other processes do not count.

        Raises:
            OSError: a lock call failed.
        """
        pause = max((now - self._since) * POLL_SHARE, POLL_LISTENING_S if listens else POLL_MIN_S)
        each, most = (POLL_BEHIND_S, POLL_BEHIND_MAX_S) if listens else (POLL_AHEAD_S, POLL_MAX_S)
        pause = min(pause, POLL_MAX_S)
        if not self._next and pause < most:
            before = lock.count_before(ticket, round(most / each) + without) - without
            self._next = before <= 0
            pause = max(pause, before * each)
        return min(pause, most)

    def stalled(self, before: int | None, now: float) -> int | None:
        """The ticket that has not moved for too long; `before` is the lowest while the lock is free, else `None`."""
        if before != self._before:
            self._before, self._before_since = before, now
        return before if now - self._before_since >= STALLED_AFTER_S else None
