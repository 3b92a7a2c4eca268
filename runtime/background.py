"""A background task: one coroutine function that runs beside all others, without a task group of the caller.

A supervisor may be started in one task and stopped in another, and may have to leave abandoned bodies behind; a task
group of the caller's allows neither. So its own task group lives in a background task, and this is the only place
that starts one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import TYPE_CHECKING, Any

import anyio

from locks._loop import current_loop, on_trio

if TYPE_CHECKING:
    import asyncio

_tasks: set[asyncio.Task[None]] = set()  # asyncio itself keeps only weak references


class Background:
    """A background task: what it raised, and when it is over."""

    def __init__(self) -> None:
        self.started = False
        self.began = False
        """Whether the body was called: asyncio can cancel a task before its first step."""
        self.over = anyio.Event()
        self.error: BaseException | None = None

    def start(
        self,
        body: Callable[[], Coroutine[Any, Any, None]],
        name: str,
        *,
        context: Context | None = None,
        ready: anyio.Event | None = None,
    ) -> None:
        """Start `body`, which must end by itself; a cancellation of the whole loop reaches it like any task.

        Args:
            context: its variables, instead of the caller's; trio has those of the loop in any case.
            ready: set when the task is over, if `body` has not set it before: a task may end before its first step.
        """

        self.started = True

        async def contained() -> None:
            self.began = True
            try:
                await body()
            except BaseException as error:
                self.error = error
                if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit)):
                    return  # the waiter raises it; raised by a task, it would end the loop in the middle of a step
                if isinstance(error, anyio.get_cancelled_exc_class()):
                    raise
            finally:
                is_over()

        def is_over() -> None:
            self.over.set()
            if ready is not None:
                ready.set()

        def ended(task: asyncio.Task[None]) -> None:
            _tasks.discard(task)
            if not self.over.is_set():
                self.error = sys.modules["asyncio"].CancelledError()
                is_over()

        if on_trio():
            sys.modules["trio"].lowlevel.spawn_system_task(contained, name=name)
        else:
            loop: Any = current_loop()
            task = loop.create_task(contained(), name=name, context=context)
            _tasks.add(task)
            task.add_done_callback(ended)


async def to_its_end(body: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
    """Run `body` to its end, and raise what it raised. A checkpoint; cancelled, it raises that afterwards.

    In a task of its own, because a native cancellation of asyncio (`asyncio.timeout`, `wait_for`) knows no shield: a
    step that cannot be taken back would be cut off half-way.
    """
    cancelled = None
    with anyio.CancelScope(shield=True):
        while True:
            task = Background()
            task.start(body, name)
            while not task.over.is_set():
                try:
                    await task.over.wait()
                except BaseException as error:  # trio raises KeyboardInterrupt here, shielded or not
                    cancelled = error
            if task.began:
                break
    if task.error is not None:
        raise task.error
    if cancelled is not None:
        raise cancelled
