"""What a body emits, for whoever reads along: bounded, so that a slow reader never slows the run."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import anyio

from . import checks

if TYPE_CHECKING:
    from .run import Run


class EventStream:
    """One reader's buffer; the oldest event goes when it is full."""

    __slots__ = ("_buffer", "_more", "_run", "dropped")

    def __init__(self, run: Run, buffer: int) -> None:
        self._run = run
        self._buffer: deque[Any] = deque(maxlen=checks.whole("buffer", buffer, 1))
        self._more = anyio.Event()
        self.dropped = 0

    def put(self, event: Any) -> None:
        """Add an event. Never waits."""
        self.dropped += len(self._buffer) == self._buffer.maxlen
        self._buffer.append(event)
        self._more.set()

    def wake(self) -> None:
        """Have the reader look: the run has ended."""
        self._more.set()

    async def read(self) -> AsyncIterator[Any]:
        """Yield what is emitted until the run has ended; closing it takes the buffer off the run."""
        try:
            while True:
                while self._buffer:
                    yield self._buffer.popleft()
                if self._run.outcome is not None:
                    return
                self._more = anyio.Event()
                await self._more.wait()
        finally:
            self._run._forget_stream(self)
