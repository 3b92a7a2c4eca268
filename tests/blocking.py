"""Finds calls that block an event loop: made on its thread, while it runs.

An audit hook sees them all, in the code under test and below it; the few that Python does not announce are wrapped.
They are noted, not prevented, because an error raised there could be swallowed; `conftest.py` fails the test that made
them. To freeze a loop on purpose:

    with blocking.permitted("a body that does not let go of the loop"):
        time.sleep(0.3)
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TypeVar

import trio

from locks import _os

T = TypeVar("T")
R = TypeVar("R")

seen: list[str] = []
"""Each blocking call, with its stack, since the list was last cleared."""

_here = threading.local()
_SETLKW = {fcntl.F_SETLKW, getattr(fcntl, "F_OFD_SETLKW", fcntl.F_SETLKW)}

# The event libraries call some of these themselves where they cannot block: with numeric addresses, to start a process.
_EVENT_LIBRARIES = {"asyncio", "trio", "anyio", "uvloop"}
_PASSED_THROUGH = {"subprocess", "socket", __name__}


@contextlib.contextmanager
def permitted(reason: str) -> Iterator[None]:
    """Inside, this thread may block its loop. The reason is for the reader."""
    before = getattr(_here, "permitted", False)
    _here.permitted = True
    try:
        yield
    finally:
        _here.permitted = before


def install() -> None:
    """Watch this process from now on; audit hooks cannot be removed."""
    sys.addaudithook(_hook)
    time.sleep = _announced("time.sleep", time.sleep)  # Python announces it from 3.13 on
    for name in ("fsync", "fdatasync"):
        call: Callable[[Any], Any] | None = getattr(os, name, None)
        if call is None:
            continue  # not on this system
        for module in (os, _os):
            if getattr(module, name, None) == call:
                setattr(module, name, _announced(f"os.{name}", call))


def _announced(event: str, call: Callable[[T], R]) -> Callable[[T], R]:
    @functools.wraps(call)
    def announced(arg: T, /) -> R:
        _hook(event, (arg,))
        return call(arg)

    return announced


def _hook(event: str, args: tuple) -> None:
    if not _EVENTS or event not in _EVENTS or not _EVENTS[event](args):  # none at the end of the interpreter
        return
    if not _on_a_loop() or getattr(_here, "permitted", False):
        return
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") in _PASSED_THROUGH:
        frame = frame.f_back
    if frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _EVENT_LIBRARIES:
        return
    stack = "".join(traceback.format_stack(frame, limit=8))
    seen.append(f"{event}{args!r} blocked the event loop\n{stack}")


def _on_a_loop() -> bool:
    return asyncio._get_running_loop() is not None or trio.lowlevel.in_trio_run()


def _always(args: tuple) -> bool:
    return True


def _connects(args: tuple) -> bool:
    sock = args[0]
    return bool(sock.gettimeout() != 0 and sock.type & socket.SOCK_STREAM)


def _waits_for_a_lock(args: tuple) -> bool:
    operation = args[1]
    return not operation & (fcntl.LOCK_NB | fcntl.LOCK_UN)


_EVENTS = {
    "time.sleep": lambda args: bool(args[0] > 0),
    "os.fsync": _always,
    "os.fdatasync": _always,
    "subprocess.Popen": _always,
    "os.system": _always,
    "socket.connect": _connects,
    "socket.getaddrinfo": _always,
    "socket.gethostbyname": _always,
    "fcntl.flock": _waits_for_a_lock,
    "fcntl.lockf": _waits_for_a_lock,
    "fcntl.fcntl": lambda args: args[1] in _SETLKW,
}
