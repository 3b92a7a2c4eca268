"""The steward: ends leases from outside the event loop.

It is the clock's thread, woken at the earliest deadline of what a registry holds. At a deadline it has the loop cancel
the block; at the end of the grace it takes the right away itself, so other processes go on even while this loop is
frozen, and leaves the rest (telling the block, granting to the next here) to the loop.

Its rules, each bought with a failure: it compares the claim with the holder inside the mutex (else it unlocks the next
holder); it never waits for that mutex, because a write may hang in the kernel (it leaves a note, and the writer
finishes the revocation on leaving); it calls nothing of the user's. When it comes late by as much as the grace, or by
a second, the whole process was as late: a stopped process or a suspended machine starts the grace again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from .. import _clock
from .._events import described, log
from .._loop import Post, cancel
from ..errors import LeaseLost, RunEnded, Superseded
from .claim import HELD, overstayed
from .open_file import FileClaim

_PENDING_RETRY_S = 0.05


class Steward:
    """Watches what one registry holds.

    Args:
        settle: called on the loop after a claim was lost; cancels its block and lets the next claim in.
        finish: called on the loop while there is something `unfinished`.
    """

    def __init__(self, settle: Callable[[FileClaim], Any], finish: Callable[[], Any]) -> None:
        self._settle = settle
        self._finish = finish
        self.held: dict[FileClaim, None] = {}  # changed on the loop's thread only; read here as a snapshot
        self.revoked = 0
        self.unfinished = False
        """Whether an exception came in the middle of a change on the loop's thread, and again while it was finished."""
        self.post: Post = _to_nobody
        self._alarm = _clock.clock.alarm(self._tick)

    def watch(self, claim: FileClaim) -> None:
        """Begin to watch a claim that was granted."""
        self.held[claim] = None
        time = claim.time
        plain = time.fence is None and not time.deadline_told  # `next_due` in short
        self._alarm.ring_by(time.deadline if plain else time.next_due())

    def look_by(self, at: float) -> None:
        """Look again at `at` at the latest: a deadline has moved forward."""
        self._alarm.ring_by(at)

    def revoke(self, claim: FileClaim, error: LeaseLost) -> None:
        """Take a right away now, or, while a write is under way, as soon as it is over. Callable from any thread."""
        if self.take(claim, error):
            self.post(partial(self._settle, claim))

    def take(self, claim: FileClaim, error: LeaseLost) -> bool:
        """As `revoke`, but leave it to the caller to settle when this returns `True`.

        What is superseded stays locked for other processes: the successor is here.
        """
        entry, queue = claim.entry, claim.queue
        if entry is None or queue is None:
            return False
        mutex = queue.mutex
        if not mutex.take():
            claim.revoke_pending = error  # the thread that has the mutex now sees this after leaving it ...
            self._alarm.ring_by(_clock.clock.now() + _PENDING_RETRY_S)  # ... unless the write is another claim's, ...
            if not mutex.take():  # ... or it left in between
                return False
        try:
            if not queue.take_away(claim, error, self._kind(claim, error), keep=isinstance(error, Superseded)):
                return False
        finally:
            mutex.release()
        self.revoked += 1
        return True

    @staticmethod
    def _kind(claim: FileClaim, error: LeaseLost) -> type[LeaseLost]:
        """What later writes of the claim's run are told: one that overstayed has ended."""
        fence = claim.fence
        return RunEnded if fence is not None and _clock.clock.now() >= fence.end_at else type(error)

    def _tick(self, now: float) -> float:
        due = math.inf
        if self.unfinished:
            self.post(self._finish)
        for claim in list(self.held):
            try:
                due = min(due, self._look_at(claim, now))
            except Exception as error:
                # A lock call that fails must not end the watch over all other sessions.
                self._log("steward_failed", level="error", claim=repr(claim), error=described(error))
                due = min(due, now + _PENDING_RETRY_S)
        return due

    def _log(self, event: str, **fields: Any) -> None:
        """On the loop's thread: a host's log handler that blocks must not stop the watch over all sessions."""
        self.post(partial(log, event, **fields))

    def _look_at(self, claim: FileClaim, now: float) -> float:
        if claim.state is not HELD:
            return math.inf
        if claim.revoke_pending is not None:
            self.revoke(claim, claim.revoke_pending)
            return math.inf if claim.lost is not None else now + _PENDING_RETRY_S
        time = claim.time
        late = now - time.next_due()
        if late >= time.suspended_after():
            # Not even this thread was here in time: the process was stopped, or the machine suspended.
            self._log("steward_late", level="warning", claim=repr(claim), late_s=round(late, 3))
            time.restart_grace(now)
        if not time.deadline_told and now >= time.deadline:
            time.deadline_told = True
            if time.expires:  # else an enclosing scope or the run cancels the block by itself: two timers would race
                self.post(partial(_cancel_blocks, claim))
        due = time.next_due()
        if now < due:
            return due
        assert claim.entry is not None
        self.revoke(claim, overstayed(claim, claim.entry.path))
        return math.inf if claim.lost is not None else now + _PENDING_RETRY_S


def _cancel_blocks(claim: FileClaim) -> None:
    if claim.state is HELD:
        for scope in claim.scopes:
            cancel(scope)


def _to_nobody(_call: Callable[[], Any]) -> None:
    """Where posts go before the first use on a loop: there is nothing held that they could be about."""
