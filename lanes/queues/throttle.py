"""Starting less when the process cannot keep up.

When the event loop is late, or memory is short, each further run makes every run slower. So admission goes on, but
slowly: at most one start in so many seconds for each class. Lanes in group `control` are not slowed. A *ramp* does the
same for a while after a restart, when everything is overdue at once, with intervals that shrink to nothing. The
watchdog calls `slow` and `restore`; the scheduler asks before each start.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from locks._events import log

from ..checks import Priority
from ..spec import CONTROL

INTERVAL_S = {Priority.FOREGROUND: 0.05, Priority.NORMAL: 0.5, Priority.BACKGROUND: 2.0}
"""Seconds between two starts of a class in one group while admission is slowed."""
_RAMP_S = {Priority.FOREGROUND: 0.005, Priority.NORMAL: 0.01, Priority.BACKGROUND: 0.025}
"""The same at the foot of a ramp."""


class Throttle:
    """How fast runs are started.

    Invariant: `why` is empty exactly while admission is not slowed.
    """

    def __init__(self) -> None:
        self.why = ""
        """Why admission is slowed, in words."""
        self.on_restore: Callable[[], object] = bool
        """Called when admission is at full speed again, to start what was held back."""
        self._last: dict[tuple[str, Priority], float] = {}
        self._ramp_ends = -math.inf
        self._ramp_s = 0.0

    def ramp(self, now: float, seconds: float) -> None:
        """Start slowly from now on, and ever faster, up to full speed in so many seconds.

        Everything that is overdue may start at once after a restart: without a ramp, that starves the event loop.
        """
        self._ramp_ends, self._ramp_s = now + seconds, seconds

    def end_ramp(self, now: float) -> None:
        """Forget a ramp that is over, also when nothing was started on it."""
        if now >= self._ramp_ends:
            self._ramp_s = 0.0

    def holds_back(self, group: str) -> bool:
        """Whether starts in a group are slowed."""
        return bool(self.why or self._ramp_s) and group != CONTROL

    @property
    def reason(self) -> str:
        """Why starts are slowed, in words; on a ramp too, when `why` is empty."""
        return self.why or "work that was overdue at a restart starts little by little"

    def slow(self, why: str) -> bool:
        """Slow down; returns whether that is new."""
        new = not self.why
        self.why = why
        if new:
            log("admission_slowed", level="warning", reason=why)
        return new

    def restore(self) -> bool:
        """Start at full speed again; returns whether that is new."""
        if not self.why:
            return False
        log("admission_restored", reason=self.why)
        self.why = ""
        if not self._ramp_s:
            self._last.clear()
        self.on_restore()
        return True

    def may_start_at(self, group: str, urgency: Priority, now: float) -> float:
        """When the next run of that class may start."""
        self.end_ramp(now)
        last = self._last.get((group, urgency))
        if last is None:
            return -math.inf
        interval = INTERVAL_S[urgency] if self.why else 0.0
        if self._ramp_s:
            interval = max(interval, _RAMP_S[urgency] * (self._ramp_ends - last) / self._ramp_s)
        return last + interval

    def started(self, group: str, urgency: Priority, now: float) -> None:
        """Note a start."""
        self._last[group, urgency] = now
