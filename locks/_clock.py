"""The seam for time: every clock reading of the three floors, and the thread that acts when the event loop cannot.

All instants in `locks` and `lanes` are seconds of one monotonic clock (`time.monotonic`), never of the wall and never
of an event loop: a worker thread and the steward must be able to compare them, and trio's loop clock has an origin of
its own. Code that arms a loop timer converts by difference.

Tests replace `clock` as a whole (`tests/virtual.py`): then time stands still until everything is idle, and alarms ring
inline when it jumps instead of on a thread.
"""

from __future__ import annotations

import math
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Protocol

STEWARD = "locks-steward"
"""The thread that ends leases; nothing of the host's may run on it."""

Callback = Callable[[float], float]
"""Called with the current instant when an alarm rings; returns the next instant to ring at (`math.inf`: none)."""


class Alarm(Protocol):
    """Something that rings once at an instant that can be moved forward."""

    def ring_by(self, at: float) -> None:
        """Ring at `at` unless already due to ring earlier. Cheap when nothing changes; callable from any thread."""


class Clock(Protocol):
    """What the floors need of time."""

    def now(self) -> float:
        """The current instant, in seconds."""

    def alarm(self, callback: Callback, thread: str = STEWARD) -> Alarm:
        """An alarm that calls `callback`, possibly on a thread of that name, for as long as the alarm is referenced."""


class SystemClock:
    """`time.monotonic`, and daemon threads that ring alarms: one per name and process, started by its first alarm."""

    def __init__(self) -> None:
        self.now = time.monotonic
        self._ringers: dict[str, _Ringer] = {}
        self._starting = threading.Lock()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)

    def alarm(self, callback: Callback, thread: str = STEWARD) -> Alarm:
        with self._starting:
            ringer = self._ringers.get(thread)
            if ringer is None:
                ringer = self._ringers[thread] = _Ringer(thread)
        return _ThreadAlarm(ringer, callback)

    def _after_fork(self) -> None:
        # Only the forking thread lives on in the child: the ringing threads are gone and may have held a lock.
        self._starting = threading.Lock()
        for ringer in self._ringers.values():
            ringer.reset()


class _Ringer:
    """A thread that rings alarms, one after the other. What must not wait for another's callback has one of its own."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.reset()

    def reset(self) -> None:
        """Begin anew, without a thread and without alarms."""
        self._changed = threading.Condition(threading.Lock())
        self._alarms: weakref.WeakSet[_ThreadAlarm] = weakref.WeakSet()
        self._thread: threading.Thread | None = None

    def wake(self, alarm: _ThreadAlarm, at: float) -> None:
        """Ring an alarm at `at`, unless it rings earlier."""
        with self._changed:
            if at >= alarm.due:
                return
            alarm.due = at
            self._alarms.add(alarm)
            if self._thread is None:
                thread = threading.Thread(target=self._ring_for_ever, name=self._name, daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    alarm.due = math.inf  # no thread to be had now; the next one who asks tries again
                    return
                self._thread = thread
            self._changed.notify()

    def _ring_for_ever(self) -> None:
        while True:
            with self._changed:
                now = time.monotonic()
                ringing = [alarm for alarm in self._alarms if alarm.due <= now]
                if not ringing:
                    due = min((alarm.due for alarm in self._alarms), default=math.inf)
                    self._changed.wait(None if due == math.inf else min(due - now, threading.TIMEOUT_MAX))
                    continue
                for alarm in ringing:
                    alarm.due = math.inf
            for alarm in ringing:
                # The callback owns its errors; what it returns is when it wants to be called next.
                self.wake(alarm, alarm.callback(time.monotonic()))
            del alarm, ringing


class _ThreadAlarm:
    __slots__ = ("__weakref__", "_ringer", "callback", "due")

    def __init__(self, ringer: _Ringer, callback: Callback) -> None:
        self._ringer = ringer
        self.callback = callback
        self.due = math.inf  # written under the ringer's condition only

    def ring_by(self, at: float) -> None:
        if at < self.due:  # an unlocked look is enough to skip: `due` only moves back to `inf` on the way to a new look
            self._ringer.wake(self, at)


clock: Clock = SystemClock()
