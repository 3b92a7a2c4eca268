"""The tasks of bodies, and of waits for turns: each task is independent of all others.

No body may end another body, or the scope that the bodies run in. A task group ends as a whole: a child that is
cancelled by `task.cancel()` of asyncio takes all others along, also when it had asked for that itself and has returned
meanwhile, or had not begun yet. So on asyncio these tasks are in no task group. A callback of the loop reports what a
task died of, however it died, also before its first step.

On trio a task stands in a nursery, which any of its tasks can cancel (`parent_nursery`). So the nursery is cancelled
from the start, and each task waits in a shielded scope of its own. That one scope does all that a body needs: without
its shield the body is cancelled, with it again an abandoned body is left in peace. asyncio needs two scopes for it: a
scope of anyio goes on cancelling until its task has left it, but for what is in a shielded scope within.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from contextvars import Context
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import anyio

from locks._loop import on_trio, scope_type

if TYPE_CHECKING:
    import asyncio

Body = Coroutine[Any, Any, None]
Ended = Callable[[BaseException | None], object]
"""Called when a task has ended, with what it died of."""


class BodyScope(Protocol):
    """What a body is cancelled by. Entered and left by the task of the body; the rest is for the scheduler."""

    def __enter__(self) -> object: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave it; what is raised in it goes on, a cancellation too.

        Raises:
            RuntimeError: a scope that was entered within was not left.
        """

    def cancel(self) -> None:
        """Cancel the body, each time that it waits, until `shield`."""

    def shield(self) -> None:
        """Stop cancelling the body: it was abandoned, and one that swallows cancellations would burn the loop."""


class TaskHost(ABC):
    """Holds tasks from `start` to their end. On the event loop's thread, but for `len`.

    Use it as an async context manager: leaving it waits until all its tasks have ended, however often that wait is
    cancelled. It ends none of them.
    """

    @abstractmethod
    def start(self, body: Body, name: str, context: Context, ended: Ended) -> None:
        """Start a task in a copy of `context`. It begins in a later step of the loop; `ended` is called after it."""

    @abstractmethod
    def leave(self, task: Any) -> None:
        """The running task, which is of this host, has reported its end itself, and returns now: no call of `ended`."""

    @abstractmethod
    def new_scope(self) -> BodyScope:
        """A scope for the body of a task of this host. Nothing around it cancels what is in it."""

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
        self._scope_type = scope_type()

    def __len__(self) -> int:
        return len(self._tasks)

    def new_scope(self) -> BodyScope:
        return _AsyncioScope(self._scope_type)

    def start(self, body: Body, name: str, context: Context, ended: Ended) -> None:
        task = _new_task(body, name, context)
        self._tasks[task] = ended
        task.add_done_callback(self._ended, context=context)

    def leave(self, task: asyncio.Task[None]) -> None:
        # The loop would have to look at it once more. In this order, an interrupt in between leaves it to `__aexit__`.
        task.remove_done_callback(self._ended)
        self._tasks.pop(task, None)

    def _ended(self, task: asyncio.Task[None]) -> None:
        import asyncio  # noqa: PLC0415 -- slow to import, and it runs by now if it is needed at all

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
        import asyncio  # noqa: PLC0415 -- as above

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


def _new_task(body: Body, name: str, context: Context) -> asyncio.Task[None]:
    import asyncio  # noqa: PLC0415 -- as above

    loop = asyncio.get_running_loop()
    factory = loop.get_task_factory()
    # Python 3.12 has a factory whose tasks begin at once, which here would be in the middle of a change of state.
    if factory is None or _code_of(factory) is _code_of(getattr(asyncio, "eager_task_factory", None)):
        return asyncio.Task(body, loop=loop, name=name, context=context.copy())
    return context.run(partial(loop.create_task, body, name=name))


def _code_of(function: object) -> object:
    return getattr(function, "__code__", function)


class _AsyncioScope:
    """The inner scope is there to be shielded."""

    __slots__ = ("_inner", "_outer")

    def __init__(self, scope_type: Callable[..., anyio.CancelScope]) -> None:
        self._outer, self._inner = scope_type(shield=True), scope_type()

    def __enter__(self) -> None:
        self._outer.__enter__()
        self._inner.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._inner.__exit__(kind, error, traceback)
        finally:
            self._outer.__exit__(None, None, None)  # given the cancellation, it would swallow it

    def cancel(self) -> None:
        self._inner.shield = False
        self._outer.cancel()

    def shield(self) -> None:
        self._inner.shield = True


class TrioHost(TaskHost):
    """Tasks in a nursery that is cancelled from the start."""

    def __init__(self) -> None:
        self._number = 0
        self._around = anyio.create_task_group()
        self._nursery: Any = None
        self._closing = anyio.Event()
        self._new_scope = sys.modules["trio"].CancelScope

    def __len__(self) -> int:
        return self._number

    def new_scope(self) -> BodyScope:
        return _TrioScope(self._new_scope(shield=True))

    def start(self, body: Body, name: str, context: Context, ended: Ended) -> None:
        context.run(partial(self._nursery.start_soon, self._contained, body, ended, name=name))
        self._number += 1

    def leave(self, task: Any) -> None:
        pass  # `_contained` has it in hand

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
            ended(interrupt)  # raised further, it would be lost in the nursery, and the end would not be reported
        finally:
            self._number -= 1
            del error, ended, body

    async def __aenter__(self) -> Self:
        await self._around.__aenter__()
        try:
            await self._around.start(self._hold, name="bodies")
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closing.set()
        await self._around.__aexit__(None, None, None)  # given an error, it would wrap it

    async def _hold(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Hold the nursery open until the host is left, and then until its last task has ended."""
        async with sys.modules["trio"].open_nursery() as self._nursery:
            self._nursery.cancel_scope.cancel()
            task_status.started()
            with anyio.CancelScope(shield=True):
                await self._closing.wait()


class _TrioScope:
    """A shielded scope in a cancelled nursery: its shield is all that keeps the body from being cancelled."""

    __slots__ = ("_scope",)

    def __init__(self, scope: Any) -> None:
        self._scope = scope

    def __enter__(self) -> None:
        self._scope.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._scope.__exit__(kind, error, traceback)

    def cancel(self) -> None:
        self._scope.shield = False

    def shield(self) -> None:
        self._scope.shield = True
