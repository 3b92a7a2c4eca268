"""Pages that keep up with the process: server-sent events with the parts that have changed, once a second at most.

There is no task beside the readers. The reader that comes first after a second renders, and the others share what it
has made. A reader is sent the difference to what it was sent last, when it has read that: one that reads slowly misses
what lies between, one that does not read at all is dropped, and nothing is ever queued.

A stream ends by itself after some seconds, and the browser connects again: a server that shuts down waits for its
connections, and must not wait for a page that is open all day.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import anyio
import msgspec
from starlette.types import Receive, Scope, Send

EVERY_S = 1.0
MOST_READERS = 100
LASTS_S = 20.0
READ_WITHIN_S = 10.0
_AGAIN_MS = 1000

Parts = dict[str, str]
Make = Callable[[], Awaitable[Parts]]


class Feed:
    """The parts of one page, shared by its readers."""

    def __init__(self, make: Make) -> None:
        self.readers = 0
        self._make = make
        self._lock = anyio.Lock()
        self._due = -1.0
        self._parts: Parts = {}

    async def look(self) -> Parts:
        """The parts, at most a second old. A checkpoint."""
        async with self._lock:
            if anyio.current_time() >= self._due:
                self._parts = await self._make()
                self._due = anyio.current_time() + EVERY_S
            return self._parts


class Feeds:
    """The pages that are being read. On the event loop's thread."""

    def __init__(self) -> None:
        self._by_page: dict[Any, Feed] = {}

    @property
    def readers(self) -> int:
        """Browsers that are connected."""
        return sum(feed.readers for feed in self._by_page.values())

    async def serve(self, page: Any, make: Make, receive: Receive, send: Send, headers: dict[str, str]) -> None:
        """Send a page's changes until the reader goes, or reads nothing, or it is time to connect again. A checkpoint.

        Args:
            page: which page; readers of the same one share what is made.
            make: makes its parts.
        """
        feed = self._by_page.setdefault(page, Feed(make))
        feed.readers += 1
        try:
            with anyio.move_on_after(LASTS_S):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(_until_gone, receive, tasks.cancel_scope)
                    with suppress(OSError, TimeoutError):  # it has gone, or does not read
                        await _send_changes(feed, send, headers)
                    tasks.cancel_scope.cancel()
            with suppress(OSError), anyio.move_on_after(EVERY_S):
                await send({"type": "http.response.body", "body": b""})
        finally:
            feed.readers -= 1
            if not feed.readers:
                self._by_page.pop(page, None)


async def _send_changes(feed: Feed, send: Send, headers: dict[str, str]) -> None:
    told = {**headers, "Content-Type": "text/event-stream; charset=utf-8", "X-Accel-Buffering": "no"}
    raw = [(name.lower().encode(), value.encode()) for name, value in told.items()]
    sent: Parts = await feed.look()
    await send({"type": "http.response.start", "status": 200, "headers": raw})
    first = f"retry: {_AGAIN_MS}\n\n".encode() + b"".join(_event(key, text) for key, text in sent.items())
    await _send(send, first)
    while True:
        await anyio.sleep(EVERY_S)
        parts = await feed.look()
        changed = [_event(key, text) for key, text in parts.items() if sent.get(key) != text]
        sent = parts
        await _send(send, b"".join(changed) or b":\n\n")


async def _send(send: Send, body: bytes) -> None:
    with anyio.fail_after(READ_WITHIN_S):
        await send({"type": "http.response.body", "body": body, "more_body": True})


async def _until_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def _event(key: str, text: str) -> bytes:
    return b"event: part\ndata: " + msgspec.json.encode({"id": key, "html": text}) + b"\n\n"


def wants_stream(scope: Scope) -> bool:
    """Whether a request asks for the changes of a page, not for the page."""
    return any(name == b"accept" and b"text/event-stream" in value for name, value in scope["headers"])
