"""Instants at which the scheduler has something to do, kept in one heap and served by one task."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from itertools import count
from typing import Any

import anyio

from locks import _clock, _effects
from locks._events import described, log


class Timer:
    """One instant. Cancelled, it keeps nothing alive."""

    __slots__ = ("args", "call", "due")

    def __init__(self, due: float, call: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.due = due
        self.call: Callable[..., Any] | None = call
        self.args = args


class Timers:
    """Calls synchronous functions at instants of the floors' clock.

    Invariant: `_dead` is the number of cancelled timers in `_heap`, which never outnumber the live ones for long, so a
    timer that is always cancelled long before it is due costs no memory.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = count()
        self._dead = 0
        self._wakes_at = -math.inf  # when the serving task looks next; -inf while it is looking
        self._earlier = anyio.Event()

    def __len__(self) -> int:
        return len(self._heap) - self._dead

    def at(self, due: float, call: Callable[..., Any], *args: Any) -> Timer:
        """Have `call(*args)` called at `due`, or soon after."""
        timer = Timer(due, call, args)
        heapq.heappush(self._heap, (due, next(self._order), timer))
        if due < self._wakes_at:
            self._earlier.set()
        return timer

    def cancel(self, timer: Timer | None) -> None:
        """Forget a timer; no effect on a timer that has rung already."""
        if timer is None or timer.call is None:
            return
        timer.call, timer.args = None, ()
        self._dead += 1
        if self._dead > 64 and self._dead * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].call is not None]
            heapq.heapify(self._heap)
            self._dead = 0

    def ring(self) -> float:
        """Call everything that is due; returns the next instant."""
        while self._heap:
            due, _, timer = self._heap[0]
            if timer.call is not None and due > _clock.clock.now():
                return due
            heapq.heappop(self._heap)
            if timer.call is None:
                self._dead -= 1
                continue
            call, args, timer.call, timer.args = timer.call, timer.args, None, ()
            _ring(call, args)
        return math.inf

    async def serve(self) -> None:
        """Ring until cancelled."""
        while True:
            _effects.recover()
            self._earlier = anyio.Event()
            self._wakes_at = -math.inf
            due = self.ring()
            self._wakes_at = due
            if due == math.inf:
                await self._earlier.wait()
            else:
                with anyio.CancelScope(deadline=anyio.current_time() + (due - _clock.clock.now())):
                    await self._earlier.wait()


@_effects.change
def _ring(call: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        call(*args)
    except KeyboardInterrupt:
        raise  # the process is to end
    except BaseException as error:  # a `SystemExit` too: the timers bound everything that runs
        log("timer_failed", level="error", error=described(error))
