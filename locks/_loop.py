"""What differs between the two event loops and is needed below anyio: posting from a thread, and what is running.

Which of them runs is asked at each call, never guessed: while trio is a guest of an asyncio program, both have a
running loop on one thread, and their tasks take turns on it. trio says in a thread-local variable of `sniffio` when the
running code is its own. Code that is not trio's and runs on a thread with a running asyncio loop is asyncio's.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import Context, copy_context
from functools import partial
from types import coroutine
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from anyio import CancelScope, get_cancelled_exc_class
from anyio.lowlevel import current_token
from sniffio import current_async_library_cvar
from sniffio import thread_local as _library

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import Future

_T = TypeVar("_T")
_spawned: set[asyncio.Task[None]] = set()
"""asyncio itself refers to its tasks weakly."""
LOOK_S = 0.1
"""How often a thread that waits for an event loop looks whether that has ended: a loop ends without a sign."""

Post = Callable[[Callable[[], Any]], None]
"""Have the event loop call something soon; from any thread, without waiting."""


def _get_running_loop() -> asyncio.AbstractEventLoop | None:
    # asyncio takes longer to import than all of this package, and where nothing has imported it, none of its loops
    # runs. Once something has, its own function stands here, the only look at the loop that does not raise.
    if "asyncio" not in sys.modules:
        return None
    from asyncio import _get_running_loop as asyncios_own  # noqa: PLC0415 -- as above

    globals()["_get_running_loop"] = asyncios_own
    return asyncios_own()


def on_trio() -> bool:
    """Whether the calling code is trio's: it is, on a thread of an asyncio loop too, while trio is its guest."""
    return _library.name == "trio"


def poster() -> Post:
    """How other threads reach the event loop that is running now."""
    if on_trio():
        token = _trio().current_trio_token()
        finished = sys.modules["trio"].RunFinishedError

        def post_to_trio(call: Callable[[], Any]) -> None:
            try:
                token.run_sync_soon(call)
            except finished:
                return  # no task is left to run it

        return post_to_trio

    loop = _asyncio_loop()

    def post_to_asyncio(call: Callable[[], Any]) -> None:
        try:
            loop.call_soon_threadsafe(call)
        except RuntimeError:
            return  # closed: no task is left to run it

    return post_to_asyncio


def current_loop() -> object:
    """An object that stands for the running event loop.

    Raises:
        RuntimeError: none runs the calling code.
    """
    return _trio().current_trio_token() if _library.name == "trio" else (_get_running_loop() or _asyncio_loop())


def running_loop() -> object | None:
    """As `current_loop`; `None` where no event loop runs the calling code."""
    return _trio().current_trio_token() if _library.name == "trio" else _get_running_loop()


def _spawn(body: Callable[[], Coroutine[Any, Any, None]], name: str, context: Context, done: Future[Any]) -> None:
    """Start a task of the running event loop that belongs to no task group: only the end of the loop cancels it."""
    if on_trio():
        _trio().spawn_system_task(body, name=name, context=context)
        return

    def ended(task: asyncio.Task[None]) -> None:
        _spawned.discard(task)
        if not done.done():  # cancelled before its first step
            done.set_exception(LoopEnded("the event loop has ended"))

    task = _asyncio_loop().create_task(body(), name=name, context=context)
    _spawned.add(task)
    task.add_done_callback(ended)


def from_thread(loop: object, post: Post, body: Callable[[], Coroutine[Any, Any, _T]], name: str) -> _T:
    """Run `body` as a task of an event loop, and block the calling thread until it has ended; returns what it returns.

    The task has no parent, so no cancellation reaches the thread: a run that is cancelled may write through its
    grace. (`anyio.from_thread.run` starts its task in the scope of the task that started the thread. On asyncio that
    scope cancels it, again and again.)

    Raises:
        LoopEnded: the event loop has ended before `body` did.
        Whatever `body` raises.
    """
    from concurrent.futures import Future, wait  # noqa: PLC0415 -- it brings `logging` along, and few threads write

    done: Future[_T] = Future()
    context = copy_context()

    async def contained() -> None:
        try:
            value = await body()
        except Exception as error:
            done.set_exception(error)
        except BaseException as error:
            done.set_exception(LoopEnded("the event loop has ended"))
            if isinstance(error, get_cancelled_exc_class()):
                raise  # it is the loop's
        else:
            done.set_result(value)

    def start() -> None:
        try:
            know_loop(context)  # anyio marks that of a worker thread as one without an event loop
            _spawn(contained, name, context, done)
        except BaseException as error:
            done.set_exception(LoopEnded(f"the event loop has ended: {error!r}"))

    post(start)
    while not wait([done], timeout=LOOK_S).done:
        if loop_has_ended(loop) and not done.done():
            raise LoopEnded("the event loop has ended")
    return done.result()


class LoopEnded(RuntimeError):
    """The event loop that a thread waits for is there no more."""


def loop_has_ended(loop: object) -> bool:
    """Whether an event loop that `current_loop` once returned will never run a task again. Callable from any thread."""
    is_closed: Callable[[], bool] | None = getattr(loop, "is_closed", None)
    if is_closed is not None:  # asyncio's
        return is_closed()
    trio = sys.modules["trio"]
    try:
        loop.run_sync_soon(_nothing, idempotent=True)  # type: ignore[attr-defined]  # trio says it in no other way
    except trio.RunFinishedError:
        return True
    return False


def asyncio_runs() -> bool:
    """Whether the running event loop is one of asyncio."""
    return _get_running_loop() is not None


def scope_type() -> Callable[..., CancelScope]:
    """What makes a cancel scope on the running event loop; `CancelScope()` finds that out each time.

    On trio that is trio's own, which has all that anyio's has.
    """
    return cast(Callable[..., CancelScope], sys.modules["trio"].CancelScope) if on_trio() else type(CancelScope())


def cancel(scope: CancelScope) -> None:
    """Cancel a scope, unless its task has ended inside it, as one does that a signal handler ends between two lines.

    On asyncio anyio would go on telling that task, for ever and at every round of the loop.
    """
    host = getattr(scope, "_host_task", None)  # trio's has none, and keeps no task that has gone
    if host is None or not host.done():
        scope.cancel()


class Signal(Protocol):
    """An event of the event loop's own. A wait for one that is set already may be no checkpoint."""

    def set(self) -> object: ...
    def is_set(self) -> bool: ...
    async def wait(self) -> object: ...


def event_type() -> Callable[[], Signal]:
    """What makes an event of the running event loop: `anyio.Event` is one with a second one around it."""
    made: Callable[[], Signal] = sys.modules["trio" if on_trio() else "asyncio"].Event
    return made


def checkpoint_of_loop() -> Callable[[], Awaitable[None]]:
    """What is a checkpoint on the running event loop; `anyio.lowlevel.checkpoint` finds that out each time."""
    return cast(Callable[[], Awaitable[None]], _trio().checkpoint) if on_trio() else _once_round


def task_of_loop() -> Callable[[], object]:
    """What says which task of the running event loop runs; `None` in a callback of asyncio."""
    if on_trio():
        return cast(Callable[[], object], _trio().current_task)
    return partial(sys.modules["asyncio"].current_task, _asyncio_loop())


def deadline_of_loop() -> Callable[[], float]:
    """What says when the enclosing cancel scopes end; `anyio.current_effective_deadline` looks for it each time."""
    return current_token().backend_class.current_effective_deadline


@coroutine
def _once_round() -> Generator[None, None, None]:
    """Let asyncio's loop go round once, as `asyncio.sleep(0)` does."""
    yield


def know_loop(context: Context) -> None:
    """Note in a context which event loop runs, for tasks that a callback of the loop starts in it.

    anyio asks `sniffio`, which knows asyncio by the running task. But a callback of asyncio is none, and its context
    may be that of a thread, or of a program that does not use anyio. trio is known by its thread, whatever a context
    says; a context that said so would deceive the asyncio host that it is copied to.
    """
    name = None if _library.name == "trio" else "asyncio"
    if context.get(current_async_library_cvar) != name:
        context.run(current_async_library_cvar.set, name)


def on_loop_thread() -> bool:
    """Whether the calling thread runs an event loop, so that it must not wait for one."""
    return _get_running_loop() is not None or ("trio" in sys.modules and bool(_trio().in_trio_run()))


def current_task() -> object | None:
    """The running task; it has a name (`name`, or `get_name()` on asyncio). `None` in a callback of asyncio.

    Raises:
        RuntimeError: no event loop runs the calling code.
    """
    return _trio().current_task() if _library.name == "trio" else _current_task(_get_running_loop() or _asyncio_loop())


def _current_task(loop: asyncio.AbstractEventLoop) -> object | None:
    from asyncio import current_task as asyncios_own  # noqa: PLC0415 -- as above

    globals()["_current_task"] = asyncios_own
    return asyncios_own(loop)


def _asyncio_loop() -> asyncio.AbstractEventLoop:
    loop = _get_running_loop()
    if loop is None:
        raise RuntimeError("no event loop runs here: use it in a task of asyncio or trio")
    return loop


def has_ended(task: Any) -> bool:
    """Whether a task, as `current_task` gives it, has ended."""
    return task.coro.cr_frame is None if hasattr(task, "coro") else bool(task.done())


def _trio() -> Any:
    return sys.modules["trio"].lowlevel  # imported: it runs, or has run


def _nothing() -> None:
    """What a loop that still runs is asked to call."""
