"""Where a task waits, in words: the line of a coroutine that is not an event library's."""

from __future__ import annotations

import os
from collections.abc import Collection, Coroutine
from typing import Any

from .errors import Stuck


def explained(stuck: Stuck, tasks: list[tuple[str, Any]]) -> Stuck:
    """An error that says who waits where."""
    lines = [f"\n  {name}: {where}" for name, coro in tasks if (where := where_of(coro)) is not None]
    return Stuck(str(stuck) + "".join(sorted(lines)))


EVENT_LIBRARIES = ("asyncio", "trio", "anyio")


OURS = (*EVENT_LIBRARIES, "contextlib", "lanes", "locks", "runtime")
"""Packages whose lines are not those of a handler."""


def place_in(handling: Any) -> str:
    """The line of a handler that is suspended: `handle (bot.py:12)`."""
    return where_of(handling, OURS, "file") or "in code that is not the handler's"


def where_of(
    coro: Coroutine[Any, Any, Any] | Any, but: Collection[str] = EVENT_LIBRARIES, shown: str = "module"
) -> str | None:
    """The innermost line of a waiting coroutine that is not an event library's.

    Args:
        but: the packages whose lines do not count.
        shown: what is named besides the function and the line: the `module`, or the `file`.
    """
    where = None
    while coro is not None:
        frame = _first_of(coro, "cr_frame", "gi_frame", "ag_frame")
        if frame is not None:
            module = frame.f_globals.get("__name__", "?")
            if module.partition(".")[0] not in but:
                place = os.path.basename(frame.f_code.co_filename) if shown == "file" else module
                where = f"{frame.f_code.co_qualname} ({place}:{frame.f_lineno})"
        coro = _first_of(coro, "cr_await", "gi_yieldfrom", "ag_await")
    return where


def _first_of(thing: object, *names: str) -> Any:
    return next((value for name in names if (value := getattr(thing, name, None)) is not None), None)
