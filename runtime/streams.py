"""The events of whatever body answers an accepted message, in this process or in another one with the same sessions.

In this process they come from the run. From another one, the listener asks for them (`Commands`), one page after the
other: each answer has what was emitted since the last one, and comes as soon as there is something. So nothing of it is
written while nobody listens, and a listener that is slow, or gone, costs the process that emits at most a buffer.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import anyio
import msgspec
from anyio.lowlevel import checkpoint

from lanes.checks import whole
from lanes.events import EventStream
from locks import _clock

if TYPE_CHECKING:
    from .inbox.door import Door
    from .postgres.commands import Commands, Told

MOST_BUFFERED = 10_000
MOST_EVENT_BYTES = 1 << 20
"""A larger event is missed by listeners in other processes, as is one that has no JSON; and about so much is a page."""
_SOON_S, _LOOK_S = 0.002, 0.05
_FOR_RUN_S = 1.0
_FOR_EVENT_S = 5.0
"""For how long an answer may be held back until there is something to say."""
_MOST_LISTENERS = 1_000
_UNUSED_S = 60.0


class MessageEvents:
    """What the body that answers a message emits from now on: an async iterator that ends with the message.

    Made by `Everywhere.events`. On the event loop's thread. `dropped` counts the events that this reader has missed
    since it fell behind, or that could not be brought here.
    """

    def __init__(self, door: Door, commands: Commands | None, message: int, buffer: int) -> None:
        self._door, self._commands, self._message = door, commands, message
        self._most = min(whole("buffer", buffer, 1, most=None), MOST_BUFFERED)
        self._key = secrets.randbits(62)
        self._unread: deque[Any] = deque()
        run = door.in_memory.get(message)
        self._here: EventStream | None = run.events(self._most) if run is not None else None
        self._token: int | None = None
        """Of the page that was asked for: kept, so that a reader that is cancelled meanwhile misses nothing."""
        self._asked: Told | None = None
        self._node = 0
        """The node that has a buffer for this reader."""
        self._rest: Literal["", "asked", "read"] = ""
        """The message has ended: whether that node was asked for what it has still in the buffer."""
        self._pause_s = _SOON_S
        self._dropped = 0
        self._over = False

    def __aiter__(self) -> MessageEvents:
        return self

    @property
    def dropped(self) -> int:
        """How many events this reader has missed."""
        return self._dropped + (self._here.dropped if self._here is not None else 0)

    async def __anext__(self) -> Any:
        """The next event, until the message has ended and all is read. A checkpoint; cancelled, it has taken none.

        Raises:
            StoreDown, InboxDown: the events cannot be had now; asking again goes on.
        """
        await checkpoint()
        while True:
            if self._unread:
                return self._unread.popleft()
            if self._over:
                raise StopAsyncIteration
            if self._here is not None:
                try:
                    return await self._here.__anext__()
                except StopAsyncIteration:
                    self._leave_here()
            await self._look()

    async def aclose(self) -> None:
        """Stop reading; unread events are dropped. A checkpoint."""
        self._over = True
        self._unread.clear()
        self._leave_here()
        if self._commands is not None:
            self._answered()
            if self._node:
                self._commands.tell_only(self._node, "events", {"key": self._key, "over": True})
        await checkpoint()

    def _leave_here(self) -> None:
        if self._here is not None:
            self._dropped += self._here.dropped
            self._here.close()
            self._here = None

    async def _look(self) -> None:
        """Find out where the message is, and wait for what it emits. A checkpoint."""
        run = self._door.in_memory.get(self._message)
        if run is not None and run.outcome is None and self._token is None:
            self._here, self._pause_s = run.events(self._most), _SOON_S
            return
        if self._token is None:
            await self._find()
        if self._token is None or self._commands is None:
            return
        if self._asked is None:
            which = {"key": self._key, "message": self._message, "buffer": self._most, "rest": bool(self._rest)}
            self._asked = await self._commands.tell_one(self._node, "events", which, self._token)
        found, gone = await self._commands.answers(self._asked)
        self._answered()
        if gone:
            self._node = 0
        for page in found:
            self._dropped += page["dropped"]
            self._unread += page["events"]
        if self._rest and not self._unread:
            self._rest = "read"

    async def _find(self) -> None:
        is_open, node = await self._where()
        if not is_open and self._node and self._commands is not None and self._rest != "read":
            self._rest, self._token = "asked", secrets.randbits(62)
        elif not is_open:
            self._over = True
        elif node is None or self._commands is None or node == self._commands.node:
            await anyio.sleep(self._pause_s)  # it waits, or its end is being written
            self._pause_s = min(2 * self._pause_s, _LOOK_S)
        else:
            self._node, self._token = node, secrets.randbits(62)

    async def _where(self) -> tuple[bool, int | None]:
        """Whether the message has not ended, and which node has it."""
        if self._commands is not None:
            return await self._commands.where(self._message)
        row = await self._door.store.find(self._message)
        return row is not None and row.state.open, None

    def _answered(self) -> None:
        if self._token is not None and self._commands is not None:
            self._commands.forget(self._token)
            self._token = self._asked = None


class Emitting:
    """The buffers of listeners in other processes. On the event loop's thread."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._streams: dict[int, tuple[EventStream, float]] = {}
        """By listener; each with the instant in which it was last asked for."""

    async def page(self, which: Mapping[str, Any], _upto: int) -> dict[str, Any]:
        """What was emitted since the last page, as soon as there is something, or nothing for a while. A checkpoint."""
        key = which["key"]
        self._forget_unused()
        if which.get("over"):
            self._streams.pop(key, None)
            return {}
        stream = await self._stream_for(key, which)
        page, dropped, size = list[msgspec.Raw](), 0, 0
        if stream is not None:
            missed = stream.dropped
            with anyio.move_on_after(_FOR_EVENT_S):
                try:
                    while size < MOST_EVENT_BYTES:
                        event = _as_json(await stream.__anext__())
                        page += [] if event is None else [event]
                        dropped += event is None
                        size += 0 if event is None else len(event)
                        if not stream.unread:
                            break
                except StopAsyncIteration:
                    self._streams.pop(key, None)
            dropped += stream.dropped - missed
        return {"events": page, "dropped": dropped}

    async def _stream_for(self, key: int, which: Mapping[str, Any]) -> EventStream | None:
        known, now = self._streams.pop(key, None), _clock.clock.now()
        stream = known[0] if known is not None else None
        while stream is None:
            run = self._door.in_memory.get(which["message"])
            if run is not None and run.outcome is None:
                stream = run.events(which["buffer"])
            elif which.get("rest") or _clock.clock.now() - now >= _FOR_RUN_S:
                return None
            else:
                await anyio.sleep(_LOOK_S)
        self._streams[key] = stream, _clock.clock.now()
        return stream

    def _forget_unused(self) -> None:
        """Forget the listeners that ask no more: those of processes that are gone."""
        now = _clock.clock.now()
        for key, (_, at) in list(self._streams.items()):  # the oldest first
            if now - at < _UNUSED_S and len(self._streams) < _MOST_LISTENERS:
                break
            del self._streams[key]


def _as_json(event: Any) -> msgspec.Raw | None:
    try:
        data = msgspec.json.encode(event)
    except (TypeError, ValueError, RecursionError):
        return None
    return msgspec.Raw(data) if len(data) <= MOST_EVENT_BYTES else None
