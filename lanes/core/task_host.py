"""The tasks of bodies, and of waits for turns: each task is independent of all others.

No body may end another body, or the scope that the bodies run in. A task group ends as a whole: a child that is
cancelled by `task.cancel()` of asyncio takes all others along, also when it had asked for that itself and has returned
meanwhile, or had not begun yet. So on asyncio these tasks are in no task group. A callback of the loop reports what a
task died of, however it died, also before its first step.

On trio a task stands in a nursery, which any of its tasks can cancel (`parent_nursery`). So a task that is started here
has to wait in a shielded scope of its own, by which the scheduler ends it; a nursery that was cancelled is replaced.
"""

from __future__ import annotations

import asyncio
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from contextvars import Context
from functools import partial
from types import TracebackType
from typing import Any, Self

import anyio

from locks._events import log
from locks._loop import on_trio

Body = Coroutine[Any, Any, None]
Ended = Callable[[BaseException | None], object]
"""Called when a task has ended, with what it died of."""

_EAGER = getattr(getattr(asyncio, "eager_task_factory", None), "__code__", None)
"""Python 3.12: a task factory whose tasks begin at once, which here would be in the middle of a change of state."""


class TaskHost(ABC):
    """Holds tasks from `start` to their end. On the event loop's thread, but for `len`.

    Use it as an async context manager: leaving it waits until all its tasks have ended, however often that wait is
    cancelled. It ends none of them.
    """

    @abstractmethod
    def start(self, body: Body, name: str, context: Context, ended: Ended) -> None:
        """Start a task in a copy of `context`. It begins in a later step of the loop; `ended` is called after it."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    async def __aenter__(self) -> Self: ...

    @abstractmethod
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


def new_host() -> TaskHost:
    """A host for the running event loop."""
    return TrioHost() if on_trio() else AsyncioHost()


class AsyncioHost(TaskHost):
    """Tasks in no task group."""

    def __init__(self) -> None:
        self._tasks: dict[asyncio.Task[None], Ended] = {}  # asyncio itself keeps only weak references

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, body: Body, name: str, context: Context, ended: Ended) -> None:
        task = context.run(_new_task, body, name)
        self._tasks[task] = ended
        task.add_done_callback(self._ended, context=context)

    def _ended(self, task: asyncio.Task[None]) -> None:
        ended, error = self._tasks.pop(task, None), None
        if ended is None:
            return
        try:
            error = task.exception()
        except asyncio.CancelledError as cancelled:
            error = cancelled
        try:
            ended(error)
        finally:
            del error  # this frame stands in its traceback

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        cancelled: BaseException | None = None
        with anyio.CancelScope(shield=True):
            while self._tasks:
                try:
                    await asyncio.wait(list(self._tasks))
                except asyncio.CancelledError as native:
                    cancelled = native
                for task in [task for task in self._tasks if task.done()]:
                    self._ended(task)  # an interrupt has kept the loop from calling it
        if cancelled is not None and error is None:
            raise cancelled


def _new_task(body: Body, name: str) -> asyncio.Task[None]:
    loop = asyncio.get_running_loop()
    factory = loop.get_task_factory()
    if factory is not None and getattr(factory, "__code__", None) is _EAGER:
        return asyncio.Task(body, loop=loop, name=name)
    return loop.create_task(body, name=name)


class TrioHost(TaskHost):
    """Tasks in a nursery, which is replaced when a task of it has cancelled it."""

    def __init__(self) -> None:
        self._number = 0
        self._around = anyio.create_task_group()
        self._nursery = _Nursery()

    def __len__(self) -> int:
        return self._number

    def start(self, body: Body, name: str, context: Context, ended: Ended) -> None:
        nursery = self._nursery
        if nursery.cancelled:
            self._nursery = nursery = _Nursery()
            Context().run(self._open)
            log("task_host_replaced", level="warning", tasks=self._number)
        self._number += 1
        nursery.start(partial(self._contained, body, ended), name, context)

    def _open(self) -> None:
        self._around.start_soon(self._nursery.serve, name="bodies")

    async def _contained(self, body: Body, ended: Ended) -> None:
        try:
            await body
        except BaseException as raised:
            error: BaseException | None = raised
        else:
            error = None
        try:
            ended(error)
        except KeyboardInterrupt as interrupt:
            ended(interrupt)  # raised further, it would cancel the nursery, and the end would not be reported
        finally:
            self._number -= 1
            del error, ended, body

    async def __aenter__(self) -> Self:
        await self._around.__aenter__()
        self._open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._nursery.close()
        await self._around.__aexit__(None, None, None)  # given an error, it would wrap it


class _Nursery:
    """A task group in a task of its own, and what is to start in it once it is there."""

    def __init__(self) -> None:
        self._group: Any = None
        self._waiting: list[tuple[Callable[[], Body], str, Context]] = []
        self._closing = anyio.Event()

    @property
    def cancelled(self) -> bool:
        """Whether one of its tasks has cancelled it: it ends when its last task has."""
        return self._group is not None and self._group.cancel_scope.cancel_called

    def start(self, body: Callable[[], Body], name: str, context: Context) -> None:
        if self._group is None:
            self._waiting.append((body, name, context))
        else:
            context.run(partial(self._group.start_soon, body, name=name))

    def close(self) -> None:
        """End when the last task has."""
        self._closing.set()

    async def serve(self) -> None:
        """Hold the task group open until `close`."""
        with anyio.CancelScope(shield=True):  # what is around it may be cancelled before its tasks were asked to end
            async with sys.modules["trio"].open_nursery() as group:  # anyio's would make a scope for each task
                self._group = group
                self._start_waiting()
                await self._closing.wait()

    def _start_waiting(self) -> None:
        # Not in `serve`, whose frame lives as long as the tasks and would keep what its variables name.
        waiting, self._waiting = self._waiting, []
        for body, name, context in waiting:
            self.start(body, name, context)
