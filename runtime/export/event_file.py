"""A file with a JSON array that grows: whole events, written by a thread of its own."""

from __future__ import annotations

import json
import os
import threading
from collections import deque
from contextlib import suppress
from typing import Any

from locks import _os
from locks._events import log

_MOST_EVENTS = 20_000
"""Events that may wait to be written."""
_CHUNK = 500
_PERIOD_S = 0.25
_PATIENCE_S = 5.0
"""How long the end waits for a disk."""
_FLAGS = (
    os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | _os.O_BINARY | _os.O_CLOEXEC | _os.O_NOCTTY | _os.O_NONBLOCK
)


class EventFile:
    """A file with a JSON array, to which a thread of its own adds: whole events, or none.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.error = ""
        """Why no more is written, once that is so."""
        self._events: deque[dict[str, Any]] = deque()
        self._more, self._closing = threading.Event(), threading.Event()
        self._fd = _os.open(path, _FLAGS, 0o666)  # without blocking: a pipe without a reader is refused, not waited for
        self._whole = 0
        try:
            os.set_blocking(self._fd, True)
            self._write(b"[")
        except BaseException:
            _os.close(self._fd)
            raise
        self._separator = b"\n"
        self._thread = threading.Thread(target=self._serve, name="lanes-trace", daemon=True)
        self._thread.start()

    def put(self, event: dict[str, Any]) -> None:
        """Add an event, unless the file has come to its end. Never waits, never raises; callable from any thread."""
        if self.error or self._closing.is_set():
            return
        if len(self._events) >= _MOST_EVENTS:
            self._stop(f"{_MOST_EVENTS} events wait to be written: the disk is too slow")
            return
        self._events.append(event)
        if not self._more.is_set():
            self._more.set()

    def close(self) -> None:
        """Write the rest, and the end of the array."""
        self._closing.set()
        self._more.set()
        self._thread.join(_PATIENCE_S)
        if self._thread.is_alive():
            self._stop(f"the disk does not answer within {_PATIENCE_S:g} s")

    def _serve(self) -> None:
        """A thread: write what comes, a few times in a second."""
        try:
            while self._events or not self._closing.is_set():
                self._more.wait()
                self._more.clear()
                self._write_all()
                self._closing.wait(_PERIOD_S)
            self._write(b"\n]\n")
        except OSError as error:
            self._stop(error.strerror or str(error))
            self._events.clear()
            with suppress(OSError):
                _os.ftruncate(self._fd, self._whole)  # to the last whole event; what is no plain file has no such end
                self._write(b"\n]\n")
        finally:
            with suppress(OSError):
                _os.close(self._fd)

    def _write_all(self) -> None:
        while self._events:
            data = bytearray()
            for _ in range(min(_CHUNK, len(self._events))):
                data += self._separator + json.dumps(self._events.popleft(), separators=(",", ":")).encode()
                self._separator = b",\n"
            self._write(data)

    def _write(self, data: bytes | bytearray) -> None:
        left = memoryview(data)
        while left:
            left = left[_os.write(self._fd, left) :]
        self._whole += len(data)

    def _stop(self, error: str) -> None:
        if not self.error:
            self.error = error
            log("trace_stopped", level="warning", path=self.path, error=error)
