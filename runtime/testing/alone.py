"""Virtual time for users' tests: besides the clock and the loops, what else of a process goes by time.

The wall clock moves with the virtual one. An inbox commits within the call, for a thread would be unknown to the clock.
Nothing looks again and again for what other processes, or a slow machine, may have done: the test's process is alone,
and its loop is never late. So a day without work costs nothing, and what waits in vain is noticed (`Stuck`).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

from lanes.checks import seconds
from locks import process

from ..inbox import asks, schedules, service, watch
from ..watch import watchdog
from .clock import START
from .inline import inline
from .patches import replaced
from .virtual import VirtualClock
from .virtual import virtual_time as clock_and_loops

T = TypeVar("T")

WALL = 1_800_000_000.0
"""The wall clock at the first instant: Friday, 15 January 2027, 8:00 UTC."""
_LOOKS = (
    (asks, "_LOOK_S"),
    (schedules, "_LOOK_S"),
    (service, "_LOOK_S"),
    (service, "_PURGE_EVERY_S"),
    (watch, "_LOOK_S"),
)
"""Seconds between two looks, of what looks again and again."""


@contextlib.contextmanager
def virtual_time(*, wall: float = WALL) -> Iterator[VirtualClock]:
    """Inside, time is virtual on the event loops that `run` of the clock starts, or that have its `backend_options`.

    The fixture `virtual_time` does this for a test of pytest.

    Args:
        wall: what the wall clock says at the first instant, in seconds since the epoch.

    Raises:
        InvalidLane: that is no such number.
    """
    seconds("wall", wall, zero=True)
    with contextlib.ExitStack() as inside:
        clock = inside.enter_context(clock_and_loops(silent=(watchdog.THREAD,)))
        inside.enter_context(inline())
        inside.enter_context(replaced(process, "wall", lambda: wall + clock.now() - START))
        for module, name in _LOOKS:
            inside.enter_context(replaced(module, name, math.inf))
        yield clock


def run(main: Callable[..., Awaitable[T]], *args: object, backend: str = "asyncio") -> T:
    """As `anyio.run`, in virtual time: for tests without pytest, and for scripts.

    Args:
        backend: `"asyncio"` or `"trio"`.

    Raises:
        InvalidLane: there is no such loop, or no virtual time on it.
        Stuck: everything waits, and nothing is due.
    """
    with virtual_time() as clock:
        return clock.run(backend, main, *args)
