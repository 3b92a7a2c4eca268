"""The events of a trace in memory, until they are fetched."""

from __future__ import annotations

import json
from collections import deque
from typing import Any

import msgspec

MOST_EVENTS = 20_000
"""Events that may wait to be fetched."""
_A_PART = 500


class EventBuffer:
    """Takes events, and gives them away in parts: what a viewer reads, when they are put into one array."""

    path = "memory"

    def __init__(self) -> None:
        self.error = ""
        """Why no more is taken, once that is so."""
        self.closed = False
        self._events: deque[dict[str, Any]] = deque()

    @property
    def over(self) -> bool:
        """Whether no event is left, and none will come."""
        return not self._events and (self.closed or bool(self.error))

    def put(self, event: dict[str, Any]) -> None:
        """Take an event, unless it has come to its end. Never waits, never raises; callable from any thread."""
        if self.error or self.closed:
            return
        if len(self._events) >= MOST_EVENTS:
            self.error = f"{MOST_EVENTS} events wait to be fetched: too many come, or they are fetched too slowly"
            return
        self._events.append(event)

    def take(self) -> bytes:
        """The next events, as a JSON array."""
        part = [self._events.popleft() for _ in range(min(_A_PART, len(self._events)))]
        try:
            return msgspec.json.encode(part)
        except UnicodeEncodeError:  # half of a surrogate pair: this one escapes it, and takes ten times as long
            return json.dumps(part, separators=(",", ":")).encode()

    def close(self) -> None:
        """Take no more; what was taken can still be fetched."""
        self.closed = True
