"""The events that a body emits, as one reader gets them: bounded, so that a slow reader never slows the run."""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

import anyio
from anyio.lowlevel import checkpoint

from . import checks


class Source(Protocol):
    """What a stream needs of the run whose events it has."""

    @property
    def outcome(self) -> object | None:
        """How the run ended; `None` until then."""

    def _forget_stream(self, stream: EventStream) -> None:
        """Hand no more events to a stream."""


class EventStream:
    """What one reader has of a run's events: an async iterator that ends with the run. Made by `run.events()`.

    The oldest event goes when the buffer is full (`dropped` counts them). The run has no hold on it: a reader that
    leaves early need not close it.
    """

    __slots__ = ("__weakref__", "_buffer", "_closed", "_more", "_run", "dropped")

    def __init__(self, run: Source, buffer: int) -> None:
        self._run = run
        self._buffer: deque[Any] = deque(maxlen=checks.whole("buffer", buffer, 1))
        self._more: anyio.Event | None = None
        self._closed = False
        self.dropped = 0
        """How many events this reader has missed."""

    def __repr__(self) -> str:
        return f"<EventStream of {self._run!r}: {len(self._buffer)} unread, {self.dropped} missed>"

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> Any:
        """The next event, until the run has ended and all is read. A checkpoint; cancelled, it has taken none."""
        await checkpoint()
        while not self._buffer:
            if self._closed or self._run.outcome is not None:
                raise StopAsyncIteration
            if self._more is None:
                self._more = anyio.Event()
            await self._more.wait()
        return self._buffer.popleft()

    def take(self) -> list[Any]:
        """What is unread, without waiting."""
        taken = [*self._buffer]
        self._buffer.clear()
        return taken

    def close(self) -> None:
        """Stop reading; unread events are dropped."""
        self._closed = True
        self._buffer.clear()
        self._run._forget_stream(self)
        self.wake()

    async def aclose(self) -> None:
        """As `close`, for `contextlib.aclosing`. A checkpoint."""
        self.close()
        await checkpoint()

    @property
    def unread(self) -> int:
        """How many events wait for the reader."""
        return len(self._buffer)

    # For the run

    def put(self, event: Any) -> None:
        """Add an event. Never waits."""
        self.dropped += len(self._buffer) == self._buffer.maxlen
        self._buffer.append(event)
        self.wake()

    def wake(self) -> None:
        """Wake the reader: there is another event, or the run has ended."""
        if self._more is not None:
            self._more.set()
            self._more = None
