"""Where a body stands, as text: for bodies that ignore their cancellation."""

from __future__ import annotations

import gc
import linecache
from collections import deque
from types import AsyncGeneratorType, CodeType
from typing import Any

_KEPT_FRAMES = 30
_MOST_FRAMES = 10_000


def stack_of(task: Any) -> str:
    """The stack of a suspended task, outermost call first; of a deep one its inner end, which says what it waits for.

    The frames themselves are not kept.
    """
    if task is None:
        return ""
    coroutine = task.get_coro() if hasattr(task, "get_coro") else task.coro
    places: deque[tuple[CodeType, int]] = deque(maxlen=_KEPT_FRAMES)
    depth = 0
    while coroutine is not None and depth < _MOST_FRAMES and (found := _where(coroutine)) is not None:
        code, number, coroutine = found
        places.append((code, number))
        depth += 1
    lines = [f"  … {depth - len(places)} outer calls …"] if depth > len(places) else []
    for code, number in places:
        text = linecache.getline(code.co_filename, number).strip()
        lines.append(f'  File "{code.co_filename}", line {number}, in {code.co_name}\n    {text}')
    return "\n".join(lines)


def _where(coroutine: Any) -> tuple[CodeType, int, Any] | None:
    """Code and line of a coroutine, generator or async generator, and what it awaits."""
    if type(coroutine).__name__ in ("async_generator_asend", "async_generator_athrow"):
        # One step of an `async for`: it does not name its generator, but the garbage collector knows.
        coroutine = next((one for one in gc.get_referents(coroutine) if isinstance(one, AsyncGeneratorType)), None)
    for kind, awaited in (("cr", "cr_await"), ("gi", "gi_yieldfrom"), ("ag", "ag_await")):
        frame = getattr(coroutine, f"{kind}_frame", None)
        if frame is not None:
            return frame.f_code, frame.f_lineno or 0, getattr(coroutine, awaited, None)
    return None
