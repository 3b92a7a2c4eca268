"""What the process uses, and how that grows: memory, descriptors, threads."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

_EVERY_S = 10.0
_KEPT = 360
"""Looks that growth is taken over: an hour."""
_LEAST = 6


@dataclass(frozen=True, slots=True)
class Usage:
    """What the process uses at an instant; 0 for what cannot be found out."""

    memory: int
    """Bytes that are resident."""
    descriptors: int
    """Open files and sockets."""
    threads: int


@dataclass(frozen=True, slots=True)
class ProcessStatistics:
    """What the process uses, and its growth: the slope of a line through the last hour, 0 in the first minute."""

    memory: int
    """Bytes that are resident."""
    descriptors: int
    """Open files and sockets."""
    threads: int
    memory_per_hour: float
    """Bytes that are added in an hour."""
    descriptors_per_hour: float
    threads_per_hour: float


class Resources:
    """Looks at this process. To be used by one thread at a time; `statistics` by any."""

    def __init__(self) -> None:
        import psutil  # noqa: PLC0415 -- slow to import, and only a supervisor that has started looks

        self._failed: tuple[type[Exception], ...] = (OSError, psutil.Error)
        try:
            self._process: Any = psutil.Process()
        except self._failed:  # a Linux without `/proc`: then all figures are unknown, and 0
            self._process = None
        self._count = getattr(self._process, "num_fds", None) or getattr(self._process, "num_handles", None)
        self._history: deque[tuple[float, Usage]] = deque(maxlen=_KEPT)
        self._next = 0.0
        self.now = Usage(0, 0, 0)

    def look(self, now: float) -> Usage:
        """What it uses now. Reads files of the system; never raises."""
        usage = Usage(
            memory=self._ask(lambda: self._process.memory_info().rss),
            descriptors=self._ask(self._count),
            threads=self._ask(getattr(self._process, "num_threads", None)),
        )
        self.now = usage
        if now >= self._next:
            self._next = now + _EVERY_S
            self._history.append((now, usage))
        return usage

    def _ask(self, question: Any) -> int:
        try:
            return int(question()) if self._process is not None and question is not None else 0
        except self._failed:
            return 0  # no descriptor is left to ask with, for one; the watchdog must go on

    def history(self) -> tuple[Usage, ...]:
        """What it has used in the last hour, oldest first."""
        return tuple(usage for _, usage in list(self._history))

    def statistics(self) -> ProcessStatistics:
        """The last look, and the growth."""
        history, usage = list(self._history), self.now
        per_hour = {
            name: _slope([(at, getattr(one, name)) for at, one in history]) * 3600.0
            for name in ("memory", "descriptors", "threads")
        }
        return ProcessStatistics(
            usage.memory,
            usage.descriptors,
            usage.threads,
            memory_per_hour=per_hour["memory"],
            descriptors_per_hour=per_hour["descriptors"],
            threads_per_hour=per_hour["threads"],
        )


def _slope(points: list[tuple[float, int]]) -> float:
    """Least squares, per second."""
    points = points[len(points) // 10 :]  # the first looks are warming up
    if len(points) < _LEAST:
        return 0.0
    middle_at = sum(at for at, _ in points) / len(points)
    middle = sum(value for _, value in points) / len(points)
    spread = sum((at - middle_at) ** 2 for at, _ in points)
    return sum((at - middle_at) * (value - middle) for at, value in points) / spread if spread else 0.0
