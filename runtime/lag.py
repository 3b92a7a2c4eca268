"""How late the event loop is, and whether that, or memory, is reason to start less.

A task sleeps for a known time and notes by how much more it slept.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import islice

import anyio
import psutil

from lanes.pace import Pace
from locks import _clock

INTERVAL_S = 0.02
KEPT = 3000
_LOOKS = 50
"""Samples between two looks at memory, and at whether things are well again."""


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Median, 99th percentile and maximum of some figures; 0 when there are none."""

    p50: float
    p99: float
    max: float


def quantiles(values: list[float]) -> Quantiles:
    """The three figures that are reported everywhere."""
    if not values:
        return Quantiles(0.0, 0.0, 0.0)
    ordered = sorted(values)
    last = len(ordered) - 1
    return Quantiles(ordered[last // 2], ordered[round(last * 0.99)], ordered[last])


@dataclass(frozen=True, slots=True)
class Limits:
    """Past these, runs are started slowly."""

    lag_s: float
    """How late the event loop may be."""
    memory: int | None
    """Bytes that the process may have resident; `None` for any number."""


class LagMeter:
    """Measures the loop's lag every 20 ms; keeps the last minute, in seconds. Tells `pace` when a limit is passed."""

    def __init__(self, pace: Pace, limits: Limits) -> None:
        self.samples: deque[float] = deque(maxlen=KEPT)
        self._pace = pace
        self._limits = limits
        self._process = psutil.Process() if limits.memory is not None else None

    async def serve(self) -> None:
        """Measure until cancelled."""
        number = 0
        while True:
            before = _clock.clock.now()
            await anyio.sleep(INTERVAL_S)
            lag = max(0.0, _clock.clock.now() - before - INTERVAL_S)
            self.samples.append(lag)
            number += 1
            if lag > self._limits.lag_s:
                self._pace.slow(f"the event loop was {lag:.2f} s late; allowed: {self._limits.lag_s:g} s")
                number = 0  # well again is a whole window without it
            elif number % _LOOKS == 0:
                self._look()

    def _look(self) -> None:
        resident = self._resident()
        limit = self._limits.memory
        if limit is not None and resident > limit:
            self._pace.slow(f"{resident / 1e6:.0f} MB are resident; allowed: {limit / 1e6:.0f} MB")
        elif max(islice(reversed(self.samples), _LOOKS), default=0.0) <= self._limits.lag_s / 2:
            self._pace.restore()

    def _resident(self) -> int:
        if self._process is None:
            return 0
        try:
            return self._process.memory_info().rss
        except (OSError, psutil.Error):
            return 0  # no descriptor is left to ask with; that must not end the supervisor, whose task this is

    def quantiles(self) -> Quantiles:
        """Over the last minute, in seconds."""
        return quantiles(list(self.samples))
