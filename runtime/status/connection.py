"""One connection of the status socket, and the question that it has asked."""

from __future__ import annotations

import selectors
import socket
import threading
import time

from . import protocol

IDLE_S = 10.0
"""What a client gets to read an answer and to ask again."""


class Asked:
    """A question that the loop is to answer."""

    __slots__ = ("_claim", "answer", "at", "client", "question")

    def __init__(self, question: protocol.Question, client: Client) -> None:
        self.question = question
        self.client = client
        self.at = time.monotonic()
        self.answer: protocol.Answer | None = None
        self._claim = threading.Lock()

    def claim(self) -> bool:
        """Whether the caller is to answer: true for the first call only."""
        return self._claim.acquire(blocking=False)


class Client:
    """One connection. Belongs to the server's thread.

    Invariant: `asked` is set, or `unsent` is not empty, or it may ask: one answer at a time, so nothing piles up.
    """

    def __init__(self, connection: socket.socket, peer: str) -> None:
        self.connection = connection
        self.peer = peer
        self.received = bytearray()
        self.unsent = memoryview(b"")
        self.asked: Asked | None = None
        self.at_end = False
        """Whether it will send nothing more."""
        self.last = False
        """Whether it is closed once what is unsent is sent."""
        self.due = time.monotonic() + IDLE_S

    @property
    def is_idle(self) -> bool:
        """Whether it owes the next question."""
        return self.asked is None and not self.unsent

    @property
    def is_over(self) -> bool:
        """Whether nothing more can come of it."""
        return self.is_idle and (self.last or (self.at_end and not self.received))

    @property
    def wants(self) -> int:
        """What to wait for."""
        if self.unsent:
            return selectors.EVENT_WRITE
        return selectors.EVENT_READ if self.is_idle and not self.at_end else 0

    def line(self) -> bytes | None:
        """The next line; the last one may lack its end."""
        end = self.received.find(b"\n")
        if end < 0 and not (self.at_end and self.received):
            return None
        found = bytes(self.received[:end] if end >= 0 else self.received)
        del self.received[: end + 1 if end >= 0 else len(self.received)]
        return found

    def reply(self, answer: protocol.Answer) -> None:
        """Answer, and give it time to read that."""
        self.asked = None
        self.unsent = memoryview(protocol.encoded(answer))
        self.due = time.monotonic() + IDLE_S
