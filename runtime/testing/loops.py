"""Event loops that go by a virtual clock, on asyncio and trio: see `virtual.py`."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import select
import selectors
import sys
from collections.abc import Callable
from typing import Any

import trio.testing
from anyio._backends import _trio as anyio_trio
from trio._core._run import GLOBAL_RUN_CONTEXT, Runner  # trio has no public way to ask for the next deadline

from lanes import InvalidLane
from lanes.checks import shown

from ..watch import frames
from .clock import LoopClock
from .errors import Stuck
from .places import explained


def backend_options(backend: str, which: Callable[[], LoopClock]) -> dict[str, Any]:
    """Options for anyio that make `backend` go by the clock that `which()` returns when the loop is made."""
    if backend == "asyncio":
        return {"loop_factory": lambda: VirtualEventLoop(which())}
    if backend == "trio":
        return {"clock": _mock_clock(which), "instruments": [_Rounds(which)]}
    raise InvalidLane(f"backend: {shown(backend)} is unknown; allowed: 'asyncio', 'trio'")


# asyncio: the loop asks its selector to sleep, and the selector jumps instead.


class VirtualEventLoop(asyncio.SelectorEventLoop):
    """A stock selector loop whose time is that of a `LoopClock`."""

    def __init__(self, clock: LoopClock) -> None:
        self.clock = clock
        super().__init__(_VirtualSelector(self))

    def time(self) -> float:
        return self.clock.now()

    def next_timer(self) -> float:
        # The loop has just removed cancelled timers from the head. Asked for instead of added up from the timeout,
        # which is rounded, and cut off at a day.
        scheduled: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]  # asyncio's own field
        return scheduled[0].when() if scheduled else math.inf

    def is_ready(self) -> bool:
        return bool(self._ready)  # type: ignore[attr-defined]  # asyncio's own field

    def run_in_executor(  # type: ignore[override]  # passed on as it is
        self, executor: Any, func: Any, *args: Any
    ) -> asyncio.Future[Any]:
        hold = contextlib.ExitStack()
        hold.enter_context(self.clock._thread())
        try:
            future = super().run_in_executor(executor, func, *args)
        except BaseException:
            hold.close()
            raise
        future.add_done_callback(lambda _: hold.close())
        return future

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        with self.clock.held():
            await super().shutdown_default_executor()


frames._IDLE.add((os.path.basename(__file__), "select"))  # a loop that waits in the selector below is idle


class _VirtualSelector(selectors.DefaultSelector):
    def __init__(self, loop: VirtualEventLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        loop, clock = self._loop, self._loop.clock
        clock._ring_due()
        events = super().select(0)
        if events:
            return events
        if (timeout is not None and timeout <= 0) or loop.is_ready():
            clock._on_busy(loop.next_timer())
            return events
        if clock.holds:
            events = super().select(clock.patience)
            if events or not clock.holds:
                return events
            raise explained(clock._on_silence(), _asyncio_tasks(loop))
        try:
            clock._on_idle(loop.next_timer())
        except Stuck as stuck:
            raise explained(stuck, _asyncio_tasks(loop)) from None
        return super().select(0)


# trio: it jumps its own MockClock when all tasks wait. That class is final and trio asks for exactly it, so an instance
# is bent.


def _mock_clock(which: Callable[[], LoopClock]) -> trio.testing.MockClock:
    mock = trio.testing.MockClock(autojump_threshold=0)
    mock.current_time = lambda: which().now()  # type: ignore[method-assign]  # see above
    mock._autojump = lambda: _autojump(which())  # type: ignore[method-assign]  # see above
    return mock


class _Rounds(trio.abc.Instrument):
    """Sees every round of trio's loop."""

    def __init__(self, which: Callable[[], LoopClock]) -> None:
        self._which = which

    def before_io_wait(self, timeout: float) -> None:
        clock, runner = self._which(), GLOBAL_RUN_CONTEXT.runner
        try:
            clock._ring_due()
            if runner.runq:
                clock._on_busy(runner.deadlines.next_deadline())
        except BaseException as error:  # trio would log it and go on without this instrument
            clock.failure = error


def _autojump(clock: LoopClock) -> None:
    runner = GLOBAL_RUN_CONTEXT.runner
    try:
        if clock.failure is not None:
            failure, clock.failure = clock.failure, None
            raise failure
        if clock.holds:
            if not _wait_for_io(runner, clock.patience) and clock.holds:
                raise clock._on_silence()
            return
        clock._on_idle(runner.deadlines.next_deadline())
    except BaseException as error:  # raised in the main task; here it would be an error of trio's
        _raise_in_main_task(runner, explained(error, _trio_tasks(runner)) if isinstance(error, Stuck) else error)


def _wait_for_io(runner: Runner, timeout: float) -> bool:
    """Sleep until trio has something to do, without taking it."""
    io_manager: Any = runner.io_manager  # a descriptor that waits for others, which can itself be waited for
    poll = select.poll()
    poll.register(io_manager._epoll if hasattr(io_manager, "_epoll") else io_manager._kqueue, select.POLLIN)
    return bool(poll.poll(timeout * 1000))


def _raise_in_main_task(runner: Runner, error: BaseException) -> None:
    main = runner.main_task
    if main is not None and runner.main_task_outcome is None and main._abort_func is not None:

        def raise_it() -> Any:
            raise error

        main._attempt_abort(raise_it)  # as trio delivers KeyboardInterrupt
        return
    # The main task cannot be interrupted, or was and still others wait for ever. The run crashes, which anyio's test
    # runner would not notice: it waits for calls from its guest.
    plugin = sys.modules.get("anyio.pytest_plugin")
    test_runner = getattr(plugin, "_current_runner", None)
    if runner.is_guest and isinstance(test_runner, anyio_trio.TestRunner):

        def raise_outside() -> object:
            raise error

        test_runner._call_queue.put(raise_outside)
    raise error


def _asyncio_tasks(loop: asyncio.AbstractEventLoop) -> list[tuple[str, Any]]:
    return [(task.get_name(), task.get_coro()) for task in asyncio.all_tasks(loop)]


def _trio_tasks(runner: Runner) -> list[tuple[str, Any]]:
    return [(task.name, task.coro) for task in runner.tasks]
