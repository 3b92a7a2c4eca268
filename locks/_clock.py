"""The seam for time: every clock reading of the three floors, and the thread that acts when the event loop cannot.

All instants in `locks` and `lanes` are seconds of one monotonic clock (`time.monotonic`), never of the wall and never
of an event loop: a worker thread and the steward must be able to compare them, and trio's loop clock has an origin of
its own. Code that arms a loop timer converts by difference.

Tests replace `clock` as a whole (`runtime.testing.virtual`): then time stands still until everything is idle, and
alarms ring inline when it jumps instead of on a thread.
"""

from __future__ import annotations

import math
import os
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
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
    """A thread that rings alarms, one after the other. What must not wait for another's callback has one of its own.

    `wake` may be called anywhere, also by a finalizer that the garbage collector calls on this very thread, between any
    two steps of it. So the mutex can be taken twice, the alarms are copied in one step, and the thread sleeps on a bell
    that keeps a ring which comes before it sleeps.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.reset()

    def reset(self) -> None:
        """Begin again, without a thread and without alarms."""
        self._mutex = threading.RLock()
        self._bell = threading.Lock()
        """Unlocked once for any number of rings; the sleeping thread locks it again by waking up."""
        self._alarms: dict[int, weakref.ref[_ThreadAlarm]] = {}
        self._thread: threading.Thread | None = None

    def wake(self, alarm: _ThreadAlarm, at: float) -> None:
        """Ring an alarm at `at`, unless it rings earlier."""
        with self._mutex:
            if at >= alarm.due:
                return
            alarm.due = at
            number = id(alarm)
            if number not in self._alarms:
                self._alarms[number] = weakref.ref(alarm, partial(_forget, self._alarms, number))
            if self._thread is None:
                thread = threading.Thread(target=self._ring_for_ever, name=self._name, daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    alarm.due = math.inf  # no thread to be had now; the next call tries again
                    return
                self._thread = thread
        with suppress(RuntimeError):  # it has rung already
            self._bell.release()

    def _ring_for_ever(self) -> None:
        while True:
            due = self._ring()
            if due > time.monotonic():
                self._bell.acquire(timeout=_wait_s(due))

    def _ring(self) -> float:
        """Ring what is due; returns the next instant. Nothing is kept alive by this thread while it sleeps."""
        with self._mutex:
            now = time.monotonic()
            alarms = [alarm for ref in list(self._alarms.values()) if (alarm := ref()) is not None]
            ringing = [alarm for alarm in alarms if alarm.due <= now]
            for alarm in ringing:
                alarm.due = math.inf
        for alarm in ringing:
            # The callback owns its errors; what it returns is when it wants to be called next.
            self.wake(alarm, alarm.callback(time.monotonic()))
        return min((alarm.due for alarm in alarms), default=math.inf)


def _forget(alarms: dict[int, weakref.ref[_ThreadAlarm]], number: int, _ref: object) -> None:
    alarms.pop(number, None)


def _wait_s(due: float) -> float:
    """Seconds to wait on a lock; -1 for ever."""
    return -1.0 if due == math.inf else max(0.0, min(due - time.monotonic(), threading.TIMEOUT_MAX))


class _ThreadAlarm:
    __slots__ = ("__weakref__", "_ringer", "callback", "due")

    def __init__(self, ringer: _Ringer, callback: Callback) -> None:
        self._ringer = ringer
        self.callback = callback
        self.due = math.inf  # written under the ringer's mutex only

    def ring_by(self, at: float) -> None:
        if at < self.due:  # an unlocked look is enough to skip: `due` only moves back to `inf` on the way to a new look
            self._ringer.wake(self, at)


clock: Clock = SystemClock()
