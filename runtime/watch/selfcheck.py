"""What must never be: work that should have been ended or started, and was not.

Everything in a scheduler happens in the same step as its cause. So a run past its last bound, a place that is free
while a run is ready for it, or a call that waits in a pool that could grant it, is a defect: a lost timer, a lost
wake-up. It is looked for every second, and counts when
it is found twice, because the first look after a stall comes before the timers that are late.
"""

from __future__ import annotations

from lanes.core.execution import Execution
from lanes.core.scheduler import Scheduler
from locks import _clock
from locks._events import log

_SLACK_S = 5.0


def _last_bound(execution: Execution) -> float:
    """When a run should have ended, or been given up, at the latest."""
    bound, timer = execution.fence.end_at + execution.spec.grace, execution.timer
    # A run that was asked to end late has its grace from then on, though it may write no more.
    return bound if timer is None or timer.call is None else max(bound, timer.due)


class SelfCheck:
    """Looks at one scheduler; returns what is wrong, in words. On the event loop's thread."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._suspects: set[str] = set()
        self._told: set[str] = set()

    def look(self) -> list[str]:
        """Look once; what was found before too is wrong, and logged the first time."""
        self._scheduler.board.throttle.end_ramp(_clock.clock.now())
        found = {*self._overdue(), *self._stuck(), *self._not_granted()}
        wrong = sorted(found & self._suspects)
        for what in wrong:
            if what not in self._told:
                log("recovery_failed", level="error", reason=what)
        self._suspects, self._told = found, set(wrong)
        if wrong:
            self._scheduler.admit_all()  # what it takes, if it was a wake-up
            self._scheduler.pools.look_at_all()
        return wrong

    def _overdue(self) -> list[str]:
        now = _clock.clock.now()
        return [
            f"{one.fence.holder} should have been ended by now, and was not"
            for one in self._scheduler.board.running()
            if now > _last_bound(one) + _SLACK_S
        ]

    def _stuck(self) -> list[str]:
        scheduler = self._scheduler
        if not scheduler.board.serving or not scheduler.board.starting:
            return []
        return [
            f"work of group {name} is ready, there is room for it, and it does not start"
            for name, group in scheduler.board.groups.items()
            if not scheduler.board.throttle.holds_back(name) and group.next_class([]) is not None
        ]

    def _not_granted(self) -> list[str]:
        now, board = _clock.clock.now(), self._scheduler.board
        return [
            f"a call waits in pool {name}, which could let it through, and does not"
            for name, pool in board.pools.items()
            if pool.waiting and pool.could_grant(now)
        ]
