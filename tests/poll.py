"""Waiting for something real: a child process, a thread, a file. Polled with a deadline; no test sleeps.

In virtual time nothing is polled for: `await virtual.settle()` returns when everybody waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import anyio

from locks import _clock

T = TypeVar("T")

PERIOD = 0.002
"""Seconds between two looks."""

PATIENCE_S = 30.0
"""Seconds until something that is awaited will not come any more, on however busy a machine."""


async def eventually(predicate: Callable[[], T], within: float = PATIENCE_S, *, awaited: str | None = None) -> T:
    """Wait until `predicate()` is true, and return what it returned.

    `awaited` names it in the error; without it, its source does. A checkpoint. Raises `AssertionError` after `within`
    seconds of real time, and at once in virtual time, where polling would move the time that it waits for.
    """
    if not isinstance(_clock.clock, _clock.SystemClock):
        raise AssertionError("eventually() polls in real time; in virtual time, `await virtual.settle()`")
    deadline = time.monotonic() + within
    while not (value := predicate()):
        if time.monotonic() >= deadline:
            raise AssertionError(_complaint(predicate, within, awaited))
        await anyio.sleep(PERIOD)
    return value


def eventually_sync(predicate: Callable[[], T], within: float = PATIENCE_S, *, awaited: str | None = None) -> T:
    """`eventually` for code outside an event loop: it blocks its thread."""
    deadline = time.monotonic() + within
    while not (value := predicate()):
        if time.monotonic() >= deadline:
            raise AssertionError(_complaint(predicate, within, awaited))
        time.sleep(PERIOD)
    return value


def _complaint(predicate: Callable[[], object], within: float, awaited: str | None) -> str:
    if awaited is None:
        code = getattr(predicate, "__code__", None)
        awaited = getattr(predicate, "__qualname__", None) or repr(predicate)
        if code is not None:
            awaited += f" ({code.co_filename}:{code.co_firstlineno}: {_line(code.co_filename, code.co_firstlineno)})"
    return f"not within {within:g} s: {awaited}"


def _line(filename: str, number: int) -> str:
    import linecache

    return linecache.getline(filename, number).strip()
