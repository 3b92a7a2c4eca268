"""Where a task waits, in words: the line of a coroutine that is not an event library's."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from .errors import Stuck


def explained(stuck: Stuck, tasks: list[tuple[str, Any]]) -> Stuck:
    """An error that says who waits where."""
    lines = [f"\n  {name}: {where}" for name, coro in tasks if (where := where_of(coro)) is not None]
    return Stuck(str(stuck) + "".join(sorted(lines)))


def where_of(coro: Coroutine[Any, Any, Any] | Any) -> str | None:
    """The innermost line of a waiting coroutine that is not an event library's."""
    where = None
    while coro is not None:
        frame = _first_of(coro, "cr_frame", "gi_frame", "ag_frame")
        if frame is not None:
            module = frame.f_globals.get("__name__", "?")
            if module.partition(".")[0] not in ("asyncio", "trio", "anyio"):
                where = f"{frame.f_code.co_qualname} ({module}:{frame.f_lineno})"
        coro = _first_of(coro, "cr_await", "gi_yieldfrom", "ag_await")
    return where


def _first_of(thing: object, *names: str) -> Any:
    return next((value for name in names if (value := getattr(thing, name, None)) is not None), None)
