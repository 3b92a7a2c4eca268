"""Virtual time: an event loop that never sleeps, on asyncio and trio, and a clock whose alarms ring when it jumps.

There is one instant, `VirtualClock.now()`. It stands still while any task can run. When all of them wait, it jumps to
the next instant at which something is due: a timer of the loop, or an alarm of the clock seam (`locks._clock`), which
rings inline, on the loop's thread, exactly at its due instant and before the timers of the same instant. So 24 hours of
leases take seconds, and "at its deadline" can be tested by equality.

    async def test_a_lease_ends_at_its_deadline(virtual):
        registry = LockRegistry(max_hold=300.0)
        ...
        assert virtual.now() == started + 300.0

`with virtual_time() as virtual: virtual.run("trio", main)` makes such a clock `locks._clock.clock`, and runs `main` in
its time. A loop that something else makes goes by it too, given `backend_options("trio")`: pytest's fixtures do that.

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

import contextlib
import threading
from collections.abc import Awaitable, Callable, Collection, Iterator
from typing import Any, TypeVar

import anyio
from anyio._backends import _asyncio as anyio_asyncio  # the two places through which all worker threads pass
from anyio._backends import _trio as anyio_trio

from locks import _clock

from . import loops
from .clock import START, LoopClock
from .errors import NotVirtual
from .patches import replaced

T = TypeVar("T")


class VirtualClock(LoopClock):
    """Virtual time: what moves it is the event loop that goes by it, and nothing else."""

    def backend_options(self, backend: str) -> dict[str, Any]:
        """What `anyio.run` needs to run `backend` ("asyncio" or "trio") in this time."""
        return loops.backend_options(backend, lambda: self)

    def run(self, backend: str, fn: Callable[..., Awaitable[T]], *args: object) -> T:
        """`anyio.run` in this time."""
        return anyio.run(fn, *args, backend=backend, backend_options=self.backend_options(backend))


def current() -> VirtualClock:
    """The virtual clock that is installed.

    Raises:
        NotVirtual: none is.
    """
    clock = _clock.clock
    if not isinstance(clock, VirtualClock):
        raise NotVirtual(
            "time is real here; allowed: in a test that requests the fixture `virtual_time`, in a block of "
            "`virtual_time()`, or in what `run` runs"
        )
    return clock


@contextlib.contextmanager
def virtual_time(start: float = START, *, silent: Collection[str] = ()) -> Iterator[VirtualClock]:
    """Install a new virtual clock as `locks._clock.clock`; loops made with its options, or by `run`, go by it."""
    clock = VirtualClock(start, silent=silent)
    with contextlib.ExitStack() as patches:
        patches.enter_context(replaced(_clock, "clock", clock))
        for backend in (anyio_asyncio.AsyncIOBackend, anyio_trio.TrioBackend):
            _hold_while_in_threads(patches, clock, backend)
        yield clock
    if clock.failure is not None:
        raise clock.failure


@contextlib.contextmanager
def jumps_seen(seen: Callable[[float], object]) -> Iterator[None]:
    """Inside, `seen` is called before virtual time jumps to something that a task waits for, with that instant."""
    clock = _clock.clock
    if isinstance(clock, VirtualClock):
        clock.on_jump = seen
    try:
        yield
    finally:
        if isinstance(clock, VirtualClock):
            clock.on_jump = None


def _hold_while_in_threads(patches: contextlib.ExitStack, clock: VirtualClock, backend: Any) -> None:
    to_thread, from_thread = backend.run_sync_in_worker_thread, backend.run_async_from_thread
    here = threading.local()

    async def held_to_thread(
        cls: type, func: Callable[..., T], args: tuple[Any, ...], abandon_on_cancel: bool = False, limiter: Any = None
    ) -> T:
        def known(*args: object) -> T:
            here.held = True
            try:
                return func(*args)
            finally:
                here.held = False

        with clock._thread():
            result: T = await to_thread(known, args, abandon_on_cancel=abandon_on_cancel, limiter=limiter)
            return result

    def released_from_thread(cls: type, func: Callable[..., Any], args: tuple[Any, ...], token: object) -> Any:
        # The thread waits for the loop, and perhaps for time to pass there. Time is let go and held again on the loop's
        # thread: between here and there it would find nobody at work.
        async def released(*args: object) -> Any:
            with clock._thread(-1):
                return await func(*args)

        return from_thread(released if getattr(here, "held", False) else func, args, token)

    patches.enter_context(replaced(backend, "run_sync_in_worker_thread", classmethod(held_to_thread)))
    patches.enter_context(replaced(backend, "run_async_from_thread", classmethod(released_from_thread)))


def backend_options(backend: str, which: Callable[[], LoopClock] = current) -> dict[str, Any]:
    """As `loops.backend_options`, for the clock that is installed when the loop is made."""
    return loops.backend_options(backend, which)
