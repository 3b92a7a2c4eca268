"""The instants of one hold of a right: when its block is to end, and when the right is taken away."""

from __future__ import annotations

import math

from .. import _clock
from .fence import Fence

_AFTER_THE_LOOP_S = 0.02
_SUSPENDED_AFTER_S = (0.05, 1.0)  # at least and at most


class HoldTime:
    """How long one claim may hold, and since it holds, until when.

    A run's own instants, which its fence has, go before: its scheduler acts on them.
    """

    # Defaults live on the class where hardly any hold has another value: see `Claim`.
    acquired_at = 0.0
    """0 before the grant."""
    deadline = math.inf
    """When the block is cancelled."""
    expires = False
    """Whether the deadline is its own, not that of its run or of an enclosing scope."""
    revoke_at = math.inf
    """When the right is taken away."""
    ends_at = math.inf
    """The earliest instant that `end_by` was called with."""
    grace = 0.0

    def __init__(self, fence: Fence | None, max_hold: float, bound: float) -> None:
        self.fence = fence
        self.max_hold = max_hold
        self.bound = bound
        """The instant at which the enclosing scope ends, if it does."""
        self.idle: float | None = None
        """Seconds without `progress()` after which it ends."""
        self.deadline_told = False
        """Whether the steward is not needed at the deadline: it has reported it, or the run's own scheduler does."""

    def start(self, grace: float) -> None:
        """Begin. The deadline counts from the grant; time spent waiting is not deducted."""
        self.acquired_at = now = _clock.clock.now()
        self.grace = grace
        if self.fence is None and self.idle is None:  # the plain case, in short
            own, bound = now + self.max_hold, self.bound
            self.expires = own <= bound
            self.deadline = deadline = own if own <= bound else bound  # noqa: FURB136 -- `min` takes as long as two calls
            self.revoke_at = deadline + grace
        else:
            self._limit(now)
            self.deadline_told = self.fence is not None and not self.expires

    def go_on_from(self, before: HoldTime) -> None:
        """Keep the hard limit of a hold that was given back for a while, inside its block, and whose place this takes.

        Called on the loop's thread, right after it was granted.
        """
        now = self.acquired_at
        self.max_hold = max(0.0, before.acquired_at + before.max_hold - now)
        self._limit(now)
        self.deadline_told = self.fence is not None and not self.expires

    def progress(self) -> bool:
        """Start the idle time again, within the hard limit; returns whether the deadline has moved.

        Not once the deadline has passed. Plain assignments: callable from any thread.
        """
        now, before = _clock.clock.now(), self.deadline
        if self.idle is None or self._told() or now >= before:
            return False
        self._limit(now)
        if self._told():
            self.end_by(self.ends_at)  # the loop or the steward has ended it meanwhile: that stands
        return self.deadline > before

    def follow_run(self) -> None:
        """The run has got more time: what its end limits moves along, unless it was asked to end."""
        if self.ends_at == math.inf:
            self._limit(_clock.clock.now())

    def end_by(self, at: float) -> None:
        """End the time of the block now, and what it may still do at `at`. Neither moves later."""
        now = _clock.clock.now()
        self.ends_at = min(self.ends_at, max(at, now))  # an instant long past would look like a suspended machine
        self.deadline_told = True  # before what `progress()` in a thread may overwrite: it looks again afterwards
        self.revoke_at = min(self.revoke_at, self.ends_at)
        self.deadline = min(self.deadline, now)

    def suspended_after(self) -> float:
        """Seconds of lateness from which on the process was stopped, or the machine suspended, and not just busy."""
        least, most = _SUSPENDED_AFTER_S
        return max(least, min(self.grace, most))

    def catch_up(self, now: float) -> None:
        """Start the grace again if the process stood still past the end of it."""
        if now - self.next_due() >= self.suspended_after():
            self.restart_grace(now)

    def restart_grace(self, now: float) -> None:
        """Start the grace again: no block could have met a deadline while the process stood still."""
        if self.fence is not None:
            self.fence.restart_grace(now)
        if self.fence is None or self.expires or self.ends_at < math.inf:
            self.revoke_at = max(self.revoke_at, now + self.grace)
        else:  # the run's grace counts, not its own
            self.revoke_at = max(self.revoke_at, self.fence.end_at + _AFTER_THE_LOOP_S)

    def at_most(self, grace: float) -> float:
        """Seconds for which it will last at most if it begins now, grace included."""
        now = _clock.clock.now()
        at_most = min(now + self.max_hold, self.bound) + grace
        if self.fence is not None:
            at_most = min(at_most, self.fence.end_at)
        return max(0.0, at_most - now)

    def may_last(self, grace: float) -> float:
        """Seconds for which a hold of this kind, of this run or with this limit, lasts at most, grace included."""
        own = self.max_hold + grace
        return own if self.fence is None else min(own, self.fence.end_at - self.fence.began_at)

    def next_due(self) -> float:
        """When the steward has to look at it again."""
        revoke_at = self.revoke_at
        if self.fence is not None:
            # The run's scheduler lets go at that instant; the steward comes when the loop was too late for it.
            revoke_at = min(revoke_at, self.fence.end_at + _AFTER_THE_LOOP_S)
        return revoke_at if self.deadline_told else min(self.deadline, revoke_at)

    def late_s(self) -> tuple[float, str]:
        """How long ago the block was to end, in seconds, and what was missed then, in words; 0 when that is to come.

        A run that is asked to end early has missed that, and not the deadline that it still had before it.
        """
        asked = math.inf if self.fence is None else self.fence.deadline
        if asked < self.deadline:
            missed, what = asked, "after its run was asked to end"
        else:
            missed, what = self.deadline, "past its deadline"
        return max(0.0, _clock.clock.now() - missed), what

    def remaining(self) -> float | None:
        """Seconds until the right is taken away at the latest, grace included; `None` without a limit."""
        revoke_at = self.revoke_at if self.fence is None else min(self.revoke_at, self.fence.end_at)
        return None if revoke_at == math.inf else max(0.0, revoke_at - _clock.clock.now())

    def _told(self) -> bool:
        return self.deadline_told  # a call, so that no reader takes the answer to last: another thread may set it

    def _limit(self, now: float) -> None:
        own, fence, outer = self.acquired_at + self.max_hold, self.fence, self.bound
        if self.idle is not None:
            own = min(own, now + self.idle)
        if fence is None:
            deadline = min(own, outer)
            self.revoke_at = deadline + self.grace
        else:
            # A run's last words may outlive its deadline, up to the end of its grace; the run's grace rules, not ours.
            deadline = min(own, outer, fence.end_at if now >= fence.deadline else fence.deadline)
            self.revoke_at = min(own + self.grace, fence.end_at + _AFTER_THE_LOOP_S)
        self.expires = deadline == own
        self.deadline = deadline
