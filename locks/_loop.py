"""What differs between the two event loops and is needed below anyio: posting from a thread, and who is running."""

from __future__ import annotations

import asyncio
import sys
from asyncio import _get_running_loop  # exported, and the only look at the loop that does not raise
from collections.abc import Callable
from contextvars import Context
from typing import Any

from anyio import CancelScope, Event
from sniffio import current_async_library_cvar

Post = Callable[[Callable[[], Any]], None]
"""Have the event loop call something soon; from any thread, without waiting."""


def poster() -> Post:
    """How other threads reach the event loop that is running now."""
    loop = _get_running_loop()
    if loop is None:
        token = _trio().current_trio_token()
        finished = sys.modules["trio"].RunFinishedError

        def post_to_trio(call: Callable[[], Any]) -> None:
            try:
                token.run_sync_soon(call)
            except finished:
                return  # nobody is left to hear of it

        return post_to_trio

    def post_to_asyncio(call: Callable[[], Any]) -> None:
        try:
            loop.call_soon_threadsafe(call)
        except RuntimeError:
            return  # closed: nobody is left to hear of it

    return post_to_asyncio


def current_loop() -> object:
    """An object that stands for the running event loop."""
    return _get_running_loop() or _trio().current_trio_token()


def asyncio_runs() -> bool:
    """Whether the running event loop is one of asyncio."""
    return _get_running_loop() is not None


def scope_type() -> Callable[..., CancelScope]:
    """What makes a cancel scope on the running event loop; `CancelScope()` finds that out anew each time."""
    return type(CancelScope())


def event_type() -> Callable[[], Event]:
    """What makes an event on the running event loop; `Event()` finds that out anew each time."""
    return type(Event())


def know_loop(context: Context) -> None:
    """Note in a context which event loop runs, for tasks that a callback of the loop starts in it.

    anyio asks `sniffio`, which knows it by the running task. But a callback of asyncio is none, and its context may be
    that of a thread, or of a program that does not use anyio.
    """
    context.run(current_async_library_cvar.set, "asyncio" if _get_running_loop() is not None else "trio")


def on_loop_thread() -> bool:
    """Whether the calling thread runs an event loop, so that it must not wait for one."""
    return _get_running_loop() is not None or ("trio" in sys.modules and bool(_trio().in_trio_run()))


def current_task() -> object:
    """The running task; it has a name (`name`, or `get_name()` on asyncio)."""
    loop = _get_running_loop()
    return asyncio.current_task(loop) if loop is not None else _trio().current_task()


def has_ended(task: Any) -> bool:
    """Whether a task, as `current_task` gives it, has ended."""
    return bool(task.done()) if isinstance(task, asyncio.Future) else task.coro.cr_frame is None


def _trio() -> Any:
    return sys.modules["trio"].lowlevel  # no asyncio loop runs, so trio does, and so it is imported
