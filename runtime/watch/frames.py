"""The run, the place and the stack that a frame of any thread belongs to.

A blocked event loop cannot be asked which task runs, and trio never answers another thread. But the loop's own frame,
further out on the blocked stack, holds the context in which it called the task: asyncio in its `Handle`, trio in its
`task`, and worker threads likewise. The current run is a variable of that context. Where a loop is compiled and has no
frames (uvloop), the frame in which every body is called names its execution, and a child task is found by its
coroutine's frame. Only frames of the event libraries are asked: what a program calls `task` or `self` may
be any object, and may do anything when it is looked at.
"""

from __future__ import annotations

import gc
import linecache
import math
import os
import sys
from contextvars import Context
from types import FrameType
from typing import Any

from lanes import Run
from lanes.body.stacks import Place, Places, distance, place_in
from lanes.core.body_task import conduct
from lanes.run import _current

_KEPT_FRAMES = 40
_MOST_FRAMES = 10_000
_WHERE_CONTEXTS_ARE = ("context", "self", "task")
"""The local variables that hold a context, or something with one, in the frames of the event loops and threads."""
_EVENT_LIBRARIES = {"asyncio", "anyio", "trio", "concurrent"}
_CONDUCT = conduct.__code__
_PACKAGES = 1
"""The `distance` of installed packages: a program may be one."""
_IDLE = {
    ("selectors.py", "select"),
    ("_io_epoll.py", "get_events"),
    ("_io_kqueue.py", "get_events"),
    ("_io_windows.py", "get_events"),
    ("windows_events.py", "_poll"),
    ("runners.py", "run"),  # uvloop waits in compiled code, without a frame
    ("base_events.py", "run_forever"),
}
_RUNS_A_LOOP = {"run_until_complete", "run_forever"}


def frame_of(thread: int) -> FrameType | None:
    """The innermost frame of a thread, by its identifier; `None` when it is gone."""
    return sys._current_frames().get(thread)


def run_of(frame: FrameType | None) -> Run | None:
    """The run that a frame of any thread belongs to; `None` for code of no run."""
    stack: set[FrameType] = set()
    while frame is not None and len(stack) < _MOST_FRAMES:
        if frame.f_code is _CONDUCT:
            return _as_run(getattr(frame.f_locals.get("execution"), "run", None))
        names = frame.f_code.co_varnames + frame.f_code.co_freevars if _is_of_event_library(frame) else ()
        for name in _WHERE_CONTEXTS_ARE:
            if name in names and (run := _run_in(_context_of(frame.f_locals.get(name)))) is not None:
                return run
        stack.add(frame)
        frame = frame.f_back
    return _run_of_task(stack)


def _is_of_event_library(frame: FrameType) -> bool:
    module = frame.f_globals.get("__name__")
    return isinstance(module, str) and module.partition(".")[0] in _EVENT_LIBRARIES


def _context_of(holder: Any) -> Any:
    """A context itself, or the one of a handle, a task, or a call that a worker thread makes."""
    if type(holder) is Context or isinstance(holder, type):
        return holder
    found = getattr(holder, "context", None) or getattr(holder, "_context", None)
    if found is None:
        call = getattr(getattr(holder, "fn", None), "func", None)  # `asyncio.to_thread` has `context.run` called
        found = getattr(call, "__self__", None)
    return found


def _run_in(context: Any) -> Run | None:
    # Asked, not entered: the context of what runs is entered already, and no other thread can.
    return context.get(_current) if type(context) is Context else None


def _run_of_task(stack: set[FrameType]) -> Run | None:
    """The run of the asyncio task whose coroutine is on a stack."""
    # `current_task` has to be given the loop.
    tasks: dict[Any, Any] = getattr(sys.modules.get("asyncio.tasks"), "_current_tasks", {})
    for task in list(tasks.values()):
        if getattr(task.get_coro(), "cr_frame", None) in stack:
            # Before Python 3.12 only the garbage collector knows the context of a task.
            found = [task.get_context()] if hasattr(task, "get_context") else gc.get_referents(task)
            return next((run for one in found if (run := _run_in(one)) is not None), None)
    return None


def _as_run(found: object) -> Run | None:
    return found if isinstance(found, Run) else None


def name_of(run: Run | None) -> str:
    """A run in words; empty for none."""
    return "" if run is None else f"run {run.id} on lane {run.lane}"


def place_of(frame: FrameType | None) -> str:
    """File, line and function of the code that a frame runs, short: `tool.py:12 in crunch`.

    Of a stack that ends inside of a library, the innermost line outside of all libraries: that one can be mended.
    """
    frame = _own(frame)
    return "" if frame is None else f"{place_in(frame)}"


def _own(frame: FrameType | None) -> FrameType | None:
    """The innermost frame of the code that is nearest to the user's own, up to the event loop that has called it."""
    found, nearest = frame, math.inf
    for _ in range(_MOST_FRAMES):
        if frame is None or not nearest or (nearest <= _PACKAGES and _is_of_event_library(frame)):
            break
        if (far := distance(frame.f_code.co_filename)) < nearest:
            found, nearest = frame, far
        frame = frame.f_back
    return found


def code_of(frame: FrameType | None) -> object:
    """The function of the same place."""
    frame = _own(frame)
    return frame.f_code if frame is not None else None


def source_of(frame: FrameType | None) -> str:
    """The same, with the line's source: `tool.py:12 in crunch: time.sleep(5)`."""
    frame = _own(frame)
    if frame is None:
        return ""
    source = linecache.getline(frame.f_code.co_filename, place_in(frame).line).strip()
    return place_of(frame) + (f": {source}" if source else "")


def stack_text(frame: FrameType | None) -> str:
    """A stack with its lines of source, outermost call first; of a deep one its inner end. Keeps no frame."""
    places: list[Place] = []
    depth = 0
    while frame is not None and depth < _MOST_FRAMES:
        if depth < _KEPT_FRAMES:
            places.append(place_in(frame))
        depth += 1
        frame = frame.f_back
    return Places(tuple(reversed(places)), depth - len(places)).as_traceback()


def is_idle(frame: Any) -> bool:
    """Whether the thread of an event loop waits there for something to do."""
    code = frame.f_code
    if (os.path.basename(code.co_filename), code.co_name) in _IDLE:
        return True
    return not _RUNS_A_LOOP.isdisjoint(code.co_names)  # uvloop again, as seen in its caller
