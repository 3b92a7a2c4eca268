"""Virtual time: an event loop that never sleeps, on asyncio and trio, and a clock whose alarms ring when it jumps.

There is one instant, `VirtualClock.now()`. It stands still while any task can run. When all of them wait, it jumps to
the next instant at which something is due: a timer of the loop, or an alarm of the clock seam (`locks._clock`), which
rings inline, on the loop's thread, exactly at its due instant and before the timers of the same instant. So 24 hours of
leases take seconds, and "at its deadline" can be tested by equality.

    async def test_a_lease_ends_at_its_deadline(virtual):
        registry = LockRegistry(max_hold=300.0)
        ...
        assert virtual.now() == started + 300.0

The fixture `virtual` runs the test on asyncio and on trio, and `locks._clock.clock` is the clock for as long as the
test lasts. Outside of fixtures, `with virtual_time() as virtual: virtual.run("trio", main)` does the same, as often as
wanted.

What is real stays real:

- Worker threads (`anyio.to_thread`, executors) hold time still for as long as somebody waits for them, because disk
  work must not cost 300 virtual seconds. A thread that waits for the loop (`anyio.from_thread.run`) does not. For
  threads that hang on purpose: `virtual.threads_hold = False`.
- Other threads, children and sockets are unknown to the clock: `with virtual.held(): ...` around waiting for them.
- Whoever holds time still has `PATIENCE` seconds of real time to come forward; then the test fails.

A body that spins (one that swallows a cancellation that is delivered again and again) never lets the loop become idle,
and in reality that takes time, too: after `busy_limit` rounds of the loop without a pause, time creeps on all the
same. A body that blocks the loop's thread is played by `virtual.advance(seconds)`: alarms ring, timers come late.

If everything waits and nothing is due, the run fails with `Stuck`, which lists who waits where.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import operator
import os
import select
import selectors
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar

import anyio
import anyio.pytest_plugin
import pytest
import trio.testing
from anyio._backends import _asyncio as anyio_asyncio  # the two places through which all worker threads pass
from anyio._backends import _trio as anyio_trio
from trio._core._run import GLOBAL_RUN_CONTEXT, Runner  # trio has no public way to ask for the next deadline

from locks import _clock
from runtime.watch import frames

T = TypeVar("T")

START = 1000.0
"""The first instant: not 0, which is false and hides a missing origin."""

PATIENCE = 10.0
"""Real seconds for which something real may hold time still without being heard of."""

BUSY_LIMIT = 10_000
"""Rounds of the event loop without a pause, after which time creeps on although somebody is running."""

_RINGS_AT_ONCE = 10_000
_IN_ORDER = operator.attrgetter("due", "number")
"""By when alarms ring, then in the order in which they were made."""
_NEAR = 0.001
_ROUNDS_ON_ARRIVAL = 100


class Stuck(AssertionError):
    """In virtual time everything waits, and nothing will ever come."""


class VirtualClock:
    """A `locks._clock.Clock` that stands still until it is moved. `now` and `alarm` may be called from any thread."""

    def __init__(self, start: float = START) -> None:
        self.threads_hold = True
        """Whether worker threads that somebody waits for hold time still."""
        self.busy_limit = BUSY_LIMIT
        self.patience = PATIENCE
        self.failure: BaseException | None = None
        """What an alarm's callback raised where it could not be raised further; the fixture does."""
        self._now = start
        self._alarms: weakref.WeakSet[VirtualAlarm] = weakref.WeakSet()
        self._earliest = math.inf
        """No alarm is due before it. A loop asks in each of its rounds, and an alarm is hardly ever due."""
        self._numbers = itertools.count()
        # Reentrant: a collection inside may run a finalizer that sets an alarm.
        self._mutex = threading.RLock()
        self._settling: list[Callable[[], object]] = []
        self._holds = 0
        self._threads = 0
        self._rounds = 0

    def __repr__(self) -> str:
        return f"<VirtualClock {self._now!r} alarms={len(self._alarms)} holds={self._holds} threads={self._threads}>"

    def now(self) -> float:
        """The current instant; the same as `anyio.current_time()`."""
        return self._now

    def alarm(self, callback: _clock.Callback, thread: str = _clock.STEWARD) -> VirtualAlarm:
        """An alarm that rings inline when time reaches it, for as long as it is referenced."""
        alarm = VirtualAlarm(self, callback, next(self._numbers))
        with self._mutex:
            self._alarms.add(alarm)
        return alarm

    def advance(self, seconds: float) -> None:
        """Let time pass as if the caller blocked the loop: alarms ring at their instants, timers come late."""
        self._rounds = 0
        self._move(self._now + seconds)

    async def settle(self) -> None:
        """Return when every other task waits, at the same instant. A checkpoint."""
        settled = anyio.Event()
        self._settling.append(settled.set)
        await settled.wait()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Inside, time stands still: something real is under way that the clock does not know of."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1

    def backend_options(self, backend: str) -> dict[str, Any]:
        """What `anyio.run` needs to run `backend` ("asyncio" or "trio") in this time."""
        return backend_options(backend, lambda: self)

    def run(self, backend: str, fn: Callable[..., Awaitable[T]], *args: object) -> T:
        """`anyio.run` in this time."""
        return anyio.run(fn, *args, backend=backend, backend_options=self.backend_options(backend))

    # For the loops. Only one loop moves a clock.

    @property
    def holds(self) -> int:
        """How many hold time still."""
        return self._holds + (self._threads if self.threads_hold else 0)

    @contextlib.contextmanager
    def _thread(self, by: int = 1) -> Iterator[None]:
        # Both ends may be on any thread.
        with self._mutex:
            self._threads += by
        try:
            yield
        finally:
            with self._mutex:
                self._threads -= by

    def _next_alarm(self) -> VirtualAlarm | None:
        with self._mutex:
            return min(self._alarms, key=_IN_ORDER, default=None)

    def _due_by(self, to: float) -> VirtualAlarm | None:
        with self._mutex:  # or an alarm that another thread sets meanwhile would not count
            if self._earliest > to:
                return None
            alarm = self._next_alarm()
            self._earliest = math.inf if alarm is None else alarm.due
            return alarm if self._earliest <= to else None

    def _next_instant(self, timer: float) -> float:
        with self._mutex:
            if self._earliest < timer:
                alarm = self._next_alarm()
                self._earliest = math.inf if alarm is None else alarm.due
            return min(timer, self._earliest)

    def _move(self, to: float) -> None:
        """Go to `to`, never back, ringing on the way what is due."""
        rings, at = 0, self._now
        while (alarm := self._due_by(to)) is not None:
            self._now = max(self._now, alarm.due)
            alarm.due = math.inf
            rings, at = (rings + 1, at) if self._now == at else (1, self._now)
            if rings > _RINGS_AT_ONCE:
                raise Stuck(f"virtual time: {alarm.callback!r} rings for ever at {at!r}")
            alarm.ring_by(alarm.callback(self._now))
        self._now = max(self._now, to)

    def _ring_due(self) -> None:
        """Ring what was set to an instant that is already here."""
        self._move(self._now)

    def _on_busy(self, timer: float) -> None:
        """The loop goes round and somebody can run. `timer`: when the loop's next timer is due."""
        self._rounds += 1
        if self._rounds > self.busy_limit and not self.holds:
            # Towards the next instant, and onto it from nearby: it may be a timer that the spinning body sets anew in
            # each round (a sleep that is cancelled at once), which in reality it never reaches.
            to = self._next_instant(timer)
            if to - self._now <= _NEAR:
                self._move(to)
                self._rounds = self.busy_limit - _ROUNDS_ON_ARRIVAL  # for those who waited for it
            elif to < math.inf:
                self._move(self._now + (to - self._now) / 8)

    def _on_idle(self, timer: float) -> None:
        """Nobody can run: jump."""
        self._rounds = 0
        if self._settling:
            settling, self._settling = self._settling, []
            for settled in settling:
                settled()
            return
        to = self._next_instant(timer)
        if to == math.inf:
            raise Stuck("virtual time: everything waits for ever")
        self._move(to)

    def _on_silence(self) -> Stuck:
        return Stuck(
            f"virtual time: {self._holds} blocks of held() and {self._threads} worker threads hold time still, and "
            f"nothing has happened for {self.patience:g} s of real time; for threads that hang on purpose, "
            f"virtual.threads_hold = False"
        )


class VirtualAlarm:
    """A `locks._clock.Alarm` of a `VirtualClock`."""

    def __init__(self, clock: VirtualClock, callback: _clock.Callback, number: int) -> None:
        self.clock = clock
        self.callback = callback
        self.number = number
        self.due = math.inf

    def ring_by(self, at: float) -> None:
        """Ring at `at` unless due earlier; if that is now or past, when the running tasks pause."""
        with self.clock._mutex:
            self.due = min(self.due, at)
            self.clock._earliest = min(self.clock._earliest, at)


def current() -> VirtualClock:
    """The virtual clock that is installed."""
    clock = _clock.clock
    if not isinstance(clock, VirtualClock):
        raise RuntimeError("no virtual clock is installed: request the fixture `virtual` or enter `virtual_time()`")
    return clock


@contextlib.contextmanager
def virtual_time(start: float = START) -> Iterator[VirtualClock]:
    """Install a new virtual clock as `locks._clock.clock`; loops made with its options, or by `run`, go by it."""
    clock = VirtualClock(start)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_clock, "clock", clock)
        for backend in (anyio_asyncio.AsyncIOBackend, anyio_trio.TrioBackend):
            _hold_while_in_threads(patch, clock, backend)
        yield clock
    if clock.failure is not None:
        raise clock.failure


def _hold_while_in_threads(patch: pytest.MonkeyPatch, clock: VirtualClock, backend: Any) -> None:
    to_thread, from_thread = backend.run_sync_in_worker_thread, backend.run_async_from_thread
    here = threading.local()

    async def held_to_thread(
        cls: type, func: Callable[..., T], args: tuple, abandon_on_cancel: bool = False, limiter: Any = None
    ) -> T:
        def known(*args: object) -> T:
            here.held = True
            try:
                return func(*args)
            finally:
                here.held = False

        with clock._thread():
            return await to_thread(known, args, abandon_on_cancel=abandon_on_cancel, limiter=limiter)

    def released_from_thread(cls: type, func: Callable[..., Any], args: tuple, token: object) -> Any:
        # The thread waits for the loop, and perhaps for time to pass there. Time is let go and held again on the loop's
        # thread: between here and there it would find nobody at work.
        async def released(*args: object) -> Any:
            with clock._thread(-1):
                return await func(*args)

        return from_thread(released if getattr(here, "held", False) else func, args, token)

    patch.setattr(backend, "run_sync_in_worker_thread", classmethod(held_to_thread))
    patch.setattr(backend, "run_async_from_thread", classmethod(released_from_thread))


def backend_options(backend: str, which: Callable[[], VirtualClock] = current) -> dict[str, Any]:
    """Options for anyio that make `backend` go by the clock that `which()` returns when the loop is made."""
    if backend == "asyncio":
        return {"loop_factory": lambda: VirtualEventLoop(which())}
    if backend == "trio":
        return {"clock": _mock_clock(which), "instruments": [_Rounds(which)]}
    raise ValueError(f"no virtual time on {backend!r}")


# asyncio: the loop asks its selector to sleep, and the selector jumps instead.


class VirtualEventLoop(asyncio.SelectorEventLoop):
    """A stock selector loop whose time is that of a `VirtualClock`."""

    def __init__(self, clock: VirtualClock) -> None:
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
            raise _explained(clock._on_silence(), _asyncio_tasks(loop))
        try:
            clock._on_idle(loop.next_timer())
        except Stuck as stuck:
            raise _explained(stuck, _asyncio_tasks(loop)) from None
        return super().select(0)


# trio: it jumps its own MockClock when all tasks wait. That class is final and trio asks for exactly it, so an instance
# is bent.


def _mock_clock(which: Callable[[], VirtualClock]) -> trio.testing.MockClock:
    mock = trio.testing.MockClock(autojump_threshold=0)
    mock.current_time = lambda: which().now()  # type: ignore[method-assign]  # see above
    mock._autojump = lambda: _autojump(which())  # type: ignore[method-assign]  # see above
    return mock


class _Rounds(trio.abc.Instrument):
    """Sees every round of trio's loop."""

    def __init__(self, which: Callable[[], VirtualClock]) -> None:
        self._which = which

    def before_io_wait(self, timeout: float) -> None:
        clock, runner = self._which(), GLOBAL_RUN_CONTEXT.runner
        try:
            clock._ring_due()
            if runner.runq:
                clock._on_busy(runner.deadlines.next_deadline())
        except BaseException as error:  # trio would log it and go on without this instrument
            clock.failure = error


def _autojump(clock: VirtualClock) -> None:
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
        _raise_in_main_task(runner, _explained(error, _trio_tasks(runner)) if isinstance(error, Stuck) else error)


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
    test_runner = anyio.pytest_plugin._current_runner
    if runner.is_guest and isinstance(test_runner, anyio_trio.TestRunner):

        def raise_outside() -> object:
            raise error

        test_runner._call_queue.put(raise_outside)
    raise error


# Who waits where.


def _explained(stuck: Stuck, tasks: list[tuple[str, Any]]) -> Stuck:
    lines = [f"\n  {name}: {where}" for name, coro in tasks if (where := _where(coro)) is not None]
    return Stuck(str(stuck) + "".join(sorted(lines)))


def _asyncio_tasks(loop: asyncio.AbstractEventLoop) -> list[tuple[str, Any]]:
    return [(task.get_name(), task.get_coro()) for task in asyncio.all_tasks(loop)]


def _trio_tasks(runner: Runner) -> list[tuple[str, Any]]:
    return [(task.name, task.coro) for task in runner.tasks]


def _where(coro: Coroutine[Any, Any, Any] | Any) -> str | None:
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
