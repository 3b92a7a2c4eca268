"""A clock that stands still until an event loop moves it, and alarms that ring when it does: see `virtual.py`."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
import threading
import weakref
from collections.abc import Callable, Collection, Iterator

import anyio

from lanes import checks
from locks import _clock

from .errors import Stuck

START = 1000.0
"""The first instant: not 0, which is false and hides a missing origin."""

PATIENCE = 60.0
"""Real seconds for which something real may hold time still without being heard of."""

BUSY_LIMIT = 10_000
"""Rounds of the event loop without a pause, after which time creeps on although somebody is running."""

_RINGS_AT_ONCE = 10_000
_NEAR = 0.001
_ROUNDS_ON_ARRIVAL = 100


class LoopClock:
    """A `locks._clock.Clock` that stands still until it is moved. `now` and `alarm` may be called from any thread.

    Args:
        start: the first instant.
        silent: the names of threads whose alarms never ring.
    """

    def __init__(self, start: float = START, *, silent: Collection[str] = ()) -> None:
        self.threads_hold = True
        """Whether worker threads that somebody waits for hold time still."""
        self.busy_limit = BUSY_LIMIT
        self.patience = PATIENCE
        self.on_jump: Callable[[float], object] | None = None
        """Called before time jumps to a timer of the loop, with that instant: everything waits."""
        self.failure: BaseException | None = None
        """What an alarm's callback raised where it could not be raised further; the fixture does."""
        self._now = start
        self._silent = frozenset(silent)
        self._due: list[tuple[float, int, weakref.ref[VirtualAlarm]]] = []
        """A heap of when alarms ring, then of the order in which they were made. An entry whose alarm is gone, or due
        at another instant by now, is dropped once it comes to the front. Rejected: the earliest of a set of all alarms.
        Thousands of registries have one each, nearly all of them idle, and a loop asks in each of its rounds."""
        self._numbers = itertools.count()
        # Reentrant: a collection inside may run a finalizer that sets an alarm.
        self._mutex = threading.RLock()
        self._settling: list[Callable[[], object]] = []
        self._holds = 0
        self._threads = 0
        self._rounds = 0

    def __repr__(self) -> str:
        held = f"holds={self._holds} threads={self._threads}"
        return f"<{type(self).__name__} {self._now!r} alarms={len(self._due)} {held}>"

    def now(self) -> float:
        """The current instant; the same as `anyio.current_time()`."""
        return self._now

    def alarm(self, callback: _clock.Callback, thread: str = _clock.STEWARD) -> VirtualAlarm:
        """An alarm that rings inline when time reaches it, for as long as it is referenced."""
        return VirtualAlarm(self, callback, next(self._numbers), rings=thread not in self._silent)

    def advance(self, seconds: float) -> None:
        """Let time pass as if the caller blocked the loop: alarms ring at their instants, timers come late.

        Raises:
            InvalidLane: that is no duration from 0. No time has passed.
        """
        passed = checks.seconds("seconds", seconds, zero=True)
        self._rounds = 0
        self._move(self._now + passed)

    async def settle(self) -> None:
        """Return when every other task waits, at the same instant. A checkpoint."""
        settled = anyio.Event()
        self._settling.append(settled.set)
        await settled.wait()

    def spins(self) -> None:
        """Take note that a task runs without a pause, as code does that swallows its cancellation: time creeps on."""
        self._rounds = max(self._rounds, self.busy_limit)

    @contextlib.contextmanager
    def resting(self, over: threading.Event) -> Iterator[Resting]:
        """Inside, a worker thread that waits for `over` does not hold time still until it is woken."""
        resting = Resting(self, over)
        try:
            yield resting
        finally:
            resting.wake()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Inside, time stands still: something real is under way that the clock does not know of."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1

    # For the loops. Only one loop moves a clock.

    @property
    def holds(self) -> int:
        """How many hold time still."""
        return self._holds + (self._threads if self.threads_hold else 0)

    @contextlib.contextmanager
    def _thread(self, by: int = 1) -> Iterator[None]:
        # Both ends may be on any thread.
        self._count_threads(by)
        try:
            yield
        finally:
            self._count_threads(-by)

    def _count_threads(self, by: int) -> None:
        with self._mutex:
            self._threads += by

    def _next_alarm(self) -> VirtualAlarm | None:
        with self._mutex:  # or an alarm that another thread sets meanwhile would not count
            while self._due:
                due, _, ref = self._due[0]
                alarm = ref()
                if alarm is not None and alarm.due == due:
                    return alarm
                heapq.heappop(self._due)
            return None

    def _due_by(self, to: float) -> VirtualAlarm | None:
        alarm = self._next_alarm()
        return alarm if alarm is not None and alarm.due <= to else None

    def _next_instant(self, timer: float) -> float:
        alarm = self._next_alarm()
        return timer if alarm is None else min(timer, alarm.due)

    def _move(self, to: float) -> None:
        """Go to `to`, never back, ringing on the way what is due."""
        rings, at = 0, self._now
        while (alarm := self._due_by(to)) is not None:
            self._now = max(self._now, alarm.due)
            alarm.due = math.inf
            rings, at = (rings + 1, at) if self._now == at else (1, self._now)
            if rings > _RINGS_AT_ONCE:
                raise Stuck(f"virtual time: {alarm.callback!r} rings for ever at {at!r}")
            alarm.ring_by(alarm.callback(self._now))
        self._now = max(self._now, to)

    def _ring_due(self) -> None:
        """Ring what was set to an instant that is already here."""
        self._move(self._now)

    def _on_busy(self, timer: float) -> None:
        """The loop goes round and somebody can run. `timer`: when the loop's next timer is due."""
        self._rounds += 1
        if self._rounds > self.busy_limit and not self.holds:
            # Towards the next instant, and onto it from nearby: it may be a timer that the spinning body sets anew in
            # each round (a sleep that is cancelled at once), which in reality it never reaches.
            to = self._next_instant(timer)
            if to - self._now <= _NEAR:
                self._move(to)
                self._rounds = self.busy_limit - _ROUNDS_ON_ARRIVAL  # for those who waited for it
            elif to < math.inf:
                self._move(self._now + (to - self._now) / 8)

    def _on_idle(self, timer: float) -> None:
        """Nobody can run: jump."""
        self._rounds = 0
        if self._settling:
            settling, self._settling = self._settling, []
            for settled in settling:
                settled()
            return
        to = self._next_instant(timer)
        if to == math.inf:
            raise Stuck("virtual time: everything waits for ever")
        if self.on_jump is not None and timer <= to:
            self.on_jump(to)
        self._move(to)

    def _on_silence(self) -> Stuck:
        return Stuck(
            f"virtual time: {self._holds} blocks of held() and {self._threads} worker threads hold time still, and "
            f"nothing has happened for {self.patience:g} s of real time; for threads that hang on purpose, "
            f"virtual.threads_hold = False"
        )


class VirtualAlarm:
    """A `locks._clock.Alarm` of a `LoopClock`."""

    def __init__(self, clock: LoopClock, callback: _clock.Callback, number: int, *, rings: bool) -> None:
        self.clock = clock
        self.callback = callback
        self.number = number
        self.rings = rings
        self.due = math.inf
        self._ref = weakref.ref(self)

    def ring_by(self, at: float) -> None:
        """Ring at `at` unless due earlier; if that is now or past, when the running tasks pause."""
        with self.clock._mutex:
            if at < self.due:
                self.due = at
                if self.rings:
                    heapq.heappush(self.clock._due, (at, self.number, self._ref))


class Resting:
    """A worker thread that waits beside virtual time. Once woken it has work to do, and holds time still."""

    def __init__(self, clock: LoopClock, over: threading.Event) -> None:
        self._clock, self._over, self._rests = clock, over, True
        clock._count_threads(-1)

    def wake(self) -> None:
        """Have the thread go on. On the event loop's thread."""
        if self._rests:
            self._rests = False
            self._clock._count_threads(1)
            self._over.set()
