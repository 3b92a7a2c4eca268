"""Worker threads of one part alone: those that a program shares may all hang in its tools."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import anyio
from anyio import to_thread

T = TypeVar("T")


class Threads:
    """At most so many at a time."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._limiter: anyio.CapacityLimiter | None = None

    async def run(self, call: Callable[[], T]) -> T:
        """Call it on a thread. A checkpoint; cancelled, the call goes on by itself."""
        if self._limiter is None:  # not before: it belongs to the event loop that serves
            self._limiter = anyio.CapacityLimiter(self._most)
        return await to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._limiter)
