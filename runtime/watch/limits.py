"""What the process may use, and what happens when it uses more: a warning, then slow admission, then a restart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lanes.checks import seconds, whole
from lanes.queues.throttle import Throttle
from locks._events import log

from .resources import Usage

_NEAR = 0.8
"""Of a limit: there it is warned of, once, until the figure has been below `_FAR` of it."""
_FAR = 0.7
_WHAT = {"descriptors": "descriptors are open", "threads": "threads exist", "abandoned": "bodies are abandoned"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the process may use. At four fifths of a limit a line is logged; past it, runs are started slowly.

    Raises:
        InvalidLane: a field is not allowed.
    """

    lag_s: float = 1.0
    """Seconds that the event loop may be late."""
    memory: int | None = None
    """Bytes that the process may have resident; `None` for any number."""
    descriptors: int | None = None
    """Files and sockets that it may have open."""
    threads: int | None = None
    """Threads that it may have."""
    abandoned: int = 10
    """Bodies that may ignore their cancellation and still run; with more, `statistics().healthy` is false."""
    restart_after_s: float | None = None
    """Seconds past any limit but `lag_s`, without a pause, after which the supervisor restarts; `None` for never."""
    dead_s: float = 60.0
    """Seconds that the event loop may be blocked before the process exits; only with `on_zombie="exit"`."""

    def __post_init__(self) -> None:
        seconds("limits.lag_s", self.lag_s)
        seconds("limits.dead_s", self.dead_s)
        if self.restart_after_s is not None:
            seconds("limits.restart_after_s", self.restart_after_s, zero=True)
        for name in ("memory", "descriptors", "threads"):
            if getattr(self, name) is not None:
                whole(f"limits.{name}", getattr(self, name), 1)
        whole("limits.abandoned", self.abandoned, 0)


class Keeper:
    """Holds the process to its limits. On the event loop's thread.

    Invariant: `_since` is when the figures passed a limit and have not come back since; `None` while they are within.
    """

    def __init__(self, limits: Limits, throttle: Throttle, restart: Callable[[str], object]) -> None:
        self.limits = limits
        self._throttle = throttle
        self._restart = restart
        self._near: set[str] = set()
        self._since: float | None = None
        self._asked = False

    def late(self, lag_s: float) -> bool:
        """The event loop was late; returns whether that was too much."""
        if lag_s <= self.limits.lag_s:
            return False
        self._throttle.slow(f"the event loop was {lag_s:.2f} s late; allowed: {self.limits.lag_s:g} s")
        return True

    def look(self, now: float, usage: Usage, abandoned: int, worst_lag_s: float) -> None:
        """Compare the figures with the limits, and do what follows.

        Args:
            worst_lag_s: of the last second.
        """
        limits = self.limits
        passed = [
            self._compare("memory", usage.memory, limits.memory),
            self._compare("descriptors", usage.descriptors, limits.descriptors),
            self._compare("threads", usage.threads, limits.threads),
        ]
        if limits.restart_after_s is not None:
            passed.append(self._compare("abandoned", abandoned, limits.abandoned))
        why = "; ".join(filter(None, passed))
        if why:
            self._passed(now, why)
            return
        self._since, self._asked = None, False
        if worst_lag_s <= limits.lag_s / 2:
            self._throttle.restore()

    def _passed(self, now: float, why: str) -> None:
        if self._since is None:
            self._since = now
            log("limit_passed", level="warning", reason=why)
        self._throttle.slow(why)
        after = self.limits.restart_after_s
        if after is not None and now - self._since >= after and not self._asked:
            self._asked = True
            self._restart(why)

    def _compare(self, name: str, figure: int, limit: int | None) -> str:
        """What there is too much of, in words; empty when there is not."""
        if limit is None:
            return ""
        allowed = f"{limit / 1e6:.0f} MB" if name == "memory" else f"{limit}"
        what = f"{_words(name, figure)}; allowed: {allowed}"
        if figure < _FAR * limit:
            self._near.discard(name)
        elif _NEAR * limit <= figure <= limit and limit and name not in self._near:
            self._near.add(name)
            log("limit_near", level="warning", limit=name, reason=what)
        return what if figure > limit else ""


def _words(name: str, figure: int) -> str:
    return f"{figure / 1e6:.0f} MB are resident" if name == "memory" else f"{figure} {_WHAT[name]}"
