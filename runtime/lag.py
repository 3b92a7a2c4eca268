"""How late the event loop is: a task that sleeps for a known time and notes by how much more it slept."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import anyio

from locks import _clock

INTERVAL_S = 0.02
KEPT = 3000


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


class LagMeter:
    """Measures the loop's lag every 20 ms; keeps the last minute, in seconds."""

    def __init__(self) -> None:
        self.samples: deque[float] = deque(maxlen=KEPT)

    async def serve(self) -> None:
        """Measure until cancelled."""
        while True:
            before = _clock.clock.now()
            await anyio.sleep(INTERVAL_S)
            self.samples.append(max(0.0, _clock.clock.now() - before - INTERVAL_S))

    def quantiles(self) -> Quantiles:
        """Over the last minute, in seconds."""
        return quantiles(list(self.samples))
