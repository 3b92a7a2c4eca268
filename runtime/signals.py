"""SIGINT and SIGTERM for a process that belongs to its supervisor: drain first, then at once, then out.

The handlers are installed before the event loop exists and stay until after it is gone, so no signal falls into a gap
in which it would mean a traceback. They run between two bytecodes of the main thread, so the third signal ends the
process also when the event loop is frozen in Python code; a receiver inside the loop could not.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

from locks._loop import Post, poster

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PATIENCE = 3
_Handler = Callable[[int, FrameType | None], Any] | int | None


class Signals:
    """Counts the signals of this process while its block runs. To be entered on the main thread, outside any loop."""

    def __init__(self, *, leave: Callable[[int], object] = os._exit) -> None:
        self.received: list[int] = []
        """Their numbers, in order."""
        self._leave = leave
        self._before: dict[int, _Handler] = {}
        self._post: Post | None = None
        self._call: Callable[[int], object] | None = None
        self._told = 0

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def tell(self, call: Callable[[int], object]) -> None:
        """Have `call` called on the running event loop with 1, 2, … for each signal that has come or will come."""
        self._call, self._post = call, poster()
        self._deliver()

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 -- the shape of a handler
        self.received.append(number)
        if len(self.received) >= _PATIENCE:
            self._leave(128 + number)
        if self._post is not None:
            self._post(self._deliver)

    def _deliver(self) -> None:
        while self._call is not None and self._told < len(self.received):
            self._told += 1
            self._call(self._told)
