"""Where a body stands, as text: for bodies that ignore their cancellation."""

from __future__ import annotations

import linecache
from types import CodeType
from typing import Any

_MOST_FRAMES = 30


def stack_of(task: Any) -> str:
    """The stack of a suspended task, outermost call first; the frames themselves are not kept."""
    if task is None:
        return ""
    coroutine = task.get_coro() if hasattr(task, "get_coro") else task.coro
    lines: list[str] = []
    while coroutine is not None and len(lines) < _MOST_FRAMES:
        found = _where(coroutine)
        if found is None:
            break
        code, number, coroutine = found
        text = linecache.getline(code.co_filename, number).strip()
        lines.append(f'  File "{code.co_filename}", line {number}, in {code.co_name}\n    {text}')
    return "\n".join(lines)


def _where(coroutine: Any) -> tuple[CodeType, int, Any] | None:
    """Code and line of a coroutine, generator or async generator, and what it awaits."""
    for kind, awaited in (("cr", "cr_await"), ("gi", "gi_yieldfrom"), ("ag", "ag_await")):
        frame = getattr(coroutine, f"{kind}_frame", None)
        if frame is not None:
            return frame.f_code, frame.f_lineno, getattr(coroutine, awaited, None)
    return None
