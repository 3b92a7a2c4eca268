"""The messages that are posted to a run while it is under way (`when_busy="steer"`).

Each message is a run of its own, queued until the body reads it: then the two runs share an outcome. When the body has
ended, its unread messages are queued first, so no message that was posted is lost, read or not.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol, Self

import anyio

from ..message import Message


class Letter(Protocol):
    """A run whose message is in an inbox."""

    messages: list[Message] | None

    def was_read(self) -> None:
        """Take note that the body has read the message, and will answer it."""

    async def kept(self) -> None:
        """Wait until that is kept on disk, where the message is."""


class Inbox:
    """The messages that came for a run since it began, in order. On the event loop's thread; for the run's own body.

    A run that was asked to end reads nothing more: unread messages are for the next run.
    """

    __slots__ = ("_closed", "_more", "_unread")

    def __init__(self) -> None:
        self._unread: OrderedDict[Letter, None] = OrderedDict()
        self._more: anyio.Event | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<Inbox: {len(self._unread)} unread{', closed' if self._closed else ''}>"

    def __len__(self) -> int:
        """How many messages can be read now."""
        return 0 if self._closed else len(self._unread)

    def receive_nowait(self) -> Message:
        """The next message.

        Raises:
            anyio.WouldBlock: there is none now.
            anyio.EndOfStream: the run has ended, or was asked to.
        """
        return self._next()[1]

    def _next(self) -> tuple[Letter, Message]:
        if self._closed:
            raise anyio.EndOfStream
        if not self._unread:
            raise anyio.WouldBlock
        letter, _ = self._unread.popitem(last=False)
        assert letter.messages is not None
        message = letter.messages[0]
        letter.was_read()
        return letter, message

    async def receive(self) -> Message:
        """Wait for the next message. A checkpoint; cancelled, it has taken none.

        A message of a durable inbox is marked as started on disk before it is returned. (`receive_nowait` and `take`
        cannot wait for that; after a crash within the few milliseconds that it takes, the message is answered anew.)

        Raises:
            anyio.EndOfStream: the run was asked to end.
        """
        await anyio.lowlevel.checkpoint()
        while True:
            try:
                letter, message = self._next()
            except anyio.WouldBlock:
                if self._more is None:
                    self._more = anyio.Event()
                await self._more.wait()
            else:
                await letter.kept()
                return message

    def take(self) -> list[Message]:
        """All unread messages, which may be none. Never waits."""
        return [] if self._closed else [self.receive_nowait() for _ in range(len(self._unread))]

    def __aiter__(self) -> Self:
        """Each message as it comes, until the run is asked to end."""
        return self

    async def __anext__(self) -> Message:
        # No generator: the garbage collector complains about a generator that a `break` has left unfinished.
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    # For the scheduler

    def put(self, letter: Letter) -> None:
        """Add a message, by its run."""
        self._unread[letter] = None
        self._wake()

    def discard(self, letter: Letter) -> None:
        """Take back a message that has not been read."""
        self._unread.pop(letter, None)

    def close(self) -> list[Letter]:
        """Refuse all further reading; returns what was not read, in order."""
        self._closed = True
        left, self._unread = list(self._unread), OrderedDict()
        self._wake()
        return left

    def shut(self) -> None:
        """Refuse all further reading; what is unread stays for `close`."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        if self._more is not None:
            self._more.set()
            self._more = None
